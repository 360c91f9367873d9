//! Bundles are published, activated, tried as canary and shadow, refused and rolled back under an engine that answers
//! and writes.
use crate::support::{
    bundles::{Shop, WATCH, ids, item_id, recommend, runtime, search, search_by, soon},
    events::{START, event},
    items::{upsert, upsert_items},
    number_setting, resident_bytes,
    wait::wait_until,
};
use lodestone_catalog::{Item, WriteTime};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_engine::{Engine, EngineError, PageTokenError};
use lodestone_events::{Attribution, EventKind};
use lodestone_index::Languages;
use lodestone_pipeline::{
    RecommendKind,
    bundle::Bundle,
    features::FEATURES,
    ranking::{Device, Ranker, RankingError},
};
use lodestone_rollout::{
    BundleState, BundleStatus, Generations, HealthBounds, LoadThreads, Loader, RolloutError, Routes, SlateCacheConfig,
    StoreError, start_shadow,
};
use lodestone_rules::Synonyms;
use lodestone_training::EncoderSettings;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio::time::MissedTickBehavior;

/// The limit of waits for the rollout. It is long because a bundle is loaded only on cores that are idle, and other
/// tests may leave none.
const ROLLOUT_TIME_MAX: Duration = Duration::from_secs(120);

fn titled(id: &str, title: &str) -> Item {
    Item::titled(ItemId::parse(id).unwrap(), title)
}

async fn status(engine: &Engine, name: &str) -> Option<BundleStatus> {
    engine.rollout().bundles().await.unwrap().into_iter().find(|bundle| bundle.name == name)
}

/// Waits until a bundle is in a state, and returns its status.
async fn reach(engine: &Engine, name: &str, wanted: BundleState) -> BundleStatus {
    let mut reached = None;
    wait_until(&format!("{name} is {wanted:?}"), ROLLOUT_TIME_MAX, async || {
        reached = status(engine, name).await.filter(|bundle| bundle.state == wanted);
        reached.is_some()
    })
    .await;
    reached.expect("set when the wait ended")
}

/// Waits until the rollout thread has read the store's pointer, after this call, and has acted on it.
///
/// The thread executes one order at a time. After each it reads the pointer if the last reading is older than
/// [`WATCH`]. So when `WATCH` has passed and an order is executed, a reading follows it or has happened since the call,
/// and it is over before the reply to the next order.
async fn wait_for_a_store_check(engine: &Engine) {
    let called = Instant::now();
    wait_until("the watch interval has passed", ROLLOUT_TIME_MAX, async || called.elapsed() > WATCH).await;
    for _ in 0..2 {
        engine.rollout().set_shadow(None, soon()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_answer_after_a_swap_reflects_the_last_click_and_every_item_change() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    assert_eq!(&*engine.generation(), "a");
    let clicks =
        |user: &str, item: &str, n: i64| event(&format!("{user}-{n}"), EventKind::Click, user, item, START + n);
    // `fan` clicks again during the swap, `guest` does not.
    engine.write_events(vec![clicks("fan", "i3", 1), clicks("guest", "i3", 1)]).await.unwrap();
    upsert_items(&engine, vec![titled("before", "zebra stool"), titled("i5", "zebra mug")]).await.unwrap();
    engine.delete_items(vec![item_id(7)], WriteTime::Received(UnixMillis::now())).await.unwrap();
    let first = search(&engine, "mug", "", 3).await.unwrap();
    assert!(!first.next_page_token.is_empty());

    // Writes go on while the bundle is loaded, and the next answer reflects each.
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writing = tokio::spawn({
        let (engine, stop, written) = (engine.clone(), stop.clone(), written.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let n = written.fetch_add(1, Ordering::Relaxed);
                let title = format!("quagga stool {n}");
                upsert_items(&engine, vec![titled(&format!("during-{n}"), &title)]).await.unwrap();
                let found = search(&engine, &title, "", 1).await.unwrap();
                assert_eq!(ids(&found), [format!("during-{n}")], "answered by {}", found.info.generation);
                let item = format!("i{}", 8 + n % 20);
                engine.write_events(vec![clicks("fan", &item, 10 + n as i64)]).await.unwrap();
                let seen = recommend(&engine, "fan", RecommendKind::RecentlyViewed).await.unwrap();
                assert_eq!(ids(&seen)[0], item, "answered by {}", seen.info.generation);
            }
        }
    });
    engine.rollout().activate("b".to_owned(), soon()).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();

    let found = search(&engine, "zebra", "", 10).await.unwrap();
    assert_eq!(&*found.info.generation, "b");
    let mut zebras: Vec<String> = ids(&found).into_iter().take(2).collect();
    zebras.sort();
    assert_eq!(zebras, ["before", "i5"]);
    assert_eq!(engine.get_item(&item_id(5)).unwrap().title, "zebra mug");
    assert!(engine.get_item(&item_id(7)).is_none());
    for n in 0..written.load(Ordering::Relaxed) {
        assert!(engine.get_item(&ItemId::parse(&format!("during-{n}")).unwrap()).is_some(), "during-{n}");
    }
    let seen = recommend(&engine, "guest", RecommendKind::RecentlyViewed).await.unwrap();
    assert_eq!(ids(&seen), ["i3"]);

    // Pages of the previous generation's slate are still returned; those of the generation before it are not.
    let second = search(&engine, "mug", &first.next_page_token, 3).await.unwrap();
    assert_eq!((second.results[0].rank, &*second.info.generation), (4, "a"));
    engine.rollout().activate("c".to_owned(), soon()).await.unwrap();
    reach(&engine, "a", BundleState::Available).await;
    let expired = search(&engine, "mug", &first.next_page_token, 3).await;
    assert!(matches!(expired, Err(EngineError::PageToken(PageTokenError::Expired))), "{expired:?}");

    // A rollback keeps the changes that were written since. Local copies, as bundles of an object store have, are
    // removed with their generations.
    let copies = shop.data_path().join("bundles");
    ["a", "b", "c"].iter().for_each(|name| std::fs::create_dir_all(copies.join(name)).unwrap());
    upsert_items(&engine, vec![titled("late", "okapi stool")]).await.unwrap();
    engine.rollout().rollback("a test".to_owned(), soon()).await.unwrap();
    assert_eq!(&*engine.generation(), "b");
    assert_eq!(ids(&search(&engine, "okapi", "", 1).await.unwrap()), ["late"]);
    assert_eq!(status(&engine, "c").await.unwrap().reason, "a test");
    wait_until("the copies are removed", ROLLOUT_TIME_MAX, async || {
        !copies.join("a").exists() && !copies.join("c").exists()
    })
    .await;
    assert!(copies.join("b").exists());
    let none = engine.rollout().rollback("again".to_owned(), soon()).await;
    assert!(matches!(none, Err(RolloutError::NoEarlierBundle)), "{none:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_with_user_encoders_of_different_sizes_answer_and_replace_each_other() {
    let shop = Shop::new();
    shop.publish_trained("small", EncoderSettings { width: 32, blocks: 1, events: 16 });
    shop.store().point_to("a", None).unwrap();
    let engine = shop.open(HealthBounds::default());
    upsert_items(&engine, vec![titled("before", "zebra stool")]).await.unwrap();
    engine.rollout().set_canary(Some(("small".to_owned(), 0.5)), soon()).await.unwrap();
    upsert_items(&engine, vec![titled("both", "gnu stool")]).await.unwrap();

    // Each user has a history with items of the bundles and with items that were written through the API.
    let answered = async || {
        let mut answered = BTreeSet::new();
        for n in 0..20 {
            let user = format!("user-{n}");
            let viewed = ["i3", "before", "both"];
            let clicks = viewed.map(|item| event(&format!("{user}-{item}"), EventKind::Click, &user, item, START + n));
            engine.write_events(clicks.to_vec()).await.unwrap();
            for (query, item) in [("zebra", "before"), ("gnu", "both")] {
                assert_eq!(ids(&search_by(&engine, &user, query, "", 1).await.unwrap()), [item]);
            }
            let answer = recommend(&engine, &user, RecommendKind::ForYou).await.unwrap();
            let info = &answer.info;
            assert!(info.user_known && info.degradations.is_empty() && !answer.results.is_empty(), "{info:?}");
            answered.insert(info.generation.to_string());
        }
        answered.into_iter().collect::<Vec<String>>()
    };
    assert_eq!(answered().await, ["a", "small"]);
    engine.rollout().set_canary(None, soon()).await.unwrap();
    engine.rollout().activate("small".to_owned(), soon()).await.unwrap();
    assert_eq!(answered().await, ["small"]);
    engine.rollout().rollback("a test".to_owned(), soon()).await.unwrap();
    assert_eq!(answered().await, ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_bundles_are_refused_and_the_store_is_watched() {
    let shop = Shop::new();
    let engine = shop.open(HealthBounds::default());
    let ranker = shop.store_path().join("b").join("ranker.onnx");
    let whole = std::fs::read(&ranker).unwrap();
    std::fs::write(&ranker, &whole[..whole.len() - 1]).unwrap();
    let refused = engine.rollout().activate("b".to_owned(), soon()).await.unwrap_err().to_string();
    assert!(refused.contains("ranker.onnx") && refused.contains("damaged"), "{refused}");
    assert_eq!(status(&engine, "b").await.unwrap().state, BundleState::Refused);
    assert_eq!(recommend(&engine, "p1", RecommendKind::ForYou).await.unwrap().info.generation.as_ref(), "a");

    let unknown = engine.rollout().activate("nowhere".to_owned(), soon()).await;
    assert!(matches!(unknown, Err(RolloutError::Unknown { .. })), "{unknown:?}");
    let current = engine.rollout().set_canary(Some(("a".to_owned(), 0.5)), soon()).await;
    assert!(matches!(current, Err(RolloutError::IsCurrent { .. })), "{current:?}");

    // The recorded answer of a golden request differs from the answer of this process.
    let golden = std::fs::read(shop.store_path().join("a").join("golden.json")).unwrap();
    let mut golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let score = golden["requests"][0]["expected"][0][1].as_f64().unwrap();
    golden["requests"][0]["expected"][0][1] = (score + 0.1).into();
    shop.publish_changed("wrong", |bundle| bundle.golden = Some(golden.to_string().into_bytes()));
    let refused = reach(&engine, "wrong", BundleState::Refused).await;
    assert!(refused.reason.contains("golden request 1"), "{}", refused.reason);

    // The bundle that the store names is loaded without a call, also after a refused one.
    std::fs::write(&ranker, &whole).unwrap();
    shop.store().point_to("b", None).unwrap();
    reach(&engine, "b", BundleState::Current).await;
    reach(&engine, "a", BundleState::Kept).await;

    // A restart goes on with the bundle of the rollback, although the store still names the other one.
    engine.rollout().rollback("worse".to_owned(), soon()).await.unwrap();
    drop(engine);
    let engine = shop.reopen(HealthBounds::default()).await;
    wait_for_a_store_check(&engine).await;
    assert_eq!(&*engine.generation(), "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_keeps_its_users_and_a_shadow_changes_no_answer() {
    let shop = Shop::new();
    let engine = shop.open(HealthBounds::default());
    let answers = async |engine: &Engine| {
        let mut all = BTreeMap::new();
        for n in 0..200 {
            let user = format!("user-{n}");
            let answer = search_by(engine, &user, "red mug", "", 20).await.unwrap();
            let results = format!("{:?}", answer.results);
            all.insert(user, (answer.info.generation.to_string(), results));
        }
        all
    };
    let of = |answers: &BTreeMap<String, (String, String)>, name: &str| {
        answers.iter().filter(|(_, (by, _))| by == name).map(|(user, _)| user.clone()).collect::<Vec<_>>()
    };
    let before = answers(&engine).await;
    engine.rollout().set_shadow(Some(("c".to_owned(), 1.0)), soon()).await.unwrap();
    assert!(answers(&engine).await == before, "the shadow changes no answer");
    let mut report = None;
    wait_until("the shadow has received 200 requests", ROLLOUT_TIME_MAX, async || {
        let shadow = status(&engine, "c").await.unwrap();
        assert_eq!(shadow.state, BundleState::Shadow);
        report = shadow.shadow.filter(|report| report.requests + report.dropped == 200);
        report.is_some()
    })
    .await;
    let report = report.expect("set when the wait ended");
    assert!(report.requests > 20 && report.rank_correlation > 0.9999 && report.overlap_at_10 > 0.9999, "{report:?}");
    assert!(report.own.p50 > Duration::ZERO && report.answering.p50 > Duration::ZERO);
    engine.rollout().set_shadow(None, soon()).await.unwrap();

    engine.rollout().set_canary(Some(("b".to_owned(), 0.2)), soon()).await.unwrap();
    let few = of(&answers(&engine).await, "b");
    assert!((15..=70).contains(&few.len()), "{} of 200 users are about a fifth", few.len());
    assert_eq!(of(&answers(&engine).await, "b"), few, "the same users");
    engine.rollout().set_canary(Some(("b".to_owned(), 0.6)), soon()).await.unwrap();
    let more = of(&answers(&engine).await, "b");
    assert!(
        few.iter().all(|user| more.contains(user)) && more.len() > few.len(),
        "a larger share keeps the users of the smaller one"
    );
    upsert_items(&engine, vec![titled("both", "gnu stool")]).await.unwrap();
    for user in [&few[0], &of(&answers(&engine).await, "a")[0]] {
        let found = search_by(&engine, user, "gnu", "", 1).await.unwrap();
        assert_eq!(ids(&found), ["both"], "both generations have it");
    }
    engine.rollout().set_canary(None, soon()).await.unwrap();
    assert_eq!(of(&answers(&engine).await, "a").len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_breaks_a_health_bound_is_rolled_back() {
    let shop = Shop::new();
    // Its ranking model returns NaN. It has no golden requests, because they would have shown that.
    shop.publish_changed("bad", |bundle| bundle.ranker = with_nan(&bundle.ranker));
    let manifest = shop.store().manifest("bad").unwrap();
    assert!(!manifest.files.contains_key("golden.json"), "no golden request could be answered");
    shop.store().point_to("a", None).unwrap();
    let engine = shop.open(HealthBounds { requests_min: 40, p99_ratio_max: 1e9, ..HealthBounds::default() });
    let search_as_users = async |count: usize| {
        for n in 0..count {
            search_by(&engine, &format!("p{n}"), "red mug", "", 5).await.unwrap();
        }
    };
    search_as_users(50).await;
    engine.rollout().activate("bad".to_owned(), soon()).await.unwrap();
    search_as_users(60).await;
    let back = reach(&engine, "bad", BundleState::RolledBack).await;
    assert!(back.reason.contains("100.0 % of") && back.reason.contains("degraded"), "{}", back.reason);
    assert_eq!(&*engine.generation(), "a");

    engine.rollout().set_canary(Some(("bad".to_owned(), 0.9)), soon()).await.unwrap();
    search_as_users(60).await;
    reach(&engine, "bad", BundleState::RolledBack).await;
    assert!(engine.metrics_text().contains("lodestone_bundle_changes_total{outcome=\"rolled_back\"} 2"));
    wait_for_a_store_check(&engine).await;
    assert_eq!(&*engine.generation(), "a", "the watch does not activate it again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_with_fewer_conversions_is_rolled_back_and_canaries_and_shadows_survive_a_restart() {
    let shop = Shop::new();
    let bounds = HealthBounds { p99_ratio_max: 1e9, ..HealthBounds::default() };
    let engine = shop.open(bounds.clone());
    engine.rollout().set_canary(Some(("b".to_owned(), 0.5)), soon()).await.unwrap();
    engine.rollout().set_shadow(Some(("c".to_owned(), 0.5)), soon()).await.unwrap();
    drop(engine);
    let engine = shop.reopen(bounds.clone()).await;
    assert_eq!(reach(&engine, "b", BundleState::Canary).await.share, 0.5);
    assert_eq!(reach(&engine, "c", BundleState::Shadow).await.share, 0.5);

    // Users of the current bundle click in every second answer, users of the canary in none.
    let mut by_canary = 0;
    for n in 0..400 {
        let answer = search_by(&engine, &format!("p{n}"), "red mug", "", 5).await.unwrap();
        if &*answer.info.generation == "b" {
            by_canary += 1;
        } else if n % 2 == 0 {
            let mut click = event(&format!("c{n}"), EventKind::Click, &format!("p{n}"), "i2", START + n);
            click.attribution = Attribution::Answer(answer.info.attribution_token.clone());
            engine.write_events(vec![click.clone()]).await.unwrap();
            // A duplicate counts once.
            engine.write_events(vec![click]).await.unwrap();
        }
        if n == 20 {
            let report = status(&engine, "b").await.unwrap().evaluation.unwrap();
            assert_eq!((report.canary_users + report.current_users, report.canary_users), (21, by_canary));
            assert!(report.current_conversions > 0.0 && report.canary_conversions == 0.0, "{report:?}");
        }
    }
    let back = reach(&engine, "b", BundleState::RolledBack).await;
    assert!(back.reason.contains("converted on 0.000 answers each"), "{}", back.reason);
    drop(engine);
    let engine = shop.reopen(bounds).await;
    assert_eq!(reach(&engine, "c", BundleState::Shadow).await.share, 0.5);
    assert_eq!(
        status(&engine, "b").await.unwrap().state,
        BundleState::Available,
        "a restart does not make it the canary again"
    );
}

/// Returns the ranking model with one weight replaced by NaN.
fn with_nan(model: &[u8]) -> Vec<u8> {
    for at in (0..model.len() - 4).rev() {
        let mut bytes = model.to_vec();
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        if let Ok(mut ranker) = Ranker::open(&runtime(), &bytes, FEATURES, Device::Cpu)
            && matches!(ranker.score(&[0.5; FEATURES.len()], 1), Err(RankingError::NotFinite { .. }))
        {
            return bytes;
        }
    }
    panic!("no weight of the model affects its output");
}

#[test]
fn a_published_bundle_is_immutable_and_a_moved_pointer_is_detected() {
    let shop = Shop::new();
    let store = shop.store();
    assert_eq!(store.names().unwrap(), ["a", "b", "c", "d"]);
    let seen = store.current().unwrap();
    store.publish(&shop.store_path().join("b"), Some(seen.as_ref())).unwrap();
    let late = store.publish(&shop.store_path().join("c"), Some(seen.as_ref()));
    assert!(matches!(late, Err(StoreError::Moved { .. })), "{late:?}");
    let mut other = Bundle::open(&shop.store_path().join("a")).unwrap();
    other.manifest.metrics.insert("another".to_owned(), 1.0);
    let directory = tempfile::tempdir().unwrap();
    other.write(&directory.path().join("a")).unwrap();
    let taken = store.publish(&directory.path().join("a"), None);
    assert!(matches!(taken, Err(StoreError::Taken { .. })), "{taken:?}");
    assert_eq!(store.current().unwrap().unwrap().name, "b");
}

/// `SWAPS` (default 20) swaps, each with a load of the bundle, under requests and writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_fail_no_request_and_leak_no_memory() {
    let swaps = number_setting("SWAPS", 20);
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds { p99_ratio_max: 1e9, ..HealthBounds::default() }));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let loads: Vec<_> = (0..2)
        .map(|caller| {
            let (engine, stop, answered) = (engine.clone(), stop.clone(), answered.clone());
            tokio::spawn(async move {
                let mut n = 0i64;
                // At most 50 rounds per second, so that loads of bundles find idle cores.
                let mut pace = tokio::time::interval(Duration::from_millis(20));
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    recommend(&engine, &format!("p{}", n % 60), RecommendKind::ForYou).await.unwrap();
                    search(&engine, "red mug", "", 3).await.unwrap();
                    let user = format!("p{}", n % 60);
                    let item = format!("i{}", n % 40);
                    let click = event(&format!("{caller}-{n}"), EventKind::Click, &user, &item, START + n);
                    engine.write_events(vec![click]).await.unwrap();
                    let item = titled(&format!("new-{}", n % 50), &format!("okapi stool {n}"));
                    upsert_items(&engine, vec![item]).await.unwrap();
                    answered.fetch_add(4, Ordering::Relaxed);
                    pace.tick().await;
                }
            })
        })
        .collect();
    let (started, mut sizes) = (Instant::now(), Vec::new());
    for swap in 0..swaps {
        let name = ["b", "c", "d", "a"][swap % 4];
        let deadline = Instant::now() + Duration::from_secs(60);
        engine.rollout().activate(name.to_owned(), deadline).await.unwrap();
        assert_eq!(&*engine.generation(), name);
        if (swap + 1) % swaps.div_ceil(10) == 0 {
            sizes.push(resident_bytes() as f64 / 1e6);
        }
    }
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    println!(
        "{swaps} swaps in {:.0} s under {} answered calls, none failed; resident memory in MB after each tenth: {sizes:.0?}",
        started.elapsed().as_secs_f64(),
        answered.load(Ordering::Relaxed),
    );
    assert!(answered.load(Ordering::Relaxed) > swaps as u64, "there was load");
    // The second half is compared, because the allocator keeps memory of the first swaps. Fewer than 100 swaps do not
    // count, because other tests of this process use memory at the same time.
    let (half, end) = (mean(&sizes[sizes.len() / 2 - 2..][..3]), mean(&sizes[sizes.len() - 3..]));
    assert!(swaps < 100 || end < 1.05 * half, "memory grew from {half:.0} to {end:.0} MB in the second half");
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// A thread of low priority that stalls with the models of background work, as the shadow's may on a busy machine,
/// delays neither writes nor swaps.
#[test]
fn a_stalled_shadow_delays_neither_writes_nor_swaps() {
    let shop = Shop::new();
    let loader = Loader {
        runtime: runtime(),
        device: Device::Cpu,
        worker_count: 1,
        synonyms: Synonyms::default(),
        languages: Languages::default(),
        state: Arc::default(),
        window: Duration::from_secs(60),
        slates: SlateCacheConfig::default(),
        loads: AtomicU64::new(0),
    };
    let threads = LoadThreads::exclusive().unwrap();
    let load = |name: &str| loader.load(&shop.store_path().join(name), &threads).unwrap();
    let generations = Arc::new(Generations::new(load("a"), start_shadow().unwrap()));
    let (current, next) = (generations.current(), Arc::new(load("c")));
    let stalled = [current.spare_models(), next.spare_models()];
    let (done, is_done) = mpsc::channel();
    let writing = std::thread::Builder::new().spawn({
        let (generations, next) = (generations.clone(), next.clone());
        move || {
            // The write has no vectors of this generation, so they are computed when it is applied.
            let item = upsert(titled("new", "zebra stool"));
            let applied = generations.apply(vec![(1, item, None)]);
            assert!(applied.failures.is_empty() && applied.stop.is_none());
            let routes = Routes { current: next, ..Routes::clone(&generations.routes()) };
            generations.reroute(routes).unwrap();
            done.send(()).unwrap();
        }
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(60)), Ok(()), "a write waits for the stalled thread");
    drop(stalled);
    writing.unwrap().join().unwrap();
    let generation = &generations.current().generation;
    assert_eq!(generation.name(), "c");
    assert!(generation.catalog.load().row_of(&generation.state.keys, &ItemId::parse("new").unwrap()).is_some());
}
