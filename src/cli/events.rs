//! `lodestone events`: works on the event log without a server.
use super::{
    exit::Exit,
    output::{FormatArgs, OutputArgs},
    paths::{existing_directory, output_directory},
};
use anyhow::Context;
use lodestone_core::units::UnixMillis;
use lodestone_dataset as dataset;
use lodestone_engine::{LogMissing, event_log};
use lodestone_events::{
    checkpoint::Checkpoint,
    log::{self, Check, CompactMode, DamagedPart, Repair, Retention, TornTail},
};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

#[derive(clap::Subcommand)]
pub(crate) enum EventsCommand {
    Export(ExportArgs),
    Verify(VerifyArgs),
    Compact(CompactArgs),
}

/// Writes logged events as Parquet: a directory per day. The log may be in use.
///
/// A day is the UTC day on which the event happened, and each day is written completely: because events arrive late,
/// export the last days again. The columns are those of events.parquet and more, see docs/event-log.md. With
/// `--out DATA/events` the next `lodestone train --data DATA` learns from them.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone events export --data data --since 2026-03-01 --until 2026-03-31 --out data/events")]
pub(crate) struct ExportArgs {
    /// The data directory with the log.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// First day: YYYY-MM-DD, or a time on that day such as 2026-03-01T12:00:00Z.
    #[arg(long, value_name = "DAY")]
    since: String,
    /// Last day, inclusive. Default: the last day with events.
    #[arg(long, value_name = "DAY")]
    until: Option<String>,
    /// Directory for the files OUT/date=YYYY-MM-DD/events.parquet.
    #[arg(long, value_name = "DIR", value_parser = output_directory)]
    out: PathBuf,
    #[command(flatten)]
    format: FormatArgs,
}

/// Reads every byte of the log and reports damage. Exit code 1 if the log is damaged.
///
/// --repair removes the damaged parts: the affected files are rewritten without them, and the originals stay with the
/// suffix `.damaged`. If files or the whole log are missing, the log goes on without them. The server must be stopped
/// for a repair.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone events verify --data data
  lodestone events verify --data data --repair")]
pub(crate) struct VerifyArgs {
    /// The data directory with the log.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// Rewrites damaged files without their damaged parts, and goes on without missing files.
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Drops old events by type, and item states that later ones replaced. The server must be stopped.
///
/// An event is dropped when both its event time and its ingestion time are older than the retention of its type. Types
/// without a retention are kept forever; purchases are few and the most valuable for training. State folded from
/// dropped events is lost at the next startup.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone events compact --data data --keep impression=30d --keep view=365d --dry-run")]
pub(crate) struct CompactArgs {
    /// The data directory with the log.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// Retention of an event type, at least 7d: impression=30d. May be repeated.
    #[arg(long, value_name = "TYPE=DAYSd")]
    keep: Vec<String>,
    /// Only reports what would be dropped.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(command: &EventsCommand) -> anyhow::Result<Exit> {
    match command {
        EventsCommand::Export(args) => export(args),
        EventsCommand::Verify(args) => verify(args),
        EventsCommand::Compact(args) => compact(args),
    }
}

/// Parses a day into days since 1970.
fn parse_day(flag: &str, text: &str) -> anyhow::Result<i64> {
    let at = UnixMillis::parse(text)
        .with_context(|| format!("{flag} is `{text}`; it must be YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ"))?;
    Ok(at.0.div_euclid(UnixMillis::DAY))
}

#[derive(serde::Serialize)]
struct Exported {
    events: u64,
    /// Events with a foreign attribution token.
    foreign: u64,
    /// Decisions about incentives, of any day.
    decisions: u64,
    position: u64,
    files: Vec<PathBuf>,
    #[serde(skip)]
    out: PathBuf,
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} events of {} days written to {}, up to log position {}; {} with a foreign attribution token",
            self.events,
            self.files.len(),
            self.out.display(),
            self.position,
            self.foreign
        )?;
        match self.decisions {
            0 => Ok(()),
            decisions => writeln!(f, "{decisions} decisions about incentives, of any day"),
        }
    }
}

fn export(args: &ExportArgs) -> anyhow::Result<Exit> {
    let since = parse_day("--since", &args.since)?;
    let until = args.until.as_deref().map(|until| parse_day("--until", until)).transpose()?;
    anyhow::ensure!(until.is_none_or(|until| until >= since), "--until is before --since");
    let days = since..until.map_or(i64::MAX, |until| until + 1);
    let dataset::Exported { events, foreign, decisions, files, position } =
        dataset::export(&event_log(&args.data)?, days, &args.out)?;
    args.format.print(&Exported { events, foreign, decisions, position, files, out: args.out.clone() })?;
    Ok(Exit::Success)
}

/// The result of `events verify`.
#[derive(serde::Serialize)]
struct Verified {
    /// The state of the log; after a repair, if there was one.
    #[serde(flatten)]
    log: LogReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<RepairReport>,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(repair) = &self.repair {
            write!(f, "{repair}")?;
        }
        write!(f, "{}", self.log)
    }
}

#[derive(serde::Serialize)]
struct RepairReport {
    /// None if there was no log.
    #[serde(skip)]
    before: Option<LogReport>,
    rewritten: Vec<PathBuf>,
    /// Empty files in place of missing ones.
    made: Vec<PathBuf>,
    /// The checkpoint that may include lost records, under its new name.
    set_aside: Option<PathBuf>,
    /// None if the end of the log was missing, because the number is unknown.
    lost_records: Option<u64>,
}

impl fmt::Display for RepairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, rewritten, made, set_aside, lost_records } = self;
        before.iter().try_for_each(|before| write!(f, "{before}"))?;
        write!(
            f,
            "repaired: {} files rewritten, {} empty files created for missing ones",
            rewritten.len(),
            made.len()
        )?;
        match lost_records {
            Some(count) => writeln!(f, ", {count} positions have no record now")?,
            None => writeln!(f, ", the log continues after positions that no lost record can have had")?,
        }
        match set_aside {
            Some(path) => writeln!(f, "the checkpoint, which may include lost records, is now {}", path.display()),
            None => Ok(()),
        }
    }
}

#[derive(serde::Serialize)]
struct LogReport {
    #[serde(skip)]
    directory: PathBuf,
    files: usize,
    bytes: u64,
    records: u64,
    by_kind: BTreeMap<&'static str, u64>,
    last_position: u64,
    absent: u64,
    torn_bytes: u64,
    #[serde(skip)]
    torn: Option<TornTail>,
    checkpoint: String,
    damaged: Vec<Damage>,
}

#[derive(serde::Serialize)]
struct Damage {
    path: PathBuf,
    offset: u64,
    bytes: u64,
    reason: String,
    first_position: u64,
    /// None if all records from `first_position` on are lost, because their number is unknown.
    lost_records: Option<u64>,
}

impl LogReport {
    fn read(directory: &Path) -> anyhow::Result<Self> {
        let Check { files, bytes, records, by_kind, last_position, absent, torn, damaged } = log::check(directory)?;
        let damage = |part: DamagedPart| Damage {
            path: part.path,
            offset: part.offset,
            bytes: part.bytes,
            reason: part.reason.into_owned(),
            first_position: *part.positions.start(),
            lost_records: (*part.positions.end() < u64::MAX).then(|| part.positions.count() as u64),
        };
        Ok(Self {
            directory: directory.to_owned(),
            files,
            bytes,
            records,
            by_kind,
            last_position,
            absent,
            torn_bytes: torn.as_ref().map_or(0, |torn| torn.bytes),
            torn,
            checkpoint: describe_checkpoint(directory),
            damaged: damaged.into_iter().map(damage).collect(),
        })
    }

    fn is_whole(&self) -> bool {
        self.damaged.is_empty()
    }

    /// Returns the number of lost records; none if it is unknown.
    fn lost_records(&self) -> Option<u64> {
        self.damaged.iter().map(|part| part.lost_records).sum()
    }
}

fn describe_checkpoint(directory: &Path) -> String {
    match Checkpoint::newest(directory) {
        Ok(None) => "none: startup reads the whole log".to_owned(),
        Ok(Some(checkpoint)) => format!("whole, of position {}, {} bytes", checkpoint.position, checkpoint.bytes),
        Err(error) => format!("not usable, startup reads the whole log: {error}"),
    }
}

impl fmt::Display for LogReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} files, {} bytes, positions up to {}",
            self.directory.display(),
            self.files,
            self.bytes,
            self.last_position
        )?;
        writeln!(f, "  {} whole records", self.records)?;
        self.by_kind.iter().try_for_each(|(kind, count)| writeln!(f, "    {count:>12} {kind}"))?;
        if self.absent > 0 {
            writeln!(f, "  {} positions without a record, dropped by compact or by a repair", self.absent)?;
        }
        if let Some(torn) = &self.torn {
            writeln!(
                f,
                "  {} bytes at the end of {}, from byte {}, are an interrupted write or one in progress; the next \
                 startup truncates them",
                torn.bytes,
                torn.path.display(),
                torn.offset
            )?;
        }
        writeln!(f, "  checkpoint: {}", self.checkpoint)?;
        for part in &self.damaged {
            let positions = match part.lost_records {
                None => format!("the records from position {} on are lost", part.first_position),
                Some(0) => "no record is lost".to_owned(),
                Some(1) => format!("position {} is lost", part.first_position),
                Some(count) => {
                    format!("positions {} to {} are lost", part.first_position, part.first_position + count - 1)
                }
            };
            writeln!(
                f,
                "  DAMAGED {}, byte {}, {} bytes: {}; {positions}",
                part.path.display(),
                part.offset,
                part.bytes,
                part.reason
            )?;
        }
        match (self.damaged.len(), self.lost_records()) {
            (0, _) => writeln!(f, "the log is whole"),
            (count, Some(lost)) => {
                writeln!(f, "{count} damaged parts; a repair drops {lost} records and keeps all others")
            }
            (count, None) => {
                writeln!(
                    f,
                    "{count} damaged parts; a repair goes on without the missing end and keeps all other records"
                )
            }
        }
    }
}

fn verify(args: &VerifyArgs) -> anyhow::Result<Exit> {
    let (directory, before) = match event_log(&args.data) {
        // A repair also replaces a log that was lost as a whole.
        Err(LogMissing::Lost { log, .. }) if args.repair => (log, None),
        found => {
            let log = found?;
            let report = LogReport::read(&log)?;
            (log, Some(report))
        }
    };
    let verified = match before {
        Some(log) if !args.repair || log.is_whole() => Verified { log, repair: None },
        before => {
            let Repair { rewritten, made, set_aside } = log::repair(&directory)?;
            let lost_records = before.as_ref().and_then(LogReport::lost_records);
            let repair = RepairReport { before, rewritten, made, set_aside, lost_records };
            Verified { log: LogReport::read(&directory)?, repair: Some(repair) }
        }
    };
    args.output.write(&verified)?;
    Ok(Exit::answer(verified.log.is_whole()))
}

#[derive(serde::Serialize)]
struct Compacted {
    is_dry_run: bool,
    dropped_events: BTreeMap<&'static str, u64>,
    replaced_item_changes: u64,
    replaced_rule_changes: u64,
    kept: u64,
    bytes_before: u64,
    bytes_after: u64,
}

impl fmt::Display for Compacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.is_dry_run { "would be dropped" } else { "dropped" };
        let dropped: u64 = self.dropped_events.values().sum();
        writeln!(f, "{dropped} events {verb}, {} records kept", self.kept)?;
        for (kind, count) in self.dropped_events.iter().filter(|(_, count)| **count > 0) {
            writeln!(f, "  {count:>12} {kind}")?;
        }
        writeln!(f, "{} replaced changes of items {verb}", self.replaced_item_changes)?;
        writeln!(
            f,
            "{} replaced changes of rules, synonyms and serving configurations {verb}",
            self.replaced_rule_changes
        )?;
        writeln!(f, "{} bytes before, {} after", self.bytes_before, self.bytes_after)
    }
}

fn compact(args: &CompactArgs) -> anyhow::Result<Exit> {
    let mut retention = Retention::default();
    for keep in &args.keep {
        retention.add(keep).context("--keep")?;
    }
    let mode = if args.dry_run { CompactMode::DryRun } else { CompactMode::Apply };
    let compacted = log::compact(&event_log(&args.data)?, &retention, UnixMillis::now(), mode)?;
    args.output.write(&Compacted {
        is_dry_run: args.dry_run,
        dropped_events: compacted.events.iter().map(|(kind, count)| (kind.name(), *count)).collect(),
        replaced_item_changes: compacted.item_changes,
        replaced_rule_changes: compacted.rule_changes,
        kept: compacted.kept,
        bytes_before: compacted.bytes_before,
        bytes_after: compacted.bytes_after,
    })?;
    Ok(Exit::Success)
}
