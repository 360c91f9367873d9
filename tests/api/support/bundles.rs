//! A small trained shop in a store of bundles, and engines over it.
use super::wait::wait_until;
use lodestone_catalog::Item;
use lodestone_core::{
    ids::{ItemId, ItemKey, Row, UserId},
    units::UnixMillis,
};
use lodestone_dataset::{DatasetEvent, write_events, write_items};
use lodestone_engine::{Engine, EngineConfig, EngineError, OpenError, OpenOptions, open};
use lodestone_events::{EventKind, LogError};
use lodestone_index::{BuildConfig, FrozenGraph, Languages, Precision};
use lodestone_pipeline::{
    Answer, Options, Page, RecommendKind, RecommendRequest, SearchRequest, TextIndexes, Viewer,
    answers::AnswerLogConfig,
    bundle::Bundle,
    features::FeatureSchema,
    golden_requests,
    ranking::{Device, Runtime},
    serving::{Serving, ServingConfig},
};
use lodestone_rollout::{BundleSource, HealthBounds, RolloutConfig, SlateCacheConfig, Store};
use lodestone_state::{COMPLETION_USERS_MIN, StateLimits};
use lodestone_training::{EncoderSettings, TrainOptions, train};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Items of the shop: `i0` to `i39`.
pub(crate) const ITEMS: usize = 40;

/// The interval in which engines compare the store's pointer with the one that they know.
pub(crate) const WATCH: Duration = Duration::from_millis(100);

/// The longest time from dropping an engine to the release of its log: background threads end first.
const RELEASE_TIME_MAX: Duration = Duration::from_secs(60);

/// A directory with a store of bundles (`store`), the data of engines (`data`) and files of the training (`work`).
pub(crate) struct Shop {
    directory: tempfile::TempDir,
}

/// Returns the id of an item of the shop.
pub(crate) fn item_id(item: usize) -> ItemId {
    ItemId::parse(&format!("i{item}")).unwrap()
}

/// Loads ONNX Runtime.
#[expect(clippy::disallowed_methods, reason = "`make test` passes the library through the environment")]
pub(crate) fn runtime() -> Runtime {
    let library = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    Runtime::load(library.as_deref()).expect("ORT_DYLIB_PATH must name the library; `make test` sets it")
}

impl Shop {
    /// Trains the bundle `a` and makes it current. `b` is `a` with its items in reverse order, `c` and `d` are copies
    /// of `a`.
    pub(crate) fn new() -> Self {
        let shop = Self::of(&purchases(), FeatureSchema::default());
        shop.publish_changed("b", reverse_items);
        shop.publish_changed("c", |_| {});
        shop.publish_changed("d", |_| {});
        shop.store().point_to("a", None).unwrap();
        shop
    }

    /// Trains the bundle `a` on events with the items of the shop and declared features, and makes it current.
    pub(crate) fn of(events: &[DatasetEvent], features: FeatureSchema) -> Self {
        let shop = Self { directory: tempfile::tempdir().unwrap() };
        let colours = ["red", "blue", "green"];
        let title = |item: usize| format!("{} {} number {item}", colours[item % 3], ["mug", "lamp"][item % 2]);
        let items: Vec<Item> = (0..ITEMS).map(|item| Item::titled(item_id(item), &title(item))).collect();
        let work = shop.directory.path().join("work");
        std::fs::create_dir(&work).unwrap();
        write_items(&work.join("items.parquet"), &items).unwrap();
        write_events(&work.join("events.parquet"), events).unwrap();
        shop.publish_trained_with(TrainOptions { name: "a".to_owned(), features, ..TrainOptions::default() });
        shop
    }

    /// Returns the directory of the store.
    pub(crate) fn store_path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// Returns the data directory of engines.
    pub(crate) fn data_path(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Returns the data directory of another catalogue.
    pub(crate) fn catalog_path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Opens the store.
    pub(crate) fn store(&self) -> Store {
        Store::open(self.store_path().to_str().unwrap(), []).unwrap()
    }

    /// Publishes a bundle and makes it current.
    pub(crate) fn publish(&self, bundle: &Path) {
        self.store().publish(bundle, None).unwrap();
    }

    /// Trains a bundle with a user encoder of this size, publishes it and makes it current.
    pub(crate) fn publish_trained(&self, name: &str, encoder: EncoderSettings) {
        self.publish_trained_with(TrainOptions { name: name.to_owned(), encoder, ..TrainOptions::default() });
    }

    /// Trains a bundle with these options, publishes it and makes it current.
    pub(crate) fn publish_trained_with(&self, options: TrainOptions) {
        let work = self.directory.path().join("work");
        let out = work.join(&options.name);
        train(&work, &out, &runtime(), &options, &mut |_| {}).unwrap();
        self.publish(&out);
    }

    /// Publishes `a` with a change, under another name, and makes it current. Its golden requests are those that
    /// `change` sets. Otherwise they are answered by the changed bundle, or left out if it cannot answer.
    pub(crate) fn publish_changed(&self, name: &str, change: impl FnOnce(&mut Bundle)) {
        let mut bundle = Bundle::open(&self.store_path().join("a")).unwrap();
        bundle.manifest.name = name.to_owned();
        bundle.manifest.files.clear();
        bundle.golden = None;
        change(&mut bundle);
        bundle.text_indexes = TextIndexes::build(&bundle.items, &bundle.manifest.searchable_attributes).unwrap();
        if bundle.golden.is_none() {
            bundle.golden = golden_requests(&bundle, &runtime()).ok();
        }
        let out = self.directory.path().join("work").join(name);
        bundle.write(&out).unwrap();
        self.publish(&out);
    }

    /// Opens an engine.
    pub(crate) fn open(&self, bounds: HealthBounds) -> Engine {
        self.try_open(bounds).unwrap()
    }

    /// Opens an engine after another one was dropped, as soon as that one has released the log. Panics with any other
    /// error, and if the log is not released within [`RELEASE_TIME_MAX`].
    pub(crate) async fn reopen(&self, bounds: HealthBounds) -> Engine {
        self.reopen_with(|| self.try_open(bounds.clone())).await
    }

    /// [`Shop::reopen`] with serving configurations.
    pub(crate) async fn reopen_serving(&self, serving: Serving) -> Engine {
        self.reopen_with(|| self.try_open_serving(HealthBounds::default(), serving.clone())).await
    }

    /// Opens an engine as soon as a dropped one has released the log.
    pub(crate) async fn reopen_with(&self, open: impl Fn() -> Result<Engine, OpenError>) -> Engine {
        let mut opened = None;
        wait_until("the dropped engine has released its log", RELEASE_TIME_MAX, async || match open() {
            Err(OpenError::Log(LogError::InUse { .. })) => false,
            result => {
                opened = Some(result.unwrap());
                true
            }
        })
        .await;
        opened.expect("set when the wait ended")
    }

    /// Opens an engine with serving configurations.
    pub(crate) fn open_serving(&self, serving: Serving) -> Engine {
        self.try_open_serving(HealthBounds::default(), serving).unwrap()
    }

    /// Opens an engine that compares prices in a currency if a request chooses none.
    pub(crate) fn open_in_currency(&self, code: &str) -> Engine {
        let serving = Serving::of(ServingConfig::default());
        self.try_open_at(&self.data_path(), HealthBounds::default(), serving, Some(code)).unwrap()
    }

    /// Opens an engine of another catalogue, whose data is in a directory of this name.
    pub(crate) fn try_open_catalog(&self, name: &str) -> Result<Engine, OpenError> {
        let serving = Serving::of(ServingConfig::default());
        self.try_open_at(&self.catalog_path(name), HealthBounds::default(), serving, None)
    }

    fn try_open(&self, bounds: HealthBounds) -> Result<Engine, OpenError> {
        self.try_open_serving(bounds, Serving::of(ServingConfig::default()))
    }

    /// Opens an engine with serving configurations, or returns the reason why it cannot be opened.
    pub(crate) fn try_open_serving(&self, bounds: HealthBounds, serving: Serving) -> Result<Engine, OpenError> {
        self.try_open_at(&self.data_path(), bounds, serving, None)
    }

    /// Opens an engine that keeps answers for later pages up to a size in bytes.
    pub(crate) fn open_with_slate_bytes(&self, bytes_max: u64) -> Engine {
        let slates = SlateCacheConfig { bytes_max, ..SlateCacheConfig::default() };
        let config = EngineConfig { slates, ..EngineConfig::default() };
        self.try_open_with(&self.data_path(), HealthBounds::default(), config).unwrap()
    }

    fn try_open_at(
        &self,
        data: &Path,
        bounds: HealthBounds,
        serving: Serving,
        currency: Option<&str>,
    ) -> Result<Engine, OpenError> {
        // All answers are logged, so that tests can replay any of them.
        let config = EngineConfig {
            serving: Arc::new(serving),
            answers: AnswerLogConfig { share: 1.0, ..AnswerLogConfig::default() },
            currency: currency.map(str::to_owned),
            ..EngineConfig::default()
        };
        self.try_open_with(data, bounds, config)
    }

    fn try_open_with(&self, data: &Path, bounds: HealthBounds, config: EngineConfig) -> Result<Engine, OpenError> {
        open(OpenOptions {
            bundle: BundleSource::Store(self.store()),
            data,
            library: None,
            device: Device::Cpu,
            languages: Languages::default(),
            completion_users_min: COMPLETION_USERS_MIN,
            synonyms: None,
            workers: 2,
            queue_requests_max: 1000,
            history_ends_now: false,
            dedupe_ids_max: 1_000_000,
            limits: StateLimits::default(),
            config,
            rollout: RolloutConfig { watch: WATCH, kept_max: 1, bounds },
        })
    }
}

/// Returns purchases of users who mostly buy an item and then the item with the next number.
fn purchases() -> Vec<DatasetEvent> {
    let mut rows = Vec::new();
    for user in 0..60usize {
        for visit in 0..20usize {
            let item = (user * 7 + visit * 3 + visit * visit * user % 5) % ITEMS;
            for (hour, item) in [(0, item), (1, (item + 1) % ITEMS)] {
                let id = format!("{user}-{visit}-{hour}");
                let user_id = UserId::signed_in(&format!("p{user}")).unwrap();
                let at = UnixMillis(1_700_000_000_000 + ((visit * 240 + user * 3 + hour) as i64) * 3_600_000);
                rows.push(DatasetEvent::of_item(id, EventKind::Purchase, Some(user_id), at, item_id(item)));
            }
        }
    }
    rows.sort_by_key(|row| row.at);
    rows
}

/// Reverses the rows of all items, so that rows differ from the item keys of a state that was opened with `a`.
fn reverse_items(bundle: &mut Bundle) {
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
    bundle.item_to_item = std::mem::take(&mut bundle.item_to_item).renumbered(&numbers);
    bundle.similar_texts = std::mem::take(&mut bundle.similar_texts).renumbered(&numbers);
    bundle.histories = bundle.histories.clone().renumbered(&numbers);
    bundle.popularity = bundle.popularity.renumbered(&numbers.into_iter().map(ItemKey).collect::<Vec<_>>());
}

/// Returns a signed-in viewer without a session and a context.
pub(crate) fn viewer(user: &str) -> Viewer {
    Viewer::of_user(UserId::signed_in(user).unwrap())
}

/// Returns a deadline for one call: 120 s from now.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(120)
}

/// Requests one page of at most 100 recommendations.
pub(crate) async fn recommend(engine: &Engine, user: &str, kind: RecommendKind) -> Result<Answer, EngineError> {
    let request = RecommendRequest {
        viewer: viewer(user),
        kind,
        page: Page { size: 100, token: String::new(), number: 1, fingerprint: 0 },
        filter: None,
        anchors: Vec::new(),
        facets: Vec::new(),
        options: Options::default(),
        message: Vec::new(),
    };
    engine.recommend(request, soon()).await
}

/// Searches as the user `searcher`. An empty token requests the first page.
pub(crate) async fn search(engine: &Engine, query: &str, token: &str, size: usize) -> Result<Answer, EngineError> {
    search_by(engine, "searcher", query, token, size).await
}

/// Searches as a signed-in user. An empty token requests the first page.
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
        page: Page { size, token: token.to_owned(), number: 1, fingerprint: 7 },
        filter: None,
        facets: Vec::new(),
        dynamic_facet_count: 0,
        options: Options::default(),
        fallback: None,
        message: Vec::new(),
    };
    engine.search(request, soon()).await
}

/// Returns the item ids of an answer, best first.
pub(crate) fn ids(answer: &Answer) -> Vec<String> {
    answer.results.iter().map(|result| result.id.to_string()).collect()
}
