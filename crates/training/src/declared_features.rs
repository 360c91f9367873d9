//! Checks of the features that a shop declares: each must exist in the data, vary, and not contain the label.
use super::{lists::Lists, ranker::RankingList};
use ahash::AHashMap;
use lodestone_catalog::{AttributeValue, Field, Item, PreparedValue};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_events::{Event, EventKind};
use lodestone_pipeline::features::{DeclaredFeature, FEATURES, FeatureError, FeatureSchema, NUMBER_MAX};
use std::{fmt, ops::Range};

/// A declared feature in the training's report.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FeatureReport {
    pub name: String,
    /// Share of the items with a value; none for a feature of the request.
    pub item_share: Option<f64>,
    /// Items whose number is beyond ±[`NUMBER_MAX`], to which it is limited.
    pub limited_item_count: usize,
    pub leak_check: LeakCheck,
    /// Whether all candidates of all lists have the same value, so that the feature has no effect.
    pub is_constant: bool,
}

/// Whether the values of a feature were compared with later purchases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeakCheck {
    /// The feature is no number of the item.
    NotApplicable,
    /// The feature declares `known_before`.
    Declared,
    /// Fewer than 50 items have a value.
    TooFewItems,
    Passed,
}

impl fmt::Display for FeatureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "feature {}", self.name)?;
        if let Some(share) = self.item_share {
            write!(f, "; {:.1} % of the items have a value", 100.0 * share)?;
        }
        if self.limited_item_count > 0 {
            write!(
                f,
                "; {} items have a number beyond ±{NUMBER_MAX}, to which it is limited: set log = true",
                self.limited_item_count
            )?;
        }
        if self.leak_check == LeakCheck::TooFewItems {
            write!(f, "; not checked for the label, because fewer than {LEAK_ITEMS_MIN} items have a value")?;
        }
        if self.is_constant {
            write!(f, "; constant in all ranking lists, so it has no effect")?;
        }
        writeln!(f)
    }
}

/// Fewest items with a value for the check for leaks.
const LEAK_ITEMS_MIN: usize = 50;
/// A feature leaks if the absolute rank correlation of its values with later purchases is at least this ...
const LEAK_CORRELATION_MIN: f64 = 0.5;
/// ... and exceeds that of earlier purchases by this.
const LEAK_EXCESS_MIN: f64 = 0.1;
/// Ties limit the correlation if most items are never bought. So a feature also leaks if the area under its ROC curve
/// for "bought later" is at least this ...
const LEAK_AUC_MIN: f64 = 0.8;
/// ... and exceeds that of earlier purchases by this ...
const LEAK_AUC_EXCESS_MIN: f64 = 0.2;
/// ... over at least this many items that were bought and that were not.
const LEAK_AUC_ITEMS_MIN: usize = 20;

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
    let time = labels.end;
    let periods = [labels, until_end].map(|times| Period::new(items, events, times));
    let of = |feature: &DeclaredFeature| {
        let name = feature.name().to_owned();
        if let Some(field) = feature.viewer_field()
            && events.iter().all(|event| field.value_of(&event.context).is_none())
        {
            return Err(FeatureError::Feature { name, problem: format!("no event has a {}", field.name()) });
        }
        let Some(prepared) = feature.prepared() else {
            return Ok(FeatureReport::new(name, LeakCheck::NotApplicable));
        };
        let values: Vec<PreparedValue> = items.iter().map(|item| prepared.of(item, time)).collect();
        let count = values.iter().filter(|value| !value.is_missing()).count();
        let problem = match feature {
            DeclaredFeature::Number { field, .. } if count == 0 => Some(no_number(field, items)),
            DeclaredFeature::Affinity { field, .. } if count == 0 => Some(format!("no item has a value in {field}")),
            DeclaredFeature::Match { filter, .. } if values.iter().all(|value| *value == ZERO) => {
                Some(format!("no item matches {filter}"))
            }
            _ => None,
        };
        let (leak_check, leak) = match feature {
            DeclaredFeature::Number { known_before: true, .. } | DeclaredFeature::Match { known_before: true, .. } => {
                (LeakCheck::Declared, None)
            }
            DeclaredFeature::Number { .. } | DeclaredFeature::Match { .. } if count < LEAK_ITEMS_MIN => {
                (LeakCheck::TooFewItems, None)
            }
            DeclaredFeature::Number { field, .. } => (LeakCheck::Passed, leak(&periods, &values, &field.to_string())),
            DeclaredFeature::Match { filter, .. } => (LeakCheck::Passed, leak(&periods, &values, &filter.to_string())),
            _ => (LeakCheck::NotApplicable, None),
        };
        match problem.or(leak) {
            Some(problem) => Err(FeatureError::Feature { name, problem }),
            None => Ok(FeatureReport {
                item_share: Some(count as f64 / items.len() as f64),
                limited_item_count: values.iter().filter(|value| feature.limits(value)).count(),
                ..FeatureReport::new(name, leak_check)
            }),
        }
    };
    schema.declared().iter().map(of).collect()
}

impl FeatureReport {
    fn new(name: String, leak_check: LeakCheck) -> Self {
        Self { name, item_share: None, limited_item_count: 0, leak_check, is_constant: false }
    }
}

/// Describes what items have in a field without a number.
fn no_number(field: &Field, items: &[Item]) -> String {
    let texts = match field {
        Field::Attribute(name) => {
            let is_text = |item: &&Item| {
                matches!(item.attributes.get(name), Some(AttributeValue::Text(_) | AttributeValue::Texts(_)))
            };
            items.iter().filter(is_text).count()
        }
        _ => 0,
    };
    match texts {
        0 => format!("no item has a number in {field}"),
        _ => format!(
            "no item has a number in {field}; {texts} items have a text there, which the kinds match and affinity use"
        ),
    }
}

fn leak(periods: &[Period], values: &[PreparedValue], field: &str) -> Option<String> {
    periods.iter().find_map(|period| period.leak(values, field))
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
    fn leak(&self, values: &[PreparedValue], field: &str) -> Option<String> {
        let number = |(row, value): (usize, &PreparedValue)| match value {
            PreparedValue::Number(Some(number)) => Some((row, *number)),
            _ => None,
        };
        let (rows, values): (Vec<usize>, Vec<f32>) = values.iter().enumerate().filter_map(number).unzip();
        let of = |counts: &[f32]| rows.iter().map(|row| counts[*row]).collect::<Vec<f32>>();
        let within = of(&self.within);
        let before = self.before.each_ref().map(|before| of(before));
        let correlation = rank_correlation(&values, &within);
        let known = before.iter().map(|before| rank_correlation(before, &within)).fold(0.0, f64::max);
        let is_bought: Vec<bool> = within.iter().map(|count| *count > 0.0).collect();
        let auc = auc(&values, &is_bought);
        let known_auc = before.iter().filter_map(|before| self::auc(before, &is_bought)).fold(0.5, f64::max);
        let measured = match auc {
            _ if correlation.abs() >= LEAK_CORRELATION_MIN && correlation.abs() > known + LEAK_EXCESS_MIN => {
                let sign = if correlation < 0.0 { " in absolute value" } else { "" };
                format!(
                    "its rank correlation with the purchases of that time is {correlation:.2}, that of the earlier purchases \
                     {known:.2}; the limits are {LEAK_CORRELATION_MIN}{sign}, and {LEAK_EXCESS_MIN} above that of the \
                     earlier purchases"
                )
            }
            // Low values may belong to the items that are bought.
            Some(auc) if auc.max(1.0 - auc) >= LEAK_AUC_MIN && auc.max(1.0 - auc) > known_auc + LEAK_AUC_EXCESS_MIN => {
                format!(
                    "it separates the items that are bought in that time from the others with an AUC of {:.2}, the earlier \
                     purchases with {known_auc:.2}; the limits are {LEAK_AUC_MIN}, and {LEAK_AUC_EXCESS_MIN} above that \
                     of the earlier purchases",
                    auc.max(1.0 - auc)
                )
            }
            _ => return None,
        };
        let from = self.from;
        Some(format!(
            "it contains the label: over {} items with a value in {field}, and from {from} on, {measured}; remove the feature, or set \
             known_before = true if its values were known before that time",
            rows.len()
        ))
    }
}

/// Returns the area under the ROC curve: the probability that an item that was bought has a greater value than one that
/// was not; equal values count half. None with fewer than [`LEAK_AUC_ITEMS_MIN`] of either.
fn auc(values: &[f32], is_bought: &[bool]) -> Option<f64> {
    let bought = is_bought.iter().filter(|is_bought| **is_bought).count();
    let others = is_bought.len() - bought;
    if bought.min(others) < LEAK_AUC_ITEMS_MIN {
        return None;
    }
    let ranks = ranks(values);
    let sum: f64 = ranks.iter().zip(is_bought).filter(|(_, is_bought)| **is_bought).map(|(rank, _)| rank).sum();
    let (bought, others) = (bought as f64, others as f64);
    Some((sum - bought * (bought - 1.0) / 2.0) / (bought * others))
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

    #[test]
    fn the_area_under_the_roc_curve_counts_ties_half() {
        let is_bought: Vec<bool> = (0..40).map(|item| item < 20).collect();
        let values = |bought: f32| (0..40).map(|item| if item < 20 { bought } else { 1.0 }).collect::<Vec<f32>>();
        assert_eq!([2.0, 1.0, 0.0].map(|bought| auc(&values(bought), &is_bought)), [Some(1.0), Some(0.5), Some(0.0)]);
        assert_eq!(auc(&values(2.0)[1..], &is_bought[1..]), None, "too few to tell");
    }
}
