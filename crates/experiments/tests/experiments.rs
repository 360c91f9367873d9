//! Reports of simulated experiments with known effects, and errors for invalid input.
use lodestone_core::units::UnixMillis;
use lodestone_experiments::{AnalysisOptions, Exposure, Outcome, analyse, read_answers, read_outcomes};
use lodestone_pipeline::serving::arm_at;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::fs;

const HOUR: i64 = 3_600_000;

/// Simulates users who arrive over ten days. Each arm has its click rate; a third of the users with a click buy for
/// about 20.
fn shop(seed: u64, users: usize, arms: &[(&str, f64, f64)]) -> (Vec<Exposure>, Vec<Outcome>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let shares: Vec<f64> = arms.iter().map(|arm| arm.1).collect();
    let (mut exposures, mut outcomes) = (Vec::new(), Vec::new());
    for number in 0..users {
        let Some(arm) = arm_at(rng.random(), &shares) else { continue };
        let user = format!("u:{number}");
        let first = rng.random_range(0..240) * HOUR;
        for visit in 0..rng.random_range(1..4) {
            let (user, experiment, arm) = (user.clone(), "e".to_owned(), arms[arm].0.to_owned());
            // The last of three answers is in another visit.
            let session = format!("s{}", visit / 2);
            exposures.push(Exposure { user, session, at: UnixMillis(first + visit * HOUR), experiment, arm });
        }
        let mut act = |kind: &str, hours: i64, value: f64| {
            outcomes.push(Outcome {
                user: user.clone(),
                at: UnixMillis(first + hours * HOUR),
                kind: kind.to_owned(),
                value,
                currency: String::new(),
                item: String::new(),
                answer: String::new(),
            });
        };
        act("click", -2, 0.0);
        act("click", 30, 0.0);
        if rng.random_bool(arms[arm].2) {
            act("click", 1, 0.0);
            if rng.random_bool(0.33) {
                act("purchase", 2, rng.random_range(10.0..30.0));
            }
        }
    }
    outcomes.push(Outcome {
        user: "u:late".to_owned(),
        at: UnixMillis(300 * HOUR),
        kind: "view".to_owned(),
        value: 0.0,
        currency: String::new(),
        item: String::new(),
        answer: String::new(),
    });
    (exposures, outcomes)
}

#[test]
fn a_better_arm_is_significant_and_an_equal_one_is_not() {
    let arms = [("brave", 0.3, 0.16), ("control", 0.4, 0.10), ("same", 0.3, 0.10)];
    let (exposures, outcomes) = shop(1, 12_000, &arms);
    let options = AnalysisOptions {
        shares: arms.iter().map(|arm| (arm.0.to_owned(), arm.1)).collect(),
        ..AnalysisOptions::default()
    };
    let report = analyse("e", &exposures, &[], &outcomes, &options).unwrap();
    assert_eq!((report.control.as_str(), report.left_out.several_arms, report.left_out.open_window), ("control", 0, 0));
    assert!(!report.sample_ratio.as_ref().unwrap().mismatch);
    let clicks = report.metrics.iter().find(|metric| metric.name == "users with click").unwrap();
    // The means exclude outcomes before the first answer and after the window.
    assert!((clicks.arms[1].mean.unwrap() - 0.10).abs() < 0.02, "{:?}", clicks.arms);
    let of = |arm: &str| clicks.comparisons.iter().find(|comparison| comparison.arm == arm).unwrap();
    let (brave, same) = (of("brave").interval.unwrap(), of("same").interval.unwrap());
    assert!(of("brave").decided && brave.low > 0.0 && brave.low < 0.06 && brave.high > 0.06, "{brave:?}");
    assert!(!of("same").decided && same.low < 0.0 && same.high > 0.0, "{same:?}");
    assert!((of("brave").relative.unwrap() - 0.6).abs() < 0.25 && of("brave").history.len() > 20);
    let money = report.metrics.iter().find(|metric| metric.name == "value of purchase per user").unwrap();
    assert!((money.arms[1].mean.unwrap() - 0.10 * 0.33 * 20.0).abs() < 0.2, "{:?}", money.arms);
    let views = report.metrics.iter().find(|metric| metric.name == "users with view").unwrap();
    assert!(
        views.comparisons.iter().all(|comparison| comparison.interval.is_none()),
        "no user of the experiment has a view"
    );

    let printed = report.to_string();
    for words in ["control (control)", "sample ratio: chi-square", "higher", "not decided", "insufficient data"] {
        assert!(printed.contains(words), "{words} is missing in\n{printed}");
    }
    let page = report.page();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n") && page.contains("<svg "), "{page}");
    assert!(!page.contains("http") && !page.contains("NaN"), "the page is self-contained");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["metrics"][0]["comparisons"][0]["arm"], "brave");
}

#[test]
fn the_sessions_of_an_arm_are_the_distinct_ones_of_each_user() {
    let exposure = |user: &str, session: &str, arm: &str| Exposure {
        user: user.to_owned(),
        session: session.to_owned(),
        at: UnixMillis(0),
        experiment: "e".to_owned(),
        arm: arm.to_owned(),
    };
    let exposures = [
        exposure("u:p", "1", "a"),
        exposure("u:p", "1", "a"),
        exposure("u:p", "2", "a"),
        exposure("u:q", "1", "a"),
        exposure("u:r", "1", "b"),
        exposure("u:r", "", "b"),
    ];
    let report = analyse("e", &exposures, &[], &[], &AnalysisOptions::default()).unwrap();
    let counts: Vec<(u64, u64)> = report.arms.iter().map(|arm| (arm.answers, arm.sessions)).collect();
    assert_eq!(counts, [(4, 3), (2, 1)]);
    assert!(report.to_string().contains("sessions") && report.page().contains("<th>sessions</th>"));
}

#[test]
fn a_wrong_split_and_users_in_two_arms_are_reported() {
    let (mut exposures, outcomes) = shop(2, 4000, &[("a", 0.6, 0.1), ("b", 0.4, 0.1)]);
    let report = analyse("e", &exposures, &[], &outcomes, &AnalysisOptions::default()).unwrap();
    assert!(report.sample_ratio.as_ref().unwrap().mismatch && report.to_string().contains("SAMPLE RATIO MISMATCH"));
    assert!(report.page().contains("class=\"warning\""));
    let options = AnalysisOptions { shares: vec![("a".into(), 0.6), ("b".into(), 0.4)], ..AnalysisOptions::default() };
    assert!(!analyse("e", &exposures, &[], &outcomes, &options).unwrap().sample_ratio.unwrap().mismatch);

    // Every tenth user receives the other arm too, and is excluded.
    let both: Vec<Exposure> = (exposures.iter())
        .filter(|exposure| exposure.user.ends_with('7'))
        .map(|exposure| Exposure { arm: if exposure.arm == "a" { "b" } else { "a" }.to_owned(), ..exposure.clone() })
        .collect();
    exposures.extend(both);
    let report = analyse("e", &exposures, &[], &outcomes, &options).unwrap();
    assert_eq!(report.left_out.several_arms, 400);
    assert_eq!(report.arms.iter().map(|arm| arm.users).sum::<u64>(), 3600);
    assert!(report.to_string().contains("400 users received more than one arm"));
}

#[test]
fn users_with_an_open_window_are_not_counted() {
    let (exposures, outcomes) = shop(3, 2000, &[("a", 0.5, 0.1), ("b", 0.5, 0.1)]);
    let options = AnalysisOptions { window_ms: 150 * HOUR, ..AnalysisOptions::default() };
    let report = analyse("e", &exposures, &[], &outcomes, &options).unwrap();
    let counted: u64 = report.arms.iter().map(|arm| arm.counted).sum();
    // Outcomes are known until hour 300, and the first answers are spread over 240 hours.
    assert_eq!(counted + report.left_out.open_window, 2000);
    assert!((1000..1500).contains(&counted), "{counted}");

    // A window beyond the whole time counts nobody: the means are unknown, not 0.
    let options = AnalysisOptions { window_ms: 1000 * HOUR, ..AnalysisOptions::default() };
    let report = analyse("e", &exposures, &[], &outcomes, &options).unwrap();
    assert!(report.metrics.iter().flat_map(|metric| &metric.arms).all(|arm| arm.mean.is_none()));
    assert!(!report.to_string().contains("0.00000"), "{report}");
    assert!(!report.page().contains("<td>0.00000</td>"));
}

#[test]
fn errors_for_unknown_names_list_the_known_ones() {
    let (exposures, outcomes) = shop(3, 200, &[("a", 0.5, 0.1), ("b", 0.5, 0.1)]);
    let error = |experiment: &str, options: &AnalysisOptions| {
        analyse(experiment, &exposures, &[], &outcomes, options).unwrap_err().to_string()
    };
    let plain = AnalysisOptions::default();
    assert_eq!(error("f", &plain), "the answers do not contain the experiment `f`; they contain: e");
    let control = AnalysisOptions { control: Some("c".into()), ..plain.clone() };
    assert_eq!(error("e", &control), "there is no arm `c`; the experiment has: a, b");
    let shares = AnalysisOptions { shares: vec![("a".into(), -1.0)], ..plain.clone() };
    assert!(error("e", &shares).contains("the share of arm `a` is -1"));
    let beyond = AnalysisOptions { shares: vec![("a".into(), 0.9), ("b".into(), 0.5)], ..plain.clone() };
    assert!(error("e", &beyond).contains("the shares have the sum 1.4; it must be at most 1"));
    let twice = AnalysisOptions { shares: vec![("a".into(), 0.5), ("a".into(), 0.5)], ..plain.clone() };
    assert!(error("e", &twice).contains("arm `a` has two shares"));
    let unknown = AnalysisOptions { shares: vec![("z".into(), 1.0)], ..plain };
    assert!(error("e", &unknown).contains("no arm `z`"));
}

#[test]
fn errors_in_files_name_the_line() {
    let directory = tempfile::tempdir().unwrap();
    let answers = directory.path().join("answers.jsonl");
    let good = r#"{"user": "u:1", "time_ms": 5, "experiment": "e", "arm": "a"}"#;
    for (bad, words) in [
        ("", vec!["no rows"]),
        ("{", vec!["line 2"]),
        (r#"{"user": "u:1", "time_ms": "now", "experiment": "e", "arm": "a"}"#, vec!["line 2", "string"]),
        (r#"{"user": "u:1", "time_ms": 5, "arm": "a"}"#, vec!["line 2", "experiment"]),
        (r#"{"user": "", "time_ms": 5, "experiment": "e", "arm": "a"}"#, vec!["line 2", "`user` is empty"]),
        (r#"{"user": "u:1", "time_ms": 5, "experiment": "e"}"#, vec!["line 2", "needs `arm`"]),
        (r#"{"user": "u:1", "time_ms": 5, "experiment": "e", "arms": "a"}"#, vec!["line 2", "`arms`"]),
        (
            r#"{"user": "u:1", "time_ms": 5, "experiment": "e", "picks": [{"item": "i", "team": "c"}]}"#,
            vec!["line 2", "`team` is `c`"],
        ),
    ] {
        fs::write(&answers, if bad.is_empty() { String::new() } else { format!("{good}\n{bad}\n") }).unwrap();
        let error = read_answers(&answers).unwrap_err().to_string();
        assert!(error.contains("answers.jsonl"), "{error}");
        words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is missing in: {error}"));
    }
    let events = directory.path().join("events.jsonl");
    fs::write(&events, "{\"user\": \"u:1\", \"time_ms\": 5}\n").unwrap();
    let error = read_outcomes(&events).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("type"), "{error}");
    fs::write(directory.path().join("events.csv"), "user,time_ms\n").unwrap();
    let error = read_outcomes(&directory.path().join("events.csv")).unwrap_err().to_string();
    assert!(error.contains("neither .jsonl nor .parquet nor a directory"), "{error}");
    let error = read_outcomes(&directory.path().join("gone.parquet")).unwrap_err().to_string();
    assert!(error.contains("gone.parquet"), "{error}");
    let error = read_outcomes(&directory.path().join("gone")).unwrap_err().to_string();
    assert!(error.contains("gone: No such file"), "{error}");
}
