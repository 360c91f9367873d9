//! Repeat-purchase models: the probability, number and value of a customer's purchases within a horizon.
//!
//! Pure functions over purchase histories; no I/O, no clock. `docs/loyalty.md` explains the models and their sources.
//!
//! - [`BetaGeometric`]: BG/NBD and MBG/NBD, which need only frequency, recency and age of each customer.
//! - [`GammaGamma`]: the mean value of a customer's purchases.
//! - [`RfmModel`]: regressions on frequency, recency and age; the usual baseline.
//! - [`LearnedModel`]: regressions on summaries of the whole history, learned from windows inside the calibration.
//! - [`backtest`]: compares all of them on a later period.
#![forbid(unsafe_code)]
mod backtest;
mod beta_geometric;
mod error;
mod features;
mod gamma_gamma;
mod history;
mod learned;
mod metrics;
mod optimize;
mod regression;
mod simulate;
mod special;

pub use backtest::{BacktestOptions, BacktestReport, Difference, Interval, ModelReport, backtest};
pub use beta_geometric::{BetaGeometric, Dropout};
pub use error::LoyaltyError;
pub use gamma_gamma::{GammaGamma, ValueSummary};
pub use history::{Purchase, PurchaseHistory, PurchaseSummary};
pub use learned::{Forecast, LearnedModel, RfmModel};
pub use metrics::Metrics;
pub use simulate::simulate_customers;
