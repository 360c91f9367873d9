//! `lodestone loyalty campaign`
use super::{
    LibraryArgs,
    exit::Exit,
    loyalty::{Base, InputArgs, KnownUser},
    numbers::within,
    output::FormatArgs,
    paths::new_file,
    progress::style,
};
use anyhow::{anyhow, ensure};
use indicatif::ProgressBar;
use lodestone_core::{
    ids::{ItemId, UserId},
    units::UnixMillis,
};
use lodestone_dataset::{AssignedIncentive, Cells, format_day, read_incentive_assignment, write_csv, write_table};
use lodestone_events::Event;
use lodestone_loyalty::{RiskScore, Segment};
use lodestone_pipeline::{
    Generation, Models, Options, Page, RecommendKind, RecommendRequest, Viewer,
    bundle::Bundle,
    ranking::Device,
    run::{AnswerLogging, PlannedRequest, RankingRequest, run as run_pipeline},
    serving::Plan,
    slate::{CurrentItems, PageStart},
};
use lodestone_rules::NO_INCENTIVE;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

/// Users whose products are ranked together.
const BATCH: usize = 64;

/// Writes a list of users to win back by mail or push, with the products to show to each.
///
/// A row per user, the highest value at risk first: P(no return) × expected value within the longest horizon of the
/// bundle. The products are those that Recommend FOR_YOU of the bundle would return at the end of the events, with the
/// default serving configuration. With --decisions, each row also has the incentive of its user, or none; users with an
/// incentive are first. The columns are described in docs/loyalty.md.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone loyalty campaign --data data --bundle bundle --users 500 --out campaign.csv
  lodestone loyalty campaign --data data --bundle bundle --segment at-risk --segment lapsing --out campaign.parquet
  lodestone loyalty assign --data data --bundle bundle --campaign winter --holdout-share 0.1 --budget 2000 \
      --segment at-risk --out decisions.parquet
  lodestone loyalty campaign --data data --bundle bundle --decisions decisions.parquet --out campaign.csv")]
pub(crate) struct CampaignArgs {
    #[command(flatten)]
    input: InputArgs,
    /// Segment of the users: new, growing, loyal, at-risk, lapsing or lost. May be repeated.
    #[arg(long = "segment", value_name = "NAME", value_parser = segment, default_value = "at-risk")]
    segments: Vec<Segment>,
    /// Most users.
    #[arg(long, value_name = "N", value_parser = within(1..=10_000_000), default_value_t = 1000)]
    users: usize,
    /// ISO 4217 code of the values. Users whose purchases are mostly in another currency are left out. Default: the
    /// currency with the most purchases of the training.
    #[arg(long, value_name = "CODE")]
    currency: Option<String>,
    /// Products per user. A user for whom fewer can be recommended has fewer.
    #[arg(long, value_name = "N", value_parser = within(1..=100), default_value_t = 12)]
    products: usize,
    /// The incentives: the file that `lodestone loyalty assign` wrote for the same data and segments.
    #[arg(long, value_name = "FILE", value_parser = parquet_file_to_read)]
    decisions: Option<PathBuf>,
    /// The file of the list: .csv or .parquet.
    #[arg(long, value_name = "FILE", value_parser = table_file)]
    out: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    library: LibraryArgs,
}

pub(super) fn segment(text: &str) -> Result<Segment, String> {
    let name = |of: &Segment| of.name().replace('_', "-");
    Segment::ALL.into_iter().find(|of| name(of) == text.replace('_', "-")).ok_or_else(|| {
        format!("is no segment; expected one of {}", Segment::ALL.iter().map(name).collect::<Vec<_>>().join(", "))
    })
}

pub(super) fn parquet_file(text: &str) -> Result<PathBuf, String> {
    of_parquet(new_file(text)?)
}

fn parquet_file_to_read(text: &str) -> Result<PathBuf, String> {
    let path = of_parquet(PathBuf::from(text))?;
    if path.is_file() { Ok(path) } else { Err("is not a file".to_owned()) }
}

fn of_parquet(path: PathBuf) -> Result<PathBuf, String> {
    match path.extension().is_some_and(|of| of == "parquet") {
        true => Ok(path),
        false => Err("has another extension than .parquet, which is the format".to_owned()),
    }
}

fn table_file(text: &str) -> Result<PathBuf, String> {
    let path = new_file(text)?;
    match is_csv(&path) || path.extension().is_some_and(|of| of == "parquet") {
        true => Ok(path),
        false => Err("has another extension than .csv and .parquet, which select the format".to_owned()),
    }
}

fn is_csv(path: &Path) -> bool {
    path.extension().is_some_and(|of| of == "csv")
}

/// A user of the list.
struct Target<'a> {
    user: &'a UserId,
    risk: RiskScore,
    purchase_days: i64,
    /// Of --decisions.
    decision: Option<AssignedIncentive>,
    products: Vec<Product>,
}

impl Target<'_> {
    fn has_incentive(&self) -> bool {
        self.decision.as_ref().is_some_and(|decision| decision.incentive != NO_INCENTIVE)
    }
}

struct Product {
    id: String,
    title: String,
    /// Names of the reasons, the strongest first, separated by semicolons.
    reasons: String,
}

#[derive(serde::Serialize)]
struct Summary {
    bundle: String,
    /// The day at whose end the users are scored.
    day: String,
    /// Users of the segments with values in the currency.
    eligible_users: usize,
    /// Rows of the file.
    users: usize,
    currency: String,
    horizon_days: u32,
    /// Sum over the rows.
    value_at_risk: f64,
    /// Rows with each incentive of --decisions, and with none.
    incentives: BTreeMap<String, usize>,
    /// Users with an incentive of --decisions who are not in the list, by the reason.
    unlisted_incentives: UnlistedIncentives,
    /// Rows with fewer products than --products.
    users_with_fewer_products: usize,
    out: PathBuf,
}

/// Numbers of users with an incentive of --decisions who are not in the list.
#[derive(Default, serde::Serialize)]
struct UnlistedIncentives {
    /// Further users than --users.
    users_limit: usize,
    /// No purchase has a price, so the value at risk is unknown.
    no_purchase: usize,
    /// Purchases are mostly in another currency.
    other_currency: usize,
    other_segment: usize,
    /// The data has no event of the user.
    unknown_user: usize,
}

impl UnlistedIncentives {
    fn reasons(&self) -> [(&'static str, usize); 5] {
        [
            ("beyond --users", self.users_limit),
            ("no priced purchase", self.no_purchase),
            ("purchases mostly in another currency", self.other_currency),
            ("in no --segment of the list", self.other_segment),
            ("no event in --data", self.unknown_user),
        ]
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} of {} users by bundle {} at the end of {}; {:.2} {} at risk within {} days",
            self.users,
            self.eligible_users,
            self.bundle,
            self.day,
            self.value_at_risk,
            self.currency,
            self.horizon_days
        )?;
        for (incentive, count) in &self.incentives {
            writeln!(f, "{incentive:<24} {count:>9}")?;
        }
        let unlisted = self.unlisted_incentives.reasons().into_iter().filter(|(_, count)| *count > 0);
        let unlisted: Vec<String> = unlisted.map(|(reason, count)| format!("{count} {reason}")).collect();
        if !unlisted.is_empty() {
            writeln!(f, "users with an incentive who are not in the list: {}", unlisted.join(", "))?;
        }
        if self.users_with_fewer_products > 0 {
            writeln!(f, "{} users have fewer products", self.users_with_fewer_products)?;
        }
        writeln!(f, "written to {}", self.out.display())
    }
}

pub(crate) fn campaign(args: &CampaignArgs) -> anyhow::Result<Exit> {
    let base = Base::read(&args.input)?;
    let spend = base.users.iter().filter_map(|user| user.summary.main_spend());
    // The empty code is that of purchases which name none.
    let currencies: BTreeSet<&str> = spend.map(|spend| spend.currency()).collect();
    let currency = args.currency.as_deref().unwrap_or(&base.model.currency);
    ensure!(
        currencies.contains(currency),
        "--currency is {currency:?}; it must be the currency of most priced purchases of a user in {}: {}",
        args.input.data().display(),
        match currencies.is_empty() {
            true => "no purchase has a price".to_owned(),
            false => currencies.into_iter().map(|currency| format!("{currency:?}")).collect::<Vec<_>>().join(", "),
        }
    );
    let target = |user: &KnownUser| {
        let risk = base.model.risk(&user.summary, base.day, currency)?;
        args.segments.contains(&risk.segment).then_some(risk)
    };
    let mut targets: Vec<Target> = base
        .users
        .iter()
        .filter_map(|user| {
            let purchase_days = user.summary.purchase_days().into();
            let (risk, products) = (target(user)?, Vec::new());
            Some(Target { user: &user.user, risk, purchase_days, decision: None, products })
        })
        .collect();
    let decisions = args.decisions.as_deref().map(read_incentive_assignment).transpose()?;
    if let Some((path, decisions)) = args.decisions.as_deref().zip(decisions.as_ref()) {
        join_decisions(path, decisions, &mut targets)?;
    }
    targets.sort_by(|left, right| {
        let by_value = right.risk.value_at_risk().total_cmp(&left.risk.value_at_risk());
        right.has_incentive().cmp(&left.has_incentive()).then(by_value).then_with(|| left.user.cmp(right.user))
    });
    let eligible_users = targets.len();
    let beyond = targets.split_off(eligible_users.min(args.users));
    let mut unlisted_incentives = decisions
        .map_or_else(UnlistedIncentives::default, |decisions| unlisted(&base, currency, &args.segments, decisions));
    unlisted_incentives.users_limit = beyond.iter().filter(|of| of.has_incentive()).count();
    recommend(args, &base.events, &mut targets)?;
    let summary = Summary {
        bundle: base.bundle.clone(),
        day: format_day(base.day.into()),
        eligible_users,
        users: targets.len(),
        currency: currency.to_owned(),
        horizon_days: base.model.horizons.last().map_or(0, |horizon| horizon.days),
        value_at_risk: targets.iter().map(|of| of.risk.value_at_risk()).sum(),
        incentives: targets.iter().filter_map(|of| of.decision.as_ref()).fold(BTreeMap::new(), |mut counts, of| {
            *counts.entry(of.incentive.clone()).or_default() += 1;
            counts
        }),
        unlisted_incentives,
        users_with_fewer_products: targets.iter().filter(|of| of.products.len() < args.products).count(),
        out: args.out.clone(),
    };
    let columns = columns(args, &summary, &targets);
    match is_csv(&args.out) {
        true => write_csv(&args.out, columns)?,
        false => write_table(&args.out, columns)?,
    }
    args.format.print(&summary)?;
    Ok(Exit::Success)
}

/// Sets the decision of each target.
fn join_decisions(
    path: &Path,
    decisions: &BTreeMap<String, AssignedIncentive>,
    targets: &mut [Target],
) -> anyhow::Result<()> {
    for target in targets.iter_mut() {
        target.decision = target.user.signed_in_id().and_then(|user| decisions.get(user).cloned());
    }
    let mut missing = targets.iter().filter(|target| target.decision.is_none());
    if let Some(first) = missing.next() {
        return Err(anyhow!(
            "--decisions {} has no decision about {} of {} users of the list, such as {}; run `lodestone loyalty assign` \
             on the same --data with every --segment of the list",
            path.display(),
            missing.count() + 1,
            targets.len(),
            first.user.signed_in_id().unwrap_or_default()
        ));
    }
    Ok(())
}

/// Counts the users with an incentive who cannot be in a list of these segments.
fn unlisted(
    base: &Base,
    currency: &str,
    segments: &[Segment],
    decisions: BTreeMap<String, AssignedIncentive>,
) -> UnlistedIncentives {
    let given = decisions.into_iter().filter(|(_, decision)| decision.incentive != NO_INCENTIVE);
    let mut given: BTreeSet<String> = given.map(|(user, _)| user).collect();
    let mut counts = UnlistedIncentives::default();
    for user in &base.users {
        if !user.user.signed_in_id().is_some_and(|id| given.remove(id)) {
            continue;
        }
        match base.model.risk(&user.summary, base.day, currency) {
            Some(risk) if segments.contains(&risk.segment) => {}
            Some(_) => counts.other_segment += 1,
            None if user.summary.main_spend().is_none() => counts.no_purchase += 1,
            None => counts.other_currency += 1,
        }
    }
    counts.unknown_user = given.len();
    counts
}

/// Ranks products for each target as a server with this bundle and these events would.
fn recommend(args: &CampaignArgs, events: &[Event], targets: &mut [Target]) -> anyhow::Result<()> {
    let runtime = args.library.load()?;
    let bundle = Bundle::open(args.input.bundle())?;
    let mut models = Models::open(&runtime, &bundle, Device::Cpu)?;
    let generation = Generation::standalone(bundle, 1024)?;
    let bar = ProgressBar::new(events.len() as u64).with_style(style("{pos}/{len}")).with_message("state");
    for event in events {
        generation.state.apply_event(0, event);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let now = events.last().map_or(UnixMillis(0), |event| event.at);
    generation.state.publish_popularity(now);
    let bar = ProgressBar::new(targets.len() as u64).with_style(style("{pos}/{len}")).with_message("products");
    for batch in targets.chunks_mut(BATCH) {
        let requests: Vec<PlannedRequest> = batch.iter().map(|target| request(target.user, args.products)).collect();
        for (target, answer) in batch.iter_mut().zip(run_pipeline(&generation, &mut models, &requests, now)) {
            let current = CurrentItems { generation: &generation, catalog: &answer.catalog };
            let page = answer.slate.page(&generation, current, &PageStart::default(), args.products);
            let title = |id: &ItemId| {
                let row = generation.state.keys.get(id).and_then(|key| answer.catalog.row_of_key(key));
                row.map_or(String::new(), |row| answer.catalog.get(row).item.title.clone())
            };
            let product = |result: &lodestone_pipeline::RankedItem| Product {
                id: result.id.to_string(),
                title: title(&result.id),
                reasons: result.reasons.iter().map(|reason| reason.code.name()).collect::<Vec<_>>().join(";"),
            };
            target.products = page.results.iter().map(product).collect();
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn request(user: &UserId, products: usize) -> PlannedRequest {
    let request = RecommendRequest {
        viewer: Viewer::of_user(user.clone()),
        kind: RecommendKind::ForYou,
        page: Page { size: products, token: String::new(), number: 1, fingerprint: 0 },
        filter: None,
        anchors: Vec::new(),
        facets: Vec::new(),
        // The default of Recommend: one variant per product.
        options: Options { one_per_group: true, ..Options::default() },
        message: Vec::new(),
    };
    PlannedRequest {
        request: RankingRequest::Recommend(request),
        answer_id: [0; 16],
        plan: Plan::default(),
        logging: AnswerLogging::Skipped,
    }
}

fn columns(args: &CampaignArgs, summary: &Summary, targets: &[Target]) -> Vec<(String, Cells)> {
    let texts = |of: &dyn Fn(&Target) -> String| Cells::Texts(targets.iter().map(of).collect());
    let numbers = |of: &dyn Fn(&Target) -> f64| Cells::Numbers(targets.iter().map(|target| Some(of(target))).collect());
    let days = summary.horizon_days;
    let mut columns = vec![
        ("user_id".to_owned(), texts(&|of| of.user.signed_in_id().unwrap_or_default().to_owned())),
        ("segment".to_owned(), texts(&|of| of.risk.segment.name().to_owned())),
        ("currency".to_owned(), texts(&|_| summary.currency.clone())),
        (format!("value_at_risk_{days}d"), numbers(&|of| of.risk.value_at_risk())),
        (format!("purchase_probability_{days}d"), numbers(&|of| of.risk.purchase_probability)),
        (format!("return_probability_{days}d"), numbers(&|of| of.risk.return_probability)),
        (format!("expected_value_{days}d"), numbers(&|of| of.risk.expected_value)),
        ("purchase_days".to_owned(), Cells::Integers(targets.iter().map(|of| of.purchase_days).collect())),
    ];
    if args.decisions.is_some() {
        let decided = |of: &dyn Fn(&AssignedIncentive) -> &str| {
            texts(&|target: &Target| target.decision.as_ref().map_or(String::new(), |decision| of(decision).to_owned()))
        };
        let propensity = |target: &Target| target.decision.as_ref().map(|decision| decision.propensity);
        columns.push(("incentive_id".to_owned(), decided(&|of| &of.incentive)));
        columns.push(("incentive_reason".to_owned(), decided(&|of| &of.reason)));
        columns.push(("propensity".to_owned(), Cells::Numbers(targets.iter().map(propensity).collect())));
    }
    for index in 0..args.products {
        let number = index + 1;
        let of_product = |of: &dyn Fn(&Product) -> &str| {
            texts(&|target: &Target| target.products.get(index).map_or(String::new(), |product| of(product).to_owned()))
        };
        columns.push((format!("product_{number}"), of_product(&|of| &of.id)));
        columns.push((format!("title_{number}"), of_product(&|of| &of.title)));
        columns.push((format!("reasons_{number}"), of_product(&|of| &of.reasons)));
    }
    columns
}
