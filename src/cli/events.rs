//! events: the log of what shoppers did, without a server.
use super::Format;
use lodestone_dataset as dataset;
use lodestone_events::{checkpoint::Checkpoint, log::{self, Check, CompactMode, DamagedPart, Retention}};
use lodestone_core::units::UnixMillis;
use anyhow::Context;
use lodestone_core::units::UnixMillis;
use lodestone_dataset as dataset;
use lodestone_events::{
    checkpoint::Checkpoint,
    log::{self, Check, DamagedPart, Retention},
};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Subcommand)]
pub(super) enum EventsCommand {
    /// Writes events as Parquet, a directory for each day; the log may be in use.
    Export(ExportArgs),
    /// Reads every byte of the log and tells what is whole and what is damaged: exit code 1 if anything is.
    Verify(VerifyArgs),
    /// Drops old events by type, and states of items that later ones replaced. The server must be stopped.
    Compact(CompactArgs),
}

/// The days are those on which events happened, in UTC, and each day is written whole: run it again for the last days, since
/// events come late. The columns are those of events.parquet and some more; see docs/event-log.md. With
/// `--out DATA/events` the next `train --data DATA` learns from them too.
#[derive(clap::Args)]
pub(super) struct ExportArgs {
    /// The shop's data directory, whose log is read.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The first day: YYYY-MM-DD, or a time such as 2026-03-01T12:00:00Z on that day.
    #[arg(long, value_name = "DAY")]
    since: String,
    /// The last day, itself included. Default: all that came.
    #[arg(long, value_name = "DAY")]
    until: Option<String>,
    /// Gets date=YYYY-MM-DD/events.parquet for each day with events.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(clap::Args)]
pub(super) struct VerifyArgs {
    /// The shop's data directory, whose log is read.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// After telling what it drops, writes the damaged files again without it. The old ones stay as `.damaged`. The server
    /// must be stopped.
    #[arg(long)]
    repair: bool,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

/// An event goes when it is older than its type is kept, both since it happened and since it was stored. Types that are not
/// named stay forever; purchases teach the most and are few. What was folded from dropped events is gone at the next start.
#[derive(clap::Args)]
pub(super) struct CompactArgs {
    /// The shop's data directory, whose log is written again.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// How long events of a type are kept: impression=30d. At least 7d. May be repeated.
    #[arg(long, value_name = "TYPE=DAYSd")]
    keep: Vec<String>,
    /// Only tells what would be dropped.
    #[arg(long)]
    dry_run: bool,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

pub(super) fn run(command: EventsCommand) -> anyhow::Result<i32> {
    match command {
        EventsCommand::Export(args) => export(&args).map(|()| 0),
        EventsCommand::Verify(args) => verify(&args),
        EventsCommand::Compact(args) => compact(&args).map(|()| 0),
    }
}

fn log_of(data: &Path) -> anyhow::Result<PathBuf> {
    let directory = data.join("log");
    anyhow::ensure!(
        directory.is_dir(),
        "{} has no event log: there is no directory {}",
        data.display(),
        directory.display()
    );
    Ok(directory)
}

/// Days since 1970.
fn day(flag: &str, text: &str) -> anyhow::Result<i64> {
    let date = match text.parse::<jiff::Timestamp>() {
        Ok(at) => return Ok(at.as_millisecond().div_euclid(UnixMillis::DAY)),
        Err(_) => text.parse::<jiff::civil::Date>(),
    };
    let date = date.with_context(|| format!("{flag} is `{text}`; it must be YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ"))?;
    Ok(date.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp().as_millisecond().div_euclid(UnixMillis::DAY))
}

fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let since = day("--since", &args.since)?;
    let until = args.until.as_deref().map(|until| day("--until", until)).transpose()?;
    anyhow::ensure!(until.is_none_or(|until| until >= since), "--until is before --since");
    let days = since..until.map_or(i64::MAX, |until| until + 1);
    let exported = dataset::export(&log_of(&args.data)?, days, &args.out)?;
    match args.format {
        Format::Json => println!(
            "{}",
            json!({ "events": exported.events, "foreign": exported.foreign, "position": exported.position,
                    "files": exported.files })
        ),
        Format::Text => println!(
            "{} events of {} days written to {}, as of log position {}; {} with a foreign attribution token",
            exported.events,
            exported.files.len(),
            args.out.display(),
            exported.position,
            exported.foreign
        ),
    }
    Ok(())
}

fn verify(args: &VerifyArgs) -> anyhow::Result<i32> {
    let directory = log_of(&args.data)?;
    let mut check = log::check(&directory)?;
    let is_text = args.format == Format::Text;
    if is_text {
        print!("{}", told(&directory, &check));
    }
    if args.repair && !check.damaged.is_empty() {
        let repair = log::repair(&directory)?;
        let repaired = check.damaged;
        check = log::check(&directory)?;
        if is_text {
            println!(
                "repaired: {} files written again, {} made in place of missing ones, {} positions without a record now",
                repair.rewritten.len(),
                repair.made.len(),
                lost(&repaired)
            );
            print!("{}", told(&directory, &check));
        }
    }
    if !is_text {
        println!("{}", as_json(&directory, &check));
    }
    Ok(i32::from(!check.damaged.is_empty()))
}

fn lost(parts: &[DamagedPart]) -> u64 {
    parts.iter().map(|part| part.positions.clone().count() as u64).sum()
}

fn checkpoint_told(directory: &Path) -> String {
    match Checkpoint::newest(directory) {
        Ok(None) => "none: a start reads the whole log".to_owned(),
        Ok(Some(checkpoint)) => format!("whole, of position {}, {} bytes", checkpoint.position, checkpoint.bytes),
        Err(error) => format!("not usable, a start reads the whole log: {error}"),
    }
}

fn told(directory: &Path, check: &Check) -> String {
    let mut lines = vec![
        format!(
            "{}: {} files, {} bytes, positions up to {}",
            directory.display(),
            check.files,
            check.bytes,
            check.last_position
        ),
        format!("  {} whole records", check.records),
    ];
    lines.extend(check.by_kind.iter().map(|(kind, count)| format!("    {count:>12} {kind}")));
    if check.absent > 0 {
        lines.push(format!("  {} positions without a record: compact or a repair dropped it", check.absent));
    }
    if let Some(torn) = &check.torn {
        lines.push(format!(
            "  {} bytes at the end of {}, from byte {}, are an interrupted write, or one that is under way; the next start \
             cuts them",
            torn.bytes,
            torn.path.display(),
            torn.offset
        ));
    }
    lines.push(format!("  checkpoint: {}", checkpoint_told(directory)));
    for part in &check.damaged {
        let positions = match part.positions.is_empty() {
            true => "no record is lost".to_owned(),
            false => format!("positions {} to {} are lost", part.positions.start(), part.positions.end()),
        };
        lines.push(format!(
            "  DAMAGED {}, byte {}, {} bytes: {}; {positions}",
            part.path.display(),
            part.offset,
            part.bytes,
            part.reason
        ));
    }
    lines.push(match check.damaged.len() {
        0 => "the log is whole".to_owned(),
        count => format!("{count} damaged parts; a repair drops {} records and keeps all others", lost(&check.damaged)),
    });
    lines.join("\n") + "\n"
}

fn as_json(directory: &Path, check: &Check) -> serde_json::Value {
    let damaged: Vec<_> = check
        .damaged
        .iter()
        .map(|part| {
            json!({ "path": part.path, "offset": part.offset, "bytes": part.bytes, "reason": part.reason,
                    "first_position": part.positions.start(), "lost_records": part.positions.clone().count() })
        })
        .collect();
    json!({
        "files": check.files, "bytes": check.bytes, "records": check.records, "by_kind": check.by_kind,
        "last_position": check.last_position, "absent": check.absent,
        "torn_bytes": check.torn.as_ref().map_or(0, |torn| torn.bytes),
        "checkpoint": checkpoint_told(directory), "damaged": damaged,
    })
}

fn compact(args: &CompactArgs) -> anyhow::Result<()> {
    let mut retention = Retention::default();
    for keep in &args.keep {
        retention.add(keep).context("--keep")?;
    }
    let mode = if args.dry_run { CompactMode::DryRun } else { CompactMode::Apply };
    let compacted = log::compact(&log_of(&args.data)?, &retention, UnixMillis::now(), mode)?;
    let dropped: u64 = compacted.events.values().sum();
    if args.format == Format::Json {
        let events: serde_json::Map<_, _> =
            compacted.events.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect();
        println!(
            "{}",
            json!({ "dropped_events": events, "replaced_item_states": compacted.item_states, "kept": compacted.kept,
                    "bytes_before": compacted.bytes_before, "bytes_after": compacted.bytes_after })
        );
        return Ok(());
    }
    let verb = if args.dry_run { "would be dropped" } else { "dropped" };
    println!("{dropped} events {verb}, {} records kept", compacted.kept);
    for (kind, count) in compacted.events.iter().filter(|(_, count)| **count > 0) {
        println!("  {count:>12} {}", kind.name());
    }
    println!("{} states of items {verb} that later ones replaced", compacted.item_states);
    println!("{} bytes before, {} after", compacted.bytes_before, compacted.bytes_after);
    Ok(())
}
