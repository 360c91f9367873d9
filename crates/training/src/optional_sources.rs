//! The candidate sources that not every shop needs: each costs time in every request, so a bundle has those that find
//! what the others do not.
use super::lists::Lists;
use lodestone_pipeline::{features::FEATURES, source::CandidateSource};

/// A source that finds a smaller share of the chosen items alone is left out.
const SHARE_MIN: f64 = 0.005;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OptionalSource {
    SimilarTexts,
    SimilarHistories,
}

impl OptionalSource {
    const ALL: [Self; 2] = [Self::SimilarTexts, Self::SimilarHistories];

    pub(crate) fn source(self) -> CandidateSource {
        match self {
            Self::SimilarTexts => CandidateSource::SimilarTexts,
            Self::SimilarHistories => CandidateSource::SimilarHistories,
        }
    }

    /// Names of the features that come from the source.
    fn features(self) -> &'static [&'static str] {
        match self {
            Self::SimilarTexts => &["text_weight", "text_weight_last"],
            Self::SimilarHistories => &["similar_history_weight"],
        }
    }
}

/// Returns the sources that the bundle does without. They are removed one after another, beginning with the one that
/// costs the fewest chosen items, while that is less than [`SHARE_MIN`] of all. `found` is that of [`Lists`]; without
/// chosen items nothing is known about the sources, and all stay.
pub(crate) fn without_effect(found: &[u16]) -> Vec<OptionalSource> {
    if found.is_empty() {
        return Vec::new();
    }
    let mut removed: Vec<OptionalSource> = Vec::new();
    let lost = |removed: &[OptionalSource]| {
        let mask = removed.iter().fold(u16::MAX, |mask, of| mask & !(1 << of.source().index()));
        found.iter().filter(|sources| **sources & mask == 0).count()
    };
    let lost_with = |removed: &[OptionalSource], of| lost(&[removed, &[of]].concat());
    loop {
        let left = OptionalSource::ALL.into_iter().filter(|of| !removed.contains(of));
        let Some(next) = left.min_by_key(|of| lost_with(&removed, *of)) else { return removed };
        let share = (lost_with(&removed, next) - lost(&removed)) as f64 / found.len().max(1) as f64;
        if share >= SHARE_MIN {
            return removed;
        }
        removed.push(next);
    }
}

/// Sets the features that come from a source to 0 in all lists, so that the ranking model does not learn from what it
/// will not see.
pub(crate) fn clear_features(lists: &mut Lists, columns: usize, of: OptionalSource) {
    let names = of.features();
    for column in FEATURES.iter().enumerate().filter(|(_, name)| names.contains(name)).map(|(column, _)| column) {
        for list in lists.lists.iter_mut().chain(&mut lists.shown) {
            list.features.iter_mut().skip(column).step_by(columns).for_each(|value| *value = 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CandidateSource::{Popular, SimilarHistories, SimilarTexts};

    fn found(sources: &[(&[CandidateSource], usize)]) -> Vec<u16> {
        let mask = |sources: &[CandidateSource]| sources.iter().fold(0, |mask, source| mask | 1 << source.index());
        sources.iter().flat_map(|(sources, count)| vec![mask(sources); *count]).collect()
    }

    #[test]
    fn a_source_stays_if_it_finds_what_no_other_one_does() {
        let all = found(&[(&[Popular, SimilarTexts], 900), (&[SimilarHistories], 60)]);
        assert_eq!(without_effect(&all), [OptionalSource::SimilarTexts]);
        let alike = found(&[(&[Popular], 900), (&[SimilarTexts, SimilarHistories], 60)]);
        assert_eq!(without_effect(&alike).len(), 1, "one of two alike stays");
    }

    #[test]
    fn without_a_chosen_item_all_stay() {
        assert_eq!(without_effect(&[]), []);
    }
}
