//! Decisions about incentives.
use crate::stable_hash;
use lodestone_core::{ids::UserId, units::UnixMillis};
use prost::Message;

/// A decision about an incentive for a user, as the log stores it.
#[derive(Clone, PartialEq, Message)]
pub struct IncentiveDecision {
    #[prost(string, tag = "1")]
    pub decision_id: String,
    /// The key with its prefix, as [`UserId::as_str`] returns it.
    #[prost(string, tag = "2")]
    pub user: String,
    #[prost(string, tag = "3")]
    pub campaign_id: String,
    /// Empty: none.
    #[prost(string, tag = "4")]
    pub incentive_id: String,
    #[prost(int64, tag = "5")]
    pub at_ms: i64,
    /// Number of `lodestone.v1.IncentiveReason`.
    #[prost(int32, tag = "6")]
    pub reason: i32,
    /// Probability of this incentive, or of none, when the decision was made.
    #[prost(double, tag = "7")]
    pub propensity: f64,
    /// No incentive and each incentive of the campaign had a probability above 0, so that uplift can be learned from it.
    #[prost(bool, tag = "8")]
    pub is_randomised: bool,
    /// Cost of a redemption; 0 without an incentive.
    #[prost(int64, tag = "9")]
    pub cost_micros: i64,
    /// Time until which the incentive can be redeemed.
    #[prost(int64, tag = "10")]
    pub expires_ms: i64,
    /// Currency and margin of the campaign, and its minimum effect.
    #[prost(string, tag = "11")]
    pub currency: String,
    #[prost(double, tag = "12")]
    pub margin: f64,
    #[prost(double, tag = "13")]
    pub minimum_effect: f64,
    /// Why, for the shop's staff.
    #[prost(string, tag = "14")]
    pub explanation: String,
    /// The estimate that the decision followed from.
    #[prost(message, optional, tag = "15")]
    pub effect: Option<DecisionEffect>,
    /// The incentives with a gain for this user, which count as demand for the budget. None of a user of the hold-out, who
    /// receives nothing.
    #[prost(message, repeated, tag = "16")]
    pub demand: Vec<DecisionDemand>,
    /// The price of the budget that decided. Absent: not a decision by gain. Infinite: only free incentives.
    #[prost(double, optional, tag = "17")]
    pub budget_price: Option<f64>,
}

/// An incentive with a gain, in millionths of the currency's unit.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DecisionDemand {
    #[prost(int64, tag = "1")]
    pub gain_micros: i64,
    /// Of a redemption times its probability.
    #[prost(int64, tag = "2")]
    pub expected_cost_micros: i64,
    /// What the budget holds while the incentive is open: the cost of a redemption.
    #[prost(int64, tag = "3")]
    pub cost_micros: i64,
}

/// What an incentive was estimated to change.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct DecisionEffect {
    #[prost(message, required, tag = "1")]
    pub purchase_probability: DecisionEstimate,
    /// In the currency's unit.
    #[prost(message, required, tag = "2")]
    pub gain: DecisionEstimate,
    /// Of a redemption times its probability, in the currency's unit.
    #[prost(double, tag = "3")]
    pub expected_cost: f64,
}

/// A number with its 95 % interval.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct DecisionEstimate {
    #[prost(double, tag = "1")]
    pub value: f64,
    #[prost(double, tag = "2")]
    pub low: f64,
    #[prost(double, tag = "3")]
    pub high: f64,
}

impl IncentiveDecision {
    pub fn at(&self) -> UnixMillis {
        UnixMillis(self.at_ms)
    }

    /// Returns the user. None if the stored key is not valid.
    pub fn user_id(&self) -> Option<UserId> {
        UserId::from_key(&self.user)
    }

    /// Returns whether the user receives an incentive.
    pub fn is_given(&self) -> bool {
        !self.incentive_id.is_empty()
    }
}

/// Returns whether a user never receives an incentive of a campaign. `share`: that of the campaign's hold-out, 0 to 1.
pub fn is_holdout(campaign_id: &str, share: f64, user: &UserId) -> bool {
    let hash = stable_hash(format!("{campaign_id}\n{}", user.as_str()).as_bytes());
    (hash >> 11) as f64 / (1_u64 << 53) as f64 <= share
}
