//! Fits the loyalty model of a bundle to the events of a shop.
//!
//! A training row is a user at the end of an earlier day (the cut) with the window of days after it. The logarithm of the
//! window's length is an input of the training, so that the model is a discrete-time model of the next purchase that
//! also extrapolates to a horizon longer than any window. Time orders everything: intervals are measured with the model
//! of a horizon earlier and the days after it, and a backtest repeats all of that on the events before the last window.
use crate::{
    beta_geometric::{BetaGeometric, Dropout},
    history::{Purchase, PurchaseHistory, PurchaseSummary},
    inputs::{INPUTS, Inputs, OF_COUNT, OF_WINDOW, UserInputs},
    metrics::ScoredProbabilities,
    model::{
        CountBin, Estimate, HorizonModel, LeftOutHorizon, LogitModel, LoyaltyModel, Prior, Quality, TrainedLoyalty,
        Validation, sigmoid, user_value,
    },
    regression::{Family, fit, robust_covariance},
    rfm::RfmModel,
    segments::segment_rules,
    summary::{UserSummary, day_of, is_visit},
};
use lodestone_core::units::UnixMillis;
use lodestone_events::{Event, EventKind};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// The horizons, in days.
pub const HORIZONS_DAYS: [u32; 4] = [7, 30, 60, 90];
/// Users of a training; of more, those with the least hashes.
const USERS_MAX: usize = 25_000;
/// Cuts of the fit.
const CUTS: usize = 12;
/// Ratio of the lengths of consecutive windows.
const RATIO: f64 = 1.5;
/// Lengths of windows, from the horizon downwards.
const LENGTHS: i32 = 5;
/// Windows per cut: the longest that end within the events.
const WINDOWS_PER_CUT: usize = 2;
/// Share of the events' days before the first cut.
const HISTORY_SHARE_MIN: f64 = 0.3;
/// Days of events before the windows of a horizon; at least the horizon.
const HISTORY_DAYS_MIN: u16 = 14;
/// Fewest rows with and without a purchase, and with and without a return.
const OUTCOMES_MIN: usize = 20;
/// Events before so many days without any are of wrong dates, such as 1970, and do not make the training longer.
const SILENT_DAYS_MAX: u16 = 366;
/// Days of a year, a multiple of 7, so that the days of the week agree.
const SEASON_DAYS: u16 = 364;
/// Penalty of squared weights, in rows.
const PENALTY: f64 = 100.0;
/// Groups of users with similar probabilities, by which intervals are judged.
const GROUPS: usize = 10;
/// Share of users on each side whose number of purchases may be outside its interval.
const COUNT_TAIL: f64 = 0.1;
/// Greatest factor of standard errors.
const INFLATION_MAX: f64 = 10.0;
/// Days after the first event in which a user is new.
const NEW_DAYS: u32 = 30;
/// The horizon's share of the events' days above which the level depends on BG/NBD, and from which it is BG/NBD's.
const BETA_GEOMETRIC_SHARES: [f64; 2] = [1.0 / 3.0, 0.5];

/// The events of one user, in the order of time.
type UserEvents<'a> = Vec<&'a Event>;

/// A user at a cut.
struct Row {
    user: u32,
    cut: u16,
    /// Days of the window.
    length: u32,
    inputs: Inputs,
    /// Logarithm of the window's share of the horizon.
    log_window: f64,
    /// Number of days with a purchase in the window.
    purchases: f64,
    returns: bool,
    is_customer: bool,
    is_new: bool,
}

/// Fits the model to the events before `until`, in the order of time, of signed-in users.
pub fn fit_loyalty(events: &[Event], until: UnixMillis) -> TrainedLoyalty {
    match fitted(events, until) {
        Ok(model) => TrainedLoyalty::Model(Box::new(model)),
        Err(reason) => TrainedLoyalty::Missing { reason },
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The events of each signed-in user before `until`, by user id.
pub(crate) fn by_user(events: &[Event], until: UnixMillis) -> Vec<(&str, UserEvents<'_>)> {
    let mut users: BTreeMap<&str, UserEvents> = BTreeMap::new();
    for event in events.iter().filter(|event| event.at < until && event.user.is_signed_in()) {
        users.entry(event.user.as_str()).or_default().push(event);
    }
    users.into_iter().collect()
}

fn fitted(events: &[Event], until: UnixMillis) -> Result<LoyaltyModel, String> {
    let training = Training::new(by_user(events, until))?;
    // The last day that ended before the end of the training.
    let end = day_of(until).saturating_sub(1);
    let (mut horizons, mut left_out) = (Vec::new(), Vec::new());
    for days in HORIZONS_DAYS {
        match training.measured_horizon(end, days) {
            Ok(model) => horizons.push(model),
            Err(reason) => left_out.push(LeftOutHorizon { days, reason }),
        }
    }
    if horizons.is_empty() {
        let reasons = left_out.iter().map(|of| format!("{} days: {}", of.days, of.reason)).collect::<Vec<_>>();
        return Err(reasons.join("; "));
    }
    Ok(training.model(end, horizons, left_out))
}

/// Fits the model of one horizon, which may be longer than any window of the events, to the events until the end of the
/// day `end`, without intervals and a backtest.
pub(crate) fn fit_horizon(events: &[Event], end: u16, days: u32) -> Result<LoyaltyModel, String> {
    let training = Training::new(by_user(events, UnixMillis((i64::from(end) + 1) * UnixMillis::DAY)))?;
    let horizon = training.horizon(end, days)?;
    Ok(training.model(end, vec![horizon], Vec::new()))
}

/// Returns the lengths of windows in days, from the horizon downwards.
fn lengths(days: u32) -> Vec<u32> {
    let mut lengths: Vec<u32> = (0..LENGTHS).map(|step| (f64::from(days) / RATIO.powi(step)) as u32).collect();
    lengths.retain(|length| *length > 0);
    lengths.dedup();
    lengths
}

/// Returns the cuts and lengths of the windows that end by the day `end`, by ascending cut.
///
/// The first cut is in the middle of the events, or earlier, but not before 30 % of their days, where a window of two
/// thirds of the horizon would not fit. The last leaves the shortest window.
fn windows(first: u16, end: u16, days: u32) -> BTreeSet<(u16, u32)> {
    let known = f64::from(end.saturating_sub(first));
    let lengths = lengths(days);
    // Beyond the events no window of the horizon's scale fits; half of the events is then the shortest.
    let shortest = lengths.last().map_or(1.0, |days| f64::from(*days)).min((known / 2.0).floor()).max(1.0);
    let start = known * (1.0 - f64::from(days) / RATIO / known.max(1.0)).clamp(HISTORY_SHARE_MIN, 0.5);
    let step = (known - shortest - start).max(0.0) / (CUTS - 1) as f64;
    let mut windows = BTreeSet::new();
    for index in 0..CUTS {
        let cut = (start + step * index as f64).round().min(known - shortest).max(0.0);
        let mut fitting: Vec<u32> = lengths.iter().copied().filter(|days| cut + f64::from(*days) <= known).collect();
        if fitting.is_empty() {
            fitting.push(shortest as u32);
        }
        fitting.into_iter().take(WINDOWS_PER_CUT).for_each(|days| _ = windows.insert((first + cut as u16, days)));
    }
    windows
}

/// Returns the first day of the events, without those before [`SILENT_DAYS_MAX`] days in which no user has an event. None
/// without events.
fn first_day(days: impl Iterator<Item = u16>) -> Option<u16> {
    let mut has_events = vec![false; usize::from(u16::MAX) + 1];
    days.for_each(|day| has_events[usize::from(day)] = true);
    let mut first = None;
    for day in (0..=u16::MAX).rev().filter(|day| has_events[usize::from(*day)]) {
        if first.is_some_and(|first: u16| first - day > SILENT_DAYS_MAX) {
            break;
        }
        first = Some(day);
    }
    first
}

struct Training<'a> {
    users: Vec<UserEvents<'a>>,
    /// The first day of the events.
    first: u16,
}

impl<'a> Training<'a> {
    fn new(mut users: Vec<(&'a str, UserEvents<'a>)>) -> Result<Self, String> {
        let first = first_day(users.iter().flat_map(|(_, events)| events.iter().map(|event| day_of(event.at))));
        let first = first.ok_or("no event before the end of the training has a signed-in user")?;
        if users.len() > USERS_MAX {
            users.select_nth_unstable_by_key(USERS_MAX, |(id, _)| hash(id));
            users.truncate(USERS_MAX);
            users.sort_unstable_by_key(|(id, _)| *id);
        }
        Ok(Self { users: users.into_iter().map(|(_, events)| events).collect(), first })
    }

    fn model(&self, end: u16, horizons: Vec<HorizonModel>, left_out: Vec<LeftOutHorizon>) -> LoyaltyModel {
        let mut model = LoyaltyModel {
            trained_until_day: end,
            user_count: self.users.len(),
            currency: self.main_currency(end),
            horizons,
            left_out,
            mean_values: self.mean_values(end),
            segment_rules: segment_rules(0.0),
            uplift: Vec::new(),
        };
        model.segment_rules = segment_rules(self.mean_probability(&model, end));
        model
    }

    /// Folds the events of a user until the end of `day`.
    fn summary(events: &[&Event], day: u16) -> UserSummary {
        let mut summary = UserSummary::default();
        events.iter().take_while(|event| day_of(event.at) <= day).for_each(|event| summary.add(event));
        summary
    }

    /// Returns what purchase days are worth, by currency.
    fn mean_values(&self, end: u16) -> BTreeMap<String, f64> {
        let of_user = |events: &UserEvents| {
            let summary = Self::summary(events, end);
            let spend = summary.main_spend().copied();
            spend.map(|spend| (spend.currency().to_owned(), spend.net(), f64::from(summary.purchase_days())))
        };
        let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for (currency, value, days) in self.users.par_iter().filter_map(of_user).collect::<Vec<_>>() {
            let sum = sums.entry(currency).or_default();
            *sum = (sum.0 + value, sum.1 + days);
        }
        sums.into_iter().map(|(currency, (value, days))| (currency, value / days.max(1.0))).collect()
    }

    fn main_currency(&self, end: u16) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let events = self.users.iter().flatten().filter(|event| day_of(event.at) <= end);
        for event in events.filter(|event| event.kind == EventKind::Purchase) {
            if event.lines.iter().any(|line| line.price.is_some()) {
                *counts.entry(&event.currency).or_default() += 1;
            }
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map_or(String::new(), |(currency, _)| currency.to_owned())
    }

    fn histories(&self, end: u16) -> Vec<PurchaseHistory> {
        let history = |events: &UserEvents| {
            let purchases = events.iter().filter(|event| event.kind == EventKind::Purchase && day_of(event.at) <= end);
            let purchase = |event: &&Event| Purchase { day: day_of(event.at).into(), value: 0.0, units: 1.0 };
            PurchaseHistory::new(purchases.map(purchase).collect())
        };
        self.users.par_iter().map(history).collect()
    }

    fn beta_geometric(&self, end: u16) -> Option<BetaGeometric> {
        let histories = self.histories(end);
        let summaries: Vec<_> = histories.iter().filter_map(|of| PurchaseSummary::at(of, end.into())).collect();
        BetaGeometric::fit(&summaries, Dropout::AfterRepeatPurchases).ok()
    }

    /// Returns the mean probability of a purchase of customers within the longest horizon.
    fn mean_probability(&self, model: &LoyaltyModel, end: u16) -> f64 {
        let probability = |events: &UserEvents| {
            let summary = Self::summary(events, end);
            let score = (summary.purchase_days() > 0).then(|| model.score(Some(&summary), end))?;
            Some(score.horizons.last()?.purchase.value)
        };
        let probabilities: Vec<f64> = self.users.par_iter().filter_map(probability).collect();
        probabilities.iter().sum::<f64>() / probabilities.len().max(1) as f64
    }

    /// Returns the rows of windows in the order of their cuts, those of a user together. The inputs are not
    /// standardised.
    fn rows(
        &self,
        windows: &BTreeSet<(u16, u32)>,
        days: u32,
        values: &Values,
        known: Option<&BetaGeometric>,
    ) -> Vec<Row> {
        let of_user = |(user, events): (usize, &UserEvents)| {
            let (mut summary, mut next, mut rows) = (UserSummary::default(), 0, Vec::with_capacity(windows.len()));
            for (cut, length) in windows {
                while let Some(event) = events.get(next).filter(|event| day_of(event.at) <= *cut) {
                    summary.add(event);
                    next += 1;
                }
                if summary.event_count() == 0 {
                    continue;
                }
                let ratio = user_value(&summary, values).map_or(1.0, |(_, _, ratio)| ratio);
                let last = u32::from(*cut) + length;
                let window = events[next..].iter().take_while(|event| u32::from(day_of(event.at)) <= last);
                let (mut purchases, mut purchase_day, mut returns) = (0.0, None, false);
                for event in window {
                    returns |= is_visit(event.kind);
                    if event.kind == EventKind::Purchase && purchase_day != Some(day_of(event.at)) {
                        purchase_day = Some(day_of(event.at));
                        purchases += 1.0;
                    }
                }
                rows.push(Row {
                    user: user as u32,
                    cut: *cut,
                    length: *length,
                    inputs: UserInputs::new(&summary, *cut, ratio).within(known, f64::from(*length)),
                    log_window: (f64::from(*length) / f64::from(days)).ln(),
                    purchases,
                    returns,
                    is_customer: summary.purchase_days() > 0,
                    is_new: u32::from(*cut) - summary.first_s() / 86_400 <= NEW_DAYS,
                });
            }
            rows
        };
        self.users.par_iter().enumerate().flat_map_iter(of_user).collect()
    }

    /// Returns the standardised rows of the window of `length` days after `cut`.
    fn slice(&self, model: &HorizonModel, cut: u16, length: u32, values: &Values) -> Vec<Row> {
        let windows = BTreeSet::from([(cut, length)]);
        let mut rows = self.rows(&windows, model.days, values, model.beta_geometric.as_ref());
        rows.par_iter_mut().for_each(|row| row.inputs = model.standardised(row.inputs));
        rows
    }

    /// Returns the slices of the windows that end with the day `end`, the longest first. Together they describe the newest
    /// level: the latest days are in all of them.
    fn newest_slices(&self, model: &HorizonModel, end: u16, values: &Values) -> Vec<Vec<Row>> {
        let known = f64::from(end.saturating_sub(self.first));
        let fits = |length: &u32| known - f64::from(*length) >= known * HISTORY_SHARE_MIN;
        let slice = |length: u32| self.slice(model, end - length as u16, length, values);
        lengths(model.days).into_iter().filter(fits).map(slice).collect()
    }

    /// Fits the models of a horizon to the events until the end of the day `end`, without intervals and a backtest.
    fn horizon(&self, end: u16, days: u32) -> Result<HorizonModel, String> {
        let values = self.mean_values(end);
        let beta_geometric = self.beta_geometric(end);
        let mut rows = self.rows(&windows(self.first, end, days), days, &values, beta_geometric.as_ref());
        check_outcomes(&rows)?;
        let (mean, scale) = standardisation(&rows);
        let empty = LogitModel { weights: Vec::new(), covariance: Vec::new(), inflation: 1.0, level_variance: 0.0 };
        let mut model = HorizonModel {
            days,
            row_count: rows.len(),
            has_measured_intervals: false,
            beta_geometric,
            mean,
            scale,
            purchase: empty.clone(),
            return_visit: empty,
            further: Vec::new(),
            count_bins: Vec::new(),
            prior: prior(&rows, days),
            validation: None,
        };
        rows.par_iter_mut().for_each(|row| row.inputs = model.standardised(row.inputs));
        let (mut purchase, mut return_visit) = (logit_model(&rows, is_buyer), logit_model(&rows, is_visitor));
        model.further = further(&rows);
        for (logit, outcome) in [(&mut purchase, is_buyer as fn(&Row) -> bool), (&mut return_visit, is_visitor)] {
            logit.level_variance = level_variance(&window_levels(logit, &rows, outcome));
        }
        drop(rows);
        let slices = self.newest_slices(&model, end, &values);
        let year_before = end.checked_sub(SEASON_DAYS).filter(|day| self.check_length(*day, days).is_ok());
        let year_before =
            year_before.map(|day| (self.newest_slices(&model, day, &values), [self.slice(&model, day, days, &values)]));
        for (logit, outcome) in [(&mut purchase, is_buyer as fn(&Row) -> bool), (&mut return_visit, is_visitor)] {
            let mut shift = level_shift(logit, &slices, outcome);
            if let Some((newest_then, season)) = &year_before {
                // The error that the newest level had a year before.
                shift += level_shift(logit, season, outcome) - level_shift(logit, newest_then, outcome);
            }
            logit.weights[0] += shift;
        }
        if year_before.is_none() {
            self.add_beta_geometric_levels(&mut model, &mut purchase, &mut return_visit, end, &values);
        }
        // The weights of the window's length are of no use within the horizon, where its logarithm is 0.
        model.purchase = purchase.within_horizon();
        model.return_visit = return_visit.within_horizon();
        model.count_bins = slices.first().map_or(Vec::new(), |slice| count_bins(&model, slice));
        Ok(model)
    }

    /// Moves the levels of the probabilities and of the number towards those that BG/NBD of the purchase days and BG/NBD of
    /// the visit days predict at the end of the day `end`: the longer the horizon is compared with the events, the less of
    /// it do the training windows show.
    fn add_beta_geometric_levels(
        &self,
        model: &mut HorizonModel,
        purchase: &mut LogitModel,
        return_visit: &mut LogitModel,
        end: u16,
        values: &Values,
    ) {
        let [above, full] = BETA_GEOMETRIC_SHARES;
        let horizon_share = f64::from(model.days) / f64::from(end.saturating_sub(self.first).max(1));
        let weight = ((horizon_share - above) / (full - above)).clamp(0.0, 1.0);
        let weeks = f64::from(model.days) / PurchaseSummary::DAYS_PER_WEEK;
        let of_user = |events: &UserEvents| {
            let summary = Self::summary(events, end);
            let ratio = user_value(&summary, values).map_or(1.0, |(_, _, ratio)| ratio);
            let of = UserInputs::new(&summary, end, ratio);
            (model.inputs(&of), of)
        };
        let users: Vec<(Inputs, UserInputs)> = self.users.par_iter().map(of_user).collect();
        let buyers: Vec<(Inputs, PurchaseSummary)> =
            users.iter().filter_map(|(inputs, of)| Some((*inputs, of.purchases()?))).collect();
        // Visits are frequent, so that BG/NBD says nothing about their level if the windows show it.
        if weight > 0.0 {
            let visitors: Vec<(Inputs, PurchaseSummary)> =
                users.iter().filter_map(|(inputs, of)| Some((*inputs, of.visits()?))).collect();
            let visits: Vec<PurchaseSummary> = visitors.iter().map(|(_, visits)| *visits).collect();
            if let Ok(known) = BetaGeometric::fit(&visits, Dropout::AfterRepeatPurchases) {
                let difference = return_visit.add_level(&known, &visitors, weeks, weight);
                return_visit.level_variance += weight * 0.25 * difference * difference;
            }
        }
        let Some(known) = model.beta_geometric.filter(|_| !buyers.is_empty()) else { return };
        let difference = purchase.add_level(&known, &buyers, weeks, weight);
        // The variance of two estimates of the level.
        purchase.level_variance += 0.25 * difference * difference;
        let (mut probabilities, mut further, mut expected) = (0.0, 0.0, 0.0);
        for (inputs, purchases) in &buyers {
            let probability = sigmoid(purchase.logit(inputs));
            probabilities += probability;
            further += model.expected_purchases(probability, inputs) - probability;
            expected += known.expected_purchases(purchases, weeks);
        }
        if further > 0.0 && expected > probabilities {
            model.further[0] += weight * ((expected - probabilities) / further).ln();
        }
    }

    /// Returns an error if the events until the end of the day `end` have no window of `days` days after a history.
    fn check_length(&self, end: u16, days: u32) -> Result<(), String> {
        let history = HISTORY_DAYS_MIN.max(days as u16);
        let (known, needed) = (end.saturating_sub(self.first) + 1, history + days as u16);
        match known <= needed {
            true => Err(format!("it needs events of {} days, and the training has {known}", needed + 1)),
            false => Ok(()),
        }
    }

    /// Fits the models of a horizon with its intervals and its backtest.
    fn measured_horizon(&self, end: u16, days: u32) -> Result<HorizonModel, String> {
        let fitted = |steps: u16| {
            let end = end.checked_sub(steps * days as u16).filter(|end| *end > self.first).ok_or("no events")?;
            self.check_length(end, days)?;
            self.horizon(end, days)
        };
        let (mut model, mut earlier) = (fitted(0)?, fitted(1).ok());
        if let Some(earlier) = &mut earlier {
            self.measure_intervals(&mut model, earlier, end - days as u16);
            if let Ok(before) = fitted(2) {
                self.measure_intervals(earlier, &before, end - 2 * days as u16);
            }
            model.validation = self.validation(earlier, end - days as u16);
        }
        Ok(model)
    }

    /// Adapts the intervals of a model to the errors of an earlier one, fitted until `cut`, in the days after it.
    fn measure_intervals(&self, model: &mut HorizonModel, earlier: &HorizonModel, cut: u16) {
        let slice = self.slice(earlier, cut, earlier.days, &self.mean_values(cut));
        model.has_measured_intervals = true;
        model.purchase.inflation = inflation(&earlier.purchase, &slice, is_buyer);
        model.return_visit.inflation = inflation(&earlier.return_visit, &slice, is_visitor);
        model.count_bins = count_bins(earlier, &slice);
    }

    /// Compares the forecasts of a model, fitted until `cut`, with the days after. None if these have only one outcome.
    fn validation(&self, model: &HorizonModel, cut: u16) -> Option<Validation> {
        let days = model.days;
        let rows = self.slice(model, cut, days, &self.mean_values(cut));
        check_outcomes(&rows).ok()?;
        let customers: Vec<&Row> = rows.iter().filter(|row| row.is_customer).collect();
        let purchase = |row: &Row| sigmoid(model.purchase.logit(&row.inputs));
        let learned: Vec<f64> = customers.iter().map(|row| purchase(row)).collect();
        let expected: Vec<f64> =
            customers.iter().map(|row| model.expected_purchases(purchase(row), &row.inputs)).collect();
        let counts: Vec<f64> = customers.iter().map(|row| row.purchases).collect();
        let mut quality: Vec<Quality> = quality("purchase", "learned", learned.clone(), &counts).into_iter().collect();
        let histories = self.histories(cut);
        let of_customers = || customers.iter().map(|row| &histories[row.user as usize]);
        if let Some(known) = self.beta_geometric(cut) {
            let weeks = f64::from(days) / PurchaseSummary::DAYS_PER_WEEK;
            let probability = |history| {
                let summary = PurchaseSummary::at(history, cut.into());
                summary.map_or(0.0, |summary| known.purchase_probability(&summary, weeks))
            };
            quality.extend(self::quality("purchase", "bg-nbd", of_customers().map(probability).collect(), &counts));
        }
        if let Ok(rfm) = RfmModel::fit(&histories, cut.into(), days) {
            let probability = |history| rfm.forecast(history, cut.into()).map_or(0.0, |(probability, _)| probability);
            quality.extend(self::quality("purchase", "rfm", of_customers().map(probability).collect(), &counts));
        }
        let returned: Vec<f64> = rows.iter().map(|row| f64::from(u8::from(row.returns))).collect();
        let probabilities = rows.iter().map(|row| sigmoid(model.return_visit.logit(&row.inputs))).collect();
        quality.extend(self::quality("return", "learned", probabilities, &returned));
        let within = expected.iter().zip(&counts).filter(|(expected, count)| {
            let interval = model.count_interval(**expected);
            (interval.low..=interval.high).contains(*count)
        });
        let groups = grouped(&model.purchase, &customers, is_buyer);
        let covered = groups.iter().filter(|group| group.deviation().abs() <= 1.96).count();
        Some(Validation {
            cut_day: cut,
            user_count: rows.len(),
            customer_count: customers.len(),
            groups: groups.iter().map(|group| [group.probability, group.share]).collect(),
            purchase_interval_coverage: covered as f64 / groups.len().max(1) as f64,
            count_interval_coverage: within.count() as f64 / customers.len().max(1) as f64,
            quality,
        })
    }
}

/// Mean values by currency.
type Values = BTreeMap<String, f64>;

fn is_buyer(row: &Row) -> bool {
    row.purchases > 0.0
}

fn is_visitor(row: &Row) -> bool {
    row.returns
}

/// Refuses rows with hardly one outcome.
fn check_outcomes(rows: &[Row]) -> Result<(), String> {
    let buyers = rows.iter().filter(|row| row.purchases > 0.0).count();
    let returns = rows.iter().filter(|row| row.returns).count();
    for (count, what) in [
        (buyers, "users who purchased within the window"),
        (rows.len() - buyers, "users who did not purchase within the window"),
        (returns, "users who returned within the window"),
        (rows.len() - returns, "users who did not return within the window"),
    ] {
        if count < OUTCOMES_MIN {
            return Err(format!("it needs {OUTCOMES_MIN} observations of {what}, and there are {count}"));
        }
    }
    Ok(())
}

/// Returns the mean and the spread of each input. The spread of a constant input is 1, so that it never counts.
fn standardisation(rows: &[Row]) -> (Vec<f64>, Vec<f64>) {
    let count = rows.len().max(1) as f64;
    let (mut means, mut scales) = (Vec::with_capacity(INPUTS), Vec::with_capacity(INPUTS));
    for column in 0..INPUTS {
        let mean = rows.iter().map(|row| row.inputs[column]).sum::<f64>() / count;
        let variance = rows.iter().map(|row| (row.inputs[column] - mean).powi(2)).sum::<f64>() / count;
        let scale = variance.sqrt();
        means.push(mean);
        scales.push(if scale > 1e-6 { scale } else { 1.0 });
    }
    (means, scales)
}

/// Columns of the training: a constant, the inputs, the logarithm of the window's length and its products.
const COLUMNS: usize = 1 + INPUTS + 1 + OF_WINDOW.len();

/// Returns the logarithm of the window's length and its products with inputs.
fn of_window(row: &Row) -> [f64; 1 + OF_WINDOW.len()] {
    let mut columns = [row.log_window; 1 + OF_WINDOW.len()];
    columns[1..].iter_mut().zip(OF_WINDOW).for_each(|(column, input)| *column *= row.inputs[input]);
    columns
}

/// Fits a logistic regression to standardised rows.
fn logit_model(rows: &[Row], outcome: impl Fn(&Row) -> bool) -> LogitModel {
    let row = |row: &Row| std::iter::once(1.0).chain(row.inputs).chain(of_window(row));
    let inputs: Vec<f64> = rows.iter().flat_map(row).collect();
    let targets: Vec<f64> = rows.iter().map(|row| f64::from(u8::from(outcome(row)))).collect();
    let clusters: Vec<u32> = rows.iter().map(|row| row.user).collect();
    let weights = fit(&inputs, COLUMNS, &targets, Family::Bernoulli, PENALTY);
    let covariance = robust_covariance(&inputs, COLUMNS, &targets, &clusters, Family::Bernoulli, PENALTY, &weights);
    LogitModel { weights, covariance, inflation: 1.0, level_variance: 0.0 }
}

impl LogitModel {
    /// Removes the columns of the window's length.
    fn within_horizon(mut self) -> Self {
        const KEPT: usize = INPUTS + 1;
        self.weights.truncate(KEPT);
        self.covariance.truncate(KEPT * (KEPT + 1) / 2);
        self
    }

    /// Moves the constant by `weight` of the distance to the level that BG/NBD predicts within `weeks`, and returns the
    /// distance.
    fn add_level(
        &mut self,
        known: &BetaGeometric,
        users: &[(Inputs, PurchaseSummary)],
        weeks: f64,
        weight: f64,
    ) -> f64 {
        let total = users.iter().map(|(_, days)| known.purchase_probability(days, weeks)).sum();
        let logits: Vec<f64> = users.iter().map(|(inputs, _)| self.logit(inputs)).collect();
        let difference = constant(&logits, total);
        self.weights[0] += weight * difference;
        difference
    }

    /// The logit of a row of the training, whose window may be shorter than the horizon.
    fn logit_of_row(&self, row: &Row) -> f64 {
        let of_window: f64 = self.weights[1 + INPUTS..].iter().zip(of_window(row)).map(|(of, value)| of * value).sum();
        self.logit(&row.inputs) + of_window
    }
}

/// Fits the number of further purchases of buyers.
fn further(rows: &[Row]) -> Vec<f64> {
    const KEPT: usize = 1 + OF_COUNT.len();
    let row = |row: &Row| {
        let inputs = OF_COUNT.map(|column| row.inputs[column]);
        std::iter::once(1.0).chain(inputs).chain([row.log_window])
    };
    let buyers = || rows.iter().filter(|row| is_buyer(row));
    let inputs: Vec<f64> = buyers().flat_map(row).collect();
    let targets: Vec<f64> = buyers().map(|row| row.purchases - 1.0).collect();
    let mut weights = fit(&inputs, KEPT + 1, &targets, Family::Poisson, PENALTY);
    weights.truncate(KEPT);
    weights
}

/// Returns the mean over slices of the constant by which the logit fits a slice. 0 without slices with both outcomes.
fn level_shift(model: &LogitModel, slices: &[Vec<Row>], outcome: impl Fn(&Row) -> bool) -> f64 {
    let shift = |slice: &Vec<Row>| {
        let outcomes = slice.iter().filter(|row| outcome(row)).count();
        let logits: Vec<f64> = slice.iter().map(|row| model.logit_of_row(row)).collect();
        (outcomes.min(slice.len() - outcomes) >= OUTCOMES_MIN).then(|| constant(&logits, outcomes as f64))
    };
    let shifts: Vec<f64> = slices.iter().filter_map(shift).collect();
    shifts.iter().sum::<f64>() / shifts.len().max(1) as f64
}

/// The constant by which the logit fits one window of the training.
#[derive(Debug, Clone, Copy)]
struct WindowLevel {
    cut: u16,
    length: u32,
    constant: f64,
    /// Variance of the constant by chance.
    variance: f64,
}

/// Returns the levels of the windows with both outcomes.
fn window_levels(model: &LogitModel, rows: &[Row], outcome: fn(&Row) -> bool) -> Vec<WindowLevel> {
    let mut windows: BTreeMap<(u16, u32), Vec<&Row>> = BTreeMap::new();
    rows.iter().for_each(|row| windows.entry((row.cut, row.length)).or_default().push(row));
    let level = |((cut, length), rows): ((u16, u32), Vec<&Row>)| {
        let outcomes = rows.iter().filter(|row| outcome(row)).count();
        let logits: Vec<f64> = rows.iter().map(|row| model.logit_of_row(row)).collect();
        (outcomes.min(rows.len() - outcomes) >= OUTCOMES_MIN).then(|| {
            let constant = constant(&logits, outcomes as f64);
            let probabilities = logits.iter().map(|logit| sigmoid(logit + constant));
            let information: f64 = probabilities.map(|probability| probability * (1.0 - probability)).sum();
            WindowLevel { cut, length, constant, variance: 1.0 / information.max(1e-9) }
        })
    };
    windows.into_par_iter().filter_map(level).collect()
}

/// Returns the mean squared change of the level from a window to a later one, without that by chance: the variance of a
/// forecast that the level stays as it is. 0 if no window begins after the end of another.
fn level_variance(levels: &[WindowLevel]) -> f64 {
    let mut squares = Vec::new();
    for of in levels {
        let end = u32::from(of.cut) + of.length;
        for later in levels.iter().filter(|later| u32::from(later.cut) >= end) {
            squares.push((later.constant - of.constant).powi(2) - of.variance - later.variance);
        }
    }
    (squares.iter().sum::<f64>() / squares.len().max(1) as f64).max(0.0)
}

/// Returns the constant, within ±3, that makes the sum of the probabilities `total` if it is added to the logits.
fn constant(logits: &[f64], total: f64) -> f64 {
    let (mut low, mut high) = (-3.0, 3.0);
    // The sum of the probabilities grows with the constant.
    for _ in 0..30 {
        let middle = 0.5 * (low + high);
        let sum: f64 = logits.iter().map(|logit| sigmoid(logit + middle)).sum();
        *(if sum < total { &mut low } else { &mut high }) = middle;
    }
    0.5 * (low + high)
}

/// Returns the factor of the standard errors by which a model's groups agree with the outcomes of a later slice.
fn inflation(model: &LogitModel, slice: &[Row], outcome: impl Fn(&Row) -> bool + Copy) -> f64 {
    let groups = grouped(model, &slice.iter().collect::<Vec<_>>(), outcome);
    let squares: f64 = groups.iter().map(Group::excess).sum();
    (squares / groups.len().max(1) as f64).sqrt().clamp(1.0, INFLATION_MAX)
}

/// Users with similar probabilities.
struct Group {
    share: f64,
    probability: f64,
    /// Variance of the mean probability by the weights' uncertainty, not inflated.
    weight_variance: f64,
    /// Variance of the mean probability by all that the interval describes.
    interval_variance: f64,
    /// Variance of the mean probability by that of the level.
    level_variance: f64,
    /// Variance of the share by chance.
    chance_variance: f64,
}

impl Group {
    /// The distance of share and probability in standard errors.
    fn deviation(&self) -> f64 {
        (self.share - self.probability) / (self.interval_variance + self.chance_variance).sqrt().max(1e-9)
    }

    /// The square of the factor of the weights' standard errors that explains the distance, in addition to level and
    /// chance.
    fn excess(&self) -> f64 {
        let beyond = (self.share - self.probability).powi(2) - self.chance_variance - self.level_variance;
        (beyond / self.weight_variance.max(1e-12)).clamp(0.0, INFLATION_MAX.powi(2))
    }
}

/// A row as its group is built.
struct GroupMember {
    probability: f64,
    /// The change of the probability by the logit.
    slope: f64,
    /// The variance of the logit by the weights.
    weight_variance: f64,
    outcome: f64,
}

/// Splits rows by their probability into groups of equal size.
fn grouped(model: &LogitModel, rows: &[&Row], outcome: impl Fn(&Row) -> bool) -> Vec<Group> {
    let mut scored: Vec<GroupMember> = rows
        .iter()
        .map(|row| {
            let probability = sigmoid(model.logit(&row.inputs));
            GroupMember {
                probability,
                slope: probability * (1.0 - probability),
                weight_variance: model.weight_variance(&row.inputs),
                outcome: f64::from(u8::from(outcome(row))),
            }
        })
        .collect();
    scored.sort_by(|left, right| left.probability.total_cmp(&right.probability));
    let size = scored.len().div_ceil(GROUPS).max(1);
    let group = |members: &[GroupMember]| {
        let count = members.len() as f64;
        let mean = |of: &dyn Fn(&GroupMember) -> f64| members.iter().map(of).sum::<f64>() / count;
        // The errors of users of a group have the same cause, so standard errors are averaged and not variances.
        let variance =
            |of: &dyn Fn(f64) -> f64| mean(&|member| member.slope * of(member.weight_variance).sqrt()).powi(2);
        Group {
            share: mean(&|member| member.outcome),
            probability: mean(&|member| member.probability),
            weight_variance: variance(&|weights| weights),
            interval_variance: variance(&|weights| model.interval_variance(weights)),
            level_variance: variance(&|_| model.level_variance),
            chance_variance: mean(&|member| member.slope) / count,
        }
    };
    scored.chunks(size).map(group).collect()
}

/// Returns the intervals of the number of purchases, from the outcomes of customers with similar expectations.
fn count_bins(model: &HorizonModel, slice: &[Row]) -> Vec<CountBin> {
    let mut scored: Vec<(f64, f64)> = slice
        .iter()
        .map(|row| {
            let probability = sigmoid(model.purchase.logit(&row.inputs));
            (model.expected_purchases(probability, &row.inputs), row.purchases)
        })
        .collect();
    scored.sort_by(|left, right| left.0.total_cmp(&right.0));
    let size = scored.len().div_ceil(GROUPS).max(1);
    let bin = |members: &[(f64, f64)]| {
        let mut counts: Vec<f64> = members.iter().map(|of| of.1).collect();
        counts.sort_by(f64::total_cmp);
        let last = (counts.len() - 1) as f64;
        let expected_max = members.last().map_or(0.0, |of| of.0);
        let at = |rank: f64| counts[rank as usize];
        CountBin { expected_max, low: at((last * COUNT_TAIL).floor()), high: at((last * (1.0 - COUNT_TAIL)).ceil()) }
    };
    scored.chunks(size).map(bin).collect()
}

/// Returns the means of new users, or of all users if hardly any is new.
fn prior(rows: &[Row], days: u32) -> Prior {
    // Windows of the horizon's length, unless all are shorter.
    let longest = rows.iter().map(|row| row.log_window).fold(f64::NEG_INFINITY, f64::max);
    let longest: Vec<&Row> = rows.iter().filter(|row| row.log_window == longest).collect();
    let new: Vec<&Row> = longest.iter().copied().filter(|row| row.is_new).collect();
    let of = if new.len() >= OUTCOMES_MIN { new } else { longest };
    let count = of.len().max(1) as f64;
    // Wilson's interval.
    let share = |outcomes: usize| {
        let (p, z2) = (outcomes as f64 / count, 1.96f64 * 1.96);
        let centre = (p + z2 / (2.0 * count)) / (1.0 + z2 / count);
        let margin = 1.96 * (p * (1.0 - p) / count + z2 / (4.0 * count * count)).sqrt() / (1.0 + z2 / count);
        Estimate { value: p, low: (centre - margin).clamp(0.0, p), high: (centre + margin).clamp(p, 1.0) }
    };
    let mut counts: Vec<f64> = of.iter().map(|row| row.purchases).collect();
    counts.sort_by(f64::total_cmp);
    let mean = counts.iter().sum::<f64>() / count;
    let high = counts.get(((counts.len() as f64) * (1.0 - COUNT_TAIL)) as usize).copied().unwrap_or(f64::from(days));
    Prior {
        purchase: share(of.iter().filter(|row| row.purchases > 0.0).count()),
        return_visit: share(of.iter().filter(|row| row.returns).count()),
        purchases: Estimate { value: mean, low: 0.0, high: high.max(mean) },
    }
}

/// Returns the quality of probabilities. None if there is only one outcome.
fn quality(target: &str, model: &str, probabilities: Vec<f64>, counts: &[f64]) -> Option<Quality> {
    let metrics = ScoredProbabilities::new(probabilities).metrics(counts, &vec![1.0; counts.len()]);
    metrics.auc.is_finite().then(|| Quality {
        target: target.to_owned(),
        model: model.to_owned(),
        auc: metrics.auc,
        log_loss: metrics.log_loss,
        brier: metrics.brier,
        calibration_error: metrics.calibration_error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{gamma, purchase_times};
    use lodestone_core::{
        ids::{EventId, ItemId, UserId},
        units::{PriceMicros, Quantity},
    };
    use lodestone_events::EventLine;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    const DAY: i64 = UnixMillis::DAY;
    const DAYS: i64 = 300;
    const FIRST_DAY: i64 = 19_000;

    fn event(kind: EventKind, user: usize, at: i64, number: usize, price: f64) -> Event {
        let id = EventId::parse(&format!("{user}-{number}")).unwrap();
        let price = PriceMicros::new((price * 1e6) as i64);
        let line = EventLine { item: ItemId::parse("i").unwrap(), quantity: Quantity::ONE, price, rank: 0 };
        let user = UserId::signed_in(&format!("u{user}")).unwrap();
        Event { lines: vec![line], currency: "EUR".into(), ..Event::new(id, kind, user, UnixMillis(at)) }
    }

    /// Users who purchase with rates of their own until they drop out, and visit three times as often.
    fn shop(users: usize) -> Vec<Event> {
        let mut rng = StdRng::seed_from_u64(3);
        let mut events = Vec::new();
        for user in 0..users {
            let (rate, leave) = (gamma(&mut rng, 0.8) / 25.0 + 0.002, rng.random::<f64>() * 0.15);
            let value = 5.0 + 60.0 * rng.random::<f64>();
            let mut at = rng.random::<f64>() * 150.0;
            let mut number = 0;
            while at < DAYS as f64 {
                let ms = FIRST_DAY * DAY + (at * DAY as f64) as i64;
                let kind =
                    if rng.random::<f64>() < 0.35 || number == 0 { EventKind::Purchase } else { EventKind::View };
                events.push(event(kind, user, ms, number, value));
                number += 1;
                if rng.random::<f64>() < leave {
                    break;
                }
                at += -(1.0 - rng.random::<f64>()).ln() / (3.0 * rate);
            }
        }
        events.sort_by_key(|event| event.at);
        events
    }

    fn model(trained: TrainedLoyalty) -> LoyaltyModel {
        match trained {
            TrainedLoyalty::Model(model) => *model,
            TrainedLoyalty::Missing { reason } => panic!("{reason}"),
        }
    }

    #[test]
    fn forecasts_of_a_later_slice_are_calibrated_and_rank_users_like_bg_nbd_or_better() {
        let model = model(fit_loyalty(&shop(3000), UnixMillis((FIRST_DAY + DAYS) * DAY)));
        assert_eq!(model.horizons.iter().map(|of| of.days).collect::<Vec<_>>(), HORIZONS_DAYS);
        assert_eq!(model.check(), Ok(()));
        assert_eq!((&*model.currency, model.user_count), ("EUR", 3000));
        for horizon in &model.horizons {
            let validation = horizon.validation.as_ref().unwrap();
            let auc = |target: &str, model: &str| {
                validation.quality.iter().find(|of| of.target == target && of.model == model).unwrap().auc
            };
            let learned = &validation.quality[0];
            println!("{} days: {validation:#?}", horizon.days);
            assert!(learned.auc > auc("purchase", "bg-nbd") - 0.02, "{validation:?}");
            assert!(learned.auc > auc("purchase", "rfm") - 0.02, "{validation:?}");
            assert!(learned.calibration_error < 0.08 && auc("return", "learned") > 0.6, "{validation:?}");
            assert!(validation.count_interval_coverage > 0.75, "{validation:?}");
            assert!(validation.purchase_interval_coverage >= 0.5, "{validation:?}");
        }
    }

    #[test]
    fn the_logit_is_the_sum_of_its_contributions_and_a_file_is_read_as_written() {
        let events = shop(500);
        let end = UnixMillis((FIRST_DAY + DAYS) * DAY);
        let trained = fit_loyalty(&events, end);
        let json = serde_json::to_string(&trained).unwrap();
        let read: TrainedLoyalty = serde_json::from_str(&json).unwrap();
        assert_eq!(read.check(), Ok(()));
        let model = model(read);
        let day = day_of(end) - 1;
        for user in 0..100 {
            let of_user: Vec<&Event> =
                events.iter().filter(|of| of.user.signed_in_id() == Some(&format!("u{user}"))).collect();
            let summary = Training::summary(&of_user, day);
            let score = model.score(Some(&summary), day);
            for horizon in &score.horizons {
                for (estimate, explanation) in [
                    (horizon.purchase, horizon.purchase_explanation.as_ref().unwrap()),
                    (horizon.return_visit, horizon.return_explanation.as_ref().unwrap()),
                ] {
                    let sum = explanation.base_logit + explanation.drivers.iter().map(|of| of.1).sum::<f64>();
                    let logit = (estimate.value / (1.0 - estimate.value)).ln();
                    assert!((sum - logit).abs() < 1e-9, "{sum} {logit}");
                    assert!(estimate.low <= estimate.value && estimate.value <= estimate.high);
                }
                let of = horizon.purchases;
                assert!(of.low <= of.value && of.value <= of.high && of.value >= horizon.purchase.value);
            }
            let risk = model.risk(&summary, day, "EUR").unwrap();
            let longest = score.horizons.last().unwrap();
            assert!((risk.purchase_probability - longest.purchase.value).abs() < 1e-12);
            assert!((risk.expected_value - longest.value.unwrap().value).abs() < 1e-9);
            assert_eq!(risk.segment, score.rule.segment);
            assert_eq!(model.risk(&summary, day, "USD"), None);
        }
    }

    /// Users of two and a half years who purchase three times as often in each November and December.
    #[test]
    fn the_level_of_the_season_is_that_of_a_year_before() {
        let mut rng = StdRng::seed_from_u64(9);
        const WEEKS: i64 = 128;
        let is_busy = |week: i64| (week + 8) % 52 >= 44;
        let mut events = Vec::new();
        for user in 0..1500 {
            let rate = 0.02 + 0.1 * rng.random::<f64>();
            let weeks = (0..WEEKS).filter(|week| rng.random::<f64>() < rate * if is_busy(*week) { 3.0 } else { 1.0 });
            for (number, week) in weeks.enumerate() {
                let at = (FIRST_DAY + 7 * week + user as i64 % 7) * DAY;
                events.push(event(EventKind::Purchase, user, at, number, 10.0));
            }
        }
        events.sort_by_key(|event| event.at);
        let users = by_user(&events, UnixMillis(i64::MAX));
        // The sum of the probabilities of a fit before the busy weeks divided by the number of buyers.
        let ratio = |weeks: i64| {
            let end = (FIRST_DAY + 7 * weeks - 1) as u16;
            let model = fit_horizon(&events, end, 56).unwrap();
            let (mut probability, mut buyers) = (0.0, 0.0);
            for (_, events) in &users {
                let summary = Training::summary(events, end);
                if summary.event_count() > 0 {
                    probability += model.score(Some(&summary), end).horizons[0].purchase.value;
                    let is_buyer = events.iter().any(|of| (end + 1..=end + 56).contains(&day_of(of.at)));
                    buyers += f64::from(u8::from(is_buyer));
                }
            }
            probability / buyers
        };
        let (first_year, second_year) = (ratio(36), ratio(36 + 52));
        assert!(first_year < 0.8, "{first_year}");
        assert!((second_year - 1.0).abs() < 0.08, "{second_year}");
    }

    /// Purchases of users, one per user and day: `days` returns those of a user since [`FIRST_DAY`].
    fn purchases(users: usize, mut days: impl FnMut(usize) -> Vec<i64>) -> Vec<Event> {
        let mut events = Vec::new();
        for user in 0..users {
            for (number, day) in days(user).into_iter().enumerate() {
                events.push(event(EventKind::Purchase, user, (FIRST_DAY + day) * DAY, number, 10.0));
            }
        }
        events.sort_by_key(|event| event.at);
        events
    }

    /// Windows of the horizon's length do not fit, so that only BG/NBD knows the level.
    #[test]
    fn the_level_of_a_horizon_as_long_as_the_events_is_that_of_bg_nbd() {
        const HORIZON: i64 = 150;
        let mut rng = StdRng::seed_from_u64(11);
        let events = purchases(3000, |_| {
            let first = rng.random_range(0..60);
            let times = purchase_times(&mut rng, [0.243, 4.414, 0.793, 2.426], (2 * HORIZON - first) as f64 / 7.0);
            let mut days: Vec<i64> = times.into_iter().map(|time| first + (time * 7.0) as i64).collect();
            days.insert(0, first);
            days.dedup();
            days
        });
        let end = (FIRST_DAY + HORIZON - 1) as u16;
        let model = fit_horizon(&events, end, HORIZON as u32).unwrap();
        let known = model.horizons[0].beta_geometric.unwrap();
        let weeks = HORIZON as f64 / PurchaseSummary::DAYS_PER_WEEK;
        let mut sums = [[0.0; 2]; 3];
        for (_, events) in by_user(&events, UnixMillis(i64::MAX)) {
            let summary = Training::summary(&events, end);
            let score = model.score(Some(&summary), end);
            let days = UserInputs::new(&summary, end, 1.0).purchases().unwrap();
            let later = events.iter().filter(|of| (end + 1..=end + HORIZON as u16).contains(&day_of(of.at))).count();
            let of_user = [
                [score.horizons[0].purchase.value, score.horizons[0].purchases.value],
                [known.purchase_probability(&days, weeks), known.expected_purchases(&days, weeks)],
                [f64::from(u8::from(later > 0)), later as f64],
            ];
            sums.iter_mut().flatten().zip(of_user.iter().flatten()).for_each(|(sum, value)| *sum += value);
            // Each visit is a purchase.
            assert!((score.horizons[0].return_visit.value / score.horizons[0].purchase.value - 1.0).abs() < 1e-6);
        }
        let [learned, known, actual] = sums;
        for (index, tolerance) in [(0, 0.001), (1, 0.02)] {
            assert!((learned[index] / known[index] - 1.0).abs() < tolerance, "{sums:?}");
            assert!((learned[index] / actual[index] - 1.0).abs() < 0.15, "{sums:?}");
        }
    }

    #[test]
    fn intervals_are_wide_if_the_level_changes_from_window_to_window() {
        const WEEKS: i64 = 50;
        let width = |rate_of_week: fn(i64) -> f64| {
            let mut rng = StdRng::seed_from_u64(12);
            let events = purchases(1500, |user| {
                let rate = 0.01 + 0.05 * rng.random::<f64>();
                let weeks = (0..WEEKS).filter(|week| rng.random::<f64>() < rate * rate_of_week(*week));
                weeks.map(|week| 7 * week + user as i64 % 7).collect()
            });
            let end = (FIRST_DAY + 7 * WEEKS - 1) as u16;
            let model = fit_horizon(&events, end, 30).unwrap();
            let users = by_user(&events, UnixMillis(i64::MAX));
            let widths = users.iter().map(|(_, events)| {
                let purchase = model.score(Some(&Training::summary(events, end)), end).horizons[0].purchase;
                purchase.high - purchase.low
            });
            widths.sum::<f64>() / users.len() as f64
        };
        let (steady, changing) = (width(|_| 2.0), width(|week| if week / 5 % 2 == 0 { 3.0 } else { 1.0 }));
        assert!(changing > 2.0 * steady, "{changing} {steady}");
    }

    #[test]
    fn the_variance_of_the_level_is_that_of_windows_that_follow_each_other() {
        let level = |cut, length, constant| WindowLevel { cut, length, constant, variance: 0.01 };
        // Only the third window begins after the end of the first.
        let levels = [level(10, 10, 0.0), level(15, 10, 9.0), level(20, 10, 0.4)];
        assert!((level_variance(&levels) - (0.16 - 0.02)).abs() < 1e-12);
        assert_eq!((level_variance(&levels[..2]), level_variance(&[])), (0.0, 0.0));
        // A change that chance explains.
        assert_eq!(level_variance(&[level(10, 10, 0.0), level(20, 10, 0.1)]), 0.0);
    }

    #[test]
    fn later_events_and_visitors_change_nothing() {
        let events = shop(300);
        let until = UnixMillis((FIRST_DAY + 200) * DAY);
        let mut early: Vec<Event> = events.iter().filter(|event| event.at < until).cloned().collect();
        let whole = fit_loyalty(&events, until);
        assert_eq!(whole, fit_loyalty(&early, until));
        let mut visit = event(EventKind::Purchase, 0, FIRST_DAY * DAY, 0, 3.0);
        visit.user = UserId::visitor("v").unwrap();
        early.insert(0, visit);
        assert_eq!(whole, fit_loyalty(&early, until));
    }

    /// Events of 1970 and of a wrong year would begin the training decades earlier, in which no window has users.
    #[test]
    fn wrong_dates_do_not_make_the_training_longer() {
        assert_eq!(first_day([700, 20_000, 20_300, 20_001].into_iter()), Some(20_000));
        assert_eq!((first_day([5].into_iter()), first_day(std::iter::empty())), (Some(5), None));
        let until = UnixMillis((FIRST_DAY + DAYS) * DAY);
        let events = shop(500);
        let right = model(fit_loyalty(&events, until));
        let wrong = [0, 1000 * DAY].map(|at| event(EventKind::Purchase, 3, at, 100_000, 10.0));
        let events: Vec<Event> = wrong.into_iter().chain(events).collect();
        let found = model(fit_loyalty(&events, until));
        assert_eq!((found.check(), found.left_out.len()), (Ok(()), right.left_out.len()));
        for (found, right) in found.horizons.iter().zip(&right.horizons) {
            assert!(found.row_count.abs_diff(right.row_count) <= 24, "{} {}", found.row_count, right.row_count);
            let auc = |model: &HorizonModel| model.validation.as_ref().map_or(0.0, |of| of.quality[0].auc);
            assert!((auc(found) - auc(right)).abs() < 0.03, "{} {}", auc(found), auc(right));
        }
        // A shop of a few days with one such event has no model, and says why.
        let short = fit_loyalty(&events, UnixMillis((FIRST_DAY + 12) * DAY));
        assert!(short.model().is_none(), "{short:?}");
    }

    #[test]
    fn too_few_events_are_a_reason() {
        let missing = |events: &[Event], days: i64| match fit_loyalty(events, UnixMillis((FIRST_DAY + days) * DAY)) {
            TrainedLoyalty::Missing { reason } => reason,
            TrainedLoyalty::Model(model) => panic!("{:?}", model.left_out),
        };
        assert!(missing(&[], 300).contains("signed-in user"));
        let events = shop(300);
        assert!(missing(&events, 12).contains("7 days: it needs events of 22 days, and the training has 1"));
        assert!(missing(&shop(2), 300).contains("observations of users who purchased"));
        // Horizons that the events do not cover are left out alone.
        let short = model(fit_loyalty(&shop(2000), UnixMillis((FIRST_DAY + 100) * DAY)));
        assert!(short.horizons.iter().all(|of| of.days <= 30) && short.left_out.len() >= 2, "{:?}", short.left_out);
    }
}
