//! Checks of the features that a shop declares: each must exist in the data, vary, and not contain the label.
use super::{lists::Lists, ranker::RankingList};
use ahash::AHashMap;
use lodestone_catalog::{Item, PreparedValue};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_events::{Event, EventKind};
use lodestone_pipeline::features::{DeclaredFeature, FEATURES, FeatureError, FeatureSchema};
use std::ops::Range;

/// A declared feature in the training's report.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FeatureReport {
    pub name: String,
    /// Share of the items with a value; none for a feature of the request.
    pub item_share: Option<f64>,
    /// Whether all candidates of all lists have the same value, so that the feature has no effect.
    pub is_constant: bool,
}

/// Fewest items with a value for the check for leaks.
const LEAK_ITEMS_MIN: usize = 50;
/// A feature leaks if the absolute rank correlation of its values with later purchases is at least this ...
const LEAK_CORRELATION_MIN: f64 = 0.5;
/// ... and exceeds that of earlier purchases by this.
const LEAK_EXCESS_MIN: f64 = 0.1;

/// Checks that each declared feature has values and does not leak purchases of the label's times, or later ones.
pub(crate) fn check(
    schema: &FeatureSchema,
    items: &[Item],
    events: &[Event],
    labels: Range<UnixMillis>,
) -> Result<Vec<FeatureReport>, FeatureError> {
    if schema.declared().is_empty() {
        return Ok(Vec::new());
    }
    let until_end = labels.end..events.last().map_or(labels.end, |event| UnixMillis(event.at.0.saturating_add(1)));
    // The time of the bundle's prices.
    let time = until_end.end;
    let periods = [labels, until_end].map(|times| Period::new(items, events, times));
    let of = |feature: &DeclaredFeature| {
        let name = feature.name().to_owned();
        if let Some(field) = feature.viewer_field()
            && events.iter().all(|event| field.value_of(&event.context).is_none())
        {
            return Err(FeatureError::Feature { name, problem: format!("no event has a {}", field.name()) });
        }
        let Some(prepared) = feature.prepared() else {
            return Ok(FeatureReport { name, item_share: None, is_constant: false });
        };
        let values: Vec<PreparedValue> = items.iter().map(|item| prepared.of(item, time)).collect();
        let count = values.iter().filter(|value| !value.is_missing()).count();
        let problem = match feature {
            DeclaredFeature::Number { field, .. } if count == 0 => Some(format!("no item has a number in {field}")),
            DeclaredFeature::Affinity { field, .. } if count == 0 => Some(format!("no item has a value in {field}")),
            DeclaredFeature::Match { filter, .. } if values.iter().all(|value| *value == ZERO) => {
                Some(format!("no item matches {filter}"))
            }
            DeclaredFeature::Number { known_before: false, .. }
            | DeclaredFeature::Match { known_before: false, .. } => {
                periods.iter().find_map(|period| period.leak(&values))
            }
            _ => None,
        };
        match problem {
            Some(problem) => Err(FeatureError::Feature { name, problem }),
            None => Ok(FeatureReport { name, item_share: Some(count as f64 / items.len() as f64), is_constant: false }),
        }
    };
    schema.declared().iter().map(of).collect()
}

const ZERO: PreparedValue = PreparedValue::Number(Some(0.0));

/// Notes which declared features are the same in all lists.
pub(crate) fn note_constant(features: &mut [FeatureReport], lists: &Lists) {
    let columns = FEATURES.len() + features.len();
    let rows =
        || lists.lists.iter().chain(&lists.shown).flat_map(|list: &RankingList| list.features.chunks_exact(columns));
    let Some(first) = rows().next() else { return };
    for (feature, column) in features.iter_mut().zip(FEATURES.len()..) {
        feature.is_constant = rows().all(|row| row[column] == first[column]);
    }
}

/// Purchases by item in a period and before it; other positive interactions in a shop without purchases.
struct Period {
    from: UnixMillis,
    within: Vec<f32>,
    /// All before, and those of a time before that is as long as the period.
    before: [Vec<f32>; 2],
}

impl Period {
    fn new(items: &[Item], events: &[Event], times: Range<UnixMillis>) -> Self {
        let row_of: AHashMap<&ItemId, usize> = items.iter().enumerate().map(|(row, item)| (&item.id, row)).collect();
        let has_purchases = events.iter().any(|event| event.kind == EventKind::Purchase);
        let counts = |times: Range<UnixMillis>| {
            let mut counts = vec![0.0; items.len()];
            let within = events.iter().filter(|event| times.contains(&event.at));
            let counted = within.filter(|event| match has_purchases {
                true => event.kind == EventKind::Purchase,
                false => event.kind.is_positive(),
            });
            let rows = counted.flat_map(|event| &event.lines).filter_map(|line| row_of.get(&line.item));
            rows.for_each(|row| counts[*row] += 1.0);
            counts
        };
        let duration = times.end.0.saturating_sub(times.start.0);
        let recent = UnixMillis(times.start.0.saturating_sub(duration));
        let before = [counts(UnixMillis(i64::MIN)..times.start), counts(recent..times.start)];
        Self { from: times.start, within: counts(times), before }
    }

    /// Returns the reason if the values know the period's purchases better than the purchases before do.
    fn leak(&self, values: &[PreparedValue]) -> Option<String> {
        let number = |(row, value): (usize, &PreparedValue)| match value {
            PreparedValue::Number(Some(number)) => Some((row, *number)),
            _ => None,
        };
        let (rows, values): (Vec<usize>, Vec<f32>) = values.iter().enumerate().filter_map(number).unzip();
        if rows.len() < LEAK_ITEMS_MIN {
            return None;
        }
        let of = |counts: &[f32]| rows.iter().map(|row| counts[*row]).collect::<Vec<f32>>();
        let within = of(&self.within);
        let correlation = rank_correlation(&values, &within);
        let known = self.before.iter().map(|before| rank_correlation(&of(before), &within)).fold(0.0, f64::max);
        (correlation.abs() >= LEAK_CORRELATION_MIN && correlation.abs() > known + LEAK_EXCESS_MIN).then(|| {
            let from = jiff::Timestamp::from_millisecond(self.from.0)
                .map_or_else(|_| self.from.0.to_string(), |time| time.to_string());
            format!(
                "it contains the label: over {} items its rank correlation with the purchases from {from} on is \
                 {correlation:.2}, that of the purchases before {known:.2}; remove it, or set known_before = true if \
                 its values were known before that time",
                rows.len()
            )
        })
    }
}

/// Spearman's rank correlation; 0 if one of both is constant.
fn rank_correlation(a: &[f32], b: &[f32]) -> f64 {
    let centred = |values: &[f32]| {
        let ranks = ranks(values);
        let mean = ranks.iter().sum::<f64>() / ranks.len().max(1) as f64;
        ranks.into_iter().map(|rank| rank - mean).collect::<Vec<f64>>()
    };
    let (a, b) = (centred(a), centred(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if scale == 0.0 { 0.0 } else { dot(&a, &b) / scale }
}

/// Returns the rank of each value; equal values have their mean rank.
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let (mut ranks, mut begin) = (vec![0.0; values.len()], 0);
    for ties in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let mean = begin as f64 + (ties.len() - 1) as f64 / 2.0;
        ties.iter().for_each(|at| ranks[*at] = mean);
        begin += ties.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_their_mean_rank() {
        assert_eq!(ranks(&[5.0, 1.0, 5.0, 0.0]), [2.5, 1.0, 2.5, 0.0]);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[9.0, 4.0, 1.0]), -1.0);
        assert_eq!(rank_correlation(&[1.0, 1.0], &[9.0, 4.0]), 0.0);
    }
}
