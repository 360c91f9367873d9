//! A small trained shop in a store of bundles, and an engine over it.
use lodestone_catalog::Item;
use lodestone_core::{
    ids::{ItemId, Row, UserId},
    units::UnixMillis,
};
use lodestone_dataset::{DatasetEvent, write_events, write_items};
use lodestone_engine::{Engine, EngineConfig, EngineError, OpenOptions, open};
use lodestone_events::EventKind;
use lodestone_index::{BuildConfig, FrozenGraph, Precision};
use lodestone_pipeline::{
    Answer, Options, Page, RecommendKind, RecommendRequest, SearchRequest, Viewer,
    bundle::Bundle,
    golden_requests,
    ranking::{Device, Runtime},
};
use lodestone_rollout::Store;
use lodestone_rollout::{BundleSource, HealthBounds, RolloutConfig};
use lodestone_training::{TrainOptions, train};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

pub(crate) const ITEMS: usize = 40;

pub(crate) struct Shop {
    directory: tempfile::TempDir,
}

pub(crate) fn item_id(item: usize) -> ItemId {
    ItemId::parse(&format!("i{item}")).unwrap()
}

pub(crate) fn runtime() -> Runtime {
    Runtime::load(None).expect("ORT_DYLIB_PATH names the library; `make test` sets it")
}

impl Shop {
    /// Trains the bundle `a` and makes it current. `b` is `a` with its items in the reverse order, `c` and `d` are copies of it.
    pub(crate) fn new() -> Self {
        let shop = Self { directory: tempfile::tempdir().unwrap() };
        let colours = ["red", "blue", "green"];
        let title = |item: usize| format!("{} {} number {item}", colours[item % 3], ["mug", "lamp"][item % 2]);
        let items: Vec<Item> = (0..ITEMS).map(|item| Item::titled(item_id(item), &title(item))).collect();
        let work = shop.directory.path().join("work");
        std::fs::create_dir(&work).unwrap();
        write_items(&work.join("items.parquet"), &items).unwrap();
        write_events(&work.join("events.parquet"), &purchases()).unwrap();
        let options = TrainOptions { name: "a".to_owned(), ..TrainOptions::default() };
        train(&work, &work.join("a"), &runtime(), &options, &mut |_| {}).unwrap();
        shop.publish(&work.join("a"));
        shop.publish_changed("b", reverse);
        shop.publish_changed("c", |_| {});
        shop.publish_changed("d", |_| {});
        shop.store().point_to("a", None).unwrap();
        shop
    }

    pub(crate) fn store_path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub(crate) fn data_path(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.store_path().to_str().unwrap(), []).unwrap()
    }

    pub(crate) fn publish(&self, bundle: &Path) {
        self.store().publish(bundle, None).unwrap();
    }

    /// Publishes `a` with a change, under another name, and makes it current. Its golden requests are its own, if it can be asked
    /// any, unless the change brings others.
    pub(crate) fn publish_changed(&self, name: &str, change: impl FnOnce(&mut Bundle)) {
        let mut bundle = Bundle::open(&self.store_path().join("a")).unwrap();
        bundle.manifest.name = name.to_owned();
        bundle.manifest.files.clear();
        bundle.golden = None;
        change(&mut bundle);
        if bundle.golden.is_none() {
            bundle.golden = golden_requests(&bundle, &runtime()).ok();
        }
        let out = self.directory.path().join("work").join(name);
        bundle.write(&out).unwrap();
        self.publish(&out);
    }

    /// Opens what was closed: the log is free when the threads have ended.
    pub(crate) async fn reopen(&self, bounds: impl Fn() -> HealthBounds) -> Engine {
        loop {
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.open(bounds()))) {
                Ok(engine) => return engine,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub(crate) fn open(&self, bounds: HealthBounds) -> Engine {
        open(OpenOptions {
            bundle: BundleSource::Store(self.store()),
            data: &self.data_path(),
            library: None,
            device: Device::Cpu,
            synonyms: None,
            workers: 2,
            queue_requests_max: 1000,
            history_ends_now: false,
            dedupe_ids_max: 1_000_000,
            config: EngineConfig::default(),
            rollout: RolloutConfig { watch: Duration::from_millis(100), kept_max: 1, bounds },
        })
        .unwrap()
    }
}

/// Users who mostly buy an item and then the next by number.
fn purchases() -> Vec<DatasetEvent> {
    let mut rows = Vec::new();
    for user in 0..60usize {
        for visit in 0..20usize {
            let item = (user * 7 + visit * 3 + visit * visit * user % 5) % ITEMS;
            for (hour, item) in [(0, item), (1, (item + 1) % ITEMS)] {
                rows.push(DatasetEvent {
                    event_id: format!("{user}-{visit}-{hour}"),
                    user: Some(UserId::signed_in(&format!("p{user}")).unwrap()),
                    session: String::new(),
                    kind: EventKind::Purchase,
                    at: UnixMillis(1_700_000_000_000 + ((visit * 240 + user * 3 + hour) as i64) * 3_600_000),
                    item: Some(item_id(item)),
                    quantity: 1,
                    price: None,
                    currency: String::new(),
                    order: String::new(),
                    query: String::new(),
                });
            }
        }
    }
    rows.sort_by_key(|row| row.at);
    rows
}

/// The same content, but an item's row is another one, so that rows and keys differ.
fn reverse(bundle: &mut Bundle) {
    let count = bundle.items.len();
    bundle.items.reverse();
    let reversed = |index: &FrozenGraph| {
        let rows = (0..count as u32).rev().flat_map(|row| index.vector(Row(row)).unwrap());
        let config = BuildConfig { precision: Precision::F32, ..BuildConfig::default() };
        let graph = FrozenGraph::build(&rows.collect::<Vec<f32>>(), index.dimensions(), config, &|_| {});
        Arc::new(graph.unwrap())
    };
    bundle.item_vectors = reversed(&bundle.item_vectors);
    bundle.title_vectors = reversed(&bundle.title_vectors);
    let numbers: Vec<u32> = (0..count as u32).rev().collect();
    bundle.transitions = std::mem::take(&mut bundle.transitions).renumbered(&numbers);
    bundle.co_purchases = std::mem::take(&mut bundle.co_purchases).renumbered(&numbers);
}

pub(crate) fn viewer(user: &str) -> Viewer {
    Viewer { user: UserId::signed_in(user).unwrap(), session: String::new(), locale: String::new() }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

pub(crate) async fn recommend(engine: &Engine, user: &str, kind: RecommendKind) -> Result<Answer, EngineError> {
    let request = RecommendRequest {
        viewer: viewer(user),
        kind,
        page: Page { size: 100, token: String::new(), fingerprint: 0 },
        filter: None,
        anchors: Vec::new(),
        facets: Vec::new(),
        options: Options::default(),
        message: Vec::new(),
    };
    engine.recommend(request, soon()).await
}

pub(crate) async fn search(engine: &Engine, query: &str, token: &str, size: usize) -> Result<Answer, EngineError> {
    search_by(engine, "searcher", query, token, size).await
}

pub(crate) async fn search_by(
    engine: &Engine,
    user: &str,
    query: &str,
    token: &str,
    size: usize,
) -> Result<Answer, EngineError> {
    let request = SearchRequest {
        viewer: viewer(user),
        query: query.to_owned(),
        page: Page { size, token: token.to_owned(), fingerprint: 7 },
        filter: None,
        facets: Vec::new(),
        options: Options::default(),
        message: Vec::new(),
    };
    engine.search(request, soon()).await
}

pub(crate) fn ids(answer: &Answer) -> Vec<String> {
    answer.results.iter().map(|result| result.id.to_string()).collect()
}
