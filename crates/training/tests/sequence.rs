//! Sequence models: no leakage of held-out items, errors for unusable input, correct metrics.
use lodestone_training::sequence::{
    Dropout, EncoderConfig, Interruption, ItemText, SequenceEncoder, SequenceError, Tokens, TrainerState,
    benchmark::{self, BasketFiles, HitReport, NextItemFiles, RunOptions, SessionFiles},
    files::Catalogue,
    metrics::{HitMetrics, basket_quality},
    next_item::{NextItemConfig, NextItemModel, leave_one_out, train_next_item},
    next_items, train_encoder,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{fs, path::PathBuf};

const ITEMS: u32 = 40;

/// Returns histories in which the next item usually has the next number.
fn histories(count: usize) -> Vec<Vec<u32>> {
    let mut rng = StdRng::seed_from_u64(5);
    let one = |rng: &mut StdRng| {
        let mut item = rng.random_range(0..ITEMS);
        let mut history = vec![item];
        for _ in 0..rng.random_range(4..9) {
            item = (item + if rng.random_bool(0.8) { 1 } else { rng.random_range(2..20) }) % ITEMS;
            if !history.contains(&item) {
                history.push(item);
            }
        }
        history
    };
    (0..count).map(|_| one(&mut rng)).collect()
}

fn catalogue(with_text: bool) -> Catalogue {
    let mut catalogue = Catalogue::default();
    for item in 0..ITEMS {
        catalogue.items.number(&item.to_string());
        let words = [format!("word{}", item / 4), format!("thing{}", item % 4)];
        catalogue.words.push(if with_text { words.to_vec() } else { Vec::new() });
    }
    catalogue.complete();
    catalogue
}

fn trained(histories: &[Vec<u32>], epochs: usize) -> NextItemModel {
    let split = leave_one_out(histories);
    let mut config = NextItemConfig::for_data(&split.train, ITEMS as usize, 1, 1);
    config.encoder.epochs_max = epochs;
    train_next_item(&split, &catalogue(true), &config, &mut |_| {}).unwrap()
}

/// Returns a model's candidates and scores for some histories.
fn predictions(model: &NextItemModel) -> Vec<(Vec<u32>, Vec<f32>)> {
    let queries: Vec<Vec<u32>> = (0..ITEMS).map(|item| vec![item, (item + 1) % ITEMS]).collect();
    let queries: Vec<&[u32]> = queries.iter().map(Vec::as_slice).collect();
    model.sources.retrieve(&queries, |_, set| (set.candidates.clone(), model.blend.scores(&set.features)))
}

#[test]
fn poisoned_test_items_change_nothing() {
    let clean = histories(150);
    let mut poisoned = clean.clone();
    for history in &mut poisoned {
        *history.last_mut().unwrap() = 7;
    }
    assert_eq!(predictions(&trained(&clean, 3)), predictions(&trained(&poisoned, 3)));
}

#[test]
fn poisoned_validation_items_do_not_reach_the_sources() {
    let clean = histories(150);
    let mut poisoned = clean.clone();
    for history in &mut poisoned {
        let validation = history.len() - 2;
        history[validation] = 7;
    }
    // One epoch, because validation items do decide when the encoder stops; they also train the ranker.
    let [clean, poisoned] = [clean, poisoned].map(|histories| trained(&histories, 1));
    assert_eq!(clean.sources.encoders[0].item_vectors(), poisoned.sources.encoders[0].item_vectors());
    assert_eq!(clean.sources.popularity, poisoned.sources.popularity);
    let features = |model: &NextItemModel| {
        let queries: Vec<Vec<u32>> = (0..ITEMS).map(|item| vec![item]).collect();
        let queries: Vec<&[u32]> = queries.iter().map(Vec::as_slice).collect();
        model.sources.retrieve(&queries, |_, set| (set.candidates.clone(), set.features.clone()))
    };
    assert_eq!(features(&clean), features(&poisoned));
    assert_ne!(clean.blend, poisoned.blend);
}

#[test]
fn the_same_seed_reproduces_the_model_and_another_seed_does_not() {
    let histories = histories(100);
    assert_eq!(predictions(&trained(&histories, 2)), predictions(&trained(&histories, 2)));
    let split = leave_one_out(&histories);
    let mut config = NextItemConfig::for_data(&split.train, ITEMS as usize, 1, 2);
    config.encoder.epochs_max = 2;
    let other = train_next_item(&split, &catalogue(true), &config, &mut |_| {}).unwrap();
    assert_ne!(predictions(&trained(&histories, 2)), predictions(&other));
}

#[test]
fn a_diverging_loss_stops_training_and_the_error_names_step_and_remedy() {
    let histories = histories(60);
    let split = leave_one_out(&histories);
    let mut config = NextItemConfig::for_data(&split.train, ITEMS as usize, 1, 1).encoder;
    config.learning_rate = 1e38;
    config.dropout = Dropout::NONE;
    let error = train_encoder(
        &next_items(&split.train),
        ITEMS as usize,
        &Default::default(),
        &config,
        &mut Interruption::default(),
        &mut |_| 0.0,
        &mut |_| {},
    );
    let error = error.unwrap_err();
    assert!(matches!(error, SequenceError::Diverged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("step") && text.contains("smaller learning rate"), "{text}");
}

#[test]
fn a_warm_start_reproduces_the_logits_of_the_earlier_encoder() {
    let histories = histories(150);
    let sequences: Vec<&[u32]> = histories.iter().map(Vec::as_slice).collect();
    let samples = next_items(&sequences);
    let mut config = NextItemConfig::for_data(&sequences, ITEMS as usize, 1, 1).encoder;
    let text = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        ItemText { vectors: (0..ITEMS * 8).map(|_| rng.random_range(-0.4..0.4)).collect(), width: 8 }
    };
    // The logits of all histories with all items.
    let logits = |encoder: &SequenceEncoder| {
        let queries: Vec<Tokens> = sequences.iter().map(|sequence| Tokens::from(*sequence)).collect();
        let (users, width) = (encoder.encode(&queries), encoder.width());
        let dot = |user: &[f32], item: &[f32]| user.iter().zip(item).map(|(a, b)| a * b).sum::<f32>();
        let items = encoder.item_vectors().chunks(width);
        users.chunks(width).flat_map(|user| items.clone().map(|item| dot(user, item))).collect::<Vec<f32>>()
    };
    let train = |config: &EncoderConfig, text: &ItemText, state| {
        let mut interruption = Interruption { requested: None, state };
        let trained =
            train_encoder(&samples, ITEMS as usize, text, config, &mut interruption, &mut |_| 0.0, &mut |_| {});
        trained.unwrap().encoder
    };
    config.epochs_max = 20;
    let first = train(&config, &text(1), None);
    // The second training has other text vectors and one new item.
    let vector = |item: usize| {
        let direction = &first.item_vectors()[item * first.width()..][..first.width()];
        direction.iter().map(|value| value * first.item_lengths()[item]).collect::<Vec<f32>>()
    };
    let vectors: Vec<Option<Vec<f32>>> = (0..ITEMS as usize).map(|item| (item != 3).then(|| vector(item))).collect();
    let (weights, projection) = (first.flat_weights(), first.text_projection());
    let state = TrainerState::from_encoder(weights, &vectors, &text(2), projection, samples.len(), 1).unwrap();
    config.epochs_max = 0;
    let warm = train(&config, &text(2), Some(state));
    let (before, after) = (logits(&first), logits(&warm));
    let reads_new = |index: usize| sequences[index / ITEMS as usize].contains(&3) || index % ITEMS as usize == 3;
    let known = (0..before.len()).filter(|index| !reads_new(*index));
    let difference = known.map(|index| (before[index] - after[index]).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-3, "{difference}");

    let text = text(1);
    let narrow = TrainerState::from_encoder(first.flat_weights(), &vectors, &text, &[0.0; 16], samples.len(), 1);
    assert!(matches!(narrow, Err(SequenceError::Checkpoint(_))));
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

const OPTIONS: RunOptions = RunOptions { seed: 1, seeds: 1, threads: 2 };

fn lines(histories: &[Vec<u32>]) -> String {
    let line = |(user, history): (usize, &Vec<u32>)| {
        let items: Vec<String> = history.iter().map(u32::to_string).collect();
        format!("u{user} {}\n", items.join(" "))
    };
    histories.iter().enumerate().map(line).collect()
}

fn next_item(sequences: &str, items: &str, clusters: Option<&str>) -> Result<HitReport, SequenceError> {
    let written = Files::new();
    let files = NextItemFiles {
        sequences: written.write("sequences.txt", sequences),
        items: written.write("items.tsv", items),
        clusters: clusters.map(|clusters| written.write("clusters.tsv", clusters)),
    };
    benchmark::next_item(&files, OPTIONS, &mut |_| {})
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
    assert!(of("ranked") > 0.5 && of("ranked") > of("popularity") + 0.2, "{report}");
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
        ("u1 a b c\nu2 a b c\n", "two items"),
        ("u1 a a a a a\nu2 a a a a a\n", "at least 2"),
        ("u1 a b c d e\n", "at least 2"),
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
    let [lines, events] = [lines, events].map(|files| benchmark::sessions(&files, OPTIONS, &mut |_| {}).unwrap());
    assert!(has_valid_metrics(&lines) && lines.ranked.mrr_at_20 > 0.3, "{lines}");
    assert_eq!(lines.ranked, events.ranked);
}

#[test]
fn sessions_without_training_data_are_refused() {
    let written = Files::new();
    let test = written.write("test.tsv", "a b\tc\n");
    for train in ["", "a\nb\n", "a b c\n"] {
        let files = SessionFiles { train: written.write("train.txt", train), test: test.clone() };
        let error = benchmark::sessions(&files, OPTIONS, &mut |_| {}).expect_err(train).to_string();
        assert!(error.contains("two items") || error.contains("at least 2"), "{error}");
    }
    let files = SessionFiles { train: written.write("train.txt", "a b\n"), test: written.write("bad.tsv", "a b c\n") };
    let error = benchmark::sessions(&files, OPTIONS, &mut |_| {}).unwrap_err().to_string();
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
    let report = benchmark::next_basket(&files, OPTIONS, &mut |_| {}).unwrap();
    assert!(report.queries == 81 && report.ranked.recall_at_10 > 0.6 && report.ranked.ndcg_at_20 <= 1.0, "{report}");
    let files = BasketFiles { history: written.write("one.txt", "u0\t1 2 3\n"), ..files };
    let error = benchmark::next_basket(&files, OPTIONS, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("two baskets"), "{error}");
}
