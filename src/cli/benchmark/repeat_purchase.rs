//! `lodestone benchmark repeat-purchase` and `loyalty-fit`
use crate::cli::{
    exit::Exit,
    numbers::within,
    output::{OutputArgs, write_file},
    paths::new_file,
    progress::style,
    threads::ThreadsArgs,
};
use anyhow::{anyhow, ensure};
use indicatif::ProgressBar;
use lodestone_dataset::{CustomerPurchases, format_day, parse_day, read_purchases};
use lodestone_loyalty::{
    BacktestOptions, BetaGeometric, Dropout, LoyaltyError, OutcomeHistory, Purchase, PurchaseHistory, backtest,
    backtest_outcomes, simulate_customers,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fmt::Write,
    path::{Path, PathBuf},
    time::Instant,
};

/// Compares models of repeat purchases: who purchases within a horizon, how often, and for how much.
///
/// The models are fitted to the purchases until --calibration-end and judged on those of the --horizon-days after it.
/// BG/NBD and MBG/NBD use frequency, recency and age; Gamma–Gamma adds the value; `rfm` is a logistic and a Poisson
/// regression on the same three numbers; `learned` is the model of this project. Purchases of one day are one purchase.
/// Customers whose first purchase is later than the calibration are left out. With --outcomes, three logistic regressions
/// predict the outcomes of that file instead: `rfm`, of the purchases; `outcome-rfm`, of the earlier outcomes; `learned`, of
/// both. See docs/loyalty.md.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone benchmark repeat-purchase --transactions cdnow.tsv.gz --calibration-end 1997-09-30 --horizon-days 273
  lodestone benchmark repeat-purchase --transactions transactions.csv.zst --calibration-end 2010-09-09 \\
      --horizon-days 91 --format json --out report.json
  lodestone benchmark repeat-purchase --transactions transactions.csv.zst --outcomes coupon_redemptions.csv.gz \\
      --calibration-end 2017-11-05 --horizon-days 56

Columns of the file, recognised by their names; a comma- or tab-separated file with a header, plain, .gz or .zst:
  customer   customer, customer_id, household_id, user_id or user
  time       date, invoice_date, transaction_timestamp, redemption_date, timestamp or time, such as 20261130,
             2026-11-30, 2026-11-30 08:15:00
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
    /// Another outcome to predict, such as redeemed coupons: a file with the columns of the customer and of the time.
    #[arg(long, value_name = "FILE")]
    outcomes: Option<PathBuf>,
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
    let options = BacktestOptions {
        calibration_end: args.calibration_end,
        horizon_days: args.horizon_days,
        resamples: args.resamples,
        seed: args.seed,
    };
    let mut current: Option<(&str, ProgressBar)> = None;
    let mut progress = |stage, done: usize, total: usize| {
        if current.as_ref().is_none_or(|(shown, _)| *shown != stage) {
            let bar = ProgressBar::new(total as u64).with_style(style("{pos}/{len}")).with_message(stage);
            if let Some((_, finished)) = current.replace((stage, bar)) {
                finished.finish();
            }
        }
        current.iter().for_each(|(_, bar)| bar.set_position(done as u64));
    };
    let failed = |error| with_dates(error).context(args.transactions.display().to_string());
    match &args.outcomes {
        None => {
            let has_values = purchases.has_values;
            let report = backtest(&into_histories(purchases), has_values, &options, &mut progress);
            current.iter().for_each(|(_, bar)| bar.finish());
            args.output.write(&report.map_err(failed)?)?;
        }
        Some(path) => {
            let customers = with_outcomes(purchases, path)?;
            let report = backtest_outcomes(&customers, &options, &mut progress);
            current.iter().for_each(|(_, bar)| bar.finish());
            args.output.write(&report.map_err(failed)?)?;
        }
    }
    Ok(Exit::Success)
}

/// Adds the outcomes of a file to the customers of the purchases.
fn with_outcomes(mut purchases: CustomerPurchases, path: &Path) -> anyhow::Result<Vec<OutcomeHistory>> {
    let outcomes = read_purchases(path, &mut |_| {})?;
    let mut days: BTreeMap<String, BTreeSet<i32>> = outcomes
        .ids
        .into_iter()
        .zip(outcomes.customers)
        .map(|(id, rows)| (id, rows.into_iter().map(|row| row.day).collect()))
        .collect();
    let ids = std::mem::take(&mut purchases.ids);
    let histories = into_histories(purchases).into_iter().zip(ids);
    let customers: Vec<OutcomeHistory> = histories
        .map(|(purchases, id)| OutcomeHistory { purchases, days: days.remove(&id).unwrap_or_default() })
        .collect();
    ensure!(
        customers.iter().any(|of| !of.days.is_empty()),
        "--outcomes {} has none of the customers of --transactions",
        path.display()
    );
    if !days.is_empty() {
        eprintln!("{}: ignored {} customers without a purchase", path.display(), days.len());
    }
    Ok(customers)
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
