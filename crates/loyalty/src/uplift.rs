//! Uplift of incentives: what an incentive changes compared with none, learned from logged decisions.
//!
//! Doubly robust (AIPW) scores of each logged decision are cross-fitted (Chernozhukov et al. 2018, "Double/debiased
//! machine learning", The Econometrics Journal 21:1) and regressed on the user's inputs (the DR-learner, Kennedy 2020,
//! arXiv 2004.14497). Propensities are those that were logged, so a score is unbiased whatever the regressions say.
use crate::{
    metrics::descending,
    model::{Estimate, STANDARD_ERRORS, sigmoid},
    regression::{Family, dot, fit, robust_covariance},
    standardisation::{INPUT_MAX, Standardisation},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The arm of no incentive. Incentives are the arms from 1 on.
pub const NO_INCENTIVE: usize = 0;
/// Least logged propensity. A decision of probability p counts 1 / p times.
pub const PROPENSITY_MIN: f64 = 0.001;
/// Groups of users for cross-fitting.
const FOLDS: u32 = 5;
/// Penalty of squared weights, in rows.
const PENALTY: f64 = 20.0;
/// Two-sided level and power of the test that the number of observations is planned for.
const LEVEL: f64 = 0.05;
const POWER: f64 = 0.8;

/// A logged decision about one user, and what the user did within the horizon.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// The rows of one user are one cluster.
    pub user: u32,
    /// [`NO_INCENTIVE`] or the number of an incentive.
    pub arm: usize,
    /// Probability with which the arm was chosen, [`PROPENSITY_MIN`] to 1.
    pub propensity: f64,
    pub has_purchase: bool,
    /// Value of the purchases, in millionths of the currency's unit. At least 0.
    pub value_micros: f64,
    /// Cost of the redeemed incentive, in millionths of the currency's unit; 0 if it was not redeemed.
    pub cost_micros: f64,
}

/// Logged decisions with the inputs of their users.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IncentiveLog {
    /// Names of the incentives: of the arms from 1 on.
    pub incentives: Vec<String>,
    /// Number of inputs of a row.
    pub input_count: usize,
    /// Row-major.
    pub inputs: Vec<f64>,
    pub observations: Vec<Observation>,
}

/// The number of observations that an incentive has and needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Empty: no incentive.
    pub incentive: String,
    pub observations: usize,
    /// Effective number: the square of the sum of the inverse propensities, divided by the sum of their squares (Kish).
    pub effective: f64,
    /// Observations for which a test of level 5 % finds the minimum effect with a power of 80 %.
    pub required: usize,
    pub missing: usize,
}

/// The reason why uplift cannot be learned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UpliftError {
    #[error("row {row}: {field} is {value}; it must be {limit}")]
    Row { row: usize, field: &'static str, value: f64, limit: String },
    #[error("{field} is {value}; it must be {limit}")]
    Option { field: &'static str, value: f64, limit: &'static str },
    #[error("there are no decisions with an incentive")]
    NoIncentives,
    #[error("{}", too_few(.0))]
    TooFew(Vec<Evidence>),
}

fn too_few(evidence: &[Evidence]) -> String {
    let of = |evidence: &Evidence| {
        let name = match evidence.incentive.as_str() {
            "" => "no incentive",
            name => name,
        };
        format!("{name}: {} missing of {}", evidence.missing, evidence.required)
    };
    let missing: Vec<String> = evidence.iter().filter(|of| of.missing > 0).map(of).collect();
    format!("observations are too few to detect the minimum effect ({}); run a randomised pilot", missing.join(", "))
}

/// Options of [`UpliftModel::fit`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpliftOptions {
    /// Share of the value that is profit before the cost of the incentive, above 0 and at most 1.
    pub margin: f64,
    /// Least change of the purchase probability that the observations must be able to show, above 0 and below 1.
    pub minimum_effect: f64,
    /// Confidence of the lower bound of a net gain, 0.5 to 0.999, one-sided.
    pub confidence: f64,
}

impl Default for UpliftOptions {
    fn default() -> Self {
        Self { margin: 1.0, minimum_effect: 0.02, confidence: 0.9 }
    }
}

impl UpliftOptions {
    fn check(&self) -> Result<(), UpliftError> {
        let option = |is_valid: bool, field, value, limit| match is_valid {
            true => Ok(()),
            false => Err(UpliftError::Option { field, value, limit }),
        };
        option(self.margin > 0.0 && self.margin <= 1.0, "margin", self.margin, "above 0 and at most 1")?;
        let (effect, confidence) = (self.minimum_effect, self.confidence);
        option(effect > 0.0 && effect < 1.0, "minimum_effect", effect, "above 0 and below 1")?;
        option((0.5..=0.999).contains(&confidence), "confidence", confidence, "from 0.5 to 0.999")
    }
}

/// Returns z with P(Z <= z) = `probability` of a standard normal variable, for 0.5 to 1.
fn normal_quantile(probability: f64) -> f64 {
    let (mut low, mut high) = (0.0, 10.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        let below = 1.0 - 0.5 * lodestone_core::statistics::normal_two_sided_p_value(middle);
        if below < probability { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Returns the observations of each of two groups for which a two-sided test of level 5 % finds the difference
/// `minimum_effect` of two probabilities near `probability` with a power of 80 % (Fleiss, Levin and Paik 2003,
/// "Statistical Methods for Rates and Proportions", without the correction for continuity).
pub fn required_observations(probability: f64, minimum_effect: f64) -> usize {
    let variance = (probability * (1.0 - probability)).clamp(0.01, 0.25);
    let z = normal_quantile(1.0 - LEVEL / 2.0) + normal_quantile(POWER);
    (2.0 * variance * z * z / (minimum_effect * minimum_effect)).ceil() as usize
}

impl IncentiveLog {
    pub fn arm_count(&self) -> usize {
        self.incentives.len() + 1
    }

    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.inputs[row * self.input_count..(row + 1) * self.input_count]
    }

    fn rows(&self) -> impl ExactSizeIterator<Item = &[f64]> + Clone {
        (0..self.observations.len()).map(move |row| self.row(row))
    }

    fn standardisation(&self) -> Standardisation {
        Standardisation::of(self.rows(), self.input_count)
    }

    /// Checks ranges, and that the rows are in the order of their users.
    pub fn check(&self) -> Result<(), UpliftError> {
        if self.incentives.is_empty() {
            return Err(UpliftError::NoIncentives);
        }
        let bad = |row, field, value, limit: &str| Err(UpliftError::Row { row, field, value, limit: limit.to_owned() });
        let unordered = self.observations.windows(2).position(|of| of[0].user > of[1].user);
        if let Some(row) = unordered {
            return bad(row + 1, "user", f64::from(self.observations[row + 1].user), "in ascending order");
        }
        for (row, of) in self.observations.iter().enumerate() {
            if of.arm >= self.arm_count() {
                return bad(row, "arm", of.arm as f64, &format!("below {}", self.arm_count()));
            }
            if !(PROPENSITY_MIN..=1.0).contains(&of.propensity) {
                return bad(row, "propensity", of.propensity, &format!("from {PROPENSITY_MIN} to 1"));
            }
            for (field, value) in [("value", of.value_micros), ("cost", of.cost_micros)] {
                if !(0.0..=1e18).contains(&value) {
                    return bad(row, field, value, "from 0 to 10^18 millionths");
                }
            }
            if of.arm == NO_INCENTIVE && of.cost_micros > 0.0 {
                return bad(row, "cost", of.cost_micros, "0 without an incentive");
            }
        }
        let finite = self.inputs.iter().position(|input| !input.is_finite());
        match finite {
            Some(index) => bad(index / self.input_count, "input", self.inputs[index], "a finite number"),
            None => Ok(()),
        }
    }

    /// Splits the rows by their users: those for which `is_first` is true, and the others.
    pub fn split(&self, is_first: impl Fn(u32) -> bool) -> (Self, Self) {
        let empty = || Self { incentives: self.incentives.clone(), input_count: self.input_count, ..Self::default() };
        let (mut first, mut second) = (empty(), empty());
        for (row, observation) in self.observations.iter().enumerate() {
            let part = if is_first(observation.user) { &mut first } else { &mut second };
            part.observations.push(*observation);
            part.inputs.extend_from_slice(self.row(row));
        }
        (first, second)
    }

    /// Returns the evidence of no incentive and of each incentive.
    pub fn evidence(&self, minimum_effect: f64) -> Vec<Evidence> {
        let of_arm = |arm: usize| self.observations.iter().filter(move |of| of.arm == arm);
        let (mut purchases, mut weights) = (0.0, 0.0);
        for of in of_arm(NO_INCENTIVE) {
            weights += 1.0 / of.propensity;
            purchases += f64::from(u8::from(of.has_purchase)) / of.propensity;
        }
        // Without observations, the variance is the greatest possible one.
        let probability = if weights > 0.0 { purchases / weights } else { 0.5 };
        let required = required_observations(probability, minimum_effect);
        (0..self.arm_count())
            .map(|arm| {
                let (mut sum, mut squares, mut observations) = (0.0, 0.0, 0);
                for of in of_arm(arm) {
                    sum += 1.0 / of.propensity;
                    squares += 1.0 / (of.propensity * of.propensity);
                    observations += 1;
                }
                let effective = if squares > 0.0 { sum * sum / squares } else { 0.0 };
                let incentive = arm.checked_sub(1).map_or(String::new(), |index| self.incentives[index].clone());
                let missing = (required as f64 - effective).max(0.0).ceil() as usize;
                Evidence { incentive, observations, effective, required, missing }
            })
            .collect()
    }
}

/// The regressions of one arm: the probability of a purchase, its value and the cost.
struct Outcomes {
    purchase: Vec<f64>,
    value: Vec<f64>,
    cost: Vec<f64>,
}

/// Fits the outcomes of each arm to the rows for which `is_used` is true.
fn fit_outcomes(log: &IncentiveLog, inputs: &[f64], is_used: impl Fn(u32) -> bool) -> Vec<Outcomes> {
    let columns = log.input_count + 1;
    let of_arm = |arm: usize| {
        let (mut rows, mut targets) = (Vec::new(), [const { Vec::new() }; 3]);
        for (of, row) in log.observations.iter().zip(inputs.chunks_exact(columns)) {
            if of.arm == arm && is_used(of.user) {
                rows.extend_from_slice(row);
                targets[0].push(f64::from(u8::from(of.has_purchase)));
                targets[1].push(of.value_micros);
                targets[2].push(of.cost_micros);
            }
        }
        Outcomes {
            purchase: fit(&rows, columns, &targets[0], Family::Bernoulli, PENALTY),
            value: fit(&rows, columns, &targets[1], Family::Gaussian, PENALTY),
            cost: fit(&rows, columns, &targets[2], Family::Gaussian, PENALTY),
        }
    };
    (0..log.arm_count()).map(of_arm).collect()
}

fn fold_of(user: u32) -> u32 {
    // Multiplicative hashing (Knuth), because the numbers of users may have an order.
    (user.wrapping_mul(2_654_435_769) >> 16) % FOLDS
}

/// Doubly robust scores of decisions: for each row and arm, an unbiased estimate of the outcome if the arm had been
/// chosen, m(x, a) + 1{A = a} / e(a) × (Y − m(x, a)). The regressions m of a row are fitted to other users.
#[derive(Debug, Clone)]
pub struct DoublyRobustScores {
    arm_count: usize,
    users: Vec<u32>,
    purchases: Vec<f64>,
    values: Vec<f64>,
    costs: Vec<f64>,
    margin: f64,
}

impl DoublyRobustScores {
    /// Cross-fits the scores of a log. `margin`: share of the value that is profit.
    pub fn new(log: &IncentiveLog, margin: f64) -> Result<Self, UpliftError> {
        log.check()?;
        Ok(Self::of(log, &standardised(log, &log.standardisation()), margin))
    }

    fn of(log: &IncentiveLog, inputs: &[f64], margin: f64) -> Self {
        let (columns, arms) = (log.input_count + 1, log.arm_count());
        let folds: Vec<Vec<Outcomes>> =
            (0..FOLDS).into_par_iter().map(|fold| fit_outcomes(log, inputs, |user| fold_of(user) != fold)).collect();
        let mut scores = Self {
            arm_count: arms,
            users: log.observations.iter().map(|of| of.user).collect(),
            purchases: Vec::with_capacity(arms * log.observations.len()),
            values: Vec::with_capacity(arms * log.observations.len()),
            costs: Vec::with_capacity(arms * log.observations.len()),
            margin,
        };
        for (of, row) in log.observations.iter().zip(inputs.chunks_exact(columns)) {
            for (arm, outcomes) in folds[fold_of(of.user) as usize].iter().enumerate() {
                let weight = if of.arm == arm { 1.0 / of.propensity } else { 0.0 };
                let corrected = |mean: f64, observed: f64| mean + weight * (observed - mean);
                let purchase = sigmoid(dot(row, &outcomes.purchase));
                scores.purchases.push(corrected(purchase, f64::from(u8::from(of.has_purchase))));
                scores.values.push(corrected(dot(row, &outcomes.value), of.value_micros));
                scores.costs.push(match arm {
                    NO_INCENTIVE => 0.0,
                    _ => corrected(dot(row, &outcomes.cost), of.cost_micros),
                });
            }
        }
        scores
    }

    fn rows(&self) -> usize {
        self.users.len()
    }

    fn gain(&self, row: usize, arm: usize) -> f64 {
        let at = row * self.arm_count + arm;
        self.margin * self.values[at] - self.costs[at]
    }

    fn gain_effect(&self, row: usize, arm: usize) -> f64 {
        self.gain(row, arm) - self.gain(row, NO_INCENTIVE)
    }

    fn of_rows(&self, of: impl Fn(usize) -> f64) -> Vec<f64> {
        (0..self.rows()).map(of).collect()
    }

    /// Estimates what a policy changes compared with no incentive for anyone. `arms`: the policy's arm of each row.
    pub fn policy_value(&self, arms: &[usize]) -> PolicyValue {
        let effect = |of: &[f64], row: usize| {
            let base = row * self.arm_count;
            of[base + arms[row]] - of[base + NO_INCENTIVE]
        };
        PolicyValue {
            rows: self.rows(),
            treated: arms.iter().filter(|arm| **arm != NO_INCENTIVE).count(),
            gain_micros: self.mean(&self.of_rows(|row| self.gain_effect(row, arms[row]))),
            cost_micros: self.mean(&self.of_rows(|row| effect(&self.costs, row))),
            purchases: self.mean(&self.of_rows(|row| effect(&self.purchases, row))),
        }
    }

    /// Returns the mean with its 95 % interval, clustered by user.
    fn mean(&self, values: &[f64]) -> Estimate {
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = clusters(&self.users)
            .into_iter()
            .map(|rows| rows.map(|row| values[row] - mean).sum::<f64>())
            .map(|sum| sum * sum)
            .sum();
        let margin = STANDARD_ERRORS * squares.sqrt() / count;
        Estimate { value: mean, low: mean - margin, high: mean + margin }
    }

    /// Returns the areas of the uplift curve of an order of the rows, in which the row with the highest `priority` receives
    /// the arm of `arms` first: the mean change of the gain per row of all rows by the share of rows that receive theirs.
    /// The intervals are those of a bootstrap over users.
    pub fn uplift_areas(&self, priority: &[f64], arms: &[usize], resamples: usize, seed: u64) -> UpliftAreas {
        let order = descending(priority);
        let effects = self.of_rows(|row| self.gain_effect(row, arms[row]));
        let clusters = clusters(&self.users);
        let mut cluster_of = vec![0_u32; self.rows()];
        for (number, rows) in clusters.iter().enumerate() {
            cluster_of[rows.clone()].fill(number as u32);
        }
        let areas = |weights: &[f64]| {
            let total: f64 = cluster_of.iter().map(|of| weights[*of as usize]).sum::<f64>().max(1.0);
            let (mut sum, mut area) = (0.0, 0.0);
            for row in &order {
                let weight = weights[cluster_of[*row as usize] as usize];
                let before = sum;
                sum += weight * effects[*row as usize];
                area += 0.5 * weight * (before + sum);
            }
            let (area, end) = (area / (total * total), sum / total);
            [area, area - 0.5 * end]
        };
        let [auuc, qini] = areas(&vec![1.0; clusters.len()]);
        let resampled: Vec<[f64; 2]> = (0..resamples as u64)
            .into_par_iter()
            .map(|number| {
                let mut rng = StdRng::seed_from_u64(seed.wrapping_add(number));
                let mut weights = vec![0.0; clusters.len()];
                (0..clusters.len()).for_each(|_| weights[rng.random_range(0..clusters.len())] += 1.0);
                areas(&weights)
            })
            .collect();
        let interval = |value: f64, of: usize| {
            let mut values: Vec<f64> = resampled.iter().map(|areas| areas[of]).collect();
            values.sort_by(f64::total_cmp);
            let at = |share: f64| values.get((share * (values.len().max(1) - 1) as f64).round() as usize).copied();
            Estimate { value, low: at(0.025).unwrap_or(value), high: at(0.975).unwrap_or(value) }
        };
        UpliftAreas { auuc_micros: interval(auuc, 0), qini_micros: interval(qini, 1) }
    }
}

/// Returns the ranges of consecutive rows of the same user.
fn clusters(users: &[u32]) -> Vec<Range<usize>> {
    let mut clusters = Vec::new();
    let mut begin = 0;
    for end in 1..=users.len() {
        if end == users.len() || users[end] != users[begin] {
            clusters.push(begin..end);
            begin = end;
        }
    }
    clusters
}

fn standardised(log: &IncentiveLog, by: &Standardisation) -> Vec<f64> {
    log.rows().flat_map(|row| by.apply(row, INPUT_MAX)).collect()
}

/// What a policy changes per row, compared with no incentive for anyone. Intervals are of 95 %, clustered by user.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PolicyValue {
    pub rows: usize,
    /// Rows with an incentive.
    pub treated: usize,
    /// Net gain: margin × value − cost.
    pub gain_micros: Estimate,
    /// Cost of redeemed incentives.
    pub cost_micros: Estimate,
    /// Change of the purchase probability.
    pub purchases: Estimate,
}

/// Areas of the curve of the gain by the share of rows that receive an incentive (Radcliffe 2007, "Using control groups to
/// target on predicted lift"), from doubly robust scores (Yadlowsky et al. 2021, arXiv 2111.07966).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpliftAreas {
    /// Area under the curve.
    pub auuc_micros: Estimate,
    /// Area between the curve and the straight line to its end, which is the curve of a random order.
    pub qini_micros: Estimate,
}

/// A linear regression on standardised inputs with the covariance of its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EffectModel {
    /// The constant, then one weight for each input.
    weights: Vec<f64>,
    /// Rows of the lower triangle.
    covariance: Vec<f64>,
}

impl EffectModel {
    fn fit(inputs: &[f64], columns: usize, targets: &[f64], users: &[u32]) -> Self {
        let weights = fit(inputs, columns, targets, Family::Gaussian, PENALTY);
        let covariance = robust_covariance(inputs, columns, targets, users, Family::Gaussian, PENALTY, &weights);
        Self { weights, covariance }
    }

    /// Returns the mean and its standard error.
    fn predict(&self, inputs: &[f64]) -> (f64, f64) {
        let (mut variance, mut next) = (0.0, self.covariance.iter());
        for row in 0..inputs.len() {
            for column in 0..=row {
                let Some(of) = next.next() else { break };
                variance += if row == column { 1.0 } else { 2.0 } * of * inputs[row] * inputs[column];
            }
        }
        (dot(inputs, &self.weights), variance.max(0.0).sqrt())
    }

    fn check(&self, columns: usize) -> bool {
        self.weights.len() == columns
            && self.covariance.len() == columns * (columns + 1) / 2
            && self.weights.iter().chain(&self.covariance).all(|number| number.is_finite())
    }
}

/// The models of one incentive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IncentiveModel {
    incentive: String,
    /// Change of the purchase probability.
    purchase: EffectModel,
    /// Change of margin × value − cost, in millionths.
    gain: EffectModel,
    /// Logit of the probability that the incentive has a cost.
    redemption: Vec<f64>,
    /// Mean cost if it has one, in millionths.
    redemption_cost_micros: f64,
    /// Mean outcome of users with the incentive, the usual response model: the logit of a purchase.
    response: Vec<f64>,
}

/// What an incentive changes for one user, compared with none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct IncentiveEffect {
    /// Change of the purchase probability, with its 95 % interval.
    pub purchase: Estimate,
    /// Change of the net gain, margin × value − cost, in millionths, with its 95 % interval.
    pub gain_micros: Estimate,
    /// Lower bound of the net gain at the confidence of [`UpliftOptions`].
    pub gain_lower_micros: f64,
    /// Expected cost in millionths: P(redeemed) × cost per redemption. At least 0.
    pub cost_micros: f64,
    /// Probability of a purchase with the incentive, which a response model orders users by. It is no effect.
    pub response: f64,
}

/// The uplift of incentives by the inputs of a user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpliftModel {
    /// Observations of the fit.
    pub observation_count: usize,
    pub margin: f64,
    /// Standard errors by which the lower bound of a gain is below its mean: the normal quantile of the confidence.
    lower_standard_errors: f64,
    standardisation: Standardisation,
    incentives: Vec<IncentiveModel>,
}

impl UpliftModel {
    /// Fits the model to logged decisions. Refuses if the observations cannot show the minimum effect.
    pub fn fit(log: &IncentiveLog, options: &UpliftOptions) -> Result<Self, UpliftError> {
        Self::fit_with_scores(log, options).map(|(model, _)| model)
    }

    /// Fits the model, and returns it with the scores of its observations.
    pub(crate) fn fit_with_scores(
        log: &IncentiveLog,
        options: &UpliftOptions,
    ) -> Result<(Self, DoublyRobustScores), UpliftError> {
        options.check()?;
        log.check()?;
        let evidence = log.evidence(options.minimum_effect);
        if evidence.iter().any(|of| of.missing > 0) {
            return Err(UpliftError::TooFew(evidence));
        }
        let standardisation = log.standardisation();
        let (inputs, columns) = (standardised(log, &standardisation), log.input_count + 1);
        let scores = DoublyRobustScores::of(log, &inputs, options.margin);
        let model = |(index, name): (usize, &String)| {
            let arm = index + 1;
            let purchase = |row: usize| {
                let base = row * scores.arm_count;
                scores.purchases[base + arm] - scores.purchases[base + NO_INCENTIVE]
            };
            let effect = |targets: Vec<f64>| EffectModel::fit(&inputs, columns, &targets, &scores.users);
            let (mut rows, mut redeemed, mut purchased, mut cost) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
            for (of, row) in log.observations.iter().zip(inputs.chunks_exact(columns)).filter(|(of, _)| of.arm == arm) {
                rows.extend_from_slice(row);
                redeemed.push(f64::from(u8::from(of.cost_micros > 0.0)));
                purchased.push(f64::from(u8::from(of.has_purchase)));
                cost += of.cost_micros;
            }
            IncentiveModel {
                incentive: name.clone(),
                purchase: effect(scores.of_rows(purchase)),
                gain: effect(scores.of_rows(|row| scores.gain_effect(row, arm))),
                redemption: fit(&rows, columns, &redeemed, Family::Bernoulli, PENALTY),
                redemption_cost_micros: cost / redeemed.iter().sum::<f64>().max(1.0),
                response: fit(&rows, columns, &purchased, Family::Bernoulli, PENALTY),
            }
        };
        let model = Self {
            observation_count: log.observations.len(),
            margin: options.margin,
            lower_standard_errors: normal_quantile(options.confidence),
            incentives: log.incentives.par_iter().enumerate().map(model).collect(),
            standardisation,
        };
        Ok((model, scores))
    }

    /// Returns the names of the incentives, in the order of their effects.
    pub fn incentives(&self) -> impl Iterator<Item = &str> {
        self.incentives.iter().map(|model| model.incentive.as_str())
    }

    /// Returns the effect of each incentive on a user with these inputs.
    pub fn effects(&self, inputs: &[f64]) -> Vec<IncentiveEffect> {
        let inputs = self.standardisation.apply(inputs, INPUT_MAX);
        let estimate = |(value, error): (f64, f64)| Estimate {
            value,
            low: value - STANDARD_ERRORS * error,
            high: value + STANDARD_ERRORS * error,
        };
        let effect = |model: &IncentiveModel| {
            let gain = model.gain.predict(&inputs);
            IncentiveEffect {
                purchase: estimate(model.purchase.predict(&inputs)),
                gain_micros: estimate(gain),
                gain_lower_micros: gain.0 - self.lower_standard_errors * gain.1,
                cost_micros: sigmoid(dot(&inputs, &model.redemption)) * model.redemption_cost_micros,
                response: sigmoid(dot(&inputs, &model.response)),
            }
        };
        self.incentives.iter().map(effect).collect()
    }

    /// Checks the sizes and numbers of a decoded model.
    pub fn check(&self, input_count: usize) -> bool {
        let columns = input_count + 1;
        let of = |model: &IncentiveModel| {
            let mut numbers = model.redemption.iter().chain(&model.response).chain([&model.redemption_cost_micros]);
            model.purchase.check(columns)
                && model.gain.check(columns)
                && model.redemption.len() == columns
                && model.response.len() == columns
                && model.redemption_cost_micros >= 0.0
                && numbers.all(|number| number.is_finite())
        };
        let options = UpliftOptions { margin: self.margin, ..UpliftOptions::default() };
        self.standardisation.check(input_count)
            && options.check().is_ok()
            && (0.0..=10.0).contains(&self.lower_standard_errors)
            && !self.incentives.is_empty()
            && self.incentives.iter().all(of)
    }
}

#[cfg(test)]
mod tests;
