//! Lists for users of whom the server knows little: popular items, items that sell more than usual, and the rest of the
//! catalogue.
use crate::support::{
    bundles::{ITEMS, Shop, ids, item_id, recommend, runtime, soon, viewer},
    events::event,
    items::upsert_items,
    wait::wait_until,
};
use lodestone_catalog::{Filter, Item};
use lodestone_core::{
    ids::{ItemId, ItemKey, UserId},
    units::{PriceMicros, UnixMillis},
};
use lodestone_dataset::{DatasetEvent, write_events, write_items};
use lodestone_engine::{Engine, EngineConfig, EngineError, OpenOptions, open};
use lodestone_events::{Counts, Event, EventKind};
use lodestone_index::Languages;
use lodestone_pipeline::{
    Answer, DegradationCode, Options, Page, ReasonCode, RecommendKind, RecommendRequest, Viewer, bundle::Bundle,
    ranking::Device,
};
use lodestone_rollout::{BundleSource, HealthBounds, RolloutConfig};
use lodestone_state::StateLimits;
use lodestone_training::{TrainOptions, train};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The limit of the wait until popularity is published.
const PUBLISH_TIME_MAX: Duration = Duration::from_secs(60);

fn request(viewer: Viewer, kind: RecommendKind, filter: &str) -> RecommendRequest {
    RecommendRequest {
        viewer,
        kind,
        page: Page { size: 100, token: String::new(), number: 1, fingerprint: 0 },
        filter: (!filter.is_empty()).then(|| Filter::parse(filter).unwrap()),
        anchors: Vec::new(),
        facets: Vec::new(),
        options: Options::default(),
        message: Vec::new(),
    }
}

async fn filtered(engine: &Engine, kind: RecommendKind, filter: &str) -> Answer {
    engine.recommend(request(viewer("stranger"), kind, filter), soon()).await.unwrap()
}

/// Events of now, because trends compare the last days with the last months.
fn events(kind: EventKind, user: &str, item: &str, count: usize) -> Vec<Event> {
    let at = UnixMillis::now().0;
    (0..count).map(|n| event(&format!("{user}-{item}-{}-{n}", kind.name()), kind, user, item, at)).collect()
}

fn has_reason(answer: &Answer, item: &str, code: ReasonCode) -> bool {
    let result = answer.results.iter().find(|result| result.id.as_str() == item);
    result.is_some_and(|result| result.reasons.iter().any(|reason| reason.code == code))
}

/// The items of a bundle's training, the most popular first.
fn trained_order(shop: &Shop, name: &str) -> Vec<String> {
    let bundle = Bundle::open(&shop.store_path().join(name)).unwrap();
    let mut counts: Vec<(ItemKey, Counts)> = bundle.popularity.iter().collect();
    counts.sort_by(|a, b| a.1.rank().cmp_popular_first(&b.1.rank()));
    counts.into_iter().map(|(key, _)| bundle.items[key.0 as usize].id.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_events_answers_from_the_bundle_and_the_catalogue() {
    let shop = Shop::new();
    let engine = shop.open(HealthBounds::default());
    for name in ["a", "b"] {
        let first = trained_order(&shop, name).remove(0);
        // Rows of `b` are not the keys of the state.
        engine.rollout().activate(name.to_owned(), soon()).await.unwrap();
        let trending = filtered(&engine, RecommendKind::Trending, "").await;
        assert_eq!(ids(&trending)[0], first, "the most popular item of the training leads");
        assert!(has_reason(&trending, &first, ReasonCode::Popular));
        assert!(!trending.results.iter().any(|result| has_reason(&trending, result.id.as_str(), ReasonCode::Trending)));
    }
    let for_you = filtered(&engine, RecommendKind::ForYou, "").await;
    assert_eq!(for_you.total_size, ITEMS, "every item is eligible");
    assert!(for_you.info.degradations.is_empty());

    // Items without any event; only one of them passes the filter.
    let cheap =
        Item { price: PriceMicros::new(100_000), ..Item::titled(ItemId::parse("cheap").unwrap(), "quagga stool") };
    let dear =
        Item { price: PriceMicros::new(900_000), ..Item::titled(ItemId::parse("dear").unwrap(), "quagga table") };
    upsert_items(&engine, vec![cheap, dear]).await.unwrap();
    for kind in [RecommendKind::ForYou, RecommendKind::Trending] {
        assert_eq!(ids(&filtered(&engine, kind, "price < 0.2").await), ["cheap"], "{kind:?}");
        assert_eq!(filtered(&engine, kind, "").await.total_size, ITEMS + 2, "{kind:?}");
        assert!(filtered(&engine, kind, "price < 0.05").await.results.is_empty(), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_cannot_make_an_item_popular_or_trending() {
    let shop = Shop::new();
    let engine = shop.open(HealthBounds::default());
    for (kind, item, count) in [(EventKind::View, "i3", 100), (EventKind::Purchase, "i4", 50)] {
        engine.write_events(events(kind, "bot", item, count)).await.unwrap();
    }
    for user in ["p", "q", "r"] {
        engine.write_events(events(EventKind::Purchase, user, "i5", 1)).await.unwrap();
    }
    let mut trending = Answer::default();
    wait_until("an item that three users bought trends", PUBLISH_TIME_MAX, async || {
        trending = recommend(&engine, "stranger", RecommendKind::Trending).await.unwrap();
        has_reason(&trending, "i5", ReasonCode::Trending)
    })
    .await;
    assert_eq!(ids(&trending)[0], "i5");
    assert!(!has_reason(&trending, "i3", ReasonCode::Trending), "views are not sales");
    assert!(!has_reason(&trending, "i4", ReasonCode::Trending), "one buyer is no trend");
    let rest = |ids: Vec<String>| ids.into_iter().filter(|id| id != "i5").collect::<Vec<_>>();
    assert_eq!(rest(ids(&trending)), rest(trained_order(&shop, "a")), "the events of one user move no item");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_visit_before_signing_in_counts_for_that_answer() {
    let shop = Shop::new();
    let engine = shop.open(HealthBounds::default());
    let visitor = UserId::visitor("browser").unwrap();
    let day_before_yesterday = UnixMillis(UnixMillis::now().0 - 2 * UnixMillis::DAY);
    let mut seen = events(EventKind::View, "x", "i3", 1);
    seen.extend(events(EventKind::View, "x", "i4", 1));
    seen.iter_mut().for_each(|event| event.user = visitor.clone());
    seen[1].at = day_before_yesterday;
    seen.extend(events(EventKind::View, "member", "i9", 1));
    engine.write_events(seen).await.unwrap();

    let both = Viewer { visitor: Some(visitor), ..viewer("member") };
    let answer = engine.recommend(request(both, RecommendKind::RecentlyViewed, ""), soon()).await.unwrap();
    let mut found = ids(&answer);
    found.sort();
    assert_eq!(found, ["i3", "i9"], "the visitor's view of the day before yesterday is too old");
    assert!(answer.info.visitor_history_used && answer.info.user_known);
    // The histories stay separate.
    let alone = recommend(&engine, "member", RecommendKind::RecentlyViewed).await.unwrap();
    assert_eq!(ids(&alone), ["i9"]);
    assert!(!alone.info.visitor_history_used);
    let other = Viewer { visitor: Some(UserId::visitor("another").unwrap()), ..viewer("member") };
    let other = engine.recommend(request(other, RecommendKind::RecentlyViewed, ""), soon()).await.unwrap();
    assert!(!other.info.visitor_history_used);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_a_log_position_are_bounded() {
    let shop = Shop::new();
    let engine = Arc::new(shop.open(HealthBounds::default()));
    let waiting = |deadline: Duration| {
        let options = Options { log_position: u64::MAX, ..Options::default() };
        let request = RecommendRequest { options, ..request(viewer("p"), RecommendKind::ForYou, "") };
        let engine = engine.clone();
        async move { engine.recommend(request, Instant::now() + deadline).await }
    };
    // One more than the queue has places, see `Shop::open`.
    let mut tasks = tokio::task::JoinSet::new();
    (0..1001).for_each(|_| drop(tasks.spawn(waiting(Duration::from_secs(600)))));
    let refused = tasks.join_next().await.unwrap().unwrap();
    assert!(matches!(refused, Err(EngineError::Overloaded { .. })));
    // Requests that need not wait are answered.
    assert_eq!(recommend(&engine, "p", RecommendKind::ForYou).await.unwrap().total_size, ITEMS);
    tasks.shutdown().await;
    let answer = waiting(Duration::from_secs(20)).await.unwrap();
    assert!(!answer.info.degradations.is_empty(), "it waited, and the state is older than the position");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shop_of_guests_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let (work, bundle) = (directory.path().join("work"), directory.path().join("bundle"));
    std::fs::create_dir(&work).unwrap();
    let items: Vec<Item> = (0..ITEMS).map(|item| Item::titled(item_id(item), &format!("mug number {item}"))).collect();
    write_items(&work.join("items.parquet"), &items).unwrap();
    // Few orders, so that there is no ranking model either.
    let row = |order: usize, item: usize| {
        let at = UnixMillis(1_700_000_000_000 + order as i64 * 3_600_000);
        DatasetEvent::of_item(format!("order-{order}"), EventKind::Purchase, None, at, item_id(item))
    };
    let rows: Vec<DatasetEvent> =
        (0..24).flat_map(|order| [row(order, order % 4), row(order, order % 4 + 10)]).collect();
    write_events(&work.join("events.parquet"), &rows).unwrap();
    let report = train(&work, &bundle, &runtime(), &TrainOptions::default(), &mut |_| {}).unwrap();
    assert!(report.ranker_loss.is_none());
    let engine = open(OpenOptions {
        bundle: BundleSource::Directory(bundle),
        data: &directory.path().join("data"),
        library: None,
        device: Device::Cpu,
        synonyms: None,
        languages: Languages::default(),
        completion_users_min: 5,
        limits: StateLimits::default(),
        workers: 1,
        queue_requests_max: 100,
        history_ends_now: false,
        dedupe_ids_max: 1000,
        config: EngineConfig::default(),
        rollout: RolloutConfig { watch: Duration::from_secs(60), kept_max: 1, bounds: HealthBounds::default() },
    })
    .unwrap();
    let for_you = filtered(&engine, RecommendKind::ForYou, "").await;
    assert_eq!(for_you.total_size, ITEMS);
    assert!(for_you.results[..4].iter().all(|result| has_reason(&for_you, result.id.as_str(), ReasonCode::Popular)));
    let anchored = RecommendRequest {
        anchors: vec![item_id(1)],
        ..request(viewer("stranger"), RecommendKind::BoughtTogether, "")
    };
    let together = engine.recommend(anchored.clone(), soon()).await.unwrap();
    assert_eq!(ids(&together), ["i11"]);
    let evidence = |answer: &Answer| answer.results[0].reasons[0].evidence.clone();
    assert_eq!((evidence(&together), together.info.degradations.len()), (vec![item_id(1)], 0));
    // With unknown anchors, the list starts from the user's recent items.
    engine.write_events(events(EventKind::View, "guest", "i2", 1)).await.unwrap();
    let unknown = RecommendRequest { viewer: viewer("guest"), anchors: vec![item_id(ITEMS)], ..anchored };
    let together = engine.recommend(unknown, soon()).await.unwrap();
    assert_eq!((ids(&together), evidence(&together)), (vec!["i12".to_owned()], vec![item_id(2)]));
    let codes: Vec<_> = together.info.degradations.iter().map(|degradation| degradation.code).collect();
    assert_eq!(codes, [DegradationCode::AnchorsUnknown]);
    let similar =
        RecommendRequest { anchors: vec![item_id(1)], ..request(viewer("stranger"), RecommendKind::Similar, "") };
    assert_eq!(engine.recommend(similar, soon()).await.unwrap().total_size, ITEMS - 1);
}
