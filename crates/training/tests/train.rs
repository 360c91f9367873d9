//! `train` on shops of many kinds: it produces a bundle of finite numbers or returns an error, and resumes after a
//! stop.
use lodestone_catalog::Item;
use lodestone_core::{
    ids::{ItemId, ItemKey, Row, UserId},
    units::UnixMillis,
};
use lodestone_dataset::{DatasetEvent, write_events, write_items};
use lodestone_events::EventKind;
use lodestone_pipeline::{bundle::Bundle, ranking::Runtime};
use lodestone_training::{
    CheckpointUse, EvaluateOptions, TrainError, TrainOptions, TrainReport, WarmStart, evaluate, train,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

const ITEMS: usize = 40;
const HOUR: i64 = 3_600_000;

/// A shop's directory, removed after the test.
struct Shop {
    directory: tempfile::TempDir,
}

impl Shop {
    fn new(items: &[Item], events: &[DatasetEvent]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_items(&directory.path().join("items.parquet"), items).unwrap();
        write_events(&directory.path().join("events.parquet"), events).unwrap();
        Self { directory }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn train(&self, name: &str) -> Result<TrainReport, TrainError> {
        train(self.directory.path(), &self.out(name), &runtime(), &TrainOptions::default(), &mut |_| {})
    }
}

#[expect(clippy::disallowed_methods, reason = "`make test` passes the library through the environment")]
fn runtime() -> Runtime {
    let library = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    Runtime::load(library.as_deref()).expect("ORT_DYLIB_PATH must name the library; `make test` sets it")
}

fn items(title: impl Fn(usize) -> String) -> Vec<Item> {
    (0..ITEMS).map(|item| Item::titled(item_id(item), &title(item))).collect()
}

fn titled() -> Vec<Item> {
    items(|item| format!("{} {} number {item}", ["red", "blue", "green"][item % 3], ["mug", "lamp"][item % 2]))
}

fn item_id(item: usize) -> ItemId {
    ItemId::parse(&format!("i{item}")).unwrap()
}

fn row(user: usize, kind: EventKind, hour: i64, item: usize) -> DatasetEvent {
    let id = format!("{user}-{}-{hour}-{item}", kind.name());
    let user = UserId::signed_in(&format!("p{user}")).unwrap();
    DatasetEvent::of_item(id, kind, Some(user), UnixMillis(1_700_000_000_000 + hour * HOUR), item_id(item))
}

/// Users who mostly move from an item to the next by number, in visits of four hours, over half a year.
fn visits(users: usize, kinds: &[EventKind]) -> Vec<DatasetEvent> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut rows = Vec::new();
    for user in 0..users {
        // A visit continues at the last item of the one before.
        let mut item = rng.random_range(0..ITEMS);
        for visit in 0..18 {
            let start = rng.random_range(0..10 * 24) + visit * 10 * 24;
            for hour in start..start + 4 {
                kinds.iter().for_each(|kind| rows.push(row(user, *kind, hour, item)));
                item = (item + if rng.random_bool(0.9) { 1 } else { 7 }) % ITEMS;
            }
        }
    }
    rows.sort_by_key(|row| row.at);
    rows
}

/// Opens a bundle, which checks that numbers are finite, and checks the lengths of its vectors.
fn check_bundle(path: &Path) -> Bundle {
    let bundle = Bundle::open(path).unwrap();
    for row in (0..bundle.items.len()).map(|row| Row(row as u32)) {
        for index in [&bundle.item_vectors, &bundle.title_vectors] {
            let length = index.vector(row).unwrap().iter().map(|x| x * x).sum::<f32>();
            assert!((length - 1.0).abs() < 1e-2, "a vector of length {length}");
        }
    }
    bundle
}

#[test]
fn a_shop_with_views_only_is_trained_and_evaluated() {
    let shop = Shop::new(&titled(), &visits(60, &[EventKind::View]));
    let report = shop.train("bundle").unwrap();
    assert_eq!(report.heads, ["click", "return_visit"]);
    let bundle = check_bundle(&shop.out("bundle"));
    assert!(bundle.transitions.of(Row(3)).0.contains(&4), "transitions are counted");
    let options = EvaluateOptions { bootstrap_count: 50, ..EvaluateOptions::default() };
    let evaluation = evaluate(shop.directory.path(), &shop.out("bundle"), &runtime(), &options, &mut |_| {}).unwrap();
    let ndcg = |method: usize| evaluation.methods[method].ndcg_at_10.mean;
    assert!(ndcg(2) > ndcg(0) + 0.1, "ranked {}, popularity {}", ndcg(2), ndcg(0));
    let cut = &evaluation.relevance;
    assert!(bundle.known_answer.is_some() && cut.cosine_min == bundle.manifest.relevance.cosine_min);
    assert!(cut.matching_query_count == ITEMS && cut.other_query_count > 500, "{cut}");
    assert!(cut.precision > 0.7 && cut.recall > 0.3, "{cut}");
}

#[test]
fn each_kind_of_interaction_has_a_head() {
    let kinds = [EventKind::Click, EventKind::AddToCart, EventKind::Purchase];
    let shop = Shop::new(&titled(), &visits(60, &kinds));
    let report = shop.train("bundle").unwrap();
    assert_eq!(report.heads, ["click", "cart", "purchase", "return_visit"]);
    assert!(report.exports.iter().all(|(_, difference)| *difference < 1e-4));
    assert!(report.seconds.iter().any(|(stage, _)| *stage == "user encoder") && report.memory_bytes_max > Some(0));
    check_bundle(&shop.out("bundle"));
}

#[test]
fn shops_without_text_or_variety_are_trained() {
    let nameless = Shop::new(&items(|_| "·".to_owned()), &visits(20, &[EventKind::Purchase]));
    nameless.train("bundle").unwrap();
    check_bundle(&nameless.out("bundle"));
    let uniform: Vec<DatasetEvent> = (0..10)
        .flat_map(|hour| (0..50).map(move |user| row(user, EventKind::Purchase, hour * 24, hour as usize)))
        .collect();
    let uniform = Shop::new(&titled(), &uniform);
    uniform.train("bundle").unwrap();
    check_bundle(&uniform.out("bundle"));
}

#[test]
fn one_busy_user_and_unknown_items_are_trained_on_or_refused() {
    let busy: Vec<DatasetEvent> =
        (0..15_000).map(|minute| row(0, EventKind::View, minute / 60, (minute as usize * 7) % ITEMS)).collect();
    let shop = Shop::new(&titled(), &busy);
    match shop.train("bundle") {
        Ok(report) => assert!(report.sample_count <= 500, "{} windows", report.sample_count),
        Err(error) => assert!(matches!(error, TrainError::TooLittle(_)), "{error}"),
    }
    let mut unknown = visits(20, &[EventKind::Purchase]);
    unknown.iter_mut().step_by(3).for_each(|row| row.item = Some(ItemId::parse("never-seen").unwrap()));
    let shop = Shop::new(&titled(), &unknown);
    shop.train("bundle").unwrap();
    check_bundle(&shop.out("bundle"));
}

#[test]
fn a_warm_start_uses_a_bundle_if_it_can() {
    let events = visits(60, &[EventKind::Purchase]);
    let shop = Shop::new(&titled(), &events[..events.len() * 9 / 10]);
    assert_eq!(shop.train("first").unwrap().start, WarmStart::RandomWeights);
    // Later data: one item is new, and one was deleted.
    let mut later = titled();
    later[7] = Item::titled(ItemId::parse("new").unwrap(), "red mug that is new");
    write_items(&shop.directory.path().join("items.parquet"), &later).unwrap();
    write_events(&shop.directory.path().join("events.parquet"), &events).unwrap();
    let cold = shop.train("cold").unwrap();
    let from = |bundle: &str| Some(shop.out(bundle));
    let train = |out: &str, options: TrainOptions| {
        train(shop.directory.path(), &shop.out(out), &runtime(), &options, &mut |_| {})
    };
    let warm = train("warm", TrainOptions { warm_start: from("first"), ..TrainOptions::default() }).unwrap();
    assert_eq!(warm.start, WarmStart::Bundle { name: "bundle".to_owned(), known_item_count: ITEMS - 1 });
    let [cold_loss, warm_loss] = [&cold, &warm].map(|report| report.user_encoder_loss);
    assert!(warm_loss < 1.05 * cold_loss && warm.epoch_count <= cold.epoch_count, "{warm:?} {cold:?}");
    check_bundle(&shop.out("warm"));

    // The bundle was trained on events of the validation data.
    let early = TrainOptions { encoder_share: 0.4, ..TrainOptions::default() };
    let report = train("early", TrainOptions { warm_start: from("warm"), ..early }).unwrap();
    assert!(
        matches!(&report.start, WarmStart::BundleNotUsed { reason } if reason.contains("validation")),
        "{:?}",
        report.start
    );
    let missing = train("missing", TrainOptions { warm_start: from("nothing"), ..TrainOptions::default() });
    assert!(matches!(missing, Err(TrainError::Io { path, .. }) if path == shop.out("nothing").join("manifest.json")));
    // A bundle with an external user encoder has no weights of it.
    let mut external = Bundle::open(&shop.out("first")).unwrap();
    external.encoder_weights = None;
    external.manifest.files.clear();
    external.write(&shop.out("external")).unwrap();
    let report =
        train("without-weights", TrainOptions { warm_start: from("external"), ..TrainOptions::default() }).unwrap();
    assert!(matches!(&report.start, WarmStart::BundleNotUsed { reason } if reason.contains("user_encoder.weights")));
    assert_eq!(report.user_encoder_loss, cold.user_encoder_loss, "it equals the training with random weights");
}

#[test]
fn too_little_data_is_refused_with_the_reason() {
    let once = |users: usize| (0..users).map(|user| row(user, EventKind::Purchase, user as i64, 1)).collect();
    for (events, reason) in [(Vec::new(), "has no rows"), (once(19), "at least 2 and 20")] {
        let shop = Shop::new(&titled(), &events);
        let error = shop.train("bundle").expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
        assert!(!shop.out("bundle").exists());
    }
    let error = Shop::new(&titled()[..1], &once(100)).train("bundle").unwrap_err().to_string();
    assert!(error.contains("1 items"), "{error}");
}

#[test]
fn a_shop_where_nobody_comes_twice_is_trained() {
    // A basket of two items that belong together, of a guest or of a user who buys once.
    let baskets = |is_guest: bool, count: usize| -> Vec<DatasetEvent> {
        let mut rows = Vec::new();
        for order in 0..count {
            for item in [2 * (order % 10), 2 * (order % 10) + 1] {
                let mut row = row(order, EventKind::Purchase, order as i64, item);
                row.event_id = format!("order-{order}");
                row.user = row.user.filter(|_| !is_guest);
                rows.push(row);
            }
        }
        rows
    };
    for (is_guest, count) in [(true, 400), (false, 400), (true, 22)] {
        let shop = Shop::new(&titled(), &baskets(is_guest, count));
        let report = shop.train("bundle").unwrap();
        let bundle = check_bundle(&shop.out("bundle"));
        assert!(bundle.co_purchases.of(Row(2)).0.contains(&3), "co-purchases are counted");
        let counts = |item: u32| bundle.popularity.get(ItemKey(item));
        assert!(!counts(3).is_zero() && counts(30).is_zero(), "popularity is counted");
        assert_eq!(report.ranker_loss.is_some(), count == 400, "22 baskets are too few for a ranking model");
        assert_eq!(bundle.manifest.heads.is_empty(), report.ranker_loss.is_none());
    }
    // Users who bought one item each.
    let once: Vec<DatasetEvent> =
        (0..200).map(|user| row(user, EventKind::Purchase, user as i64, user % ITEMS)).collect();
    let shop = Shop::new(&titled(), &once);
    shop.train("bundle").unwrap();
    check_bundle(&shop.out("bundle"));
}

#[test]
fn a_stopped_training_resumes_to_the_same_model() {
    let shop = Shop::new(&titled(), &visits(30, &[EventKind::Purchase]));
    shop.train("whole").unwrap();
    let stopped_at = |stage: &'static str, step: usize| {
        let options = TrainOptions::default();
        let stop = options.stop.clone();
        train(shop.directory.path(), &shop.out("parts"), &runtime(), &options, &mut |progress| {
            if progress.stage == stage && progress.done >= step {
                stop.store(true, Ordering::Relaxed);
            }
        })
    };
    for (stage, step) in [("user encoder", 9), ("user encoder", 31), ("ranker", 2)] {
        assert!(matches!(stopped_at(stage, step), Err(TrainError::Stopped)), "{stage} {step}");
        assert!(shop.out("parts.checkpoint").exists() && !shop.out("parts").exists());
    }
    assert_eq!(shop.train("parts").unwrap().checkpoint, CheckpointUse::Resumed);
    assert!(!shop.out("parts.checkpoint").exists());
    let [whole, parts] = ["whole", "parts"].map(|name| check_bundle(&shop.out(name)));
    assert!(whole.user_encoder == parts.user_encoder, "the encoders are equal bit by bit");
    assert_eq!(whole.text_projection, parts.text_projection);

    std::fs::write(shop.out("other.checkpoint"), b"of something else").unwrap();
    assert_eq!(shop.train("other").unwrap().checkpoint, CheckpointUse::Ignored);
    // A message whose first field, the version, is 2.
    std::fs::write(shop.out("earlier.checkpoint"), [8, 2]).unwrap();
    assert_eq!(shop.train("earlier").unwrap().checkpoint, CheckpointUse::OtherVersion { found: 2, expected: 3 });
}
