//! Bundles come and go under an engine that answers and writes.
#[path = "support/mod.rs"]
#[allow(dead_code)]
mod events;
#[path = "support/bundles.rs"]
#[allow(dead_code)]
mod shop;

use lodestone_catalog::Item;
use lodestone_core::ids::ItemId;
use lodestone_engine::{Engine, EngineError, PageTokenError};
use lodestone_events::{Attribution, EventKind};
use lodestone_pipeline::{
    RecommendKind,
    features::FEATURE_COUNT,
    ranking::{Device, Ranker, RankingError},
};
use lodestone_rollout::StoreError;
use lodestone_rollout::{BundleState, BundleStatus, HealthBounds, RolloutError};
use shop::{Shop, ids, item_id, recommend, runtime, search, search_by, soon};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn titled(id: &str, title: &str) -> Item {
    Item::titled(ItemId::parse(id).unwrap(), title)
}

async fn state(engine: &Engine, name: &str) -> Option<BundleStatus> {
    engine.rollout().bundles().await.unwrap().into_iter().find(|bundle| bundle.name == name)
}

/// Waits until a bundle is in a state. What loads has a core only where others leave one, and other tests may not.
async fn reach(engine: &Engine, name: &str, wanted: BundleState) -> BundleStatus {
    for _ in 0..2400 {
        match state(engine, name).await {
            Some(bundle) if bundle.state == wanted => return bundle,
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("{name} is {:?} and not {wanted:?}", state(engine, name).await);
}

/// Resident memory of this process, in bytes.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_answer_after_a_swap_knows_the_last_click_and_every_item() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    assert_eq!(&*engine.generation(), "a");
    let clicks = |user: &str, item: &str, n: i64| {
        events::event(&format!("{user}-{n}"), EventKind::Click, user, item, events::START + n)
    };
    // One whose clicks go on, and one who clicked once.
    engine.write_events(vec![clicks("fan", "i3", 1), clicks("guest", "i3", 1)]).await.unwrap();
    engine.upsert_items(vec![titled("before", "zebra stool"), titled("i5", "zebra mug")]).await.unwrap();
    engine.delete_items(vec![item_id(7)]).await.unwrap();
    let first = search(&engine, "mug", "", 3).await.unwrap();
    assert!(!first.next_page_token.is_empty());

    // Writes go on while the bundle is loaded, and each is in the very next answer.
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writing = tokio::spawn({
        let (engine, stop, written) = (engine.clone(), stop.clone(), written.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let n = written.fetch_add(1, Ordering::Relaxed);
                let title = format!("quagga stool {n}");
                engine.upsert_items(vec![titled(&format!("during-{n}"), &title)]).await.unwrap();
                let found = search(&engine, &title, "", 1).await.unwrap();
                assert_eq!(ids(&found), [format!("during-{n}")], "by {}", found.info.generation);
                let item = format!("i{}", 8 + n % 20);
                engine.write_events(vec![clicks("fan", &item, 10 + n as i64)]).await.unwrap();
                let seen = recommend(&engine, "fan", RecommendKind::RecentlyViewed).await.unwrap();
                assert_eq!(ids(&seen)[0], item, "by {}", seen.info.generation);
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

    // The slate of the generation before is still cut; of the one before that it is not.
    let second = search(&engine, "mug", &first.next_page_token, 3).await.unwrap();
    assert_eq!((second.results[0].rank, &*second.info.generation), (4, "a"));
    engine.rollout().activate("c".to_owned(), soon()).await.unwrap();
    reach(&engine, "a", BundleState::Available).await;
    let expired = search(&engine, "mug", &first.next_page_token, 3).await;
    assert!(matches!(expired, Err(EngineError::PageToken(PageTokenError::Expired))), "{expired:?}");

    // Back again, with what came meanwhile. Copies, as an object store's bundles have them, go with their generations.
    let copies = shop.data_path().join("bundles");
    ["a", "b", "c"].iter().for_each(|name| std::fs::create_dir_all(copies.join(name)).unwrap());
    engine.upsert_items(vec![titled("late", "okapi stool")]).await.unwrap();
    engine.rollout().rollback("a test".to_owned(), soon()).await.unwrap();
    assert_eq!(&*engine.generation(), "b");
    assert_eq!(ids(&search(&engine, "okapi", "", 1).await.unwrap()), ["late"]);
    assert_eq!(state(&engine, "c").await.unwrap().reason, "a test");
    let dropped = async || {
        while copies.join("a").exists() || copies.join("c").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout_at(soon().into(), dropped()).await.expect("copies are dropped");
    assert!(copies.join("b").exists());
    let none = engine.rollout().rollback("again".to_owned(), soon()).await;
    assert!(matches!(none, Err(RolloutError::NothingKept)), "{none:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_refused_and_the_store_is_watched() {
    let shop = Shop::new();
    let engine = shop.open(HealthBounds::default());
    let ranker = shop.store_path().join("b").join("ranker.onnx");
    let whole = std::fs::read(&ranker).unwrap();
    std::fs::write(&ranker, &whole[..whole.len() - 1]).unwrap();
    let refused = engine.rollout().activate("b".to_owned(), soon()).await.unwrap_err().to_string();
    assert!(refused.contains("ranker.onnx") && refused.contains("damaged"), "{refused}");
    assert_eq!(state(&engine, "b").await.unwrap().state, BundleState::Refused);
    assert_eq!(recommend(&engine, "p1", RecommendKind::ForYou).await.unwrap().info.generation.as_ref(), "a");

    let unknown = engine.rollout().activate("nowhere".to_owned(), soon()).await;
    assert!(matches!(unknown, Err(RolloutError::Unknown { .. })), "{unknown:?}");
    let current = engine.rollout().set_canary(Some(("a".to_owned(), 0.5)), soon()).await;
    assert!(matches!(current, Err(RolloutError::IsCurrent { .. })), "{current:?}");

    // What it answered where it was made is not what it answers here.
    let golden = std::fs::read(shop.store_path().join("a").join("golden.json")).unwrap();
    let mut golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let score = golden["requests"][0]["expected"][0][1].as_f64().unwrap();
    golden["requests"][0]["expected"][0][1] = (score + 0.1).into();
    shop.publish_changed("wrong", |bundle| bundle.golden = Some(golden.to_string().into_bytes()));
    let refused = reach(&engine, "wrong", BundleState::Refused).await;
    assert!(refused.reason.contains("golden request 1"), "{}", refused.reason);

    // What the store names is loaded without being asked; a good one after a refused one too.
    std::fs::write(&ranker, &whole).unwrap();
    shop.store().point_to("b", None).unwrap();
    reach(&engine, "b", BundleState::Current).await;
    reach(&engine, "a", BundleState::Kept).await;

    // A restart goes on with what was rolled back to, although the store still names the other.
    engine.rollout().rollback("worse".to_owned(), soon()).await.unwrap();
    drop(engine);
    let engine = shop.reopen(HealthBounds::default).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(&*engine.generation(), "a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_keeps_its_users_and_a_shadow_changes_no_answer() {
    let shop = Shop::new();
    let engine = shop.open(HealthBounds::default());
    let answers = async |engine: &Engine| {
        let mut all = BTreeMap::new();
        for n in 0..200 {
            let user = format!("someone-{n}");
            let answer = search_by(engine, &user, "red mug", "", 20).await.unwrap();
            let told = format!("{:?}", answer.results);
            all.insert(user, (answer.info.generation.to_string(), told));
        }
        all
    };
    let of = |answers: &BTreeMap<String, (String, String)>, name: &str| {
        answers.iter().filter(|(_, (by, _))| by == name).map(|(user, _)| user.clone()).collect::<Vec<_>>()
    };
    let before = answers(&engine).await;
    engine.rollout().set_shadow(Some(("c".to_owned(), 1.0)), soon()).await.unwrap();
    assert!(answers(&engine).await == before, "the shadow touches no answer");
    let seen = async || loop {
        let shadow = state(&engine, "c").await.unwrap();
        assert_eq!(shadow.state, BundleState::Shadow);
        match shadow.shadow.unwrap() {
            report if report.requests + report.dropped == 200 => return report,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let report = tokio::time::timeout_at(soon().into(), seen()).await.expect("it is asked 200 times");
    assert!(report.requests > 20 && report.rank_correlation > 0.9999 && report.overlap_at_10 > 0.9999, "{report:?}");
    assert!(report.own.p50 > Duration::ZERO && report.answering.p50 > Duration::ZERO);
    engine.rollout().set_shadow(None, soon()).await.unwrap();

    engine.rollout().set_canary(Some(("b".to_owned(), 0.2)), soon()).await.unwrap();
    let few = of(&answers(&engine).await, "b");
    assert!((15..=70).contains(&few.len()), "{} of 200 are a fifth", few.len());
    assert_eq!(of(&answers(&engine).await, "b"), few, "the same users");
    engine.rollout().set_canary(Some(("b".to_owned(), 0.6)), soon()).await.unwrap();
    let more = of(&answers(&engine).await, "b");
    assert!(few.iter().all(|user| more.contains(user)) && more.len() > few.len(), "who was in it stays in it");
    let found = engine.upsert_items(vec![titled("both", "gnu stool")]).await;
    assert!(found.is_ok());
    for user in [&few[0], &of(&answers(&engine).await, "a")[0]] {
        let found = search_by(&engine, user, "gnu", "", 1).await.unwrap();
        assert_eq!(ids(&found), ["both"], "both generations have it");
    }
    engine.rollout().set_canary(None, soon()).await.unwrap();
    assert_eq!(of(&answers(&engine).await, "a").len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_that_breaks_a_bound_is_taken_back() {
    let shop = Shop::new();
    // Its ranking model gives numbers that are none, which golden requests would have told.
    shop.publish_changed("bad", |bundle| bundle.ranker = broken(&bundle.ranker));
    let manifest = shop.store().manifest("bad").unwrap();
    assert!(!manifest.files.contains_key("golden.json"), "no requests could be made");
    shop.store().point_to("a", None).unwrap();
    let engine = shop.open(HealthBounds { requests_min: 40, p99_ratio_max: 1e9, ..HealthBounds::default() });
    let ask = async |count: usize| {
        for n in 0..count {
            search_by(&engine, &format!("p{n}"), "red mug", "", 5).await.unwrap();
        }
    };
    ask(50).await;
    engine.rollout().activate("bad".to_owned(), soon()).await.unwrap();
    ask(60).await;
    let back = reach(&engine, "bad", BundleState::RolledBack).await;
    assert!(back.reason.contains("100.0 % of") && back.reason.contains("degraded"), "{}", back.reason);
    assert_eq!(&*engine.generation(), "a");

    engine.rollout().set_canary(Some(("bad".to_owned(), 0.9)), soon()).await.unwrap();
    ask(60).await;
    reach(&engine, "bad", BundleState::RolledBack).await;
    assert!(engine.metrics_text().contains("lodestone_bundle_changes_total{outcome=\"rolled_back\"} 2"));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(&*engine.generation(), "a", "the watch does not bring it back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_from_which_shoppers_choose_less_is_taken_back_and_trials_outlive_a_restart() {
    let shop = Shop::new();
    let bounds = || HealthBounds { p99_ratio_max: 1e9, ..HealthBounds::default() };
    let engine = shop.open(bounds());
    engine.rollout().set_canary(Some(("b".to_owned(), 0.5)), soon()).await.unwrap();
    engine.rollout().set_shadow(Some(("c".to_owned(), 0.5)), soon()).await.unwrap();
    drop(engine);
    let engine = shop.reopen(bounds).await;
    assert_eq!(reach(&engine, "b", BundleState::Canary).await.share, 0.5);
    assert_eq!(reach(&engine, "c", BundleState::Shadow).await.share, 0.5);

    // Whoever the current bundle answers chooses from every second answer, whoever the canary answers from none.
    let mut by_canary = 0;
    for n in 0..400 {
        let answer = search_by(&engine, &format!("p{n}"), "red mug", "", 5).await.unwrap();
        if &*answer.info.generation == "b" {
            by_canary += 1;
        } else if n % 2 == 0 {
            let mut click =
                events::event(&format!("c{n}"), EventKind::Click, &format!("p{n}"), "i2", events::START + n);
            click.attribution = Attribution::Answer(answer.info.attribution_token.clone());
            engine.write_events(vec![click.clone()]).await.unwrap();
            // Sent twice, it counts once.
            engine.write_events(vec![click]).await.unwrap();
        }
        if n == 20 {
            let report = state(&engine, "b").await.unwrap().evaluation.unwrap();
            assert_eq!((report.canary_users + report.current_users, report.canary_users), (21, by_canary));
            assert!(report.current_choices > 0.0 && report.canary_choices == 0.0, "{report:?}");
        }
    }
    let back = reach(&engine, "b", BundleState::RolledBack).await;
    assert!(back.reason.contains("chose from 0.000 answers each"), "{}", back.reason);
    drop(engine);
    let engine = shop.reopen(bounds).await;
    assert_eq!(reach(&engine, "c", BundleState::Shadow).await.share, 0.5);
    assert_eq!(state(&engine, "b").await.unwrap().state, BundleState::Available, "it does not come back by itself");
}

/// A ranking model with a weight that is no number.
fn broken(model: &[u8]) -> Vec<u8> {
    for at in (0..model.len() - 4).rev() {
        let mut bytes = model.to_vec();
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        if let Ok(mut ranker) = Ranker::open(&runtime(), &bytes, Device::Cpu)
            && matches!(ranker.score(&[0.5; FEATURE_COUNT], 1), Err(RankingError::NotFinite { .. }))
        {
            return bytes;
        }
    }
    panic!("no byte of the model matters");
}

#[test]
fn a_bundle_never_changes_and_a_pointer_that_moved_is_seen() {
    let shop = Shop::new();
    let store = shop.store();
    assert_eq!(store.names().unwrap(), ["a", "b", "c", "d"]);
    let seen = store.current().unwrap();
    store.publish(&shop.store_path().join("b"), Some(seen.as_ref())).unwrap();
    let late = store.publish(&shop.store_path().join("c"), Some(seen.as_ref()));
    assert!(matches!(late, Err(StoreError::Moved { .. })), "{late:?}");
    let mut other = lodestone_pipeline::bundle::Bundle::open(&shop.store_path().join("a")).unwrap();
    other.manifest.metrics.insert("another".to_owned(), 1.0);
    let place = tempfile::tempdir().unwrap();
    other.write(&place.path().join("a")).unwrap();
    let taken = store.publish(&place.path().join("a"), None);
    assert!(matches!(taken, Err(StoreError::Taken { .. })), "{taken:?}");
    assert_eq!(store.current().unwrap().unwrap().name, "b");
}

/// SWAPS swaps of bundles that are really loaded, under requests and writes: no request fails, and memory does not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_fail_no_request_and_keep_no_memory() {
    let swaps: usize = std::env::var("SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds { p99_ratio_max: 1e9, ..HealthBounds::default() }));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let loads: Vec<_> = (0..2)
        .map(|caller| {
            let (engine, stop, answered) = (engine.clone(), stop.clone(), answered.clone());
            tokio::spawn(async move {
                let mut n = 0i64;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    recommend(&engine, &format!("p{}", n % 60), RecommendKind::ForYou).await.unwrap();
                    search(&engine, "red mug", "", 3).await.unwrap();
                    let user = format!("p{}", n % 60);
                    let item = format!("i{}", n % 40);
                    let click =
                        events::event(&format!("{caller}-{n}"), EventKind::Click, &user, &item, events::START + n);
                    engine.write_events(vec![click]).await.unwrap();
                    let item = titled(&format!("new-{}", n % 50), &format!("okapi stool {n}"));
                    engine.upsert_items(vec![item]).await.unwrap();
                    answered.fetch_add(4, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        })
        .collect();
    let (begun, mut sizes) = (std::time::Instant::now(), Vec::new());
    for swap in 0..swaps {
        let name = ["b", "c", "d", "a"][swap % 4];
        let wait = std::time::Instant::now() + Duration::from_secs(60);
        engine.rollout().activate(name.to_owned(), wait).await.unwrap();
        assert_eq!(&*engine.generation(), name);
        if (swap + 1) % swaps.div_ceil(10) == 0 {
            sizes.push(memory() as f64 / 1e6);
        }
    }
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    println!(
        "{swaps} swaps in {:.0} s under {} answered calls, none failed; resident memory in MB after each tenth: {sizes:.0?}",
        begun.elapsed().as_secs_f64(),
        answered.load(Ordering::Relaxed),
    );
    assert!(answered.load(Ordering::Relaxed) > swaps as u64, "there was load");
    // The first swaps fill what the allocator keeps, and other tests of this process have memory too.
    let (half, end) = (mean(&sizes[sizes.len() / 2 - 2..][..3]), mean(&sizes[sizes.len() - 3..]));
    assert!(swaps < 100 || end < 1.05 * half, "memory grew from {half:.0} to {end:.0} MB in the second half");
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
