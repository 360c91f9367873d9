//! Loyalty: the probability, number and value of a user's purchases and returns within a horizon.
//!
//! Pure functions over events and purchase histories; no I/O, no clock. `docs/loyalty.md` explains the models and their
//! sources.
//!
//! - [`UserSummary`]: the fold of a user's events in a fixed number of bytes, in training and in the server.
//! - [`LoyaltyModel`]: the model of a bundle over these summaries; [`fit_loyalty`] fits it.
//! - [`BetaGeometric`]: BG/NBD and MBG/NBD, which need only frequency, recency and age of each customer.
//! - [`GammaGamma`]: the mean value of a customer's purchases.
//! - [`RfmModel`]: regressions on frequency, recency and age; the usual baseline.
//! - [`backtest`]: compares all of them on a later period; [`backtest_outcomes`] does so for another outcome.
//! - [`UpliftModel`]: what an incentive changes, from logged decisions; [`allocate`] assigns incentives under a budget,
//!   and [`DemandCurve`] prices a budget that has to last for a period.
#![forbid(unsafe_code)]
mod allocation;
mod backtest;
mod beta_geometric;
mod budget_price;
mod error;
mod fit;
mod gamma_gamma;
mod history;
mod incentive_comparison;
mod incentive_model;
mod incentive_simulation;
mod inputs;
mod metrics;
mod model;
mod optimize;
mod outcome_backtest;
mod regression;
mod rfm;
mod segments;
mod simulate;
mod special;
mod standardisation;
mod summary;
mod uplift;

pub use allocation::{Allocation, AllocationLimits, Candidate, allocate};
pub use backtest::{BacktestOptions, BacktestReport, Difference, Interval, ModelReport, backtest};
pub use beta_geometric::{BetaGeometric, Dropout};
pub use budget_price::{BudgetPrice, DemandCurve, DemandedIncentive};
pub use error::LoyaltyError;
pub use fit::{HORIZONS_DAYS, fit_loyalty};
pub use gamma_gamma::{GammaGamma, ValueSummary};
pub use history::{Purchase, PurchaseHistory, PurchaseSummary};
pub use incentive_comparison::{ComparisonOptions, IncentiveComparison, PolicyReport, compare_incentive_policies};
pub use incentive_model::{CampaignUplift, UPLIFT_HORIZON_DAYS, fit_campaign_uplift};
pub use incentive_simulation::{SIMULATED_INPUTS, SimulatedIncentives, simulate_incentives};
pub use inputs::Driver;
pub use metrics::{Metrics, ProbabilityMetrics};
pub use model::{
    CHANGE_DAYS, Estimate, Explanation, HorizonModel, HorizonScore, LeftOutHorizon, LoyaltyModel, LoyaltyScore,
    Quality, RiskScore, TrainedLoyalty, Validation,
};
pub use outcome_backtest::{OutcomeDifference, OutcomeHistory, OutcomeModelReport, OutcomeReport, backtest_outcomes};
pub use rfm::RfmModel;
pub use segments::{Condition, Quantities, Quantity, Segment, SegmentRule};
pub use simulate::simulate_customers;
pub use summary::{CURRENCIES, HALF_LIVES_DAYS, RECENT_DAYS, Spend, UserSummary, VISIT_DAYS, day_of};
pub use uplift::{
    DoublyRobustScores, Evidence, IncentiveEffect, IncentiveLog, NO_INCENTIVE, Observation, PROPENSITY_MIN,
    PolicyValue, UpliftAreas, UpliftError, UpliftModel, UpliftOptions, required_observations,
};
