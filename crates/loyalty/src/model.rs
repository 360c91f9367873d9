//! The loyalty model of a bundle: probabilities, numbers and values of the purchases and returns of a user.
//!
//! For each horizon, two logistic regressions on the inputs of a [`UserSummary`] yield the probabilities of a purchase
//! and of a return. Their logits are exact sums of contributions, which are the drivers of a score.
use crate::{
    beta_geometric::BetaGeometric,
    incentive_model::CampaignUplift,
    inputs::{DRIVERS, Driver, INPUTS, Inputs, OF_COUNT, UserInputs, overdue},
    segments::{Quantities, Segment, SegmentRule, first_rule},
    standardisation::INPUT_MAX,
    summary::UserSummary,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Days after which a score is compared with the present one.
pub const CHANGE_DAYS: u16 = 30;
/// Weight of the shop's mean value in a user's, in purchase days.
const VALUE_PRIOR_DAYS: f64 = 0.5;
/// Number of standard errors on each side of a probability's interval (95 %).
pub(crate) const STANDARD_ERRORS: f64 = 1.96;

/// An estimate with an interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    fn scaled(self, factor: f64) -> Self {
        Self { value: self.value * factor, low: self.low * factor, high: self.high * factor }
    }
}

/// A logistic regression on standardised inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogitModel {
    /// The constant, then one weight for each input.
    pub(crate) weights: Vec<f64>,
    /// Covariance of the weights, clustered by user: the rows of the lower triangle.
    pub(crate) covariance: Vec<f64>,
    /// Factor of the standard errors of the weights, by which the intervals agree with the outcomes of the last window if
    /// the model of the events before it predicts them.
    pub(crate) inflation: f64,
    /// Variance of the constant: the level of a later window differs from that of the training.
    pub(crate) level_variance: f64,
}

/// Returns the inputs of [`CHANGE_DAYS`] days ago: purchases and visits are those of that day, all else is of now.
fn earlier_inputs(summary: &UserSummary, day: u16, ratio: f64, now: &UserInputs) -> Option<UserInputs> {
    let then = day.checked_sub(CHANGE_DAYS)?;
    Some(UserInputs::new(&summary.as_of(then)?, then, ratio).with_numbers_per_day_of(now))
}

pub(crate) fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

impl LogitModel {
    pub(crate) fn logit(&self, inputs: &Inputs) -> f64 {
        self.weights[0] + self.weights[1..].iter().zip(inputs).map(|(weight, input)| weight * input).sum::<f64>()
    }

    /// Returns the variance of the logit by that of the weights.
    pub(crate) fn weight_variance(&self, inputs: &Inputs) -> f64 {
        let at = |index: usize| if index == 0 { 1.0 } else { inputs[index - 1] };
        let (mut variance, mut next) = (0.0, self.covariance.iter());
        for row in 0..=INPUTS {
            for column in 0..=row {
                let Some(of) = next.next() else { break };
                variance += if row == column { 1.0 } else { 2.0 } * of * at(row) * at(column);
            }
        }
        variance.max(0.0)
    }

    /// Returns the variance of the logit that its interval describes.
    pub(crate) fn interval_variance(&self, weight_variance: f64) -> f64 {
        weight_variance * self.inflation * self.inflation + self.level_variance
    }

    fn estimate(&self, inputs: &Inputs) -> Estimate {
        let standard_error = self.interval_variance(self.weight_variance(inputs)).sqrt();
        let (logit, margin) = (self.logit(inputs), STANDARD_ERRORS * standard_error);
        Estimate { value: sigmoid(logit), low: sigmoid(logit - margin), high: sigmoid(logit + margin) }
    }

    /// Returns the constant and the contribution of each driver, the largest first. Their sum is the logit.
    fn contributions(&self, inputs: &Inputs) -> Explanation {
        let mut sums: BTreeMap<Driver, f64> = BTreeMap::new();
        for ((weight, input), driver) in self.weights[1..].iter().zip(inputs).zip(DRIVERS) {
            *sums.entry(driver).or_default() += weight * input;
        }
        let mut drivers: Vec<(Driver, f64)> = sums.into_iter().collect();
        drivers.sort_by(|left, right| right.1.abs().total_cmp(&left.1.abs()));
        Explanation { base_logit: self.weights[0], drivers }
    }

    fn check(&self) -> bool {
        let count = INPUTS + 1;
        self.weights.len() == count
            && self.covariance.len() == count * (count + 1) / 2
            && self.level_variance >= 0.0
            && [&self.inflation, &self.level_variance].into_iter().all(|number| number.is_finite())
            && self.weights.iter().chain(&self.covariance).all(|number| number.is_finite())
    }
}

/// The interval of the number of purchases of users whose expected number is at most `expected_max`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CountBin {
    pub(crate) expected_max: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// The scores of a user without a history: means of users in their first 30 days.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Prior {
    pub(crate) purchase: Estimate,
    pub(crate) return_visit: Estimate,
    pub(crate) purchases: Estimate,
}

/// The quality of a model's probabilities on a later slice of time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quality {
    /// `purchase` or `return`.
    pub target: String,
    /// `learned`, `bg-nbd` or `rfm`.
    pub model: String,
    pub auc: f64,
    pub log_loss: f64,
    pub brier: f64,
    pub calibration_error: f64,
}

/// A backtest: models fitted to the events until `cut_day`, compared with the days after it. Purchases are predicted for
/// users with a purchase, because BG/NBD and RFM know no others; returns for all users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    pub cut_day: u16,
    pub user_count: usize,
    pub customer_count: usize,
    pub quality: Vec<Quality>,
    /// Mean probability of a purchase and share of buyers of ten groups of customers with similar probabilities.
    pub groups: Vec<[f64; 2]>,
    /// Share of these groups whose share of buyers is within the interval of the
    /// group, which includes the error of the share itself; 0.95 is intended.
    pub purchase_interval_coverage: f64,
    /// Share of customers whose number of purchases is within its interval; at least 0.8 is intended.
    pub count_interval_coverage: f64,
}

/// The models of one horizon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HorizonModel {
    pub days: u32,
    /// Rows of the training: users at the end of earlier days.
    pub row_count: usize,
    /// False if the events were too few to compare the intervals of an earlier fit with the days after it.
    pub has_measured_intervals: bool,
    /// Two of the inputs. None if BG/NBD's likelihood has no maximum; the two are then constant.
    pub(crate) beta_geometric: Option<BetaGeometric>,
    pub(crate) mean: Vec<f64>,
    pub(crate) scale: Vec<f64>,
    pub(crate) purchase: LogitModel,
    pub(crate) return_visit: LogitModel,
    /// Weights of the logarithm of the number of further purchases of a buyer: the constant, then [`OF_COUNT`].
    pub(crate) further: Vec<f64>,
    pub(crate) count_bins: Vec<CountBin>,
    pub(crate) prior: Prior,
    /// None if the events are too few for a backtest.
    pub validation: Option<Validation>,
}

/// Why a score is what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The logit of a user with the mean of all inputs.
    pub base_logit: f64,
    /// The contribution of each driver to the logit, the largest first.
    pub drivers: Vec<(Driver, f64)>,
}

/// The scores of one user for one horizon.
#[derive(Debug, Clone, PartialEq)]
pub struct HorizonScore {
    pub days: u32,
    /// Probability of at least one purchase, with its 95 % interval.
    pub purchase: Estimate,
    /// Probability of at least one visit, with its 95 % interval.
    pub return_visit: Estimate,
    /// Expected number of days with a purchase; the interval contains the actual number of at least 80 % of users.
    pub purchases: Estimate,
    /// Expected value in the currency of the score. None if no value is known.
    pub value: Option<Estimate>,
    /// None for the prior.
    pub purchase_explanation: Option<Explanation>,
    pub return_explanation: Option<Explanation>,
    /// Probabilities of purchase and return [`CHANGE_DAYS`] days ago. None if they are not known.
    pub earlier: Option<[f64; 2]>,
}

/// The scores and the segment of one user.
#[derive(Debug, Clone, PartialEq)]
pub struct LoyaltyScore {
    /// Whether the user has no history; the scores are then the prior.
    pub is_prior: bool,
    /// ISO 4217 code of values; empty if no value is known.
    pub currency: String,
    /// In the order of their days.
    pub horizons: Vec<HorizonScore>,
    pub rule: SegmentRule,
    pub quantities: Quantities,
}

/// The scores that order users by the value at risk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RiskScore {
    pub segment: Segment,
    /// For the longest horizon.
    pub purchase_probability: f64,
    pub return_probability: f64,
    pub expected_value: f64,
}

impl RiskScore {
    /// Returns P(not returning) × expected value.
    pub fn value_at_risk(&self) -> f64 {
        (1.0 - self.return_probability) * self.expected_value
    }
}

/// A horizon without a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOutHorizon {
    pub days: u32,
    pub reason: String,
}

/// The loyalty model of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoyaltyModel {
    /// The last day of the training.
    pub trained_until_day: u16,
    /// Signed-in users of the training.
    pub user_count: usize,
    /// At least one, in the order of their days.
    pub horizons: Vec<HorizonModel>,
    pub left_out: Vec<LeftOutHorizon>,
    /// The currency with the most purchases; empty if events name none.
    pub currency: String,
    /// Mean value of the purchases of a purchase day, by currency.
    pub mean_values: BTreeMap<String, f64>,
    /// The first rule that applies decides.
    pub segment_rules: Vec<SegmentRule>,
    /// The uplift of campaigns of incentives with decisions.
    #[serde(default)]
    pub uplift: Vec<CampaignUplift>,
}

/// The loyalty model of a bundle, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainedLoyalty {
    Model(Box<LoyaltyModel>),
    Missing { reason: String },
}

impl TrainedLoyalty {
    pub fn model(&self) -> Option<&LoyaltyModel> {
        match self {
            Self::Model(model) => Some(model),
            Self::Missing { .. } => None,
        }
    }

    /// Checks a decoded value.
    pub fn check(&self) -> Result<(), String> {
        self.model().map_or(Ok(()), LoyaltyModel::check)
    }
}

impl HorizonModel {
    /// Returns the inputs of a user for this horizon.
    pub(crate) fn inputs(&self, of: &UserInputs) -> Inputs {
        self.standardised(of.within(self.beta_geometric.as_ref(), f64::from(self.days)))
    }

    pub(crate) fn standardised(&self, mut inputs: Inputs) -> Inputs {
        for (input, (mean, scale)) in inputs.iter_mut().zip(self.mean.iter().zip(&self.scale)) {
            *input = ((*input - mean) / scale).clamp(-INPUT_MAX, INPUT_MAX);
        }
        inputs
    }

    /// Returns the expected number of purchase days, at most one per day.
    pub(crate) fn expected_purchases(&self, probability: f64, inputs: &Inputs) -> f64 {
        let output: f64 = self.further[0]
            + OF_COUNT.iter().zip(&self.further[1..]).map(|(index, weight)| inputs[*index] * weight).sum::<f64>();
        probability * (1.0 + output.exp()).min(f64::from(self.days))
    }

    pub(crate) fn count_interval(&self, expected: f64) -> Estimate {
        let bin = self.count_bins.iter().find(|bin| expected <= bin.expected_max).or(self.count_bins.last());
        let (low, high) = bin.map_or((0.0, f64::from(self.days)), |bin| (bin.low, bin.high));
        Estimate { value: expected, low: low.min(expected), high: high.max(expected) }
    }

    fn score(&self, of: &UserInputs, value: Option<f64>, earlier: Option<&UserInputs>) -> HorizonScore {
        let inputs = self.inputs(of);
        let purchase = self.purchase.estimate(&inputs);
        let purchases = self.count_interval(self.expected_purchases(purchase.value, &inputs));
        HorizonScore {
            days: self.days,
            purchase,
            return_visit: self.return_visit.estimate(&inputs),
            purchases,
            value: value.map(|value| purchases.scaled(value)),
            purchase_explanation: Some(self.purchase.contributions(&inputs)),
            return_explanation: Some(self.return_visit.contributions(&inputs)),
            earlier: earlier.map(|of| {
                let inputs = self.inputs(of);
                [&self.purchase, &self.return_visit].map(|model| sigmoid(model.logit(&inputs)))
            }),
        }
    }

    fn prior_score(&self, value: Option<f64>) -> HorizonScore {
        HorizonScore {
            days: self.days,
            purchase: self.prior.purchase,
            return_visit: self.prior.return_visit,
            purchases: self.prior.purchases,
            value: value.map(|value| self.prior.purchases.scaled(value)),
            purchase_explanation: None,
            return_explanation: None,
            earlier: None,
        }
    }

    fn check(&self) -> bool {
        let sized = self.mean.len() == INPUTS && self.scale.len() == INPUTS && self.further.len() == OF_COUNT.len() + 1;
        let bins = self.count_bins.iter().flat_map(|bin| [bin.expected_max, bin.low, bin.high]);
        let mut numbers = self.mean.iter().chain(&self.scale).chain(&self.further).copied().chain(bins);
        sized
            && self.days > 0
            && numbers.all(f64::is_finite)
            && self.scale.iter().all(|scale| *scale > 0.0)
            && self.beta_geometric.as_ref().is_none_or(BetaGeometric::check)
            && self.purchase.check()
            && self.return_visit.check()
    }
}

/// Returns the mean value of a user's purchase days in the main currency, shrunk towards the shop's mean, and its ratio
/// to the shop's mean, with the currency. None if no value is known.
pub(crate) fn user_value(summary: &UserSummary, mean_values: &BTreeMap<String, f64>) -> Option<(String, f64, f64)> {
    let spend = summary.main_spend()?;
    let purchases: u32 = summary.spend().map(|of| of.purchases).sum();
    let days = f64::from(summary.purchase_days()) * f64::from(spend.purchases) / f64::from(purchases.max(1));
    if days <= 0.0 {
        return None;
    }
    let currency = spend.currency().to_owned();
    let own = spend.net() / days;
    Some(match mean_values.get(&currency).filter(|mean| **mean > 0.0) {
        None => (currency, own, 1.0),
        Some(mean) => {
            let shrunk = (spend.net() + VALUE_PRIOR_DAYS * mean) / (days + VALUE_PRIOR_DAYS);
            (currency, shrunk, shrunk / mean)
        }
    })
}

impl LoyaltyModel {
    /// Checks the sizes and numbers of a decoded model.
    pub fn check(&self) -> Result<(), String> {
        if self.horizons.is_empty() || !self.horizons.iter().all(HorizonModel::check) {
            return Err("the loyalty model has a missing horizon, or one with missing or infinite numbers".to_owned());
        }
        if !self.uplift.iter().all(CampaignUplift::check) {
            return Err("an uplift model has other inputs, or infinite numbers".to_owned());
        }
        if self.segment_rules.last().is_none_or(|rule| !rule.conditions.is_empty()) {
            return Err("the last segment rule of the loyalty model must have no conditions".to_owned());
        }
        Ok(())
    }

    fn longest(&self) -> &HorizonModel {
        self.horizons.last().expect("a checked model has a horizon")
    }

    /// Returns the value of a purchase day of a user without priced purchases.
    fn prior_value(&self) -> Option<f64> {
        self.mean_values.get(&self.currency).copied()
    }

    /// Scores a user at the end of `day`. A summary that is later than `day` is scored at the day of its last event.
    pub fn score(&self, summary: Option<&UserSummary>, day: u16) -> LoyaltyScore {
        let Some(summary) = summary.filter(|summary| summary.event_count() > 0) else {
            let value = self.prior_value();
            let horizons: Vec<HorizonScore> = self.horizons.iter().map(|model| model.prior_score(value)).collect();
            let quantities = Quantities {
                purchase_days: 0.0,
                days_since_first_visit: 0.0,
                overdue: 0.0,
                purchase_probability: horizons.last().map_or(0.0, |score| score.purchase.value),
                purchase_probability_change: 0.0,
            };
            let currency = value.map_or(String::new(), |_| self.currency.clone());
            return LoyaltyScore {
                is_prior: true,
                currency,
                horizons,
                rule: self.rule(&quantities).clone(),
                quantities,
            };
        };
        let day = day.max((summary.last_s() / 86_400) as u16);
        let (currency, value, ratio) = match user_value(summary, &self.mean_values) {
            Some((currency, value, ratio)) => (currency, Some(value), ratio),
            None => (self.currency.clone(), self.prior_value(), 1.0),
        };
        let now = UserInputs::new(summary, day, ratio);
        let earlier = earlier_inputs(summary, day, ratio, &now);
        let score = |model: &HorizonModel| model.score(&now, value, earlier.as_ref());
        let horizons: Vec<HorizonScore> = self.horizons.iter().map(score).collect();
        let last = horizons.last().expect("a checked model has a horizon");
        let quantities = quantities(summary, day, last.purchase.value, last.earlier.map(|earlier| earlier[0]));
        let rule = self.rule(&quantities).clone();
        let currency = value.map_or(String::new(), |_| currency);
        LoyaltyScore { is_prior: false, currency, horizons, rule, quantities }
    }

    /// Scores a user for a list of users at risk; only those whose values are in `currency`.
    pub fn risk(&self, summary: &UserSummary, day: u16, currency: &str) -> Option<RiskScore> {
        let (of, value, ratio) = user_value(summary, &self.mean_values)?;
        if of != currency {
            return None;
        }
        let model = self.longest();
        let (inputs, purchase_probability, segment) = self.in_longest(summary, day, ratio);
        Some(RiskScore {
            segment,
            purchase_probability,
            return_probability: sigmoid(model.return_visit.logit(&inputs)),
            expected_value: model.expected_purchases(purchase_probability, &inputs) * value,
        })
    }

    /// Returns the segment of a user with events, as [`LoyaltyModel::score`] does.
    pub fn segment(&self, summary: &UserSummary, day: u16) -> Segment {
        let ratio = user_value(summary, &self.mean_values).map_or(1.0, |(.., ratio)| ratio);
        self.in_longest(summary, day, ratio).2
    }

    /// Returns the inputs and the purchase probability of a user for the longest horizon, and the segment. `ratio`: that of
    /// [`user_value`].
    fn in_longest(&self, summary: &UserSummary, day: u16, ratio: f64) -> (Inputs, f64, Segment) {
        let day = day.max((summary.last_s() / 86_400) as u16);
        let model = self.longest();
        let now = UserInputs::new(summary, day, ratio);
        let inputs = model.inputs(&now);
        let probability = sigmoid(model.purchase.logit(&inputs));
        let earlier = earlier_inputs(summary, day, ratio, &now);
        let earlier = earlier.map(|of| sigmoid(model.purchase.logit(&model.inputs(&of))));
        let segment = self.rule(&quantities(summary, day, probability, earlier)).segment;
        (inputs, probability, segment)
    }

    /// Returns the probability that a user does not visit within the first horizon of at least `days_min`, otherwise within
    /// the longest one. A user without events has that of users in their first 30 days.
    pub fn return_risk(&self, summary: Option<&UserSummary>, day: u16, days_min: u32) -> f64 {
        let model = self.horizons.iter().find(|model| model.days >= days_min).unwrap_or(self.longest());
        let Some(summary) = summary.filter(|summary| summary.event_count() > 0) else {
            return 1.0 - model.prior.return_visit.value;
        };
        let day = day.max((summary.last_s() / 86_400) as u16);
        let ratio = user_value(summary, &self.mean_values).map_or(1.0, |(.., ratio)| ratio);
        1.0 - sigmoid(model.return_visit.logit(&model.inputs(&UserInputs::new(summary, day, ratio))))
    }

    fn rule(&self, quantities: &Quantities) -> &SegmentRule {
        first_rule(&self.segment_rules, quantities).expect("the last rule of a checked model has no conditions")
    }
}

fn quantities(summary: &UserSummary, day: u16, probability: f64, earlier: Option<f64>) -> Quantities {
    Quantities {
        purchase_days: f64::from(summary.purchase_days()),
        days_since_first_visit: f64::from(day.saturating_sub(summary.first_visit_day().unwrap_or(day))),
        overdue: overdue(summary, day).unwrap_or(0.0),
        purchase_probability: probability,
        purchase_probability_change: earlier.map_or(0.0, |earlier| probability - earlier),
    }
}
