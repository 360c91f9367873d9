//! Inputs of the loyalty model: what a [`UserSummary`] says at the end of a day.
use crate::summary::{UserSummary, VISIT_DAYS};
use lodestone_events::EventKind;
use serde::{Deserialize, Serialize};

/// Number of inputs without the constant.
pub(crate) const INPUTS: usize = 27;
pub(crate) type Inputs = [f64; INPUTS];

/// Positions of the decayed numbers of purchase days, which the number of further purchases depends on.
pub(crate) const DECAYED: [usize; 3] = [8, 9, 10];

/// Days after which a gap between purchases says no more.
const GAP_DAYS_MAX: f64 = 730.0;
/// Days after which a gap between visits says no more. With 30 days more, the summary still knows its visits.
const VISIT_GAP_DAYS_MAX: f64 = 90.0;
/// Purchase interval of a user before the first one is known, in days.
const INTERVAL_PRIOR_DAYS: f64 = 45.0;
const _: () = assert!(VISIT_GAP_DAYS_MAX + 30.0 < VISIT_DAYS as f64);

/// What moves a score, in terms of the shop. Each input of the model belongs to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// Number of purchase days, and whether there is any.
    PurchaseCount,
    /// Time since the last purchase.
    LastPurchase,
    /// Time since the first purchase.
    CustomerAge,
    /// Purchases of the recent weeks and months.
    RecentPurchases,
    /// Regularity, slowing down, and how overdue the next purchase is.
    PurchaseRhythm,
    /// Mean value of a purchase compared with the shop's mean.
    PurchaseValue,
    /// Number and recency of visits.
    Visits,
    /// Views, searches and additions to the cart per visit.
    Browsing,
    Refunds,
    /// Reviews and favourites.
    Engagement,
    /// Incentives shown and redeemed.
    Incentives,
}

impl Driver {
    pub const ALL: [Self; 11] = [
        Self::PurchaseCount,
        Self::LastPurchase,
        Self::CustomerAge,
        Self::RecentPurchases,
        Self::PurchaseRhythm,
        Self::PurchaseValue,
        Self::Visits,
        Self::Browsing,
        Self::Refunds,
        Self::Engagement,
        Self::Incentives,
    ];

    /// Returns the name in files, such as `last_purchase`.
    pub fn name(self) -> &'static str {
        match self {
            Self::PurchaseCount => "purchase_count",
            Self::LastPurchase => "last_purchase",
            Self::CustomerAge => "customer_age",
            Self::RecentPurchases => "recent_purchases",
            Self::PurchaseRhythm => "purchase_rhythm",
            Self::PurchaseValue => "purchase_value",
            Self::Visits => "visits",
            Self::Browsing => "browsing",
            Self::Refunds => "refunds",
            Self::Engagement => "engagement",
            Self::Incentives => "incentives",
        }
    }
}

/// The driver of each input.
pub(crate) const DRIVERS: [Driver; INPUTS] = {
    use Driver::*;
    [
        PurchaseCount,
        PurchaseCount,
        PurchaseCount,
        LastPurchase,
        LastPurchase,
        LastPurchase,
        CustomerAge,
        CustomerAge,
        RecentPurchases,
        RecentPurchases,
        RecentPurchases,
        PurchaseRhythm,
        PurchaseRhythm,
        PurchaseRhythm,
        PurchaseValue,
        Visits,
        Visits,
        Visits,
        Visits,
        Visits,
        Visits,
        Browsing,
        Browsing,
        Browsing,
        Refunds,
        Engagement,
        Incentives,
    ]
};

/// The inputs of browsing, which are per visit day.
pub(crate) const BROWSING: std::ops::Range<usize> = 21..24;

/// Returns the days since the last purchase divided by the user's mean interval, which is shrunk towards 45 days. None
/// without a purchase.
pub(crate) fn overdue(summary: &UserSummary, day: u16) -> Option<f64> {
    let (first, last) = (summary.first_purchase_day()?, summary.last_purchase_day()?);
    let repeats = f64::from(summary.purchase_days().saturating_sub(1));
    let interval = (f64::from(last.saturating_sub(first)) + INTERVAL_PRIOR_DAYS) / (repeats + 1.0);
    Some(f64::from(day.saturating_sub(last)) / interval)
}

/// Computes the inputs at the end of `day`, which is not before the last event. `value_ratio`: the mean value of the
/// user's purchases divided by that of the shop, in the user's main currency; 1 if unknown.
pub(crate) fn inputs(summary: &UserSummary, day: u16, value_ratio: f64) -> Inputs {
    let since = |earlier: u16| f64::from(day.saturating_sub(earlier));
    let purchases = f64::from(summary.purchase_days());
    let has_purchase = summary.first_purchase_day().zip(summary.last_purchase_day());
    let frequency = purchases.ln_1p();
    // Without a purchase, these inputs are those of one long ago, and the first input tells them apart.
    let (age, gap) = has_purchase.map_or((GAP_DAYS_MAX, GAP_DAYS_MAX), |(first, last)| (since(first), since(last)));
    let log_gap = (gap.min(GAP_DAYS_MAX) + 3.0).ln();
    let log_age = (age + 7.0).ln();
    let decayed = summary.decayed_purchases(day).map(|sum| (0.05 + sum).ln());
    let overdue = overdue(summary, day).map_or(0.0, |overdue| (overdue.min(50.0) + 0.1).ln());
    let visit_gap = summary.last_visit_day().map_or(VISIT_GAP_DAYS_MAX, since).min(VISIT_GAP_DAYS_MAX);
    let visits = f64::from(summary.visit_days());
    let within = |days: u32| f64::from(summary.visit_days_within(day, days)).ln_1p();
    let count = |kind: EventKind| f64::from(summary.count(kind));
    let per_visit = |kind: EventKind| (count(kind) / visits.max(1.0)).ln_1p();
    [
        f64::from(u8::from(has_purchase.is_some())),
        frequency,
        frequency * frequency,
        log_gap,
        log_gap * log_gap,
        frequency * log_gap,
        log_age,
        frequency * log_age,
        decayed[0],
        decayed[1],
        decayed[2],
        overdue,
        summary.interval_variation().unwrap_or(1.0).min(5.0),
        summary.cadence_drift().unwrap_or(1.0).clamp(0.1, 10.0).ln(),
        value_ratio.clamp(0.01, 100.0).ln(),
        (visit_gap + 1.0).ln(),
        within(7),
        within(28),
        within(90),
        visits.ln_1p(),
        (summary.first_visit_day().map_or(0.0, since) + 7.0).ln(),
        per_visit(EventKind::View),
        per_visit(EventKind::Search),
        per_visit(EventKind::AddToCart),
        (count(EventKind::Refund) / (count(EventKind::Purchase) + 1.0)).ln_1p(),
        (count(EventKind::Review) + count(EventKind::Favorite)).ln_1p(),
        (count(EventKind::IncentiveShown) + count(EventKind::IncentiveRedeemed)).ln_1p(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_driver_has_an_input_and_a_user_without_events_has_finite_inputs() {
        assert!(Driver::ALL.iter().all(|driver| DRIVERS.contains(driver)));
        assert!((0..INPUTS).all(|input| BROWSING.contains(&input) == (DRIVERS[input] == Driver::Browsing)));
        assert!(inputs(&UserSummary::default(), 20_000, 1.0).iter().all(|input| input.is_finite()));
    }
}
