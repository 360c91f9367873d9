//! `lodestone loyalty`
use super::{
    campaign::{CampaignArgs, campaign, parquet_file, segment},
    exit::Exit,
    incentive_budget::{budgets, gaining},
    output::{FormatArgs, write_file},
    paths::{existing_directory, new_file},
    progress::style,
};
use anyhow::{anyhow, ensure};
use indicatif::ProgressBar;
use lodestone_core::{ids::UserId, units::UnixMillis};
use lodestone_dataset::{Cells, format_day, into_events, read_history, write_table};
use lodestone_engine::IncentiveReason;
use lodestone_events::{Event, EventKind, is_holdout};
use lodestone_experiments::plots::{self, Bar, BarGroup, Line, PAGE_STYLE, Scales, escape, section, wide};
use lodestone_loyalty::{
    Allocation, AllocationLimits, CHANGE_DAYS, CampaignUplift, Candidate, HorizonModel, HorizonScore, IncentiveEffect,
    LoyaltyModel, LoyaltyScore, Segment, TrainedLoyalty, UserSummary, allocate, day_of,
};
use lodestone_pipeline::bundle::Bundle;
use lodestone_rules::NO_INCENTIVE;
use rayon::prelude::*;
use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    path::{Path, PathBuf},
};

/// Months of the heat map of cohorts.
const MONTHS_MAX: usize = 24;
const MICROS: f64 = 1e6;

#[derive(clap::Subcommand)]
pub(crate) enum LoyaltyCommand {
    Score(ScoreArgs),
    Campaign(CampaignArgs),
    Report(ReportArgs),
    Assign(AssignArgs),
}

#[derive(clap::Args)]
pub(super) struct InputArgs {
    /// The shop's data: events.parquet, and the files that `lodestone events export` wrote to events/.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// The bundle with the loyalty model.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    bundle: PathBuf,
}

impl InputArgs {
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    pub(super) fn bundle(&self) -> &Path {
        &self.bundle
    }
}

/// Scores all signed-in users of a shop and writes them as Parquet, a row per user.
///
/// The scores are those that the server would return at the end of the last day of the events. The columns are
/// described in docs/loyalty.md.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone loyalty score --data data --bundle bundle --out scores.parquet")]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    input: InputArgs,
    /// The file of the scores.
    #[arg(long, value_name = "FILE", value_parser = parquet_file)]
    out: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// Writes a self-contained HTML page about the shop's customers.
///
/// It has the sizes of the segments and their changes, the time until the next purchase, the share of each month's new
/// customers that purchases again by month, the concentration of value, the expected gain of incentives over their budget,
/// and the calibration of the model in its backtest.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone loyalty report --data data --bundle bundle --out report.html")]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    input: InputArgs,
    /// The file of the page.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    out: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// Decides about incentives of a campaign for all users under a budget and writes the decisions as Parquet, a row per user.
///
/// Needs a bundle with an uplift model of the campaign. Only users outside the hold-out whose expected gain has a lower bound
/// (90 %, one-sided) above 0 receive one; the sum of the expected gains is as large as the budget and the limits allow. Prints
/// the budget price for the campaign's `budget_price`. The columns are described in docs/incentives.md.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone loyalty assign --data data --bundle bundle --campaign winter --holdout-share 0.1 \
      --budget 2000 --out decisions.parquet
  lodestone loyalty assign --data data --bundle bundle --campaign winter --holdout-share 0.1 --budget 2000 \
      --segment at-risk --segment lapsing --limit shipping=100 --segment-limit lapsing=50 --out decisions.parquet")]
pub(crate) struct AssignArgs {
    #[command(flatten)]
    input: InputArgs,
    /// The campaign of incentives.
    #[arg(long, value_name = "ID")]
    campaign: String,
    /// Greatest sum of expected costs, in the currency's unit.
    #[arg(long, value_name = "AMOUNT", allow_hyphen_values = true)]
    budget: f64,
    /// Share of the users in the campaign's hold-out, who receive nothing: `holdout_share` of the campaign, 0 to 1.
    #[arg(long, value_name = "0..1", allow_hyphen_values = true)]
    holdout_share: f64,
    /// Segment of the users: new, growing, loyal, at-risk, lapsing or lost. May be repeated. Default: all.
    #[arg(long = "segment", value_name = "NAME", value_parser = segment)]
    segments: Vec<Segment>,
    /// Greatest number of users who receive an incentive, such as shipping=100. May be repeated.
    #[arg(long, value_name = "ID=N", value_parser = incentive_limit)]
    limit: Vec<(String, usize)>,
    /// Greatest number of users of a segment who receive an incentive, such as loyal=0. May be repeated.
    #[arg(long, value_name = "NAME=N", value_parser = segment_limit)]
    segment_limit: Vec<(Segment, usize)>,
    /// The file of the decisions.
    #[arg(long, value_name = "FILE", value_parser = parquet_file)]
    out: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

fn incentive_limit(text: &str) -> Result<(String, usize), String> {
    limit(text, "ID=N, such as shipping=100").map(|(id, count)| (id.to_owned(), count))
}

fn segment_limit(text: &str) -> Result<(Segment, usize), String> {
    let (name, count) = limit(text, "NAME=N, such as loyal=0")?;
    Ok((segment(name).map_err(|problem| format!("`{name}` {problem}"))?, count))
}

fn limit<'a>(text: &'a str, form: &str) -> Result<(&'a str, usize), String> {
    let (name, count) = text.split_once('=').ok_or_else(|| format!("is not of the form {form}"))?;
    let count = count.parse().map_err(|_| format!("`{count}` is not a number of users"))?;
    Ok((name, count))
}

pub(crate) fn run(command: &LoyaltyCommand) -> anyhow::Result<Exit> {
    match command {
        LoyaltyCommand::Score(args) => score(args),
        LoyaltyCommand::Campaign(args) => campaign(args),
        LoyaltyCommand::Report(args) => report(args),
        LoyaltyCommand::Assign(args) => assign(args),
    }
}

/// A signed-in user with the fold of all events.
pub(super) struct KnownUser {
    pub(super) user: UserId,
    pub(super) summary: UserSummary,
}

/// The users of a shop at the end of the last day of its events.
pub(super) struct Base {
    pub(super) bundle: String,
    pub(super) model: LoyaltyModel,
    pub(super) day: u16,
    pub(super) users: Vec<KnownUser>,
    /// All events of the data, in the order of time.
    pub(super) events: Vec<Event>,
}

impl Base {
    pub(super) fn read(input: &InputArgs) -> anyhow::Result<Self> {
        let Bundle { manifest, loyalty, .. } = Bundle::open(&input.bundle)?;
        let model = match &*loyalty {
            TrainedLoyalty::Model(model) => (**model).clone(),
            TrainedLoyalty::Missing { reason } => {
                return Err(anyhow!(
                    "bundle {} has no loyalty model: {reason}; train on more events of signed-in users",
                    manifest.name
                ));
            }
        };
        let events = into_events(read_history(&input.data)?);
        let day = events.last().map_or(0, |event| day_of(event.at));
        let mut summaries: BTreeMap<UserId, UserSummary> = BTreeMap::new();
        let bar = ProgressBar::new(events.len() as u64).with_style(style("{pos}/{len}")).with_message("events");
        for event in &events {
            bar.inc(1);
            if event.user.is_signed_in() {
                summaries.entry(event.user.clone()).or_default().add(event);
            }
        }
        bar.finish_and_clear();
        ensure!(!summaries.is_empty(), "{} has no events of signed-in users", input.data.display());
        let users = summaries.into_iter().map(|(user, summary)| KnownUser { user, summary }).collect();
        Ok(Self { bundle: manifest.name, model, day, users, events })
    }

    /// Computes something of each user, with a progress bar.
    fn each_user<T: Send>(&self, of: impl Fn(&KnownUser) -> T + Sync) -> Vec<T> {
        let bar = ProgressBar::new(self.users.len() as u64).with_style(style("{pos}/{len}")).with_message("users");
        let with_progress = |user: &KnownUser| {
            bar.inc(1);
            of(user)
        };
        let all = self.users.par_iter().map(with_progress).collect();
        bar.finish_and_clear();
        all
    }

    /// Returns the segment of each user.
    fn segments(&self) -> Vec<Segment> {
        self.each_user(|user| self.model.segment(&user.summary, self.day))
    }

    /// `segments`: that of each user.
    fn summary(&self, segments: &[Segment], out: &Path) -> Summary {
        Summary {
            bundle: self.bundle.clone(),
            day: format_day(self.day.into()),
            users: self.users.len(),
            segments: segment_sizes(segments),
            out: out.to_owned(),
        }
    }
}

fn segment_sizes(segments: &[Segment]) -> Vec<SegmentSize> {
    let size = |segment: Segment| SegmentSize {
        segment: segment.name(),
        users: segments.iter().filter(|of| **of == segment).count(),
    };
    Segment::ALL.into_iter().map(size).collect()
}

#[derive(serde::Serialize)]
struct SegmentSize {
    segment: &'static str,
    users: usize,
}

/// The result of a command.
#[derive(serde::Serialize)]
struct Summary {
    bundle: String,
    /// The day at whose end the users are scored.
    day: String,
    users: usize,
    segments: Vec<SegmentSize>,
    out: PathBuf,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} users by bundle {} at the end of {}", self.users, self.bundle, self.day)?;
        for of in &self.segments {
            let share = 100.0 * of.users as f64 / self.users.max(1) as f64;
            writeln!(f, "{:<8} {:>9}  {share:>5.1} %", of.segment, of.users)?;
        }
        writeln!(f, "written to {}", self.out.display())
    }
}

fn score(args: &ScoreArgs) -> anyhow::Result<Exit> {
    let base = Base::read(&args.input)?;
    let scores = base.each_user(|user| base.model.score(Some(&user.summary), base.day));
    let segments: Vec<Segment> = scores.iter().map(|score| score.rule.segment).collect();
    let users = || base.users.iter();
    let of_scores = |of: &dyn Fn(&LoyaltyScore) -> String| Cells::Texts(scores.iter().map(of).collect());
    let mut columns = vec![
        ("user_id".to_owned(), Cells::Texts(users().map(|of| signed_in_id(&of.user)).collect())),
        ("segment".to_owned(), of_scores(&|of| of.rule.segment.name().to_owned())),
        ("currency".to_owned(), of_scores(&|of| of.currency.clone())),
        ("purchase_days".to_owned(), Cells::Integers(users().map(|of| of.summary.purchase_days().into()).collect())),
        ("visit_days".to_owned(), Cells::Integers(users().map(|of| of.summary.visit_days().into()).collect())),
    ];
    for (index, horizon) in base.model.horizons.iter().enumerate() {
        let days = horizon.days;
        let mut numbers = |name: String, of: &dyn Fn(&HorizonScore) -> Option<f64>| {
            let cells = scores.iter().map(|score| score.horizons.get(index).and_then(of)).collect();
            columns.push((name, Cells::Numbers(cells)));
        };
        numbers(format!("purchase_probability_{days}d"), &|of| Some(of.purchase.value));
        numbers(format!("purchase_probability_{days}d_low"), &|of| Some(of.purchase.low));
        numbers(format!("purchase_probability_{days}d_high"), &|of| Some(of.purchase.high));
        numbers(format!("return_probability_{days}d"), &|of| Some(of.return_visit.value));
        numbers(format!("return_probability_{days}d_low"), &|of| Some(of.return_visit.low));
        numbers(format!("return_probability_{days}d_high"), &|of| Some(of.return_visit.high));
        numbers(format!("expected_purchases_{days}d"), &|of| Some(of.purchases.value));
        numbers(format!("expected_value_{days}d"), &|of| of.value.map(|value| value.value));
        numbers(format!("purchase_probability_change_{days}d"), &|of| {
            of.earlier.map(|earlier| of.purchase.value - earlier[0])
        });
    }
    write_table(&args.out, columns)?;
    args.format.print(&base.summary(&segments, &args.out))?;
    Ok(Exit::Success)
}

fn signed_in_id(user: &UserId) -> String {
    user.signed_in_id().unwrap_or_default().to_owned()
}

/// An assignment of incentives.
#[derive(serde::Serialize)]
struct AssignmentSummary {
    campaign: String,
    /// The day at whose end the users are scored.
    day: String,
    /// Rows of the file.
    users: usize,
    /// Users with each incentive.
    incentives: BTreeMap<String, usize>,
    /// Users by the reason of their decision.
    reasons: BTreeMap<&'static str, usize>,
    expected_gain: f64,
    /// No assignment within the budget and the limits has a greater expected gain.
    expected_gain_bound: f64,
    duality_gap: f64,
    expected_cost: f64,
    budget_price: f64,
    out: PathBuf,
}

impl fmt::Display for AssignmentSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "campaign {}: {} users at the end of {}", self.campaign, self.users, self.day)?;
        for (incentive, count) in &self.incentives {
            writeln!(f, "{incentive:<24} {count:>9}")?;
        }
        for (reason, count) in self.reasons.iter().filter(|(reason, _)| **reason != IncentiveReason::Gain.name()) {
            writeln!(f, "{:<24} {count:>9}", format!("{NO_INCENTIVE}, {reason}"))?;
        }
        writeln!(
            f,
            "expected gain {:.2}, at most {:.2} is possible (duality gap {:.2}); expected cost {:.2}; budget price {:.4}",
            self.expected_gain, self.expected_gain_bound, self.duality_gap, self.expected_cost, self.budget_price
        )?;
        writeln!(f, "written to {}", self.out.display())
    }
}

/// A decision about one user.
struct AssignedUser<'a> {
    user: &'a KnownUser,
    segment: Segment,
    reason: IncentiveReason,
    /// The incentive with its effect; None: no incentive.
    incentive: Option<(&'a str, IncentiveEffect)>,
    propensity: f64,
}

fn assign(args: &AssignArgs) -> anyhow::Result<Exit> {
    let budget = args.budget;
    ensure!(budget.is_finite() && budget >= 0.0, "--budget is {budget}; it must be 0 or more");
    let share = args.holdout_share;
    ensure!((0.0..=1.0).contains(&share), "--holdout-share is {share}; it must be within 0 and 1");
    let base = Base::read(&args.input)?;
    let known = base.model.campaign_uplift(&args.campaign);
    let known = known.ok_or_else(|| {
        let campaigns: Vec<&str> = base.model.uplift.iter().map(|of| of.campaign_id.as_str()).collect();
        match campaigns.is_empty() {
            true => {
                anyhow!("bundle {} has no decisions; run a pilot, export its events, and train on them", base.bundle)
            }
            false => {
                let known = campaigns.join(", ");
                anyhow!("--campaign is {}; bundle {} has decisions of: {known}", args.campaign, base.bundle)
            }
        }
    })?;
    let model =
        known.model.as_ref().ok_or_else(|| anyhow!("no uplift model of {}: {}", args.campaign, known.reason))?;
    let names: Vec<&str> = model.incentives().collect();
    let segments = base.segments();
    let limits = allocation_limits(args, &names, &segments)?;
    let campaign = AssignedCampaign { names: &names, limits: &limits, uplift: known };
    let (decisions, found) = decisions(args, &base, &segments, &campaign);
    ensure!(!decisions.is_empty(), "none of the {} users is in a --segment", base.users.len());
    let mut incentives: BTreeMap<String, usize> = names.iter().map(|name| ((*name).to_owned(), 0)).collect();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for of in &decisions {
        *reasons.entry(of.reason.name()).or_default() += 1;
        of.incentive.iter().for_each(|(name, _)| *incentives.entry((*name).to_owned()).or_default() += 1);
    }
    write_table(&args.out, assignment_columns(&decisions))?;
    args.format.print(&AssignmentSummary {
        campaign: args.campaign.clone(),
        day: format_day(base.day.into()),
        users: decisions.len(),
        incentives,
        reasons,
        expected_gain: found.gain,
        expected_gain_bound: found.gain_bound,
        duality_gap: found.duality_gap,
        expected_cost: found.cost,
        budget_price: found.budget_price,
        out: args.out.clone(),
    })?;
    Ok(Exit::Success)
}

/// Returns the budget and the limits; the group of a user is the position of the segment in [`Segment::ALL`].
fn allocation_limits(args: &AssignArgs, names: &[&str], of_users: &[Segment]) -> anyhow::Result<AllocationLimits> {
    let mut incentives = vec![None; names.len()];
    for (id, count) in &args.limit {
        let index = names.iter().position(|name| name == id);
        let index = index.ok_or_else(|| anyhow!("--limit names {id}; the incentives are {}", names.join(", ")))?;
        ensure!(incentives[index].is_none(), "--limit names {id} twice; one limit of an incentive is possible");
        incentives[index] = Some(*count);
    }
    let mut groups = vec![None; Segment::ALL.len()];
    for (segment, count) in &args.segment_limit {
        let (name, index) = (segment.name(), segment_index(*segment));
        ensure!(groups[index].is_none(), "--segment-limit names {name} twice; one limit of a segment is possible");
        let is_chosen = args.segments.is_empty() || args.segments.contains(segment);
        ensure!(is_chosen, "--segment-limit names {name}, which is none of --segment");
        groups[index] = Some(*count);
    }
    let user_groups = of_users.iter().map(|segment| segment_index(*segment)).collect();
    Ok(AllocationLimits { budget: Some(args.budget), incentives, user_groups, groups })
}

fn segment_index(segment: Segment) -> usize {
    Segment::ALL.iter().position(|of| *of == segment).unwrap_or_default()
}

/// The incentives of a campaign with what limits their assignment.
struct AssignedCampaign<'a> {
    names: &'a [&'a str],
    limits: &'a AllocationLimits,
    uplift: &'a CampaignUplift,
}

/// Decides about each user of the segments. A user of the hold-out is decided by the prices of the assignment, so that the
/// decision has the probability with which the same user would have received an incentive. `segments`: that of each user.
fn decisions<'a>(
    args: &AssignArgs,
    base: &'a Base,
    segments: &[Segment],
    campaign: &AssignedCampaign<'a>,
) -> (Vec<AssignedUser<'a>>, Allocation) {
    let AssignedCampaign { names, limits, uplift } = *campaign;
    let is_chosen = |user: &usize| args.segments.is_empty() || args.segments.contains(&segments[*user]);
    let users: Vec<usize> = (0..base.users.len()).filter(is_chosen).collect();
    let of_users: Vec<Vec<(Candidate, IncentiveEffect)>> =
        users.par_iter().map(|user| gaining(base, uplift, *user)).collect();
    let is_holdout = |user: usize| is_holdout(&args.campaign, args.holdout_share, &base.users[user].user);
    let eligible = users.iter().zip(&of_users).filter(|(user, _)| !is_holdout(**user)).flat_map(|(_, of)| of);
    let candidates: Vec<Candidate> = eligible.map(|(candidate, _)| *candidate).collect();
    let found = allocate(&candidates, limits);
    let chosen: BTreeMap<usize, usize> =
        found.chosen.iter().map(|at| (candidates[*at].user, candidates[*at].incentive)).collect();
    let decision = |(user, of): (&usize, &Vec<(Candidate, IncentiveEffect)>)| {
        let group = limits.user_groups.get(*user).copied().unwrap_or_default();
        let incentive = of.iter().find(|(candidate, _)| chosen.get(user) == Some(&candidate.incentive));
        let is_priced_in = of.iter().any(|(candidate, _)| found.reduced_gain(candidate, group) > 0.0);
        let (reason, propensity) = match (is_holdout(*user), incentive) {
            (false, Some(_)) => (IncentiveReason::Gain, 1.0 - args.holdout_share),
            (true, _) if is_priced_in => (IncentiveReason::Holdout, args.holdout_share),
            _ if base.users[*user].summary.spends_only_in_others(&uplift.currency) => {
                (IncentiveReason::OtherCurrency, 1.0)
            }
            _ if of.is_empty() => (IncentiveReason::NoGain, 1.0),
            _ => (IncentiveReason::Budget, 1.0),
        };
        let incentive = incentive.map(|(candidate, effect)| (names[candidate.incentive], *effect));
        AssignedUser { user: &base.users[*user], segment: segments[*user], reason, incentive, propensity }
    };
    (users.iter().zip(&of_users).map(decision).collect(), found)
}

fn assignment_columns(decisions: &[AssignedUser]) -> Vec<(String, Cells)> {
    let texts = |of: &dyn Fn(&AssignedUser) -> String| Cells::Texts(decisions.iter().map(of).collect());
    let numbers = |of: &dyn Fn(&IncentiveEffect) -> f64| {
        let number = |decision: &AssignedUser| decision.incentive.as_ref().map(|(_, effect)| of(effect));
        Cells::Numbers(decisions.iter().map(number).collect())
    };
    let incentive = |of: &AssignedUser| of.incentive.as_ref().map_or(NO_INCENTIVE, |(name, _)| *name).to_owned();
    let columns = [
        ("user_id", texts(&|of| signed_in_id(&of.user.user))),
        ("segment", texts(&|of| of.segment.name().to_owned())),
        ("incentive_id", texts(&incentive)),
        ("reason", texts(&|of| of.reason.name().to_owned())),
        ("propensity", Cells::Numbers(decisions.iter().map(|of| Some(of.propensity)).collect())),
        ("gain", numbers(&|effect| effect.gain_micros.value / MICROS)),
        ("gain_low", numbers(&|effect| effect.gain_micros.low / MICROS)),
        ("gain_high", numbers(&|effect| effect.gain_micros.high / MICROS)),
        ("purchase_probability_change", numbers(&|effect| effect.purchase.value)),
        ("expected_cost", numbers(&|effect| effect.cost_micros / MICROS)),
    ];
    columns.into_iter().map(|(name, cells)| (name.to_owned(), cells)).collect()
}

fn report(args: &ReportArgs) -> anyhow::Result<Exit> {
    let base = Base::read(&args.input)?;
    let segments = base.segments();
    write_file("--out", &args.out, &page(&base, &segments))?;
    args.format.print(&base.summary(&segments, &args.out))?;
    Ok(Exit::Success)
}

fn page(base: &Base, segments: &[Segment]) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Loyalty</title><style>{PAGE_STYLE}{plot_style}</style></head><body>\
         <h1>Loyalty</h1><p>{users} signed-in users at the end of {day}, scored by bundle {bundle}.</p>",
        users = base.users.len(),
        day = escape(&format_day(base.day.into())),
        bundle = escape(&base.bundle),
        plot_style = plots::STYLE
    );
    section(&mut html, "Segments", "Number of users. The first rule of the bundle that applies decides.");
    let bar = |of: SegmentSize| BarGroup {
        name: of.segment.replace('_', " "),
        bars: vec![Bar { name: String::new(), mean: of.users as f64, low: of.users as f64, high: of.users as f64 }],
    };
    wide(&mut html, &plots::bars(&segment_sizes(segments).into_iter().map(bar).collect::<Vec<_>>()));
    flows(&mut html, base, segments);
    survival(&mut html, base);
    cohorts(&mut html, &base.events);
    concentration(&mut html, base);
    budgets(&mut html, base);
    for horizon in &base.model.horizons {
        calibration(&mut html, horizon);
    }
    html.push_str("</body></html>\n");
    html
}

/// Adds a table of the segments of [`CHANGE_DAYS`] days ago and of now.
fn flows(html: &mut String, base: &Base, segments: &[Segment]) {
    let mut counts = [[0usize; Segment::ALL.len()]; Segment::ALL.len() + 1];
    let then = base.day.saturating_sub(CHANGE_DAYS);
    let mut earlier: BTreeMap<&UserId, UserSummary> = BTreeMap::new();
    let events = base.events.iter().filter(|event| event.user.is_signed_in());
    events.take_while(|event| day_of(event.at) <= then).for_each(|event| {
        earlier.entry(&event.user).or_default().add(event);
    });
    let position = |segment: Segment| Segment::ALL.into_iter().position(|of| of == segment).unwrap_or_default();
    for (user, segment) in base.users.iter().zip(segments) {
        let before = earlier.get(&user.user).map(|summary| base.model.segment(summary, then));
        counts[before.map_or(Segment::ALL.len(), position)][position(*segment)] += 1;
    }
    section(
        html,
        "Changes of segments",
        &format!(
            "Rows: segment {CHANGE_DAYS} days before, by the events until then; columns: segment now. Cells: number of \
             users, and in color their share of the row. The model is the same for both days."
        ),
    );
    let name = |segment: &Segment| segment.name().replace('_', " ");
    let mut table = "<table><tr><th>before</th>".to_owned();
    Segment::ALL.iter().for_each(|segment| _ = write!(table, "<th>{}</th>", name(segment)));
    table.push_str("<th>all</th></tr>");
    let names = Segment::ALL.iter().map(name).chain(["no events".to_owned()]);
    for (before, row) in names.zip(&counts) {
        let total: usize = row.iter().sum();
        let _ = write!(table, "<tr><td>{before}</td>");
        for count in row {
            let share = *count as f64 / total.max(1) as f64;
            let _ = write!(table, "<td style=\"background:rgba(31,111,235,{share:.2})\">{count}</td>");
        }
        let _ = write!(table, "<td>{total}</td></tr>");
    }
    table.push_str("</table>");
    wide(html, &table);
}

/// Adds the Kaplan–Meier estimate of the time until the next purchase, by the number of the purchase before it.
fn survival(html: &mut String, base: &Base) {
    let mut days: BTreeMap<&UserId, Vec<u16>> = BTreeMap::new();
    for event in base.events.iter().filter(|event| event.kind == EventKind::Purchase && event.user.is_signed_in()) {
        days.entry(&event.user).or_default().push(day_of(event.at));
    }
    // By group: days until the next purchase, or until the end of the events, and whether it happened.
    let groups = [("1st purchase", 1..=1), ("2nd and 3rd", 2..=3), ("4th and later", 4..=usize::MAX)];
    let mut spans: [Vec<(u16, bool)>; 3] = Default::default();
    for days in days.values_mut() {
        days.sort_unstable();
        days.dedup();
        for (index, day) in days.iter().enumerate() {
            let next = days.get(index + 1);
            let span = next.copied().unwrap_or(base.day).saturating_sub(*day);
            let group = groups.iter().position(|(_, numbers)| numbers.contains(&(index + 1))).unwrap_or_default();
            spans[group].push((span, next.is_some()));
        }
    }
    section(
        html,
        "Time until the next purchase",
        "Share of customers who have not purchased again by the number of days after a purchase: the Kaplan–Meier \
         estimate, in which purchases near the end of the events are censored.",
    );
    let lines: Vec<Line> = groups
        .iter()
        .zip(&mut spans)
        .filter(|(_, spans)| !spans.is_empty())
        .map(|((name, _), spans)| Line { name: (*name).to_owned(), points: kaplan_meier(spans) })
        .collect();
    match lines.is_empty() {
        true => html.push_str("<p>No signed-in user purchased.</p>"),
        false => wide(html, &plots::lines(&lines, "days", "share without a purchase", Scales::Independent)),
    }
}

/// Returns the Kaplan–Meier estimate of the share without an event by time. `spans`: the time until the event, or until
/// the end of the observation, and whether it happened. Ends where fewer than ten are still observed.
fn kaplan_meier(spans: &mut [(u16, bool)]) -> Vec<(f64, f64)> {
    const OBSERVED_MIN: usize = 10;
    spans.sort_unstable();
    let (mut share, mut observed, mut points) = (1.0, spans.len(), vec![(0.0, 1.0)]);
    for equal in spans.chunk_by(|left, right| left.0 == right.0) {
        if observed < OBSERVED_MIN {
            break;
        }
        let events = equal.iter().filter(|of| of.1).count();
        share *= 1.0 - events as f64 / observed as f64;
        observed -= equal.len();
        points.push((equal[0].0.into(), share));
    }
    points
}

/// Returns the months since 1970.
fn month(at: UnixMillis) -> Option<i32> {
    let time = jiff::Timestamp::from_millisecond(at.0).ok()?.to_zoned(jiff::tz::TimeZone::UTC);
    Some((i32::from(time.year()) - 1970) * 12 + i32::from(time.month()) - 1)
}

/// Adds a heat map: the customers by the month of their first purchase, and the share that purchases in each later
/// month.
fn cohorts(html: &mut String, events: &[Event]) {
    let mut months: BTreeMap<&UserId, Vec<i32>> = BTreeMap::new();
    for event in events.iter().filter(|event| event.kind == EventKind::Purchase && event.user.is_signed_in()) {
        if let Some(month) = month(event.at) {
            months.entry(&event.user).or_default().push(month);
        }
    }
    let last = months.values().filter_map(|of| of.last()).max().copied().unwrap_or(0);
    let mut cohorts: BTreeMap<i32, (usize, Vec<usize>)> = BTreeMap::new();
    for months in months.values_mut() {
        months.dedup();
        let first = months[0];
        let known = (last - first) as usize + 1;
        let (size, buyers) = cohorts.entry(first).or_insert_with(|| (0, vec![0; known.min(MONTHS_MAX)]));
        *size += 1;
        months.iter().for_each(|month| {
            if let Some(count) = buyers.get_mut((month - first) as usize) {
                *count += 1;
            }
        });
    }
    section(
        html,
        "Retention by cohort",
        "Rows: month of the first purchase, with the number of customers. Columns: months since. Cells: share of these \
         customers with a purchase in that month, in percent. The last month may be incomplete.",
    );
    let columns = cohorts.values().map(|(_, buyers)| buyers.len()).max().unwrap_or(0);
    let mut table = "<table><tr><th>month</th><th>customers</th>".to_owned();
    (1..columns).for_each(|month| _ = write!(table, "<th>{month}</th>"));
    table.push_str("</tr>");
    for (first, (size, buyers)) in &cohorts {
        let _ = write!(table, "<tr><td>{}-{:02}</td><td>{size}</td>", 1970 + first / 12, first % 12 + 1);
        for count in &buyers[1..] {
            let share = *count as f64 / (*size).max(1) as f64;
            let _ = write!(table, "<td style=\"background:rgba(31,111,235,{:.2})\">{:.0}</td>", share, 100.0 * share);
        }
        table.push_str("</tr>");
    }
    table.push_str("</table>");
    wide(html, &table);
}

/// Adds the share of value that the customers with the highest values account for, in the main currency.
fn concentration(html: &mut String, base: &Base) {
    let of_user = |user: &KnownUser| {
        let spend = user.summary.main_spend().filter(|spend| spend.currency() == base.model.currency)?;
        Some(spend.net())
    };
    let mut values: Vec<f64> = base.users.iter().filter_map(of_user).collect();
    values.sort_by(|left, right| right.total_cmp(left));
    let total: f64 = values.iter().sum();
    if total <= 0.0 {
        section(html, "Concentration of value", "No purchase of the events has a price.");
        return;
    }
    let mut sum = 0.0;
    let shares: Vec<(f64, f64)> = values
        .iter()
        .enumerate()
        .map(|(index, value)| {
            sum += value;
            ((index + 1) as f64 / values.len() as f64, sum / total)
        })
        .collect();
    let tenth = shares[(values.len().div_ceil(10) - 1).min(shares.len() - 1)].1;
    let currency = if base.model.currency.is_empty() { "the shop's currency" } else { &base.model.currency };
    section(
        html,
        "Concentration of value",
        &format!(
            "Customers by the value of their purchases without refunds in {currency}, the highest first. The first tenth \
             accounts for {:.0} % of the value.",
            100.0 * tenth
        ),
    );
    let step = (shares.len() / 200).max(1);
    let points = std::iter::once((0.0, 0.0)).chain(shares.into_iter().step_by(step)).chain([(1.0, 1.0)]).collect();
    let line = Line { name: "value".to_owned(), points };
    wide(html, &plots::lines(&[line], "share of customers", "share of value", Scales::Shared));
}

/// Adds the calibration of a horizon in its backtest.
fn calibration(html: &mut String, horizon: &HorizonModel) {
    let title = format!("Purchase within {} days", horizon.days);
    let Some(validation) = &horizon.validation else {
        section(html, &title, "The events of the training are too few for a backtest.");
        return;
    };
    let quality = validation.quality.iter().map(|of| {
        let (target, model) = (&of.target, &of.model);
        format!("{target} {model}: AUC {:.3}, log-loss {:.4}, Brier {:.4}", of.auc, of.log_loss, of.brier)
    });
    let note = format!(
        "Backtest: fitted to the events until {}, compared with the {} days after it; {} customers in ten groups. {}.",
        format_day(validation.cut_day.into()),
        horizon.days,
        validation.customer_count,
        quality.collect::<Vec<_>>().join("; ")
    );
    section(html, &title, &note);
    let points = validation.groups.iter().map(|group| (group[0], group[1])).collect();
    let line = Line { name: "purchase".to_owned(), points };
    wide(html, &plots::lines(&[line], "predicted", "observed", Scales::Shared));
    let mut table = "<table><tr><th>group</th><th>predicted, %</th><th>observed, %</th></tr>".to_owned();
    for (index, [predicted, observed]) in validation.groups.iter().enumerate() {
        let (predicted, observed) = (100.0 * predicted, 100.0 * observed);
        let _ = write!(table, "<tr><td>{}</td><td>{predicted:.1}</td><td>{observed:.1}</td></tr>", index + 1);
    }
    table.push_str("</table>");
    wide(html, &table);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn censored_spans_lower_the_number_at_risk_only() {
        // Of 20, five purchase on day 2; five are last observed on day 3; five of the remaining ten purchase on day 4.
        let mut spans: Vec<(u16, bool)> = vec![(4, true); 5];
        spans.extend([(2, true), (3, false), (9, false)].into_iter().flat_map(|span| vec![span; 5]));
        let points = kaplan_meier(&mut spans);
        let expected = [(0.0, 1.0), (2.0, 0.75), (3.0, 0.75), (4.0, 0.375)];
        assert_eq!(points.len(), expected.len(), "{points:?}");
        for (of, expected) in points.iter().zip(expected) {
            assert!(of.0 == expected.0 && (of.1 - expected.1).abs() < 1e-12, "{points:?}");
        }
    }
}
