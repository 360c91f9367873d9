//! answers: the log of answers, for users and for other programs.
use super::{Format, time};
use anyhow::Context;
use clap::Subcommand;
use lodestone_core::units::UnixMillis;
use lodestone_engine::ANSWERS;
use lodestone_pipeline::answers::{self, AnswerRecord, AnswersError, Lost, SlotRow};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

#[derive(Subcommand)]
pub(super) enum AnswersCommand {
    /// Writes one row for each slot that was shown, as Parquet, a directory for each day. Each row has the probability with
    /// which its item was shown there; joined with events by the answer's id, it is what `evaluate --off-policy` needs.
    Export(ExportArgs),
    /// Prints one answer: what was asked, what was shown, and why.
    Show(ShowArgs),
}

#[derive(clap::Args)]
pub(super) struct ExportArgs {
    /// The server's data directory. It may be serving.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Answers from here on: a day (2026-11-25), a time (2026-11-25T08:00:00Z), or a span before now (7d, 12h).
    #[arg(long, value_name = "TIME", default_value = "1970-01-01")]
    since: String,
    /// Where the files come: OUT/day=2026-11-25/answers.parquet. Files of these days are replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Samples for probabilities that are not known exactly; their standard errors are in the rows.
    #[arg(long, value_name = "N", default_value_t = 200)]
    samples: usize,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(clap::Args)]
pub(super) struct ShowArgs {
    /// The answer's id, a UUID: as ReplayAnswer and exported rows tell it.
    #[arg(value_name = "ID")]
    id: uuid::Uuid,
    /// The server's data directory. It may be serving.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Samples for probabilities that are not known exactly.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    samples: usize,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(serde::Serialize)]
struct Exported {
    answer_count: usize,
    row_count: usize,
    days: Vec<String>,
    damaged_block_count: usize,
    torn_byte_count: u64,
}

pub(super) fn run(command: AnswersCommand) -> anyhow::Result<i32> {
    match command {
        AnswersCommand::Export(args) => export(&args).map(|()| 0),
        AnswersCommand::Show(args) => show(&args),
    }
}

fn export(args: &ExportArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        (1..=1_000_000).contains(&args.samples),
        "--samples is {}; it must be within 1 and 1,000,000",
        args.samples
    );
    let since = time::since(&args.since, UnixMillis::now()).context("--since")?;
    let directory = args.data.join(ANSWERS);
    anyhow::ensure!(directory.is_dir(), "{} is not there: no answer was logged", directory.display());
    // Answers are written in the order of their days, but for a few around midnight.
    let mut days = Days { out: &args.out, open: BTreeMap::new(), written: Vec::new() };
    let (mut answer_count, mut row_count, mut unfit, mut failure) = (0, 0, 0, None);
    let lost = answers::for_each_record(&directory, since, |record| match record.rows(args.samples) {
        Ok(rows) => {
            answer_count += 1;
            row_count += rows.len();
            if let Err(error) = days.add(rows) {
                failure.get_or_insert(error);
            }
        }
        Err(_) => unfit += 1,
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    days.finish()?;
    let Lost { damaged_blocks, torn_bytes } = lost;
    let exported = Exported {
        answer_count,
        row_count,
        days: days.written,
        damaged_block_count: damaged_blocks + unfit,
        torn_byte_count: torn_bytes,
    };
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&exported)?),
        Format::Text => {
            println!(
                "{answer_count} answers, {row_count} rows, {} days in {}",
                exported.days.len(),
                args.out.display()
            );
            if exported.damaged_block_count > 0 || torn_bytes > 0 {
                let blocks = exported.damaged_block_count;
                println!("left out: {blocks} damaged blocks or records, {torn_bytes} bytes at the ends of files");
            }
        }
    }
    Ok(())
}

/// Rows by day. A day is written when a day after the next one begins.
struct Days<'a> {
    out: &'a Path,
    open: BTreeMap<String, Vec<SlotRow>>,
    written: Vec<String>,
}

impl Days<'_> {
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
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        answers::write_rows(&directory.join("answers.parquet"), rows)?;
        self.written.push(day);
        Ok(())
    }
}

fn show(args: &ShowArgs) -> anyhow::Result<i32> {
    let found: Result<Option<AnswerRecord>, AnswersError> = answers::find(&args.data.join(ANSWERS), args.id.as_bytes());
    let Some(record) = found? else {
        println!(
            "there is no record of answer {}: it was not logged, is older than records are kept, or is still on its way",
            args.id
        );
        return Ok(1);
    };
    let rows = record.rows(args.samples)?;
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&told(&record, &rows))?),
        Format::Text => print(&record, &rows)?,
    }
    Ok(0)
}

fn told(record: &AnswerRecord, rows: &[SlotRow]) -> serde_json::Value {
    let slots = rows.iter().map(|row| {
        serde_json::json!({
            "slot": row.slot,
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
        let candidates = source.candidates.iter().filter_map(|at| record.items.get(*at as usize));
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
        "session_version": record.session_version,
        "corrected_query": record.corrected_query,
        "explored": record.explored,
        "seed": record.seed,
        "candidate_count": record.candidate_count,
        "total_size": record.slate_size,
        "sources": sources.collect::<Vec<_>>(),
        "slots": slots.collect::<Vec<_>>(),
    })
}

fn print(record: &AnswerRecord, rows: &[SlotRow]) -> anyhow::Result<()> {
    let at = jiff::Timestamp::from_millisecond(record.at_ms).context("the time of the answer")?;
    let configs: Vec<&str> = record.rankings.iter().map(|ranking| ranking.serving_config.as_str()).collect();
    println!("{} for {} at {at}", record.kind().name(), record.user);
    println!("  generation {}, serving configuration {}", record.generation, configs.join(" and "));
    if !record.experiment.is_empty() {
        println!("  experiment {}, arm {}", record.experiment, record.arm);
    }
    for source in &record.sources {
        println!(
            "  {:<14} found {:>4}, {:>4} of them candidates",
            source.name,
            source.found_count,
            source.candidates.len()
        );
    }
    println!(
        "  {} candidates, {} on all pages, explored: {}",
        record.candidate_count, record.slate_size, record.explored
    );
    println!("{:>5}  {:<24} {:>12} {:>11} {:>8}  {:>8}", "slot", "item", "score", "propensity", "± 1 SE", "organic");
    for row in rows {
        let (probability, error) = (row.propensity.probability, row.propensity.standard_error);
        let pinned = if row.is_pinned { " pinned" } else { "" };
        println!(
            "{:>5}  {:<24} {:>12.6} {probability:>11.6} {error:>8.6}  {:>8}{pinned}",
            row.slot, row.item, row.score, row.organic_slot
        );
    }
    Ok(())
}
