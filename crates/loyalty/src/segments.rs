//! Segments of customers: rules over a few quantities, as data.
use serde::{Deserialize, Serialize};

/// A segment of customers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Segment {
    /// Has not purchased yet, or once and recently.
    New,
    /// Purchases, and is not yet loyal.
    Growing,
    /// Purchased on several days, and is as likely to purchase as the mean or more.
    Loyal,
    /// Was a customer, and is overdue, or has become much less likely to purchase.
    AtRisk,
    /// Has become unlikely to purchase.
    Lapsing,
    /// Is very unlikely to purchase.
    Lost,
}

impl Segment {
    /// Returns the number of `lodestone.v1.LoyaltySegment`.
    pub fn number(self) -> i32 {
        self as i32 + 1
    }

    pub const ALL: [Self; 6] = [Self::New, Self::Growing, Self::Loyal, Self::AtRisk, Self::Lapsing, Self::Lost];

    /// Returns the name in files, such as `at_risk`.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Growing => "growing",
            Self::Loyal => "loyal",
            Self::AtRisk => "at_risk",
            Self::Lapsing => "lapsing",
            Self::Lost => "lost",
        }
    }
}

/// A quantity that a rule compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Number of different days with a purchase.
    PurchaseDays,
    /// Days since the first visit.
    DaysSinceFirstVisit,
    /// Days since the last purchase divided by the user's mean interval between purchases.
    Overdue,
    /// Probability of a purchase within the longest horizon.
    PurchaseProbability,
    /// That probability minus the one of 30 days ago; 0 if it is not known.
    PurchaseProbabilityChange,
}

impl Quantity {
    /// Returns the name in files, such as `purchase_days`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PurchaseDays => "purchase_days",
            Self::DaysSinceFirstVisit => "days_since_first_visit",
            Self::Overdue => "overdue",
            Self::PurchaseProbability => "purchase_probability",
            Self::PurchaseProbabilityChange => "purchase_probability_change",
        }
    }
}

/// A condition of a rule: the quantity is within `min` and `max`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    pub quantity: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

impl Condition {
    fn at_least(quantity: Quantity, min: f64) -> Self {
        Self { quantity, min: Some(min), max: None }
    }

    fn at_most(quantity: Quantity, max: f64) -> Self {
        Self { quantity, min: None, max: Some(max) }
    }
}

/// A rule: users who fulfil all conditions are in the segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentRule {
    pub segment: Segment,
    pub conditions: Vec<Condition>,
}

/// The quantities of one user.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantities {
    pub purchase_days: f64,
    pub days_since_first_visit: f64,
    pub overdue: f64,
    pub purchase_probability: f64,
    pub purchase_probability_change: f64,
}

impl Quantities {
    pub fn get(&self, quantity: Quantity) -> f64 {
        match quantity {
            Quantity::PurchaseDays => self.purchase_days,
            Quantity::DaysSinceFirstVisit => self.days_since_first_visit,
            Quantity::Overdue => self.overdue,
            Quantity::PurchaseProbability => self.purchase_probability,
            Quantity::PurchaseProbabilityChange => self.purchase_probability_change,
        }
    }
}

/// Returns the rules of a shop whose customers purchase with the mean probability `mean` within the longest horizon.
/// The first rule that applies decides; the last one applies to all.
pub(crate) fn segment_rules(mean: f64) -> Vec<SegmentRule> {
    use Quantity::*;
    let rule = |segment, conditions: &[Condition]| SegmentRule { segment, conditions: conditions.to_vec() };
    vec![
        rule(Segment::New, &[Condition::at_most(PurchaseDays, 0.0)]),
        rule(Segment::New, &[Condition::at_most(PurchaseDays, 1.0), Condition::at_most(DaysSinceFirstVisit, 30.0)]),
        rule(Segment::Lost, &[Condition::at_most(PurchaseProbability, 0.25 * mean)]),
        rule(Segment::Lapsing, &[Condition::at_most(PurchaseProbability, 0.5 * mean)]),
        rule(Segment::AtRisk, &[Condition::at_least(Overdue, 2.0)]),
        rule(Segment::AtRisk, &[Condition::at_most(PurchaseProbabilityChange, -0.2)]),
        rule(Segment::Loyal, &[Condition::at_least(PurchaseDays, 4.0), Condition::at_least(PurchaseProbability, mean)]),
        rule(Segment::Growing, &[]),
    ]
}

/// Returns the first rule that applies. None if no rule does.
pub(crate) fn first_rule<'a>(rules: &'a [SegmentRule], quantities: &Quantities) -> Option<&'a SegmentRule> {
    let holds = |condition: &Condition| {
        let value = quantities.get(condition.quantity);
        condition.min.is_none_or(|min| value >= min) && condition.max.is_none_or(|max| value <= max)
    };
    rules.iter().find(|rule| rule.conditions.iter().all(holds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_segment_has_a_user_and_the_first_rule_decides() {
        let rules = segment_rules(0.4);
        let of = |purchase_days: f64, first: f64, overdue: f64, probability: f64, change: f64| {
            let quantities = Quantities {
                purchase_days,
                days_since_first_visit: first,
                overdue,
                purchase_probability: probability,
                purchase_probability_change: change,
            };
            first_rule(&rules, &quantities).unwrap().segment
        };
        assert_eq!(of(0.0, 400.0, 0.0, 0.01, 0.0), Segment::New);
        assert_eq!(of(1.0, 20.0, 0.4, 0.3, 0.0), Segment::New);
        assert_eq!(of(1.0, 50.0, 0.9, 0.3, 0.0), Segment::Growing);
        assert_eq!(of(6.0, 300.0, 0.9, 0.6, 0.0), Segment::Loyal);
        assert_eq!(of(6.0, 300.0, 2.5, 0.6, 0.0), Segment::AtRisk);
        assert_eq!(of(6.0, 300.0, 1.0, 0.5, -0.3), Segment::AtRisk);
        assert_eq!(of(6.0, 300.0, 9.0, 0.2, 0.0), Segment::Lapsing);
        assert_eq!(of(6.0, 300.0, 9.0, 0.05, 0.0), Segment::Lost);
    }
}
