//! The candidate sources that not every shop needs: each costs time in every request, so a bundle has those that find
//! what the others do not.
use super::lists::Lists;
use lodestone_pipeline::{features::FEATURES, source::CandidateSource};

/// A source that finds a smaller share of the chosen items alone is left out.
const SHARE_MIN: f64 = 0.005;

const OPTIONAL: [CandidateSource; 4] = [
    CandidateSource::CoInteractions,
    CandidateSource::TwoSteps,
    CandidateSource::SimilarTexts,
    CandidateSource::SimilarHistories,
];

/// The chosen items among the candidates of recommendations: bit s is set if source s found the item.
pub(crate) type Found = Vec<u16>;

/// Returns the sources that the bundle does without. They are removed one after another, beginning with the one that
/// costs the fewest chosen items, while that is less than [`SHARE_MIN`] of all.
pub(crate) fn without_effect(found: &[u16]) -> Vec<CandidateSource> {
    let mut removed: Vec<CandidateSource> = Vec::new();
    let lost = |removed: &[CandidateSource]| {
        let mask = removed.iter().fold(u16::MAX, |mask, source| mask & !(1 << source.index()));
        found.iter().filter(|sources| **sources & mask == 0).count()
    };
    let lost_with = |removed: &[CandidateSource], source| lost(&[removed, &[source]].concat());
    loop {
        let left = OPTIONAL.into_iter().filter(|source| !removed.contains(source));
        let Some(next) = left.min_by_key(|source| lost_with(&removed, *source)) else { return removed };
        let share = (lost_with(&removed, next) - lost(&removed)) as f64 / found.len().max(1) as f64;
        if share >= SHARE_MIN {
            return removed;
        }
        removed.push(next);
    }
}

/// Sets the features that come from a source to 0 in all lists, so that the ranking model does not learn from what it
/// will not see.
pub(crate) fn clear_features(lists: &mut Lists, columns: usize, source: CandidateSource) {
    let names: &[&str] = match source {
        CandidateSource::CoInteractions => &["co_interaction_weight", "co_interaction_weight_last"],
        CandidateSource::TwoSteps => &["two_step_weight"],
        CandidateSource::SimilarTexts => &["text_weight", "text_weight_last"],
        CandidateSource::SimilarHistories => &["similar_history_weight"],
        _ => &[],
    };
    for column in FEATURES.iter().enumerate().filter(|(_, name)| names.contains(name)).map(|(column, _)| column) {
        for list in lists.lists.iter_mut().chain(&mut lists.shown) {
            list.features.iter_mut().skip(column).step_by(columns).for_each(|value| *value = 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CandidateSource::{CoInteractions, Popular, SimilarHistories, SimilarTexts, TwoSteps};

    fn found(sources: &[(&[CandidateSource], usize)]) -> Vec<u16> {
        let mask = |sources: &[CandidateSource]| sources.iter().fold(0, |mask, source| mask | 1 << source.index());
        sources.iter().flat_map(|(sources, count)| vec![mask(sources); *count]).collect()
    }

    #[test]
    fn a_source_stays_if_it_finds_what_no_other_one_does() {
        let all = found(&[(&[Popular, SimilarTexts], 900), (&[SimilarHistories], 60), (&[SimilarTexts, TwoSteps], 40)]);
        let removed = without_effect(&all);
        assert_eq!(removed.len(), 2);
        assert!(removed.contains(&CoInteractions) && !removed.contains(&SimilarHistories), "{removed:?}");
        assert!(removed.contains(&TwoSteps) != removed.contains(&SimilarTexts), "one of two alike: {removed:?}");
    }

    #[test]
    fn without_a_chosen_item_all_are_left_out() {
        assert_eq!(without_effect(&[]).len(), OPTIONAL.len());
    }
}
