//! `train` on shops of all kinds: it learns or refuses with a sentence, never writes a number that is none, and goes on where it
//! was stopped.
use lodestone_catalog::Item;
use lodestone_core::{
    ids::{ItemId, Row, UserId},
    units::UnixMillis,
};
use lodestone_dataset::{DatasetEvent, write_events, write_items};
use lodestone_events::EventKind;
use lodestone_pipeline::{bundle::Bundle, ranking::Runtime};
use lodestone_training::{EvaluateOptions, Found, Start, TrainError, TrainOptions, TrainReport, evaluate, train};
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

fn runtime() -> Runtime {
    Runtime::load(None).expect("ORT_DYLIB_PATH names the library; `make test` sets it")
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
    DatasetEvent {
        event_id: format!("{user}-{}-{hour}-{item}", kind.name()),
        user: Some(UserId::signed_in(&format!("p{user}")).unwrap()),
        session: String::new(),
        kind,
        at: UnixMillis(1_700_000_000_000 + hour * HOUR),
        item: Some(item_id(item)),
        quantity: 1,
        price: None,
        currency: String::new(),
        order: String::new(),
        query: String::new(),
    }
}

/// Users who mostly go from an item to the next by number, in visits of four hours, over half a year.
fn visits(users: usize, kinds: &[EventKind]) -> Vec<DatasetEvent> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut rows = Vec::new();
    for user in 0..users {
        // They come back to where they left.
        let mut item = rng.random_range(0..ITEMS);
        for visit in 0..18 {
            let begin = rng.random_range(0..10 * 24) + visit * 10 * 24;
            for hour in begin..begin + 4 {
                kinds.iter().for_each(|kind| rows.push(row(user, *kind, hour, item)));
                item = (item + if rng.random_bool(0.9) { 1 } else { 7 }) % ITEMS;
            }
        }
    }
    rows.sort_by_key(|row| row.at);
    rows
}

/// Opens a bundle (which checks that numbers are finite) and looks at its vectors.
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
fn a_shop_of_views_alone_is_learned_and_judged() {
    let shop = Shop::new(&titled(), &visits(60, &[EventKind::View]));
    let report = shop.train("bundle").unwrap();
    assert_eq!(report.heads, ["click", "return_visit"]);
    let bundle = check_bundle(&shop.out("bundle"));
    assert!(bundle.transitions.of(Row(3)).0.contains(&4), "what is seen next is counted");
    let options = EvaluateOptions { bootstrap_count: 50, ..EvaluateOptions::default() };
    let judged = evaluate(shop.directory.path(), &shop.out("bundle"), &runtime(), &options, &mut |_| {}).unwrap();
    let ndcg = |method: usize| judged.methods[method].ndcg_at_10.mean;
    assert!(ndcg(2) > ndcg(0) + 0.1, "ranked {}, popularity {}", ndcg(2), ndcg(0));
}

#[test]
fn each_kind_of_choice_gets_a_head() {
    let kinds = [EventKind::Click, EventKind::AddToCart, EventKind::Purchase];
    let shop = Shop::new(&titled(), &visits(60, &kinds));
    let report = shop.train("bundle").unwrap();
    assert_eq!(report.heads, ["click", "cart", "purchase", "return_visit"]);
    assert!(report.exports.iter().all(|(_, difference)| *difference < 1e-4));
    assert!(report.seconds.iter().any(|(stage, _)| *stage == "user encoder") && report.memory_bytes_max > Some(0));
    check_bundle(&shop.out("bundle"));
}

#[test]
fn shops_without_text_or_variety_are_learned() {
    let nameless = Shop::new(&items(|_| "·".to_owned()), &visits(20, &[EventKind::Purchase]));
    nameless.train("bundle").unwrap();
    check_bundle(&nameless.out("bundle"));
    let alike: Vec<DatasetEvent> = (0..10)
        .flat_map(|hour| (0..50).map(move |user| row(user, EventKind::Purchase, hour * 24, hour as usize)))
        .collect();
    let alike = Shop::new(&titled(), &alike);
    alike.train("bundle").unwrap();
    check_bundle(&alike.out("bundle"));
}

#[test]
fn one_busy_user_and_unknown_items_are_learned_from_or_refused_with_a_sentence() {
    let busy: Vec<DatasetEvent> =
        (0..15_000).map(|minute| row(0, EventKind::View, minute / 60, (minute as usize * 7) % ITEMS)).collect();
    let shop = Shop::new(&titled(), &busy);
    match shop.train("bundle") {
        Ok(report) => assert!(report.sample_count <= 500, "{} windows", report.sample_count),
        Err(error) => assert!(matches!(error, TrainError::TooLittle(_)), "{error}"),
    }
    let mut strange = visits(20, &[EventKind::Purchase]);
    strange.iter_mut().step_by(3).for_each(|row| row.item = Some(ItemId::parse("never-seen").unwrap()));
    let shop = Shop::new(&titled(), &strange);
    shop.train("bundle").unwrap();
    check_bundle(&shop.out("bundle"));
}

#[test]
fn a_training_begins_with_a_bundle_where_it_may() {
    let events = visits(60, &[EventKind::Purchase]);
    let shop = Shop::new(&titled(), &events[..events.len() * 9 / 10]);
    assert_eq!(shop.train("first").unwrap().start, Start::RandomWeights);
    // The shop goes on; one item is new, and one is gone.
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
    assert_eq!(warm.start, Start::Bundle { name: "bundle".to_owned(), known_item_count: ITEMS - 1 });
    let [cold_loss, warm_loss] = [&cold, &warm].map(|report| report.validation_losses[0]);
    assert!(warm_loss < 1.05 * cold_loss && warm.epoch_count <= cold.epoch_count, "{warm:?} {cold:?}");
    check_bundle(&shop.out("warm"));

    // What it would be stopped by was learned from.
    let early = TrainOptions { encoder_share: 0.4, ..TrainOptions::default() };
    let report = train("early", TrainOptions { warm_start: from("warm"), ..early }).unwrap();
    assert!(
        matches!(&report.start, Start::BundleNotUsed { reason } if reason.contains("stopped")),
        "{:?}",
        report.start
    );
    let nowhere = train("nowhere", TrainOptions { warm_start: from("nothing"), ..TrainOptions::default() });
    assert!(matches!(nowhere, Err(TrainError::Io { path, .. }) if path == shop.out("nothing").join("manifest.json")));
    // A bundle with another user encoder has no weights of it.
    let mut brought = Bundle::open(&shop.out("first")).unwrap();
    brought.encoder_weights = None;
    brought.manifest.files.clear();
    brought.write(&shop.out("brought")).unwrap();
    let report = train("alone", TrainOptions { warm_start: from("brought"), ..TrainOptions::default() }).unwrap();
    assert!(matches!(&report.start, Start::BundleNotUsed { reason } if reason.contains("user_encoder.weights")));
    assert_eq!(report.validation_losses, cold.validation_losses, "it began as if none were given");
}

#[test]
fn what_teaches_nothing_is_refused_with_a_sentence() {
    let once = |users: usize| (0..users).map(|user| row(user, EventKind::Purchase, user as i64, 1)).collect();
    for (events, words) in
        [(Vec::new(), "has no rows"), (once(19), "at least 2 and 20"), (once(100), "nobody chose twice")]
    {
        let shop = Shop::new(&titled(), &events);
        let error = shop.train("bundle").expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
        assert!(!shop.out("bundle").exists());
    }
    let error = Shop::new(&titled()[..1], &once(100)).train("bundle").unwrap_err().to_string();
    assert!(error.contains("1 items"), "{error}");
}

#[test]
fn a_training_that_was_stopped_goes_on_to_the_same_model() {
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
    assert_eq!(shop.train("parts").unwrap().checkpoint, Found::Resumed);
    assert!(!shop.out("parts.checkpoint").exists());
    let [whole, parts] = ["whole", "parts"].map(|name| check_bundle(&shop.out(name)));
    assert!(whole.user_encoder == parts.user_encoder, "the encoder is the same to the last bit");
    assert_eq!(whole.text_projection, parts.text_projection);

    std::fs::write(shop.out("other.checkpoint"), b"of something else").unwrap();
    assert_eq!(shop.train("other").unwrap().checkpoint, Found::Ignored);
}
