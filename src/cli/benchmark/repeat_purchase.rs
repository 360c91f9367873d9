//! `lodestone benchmark repeat-purchase` and `loyalty-fit`
use crate::cli::{
    exit::Exit,
    numbers::within,
    output::{OutputArgs, write_file},
    paths::new_file,
    progress::style,
    threads::ThreadsArgs,
};
use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use lodestone_dataset::{CustomerPurchases, format_day, parse_day, read_purchases};
use lodestone_loyalty::{
    BacktestOptions, BetaGeometric, Dropout, LoyaltyError, Purchase, PurchaseHistory, backtest, simulate_customers,
};
use std::{fmt, fmt::Write, path::PathBuf, time::Instant};

/// Compares models of repeat purchases: who purchases within a horizon, how often, and for how much.
///
/// The models are fitted to the purchases until --calibration-end and judged on those of the --horizon-days after it.
/// BG/NBD and MBG/NBD use frequency, recency and age; Gamma–Gamma adds the value; `rfm` is a logistic and a Poisson
/// regression on the same three numbers; `learned` is the model of this project. Purchases of one day are one purchase.
/// Customers whose first purchase is later than the calibration are left out. See docs/loyalty.md.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone benchmark repeat-purchase --transactions cdnow.tsv.gz --calibration-end 1997-09-30 --horizon-days 273
  lodestone benchmark repeat-purchase --transactions transactions.csv.zst --calibration-end 2010-09-09 \\
      --horizon-days 91 --format json --out report.json

Columns of the file, recognised by their names; a comma- or tab-separated file with a header, plain, .gz or .zst:
  customer   customer, customer_id, household_id, user_id or user
  time       date, invoice_date, transaction_timestamp, timestamp or time: 20261130, 2026-11-30, 2026-11-30 08:15:00
  value      value, dollars, sales_value, amount or revenue; or price (unit_price) times quantity; optional
  units      quantity, units or cds; optional
  others     invoice or invoice_id (a leading C is a cancellation), currency, product_id, stock_code or item_id
A negative quantity or value is a refund, which is no purchase. All rows must have the same currency.

Metrics: auc, log_loss, brier and calibration_error of the probability of at least one purchase; mae, rmse and
correlation of the expected number; value_mae and value_correlation of the expected value; log_likelihood of the
calibration. Differences are those of `learned` minus each other model, with 95 % bootstrap intervals.")]
pub(crate) struct RepeatPurchaseArgs {
    /// The purchases.
    #[arg(long, value_name = "FILE")]
    transactions: PathBuf,
    /// Last day of the calibration, which belongs to it.
    #[arg(long, value_name = "DATE", value_parser = day)]
    calibration_end: i32,
    /// Days after the calibration that are predicted. The file must have a purchase on the last of them or later.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3660))]
    horizon_days: u32,
    /// Bootstrap resamples of the customers.
    #[arg(long, value_name = "N", value_parser = within(100..=100_000), default_value_t = 1000)]
    resamples: usize,
    /// Seed of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    threads: ThreadsArgs,
    #[command(flatten)]
    output: OutputArgs,
}

fn day(text: &str) -> Result<i32, String> {
    parse_day(text).ok_or_else(|| "is not a date such as 2026-11-30".to_owned())
}

pub(crate) fn repeat_purchase(args: &RepeatPurchaseArgs) -> anyhow::Result<Exit> {
    args.threads.start_pool()?;
    let reading = ProgressBar::new_spinner().with_message("read");
    let read = read_purchases(&args.transactions, &mut |rows| reading.set_message(format!("read {rows} rows")));
    reading.finish_and_clear();
    let purchases = read?;
    if purchases.refunds + purchases.without_customer > 0 {
        eprintln!(
            "{} rows; ignored {} refunds or cancellations and {} rows without a customer",
            purchases.rows, purchases.refunds, purchases.without_customer
        );
    }
    let has_values = purchases.has_values;
    let histories = into_histories(purchases);
    let options = BacktestOptions {
        calibration_end: args.calibration_end,
        horizon_days: args.horizon_days,
        resamples: args.resamples,
        seed: args.seed,
    };
    let mut current: Option<(&str, ProgressBar)> = None;
    let report = backtest(&histories, has_values, &options, &mut |stage, done, total| {
        if current.as_ref().is_none_or(|(shown, _)| *shown != stage) {
            let bar = ProgressBar::new(total as u64).with_style(style("{pos}/{len}")).with_message(stage);
            if let Some((_, finished)) = current.replace((stage, bar)) {
                finished.finish();
            }
        }
        current.iter().for_each(|(_, bar)| bar.set_position(done as u64));
    });
    current.iter().for_each(|(_, bar)| bar.finish());
    let report = report.map_err(with_dates).with_context(|| args.transactions.display().to_string())?;
    args.output.write(&report)?;
    Ok(Exit::Success)
}

fn into_histories(purchases: CustomerPurchases) -> Vec<PurchaseHistory> {
    let history = |rows: Vec<lodestone_dataset::DatasetPurchase>| {
        PurchaseHistory::new(
            rows.into_iter().map(|row| Purchase { day: row.day, value: row.value, units: row.units }).collect(),
        )
    };
    purchases.customers.into_iter().map(history).collect()
}

/// Adds the flags and the dates of days, which the library does not know.
fn with_dates(error: LoyaltyError) -> anyhow::Error {
    match error {
        LoyaltyError::CalibrationBeforeData { calibration_end, first_day } => anyhow!(
            "--calibration-end is {}; it must be {} or later, the day of the first purchase",
            format_day(calibration_end),
            format_day(first_day)
        ),
        LoyaltyError::HorizonBeyondData { calibration_end, horizon_days, last_day } => {
            let days_max = i64::from(last_day) - i64::from(calibration_end);
            let (end, last) = (format_day(calibration_end), format_day(last_day));
            match days_max > 0 {
                true => anyhow!(
                    "--horizon-days is {horizon_days}; with --calibration-end {end} it must be at most {days_max}, because the \
                     last purchase is on {last}"
                ),
                false => anyhow!("--calibration-end is {end}; it must be before {last}, the day of the last purchase"),
            }
        }
        LoyaltyError::CalibrationTooShort { calibration_days, limit } => anyhow!(
            "--calibration-end is {calibration_days} days after the first purchase; it must be at least {limit} days after it"
        ),
        other => other.into(),
    }
}

/// Measures the maximum likelihood fit of BG/NBD on simulated customers with the published parameters of CDNOW.
///
/// Customers come during the first 12 of 78 weeks; times are whole days.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone benchmark loyalty-fit --customers 1000000 --save customers.csv")]
pub(crate) struct LoyaltyFitArgs {
    /// Number of customers.
    #[arg(long, value_name = "N", value_parser = within(100..=100_000_000), default_value_t = 1_000_000)]
    customers: usize,
    /// Seed of the simulation.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Number of fits; the median of their times is reported.
    #[arg(long, value_name = "N", value_parser = within(1..=100), default_value_t = 5)]
    repeats: usize,
    /// Also writes the customers as frequency,recency,age for other programs, in weeks.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    save: Option<PathBuf>,
    #[command(flatten)]
    threads: ThreadsArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(serde::Serialize)]
struct FitReport {
    customers: usize,
    threads: usize,
    /// Median over the repeats.
    seconds: f64,
    model: BetaGeometric,
}

impl fmt::Display for FitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model = &self.model;
        writeln!(f, "{} customers, {} threads: {:.3} s", self.customers, self.threads, self.seconds)?;
        writeln!(
            f,
            "r {:.5}, alpha {:.5} weeks, a {:.5}, b {:.5}, log-likelihood {:.2}",
            model.r, model.alpha, model.a, model.b, model.log_likelihood
        )
    }
}

pub(crate) fn loyalty_fit(args: &LoyaltyFitArgs) -> anyhow::Result<Exit> {
    let threads = args.threads.start_pool()?;
    let customers = simulate_customers(args.customers, 78.0, 12.0, args.seed);
    if let Some(path) = &args.save {
        let mut text = "frequency,recency,age\n".to_owned();
        for of in &customers {
            writeln!(text, "{},{},{}", of.frequency, of.recency, of.age)?;
        }
        write_file("--save", path, &text)?;
    }
    let mut times = Vec::with_capacity(args.repeats);
    let mut fit = || {
        let started = Instant::now();
        let model = BetaGeometric::fit(&customers, Dropout::AfterRepeatPurchases);
        times.push(started.elapsed().as_secs_f64());
        model
    };
    let mut model = fit()?;
    for _ in 1..args.repeats {
        model = fit()?;
    }
    times.sort_by(f64::total_cmp);
    args.output.write(&FitReport { customers: customers.len(), threads, seconds: times[times.len() / 2], model })?;
    Ok(Exit::Success)
}
