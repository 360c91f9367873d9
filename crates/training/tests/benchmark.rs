//! The public benchmarks through training and pipeline: what they learn, correct metrics, errors for unusable input.
mod support;

use lodestone_pipeline::ranking::Runtime;
use lodestone_training::{
    EncoderSettings, TrainError,
    benchmark::{self, BasketFiles, HitMetrics, HitReport, NextItemFiles, RunOptions, SessionFiles, basket_quality},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{fs, path::PathBuf};
use support::histories;

#[expect(clippy::disallowed_methods, reason = "`make test` passes the library through the environment")]
fn runtime() -> Runtime {
    let library = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    Runtime::load(library.as_deref()).expect("ORT_DYLIB_PATH must name the library; `make test` sets it")
}

#[test]
fn metrics_follow_their_published_definitions() {
    let metrics = HitMetrics::of([Some(1), Some(3), Some(10), Some(11), None]);
    assert_eq!((metrics.hr_at_5, metrics.hr_at_10, metrics.hr_at_20), (0.4, 0.6, 0.8));
    let gain = |rank: f64| 1.0 / (rank + 1.0).log2();
    assert!((metrics.ndcg_at_10 - (1.0 + 0.5 + gain(10.0)) / 5.0).abs() < 1e-12);
    assert!((metrics.ndcg_at_20 - (1.0 + 0.5 + gain(10.0) + gain(11.0)) / 5.0).abs() < 1e-12);
    assert!((metrics.mrr_at_20 - (1.0 + 1.0 / 3.0 + 0.1 + 1.0 / 11.0) / 5.0).abs() < 1e-12);
    assert_eq!(HitMetrics::of([]), HitMetrics::default());
    // Two of three relevant items, at ranks 1 and 3.
    let (recall, ndcg) = basket_quality(&[4, 9, 2, 8], &[2, 4, 6], 10);
    let ideal = 1.0 + gain(2.0) + 0.5;
    assert!((recall - 2.0 / 3.0).abs() < 1e-12 && (ndcg - 1.5 / ideal).abs() < 1e-12);
    assert_eq!(basket_quality(&[1, 2], &[1, 2], 1), (0.5, 1.0));
    assert_eq!(basket_quality(&[], &[1], 10), (0.0, 0.0));
}

/// Temporary files of a test.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

const ENCODER: EncoderSettings = EncoderSettings { width: 64, blocks: 2, events: 50 };
const OPTIONS: RunOptions = RunOptions { seed: 1, seeds: 1, encoder: ENCODER, with_baselines: false };

fn lines(histories: &[Vec<u32>]) -> String {
    let line = |(user, history): (usize, &Vec<u32>)| {
        let items: Vec<String> = history.iter().map(u32::to_string).collect();
        format!("u{user} {}\n", items.join(" "))
    };
    histories.iter().enumerate().map(line).collect()
}

fn next_item(sequences: &str, items: &str, clusters: Option<&str>) -> Result<HitReport, TrainError> {
    let written = Files::new();
    let files = NextItemFiles {
        sequences: written.write("sequences.txt", sequences),
        items: written.write("items.tsv", items),
        clusters: clusters.map(|clusters| written.write("clusters.tsv", clusters)),
    };
    benchmark::next_item(&files, &runtime(), OPTIONS, &mut |_| {})
}

fn has_valid_metrics(report: &HitReport) -> bool {
    let all = report.methods.iter().flat_map(|method| [method.all.mean, method.all.spread]);
    all.chain([report.ranked]).all(|metrics| {
        [metrics.hr_at_5, metrics.hr_at_20, metrics.ndcg_at_10, metrics.mrr_at_20]
            .iter()
            .all(|value| (0.0..=1.0).contains(value))
    })
}

const NO_TEXT: &str = "item\n";

#[test]
fn a_chain_of_items_is_learned_without_text() {
    let report = next_item(&lines(&histories(400)), NO_TEXT, None).unwrap();
    assert!(has_valid_metrics(&report), "{report}");
    let of = |name: &str| report.methods.iter().find(|method| method.method == name).unwrap().all.mean.ndcg_at_10;
    assert!(of("ranked") > 0.5 && of("ranked") > of("popular") + 0.2, "{report}");
    assert_eq!(of("ranked"), report.ranked.ndcg_at_10);
    let json = serde_json::to_value(&report).unwrap();
    for key in ["hr_at_5", "hr_at_10", "hr_at_20", "ndcg_at_5", "ndcg_at_10", "ndcg_at_20"] {
        assert!(json[key].is_number() && json["methods"][0][key].is_number(), "{key} is missing");
        assert!(json["methods"][0]["descending"][key].is_number(), "{key} of the descending queries is missing");
    }
}

#[test]
fn histories_without_training_data_are_refused_with_a_reason() {
    for (sequences, words) in [
        ("", "three items"),
        ("u1\nu2\n", "three items"),
        ("u1 a\nu2 b\n", "three items"),
        ("u1 a b c\nu2 a b c\n", "no user encoder"),
        ("u1 a a a a a\nu2 a a a a a\n", "too few"),
        ("u1 a b c d e\n", "no user encoder"),
    ] {
        let error = next_item(sequences, NO_TEXT, None).expect_err(sequences).to_string();
        assert!(error.contains(words), "`{words}` is missing in: {error}");
    }
}

#[test]
fn identical_histories_of_all_users_can_be_learned() {
    let sequences: String = (0..50).map(|user| format!("u{user} a b c d e\n")).collect();
    let report = next_item(&sequences, "item\ttitle\na\tone\nb\ttwo\nq\tnever chosen\n", None).unwrap();
    assert!(has_valid_metrics(&report) && report.items == 6, "{report}");
}

#[test]
fn short_histories_and_unknown_items_are_accepted() {
    let sequences = lines(&histories(60)) + "v1\nv2 3\nv3 3 4\nv4 1 2 3 never-seen\n";
    let report = next_item(&sequences, NO_TEXT, None).unwrap();
    assert!(has_valid_metrics(&report) && report.queries == 61, "{report}");
}

#[test]
fn a_user_with_a_million_events_is_accepted() {
    let mut rng = StdRng::seed_from_u64(2);
    let busy: Vec<u32> = (0..1_000_000).map(|_| rng.random_range(0..500)).collect();
    let mut all = histories(60);
    all.push(busy);
    let report = next_item(&lines(&all), NO_TEXT, None).unwrap();
    assert!(has_valid_metrics(&report), "{report}");
}

#[test]
fn errors_name_file_and_line() {
    let sequences = lines(&histories(30));
    for (items, words) in [("asin\n1\n", "column item"), ("item\n1\n1\n", "twice")] {
        let error = next_item(&sequences, items, None).unwrap_err().to_string();
        assert!(error.contains("items.tsv") && error.contains("line") && error.contains(words), "{error}");
    }
    let error = next_item(&sequences, NO_TEXT, Some("user\tcluster\nsomeone\tc1\n")).unwrap_err().to_string();
    assert!(error.contains("clusters.tsv") && error.contains("`u0`"), "{error}");
}

#[test]
fn both_session_formats_have_the_same_result() {
    let all = histories(400);
    let written = Files::new();
    let words = |history: &[u32]| history.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let train: String = all[..350].iter().map(|history| words(history) + "\n").collect();
    let test = all[350..].iter().flat_map(|history| (1..history.len()).map(|end| (&history[..end], history[end])));
    let test: String = test.map(|(clicks, next)| format!("{}\t{next}\n", words(clicks))).collect();
    let clicks = |histories: &[Vec<u32>], from: usize| {
        let mut text = "SessionId\tItemId\tTime\n".to_owned();
        for (session, history) in histories.iter().enumerate() {
            for (index, item) in history.iter().enumerate() {
                text += &format!("{}\t{item}\t{}\n", session + from, (session + from) * 100 + index);
            }
        }
        text
    };
    let lines = SessionFiles { train: written.write("train.txt", &train), test: written.write("test.tsv", &test) };
    let events = SessionFiles {
        train: written.write("train.tsv", &clicks(&all[..350], 0)),
        test: written.write("test-clicks.tsv", &clicks(&all[350..], 350)),
    };
    let [lines, events] =
        [lines, events].map(|files| benchmark::sessions(&files, &runtime(), OPTIONS, &mut |_| {}).unwrap());
    assert!(has_valid_metrics(&lines) && lines.ranked.mrr_at_20 > 0.3, "{lines}");
    assert_eq!(lines.ranked, events.ranked);
}

#[test]
fn sessions_without_training_data_are_refused() {
    let written = Files::new();
    let test = written.write("test.tsv", "a b\tc\n");
    for train in ["", "a\nb\n", "a b c\n"] {
        let files = SessionFiles { train: written.write("train.txt", train), test: test.clone() };
        let error = benchmark::sessions(&files, &runtime(), OPTIONS, &mut |_| {}).expect_err(train).to_string();
        assert!(error.contains("too few") || error.contains("no user encoder"), "{error}");
    }
    let files = SessionFiles { train: written.write("train.txt", "a b\n"), test: written.write("bad.tsv", "a b c\n") };
    let error = benchmark::sessions(&files, &runtime(), OPTIONS, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("bad.tsv") && error.contains("line 1"), "{error}");
}

#[test]
fn next_baskets_are_predicted_and_too_few_are_refused() {
    let written = Files::new();
    let basket = |user: usize, week: usize| format!("{} {} {}", user % 10, 10 + week % 4, 20 + (user + week) % 7);
    let weeks = |user: usize| (0..6).map(|week| basket(user, week)).collect::<Vec<_>>().join(";");
    let history: String = (0..80).map(|user| format!("u{user}\t{}\n", weeks(user))).collect();
    let future: String = (0..80).map(|user| format!("u{user}\t{}\n", basket(user, 6))).collect();
    let files = BasketFiles {
        history: written.write("history.txt", &history),
        future: written.write("future.txt", &(future + "new-user\t1 2\n")),
    };
    let options = RunOptions { with_baselines: true, ..OPTIONS };
    let report = benchmark::next_basket(&files, &runtime(), options, &mut |_| {}).unwrap();
    assert!(report.queries == 81 && report.ranked.recall_at_10 > 0.6 && report.ranked.ndcg_at_20 <= 1.0, "{report}");
    let comparison = report.baselines.as_ref().unwrap();
    assert!(comparison.case_count == 81 && comparison.baselines.len() > 5, "{report}");
    let files = BasketFiles { history: written.write("one.txt", "u0\t1 2 3\n"), ..files };
    let error = benchmark::next_basket(&files, &runtime(), OPTIONS, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("two baskets"), "{error}");
}
