//! Requests and answers of the engine. The server has validated every field of a request.
use super::facets::{FacetSpec, Facets};
use crate::{policy::ScoreParts, serving::ExperimentArm, source::CandidateSource};
use lodestone_catalog::{AttributeValue, Availability, Catalog, Filter, Item, OfferKey, OrderBy, ReadMask};
use lodestone_core::{
    ids::{ItemId, Row, UserId},
    viewer::ViewerContext,
};
use lodestone_events::Event;
use lodestone_index::{Completion, SearchStrategy};
use lodestone_rules::CompiledRule;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Default number of results on a page.
pub const PAGE_SIZE_DEFAULT: usize = 24;
/// Maximum number of results on a page.
pub const PAGE_SIZE_MAX: usize = 200;

/// Maximum size of the results of an answer in bytes, because gRPC clients accept responses of 4 MiB by default. The
/// rest is for facets and metadata.
pub const RESULTS_BYTES_MAX: usize = 3 << 20;

/// The user or visitor of a request.
#[derive(Debug, Clone)]
pub struct Viewer {
    /// The signed-in user, otherwise the visitor.
    pub user: UserId,
    /// The browser or device of a signed-in user; none if it is not known.
    pub visitor: Option<UserId>,
    /// Empty: unknown.
    pub session: String,
    pub context: ViewerContext,
    /// Chooses the offers of items that apply.
    pub offers: OfferKey,
}

impl Viewer {
    /// Returns a viewer of whom nothing but the user is known.
    pub fn of_user(user: UserId) -> Self {
        Self {
            user,
            visitor: None,
            session: String::new(),
            context: ViewerContext::default(),
            offers: OfferKey::default(),
        }
    }
}

/// A requested page of a slate.
#[derive(Debug, Clone)]
pub struct Page {
    /// 1 to [`PAGE_SIZE_MAX`].
    pub size: usize,
    /// The token from the previous page; empty for the first page.
    pub token: String,
    /// From 1; 1 with a token.
    pub number: usize,
    /// A hash of all fields that determine the slate. A page token is bound to it.
    pub fingerprint: u64,
}

/// Options of all ranking requests.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub log_position: u64,
    /// Identifies the log of the position; see `Engine::log_id`.
    pub log: u32,
    pub context_events: Vec<Event>,
    pub exclude: Vec<ItemId>,
    /// Without keys: best first.
    pub order_by: OrderBy,
    pub boosts: Vec<Boost>,
    pub pins: Vec<Pin>,
    /// 0 to 1. None: the serving configuration's.
    pub diversity: Option<f32>,
    /// The fields of the items of the results. None: results have no items.
    pub read_mask: Option<ReadMask>,
    /// What becomes of items that are sold out. None: the serving configuration's.
    pub sold_out: Option<SoldOut>,
    /// Whether a group of variants has one result.
    pub one_per_group: bool,
    /// Most variants that a result lists.
    pub variant_list_size: usize,
    pub debug: DebugLevel,
    pub request_id: String,
    /// Empty: that of an experiment, or the default one.
    pub serving_config: String,
    /// The groups of the viewer, which conditions of rules name.
    pub audiences: Vec<String>,
    /// Does not affect the answer.
    pub priority: Priority,
}

/// Which requests are answered first when there are more than the server can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// A user waits for the answer.
    #[default]
    Interactive,
    /// Evaluations, warm-ups, exports: answered with what interactive requests leave, and refused first.
    Batch,
}

/// What becomes of items that are sold out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SoldOut {
    /// They do not appear.
    #[default]
    Hidden,
    /// They follow all items in stock.
    Last,
    /// They are ranked as items in stock.
    Shown,
    /// The same, except those that are discontinued. Requests do not name it: it is what recommendations show.
    ShownUnlessDiscontinued,
}

impl SoldOut {
    /// Returns true if a row may appear.
    pub fn shows(self, catalog: &Catalog, row: Row) -> bool {
        let is_discontinued = || catalog.own(row).item.availability() == Availability::Discontinued;
        match self {
            Self::Hidden => catalog.is_offered(row),
            Self::Last | Self::Shown => catalog.is_alive(row),
            Self::ShownUnlessDiscontinued => catalog.is_alive(row) && !is_discontinued(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Boost {
    pub filter: Filter,
    /// Above 0, at most 100.
    pub factor: f32,
}

#[derive(Debug, Clone)]
pub struct Pin {
    pub item: ItemId,
    /// From 1.
    pub rank: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum DebugLevel {
    #[default]
    None,
    Timings,
    Scores,
    Features,
}

#[derive(Debug, Clone)]
pub struct SearchRequest {
    pub viewer: Viewer,
    /// At most 1,000 characters. White space only: a category or collection page, see [`SearchRequest::is_browse`].
    pub query: String,
    pub page: Page,
    pub filter: Option<Filter>,
    /// At most [`super::FACETS_MAX`], each field once.
    pub facets: Vec<FacetSpec>,
    /// Further facets, of the fields that split the matches best; at most [`super::FACETS_MAX`].
    pub dynamic_facet_count: usize,
    pub options: Options,
    /// Recommendations for an answer without results.
    pub fallback: Option<Box<RecommendRequest>>,
    /// The protobuf message for the answer log, without page token and request id.
    pub message: Vec<u8>,
}

impl SearchRequest {
    /// Whether the request has no query, so that its answer lists all eligible items.
    pub fn is_browse(&self) -> bool {
        self.query.trim().is_empty()
    }
}

#[derive(Debug, Clone)]
pub struct RecommendRequest {
    pub viewer: Viewer,
    pub kind: RecommendKind,
    pub page: Page,
    pub filter: Option<Filter>,
    /// Each once.
    pub anchors: Vec<ItemId>,
    /// At most [`super::FACETS_MAX`], each field once.
    pub facets: Vec<FacetSpec>,
    pub options: Options,
    /// The protobuf message for the answer log, without page token and request id.
    pub message: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecommendKind {
    ForYou,
    Similar,
    BoughtTogether,
    BuyAgain,
    Trending,
    RecentlyViewed,
    NewArrivals,
    /// Like [`RecommendKind::ForYou`]; the filter selects reduced items.
    OnSale,
}

#[derive(Debug, Clone)]
pub struct RankRequest {
    pub viewer: Viewer,
    /// 1 to 1,000, each item once.
    pub candidates: Vec<RankCandidate>,
    /// Empty: no query.
    pub query: String,
    pub options: Options,
    /// The protobuf message for the answer log, without page token and request id.
    pub message: Vec<u8>,
}

/// One of the caller's candidates.
#[derive(Debug, Clone, PartialEq)]
pub struct RankCandidate {
    pub id: ItemId,
    /// Finite. The caller's score, by which its retrieval orders the candidates.
    pub retrieval_score: Option<f64>,
    /// For an id that the catalogue does not have.
    pub item: Option<Arc<Item>>,
    /// Finite. Values of the features of kind `request`, by name.
    pub features: BTreeMap<String, f64>,
}

#[derive(Debug, Clone)]
pub struct SuggestRequest {
    pub viewer: Viewer,
    /// At most 200 characters; may be empty.
    pub prefix: String,
    /// 0 to 20.
    pub completion_count: usize,
    /// 0 to 20.
    pub product_count: usize,
    pub filter: Option<Filter>,
    /// `log_position`, `log`, `read_mask`, `serving_config`, `debug` and `audiences`; a group has one product. Others are
    /// empty.
    pub options: Options,
    /// The request's protobuf message, for the answer log.
    pub message: Vec<u8>,
}

/// The answer to Search, Recommend and Rank.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub results: Vec<RankedItem>,
    /// Empty: the last page.
    pub next_page_token: String,
    /// Of a search: the number of matches, which the facets count; without a query all eligible items match. Otherwise
    /// the number of results on all pages.
    pub total_size: usize,
    /// Empty: the query as sent.
    pub corrected_query: String,
    /// In the order of the request.
    pub facets: Arc<Facets>,
    /// Of a search without results, if its request asks for them.
    pub recommendations: Option<Box<Answer>>,
    pub info: AnswerInfo,
    /// Whether [`RESULTS_BYTES_MAX`] shortened the page, or left out items of a Rank answer.
    pub is_cut: bool,
}

#[derive(Debug, Clone, Default)]
pub struct SuggestAnswer {
    pub completions: Vec<Completion>,
    /// Parallel to `completions`. Only the engine knows them.
    pub completion_ids: Vec<String>,
    pub products: Vec<RankedItem>,
    pub info: AnswerInfo,
    /// Whether [`RESULTS_BYTES_MAX`] left out items.
    pub is_cut: bool,
}

/// Metadata of an answer.
#[derive(Debug, Clone, Default)]
pub struct AnswerInfo {
    pub attribution_token: String,
    pub log_position: u64,
    pub generation: Arc<str>,
    pub degradations: Vec<Degradation>,
    pub user_known: bool,
    /// Whether recent events of the visitor were used, because the request names the user and the visitor.
    pub visitor_history_used: bool,
    pub unknown_items: Vec<ItemId>,
    pub dropped_pins: Vec<ItemId>,
    /// Why a search has no result. None: it has, or the request is no search.
    pub empty_reason: Option<EmptyReason>,
    /// The serving configuration; in an interleaved answer, the first one.
    pub serving_config: String,
    /// Identifies the content of the configuration. Empty: the built-in default.
    pub serving_config_etag: String,
    /// None if no experiment selected the configuration.
    pub arm: Option<ExperimentArm>,
    /// Whether the order was drawn at random.
    pub explored: bool,
    /// Number of results, from the first one on, that the ranking model ordered. 0 if a field or retrieval orders.
    pub ranked_count: usize,
    /// The rules that apply, in their order.
    pub applied_rules: Vec<AppliedRule>,
    /// Empty: no rule redirects.
    pub redirect_url: String,
    /// Of the applied rules, in their order.
    pub banners: Vec<RuleBanner>,
    /// Present from [`DebugLevel::Timings`].
    pub debug: Option<AnswerDebug>,
}

impl AnswerInfo {
    /// The memory of the lists in bytes, approximately; without the debug information.
    pub fn bytes(&self) -> usize {
        let ids = self.unknown_items.iter().chain(&self.dropped_pins);
        let banners = self.banners.iter().map(|banner| banner.rule_id.len() + banner.payload.len());
        size_of::<Self>()
            + ids.map(|id| size_of::<ItemId>() + id.as_str().len()).sum::<usize>()
            + size_of_val(&*self.degradations)
            + size_of_val(&*self.applied_rules)
            + size_of_val(&*self.banners)
            + banners.sum::<usize>()
            + self.redirect_url.len()
    }
}

/// A rule that applies to a request.
#[derive(Debug, Clone)]
pub struct AppliedRule {
    pub rule: Arc<CompiledRule>,
    /// Indices of actions without an effect, because that of an earlier rule applies, or because of a limit.
    pub unused_actions: Vec<u32>,
}

/// A banner of an applied rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleBanner {
    pub rule_id: String,
    pub payload: String,
}

#[derive(Debug, Clone)]
pub struct RankedItem {
    pub id: ItemId,
    /// From 1, over all pages.
    pub rank: usize,
    /// Finite.
    pub score: f64,
    /// Strongest first.
    pub reasons: Vec<Reason>,
    /// None without a query, and for a pin that the search did not find.
    pub query_match: Option<QueryMatch>,
    /// Present if the request includes items.
    pub item: Option<Arc<Item>>,
    /// Number of variants of the group that may be shown; 0 without a group, and if each variant is a result.
    pub variant_count: usize,
    /// The first of them, as many as the request asks for; the item itself is the first one.
    pub variants: Vec<Arc<Item>>,
    /// Present from [`DebugLevel::Scores`].
    pub debug: Option<ResultDebug>,
}

impl RankedItem {
    /// Returns a result that has only an id.
    pub fn named(id: ItemId) -> Self {
        Self {
            id,
            rank: 0,
            score: 0.0,
            reasons: Vec::new(),
            query_match: None,
            item: None,
            variant_count: 0,
            variants: Vec::new(),
            debug: None,
        }
    }

    /// An upper bound of the encoded size in bytes, without the item.
    fn bytes_without_item(&self) -> usize {
        let reasons: usize =
            self.reasons.iter().flat_map(|reason| &reason.evidence).map(|id| text_bytes(id.as_str())).sum();
        let debug = self.debug.as_ref().map_or(0, |debug| {
            let sources: usize = debug.source_scores.iter().map(|(name, _)| text_bytes(name) + 16).sum();
            let heads: usize = debug.heads.iter().map(|(name, _)| text_bytes(name) + 16).sum();
            96 + sources + heads + 4 * debug.features.len()
        });
        let variants: usize = match self.item {
            Some(_) => self.variants.iter().map(|variant| item_bytes(variant)).sum(),
            None => self.variants.iter().map(|variant| 6 + text_bytes(variant.id.as_str())).sum(),
        };
        80 + text_bytes(self.id.as_str()) + 16 * self.reasons.len() + reasons + debug + variants
    }

    /// An upper bound of the encoded size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes_without_item() + self.item.as_deref().map_or(0, item_bytes)
    }
}

/// Tag, length and content of a text field.
fn text_bytes(text: &str) -> usize {
    6 + text.len()
}

/// Returns an upper bound of the encoded size of an item in bytes.
pub(crate) fn item_bytes(item: &Item) -> usize {
    let lists = item.categories.iter().chain(&item.tags);
    let texts = [
        item.id.as_str(),
        &item.group_id,
        &item.title,
        &item.description,
        &item.brand,
        &item.currency,
        &item.url,
        &item.image_url,
    ];
    let texts: usize = texts.into_iter().chain(lists.map(String::as_str)).map(text_bytes).sum();
    let value = |value: &AttributeValue| match value {
        AttributeValue::Text(text) => text_bytes(text),
        AttributeValue::Texts(texts) => 6 + texts.iter().map(|text| text_bytes(text)).sum::<usize>(),
        AttributeValue::Number(_) | AttributeValue::Flag(_) => 9,
        AttributeValue::Time(_) | AttributeValue::GeoPoint(_) => 24,
    };
    // A map entry and its value are messages.
    let attributes: usize = item.attributes.iter().map(|(name, v)| 12 + text_bytes(name) + value(v)).sum();
    // Prices, ratings, stock, times, and the length of the message.
    180 + texts + attributes
}

/// Returns how many results have at most `bytes_max` bytes in all; at least one, because a page without results would
/// never end.
pub fn fitting_results(results: &[RankedItem], bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fitting = results.iter().take_while(|result| {
        bytes += result.bytes();
        bytes <= bytes_max
    });
    fitting.count().max(1).min(results.len())
}

/// Removes the items of the last results until all results have at most `bytes_max` bytes. Returns whether any was
/// removed.
pub fn remove_items_beyond(results: &mut [RankedItem], bytes_max: usize) -> bool {
    let mut bytes: usize = results.iter().map(RankedItem::bytes_without_item).sum();
    let mut is_removed = false;
    for result in results {
        bytes += result.item.as_deref().map_or(0, item_bytes);
        if is_removed || bytes > bytes_max {
            is_removed |= result.item.take().is_some();
        }
    }
    is_removed
}

/// Maximum number of items that are the evidence of a reason.
pub const EVIDENCE_MAX: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub code: ReasonCode,
    /// At most [`EVIDENCE_MAX`].
    pub evidence: Vec<ItemId>,
}

/// The numbers are those of `lodestone.v1.ReasonCode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum ReasonCode {
    MatchesWords = 1,
    MatchesMeaning = 2,
    FitsHistory = 3,
    OftenNext = 4,
    BoughtTogether = 5,
    Similar = 6,
    BoughtBefore = 7,
    RecentlyViewed = 8,
    Popular = 9,
    Trending = 10,
    New = 11,
    Pinned = 12,
    Candidate = 13,
}

impl ReasonCode {
    pub const ALL: [Self; 13] = [
        Self::MatchesWords,
        Self::MatchesMeaning,
        Self::FitsHistory,
        Self::OftenNext,
        Self::BoughtTogether,
        Self::Similar,
        Self::BoughtBefore,
        Self::RecentlyViewed,
        Self::Popular,
        Self::Trending,
        Self::New,
        Self::Pinned,
        Self::Candidate,
    ];

    /// The name in the proto without its prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::MatchesWords => "MATCHES_WORDS",
            Self::MatchesMeaning => "MATCHES_MEANING",
            Self::FitsHistory => "FITS_HISTORY",
            Self::OftenNext => "OFTEN_NEXT",
            Self::BoughtTogether => "BOUGHT_TOGETHER",
            Self::Similar => "SIMILAR",
            Self::BoughtBefore => "BOUGHT_BEFORE",
            Self::RecentlyViewed => "RECENTLY_VIEWED",
            Self::Popular => "POPULAR",
            Self::Trending => "TRENDING",
            Self::New => "NEW",
            Self::Pinned => "PINNED",
            Self::Candidate => "CANDIDATE",
        }
    }
}

/// How a result matches the query. The numbers are those of `lodestone.v1.QueryMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum QueryMatch {
    /// The item's id or SKU is the query.
    Identifier = 1,
    AllWords = 2,
    SomeWords = 3,
    /// Only the vector search found the item.
    Meaning = 4,
}

impl QueryMatch {
    pub const ALL: [Self; 4] = [Self::Identifier, Self::AllWords, Self::SomeWords, Self::Meaning];

    /// The name in the proto without its prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identifier => "IDENTIFIER",
            Self::AllWords => "ALL_WORDS",
            Self::SomeWords => "SOME_WORDS",
            Self::Meaning => "MEANING",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degradation {
    pub code: DegradationCode,
    /// The affected part; empty for the whole answer.
    pub subject: String,
}

/// The numbers are those of `lodestone.v1.DegradationCode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DegradationCode {
    EncoderSkipped = 1,
    SourceFailed = 2,
    RankerSkipped = 3,
    StaleState = 4,
    QueryRelaxed = 5,
    AnchorsUnknown = 6,
    AnchorsMissing = 7,
}

impl DegradationCode {
    pub const ALL: [Self; 7] = [
        Self::EncoderSkipped,
        Self::SourceFailed,
        Self::RankerSkipped,
        Self::StaleState,
        Self::QueryRelaxed,
        Self::AnchorsUnknown,
        Self::AnchorsMissing,
    ];

    /// The name in the proto without its prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::EncoderSkipped => "ENCODER_SKIPPED",
            Self::SourceFailed => "SOURCE_FAILED",
            Self::RankerSkipped => "RANKER_SKIPPED",
            Self::StaleState => "STALE_STATE",
            Self::QueryRelaxed => "QUERY_RELAXED",
            Self::AnchorsUnknown => "ANCHORS_UNKNOWN",
            Self::AnchorsMissing => "ANCHORS_MISSING",
        }
    }
}

/// Why a search has no result. The numbers are those of `lodestone.v1.EmptyReason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum EmptyReason {
    /// No item has a word of the query or is close to it in meaning.
    NothingRelevant = 1,
    /// Items match, but none of them is eligible.
    NothingEligible = 2,
}

#[derive(Debug, Clone, Default)]
pub struct AnswerDebug {
    pub stages: Vec<(&'static str, Duration)>,
    pub sources: Vec<SourceCount>,
    /// The weights of the ranking model's heads in the score; of an interleaved answer those of the first ranking.
    /// Empty below [`DebugLevel::Scores`], and if the order is that of retrieval.
    pub head_weights: Vec<(String, f64)>,
    /// The effect of objectives, of the first ranking. None below [`DebugLevel::Scores`], and without objectives.
    pub objectives: Option<AppliedObjectives>,
    /// Empty below [`DebugLevel::Features`].
    pub feature_names: Vec<String>,
}

/// The effect of objectives on an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AppliedObjectives {
    /// Share of the configured weights that the limit leaves, 0 to 1.
    pub share: f32,
    /// Relative loss of NDCG of the first page, 0 to 1.
    pub ndcg_loss: f32,
    /// Probability that the user does not return. None without LOYALTY.
    pub return_risk: Option<f32>,
}

/// The number of candidates of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceCount {
    pub source: CandidateSource,
    pub count: usize,
    /// Of the vector search, if the source searches vectors.
    pub strategy: Option<SearchStrategy>,
}

#[derive(Debug, Clone)]
pub struct ResultDebug {
    pub source_scores: Vec<(&'static str, f64)>,
    pub retrieval_score: f64,
    /// From 1.
    pub retrieval_rank: usize,
    pub heads: Vec<(String, f64)>,
    pub score_parts: ScoreParts,
    /// Empty below [`DebugLevel::Features`].
    pub features: Vec<f32>,
}
