//! `train` on shops of many kinds: it produces a bundle of finite numbers or returns an error, and resumes after a
//! stop.
use lodestone_catalog::{AttributeValue, Item};
use lodestone_core::{
    ids::{ItemId, ItemKey, Row, UserId},
    units::UnixMillis,
    viewer::{Platform, Region, ViewerContext},
};
use lodestone_dataset::{DatasetEvent, write_events, write_items};
use lodestone_events::EventKind;
use lodestone_pipeline::{
    Generation, Models, TextIndexes,
    bundle::{Bundle, BundleError},
    features::{DeclaredFeature, FEATURES, FeatureSchema},
    golden,
    ranking::{Device, Runtime},
};
use lodestone_training::{
    CheckpointUse, EncoderSettings, EvaluateOptions, ExternalModels, ExternalUserEncoder, GateOptions, LeakCheck,
    TrainError, TrainOptions, TrainReport, WarmStart, bundle_external_models, evaluate, gate, report, train,
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
        self.train_with(name, FeatureSchema::default())
    }

    fn train_with(&self, name: &str, features: FeatureSchema) -> Result<TrainReport, TrainError> {
        self.train_as(name, &TrainOptions { features, ..TrainOptions::default() })
    }

    fn train_as(&self, name: &str, options: &TrainOptions) -> Result<TrainReport, TrainError> {
        train(self.directory.path(), &self.out(name), &runtime(), options, &mut |_| {})
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
fn items_outside_the_bundle_are_no_targets_of_evaluation_and_gate() {
    let events = visits(60, &[EventKind::Purchase]);
    let shop = Shop::new(&titled(), &events);
    shop.train("old").unwrap();
    // Item 3 leaves the catalogue, and a new one is bought in the part that is held out.
    let mut later = events.clone();
    let held_out = later.len() * 19 / 20;
    later[held_out..].iter_mut().step_by(5).for_each(|row| row.item = Some(ItemId::parse("new").unwrap()));
    let items: Vec<Item> = titled().into_iter().filter(|item| item.id != item_id(3)).collect();
    write_items(&shop.directory.path().join("items.parquet"), &items).unwrap();
    write_events(&shop.directory.path().join("events.parquet"), &later).unwrap();
    shop.train("bundle").unwrap();

    let options = EvaluateOptions { bootstrap_count: 50, ..EvaluateOptions::default() };
    let data = shop.directory.path();
    let of = |bundle: &str| evaluate(data, &shop.out(bundle), &runtime(), &options, &mut |_| {}).unwrap();
    let (old, current) = (of("old"), of("bundle"));
    assert_eq!((old.unknown_targets.item_count, current.unknown_targets.item_count), (1, 2));
    assert!(current.unknown_targets.line_count > old.unknown_targets.line_count, "{current}");
    assert!(old.user_count > 40 && old.to_string().contains("1 items outside the catalogue of the bundle"), "{old}");
    let (of_report, _) = report(data, &shop.out("bundle"), &runtime(), &options, &mut |_| {}).unwrap();
    assert_eq!(of_report.unknown_targets, current.unknown_targets);

    let limits = GateOptions { users_min: 5, evaluate: options.clone(), ..GateOptions::default() };
    let (candidate, current) = (shop.out("bundle"), shop.out("old"));
    let verdict = gate(data, &candidate, &current, &runtime(), &limits, &mut |_| {}).unwrap();
    assert_eq!(verdict.unknown_targets.item_count, 2, "both bundles have the same targets");
    assert!(verdict.to_string().contains("2 items outside the catalogue"), "{verdict}");

    // Data of another shop.
    for row in &mut later {
        row.item = row.item.as_ref().map(|item| ItemId::parse(&format!("other-{item}")).unwrap());
    }
    write_events(&data.join("events.parquet"), &later).unwrap();
    let error = evaluate(data, &shop.out("old"), &runtime(), &options, &mut |_| {}).unwrap_err();
    assert!(matches!(error, TrainError::OtherItems { .. }), "{error}");
    assert!(error.to_string().contains("none of the 41 items of the events is in the catalogue of bundle"), "{error}");
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

const SMALL: EncoderSettings = EncoderSettings { width: 32, blocks: 1, events: 16 };

#[test]
fn a_user_encoder_of_another_size_is_trained_served_and_read_again() {
    let shop = Shop::new(&titled(), &visits(30, &[EventKind::Purchase]));
    let options = TrainOptions { encoder: SMALL, ..TrainOptions::default() };
    shop.train_as("small", &options).unwrap();
    let bundle = check_bundle(&shop.out("small"));
    assert_eq!((bundle.item_vectors.dimensions(), bundle.title_vectors.dimensions()), (32, 64));
    assert_eq!((bundle.text_projection.len(), bundle.manifest.encoder_events), (64 * 32, 16));

    let generation = Generation::standalone(bundle.clone(), 16).unwrap();
    let mut models = Models::open(&runtime(), &bundle, Device::Cpu).unwrap();
    let answered = golden::self_test(&generation, &mut models, bundle.golden.as_ref().unwrap()).unwrap();
    assert!(answered > 0, "the bundle has golden requests");
    let new = Item::titled(ItemId::parse("new").unwrap(), "red mug");
    let vectors = generation.embed(&mut models, &[&new]).unwrap().remove(0);
    assert_eq!((vectors.user_space().len(), vectors.query_space().len()), (32, 64));

    bundle.write(&shop.out("again")).unwrap();
    let [first, again] = ["small", "again"].map(|name| Bundle::open(&shop.out(name)).unwrap().manifest);
    assert_eq!(first.files, again.files, "the bundle is equal after it was read and written");
    assert_eq!(first.encoder_events, again.encoder_events);
}

#[test]
fn exports_of_long_and_deep_user_encoders_equal_the_trained_ones() {
    let shop = Shop::new(&titled(), &visits(10, &[EventKind::Purchase]));
    let encoder = EncoderSettings { width: 24, blocks: 3, events: 120 };
    let report = shop.train_as("long", &TrainOptions { encoder, ..TrainOptions::default() }).unwrap();
    let export = report.exports.iter().find(|(model, _)| model == "user_encoder");
    assert!(export.is_some_and(|(_, difference)| *difference < 1e-4), "{:?}", report.exports);
    assert_eq!(check_bundle(&shop.out("long")).item_vectors.dimensions(), 24);
}

#[test]
fn parts_of_bundles_with_other_encoder_settings_are_refused() {
    let shop = Shop::new(&titled(), &visits(20, &[EventKind::Purchase]));
    shop.train_as("small", &TrainOptions { encoder: SMALL, ..TrainOptions::default() }).unwrap();
    let warm = TrainOptions { warm_start: Some(shop.out("small")), ..TrainOptions::default() };
    let report = shop.train_as("usual", &warm).unwrap();
    let WarmStart::BundleNotUsed { reason } = &report.start else { panic!("{:?}", report.start) };
    let settings = ["width 32, 1 block, 16 events", "width 64, 2 blocks, 50 events"];
    assert!(settings.iter().all(|part| reason.contains(part)), "{reason}");
    let warm = TrainOptions { warm_start: Some(shop.out("small")), encoder: SMALL, ..TrainOptions::default() };
    assert!(matches!(shop.train_as("warm", &warm).unwrap().start, WarmStart::Bundle { .. }));

    let [small, usual] = ["small", "usual"].map(|name| Bundle::open(&shop.out(name)).unwrap());
    let refused = |name: &str, parts: &[&str], change: &dyn Fn(&mut Bundle)| {
        let mut bundle = small.clone();
        change(&mut bundle);
        bundle.write(&shop.out(name)).unwrap();
        let opened = Bundle::open(&shop.out(name));
        let error = match opened {
            Ok(bundle) => Models::open(&runtime(), &bundle, Device::Cpu).err().unwrap().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(parts.iter().all(|part| error.contains(part)), "{name}: {error}");
    };
    let projection = ["text_projection.f32", "64 dimensions of title_vectors.index"];
    refused("projection", &[&projection[..], &["32 dimensions of item_vectors.index"]].concat(), &|bundle| {
        bundle.text_projection.clone_from(&usual.text_projection);
    });
    refused("vectors", &[&projection[..], &["64 dimensions of item_vectors.index"]].concat(), &|bundle| {
        bundle.item_vectors = usual.item_vectors.clone();
    });
    refused("encoder", &["user_encoder", "[-1, -1, 64]", "[-1, -1, 32]"], &|bundle| {
        bundle.user_encoder.clone_from(&usual.user_encoder);
    });
    for events in [0, 201] {
        let found = format!("encoder_events is {events}");
        refused(&format!("events-{events}"), &["manifest.json", &found, "within 1 and 200"], &|bundle| {
            bundle.manifest.encoder_events = events;
        });
    }
    let text_indexes = TextIndexes::build(&small.items[1..], &[]).unwrap();
    let error = Generation::standalone(Bundle { text_indexes, ..small.clone() }, 16).err().unwrap().to_string();
    assert!(error.contains("lexical index") && error.contains("rows"), "{error}");

    // An external user encoder and its item vectors determine the width, and must agree.
    let vectors = |of: &Bundle| -> Vec<f32> {
        (0..ITEMS as u32).flat_map(|row| of.item_vectors.vector(Row(row)).unwrap()).collect()
    };
    let build = |out: &str, item_vectors: Vec<f32>, width: usize| {
        let model = shop.out("small").join("user_encoder.onnx");
        let user = Some(ExternalUserEncoder { model, item_vectors, width });
        let (models, out) = (ExternalModels { user, ..ExternalModels::default() }, shop.out(out));
        bundle_external_models(&shop.out("usual"), &out, &models, "x", UnixMillis(0), &runtime(), &mut |_| {})
    };
    // The encoder of 16 events has no positions for the 50 events of the bundle.
    let error = build("long", vectors(&small), 32).unwrap_err().to_string();
    assert!(error.contains("user_encoder"), "{error}");
    let error = build("other", vectors(&usual), 64).unwrap_err().to_string();
    assert!(error.contains("[-1, -1, 32]") && error.contains("[-1, -1, 64]"), "{error}");
}

#[test]
fn too_little_data_is_refused_with_the_reason() {
    let once = |users: usize| (0..users).map(|user| row(user, EventKind::Purchase, user as i64, 1)).collect::<Vec<_>>();
    let shop = Shop::new(&titled()[..1], &once(100));
    let error = shop.train("bundle").unwrap_err().to_string();
    assert!(error.contains("1 items are too few for a training; it needs at least 2"), "{error}");
    assert!(!shop.out("bundle").exists());
}

#[test]
fn a_shop_with_no_events_or_few_has_a_bundle_without_user_encoder_and_ranker() {
    let once = |users: usize| (0..users).map(|user| row(user, EventKind::Purchase, user as i64, 1)).collect::<Vec<_>>();
    for (events, reason) in [
        (None, "no user encoder: 0 positive interactions"),
        (Some(Vec::new()), "no user encoder: 0 positive interactions"),
        (Some(once(1)), "no user encoder: 1 positive interactions"),
        (Some(once(19)), "no user encoder: 19 positive interactions"),
    ] {
        let shop = Shop::new(&titled(), events.as_deref().unwrap_or_default());
        if events.is_none() {
            std::fs::remove_file(shop.directory.path().join("events.parquet")).unwrap();
        }
        let options = TrainOptions { now: UnixMillis(1_800_000_000_000), ..TrainOptions::default() };
        let report = shop.train_as("bundle", &options).unwrap();
        let missing = report.missing_user_encoder.unwrap_or_default();
        assert!(missing.contains(reason) && missing.contains("at least 20"), "{missing}");
        assert!(report.missing_ranker.unwrap_or_default().contains("no ranking model: "));
        let bundle = check_bundle(&shop.out("bundle"));
        assert!(bundle.user_encoder.is_empty() && bundle.ranker.is_empty() && bundle.manifest.heads.is_empty());
        assert_eq!(bundle.items.len(), ITEMS);
        if events.is_none_or(|events| events.is_empty()) {
            assert_eq!(bundle.manifest.trained_until_ms, options.now.0);
        }
        let mut models = Models::open(&runtime(), &bundle, Device::Cpu).unwrap();
        let golden_json = bundle.golden.clone().unwrap();
        let generation = Generation::standalone(bundle, 16).unwrap();
        assert_eq!(golden::self_test(&generation, &mut models, &golden_json).unwrap(), 16);
    }
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
fn an_order_with_an_event_for_each_line_is_one_basket() {
    // Each user buys five times three items that belong together; the lines of an order are seconds apart.
    let orders = |has_line_events: bool| -> Vec<DatasetEvent> {
        let mut rows = Vec::new();
        for order in 0..200 {
            for line in 0..3 {
                let item = 3 * ((order * 7 + order / 40) % 13) + line;
                let mut row = row(order % 40, EventKind::Purchase, 5 * order as i64, item);
                row.order = format!("order-{order}");
                if has_line_events {
                    row.at.0 += 2000 * line as i64;
                } else {
                    row.event_id = row.order.clone();
                }
                rows.push(row);
            }
        }
        rows
    };
    let options = EvaluateOptions { bootstrap_count: 50, ..EvaluateOptions::default() };
    let results = [false, true].map(|has_line_events| {
        let shop = Shop::new(&titled(), &orders(has_line_events));
        let report = shop.train("bundle").unwrap();
        let bundle = check_bundle(&shop.out("bundle"));
        let data = shop.directory.path();
        let evaluation = evaluate(data, &shop.out("bundle"), &runtime(), &options, &mut |_| {}).unwrap();
        let quality = evaluation.methods.iter().map(|method| method.ndcg_at_10.mean).collect::<Vec<_>>();
        (report.interaction_count, bundle.co_purchases.to_bytes(), evaluation.user_count, quality)
    });
    assert_eq!(results[0].0, 200, "an order is one interaction");
    assert_eq!(results[0], results[1]);
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

/// 120 items of six brands. Every tenth item has a rating.
fn branded() -> Vec<Item> {
    let item = |index: usize| {
        let mut item = Item::titled(item_id(index), &format!("{} number {index}", ["mug", "lamp", "plate"][index % 3]));
        item.brand = format!("Brand {}", index % 6);
        item.attributes.insert("fragile".to_owned(), AttributeValue::Flag(true));
        if index.is_multiple_of(10) {
            item.attributes.insert("rating".to_owned(), AttributeValue::Number((index / 10 % 5) as f64));
        }
        item
    };
    (0..120).map(item).collect()
}

/// Users who mostly buy items of one brand, each item about once, over half a year.
fn loyal_purchases() -> Vec<DatasetEvent> {
    let mut rng = StdRng::seed_from_u64(2);
    let mut rows = Vec::new();
    for user in 0..150 {
        for visit in 0..12 {
            let brand = if rng.random_bool(0.9) { user % 6 } else { rng.random_range(0..6) };
            let item = 6 * rng.random_range(0..20) + brand;
            rows.push(row(user, EventKind::Purchase, visit * 15 * 24 + rng.random_range(0..15 * 24), item));
        }
    }
    rows.sort_by_key(|row| row.at);
    rows
}

fn declared(json: &str) -> FeatureSchema {
    serde_json::from_str(json).unwrap()
}

const RATING: &str = r#"{"kind": "number", "name": "rating", "field": "attributes.rating", "missing": 2.0}"#;

#[test]
fn declared_features_are_trained_and_reported_by_name() {
    let shop = Shop::new(&branded(), &loyal_purchases());
    let schema = declared(&format!(
        r#"[{RATING}, {{"kind": "affinity", "name": "brand_affinity", "field": "brand"}},
            {{"kind": "number", "name": "fragile", "field": "attributes.fragile"}},
            {{"kind": "context", "name": "hour", "field": "hour"}}]"#
    ));
    let trained = shop.train_with("bundle", schema.clone()).unwrap();
    let of = |name: &str| trained.features.iter().find(|feature| feature.name == name).unwrap();
    assert_eq!((of("rating").item_share, of("rating").is_constant), (Some(0.1), false));
    assert_eq!((of("fragile").item_share, of("fragile").is_constant), (Some(1.0), true));
    assert_eq!((of("hour").item_share, of("brand_affinity").is_constant), (None, false));
    let checks = ["rating", "fragile", "brand_affinity"].map(|name| of(name).leak_check);
    assert_eq!(checks, [LeakCheck::TooFewItems, LeakCheck::Passed, LeakCheck::NotApplicable]);
    assert!(of("rating").to_string().contains("not checked for the label, because fewer than 50 items have a value"));
    let bundle = check_bundle(&shop.out("bundle"));
    assert_eq!(bundle.manifest.features, schema);

    let options = EvaluateOptions { bootstrap_count: 50, ..EvaluateOptions::default() };
    let data = shop.directory.path();
    let (_, page) = report(data, &shop.out("bundle"), &runtime(), &options, &mut |_| {}).unwrap();
    assert!(schema.declared().iter().all(|feature| page.contains(feature.name())));
    let ablations = &page[page.find("Ablation of features").unwrap()..];
    let hour = &ablations[ablations.find(">hour</text>").unwrap()..];
    let hour = &hour[..hour.find("</text><text").unwrap_or(hour.len()).min(400)];
    assert!(hour.contains(" ["), "the hour of the request is replaced, with an interval over users: {hour}");

    // Without declared features the ranking model has other columns.
    shop.train("plain").unwrap();
    let path = shop.out("plain").join("ranker.onnx");
    let models = ExternalModels { ranker: Some((path, None)), ..ExternalModels::default() };
    let (from, out) = (shop.out("bundle"), shop.out("external"));
    let error = bundle_external_models(&from, &out, &models, "x", UnixMillis(0), &runtime(), &mut |_| {}).unwrap_err();
    let (columns, message) = (FEATURES.len(), error.to_string());
    let parts = [format!("{columns} columns"), format!("{} features", columns + 4), "brand_affinity".to_owned()];
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
}

#[test]
fn a_bundle_whose_features_were_changed_is_refused() {
    let shop = Shop::new(&branded(), &loyal_purchases());
    shop.train_with("bundle", declared(&format!("[{RATING}]"))).unwrap();
    let path = shop.out("bundle").join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("attributes.rating", "attributes.weight")).unwrap();
    let error = Bundle::open(&shop.out("bundle")).err().unwrap();
    assert!(matches!(error, BundleError::Schema { .. }), "{error}");
    std::fs::write(&path, text.replace("attributes.rating", "weight")).unwrap();
    let error = Bundle::open(&shop.out("bundle")).err().unwrap().to_string();
    assert!(error.contains("unknown field weight"), "{error}");
}

#[test]
fn a_feature_without_values_or_with_the_label_is_refused_by_name() {
    let events = loyal_purchases();
    let sold_since = |share: usize, item: &Item| {
        let late = &events[events.len() * share / 100..];
        late.iter().filter(|row| row.item.as_ref() == Some(&item.id)).count()
    };
    let mut items = branded();
    for (index, item) in items.clone().iter().enumerate() {
        for (name, share) in [("sold_later", 75), ("sold_last", 90)] {
            items[index].attributes.insert(name.to_owned(), AttributeValue::Number(sold_since(share, item) as f64));
        }
    }
    let shop = Shop::new(&items, &events);
    let number = |field: &str, more: &str| {
        format!(r#"[{{"kind": "number", "name": "x", "field": "attributes.{field}"{more}}}]"#)
    };
    for (schema, reason) in [
        (number("colour", ""), "no item has a number in attributes.colour"),
        (r#"[{"kind": "affinity", "name": "x", "field": "tags"}]"#.to_owned(), "no item has a value in tags"),
        (r#"[{"kind": "match", "name": "x", "filter": "brand = \"Acme\""}]"#.to_owned(), "no item matches"),
        (number("sold_later", ""), "it contains the label"),
        (number("sold_last", ""), "it contains the label"),
    ] {
        let error = shop.train_with("bundle", declared(&schema)).expect_err(reason).to_string();
        assert!(error.contains("`x`") && error.contains(reason), "{error}");
        assert!(!shop.out("bundle").exists());
    }
    let error = shop.train_with("bundle", declared(&number("sold_later", ""))).unwrap_err().to_string();
    assert!(
        ["attributes.sold_later", "the limits are 0.5, and 0.1 above"].iter().all(|part| error.contains(part)),
        "{error}"
    );
    let trained = shop.train_with("bundle", declared(&number("sold_later", r#", "known_before": true"#))).unwrap();
    assert_eq!(trained.features[0].leak_check, LeakCheck::Declared);
    assert!(matches!(
        &check_bundle(&shop.out("bundle")).manifest.features.declared()[0],
        DeclaredFeature::Number { known_before: true, .. }
    ));
}

#[test]
fn a_count_of_sales_after_the_events_is_a_leak_where_most_items_are_never_sold() {
    // 1,500 items, of which 500 purchases touch a few. Rank correlations are limited by the ties.
    let mut rng = StdRng::seed_from_u64(4);
    let mut events: Vec<DatasetEvent> = (0..500)
        .map(|order| row(order % 60, EventKind::Purchase, order as i64 * 8, rng.random_range(0..1500)))
        .collect();
    events.sort_by_key(|row| row.at);
    let mut items: Vec<Item> =
        (0..1500).map(|item| Item::titled(item_id(item), &format!("thing number {item}"))).collect();
    for item in &mut items {
        let sold = events.iter().filter(|row| row.item.as_ref() == Some(&item.id)).count() as f64;
        item.attributes.insert("sold".to_owned(), AttributeValue::Number(sold));
        item.attributes.insert("size".to_owned(), AttributeValue::Number(rng.random_range(0.0..9.0)));
        item.attributes.insert("views".to_owned(), AttributeValue::Number(2e6 + rng.random_range(0.0..9.0)));
        item.attributes.insert("mixed".to_owned(), AttributeValue::Text("large".to_owned()));
    }
    let shop = Shop::new(&items, &events);
    let number =
        |field: &str| declared(&format!(r#"[{{"kind": "number", "name": "x", "field": "attributes.{field}"}}]"#));
    let error = shop.train_with("bundle", number("sold")).unwrap_err().to_string();
    let parts = ["`x`: it contains the label", "attributes.sold", "an AUC of", "the limits are 0.8, and 0.2 above"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    let error = shop.train_with("bundle", number("mixed")).unwrap_err().to_string();
    assert!(error.contains("no item has a number in attributes.mixed; 1500 items have a text there"), "{error}");
    let trained = shop.train_with("bundle", number("size")).unwrap();
    assert_eq!((trained.features[0].leak_check, trained.features[0].limited_item_count), (LeakCheck::Passed, 0));
    let limited = shop.train_with("other", number("views")).unwrap().features.remove(0);
    assert_eq!((limited.limited_item_count, limited.is_constant), (1500, true));
    assert!(limited.to_string().contains("1500 items have a number beyond ±1000000"), "{limited}");
}

/// Users who buy one of 60 items in each of 12 visits. Each visit is on a phone or a desktop, in Britain or Germany, at
/// random; half of the items are bought on phones only, the others on desktops, and half in each country.
fn purchases_by_context() -> Vec<DatasetEvent> {
    let mut rng = StdRng::seed_from_u64(3);
    let mut rows = Vec::new();
    for user in 0..300 {
        for visit in 0..12 {
            let (is_mobile, is_german) = (rng.random_bool(0.5), rng.random_bool(0.5));
            let item = 4 * rng.random_range(0..15) + 2 * usize::from(is_german) + usize::from(is_mobile);
            let context = ViewerContext {
                platform: Some(if is_mobile { Platform::MobileWeb } else { Platform::Web }),
                region: Region::parse(if is_german { "DE" } else { "GB" }),
                locale: None,
            };
            let hour = visit * 15 * 24 + rng.random_range(0..15 * 24);
            rows.push(DatasetEvent { context, ..row(user, EventKind::Purchase, hour, item) });
        }
    }
    rows.sort_by_key(|row| row.at);
    rows
}

#[test]
fn context_affinities_rank_the_items_of_the_viewers_platform_and_region_higher() {
    let items: Vec<Item> = (0..60).map(|item| Item::titled(item_id(item), &format!("thing number {item}"))).collect();
    let shop = Shop::new(&items, &purchases_by_context());
    shop.train("plain").unwrap();
    let schema = declared(
        r#"[{"kind": "context_affinity", "name": "platform_affinity", "field": "platform"},
            {"kind": "context_affinity", "name": "region_affinity", "field": "region"}]"#,
    );
    let trained = shop.train_with("bundle", schema).unwrap();
    assert!(trained.features.iter().all(|feature| !feature.is_constant), "{:?}", trained.features);
    let options = EvaluateOptions { bootstrap_count: 200, ..EvaluateOptions::default() };
    let [plain, with_context] = ["plain", "bundle"].map(|bundle| {
        let of = evaluate(shop.directory.path(), &shop.out(bundle), &runtime(), &options, &mut |_| {}).unwrap();
        of.methods.into_iter().find(|method| method.name == "ranked").unwrap().ndcg_at_10
    });
    println!("NDCG@10 without context affinities: {plain}; with them: {with_context}");
    assert!(with_context.mean > 2.0 * plain.mean && with_context.low > plain.high, "{plain} {with_context}");
}

#[test]
fn a_feature_of_a_context_that_no_event_has_is_refused_by_name() {
    let shop = Shop::new(&titled(), &visits(20, &[EventKind::Purchase]));
    for feature in [
        r#"{"kind": "context_affinity", "name": "f", "field": "region"}"#,
        r#"{"kind": "context", "name": "f", "field": "region", "values": ["GB"]}"#,
    ] {
        let error = shop.train_with("bundle", declared(&format!("[{feature}]"))).unwrap_err().to_string();
        assert!(error.contains("`f`") && error.contains("no event has a region"), "{error}");
    }
}
