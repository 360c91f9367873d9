//! `lodestone answers`: reads the answer log.
use super::{
    exit::Exit,
    numbers::within,
    output::{FormatArgs, OutputArgs},
    paths::{existing_directory, output_directory},
    time,
};
use crate::server::{
    explain::{LoggedRequest, logged_request},
    proto,
};
use anyhow::Context;
use clap::Subcommand;
use lodestone_core::units::UnixMillis;
use lodestone_engine::ANSWERS;
use lodestone_events::storage;
use lodestone_pipeline::answers::{self, AnswerRecord, Damage, SlotExplanation, SlotRecord, SlotRow};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

/// Greatest number of Monte Carlo samples.
const SAMPLES_MAX: u64 = 1_000_000;

#[derive(Subcommand)]
pub(crate) enum AnswersCommand {
    Export(ExportArgs),
    Show(ShowArgs),
}

/// Writes logged answers as Parquet: a row per slot, a directory per day.
///
/// Each row has the probability with which the policy showed its item in its slot. Joined with events by the id of the
/// answer, the rows are the input of `lodestone evaluate --off-policy`. The columns are described in docs/answers.md.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone answers export --data data --since 7d --out answers")]
pub(crate) struct ExportArgs {
    /// The data directory of the server, which may be running.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// Start of the export: a day (2026-11-25), a time (2026-11-25T08:00:00Z), or a span before now (7d, 12h).
    #[arg(long, value_name = "TIME", default_value = "1970-01-01")]
    since: String,
    /// Directory for the files OUT/day=2026-11-25/answers.parquet. Existing files of exported days are replaced.
    #[arg(long, value_name = "DIR", value_parser = output_directory)]
    out: PathBuf,
    /// Monte Carlo samples for probabilities without a closed form. The rows have their standard errors.
    #[arg(long, value_name = "N", value_parser = within(1..=SAMPLES_MAX), default_value_t = 200)]
    samples: usize,
    #[command(flatten)]
    format: FormatArgs,
}

/// Prints one answer: its request, and for each slot the reasons, the parts of the score, and the probability. Exit
/// code 1 if it is not logged.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone answers show 019abb12-7c1e-7d30-8a50-2f6f3c8b9d10 --data data")]
pub(crate) struct ShowArgs {
    /// Id of the answer, a UUID: `answerId` of ReplayAnswer, `answer_id` in exported rows.
    #[arg(value_name = "ID", value_parser = answer_id)]
    id: uuid::Uuid,
    /// The data directory of the server, which may be running.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// Monte Carlo samples for probabilities without a closed form.
    #[arg(long, value_name = "N", value_parser = within(1..=SAMPLES_MAX), default_value_t = 1000)]
    samples: usize,
    #[command(flatten)]
    output: OutputArgs,
}

/// Parses the id of an answer.
fn answer_id(text: &str) -> Result<uuid::Uuid, String> {
    uuid::Uuid::parse_str(text).map_err(|_| {
        "is not the id of an answer, which is a UUID such as 019abb12-7c1e-7d30-8a50-2f6f3c8b9d10; pass the answerId that \
         ReplayAnswer returns for an attribution token"
            .to_owned()
    })
}

pub(crate) fn run(command: &AnswersCommand) -> anyhow::Result<Exit> {
    match command {
        AnswersCommand::Export(args) => export(args),
        AnswersCommand::Show(args) => show(args),
    }
}

#[derive(serde::Serialize)]
struct Exported {
    answer_count: usize,
    row_count: usize,
    days: Vec<String>,
    damaged_block_count: usize,
    torn_byte_count: u64,
    #[serde(skip)]
    out: PathBuf,
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answer_count, row_count, days, damaged_block_count, torn_byte_count, out } = self;
        writeln!(f, "{answer_count} answers, {row_count} rows, {} days in {}", days.len(), out.display())?;
        if *damaged_block_count > 0 || *torn_byte_count > 0 {
            writeln!(
                f,
                "left out: {damaged_block_count} damaged blocks or records, {torn_byte_count} bytes of incomplete blocks \
                 at the ends of files"
            )?;
        }
        Ok(())
    }
}

/// Returns the directory of the answer log in the data directory of a server.
fn answer_log(data: &Path) -> anyhow::Result<PathBuf> {
    let directory = data.join(ANSWERS);
    anyhow::ensure!(
        directory.is_dir(),
        "{} does not exist: no server has logged answers in this data directory; check --data, and --answers-share of \
         `lodestone serve`",
        directory.display()
    );
    Ok(directory)
}

fn export(args: &ExportArgs) -> anyhow::Result<Exit> {
    let since = time::since(&args.since, UnixMillis::now()).context("--since")?;
    let directory = answer_log(&args.data)?;
    let mut days = DayFiles { out: &args.out, open: BTreeMap::new(), written: Vec::new() };
    let (mut answer_count, mut row_count, mut invalid, mut failure) = (0, 0, 0, None);
    let lost = answers::for_each_record(&directory, since, |record| match record.rows(args.samples) {
        Ok(rows) => {
            answer_count += 1;
            row_count += rows.len();
            if let Err(error) = days.add(rows) {
                failure.get_or_insert(error);
            }
        }
        Err(_) => invalid += 1,
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    days.finish()?;
    let Damage { damaged_blocks, torn_bytes } = lost;
    args.format.print(&Exported {
        answer_count,
        row_count,
        days: days.written,
        damaged_block_count: damaged_blocks + invalid,
        torn_byte_count: torn_bytes,
        out: args.out.clone(),
    })?;
    Ok(Exit::Success)
}

/// Collects rows by day. Records come in the order of days, except for a few around midnight: a day is written when the
/// second day after it begins.
struct DayFiles<'a> {
    out: &'a Path,
    open: BTreeMap<String, Vec<SlotRow>>,
    written: Vec<String>,
}

impl DayFiles<'_> {
    fn add(&mut self, rows: Vec<SlotRow>) -> anyhow::Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        self.open.entry(answers::day(first.at)).or_default().extend(rows);
        if self.open.len() > 2
            && let Some((day, rows)) = self.open.pop_first()
        {
            self.write(day, &rows)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        while let Some((day, rows)) = self.open.pop_first() {
            self.write(day, &rows)?;
        }
        Ok(())
    }

    fn write(&mut self, day: String, rows: &[SlotRow]) -> anyhow::Result<()> {
        let directory = self.out.join(format!("day={day}"));
        storage::create_private_directory(&directory).with_context(|| directory.display().to_string())?;
        answers::write_rows(&directory.join("answers.parquet"), rows)?;
        self.written.push(day);
        Ok(())
    }
}

fn show(args: &ShowArgs) -> anyhow::Result<Exit> {
    let record = answers::find(&answer_log(&args.data)?, args.id.as_bytes())?;
    let Some(record) = record else {
        args.output.write(&Missing { answer_id: args.id.to_string(), is_logged: false })?;
        return Ok(Exit::No);
    };
    let rows = record.rows(args.samples)?;
    args.output.write(&Shown { record: &record, rows: &rows })?;
    Ok(Exit::Success)
}

#[derive(serde::Serialize)]
struct Missing {
    answer_id: String,
    is_logged: bool,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "there is no record of answer {}: it was not logged, is older than the retention, or is not written yet",
            self.answer_id
        )
    }
}

struct Shown<'a> {
    record: &'a AnswerRecord,
    rows: &'a [SlotRow],
}

impl serde::Serialize for Shown<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

impl Shown<'_> {
    fn json(&self) -> serde_json::Value {
        let record = self.record;
        let slots = self.rows.iter().zip(&record.slots).map(|(row, slot)| {
            serde_json::json!({
                "slot": row.slot,
                "reasons": reasons(slot),
                "explanation": record.explain_slot(slot),
                "item_id": row.item,
                "score": row.score,
                "serving_config": row.serving_config,
                "propensity": row.propensity.probability,
                "propensity_standard_error": row.propensity.standard_error,
                "propensity_conditional": row.conditional,
                "organic_slot": row.organic_slot,
                "is_pinned": row.is_pinned,
                "heads": row.heads.iter().cloned().collect::<BTreeMap<String, f32>>(),
            })
        });
        let sources = record.sources.iter().map(|source| {
            let candidates = source.candidates.iter().filter_map(|index| record.items.get(*index as usize));
            let scored: Vec<_> = candidates.zip(&source.scores).collect();
            serde_json::json!({ "source": source.name, "found_count": source.found_count, "candidates": scored })
        });
        serde_json::json!({
            "time_ms": record.at_ms,
            "user": record.user,
            "kind": record.kind().name(),
            "experiment": record.experiment,
            "arm": record.arm,
            "generation": record.generation,
            "models": record.models.iter().map(|model| (&model.name, &model.sha256)).collect::<BTreeMap<_, _>>(),
            "feature_schema": record.feature_schema,
            "request": request_parts(record).into_iter().collect::<BTreeMap<_, _>>(),
            "log_position": record.log_position,
            "corrected_query": record.corrected_query,
            "completions": record.completions,
            "applied_rules": record.applied_rules.iter().map(|rule| &rule.rule_id).collect::<Vec<_>>(),
            "explored": record.explored,
            "seed": record.seed,
            "candidate_count": record.candidate_count,
            "total_size": record.slate_size,
            "sources": sources.collect::<Vec<_>>(),
            "slots": slots.collect::<Vec<_>>(),
        })
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.record;
        let at = UnixMillis(record.at_ms);
        let configs: Vec<&str> = record.rankings.iter().map(|ranking| ranking.serving_config.as_str()).collect();
        writeln!(f, "{} for {} at {at}", record.kind().name(), record.user)?;
        writeln!(f, "  generation {}, serving configuration {}", record.generation, configs.join(" and "))?;
        if !record.experiment.is_empty() {
            writeln!(f, "  experiment {}, arm {}", record.experiment, record.arm)?;
        }
        for (name, value) in request_parts(record) {
            writeln!(f, "  {name}: {value}")?;
        }
        if !record.corrected_query.is_empty() {
            writeln!(f, "  corrected query: {}", record.corrected_query)?;
        }
        for source in &record.sources {
            let candidates = source.candidates.len();
            writeln!(f, "  {:<14} found {:>4}, {candidates:>4} of them candidates", source.name, source.found_count)?;
        }
        writeln!(
            f,
            "  {} candidates, {} on all pages, explored: {}",
            record.candidate_count, record.slate_size, record.explored
        )?;
        writeln!(
            f,
            "{:>5}  {:<24} {:>12} {:>11} {:>8}  {:>8}",
            "slot", "item", "score", "propensity", "± 1 SE", "organic"
        )?;
        for (row, slot) in self.rows.iter().zip(&record.slots) {
            let (probability, error) = (row.propensity.probability, row.propensity.standard_error);
            let pinned = if row.is_pinned { " pinned" } else { "" };
            writeln!(
                f,
                "{:>5}  {:<24} {:>12.6} {probability:>11.6} {error:>8.6}  {:>8}{pinned}",
                row.slot, row.item, row.score, row.organic_slot
            )?;
            write!(f, "       {}", reasons(slot).join(", "))?;
            match record.explain_slot(slot) {
                None => writeln!(f)?,
                Some(parts) => write_parts(f, &parts)?,
            }
        }
        Ok(())
    }
}

/// The names of the result's reason codes without their prefix.
fn reasons(slot: &SlotRecord) -> Vec<&'static str> {
    let name = |number: &i32| proto::ReasonCode::try_from(*number).unwrap_or_default().as_str_name();
    slot.reasons.iter().map(name).map(|name| name.trim_start_matches("REASON_CODE_")).collect()
}

/// Writes the sum that makes the score, and the sources that found the item.
fn write_parts(f: &mut fmt::Formatter<'_>, parts: &SlotExplanation) -> fmt::Result {
    let mut sum: Vec<String> =
        parts.heads.iter().map(|head| format!("{} {:.4} × {}", head.name, head.probability, head.weight)).collect();
    sum.extend(parts.retrieval.map(|score| format!("retrieval {score:.4}")));
    sum.extend(parts.objectives.map(|change| format!("objectives {change:.4}")));
    if parts.tier > 0 {
        sum.push(format!("query tier {}", parts.tier));
    }
    // Boosts divide a score below 0.
    let weighted: f32 = parts.heads.iter().map(|head| head.weight * head.probability).sum();
    let weighted = weighted + parts.objectives.unwrap_or(0.0);
    let is_negative = weighted + parts.retrieval.unwrap_or(0.0) + f32::from(parts.tier) < 0.0;
    let sign = if is_negative { '÷' } else { '×' };
    let boosts: String = parts.boosts.iter().map(|factor| format!(" {sign} boost {factor}")).collect();
    match boosts.is_empty() {
        true => writeln!(f, "; score = {}", sum.join(" + "))?,
        false => writeln!(f, "; score = ({}){boosts}", sum.join(" + "))?,
    }
    let sources = parts.sources.iter().map(|source| format!("{} {} ({:.4})", source.name, source.rank, source.score));
    writeln!(f, "       found by {}", sources.collect::<Vec<_>>().join(", "))
}

/// The parts of the request that say what was asked for, with their names; absent ones are left out.
fn request_parts(record: &AnswerRecord) -> Vec<(&'static str, String)> {
    let (mut parts, options) = match logged_request(record) {
        None => return vec![("request", "the record has no readable request".to_owned())],
        Some(LoggedRequest::Search(request)) => {
            (vec![("query", request.query), ("filter", request.filter)], request.options)
        }
        Some(LoggedRequest::Recommend(request)) => {
            let kind = request.r#type().as_str_name().trim_start_matches("RECOMMEND_TYPE_").to_owned();
            let anchors = request.anchor_item_ids.join(", ");
            (vec![("type", kind), ("anchors", anchors), ("filter", request.filter)], request.options)
        }
        Some(LoggedRequest::Rank(request)) => {
            let ids: Vec<&str> = request.candidates.iter().map(|candidate| candidate.item_id.as_str()).collect();
            (vec![("query", request.query), ("candidates", ids.join(", "))], request.options)
        }
        Some(LoggedRequest::Suggest(request)) => (
            vec![
                ("prefix", request.prefix),
                ("filter", request.filter),
                ("completions", record.completions.join(", ")),
            ],
            None,
        ),
    };
    if let Some(options) = options {
        let boosts = options.boosts.iter().map(|boost| format!("{} × {}", boost.filter, boost.factor));
        let pins = options.pins.iter().map(|pin| format!("{} at {}", pin.item_id, pin.rank));
        let context = options.context_events.iter().flat_map(|event| &event.lines).map(|line| line.item_id.clone());
        parts.extend([
            ("order by", options.order_by),
            ("boosts", boosts.collect::<Vec<_>>().join(", ")),
            ("pins", pins.collect::<Vec<_>>().join(", ")),
            ("context events on", context.collect::<Vec<_>>().join(", ")),
            ("excluded", options.exclude_item_ids.join(", ")),
            ("diversity", options.diversity.map_or_else(String::new, |diversity| diversity.to_string())),
        ]);
    }
    parts.retain(|(_, value)| !value.is_empty());
    parts
}
