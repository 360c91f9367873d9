//! Certificates of simulated experiments: error rate over repeated looks, known effects, refusals.
use lodestone_core::units::UnixMillis;
use lodestone_experiments::{
    AnalysisOptions, Certificate, CertificateError, CertificateOptions, Exposure, Outcome, Verdict, certify,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

/// Means per user of an arm.
#[derive(Clone, Copy)]
struct Truth {
    clicks: f64,
    purchases: f64,
    returns: f64,
}

const CONTROL: Truth = Truth { clicks: 1.2, purchases: 0.2, returns: 1.5 };
/// Mean value of a purchase.
const VALUE: f64 = 20.0;

/// Simulates users who arrive one per hour, alternately in the two arms. A user's own activity varies, so that the events
/// of a user are not independent.
fn shop(seed: u64, user_count: usize, arms: [Truth; 2]) -> (Vec<Exposure>, Vec<Outcome>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut exposures, mut outcomes) = (Vec::new(), Vec::new());
    for number in 0..user_count {
        let side = usize::from(rng.random_bool(0.5));
        let (user, truth) = (format!("u:{number}"), arms[side]);
        let first = number as i64 * HOUR;
        exposures.push(Exposure {
            user: user.clone(),
            session: String::new(),
            at: UnixMillis(first),
            experiment: "e".to_owned(),
            arm: ["control", "loyal"][side].to_owned(),
        });
        let mut act = |kind: &str, at: i64, value: f64| {
            outcomes.push(Outcome {
                user: user.clone(),
                at: UnixMillis(first + at),
                kind: kind.to_owned(),
                value,
                currency: "EUR".to_owned(),
                item: String::new(),
                answer: String::new(),
            });
        };
        // Half of the users are active, and have all events.
        if !rng.random_bool(0.5) {
            continue;
        }
        for _ in 0..3 {
            if rng.random_bool(truth.clicks * 2.0 / 3.0) {
                act("click", HOUR, 0.0);
            }
            if rng.random_bool(truth.purchases * 2.0 / 3.0) {
                act("purchase", 2 * HOUR, rng.random_range(0.0..2.0 * VALUE));
            }
        }
        for day in 1..=10 {
            if rng.random_bool(truth.returns * 2.0 / 10.0) {
                // Two views of one day are one visit.
                act("view", day * DAY, 0.0);
                act("view", day * DAY + HOUR, 0.0);
            }
        }
        act("incentive_shown", 12 * DAY, 0.0);
    }
    (exposures, outcomes)
}

fn options() -> CertificateOptions {
    let analysis = AnalysisOptions { window_ms: 14 * DAY, planned: 1000.0, ..AnalysisOptions::default() };
    CertificateOptions { analysis, ..CertificateOptions::default() }
}

/// Returns the certificates at looks after every `step` users.
fn looks(exposures: &[Exposure], outcomes: &[Outcome], step: usize) -> Vec<Certificate> {
    let mut certificates = Vec::new();
    let look = |until: i64| -> Result<Certificate, CertificateError> {
        let exposures: Vec<Exposure> = exposures.iter().filter(|of| of.at.0 <= until).cloned().collect();
        let outcomes: Vec<Outcome> = outcomes.iter().filter(|of| of.at.0 <= until).cloned().collect();
        certify("e", &exposures, false, &outcomes, &options())
    };
    let end = exposures.last().map_or(0, |last| last.at.0);
    let mut until = 14 * DAY;
    while until <= end {
        match look(until) {
            Ok(certificate) => certificates.push(certificate),
            // The chance of a sample ratio mismatch is below 1 in 1,000 at a look.
            Err(error) => assert!(error.is_refusal(), "{error}"),
        }
        until += step as i64 * HOUR;
    }
    certificates
}

#[test]
fn repeated_looks_at_equal_arms_rarely_certify_a_difference() {
    const RUNS: u64 = 200;
    let (mut wrong, mut look_count) = (0, 0);
    for seed in 0..RUNS {
        let (exposures, outcomes) = shop(seed, 1600, [CONTROL; 2]);
        let certificates = looks(&exposures, &outcomes, 180);
        look_count += certificates.len();
        let decided =
            |certificate: &Certificate| certificate.metrics.iter().any(|metric| metric.verdict != Verdict::Undecided);
        wrong += usize::from(certificates.iter().any(decided));
    }
    assert!(look_count as u64 > 5 * RUNS, "{look_count} looks");
    // 5 % of 200 is 10; two standard deviations of a binomial number above it.
    assert!(wrong <= 16, "{wrong} of {RUNS} experiments without an effect were certified");
}

#[test]
fn a_known_effect_is_certified_and_contained_in_the_interval() {
    let loyal = Truth { clicks: 1.0, purchases: 0.2, returns: 2.1 };
    let (mut gains, mut losses, mut outside) = (0, 0, 0);
    for seed in 0..40 {
        let (exposures, outcomes) = shop(1000 + seed, 6000, [CONTROL, loyal]);
        let certificates = looks(&exposures, &outcomes, 700);
        let truths = [-0.2, 0.0, 0.6, 0.0];
        let misses = |certificate: &Certificate| {
            let contains = |(metric, truth): (&lodestone_experiments::CertifiedMetric, f64)| {
                let unit = if metric.name == "value_micros" { 1e6 } else { 1.0 };
                (metric.interval.low..=metric.interval.high).contains(&(truth * unit))
            };
            !certificate.metrics.iter().zip(truths).all(contains)
        };
        outside += usize::from(certificates.iter().any(misses));
        let last = certificates.last().unwrap();
        let verdict = |name: &str| last.metrics.iter().find(|metric| metric.name == name).unwrap().verdict;
        gains += usize::from(verdict("return_visits") == Verdict::Gain);
        losses += usize::from(verdict("clicks") == Verdict::Loss);
    }
    // 5 % of 40 is 2; two standard deviations above it.
    assert!(outside <= 5, "{outside} of 40 experiments had an interval without the true difference");
    assert!(gains >= 36 && losses >= 20, "{gains} gains and {losses} losses of 40");
}

#[test]
fn a_certificate_has_units_and_counts() {
    let (exposures, mut outcomes) = shop(3, 4000, [CONTROL; 2]);
    let refunded = outcomes.iter().find(|outcome| outcome.kind == "purchase").unwrap().clone();
    outcomes.push(Outcome { kind: "refund".to_owned(), ..refunded });
    let certificate = certify("e", &exposures, false, &outcomes, &options()).unwrap();
    let names: Vec<&str> = certificate.metrics.iter().map(|metric| metric.name).collect();
    assert_eq!(names, ["clicks", "purchases", "return_visits", "value_micros"]);
    let mean = |index: usize| certificate.metrics[index].control_mean;
    assert!((mean(0) - 1.2).abs() < 0.1 && (mean(1) - 0.2).abs() < 0.05, "{certificate}");
    assert!((mean(2) - 1.5).abs() < 0.15, "days with a visit, without incentives: {certificate}");
    assert!((mean(3) / 1e6 - 4.0).abs() < 0.8, "{certificate}");
    assert_eq!((certificate.currency.as_str(), certificate.level), ("EUR", 0.95));
    let counted: u64 = certificate.arms.iter().map(|arm| arm.counted).sum();
    assert_eq!(counted + certificate.left_out.open_window, 4000);
    let text = certificate.to_string();
    assert!(
        text.contains("certificate of `loyal` against `control`") && text.contains("value per user (EUR)"),
        "{text}"
    );
}

#[test]
fn thin_or_mixed_evidence_is_refused_with_counts() {
    let refused = |exposures: &[Exposure], outcomes: &[Outcome], options: &CertificateOptions| {
        certify("e", exposures, false, outcomes, options).unwrap_err()
    };
    let (exposures, outcomes) = shop(5, 500, [CONTROL; 2]);
    let thin = refused(&exposures[..150], &outcomes, &options());
    assert!(thin.is_refusal(), "{thin}");
    let (few, text) = (refused(&exposures, &outcomes[..40], &options()), "users with");
    assert!(few.is_refusal() && few.to_string().contains(text), "{few}");
    let none = refused(&exposures[..60], &outcomes, &options()).to_string();
    assert!(none.contains("of 100 users whose window is over"), "{none}");

    let mut mixed = outcomes.clone();
    mixed.iter_mut().filter(|of| of.kind == "purchase").step_by(3).for_each(|of| of.currency = "GBP".to_owned());
    let error = refused(&exposures, &mixed, &options());
    assert!(!error.is_refusal() && error.to_string().contains(" in EUR, "), "{error}");
    let unknown = CertificateOptions { currency: Some("USD".to_owned()), ..options() };
    assert!(refused(&exposures, &mixed, &unknown).to_string().contains("is in USD"));
    let arm = |name: &str| CertificateOptions { arm: Some(name.to_owned()), ..options() };
    assert!(refused(&exposures, &outcomes, &arm("none")).to_string().contains("control, loyal"));
    assert!(refused(&exposures, &outcomes, &arm("control")).to_string().contains("is the control"));
    let unknown = certify("other", &exposures, false, &outcomes, &options()).unwrap_err().to_string();
    assert!(unknown.contains("they contain: e"), "{unknown}");

    let lost: Vec<Exposure> = exposures
        .iter()
        .enumerate()
        .filter(|(at, of)| of.arm == "control" || at % 3 == 0)
        .map(|(_, of)| of.clone())
        .collect();
    let ratio = refused(&lost, &outcomes, &options());
    assert!(ratio.is_refusal() && ratio.to_string().contains("sample ratio mismatch"), "{ratio}");
}
