//! Errors of the models and of the backtest.

/// The reason why a model cannot be fitted or a backtest cannot be run. Days are counted from 1970-01-01.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LoyaltyError {
    #[error("there are no customers with a purchase; at least one is needed")]
    NoCustomers,
    #[error("customer {index}: {field} is {value}; it must be {limit}")]
    Summary { index: usize, field: &'static str, value: f64, limit: &'static str },
    #[error("{field} is {value}; it must be {limit}")]
    Option { field: &'static str, value: f64, limit: String },
    #[error("no customer purchased again until the end of the calibration; the {model} model needs repeat purchases")]
    NoRepeatPurchases { model: &'static str },
    #[error(
        "the {model} model did not converge after {iterations} iterations; the data may not determine its parameters"
    )]
    NotConverged { model: &'static str, iterations: usize },
    #[error("the calibration ends on day {calibration_end}, but the first purchase is on day {first_day}")]
    CalibrationBeforeData { calibration_end: i32, first_day: i32 },
    #[error(
        "the horizon of {horizon_days} days after day {calibration_end} is beyond the last purchase, on day {last_day}; \
         at most {} days can be evaluated", last_day - calibration_end
    )]
    HorizonBeyondData { calibration_end: i32, horizon_days: u32, last_day: i32 },
    #[error(
        "the calibration has {calibration_days} days from the first purchase to its end; at least {limit} are needed \
         to learn from windows inside it"
    )]
    CalibrationTooShort { calibration_days: i32, limit: i32 },
    #[error(
        "{outcome} of the {customers} customers has the outcome within the horizon; probabilities cannot be compared"
    )]
    OneOutcome { outcome: &'static str, customers: usize },
    #[error("the learned model cannot be fitted: {reason}")]
    Unlearnable { reason: String },
}
