//! `lodestone backup`: copies of data directories.
use super::{
    exit::Exit,
    lock::{Attempt, Lock},
    numbers::within,
    output::{FormatArgs, OutputArgs},
    paths::{existing_directory, output_directory},
};
use crate::backup::{self, BackupError, Summary};
use anyhow::Context;
use lodestone_core::units::UnixMillis;
use lodestone_events::storage;
use std::{fmt, path::PathBuf};

/// Held while a backup is made.
const LOCK: &str = "lock";

#[derive(clap::Subcommand)]
pub(crate) enum BackupCommand {
    Create(CreateArgs),
    Verify(VerifyArgs),
    Restore(RestoreArgs),
}

/// Copies a data directory, which a server may be using, to a new directory.
///
/// The backup has every write that was acknowledged before the command began. It is verified, and has its name, the time,
/// only when it is complete.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone backup create --data data --out /mnt/backups --keep 7")]
pub(crate) struct CreateArgs {
    /// The data directory.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// Directory of the backups. The new one is a directory in it, such as 20261201T014700Z.
    #[arg(long, value_name = "DIR", value_parser = output_directory)]
    out: PathBuf,
    /// Removes the oldest backups beyond this number, after the new one is complete. Default: removes none.
    #[arg(long, value_name = "N", value_parser = within(1..))]
    keep: Option<usize>,
    #[command(flatten)]
    format: FormatArgs,
}

/// Compares all files of a backup with their sums. Exit code 1 if one differs.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone backup verify --from /mnt/backups/20261201T014700Z")]
pub(crate) struct VerifyArgs {
    /// The backup.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    from: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Writes the files of a backup to a data directory that is empty or does not exist.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone backup restore --from /mnt/backups/20261201T014700Z --data data")]
pub(crate) struct RestoreArgs {
    /// The backup.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    from: PathBuf,
    /// The new data directory.
    #[arg(long, value_name = "DIR", value_parser = output_directory)]
    data: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(command: &BackupCommand) -> anyhow::Result<Exit> {
    match command {
        BackupCommand::Create(args) => create(args),
        BackupCommand::Verify(args) => verify(args),
        BackupCommand::Restore(args) => {
            args.output.write(&backup::restore(&args.from, &args.data)?)?;
            Ok(Exit::Success)
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, file_count, bytes, position, removed } = self;
        writeln!(f, "{}: {file_count} files, {bytes} bytes, log position {position}", path.display())?;
        removed.iter().try_for_each(|name| writeln!(f, "removed {name}"))
    }
}

fn create(args: &CreateArgs) -> anyhow::Result<Exit> {
    let name = jiff::Timestamp::from_millisecond(UnixMillis::now().0).context("the clock")?;
    let name = name.strftime("%Y%m%dT%H%M%SZ").to_string();
    // Before the directory of the lock is created.
    backup::check(&args.data, &args.out)?;
    storage::create_private_directory(&args.out).with_context(|| args.out.display().to_string())?;
    let _lock = match Lock::attempt(&args.out.join(LOCK))? {
        Attempt::Taken(lock) => lock,
        Attempt::Held(owner) => {
            anyhow::bail!("--out {}: {owner} makes a backup there; nothing was done", args.out.display())
        }
    };
    args.format.print(&backup::create(&args.data, &args.out, &name, args.keep)?)?;
    Ok(Exit::Success)
}

/// A backup that is not as it was made.
#[derive(serde::Serialize)]
struct Changed {
    problem: String,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.problem)
    }
}

fn verify(args: &VerifyArgs) -> anyhow::Result<Exit> {
    match backup::verify(&args.from) {
        Err(error @ BackupError::Damaged { .. }) => {
            args.output.write(&Changed { problem: error.to_string() })?;
            Ok(Exit::No)
        }
        verified => {
            args.output.write(&verified?)?;
            Ok(Exit::Success)
        }
    }
}
