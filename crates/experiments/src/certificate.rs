//! The certificate of a configuration: what it costs in clicks and purchases, and what it brings in return visits and
//! value, against the control of an experiment.
//!
//! A user counts once, so that the events of one user are not taken for independent ones. The intervals of all four
//! metrics contain the true differences at all looks together with probability 95 %: each is an asymptotic confidence
//! sequence ([`sequential_interval`], Waudby-Smith et al., arXiv 2103.06476) of the level that is left for it by a
//! Bonferroni correction.
use crate::{
    analysis::{
        AnalysisOptions, ArmCount, ExperimentError, LeftOut, OUTCOMES_MIN, USERS_MIN, arm_counts, control, shares,
        users,
    },
    interleaving::ALPHA,
    observations::{Exposure, Outcome},
    sample_ratio::{SampleRatio, sample_ratio},
};
use ahash::AHashMap;
use lodestone_core::{
    statistics::{Moments, SequentialInterval, sequential_interval},
    units::UnixMillis,
};
use lodestone_events::EventKind;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// The metrics in the order of a certificate.
const METRICS: [(&str, &str); 4] = [
    ("clicks", "clicks per user"),
    ("purchases", "purchases per user"),
    ("return_visits", "return visits per user"),
    ("value_micros", "value per user"),
];

/// What a certificate compares.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CertificateOptions {
    /// Control, shares, window and planned number of users.
    pub analysis: AnalysisOptions,
    /// The arm that the certificate is about. None: the only one besides the control.
    pub arm: Option<String>,
    /// The currency of values. None: the only one of the counted purchases.
    pub currency: Option<String>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    #[error("the answers of the experiment `{experiment}` are interleaved; a certificate needs arms")]
    Interleaved { experiment: String },
    #[error("the experiment has the arms {known}; choose one of those that are not the control by --arm")]
    SeveralArms { known: String },
    #[error("--shares names no share of arm `{arm}`; name those of the control and of the compared arm")]
    NoShare { arm: String },
    #[error("arm `{arm}` is the control; a certificate is about another one")]
    IsControl { arm: String },
    #[error("the purchases of the counted users are in several currencies: {counts}; choose one by --currency")]
    Currencies { counts: String },
    #[error("no purchase of a counted user is in {currency}; there are {counts}")]
    Currency { currency: String, counts: String },
    /// Nothing is wrong with the input; the experiment must go on.
    #[error("too little evidence for a certificate: {}", missing.join("; "))]
    TooLittleEvidence { missing: Vec<String> },
    #[error(
        "the split of the users differs from the expected shares (sample ratio mismatch, p {p:.1e}): {counts}; no difference \
         is valid. Something loses or adds users in one arm"
    )]
    SampleRatio { p: f64, counts: String },
}

impl CertificateError {
    /// Whether the input is valid and the data alone does not support a certificate.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::TooLittleEvidence { .. } | Self::SampleRatio { .. })
    }
}

/// What the evidence says about a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is above 0.
    Gain,
    /// The whole interval is below 0.
    Loss,
    /// The interval contains 0.
    Undecided,
}

/// One metric of a certificate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CertifiedMetric {
    /// `clicks`, `purchases`, `return_visits` or `value_micros`.
    pub name: &'static str,
    /// Mean per counted user.
    pub control_mean: f64,
    pub arm_mean: f64,
    /// Arm minus control.
    #[serde(flatten)]
    pub interval: SequentialInterval,
    /// Difference divided by the control's mean; none if that is 0.
    pub relative: Option<f64>,
    pub verdict: Verdict,
}

/// What an arm costs and brings, against the control.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Certificate {
    pub experiment: String,
    pub control: String,
    pub arm: String,
    /// Time of the first answer, in ms since 1970.
    pub from_ms: i64,
    /// Time of the latest answer or outcome.
    pub until_ms: i64,
    pub window_ms: i64,
    /// Probability with which all intervals contain the true differences at all looks.
    pub level: f64,
    /// ISO 4217 code of values; empty if the purchases have none.
    pub currency: String,
    /// The control, then the arm.
    pub arms: Vec<ArmCount>,
    pub left_out: LeftOut,
    pub sample_ratio: Option<SampleRatio>,
    /// Clicks, purchases, return visits and value.
    pub metrics: Vec<CertifiedMetric>,
}

/// The outcomes of one user within the window.
#[derive(Default)]
struct UserTotals {
    clicks: f64,
    purchases: f64,
    /// Days after the first one with a visit.
    days: BTreeSet<i64>,
    /// Purchases minus refunds, in micros.
    value: f64,
}

impl UserTotals {
    fn metrics(&self) -> [f64; 4] {
        [self.clicks, self.purchases, self.days.len() as f64, self.value]
    }
}

/// Certifies what one arm of an experiment costs and brings against the control. A return visit is a day, counted from the
/// first answer, after the first one, with an event that shows a visit. The value is that of purchases minus refunds.
pub fn certify(
    experiment: &str,
    exposures: &[Exposure],
    is_interleaved: bool,
    outcomes: &[Outcome],
    options: &CertificateOptions,
) -> Result<Certificate, CertificateError> {
    let own: Vec<&Exposure> = exposures.iter().filter(|exposure| exposure.experiment == experiment).collect();
    let Some(from) = own.iter().map(|exposure| exposure.at).min() else {
        let known: BTreeSet<&str> = exposures.iter().map(|exposure| exposure.experiment.as_str()).collect();
        return Err(match is_interleaved {
            true => CertificateError::Interleaved { experiment: experiment.to_owned() },
            false => ExperimentError::unknown(experiment, known).into(),
        });
    };
    let times = own.iter().map(|exposure| exposure.at).chain(outcomes.iter().map(|outcome| outcome.at));
    let until = times.max().unwrap_or(from);
    let arms: Vec<&str> =
        own.iter().map(|exposure| exposure.arm.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    let shares = shares(&arms, &options.analysis)?;
    let control = control(&arms, &options.analysis)?;
    let arm = compared_arm(&arms, control, options)?;
    // Without its share, an arm would be left out of the check of the split.
    for name in [control, arm].map(|index| arms[index]) {
        if !options.analysis.shares.is_empty() && !options.analysis.shares.iter().any(|(of, _)| of == name) {
            return Err(CertificateError::NoShare { arm: name.to_owned() });
        }
    }
    let (mut users, several_arms) = users(&own, &arms);
    let mut counts = arm_counts(&own, &arms, &shares, &users);
    let by_arm: Vec<u64> = counts.iter().map(|arm| arm.users).collect();
    let ratio = sample_ratio(&by_arm, &shares);
    if let Some(ratio) = ratio.as_ref().filter(|ratio| ratio.mismatch) {
        let count = |arm: &ArmCount| format!("{} users in `{}`", arm.users, arm.name);
        let counts = counts.iter().map(count).collect::<Vec<_>>().join(", ");
        return Err(CertificateError::SampleRatio { p: ratio.p, counts });
    }
    let before = users.len();
    users.retain(|user| until.0.saturating_sub(user.first.0) >= options.analysis.window_ms);
    users.iter().for_each(|user| counts[user.arm].counted += 1);
    let left_out = LeftOut { several_arms, open_window: (before - users.len()) as u64 };
    users.retain(|user| [control, arm].contains(&user.arm));

    let numbers: AHashMap<&str, usize> = users.iter().enumerate().map(|(index, user)| (user.id, index)).collect();
    let within = |outcome: &Outcome| {
        let number = *numbers.get(outcome.user.as_str())?;
        let after = outcome.at.0.saturating_sub(users[number].first.0);
        (0..=options.analysis.window_ms).contains(&after).then_some((number, after))
    };
    let currency = currency(outcomes.iter().filter(|outcome| within(outcome).is_some()), options)?;
    let mut totals: Vec<UserTotals> = (0..users.len()).map(|_| UserTotals::default()).collect();
    for outcome in outcomes {
        let Some((number, after)) = within(outcome) else { continue };
        let user = &mut totals[number];
        let value = if outcome.currency == currency { (outcome.value * 1e6).round() } else { 0.0 };
        match outcome.kind.as_str() {
            "click" => user.clicks += 1.0,
            "purchase" => {
                user.purchases += 1.0;
                user.value += value;
            }
            "refund" => user.value -= value,
            _ => {}
        }
        let day = after.div_euclid(UnixMillis::DAY);
        if day > 0 && EventKind::from_name(&outcome.kind).is_none_or(EventKind::is_visit) {
            user.days.insert(day);
        }
    }
    let mut moments = [[Moments::default(); 4]; 2];
    let mut with_outcome = [[0u64; 4]; 2];
    for (user, totals) in users.iter().zip(&totals) {
        let side = usize::from(user.arm == arm);
        for (metric, value) in totals.metrics().into_iter().enumerate() {
            moments[side][metric].add(value);
            with_outcome[side][metric] += u64::from(value != 0.0);
        }
    }
    let missing = missing_evidence([arms[control], arms[arm]], &moments, &with_outcome, left_out.open_window);
    if !missing.is_empty() {
        return Err(CertificateError::TooLittleEvidence { missing });
    }
    let alpha = ALPHA / METRICS.len() as f64;
    let mut metrics = Vec::with_capacity(METRICS.len());
    for (index, (name, title)) in METRICS.into_iter().enumerate() {
        let (first, second) = (&moments[0][index], &moments[1][index]);
        let interval = sequential_interval(first, second, options.analysis.planned, alpha);
        let Some(interval) = interval else {
            let missing = vec![format!("{title} do not vary between users")];
            return Err(CertificateError::TooLittleEvidence { missing });
        };
        let verdict = match interval {
            SequentialInterval { low, .. } if low > 0.0 => Verdict::Gain,
            SequentialInterval { high, .. } if high < 0.0 => Verdict::Loss,
            _ => Verdict::Undecided,
        };
        let relative = (first.mean != 0.0).then(|| interval.difference / first.mean);
        metrics.push(CertifiedMetric {
            name,
            control_mean: first.mean,
            arm_mean: second.mean,
            interval,
            relative,
            verdict,
        });
    }
    Ok(Certificate {
        experiment: experiment.to_owned(),
        control: arms[control].to_owned(),
        arm: arms[arm].to_owned(),
        from_ms: from.0,
        until_ms: until.0,
        window_ms: options.analysis.window_ms,
        level: 1.0 - ALPHA,
        currency,
        arms: vec![counts[control].clone(), counts[arm].clone()],
        left_out,
        sample_ratio: ratio,
        metrics,
    })
}

/// Returns the index of the arm that a certificate is about.
fn compared_arm(arms: &[&str], control: usize, options: &CertificateOptions) -> Result<usize, CertificateError> {
    let known = || arms.join(", ");
    let others: Vec<usize> = (0..arms.len()).filter(|arm| *arm != control).collect();
    match (&options.arm, &others[..]) {
        (Some(name), _) => match arms.iter().position(|arm| arm == name) {
            None => Err(ExperimentError::Arm { arm: name.clone(), known: known() }.into()),
            Some(index) if index == control => Err(CertificateError::IsControl { arm: name.clone() }),
            Some(index) => Ok(index),
        },
        (None, [only]) => Ok(*only),
        (None, []) => {
            let missing = vec![format!("all answers are of the arm `{}`", known())];
            Err(CertificateError::TooLittleEvidence { missing })
        }
        (None, _) => Err(CertificateError::SeveralArms { known: known() }),
    }
}

/// Returns the currency of values; empty if the purchases have none.
fn currency<'a>(
    outcomes: impl Iterator<Item = &'a Outcome>,
    options: &CertificateOptions,
) -> Result<String, CertificateError> {
    let mut purchases: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in outcomes.filter(|outcome| outcome.kind == "purchase" && outcome.value != 0.0) {
        *purchases.entry(outcome.currency.as_str()).or_default() += 1;
    }
    let counts = || {
        let name = |code: &str| if code.is_empty() { "no currency".to_owned() } else { code.to_owned() };
        let count = |(code, count): (&&str, &usize)| format!("{count} in {}", name(code));
        purchases.iter().map(count).collect::<Vec<_>>().join(", ")
    };
    match &options.currency {
        Some(wanted) if purchases.contains_key(wanted.as_str()) => Ok(wanted.clone()),
        Some(wanted) => {
            let counts = if purchases.is_empty() { "none".to_owned() } else { counts() };
            Err(CertificateError::Currency { currency: wanted.clone(), counts })
        }
        None if purchases.len() > 1 => Err(CertificateError::Currencies { counts: counts() }),
        None => Ok(purchases.keys().next().map_or(String::new(), |code| (*code).to_owned())),
    }
}

/// Returns what is missing for intervals, because these rely on the normal distribution of means.
fn missing_evidence(
    arms: [&str; 2],
    moments: &[[Moments; 4]; 2],
    with_outcome: &[[u64; 4]; 2],
    open_window: u64,
) -> Vec<String> {
    let mut missing = Vec::new();
    for (side, arm) in arms.into_iter().enumerate() {
        let users = moments[side][0].count;
        if users < USERS_MIN {
            missing.push(format!("arm `{arm}` has {users} of {USERS_MIN} users whose window is over"));
        }
        for (metric, (name, _)) in METRICS.into_iter().enumerate() {
            let count = with_outcome[side][metric];
            if (count as f64) < OUTCOMES_MIN {
                missing.push(format!("arm `{arm}` has {count} of {OUTCOMES_MIN} users with {name}"));
            }
        }
    }
    if !missing.is_empty() && open_window > 0 {
        missing.push(format!("the windows of {open_window} further users are not over"));
    }
    missing
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.window_ms as f64 / UnixMillis::DAY as f64;
        let (arm, control) = (&self.arm, &self.control);
        writeln!(f, "certificate of `{arm}` against `{control}`, experiment {}", self.experiment)?;
        for count in &self.arms {
            writeln!(
                f,
                "{}: {} of {} users counted, {} answers",
                count.name, count.counted, count.users, count.answers
            )?;
        }
        let LeftOut { several_arms, open_window } = self.left_out;
        writeln!(f, "excluded: {several_arms} users in several arms, {open_window} whose window is not over")?;
        let columns = ["control", "arm", "difference", "interval", "relative"];
        let [first, second, difference, interval, relative] = columns;
        writeln!(f, "\n{:<30} {first:>12} {second:>12} {difference:>12} {interval:>26} {relative:>9}", "")?;
        for (metric, (_, title)) in self.metrics.iter().zip(METRICS) {
            // Values are shown in units.
            let is_value = metric.name == "value_micros";
            let unit = if is_value { 1e-6 } else { 1.0 };
            let title = match is_value && !self.currency.is_empty() {
                true => format!("{title} ({})", self.currency),
                false => title.to_owned(),
            };
            let SequentialInterval { difference, low, high, .. } = metric.interval;
            let interval = format!("[{:.4}, {:.4}]", unit * low, unit * high);
            let relative = metric.relative.map_or("-".to_owned(), |relative| format!("{:+.1} %", 100.0 * relative));
            let verdict = match metric.verdict {
                Verdict::Gain => "gain",
                Verdict::Loss => "loss",
                Verdict::Undecided => "undecided",
            };
            let (first, second) = (unit * metric.control_mean, unit * metric.arm_mean);
            let difference = unit * difference;
            writeln!(
                f,
                "{title:<30} {first:>12.4} {second:>12.4} {difference:>12.4} {interval:>26} {relative:>9}  {verdict}"
            )?;
        }
        writeln!(
            f,
            "\nwithin {days:.1} days after the first answer of a user; all intervals together hold at every look with \
             probability {:.0} %",
            100.0 * self.level
        )
    }
}
