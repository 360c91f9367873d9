//! Rules, synonyms and serving configurations as they are sent, stored and returned. The field numbers are those of the
//! messages in `proto/lodestone/v1`, which document the fields; a test of the server compares both.
use prost::{Enumeration, Message, Oneof};
use prost_types::Timestamp;
use std::collections::BTreeMap;

/// `lodestone.v1.Rule`.
#[derive(Clone, PartialEq, Message)]
pub struct Rule {
    #[prost(string, tag = "1")]
    pub rule_id: String,
    #[prost(string, tag = "2")]
    pub title: String,
    #[prost(int32, tag = "3")]
    pub priority: i32,
    #[prost(message, optional, tag = "4")]
    pub condition: Option<RuleCondition>,
    #[prost(message, repeated, tag = "5")]
    pub actions: Vec<RuleAction>,
    #[prost(message, optional, tag = "6")]
    pub create_time: Option<Timestamp>,
    #[prost(message, optional, tag = "7")]
    pub update_time: Option<Timestamp>,
    /// Computed from the other fields; the log does not store it.
    #[prost(string, tag = "8")]
    pub etag: String,
}

/// `lodestone.v1.RuleCondition`.
#[derive(Clone, PartialEq, Message)]
pub struct RuleCondition {
    #[prost(message, repeated, tag = "1")]
    pub queries: Vec<QueryCondition>,
    #[prost(string, repeated, tag = "2")]
    pub categories: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    pub audiences: Vec<String>,
    /// Numbers of `lodestone.v1.Platform`.
    #[prost(int32, repeated, tag = "4")]
    pub platforms: Vec<i32>,
    #[prost(enumeration = "RuleRequestType", repeated, tag = "5")]
    pub request_types: Vec<i32>,
    #[prost(message, optional, tag = "6")]
    pub start_time: Option<Timestamp>,
    #[prost(message, optional, tag = "7")]
    pub end_time: Option<Timestamp>,
    #[prost(string, repeated, tag = "8")]
    pub serving_configs: Vec<String>,
}

/// `lodestone.v1.QueryCondition`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct QueryCondition {
    #[prost(oneof = "QueryConditionKind", tags = "1, 2, 3, 4")]
    pub kind: Option<QueryConditionKind>,
}

#[derive(Clone, PartialEq, Eq, Hash, Oneof)]
pub enum QueryConditionKind {
    #[prost(string, tag = "1")]
    Exact(String),
    #[prost(string, tag = "2")]
    Prefix(String),
    #[prost(string, tag = "3")]
    Contains(String),
    #[prost(string, tag = "4")]
    Regex(String),
}

/// `lodestone.v1.RuleRequestType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum RuleRequestType {
    Unspecified = 0,
    Search = 1,
    Browse = 2,
    Recommend = 3,
    Suggest = 4,
}

/// `lodestone.v1.RuleAction`.
#[derive(Clone, PartialEq, Message)]
pub struct RuleAction {
    #[prost(oneof = "RuleActionKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub action: Option<RuleActionKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum RuleActionKind {
    #[prost(message, tag = "1")]
    Pin(Pin),
    #[prost(message, tag = "2")]
    Boost(Boost),
    #[prost(string, tag = "3")]
    Bury(String),
    #[prost(string, tag = "4")]
    Hide(String),
    #[prost(string, tag = "5")]
    Filter(String),
    #[prost(string, tag = "6")]
    RedirectUrl(String),
    #[prost(string, tag = "7")]
    Banner(String),
    #[prost(string, tag = "8")]
    ReplaceQuery(String),
    #[prost(message, tag = "9")]
    AddSynonyms(SynonymTerms),
}

/// `lodestone.v1.Pin`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Pin {
    #[prost(string, tag = "1")]
    pub item_id: String,
    #[prost(int32, tag = "2")]
    pub rank: i32,
}

/// `lodestone.v1.Boost`.
#[derive(Clone, PartialEq, Message)]
pub struct Boost {
    #[prost(string, tag = "1")]
    pub filter: String,
    #[prost(double, tag = "2")]
    pub factor: f64,
}

/// `lodestone.v1.SynonymTerms`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct SynonymTerms {
    #[prost(string, repeated, tag = "1")]
    pub terms: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub replacements: Vec<String>,
}

/// `lodestone.v1.SynonymSet`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct SynonymSet {
    #[prost(string, tag = "1")]
    pub synonym_set_id: String,
    #[prost(message, optional, tag = "2")]
    pub synonyms: Option<SynonymTerms>,
    #[prost(message, optional, tag = "3")]
    pub create_time: Option<Timestamp>,
    #[prost(message, optional, tag = "4")]
    pub update_time: Option<Timestamp>,
    /// Computed from the other fields; the log does not store it.
    #[prost(string, tag = "5")]
    pub etag: String,
}

/// `lodestone.v1.ServingConfig`, without its `source`, which depends on where it is stored.
#[derive(Clone, PartialEq, Message)]
pub struct ServingConfig {
    #[prost(string, tag = "1")]
    pub serving_config_id: String,
    #[prost(int32, optional, tag = "2")]
    pub source_candidates: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    pub candidates: Option<i32>,
    #[prost(double, optional, tag = "4")]
    pub query_cosine_min: Option<f64>,
    #[prost(double, optional, tag = "5")]
    pub diversity: Option<f64>,
    #[prost(double, optional, tag = "6")]
    pub repeat_fraction: Option<f64>,
    #[prost(enumeration = "SoldOut", tag = "7")]
    pub sold_out: i32,
    #[prost(bool, optional, tag = "8")]
    pub ranker: Option<bool>,
    #[prost(btree_map = "string, double", tag = "9")]
    pub head_weights: BTreeMap<String, f64>,
    #[prost(message, optional, tag = "10")]
    pub exploration: Option<Exploration>,
    #[prost(message, optional, tag = "11")]
    pub create_time: Option<Timestamp>,
    #[prost(message, optional, tag = "12")]
    pub update_time: Option<Timestamp>,
    /// Computed from the other fields; the log does not store it.
    #[prost(string, tag = "13")]
    pub etag: String,
    #[prost(message, optional, tag = "15")]
    pub objectives: Option<RankingObjectives>,
}

/// `lodestone.v1.RankingObjectives`.
#[derive(Clone, PartialEq, Message)]
pub struct RankingObjectives {
    #[prost(message, repeated, tag = "1")]
    pub weights: Vec<ObjectiveWeight>,
    #[prost(double, optional, tag = "2")]
    pub ndcg_loss_max: Option<f64>,
}

/// `lodestone.v1.ObjectiveWeight`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct ObjectiveWeight {
    #[prost(enumeration = "Objective", tag = "1")]
    pub objective: i32,
    #[prost(double, tag = "2")]
    pub weight: f64,
}

/// `lodestone.v1.Objective`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Objective {
    Unspecified = 0,
    Click = 1,
    Purchase = 2,
    Revenue = 3,
    Margin = 4,
    Loyalty = 5,
}

impl Objective {
    pub const ALL: [Self; 5] = [Self::Click, Self::Purchase, Self::Revenue, Self::Margin, Self::Loyalty];

    /// The name in the serving file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Click => "click",
            Self::Purchase => "purchase",
            Self::Revenue => "revenue",
            Self::Margin => "margin",
            Self::Loyalty => "loyalty",
        }
    }

    /// The heads of the ranking model that it needs.
    pub fn heads(self) -> &'static [&'static str] {
        match self {
            Self::Unspecified => &[],
            Self::Click => &["click"],
            Self::Purchase | Self::Revenue | Self::Margin => &["purchase"],
            Self::Loyalty => &["purchase", "return_visit"],
        }
    }

    /// Whether it depends on prices.
    pub fn is_of_prices(self) -> bool {
        matches!(self, Self::Revenue | Self::Margin)
    }
}

impl RankingObjectives {
    /// Returns the objectives with a weight above 0, each with its index in the list.
    pub fn weighted(&self) -> impl Iterator<Item = (usize, Objective)> + '_ {
        let weighted = self.weights.iter().enumerate().filter(|(_, of)| of.weight > 0.0);
        weighted.filter_map(|(index, of)| Some((index, Objective::try_from(of.objective).ok()?)))
    }
}

/// `lodestone.v1.AttributeDeclaration`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct AttributeDeclaration {
    #[prost(string, tag = "1")]
    pub name: String,
    /// The number of a `lodestone.v1.AttributeKind`: 1 + the position in [`lodestone_catalog::AttributeKind::ALL`].
    #[prost(int32, tag = "2")]
    pub kind: i32,
    #[prost(bool, tag = "3")]
    pub searchable: bool,
    #[prost(bool, tag = "4")]
    pub facetable: bool,
    #[prost(message, optional, tag = "5")]
    pub create_time: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    pub update_time: Option<Timestamp>,
    /// Computed from the other fields; the log does not store it.
    #[prost(string, tag = "7")]
    pub etag: String,
}

/// `lodestone.v1.SoldOut`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum SoldOut {
    Unspecified = 0,
    Hide = 1,
    Last = 2,
    Show = 3,
}

/// `lodestone.v1.Exploration`.
#[derive(Clone, PartialEq, Message)]
pub struct Exploration {
    #[prost(double, tag = "1")]
    pub temperature: f64,
    #[prost(int32, optional, tag = "2")]
    pub first_slot: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    pub top: Option<i32>,
    #[prost(int32, repeated, tag = "4")]
    pub epsilon_slots: Vec<i32>,
    #[prost(double, optional, tag = "5")]
    pub epsilon: Option<f64>,
    #[prost(int32, optional, tag = "6")]
    pub epsilon_candidates: Option<i32>,
    #[prost(double, optional, tag = "7")]
    pub share: Option<f64>,
}

/// `lodestone.v1.IncentiveAllocation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum IncentiveAllocation {
    Unspecified = 0,
    Randomised = 1,
    Targeted = 2,
}

/// `lodestone.v1.IncentiveCampaign`.
#[derive(Clone, PartialEq, Message)]
pub struct IncentiveCampaign {
    #[prost(string, tag = "1")]
    pub campaign_id: String,
    #[prost(string, tag = "2")]
    pub title: String,
    #[prost(string, tag = "3")]
    pub currency_code: String,
    #[prost(int64, tag = "4")]
    pub budget_micros: i64,
    #[prost(double, tag = "5")]
    pub margin: f64,
    #[prost(double, tag = "6")]
    pub holdout_share: f64,
    #[prost(enumeration = "IncentiveAllocation", tag = "7")]
    pub allocation: i32,
    #[prost(int32, tag = "8")]
    pub user_limit: i32,
    #[prost(int32, tag = "9")]
    pub user_limit_days: i32,
    #[prost(message, optional, tag = "10")]
    pub start_time: Option<Timestamp>,
    #[prost(message, optional, tag = "11")]
    pub end_time: Option<Timestamp>,
    /// Numbers of `lodestone.v1.LoyaltySegment`.
    #[prost(int32, repeated, tag = "12")]
    pub excluded_segments: Vec<i32>,
    #[prost(string, repeated, tag = "13")]
    pub excluded_customer_groups: Vec<String>,
    #[prost(message, repeated, tag = "14")]
    pub incentives: Vec<Incentive>,
    #[prost(double, tag = "15")]
    pub minimum_effect: f64,
    #[prost(double, tag = "16")]
    pub budget_price: f64,
    #[prost(message, optional, tag = "17")]
    pub create_time: Option<Timestamp>,
    #[prost(message, optional, tag = "18")]
    pub update_time: Option<Timestamp>,
    /// Computed from the other fields; the log does not store it.
    #[prost(string, tag = "19")]
    pub etag: String,
}

/// `lodestone.v1.Incentive`.
#[derive(Clone, PartialEq, Message)]
pub struct Incentive {
    #[prost(string, tag = "1")]
    pub incentive_id: String,
    #[prost(oneof = "Benefit", tags = "2, 3, 4, 5, 6, 7")]
    pub benefit: Option<Benefit>,
    #[prost(int64, optional, tag = "8")]
    pub cost_micros: Option<i64>,
    #[prost(int32, tag = "9")]
    pub valid_days: i32,
    #[prost(int64, tag = "10")]
    pub user_count_max: i64,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Benefit {
    #[prost(double, tag = "2")]
    PercentOff(f64),
    #[prost(int64, tag = "3")]
    AmountOffMicros(i64),
    #[prost(bool, tag = "4")]
    FreeShipping(bool),
    #[prost(bool, tag = "5")]
    EarlyAccess(bool),
    #[prost(string, tag = "6")]
    GiftItemId(String),
    #[prost(int32, tag = "7")]
    Points(i32),
}
