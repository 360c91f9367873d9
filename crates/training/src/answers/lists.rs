//! Training lists of shown answers.
use super::{
    PositionBias, ShownAnswer,
    log::{ShownCandidate, ShownSlot},
};
use crate::{
    lists::{CART, CLICK, HEADS, Labels, Outcomes, PURCHASE, REFUND, RETURN_VISIT},
    ranker::RankingList,
    retrieval::{ListRequest, retrieve_candidates},
};
use ahash::AHashMap;
use lodestone_core::ids::Row;
use lodestone_pipeline::{Generation, Models, Options, RequestContext, Viewer};

/// Greatest weight of an interaction. A greater one would give single interactions in rarely examined slots the most
/// influence (Swaminathan and Joachims 2015).
const WEIGHT_MAX: f64 = 10.0;

/// Returns the shown items of an answer with their features, as retrieval finds them for the generation at the time of
/// the answer, and labels by head: the interactions that followed from each slot, times their weights. Items that
/// retrieval no longer finds are left out. None if there is no interaction, or nothing to compare it with.
pub(crate) fn shown_list(
    generation: &Generation,
    models: &mut Models,
    answer: &ShownAnswer,
    outcomes: &Outcomes,
    bias: &PositionBias,
) -> Option<RankingList> {
    if !answer.has_interaction() {
        return None;
    }
    let viewer = Viewer { context: answer.context.clone(), ..Viewer::of_user(answer.user.clone()) };
    let (catalog, options) = (generation.catalog.load_full(), Options::default());
    let mut context = RequestContext::new(generation, &catalog, &viewer, &options, answer.at);
    let query = answer.query.as_deref();
    let rows: Vec<Row> = answer.candidates.iter().flatten().map(|candidate| candidate.row).collect();
    let request = match (&answer.candidates, query) {
        (Some(_), query) => ListRequest::Candidates { query, rows: &rows },
        (None, Some(query)) => ListRequest::Search(query),
        (None, None) => ListRequest::ForYou,
    };
    let values = |candidate: &ShownCandidate| {
        let value = |name: &str| candidate.features.get(name).map(|value| *value as f32);
        (candidate.row, generation.schema().of_request().map(value).collect())
    };
    context.request_features = answer.candidates.as_ref().map(|candidates| candidates.iter().map(values).collect());
    retrieve_candidates(&mut context, models, &request);
    let index_of: AHashMap<Row, usize> =
        context.candidates.list.iter().enumerate().map(|(index, candidate)| (candidate.row, index)).collect();
    let shown: Vec<usize> =
        (0..answer.slots.len()).filter(|index| index_of.contains_key(&answer.slots[*index].row)).collect();
    let has_positive = shown.iter().any(|index| answer.slots[*index].outcome.has_interaction());
    if !has_positive || shown.len() < 2 {
        return None;
    }
    let columns = context.schema().column_count();
    let all = context.features();
    let features = shown.iter().flat_map(|index| {
        let at = index_of[&answer.slots[*index].row] * columns;
        all[at..at + columns].iter().copied()
    });
    let features = features.collect();
    let rows = shown.iter().map(|index| answer.slots[*index].row);
    let labels = Outcomes::labels(&positives(answer, outcomes), rows);
    let weights = shown.iter().map(|index| weight(&answer.slots[*index], bias));
    let labels = labels.iter().zip(weights).flat_map(|(labels, weight)| labels.map(|label| label * weight)).collect();
    Some(RankingList { features, labels, is_weighted: true })
}

/// Returns the labels of the items with interactions, without weights.
fn positives(answer: &ShownAnswer, outcomes: &Outcomes) -> AHashMap<Row, Labels> {
    let known = outcomes.positives(&answer.user, answer.at);
    let slots = answer.slots.iter().filter(|slot| slot.outcome.has_interaction());
    let of_slot = slots.map(|slot| {
        let mut labels = [f32::NAN; HEADS.len()];
        labels[CLICK] = f32::from(u8::from(slot.outcome.has_click));
        labels[CART] = f32::from(u8::from(slot.outcome.has_cart));
        labels[PURCHASE] = f32::from(u8::from(slot.outcome.has_purchase));
        if let Some(known) = known.get(&slot.row) {
            labels[RETURN_VISIT] = known[RETURN_VISIT];
            labels[REFUND] = if slot.outcome.has_purchase { known[REFUND] } else { 0.0 };
        }
        (slot.row, labels)
    });
    of_slot.collect()
}

/// Returns the clipped inverse of the probability that the user examined the item.
fn weight(slot: &ShownSlot, bias: &PositionBias) -> f32 {
    (1.0 / bias.propensity(slot.slot, &slot.probabilities)).min(WEIGHT_MAX) as f32
}

/// Divides the labels by the mean weight of all interactions, so that a shown list counts as much as another list on
/// average (the self-normalised estimate of Swaminathan and Joachims 2015).
pub(crate) fn with_mean_weight_one(lists: &mut [RankingList]) {
    let positive = |label: &&f32| **label > 0.0;
    let (mut sum, mut count) = (0.0f64, 0.0f64);
    for label in lists.iter().flat_map(|list| &list.labels).filter(positive) {
        sum += f64::from(*label);
        count += 1.0;
    }
    if count > 0.0 {
        let mean = (sum / count) as f32;
        lists.iter_mut().flat_map(|list| &mut list.labels).for_each(|label| *label /= mean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answers::{log::SlotOutcome, position_bias::PairCounts},
        ranker::learned_logits,
    };
    use lodestone_pipeline::policy::{Exploration, OrganicList};
    use rand::{Rng, SeedableRng, rngs::StdRng};

    const ITEMS: usize = 6;

    /// Pages that a policy drew with the worst item on top, and clicks that need an examination: `1 / slot`.
    fn simulated(relevance: &[f64; ITEMS], page_count: u64) -> Vec<Vec<ShownSlot>> {
        let scores: Vec<f32> = (0..ITEMS).map(|item| (ITEMS - item) as f32).collect();
        let slots: Vec<usize> = (1..=ITEMS).collect();
        let organic = OrganicList { scores: &scores, slots: &slots };
        let policy = Exploration { temperature: 0.5, first_slot: 1, top: ITEMS, share: 1.0, ..Exploration::default() };
        let mut rng = StdRng::seed_from_u64(1);
        let mut page = |seed: u64| {
            let order = policy.draw(organic, seed).order;
            let probabilities = policy.page_probabilities(organic, &order, 200, !seed);
            let slot = |(slot, (item, probabilities)): (usize, (&usize, Vec<f32>))| {
                let has_click = rng.random_bool(relevance[*item] / (slot as f64 + 1.0));
                let outcome = SlotOutcome { has_click, ..SlotOutcome::default() };
                ShownSlot { row: Row(*item as u32), slot, probabilities, outcome }
            };
            order.iter().zip(probabilities).enumerate().map(slot).collect()
        };
        (0..page_count).map(&mut page).collect()
    }

    fn list(page: &[ShownSlot], weight: impl Fn(&ShownSlot) -> f32) -> RankingList {
        let one_hot = |row: Row| (0..ITEMS).map(move |item| f32::from(u8::from(row.index() == item)));
        let label = |slot: &ShownSlot| if slot.outcome.has_click { weight(slot) } else { 0.0 };
        RankingList {
            features: page.iter().flat_map(|slot| one_hot(slot.row)).collect(),
            labels: page.iter().map(label).collect(),
            is_weighted: true,
        }
    }

    /// Returns the items in the learned order, worst first.
    fn learned_order(mut lists: Vec<RankingList>) -> Vec<usize> {
        with_mean_weight_one(&mut lists);
        let each: Vec<f32> = (0..ITEMS * ITEMS).map(|cell| f32::from(u8::from(cell % (ITEMS + 1) == 0))).collect();
        let logits = learned_logits(&lists, ITEMS, &each);
        let mut order: Vec<usize> = (0..ITEMS).collect();
        order.sort_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        order
    }

    #[test]
    fn weighted_interactions_recover_the_relevance_that_the_position_hides() {
        let pages = simulated(&[0.15, 0.2, 0.25, 0.3, 0.35, 0.4], 12_000);
        let mut counts = PairCounts::new(ITEMS);
        for slot in pages.iter().flatten() {
            counts.add(slot.slot, &slot.probabilities, slot.outcome.has_click);
        }
        let bias = PositionBias::estimate(&counts);
        for (slot, examination) in bias.examination.iter().enumerate() {
            let truth = 1.0 / (slot as f64 + 1.0);
            assert!((examination / truth - 1.0).abs() < 0.2, "slot {}: {bias:?}", slot + 1);
        }
        let unweighted = learned_order(pages.iter().map(|page| list(page, |_| 1.0)).collect());
        let weighted = learned_order(pages.iter().map(|page| list(page, |slot| weight(slot, &bias))).collect());
        assert_eq!(weighted, [0, 1, 2, 3, 4, 5]);
        let position = |order: &[usize], item: usize| order.iter().position(|other| *other == item);
        assert!(position(&unweighted, 0) > position(&unweighted, 5), "the shown order wins: {unweighted:?}");
    }

    #[test]
    fn weights_are_clipped_and_their_mean_is_one() {
        let bias = PositionBias { examination: vec![1.0, 0.01], interactions: vec![1.0; 2], exponent: 1.0 };
        let slot = |slot| ShownSlot { row: Row(0), slot, probabilities: Vec::new(), outcome: SlotOutcome::default() };
        assert_eq!([0, 1].map(|index| weight(&slot(index), &bias)), [1.0, 10.0]);
        let mut lists =
            [RankingList { features: Vec::new(), labels: vec![1.0, 0.0, f32::NAN, 10.0], is_weighted: true }];
        with_mean_weight_one(&mut lists);
        assert_eq!([lists[0].labels[0], lists[0].labels[1], lists[0].labels[3]], [1.0 / 5.5, 0.0, 10.0 / 5.5]);
        assert!(lists[0].labels[2].is_nan());
    }
}
