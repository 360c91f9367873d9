//! Inputs of the loyalty model: what a [`UserSummary`] says at the end of a day.
use crate::{
    beta_geometric::BetaGeometric,
    history::PurchaseSummary,
    summary::{UserSummary, VISIT_DAYS},
};
use lodestone_events::EventKind;
use serde::{Deserialize, Serialize};

/// Number of inputs that do not depend on the horizon.
pub(crate) const SHARED: usize = 28;
/// Number of inputs without the constant. The last two are outputs of BG/NBD for the horizon.
pub(crate) const INPUTS: usize = SHARED + 2;
pub(crate) type Inputs = [f64; INPUTS];

/// Positions of the inputs that the number of further purchases depends on: the decayed numbers of purchase days, and the
/// number that BG/NBD expects.
pub(crate) const OF_COUNT: [usize; 4] = [8, 9, 10, INPUTS - 1];
/// Positions of frequency, gap and age, whose weights depend on the length of a training window.
pub(crate) const OF_WINDOW: [usize; 3] = [1, 3, 6];

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
    /// Regularity, slowing down, how overdue the next purchase is, and what BG/NBD concludes from that.
    PurchaseRhythm,
    /// Mean value of a purchase compared with the shop's mean, and its number of items.
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
        PurchaseValue,
        PurchaseRhythm,
        PurchaseRhythm,
    ]
};

/// Inputs that divide a number over the lifetime by the days with a visit or a purchase: browsing and items.
const PER_DAY: [usize; 4] = [21, 22, 23, 27];
/// Probability and number of further purchases that stand for BG/NBD's without a purchase. The first input tells these
/// users apart.
const NO_PURCHASE: (f64, f64) = (0.05, 0.05);

/// Returns the days since the last purchase divided by the user's mean interval, which is shrunk towards 45 days. None
/// without a purchase.
pub(crate) fn overdue(summary: &UserSummary, day: u16) -> Option<f64> {
    let (first, last) = (summary.first_purchase_day()?, summary.last_purchase_day()?);
    let repeats = f64::from(summary.purchase_days().saturating_sub(1));
    let interval = (f64::from(last.saturating_sub(first)) + INTERVAL_PRIOR_DAYS) / (repeats + 1.0);
    Some(f64::from(day.saturating_sub(last)) / interval)
}

/// The inputs of a user at the end of a day, for any horizon.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UserInputs {
    shared: [f64; SHARED],
    /// None without a purchase.
    purchases: Option<PurchaseSummary>,
    /// The days with a visit. None without one.
    visits: Option<PurchaseSummary>,
}

impl UserInputs {
    /// Computes the inputs at the end of `day`, which is not before the last event. `value_ratio`: the mean value of the
    /// user's purchases divided by that of the shop, in the user's main currency; 1 if unknown.
    pub(crate) fn new(summary: &UserSummary, day: u16, value_ratio: f64) -> Self {
        let days = |first: Option<u16>, last: Option<u16>, days: u32| {
            let weeks = |from: u16, to: u16| f64::from(to.saturating_sub(from)) / PurchaseSummary::DAYS_PER_WEEK;
            let (first, last) = first.zip(last)?;
            let frequency = days.saturating_sub(1);
            Some(PurchaseSummary { frequency, recency: weeks(first, last), age: weeks(first, day.max(last)) })
        };
        Self {
            shared: shared(summary, day, value_ratio),
            purchases: days(summary.first_purchase_day(), summary.last_purchase_day(), summary.purchase_days()),
            visits: days(summary.first_visit_day(), summary.last_visit_day(), summary.visit_days()),
        }
    }

    /// Returns what BG/NBD knows of the days with a purchase. None without one.
    pub(crate) fn purchases(&self) -> Option<PurchaseSummary> {
        self.purchases
    }

    /// Returns what BG/NBD knows of the days with a visit. None without one.
    pub(crate) fn visits(&self) -> Option<PurchaseSummary> {
        self.visits
    }

    /// Takes the numbers per day from the inputs of now. Otherwise those of an earlier day would be the numbers of now
    /// divided by the days of then, which are those of nobody.
    pub(crate) fn with_numbers_per_day_of(mut self, now: &Self) -> Self {
        PER_DAY.into_iter().for_each(|input| self.shared[input] = now.shared[input]);
        self
    }

    /// Adds the logit of the probability and the logarithm of the number of further purchases of a buyer that BG/NBD
    /// expects within `days`. Constants without `model`.
    pub(crate) fn within(&self, model: Option<&BetaGeometric>, days: f64) -> Inputs {
        let (probability, further) = match model.zip(self.purchases.as_ref()) {
            None => NO_PURCHASE,
            Some((model, purchases)) => {
                let weeks = days / PurchaseSummary::DAYS_PER_WEEK;
                let probability = model.purchase_probability(purchases, weeks).clamp(1e-5, 1.0 - 1e-5);
                (probability, (model.expected_purchases(purchases, weeks) / probability - 1.0).max(1e-3))
            }
        };
        let mut inputs = [0.0; INPUTS];
        inputs[..SHARED].copy_from_slice(&self.shared);
        inputs[SHARED] = (probability / (1.0 - probability)).ln();
        inputs[SHARED + 1] = further.ln();
        inputs
    }
}

/// Returns the inputs that do not depend on the horizon.
pub(crate) fn shared(summary: &UserSummary, day: u16, value_ratio: f64) -> [f64; SHARED] {
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
        (f64::from(summary.purchased_items()) / purchases.max(1.0)).ln_1p(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_driver_has_an_input_and_a_user_without_events_has_finite_inputs() {
        assert!(Driver::ALL.iter().all(|driver| DRIVERS.contains(driver)));
        assert!((0..INPUTS).filter(|input| DRIVERS[*input] == Driver::Browsing).all(|input| PER_DAY.contains(&input)));
        let inputs = UserInputs::new(&UserSummary::default(), 20_000, 1.0).within(None, 30.0);
        assert!(inputs.iter().all(|input| input.is_finite()));
    }
}
