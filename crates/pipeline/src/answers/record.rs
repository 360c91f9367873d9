//! The record of an answer: everything that decided it. `docs/answers.md` describes it. Field numbers are stable.
use lodestone_core::viewer::{Locale, Platform, Region, ViewerContext};
use prost::Message;
use std::collections::BTreeMap;

/// The id of an answer: a UUID of version 7, which begins with the time. Attribution tokens carry it.
pub type AnswerId = [u8; 16];

/// One answer. Candidates are identified by their index in `items`: first the candidates of retrieval, best first, then
/// pinned items that are not candidates.
#[derive(Clone, PartialEq, Message)]
pub struct AnswerRecord {
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// The time for which the features were computed, in ms since 1970.
    #[prost(int64, tag = "2")]
    pub at_ms: i64,
    /// With its prefix, see `UserId::as_str`.
    #[prost(string, tag = "3")]
    pub user: String,
    #[prost(enumeration = "AnswerKind", tag = "4")]
    pub kind: i32,
    /// The request's protobuf message, without page token and request id.
    #[prost(bytes = "vec", tag = "5")]
    pub request: Vec<u8>,
    /// The first 8 bytes of the SHA-256 of `request`.
    #[prost(fixed64, tag = "6")]
    pub request_digest: u64,
    /// Empty: the query as sent.
    #[prost(string, tag = "7")]
    pub corrected_query: String,
    /// Empty: no experiment.
    #[prost(string, tag = "8")]
    pub experiment: String,
    #[prost(string, tag = "9")]
    pub arm: String,
    #[prost(string, tag = "10")]
    pub generation: String,
    #[prost(message, repeated, tag = "11")]
    pub models: Vec<ModelSum>,
    #[prost(string, tag = "12")]
    pub feature_schema: String,
    /// The log position that the answer's state included.
    #[prost(uint64, tag = "13")]
    pub log_position: u64,
    #[prost(message, repeated, tag = "14")]
    pub degradations: Vec<DegradationRecord>,
    #[prost(string, repeated, tag = "15")]
    pub items: Vec<String>,
    /// Number of candidates at the start of `items`.
    #[prost(uint32, tag = "16")]
    pub candidate_count: u32,
    #[prost(message, repeated, tag = "17")]
    pub sources: Vec<SourceRecord>,
    /// `[candidates × features]`, encoded by the module `columns`.
    #[prost(bytes = "vec", tag = "18")]
    pub features: Vec<u8>,
    #[prost(uint32, tag = "19")]
    pub feature_count: u32,
    #[prost(string, repeated, tag = "20")]
    pub heads: Vec<String>,
    /// `[candidates × heads]`, probabilities. Empty: the ranking model did not run.
    #[prost(float, repeated, tag = "21")]
    pub head_values: Vec<f32>,
    /// One ranking, or two interleaved ones.
    #[prost(message, repeated, tag = "22")]
    pub rankings: Vec<RankingRecord>,
    /// By candidate: a number added to its score, 1 for a match of all words of the query, 2 for a named item; if no item
    /// has all words, 0 to 16 by the share of them. Empty: all 0.
    #[prost(bytes = "vec", tag = "23")]
    pub tiers: Vec<u8>,
    /// By candidate: the fused score of retrieval. Empty: it equals the feature `retrieval_score`.
    #[prost(float, repeated, tag = "24")]
    pub fused: Vec<f32>,
    #[prost(float, repeated, tag = "25")]
    pub boost_factors: Vec<f32>,
    /// By candidate: bit b is set if boost b matches.
    #[prost(uint64, repeated, tag = "26")]
    pub boost_masks: Vec<u64>,
    /// By candidate: its rank by the fields of the request's `order_by`. Empty: best score first.
    #[prost(uint32, repeated, tag = "27")]
    pub field_ranks: Vec<u32>,
    #[prost(message, repeated, tag = "28")]
    pub pins: Vec<PinRecord>,
    #[prost(message, optional, tag = "29")]
    pub exploration: Option<ExplorationRecord>,
    /// Seeds all random draws; derived from the id.
    #[prost(fixed64, tag = "30")]
    pub seed: u64,
    #[prost(bool, tag = "31")]
    pub explored: bool,
    /// The first page, in its order, as far as the slate has it. Empty if the answer begins with a later page.
    #[prost(message, repeated, tag = "32")]
    pub slots: Vec<SlotRecord>,
    /// Number of slots of the slate. The results behind it have no record.
    #[prost(uint32, tag = "33")]
    pub slate_size: u32,
    /// A checksum of all slots; see `slate_checksum`.
    #[prost(fixed64, tag = "34")]
    pub slate_checksum: u64,
    /// With diversity, by candidate: 1 + its row in the bundle, or 0 if the item is newer than the bundle.
    #[prost(uint32, repeated, tag = "35")]
    pub vector_rows: Vec<u32>,
    /// The vectors of the candidates with 0, one row for each, encoded by the module `columns`.
    #[prost(bytes = "vec", tag = "36")]
    pub live_vectors: Vec<u8>,
    #[prost(uint32, tag = "37")]
    pub vector_dimensions: u32,
    /// With exploration: the organic list, without pins, and its scores.
    #[prost(uint32, repeated, tag = "38")]
    pub organic_items: Vec<u32>,
    #[prost(float, repeated, tag = "39")]
    pub organic_scores: Vec<f32>,
    /// The slots of pins in the slate, from 1.
    #[prost(uint32, repeated, tag = "40")]
    pub pinned_slots: Vec<u32>,
    /// By candidate: whether the user bought it before. Empty unless a ranking has a repeat fraction.
    #[prost(bool, repeated, tag = "41")]
    pub repeats: Vec<bool>,
    /// The rules that applied to the request. Their pins, boosts and filters are among those of the record.
    #[prost(message, repeated, tag = "42")]
    pub applied_rules: Vec<AppliedRuleRecord>,
    /// The completions of a Suggest, in their order; its products are the slots.
    #[prost(string, repeated, tag = "43")]
    pub completions: Vec<String>,
    /// By candidate, in units of one currency; NaN: unknown. Empty unless an objective depends on prices.
    #[prost(float, repeated, tag = "44")]
    pub prices: Vec<f32>,
    /// By candidate: price minus cost; NaN: unknown. Empty without the objective MARGIN.
    #[prost(float, repeated, tag = "45")]
    pub margins: Vec<f32>,
    /// The probability that the user does not return. Absent without the objective LOYALTY.
    #[prost(float, optional, tag = "46")]
    pub return_risk: Option<f32>,
}

/// A rule that applied to a request.
#[derive(Clone, PartialEq, Message)]
pub struct AppliedRuleRecord {
    #[prost(string, tag = "1")]
    pub rule_id: String,
    /// Identifies the content of the rule.
    #[prost(string, tag = "2")]
    pub etag: String,
    /// Indices of actions without an effect.
    #[prost(uint32, repeated, tag = "3")]
    pub unused_actions: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum AnswerKind {
    Unknown = 0,
    Search = 1,
    Recommend = 2,
    Rank = 3,
    Suggest = 4,
}

impl AnswerKind {
    /// The name in exported files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Search => "search",
            Self::Recommend => "recommend",
            Self::Rank => "rank",
            Self::Suggest => "suggest",
        }
    }
}

/// The part of a request message that selects the candidates.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestedList {
    /// A search, with its query as corrected.
    Query(String),
    /// A recommendation `FOR_YOU`.
    ForYou,
    /// The caller's own candidates.
    Candidates {
        query: Option<String>,
        /// By item id: the values that the request has for features, by name.
        features: BTreeMap<String, BTreeMap<String, f64>>,
    },
    /// Another request, such as one that starts from anchor items, or a search without a query.
    Other,
}

/// The fields of `SearchRequest` that [`AnswerRecord::requested_list`] reads; prost skips the others.
#[derive(Clone, PartialEq, Message)]
struct SearchFields {
    #[prost(string, tag = "2")]
    query: String,
}

/// The fields of `RecommendRequest` that [`AnswerRecord::requested_list`] reads.
#[derive(Clone, PartialEq, Message)]
struct RecommendFields {
    #[prost(int32, tag = "2")]
    r#type: i32,
}

/// The fields of `RankRequest` that [`AnswerRecord::requested_list`] reads.
#[derive(Clone, PartialEq, Message)]
struct RankFields {
    #[prost(message, repeated, tag = "2")]
    candidates: Vec<CandidateFields>,
    #[prost(string, tag = "3")]
    query: String,
}

#[derive(Clone, PartialEq, Message)]
struct CandidateFields {
    #[prost(string, tag = "1")]
    item_id: String,
    #[prost(btree_map = "string, double", tag = "4")]
    features: BTreeMap<String, f64>,
}

/// The field `viewer`, which all ranking requests have.
#[derive(Clone, PartialEq, Message)]
struct ViewerField {
    #[prost(message, optional, tag = "1")]
    viewer: Option<ViewerFields>,
}

/// The fields of `Viewer` that [`AnswerRecord::viewer`] reads.
#[derive(Clone, PartialEq, Message)]
struct ViewerFields {
    #[prost(string, tag = "3")]
    session_id: String,
    #[prost(int32, tag = "4")]
    platform: i32,
    #[prost(string, tag = "5")]
    locale: String,
    #[prost(string, tag = "6")]
    region_code: String,
}

/// `RECOMMEND_TYPE_FOR_YOU`.
const FOR_YOU: i32 = 1;

impl AnswerRecord {
    /// Decodes the session id and the context of the request's viewer; empty if the record has no request.
    pub fn viewer(&self) -> (String, ViewerContext) {
        let viewer = ViewerField::decode(self.request.as_slice()).unwrap_or_default().viewer.unwrap_or_default();
        let context = ViewerContext {
            platform: Platform::from_number(viewer.platform),
            region: Region::parse(&viewer.region_code),
            locale: Locale::parse(&viewer.locale),
        };
        (viewer.session_id, context)
    }

    /// Decodes the part of the request that selects the candidates.
    pub fn requested_list(&self) -> RequestedList {
        match self.kind() {
            AnswerKind::Search if !self.corrected_query.is_empty() => {
                RequestedList::Query(self.corrected_query.clone())
            }
            AnswerKind::Search => match SearchFields::decode(self.request.as_slice()) {
                Ok(SearchFields { query }) if !query.trim().is_empty() => RequestedList::Query(query),
                _ => RequestedList::Other,
            },
            AnswerKind::Recommend => match RecommendFields::decode(self.request.as_slice()) {
                Ok(RecommendFields { r#type: FOR_YOU }) => RequestedList::ForYou,
                _ => RequestedList::Other,
            },
            AnswerKind::Rank => match RankFields::decode(self.request.as_slice()) {
                Ok(RankFields { candidates, query }) => RequestedList::Candidates {
                    query: Some(query).filter(|query| !query.trim().is_empty()),
                    // Of an item that occurs twice, the first candidate counts.
                    features: candidates.into_iter().rev().map(|of| (of.item_id, of.features)).collect(),
                },
                Err(_) => RequestedList::Other,
            },
            AnswerKind::Suggest | AnswerKind::Unknown => RequestedList::Other,
        }
    }
}

/// A model file and its checksum.
#[derive(Clone, PartialEq, Message)]
pub struct ModelSum {
    #[prost(string, tag = "1")]
    pub name: String,
    /// In hexadecimal.
    #[prost(string, tag = "2")]
    pub sha256: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct DegradationRecord {
    #[prost(string, tag = "1")]
    pub code: String,
    #[prost(string, tag = "2")]
    pub subject: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct SourceRecord {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Number of results, including those that fusion dropped.
    #[prost(uint32, tag = "2")]
    pub found_count: u32,
    /// The strategy of the vector search; empty for other sources.
    #[prost(string, tag = "3")]
    pub strategy: String,
    /// The results that are candidates, best first.
    #[prost(uint32, repeated, tag = "4")]
    pub candidates: Vec<u32>,
    /// The source's own scores; parallel to `candidates`.
    #[prost(float, repeated, tag = "5")]
    pub scores: Vec<f32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RankingRecord {
    #[prost(string, tag = "1")]
    pub serving_config: String,
    /// By head. Empty: the order is that of retrieval.
    #[prost(float, repeated, tag = "2")]
    pub weights: Vec<f32>,
    /// Number of first candidates that it ranks.
    #[prost(uint32, tag = "3")]
    pub candidate_count: u32,
    #[prost(float, tag = "4")]
    pub diversity: f32,
    /// For an interleaved answer: the candidates in this ranking's order.
    #[prost(uint32, repeated, tag = "5")]
    pub order: Vec<u32>,
    /// Absent: as the scores have it.
    #[prost(float, optional, tag = "6")]
    pub repeat_fraction: Option<f32>,
    /// Identifies the content of the serving configuration. Empty: the built-in default.
    #[prost(string, tag = "7")]
    pub serving_config_etag: String,
    /// Absent: relevance alone.
    #[prost(message, optional, tag = "8")]
    pub objectives: Option<ObjectivesRecord>,
}

/// The objectives of a ranking and their effect.
#[derive(Clone, PartialEq, Message)]
pub struct ObjectivesRecord {
    /// Above 0, in the order of the configuration.
    #[prost(message, repeated, tag = "1")]
    pub weights: Vec<ObjectiveRecord>,
    #[prost(float, tag = "2")]
    pub ndcg_loss_max: f32,
    /// Slots of the first page, whose NDCG is bounded.
    #[prost(uint32, tag = "3")]
    pub slots: u32,
    /// Share of the weights that the limit left. A replay computes it again.
    #[prost(float, tag = "4")]
    pub share: f32,
    /// Relative loss of NDCG. A replay computes it again.
    #[prost(float, tag = "5")]
    pub ndcg_loss: f32,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct ObjectiveRecord {
    #[prost(enumeration = "lodestone_rules::Objective", tag = "1")]
    pub objective: i32,
    #[prost(float, tag = "2")]
    pub weight: f32,
}

#[derive(Clone, PartialEq, Message)]
pub struct PinRecord {
    /// Its index in `items`; absent: it could not be shown.
    #[prost(uint32, optional, tag = "1")]
    pub item: Option<u32>,
    /// From 1.
    #[prost(uint32, tag = "2")]
    pub rank: u32,
}

/// The fields of `policy::Exploration`.
#[derive(Clone, PartialEq, Message)]
pub struct ExplorationRecord {
    #[prost(double, tag = "1")]
    pub temperature: f64,
    #[prost(uint32, tag = "2")]
    pub first_slot: u32,
    #[prost(uint32, tag = "3")]
    pub top: u32,
    #[prost(uint32, repeated, tag = "4")]
    pub epsilon_slots: Vec<u32>,
    #[prost(double, tag = "5")]
    pub epsilon: f64,
    #[prost(uint32, tag = "6")]
    pub epsilon_candidates: u32,
    #[prost(double, tag = "7")]
    pub share: f64,
}

#[derive(Clone, PartialEq, Message)]
pub struct SlotRecord {
    /// Index in `items`.
    #[prost(uint32, tag = "1")]
    pub item: u32,
    #[prost(float, tag = "2")]
    pub score: f32,
    /// The probability of this item in this slot, given the items before it.
    #[prost(double, tag = "3")]
    pub conditional: f64,
    #[prost(bool, tag = "4")]
    pub is_pinned: bool,
    /// In interleaved answers: 1 for the first configuration, 2 for the second. Otherwise 0.
    #[prost(uint32, tag = "5")]
    pub team: u32,
    /// The numbers of the result's `ReasonCode`s, in their order.
    #[prost(int32, repeated, tag = "6")]
    pub reasons: Vec<i32>,
}
