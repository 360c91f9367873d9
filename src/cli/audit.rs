//! `lodestone audit`: the audit log of a server.
use super::{exit::Exit, output::OutputArgs, paths::existing_directory, time::since};
use crate::audit::{self, DIRECTORY, Entry, EntryKind, Verification};
use lodestone_core::units::UnixMillis;
use std::{collections::BTreeMap, fmt, path::PathBuf};

#[derive(clap::Subcommand)]
pub(crate) enum AuditCommand {
    Show(ShowArgs),
    Verify(VerifyArgs),
}

/// Prints the calls in the audit log, the earliest first. The server may be running.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone audit show --data data --since 7d")]
pub(crate) struct ShowArgs {
    /// The data directory of the server.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// Calls after a day (2026-11-25), a time (2026-11-25T08:00:00Z) or a span before now (7d, 12h, 30m). Default: all.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Greatest number of lines: the latest ones. A change has two, before and after it.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = super::numbers::within(1..=1_000_000))]
    lines_max: usize,
    #[command(flatten)]
    output: OutputArgs,
}

/// Checks that no line of the audit log was changed, inserted or removed. Exit code 1 if one was.
///
/// Prints the first line that does not fit. A log from which the last lines were cut fits too: keep the printed hash of
/// the last line on another machine, and give it to a later check by --expect. A log whose oldest files were removed fits
/// too, as after --audit-files-max: the number of the first line that is left is printed. The server may be running.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lodestone audit verify --data data
  lodestone audit verify --data data --expect 5d41402abc4b2a76b9719d911017c592ae2f1c2c3a6f4b7a3f1c5a1b0c9d8e7f")]
pub(crate) struct VerifyArgs {
    /// The data directory of the server.
    #[arg(long, value_name = "DIR", value_parser = existing_directory)]
    data: PathBuf,
    /// The hash of a line, printed by an earlier check. The log must still have this line.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    expect: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

fn hash(text: &str) -> Result<String, String> {
    let is_hash = text.len() == audit::FIRST_HASH.len() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| text.to_ascii_lowercase()).ok_or_else(|| "it must be 64 hexadecimal digits".to_owned())
}

pub(crate) fn run(command: &AuditCommand) -> anyhow::Result<Exit> {
    match command {
        AuditCommand::Show(args) => show(args),
        AuditCommand::Verify(args) => verify(args),
    }
}

#[derive(serde::Serialize)]
struct Shown {
    entries: Vec<Entry>,
}

impl fmt::Display for Shown {
    /// A line for each call; that of a change has the status of its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends: BTreeMap<u64, &Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.kind == EntryKind::End)
            .map(|entry| (entry.begin, entry))
            .collect();
        let sequences: Vec<u64> = self.entries.iter().map(|entry| entry.sequence).collect();
        let is_shown = |entry: &&Entry| entry.kind != EntryKind::End || sequences.binary_search(&entry.begin).is_err();
        for entry in self.entries.iter().filter(is_shown) {
            let status = match entry.kind {
                EntryKind::Begin => ends.get(&entry.sequence).map_or("NOT_ENDED", |end| end.status.as_str()),
                EntryKind::Call | EntryKind::End => &entry.status,
            };
            let client = match entry.client_kind.as_str() {
                "none" => "-".to_owned(),
                kind => format!("{kind}:{}", entry.client),
            };
            let Entry { sequence, time, method, catalog, resource, request_id, .. } = entry;
            write!(f, "{sequence}  {time}  {client}  {method}  {catalog}  {status}")?;
            if entry.dry_run {
                write!(f, "  dry_run")?;
            }
            // Texts of callers: control characters would change the terminal.
            for text in [resource, request_id].into_iter().filter(|text| !text.is_empty()) {
                write!(f, "  {text:?}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

fn show(args: &ShowArgs) -> anyhow::Result<Exit> {
    let after = args.since.as_deref().map(|text| since(text, UnixMillis::now())).transpose()?;
    let entries = audit::read(&args.data.join(DIRECTORY), after, args.lines_max)?;
    args.output.write(&Shown { entries })?;
    Ok(Exit::Success)
}

#[derive(serde::Serialize)]
struct Verified {
    #[serde(flatten)]
    verification: Verification,
    /// None: no hash was expected.
    expected: Option<String>,
}

impl Verified {
    fn is_right(&self) -> bool {
        self.verification.violation.is_none() && (self.expected.is_none() || self.verification.expected_at.is_some())
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verification { file_count, line_count, first, last, last_hash, .. } = &self.verification;
        writeln!(f, "{line_count} lines fit in {file_count} files: {first} to {last}")?;
        if let Some(violation) = &self.verification.violation {
            writeln!(f, "WRONG: line {} of {} {}", violation.line, violation.file.display(), violation.problem)?;
        }
        match (&self.expected, self.verification.expected_at) {
            (None, _) => {}
            (Some(_), Some(at)) if self.verification.begins_the_log => {
                writeln!(f, "the expected hash is that of line {at}; nothing before it has changed")?
            }
            (Some(_), Some(at)) => {
                writeln!(f, "the expected hash is that of line {at}; no line from {first} to it has changed")?
            }
            (Some(_), None) => writeln!(
                f,
                "WRONG: no line that fits has the expected hash: the log was cut or rewritten, or --audit-files-max removed it"
            )?,
        }
        if !self.verification.begins_the_log {
            writeln!(f, "lines before {first} are gone, as after --audit-files-max, and cannot be checked")?;
        }
        if self.verification.has_incomplete_line {
            writeln!(f, "the last file ends within a line: the server is writing, or a crash cut it")?;
        }
        writeln!(f, "last hash {last_hash}")?;
        writeln!(
            f,
            "Lines that were cut after it cannot be noticed in the log alone: keep this hash elsewhere, for --expect."
        )
    }
}

fn verify(args: &VerifyArgs) -> anyhow::Result<Exit> {
    let verification = audit::verify(&args.data.join(DIRECTORY), args.expect.as_deref())?;
    let verified = Verified { verification, expected: args.expect.clone() };
    args.output.write(&verified)?;
    Ok(Exit::answer(verified.is_right()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{AuditLog, AuditSettings, Call};
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(subcommand)]
        command: AuditCommand,
    }

    /// Returns the exit and the output of a command.
    fn output(arguments: &[&str]) -> anyhow::Result<(Exit, String)> {
        let directory = tempfile::tempdir()?;
        let out = directory.path().join("out").display().to_string();
        let arguments = [&["audit"][..], arguments, &["--out", out.as_str()]].concat();
        let exit = run(&Command::try_parse_from(arguments)?.command)?;
        Ok((exit, std::fs::read_to_string(out)?))
    }

    #[tokio::test]
    async fn calls_are_shown_with_their_status_and_verified_with_a_kept_hash() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().display().to_string();
        let log = AuditLog::open(&directory.path().join(DIRECTORY), AuditSettings::default()).unwrap();
        let call = |method: &'static str, resource: &str| Call {
            client: "merchandiser".to_owned(),
            client_kind: "api_key",
            method,
            catalog: "default".to_owned(),
            resource: resource.to_owned(),
            request_id: "r-1".to_owned(),
            dry_run: method == "CatalogService/PurgeItems",
        };
        let created = call("RuleService/CreateRule", "summer\u{1b}[2J");
        let begin = log.write(created.clone(), EntryKind::Begin, "", 0).await.unwrap();
        log.write(created, EntryKind::End, "ALREADY_EXISTS", begin).await.unwrap();
        log.write(call("RuleService/DeleteRule", "winter"), EntryKind::Begin, "", 0).await.unwrap();
        log.write(call("ModelService/ListBundles", ""), EntryKind::Call, "OK", 0).await.unwrap();
        log.write(call("CatalogService/PurgeItems", "price > 5"), EntryKind::Begin, "", 0).await.unwrap();
        let (exit, text) = output(&["show", "--data", &data]).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((exit, lines.len()), (Exit::Success, 4), "{text}");
        assert!(lines[0].starts_with("1  ") && !text.contains('\u{1b}'), "{text}");
        let created =
            "  api_key:merchandiser  RuleService/CreateRule  default  ALREADY_EXISTS  \"summer\\u{1b}[2J\"  \"r-1\"";
        assert!(lines[0].ends_with(created), "{text}");
        assert!(lines[1].contains("RuleService/DeleteRule  default  NOT_ENDED  \"winter\""), "{text}");
        assert!(lines[2].contains("ModelService/ListBundles  default  OK  \"r-1\""), "{text}");
        assert!(lines[3].ends_with("PurgeItems  default  NOT_ENDED  dry_run  \"price > 5\"  \"r-1\""), "{text}");
        let (_, text) = output(&["show", "--data", &data, "--lines-max", "4"]).unwrap();
        assert!(text.starts_with("2  ") && text.contains("ALREADY_EXISTS"), "the begin is not shown: {text}");
        assert!(output(&["show", "--data", &data, "--since", "yesterday"]).is_err());

        let (exit, text) = output(&["verify", "--data", &data]).unwrap();
        assert_eq!(exit, Exit::Success);
        assert!(text.starts_with("5 lines fit in 1 files: 1 to 5\n"), "{text}");
        let hash = text.lines().find_map(|line| line.strip_prefix("last hash ")).unwrap().to_owned();
        let (exit, text) = output(&["verify", "--data", &data, "--expect", &hash]).unwrap();
        assert!(exit == Exit::Success && text.contains("is that of line 5; nothing before it has changed"), "{text}");
        let other = hash.replace(|digit| digit != '0', "0").replacen('0', "1", 1);
        let (exit, text) = output(&["verify", "--data", &data, "--expect", &other]).unwrap();
        assert!(exit == Exit::No && text.contains("cut or rewritten"), "{text}");
        assert!(output(&["verify", "--data", &data, "--expect", "5d4"]).is_err());
    }

    #[tokio::test]
    async fn a_log_without_its_first_lines_fits_only_if_whole_files_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let (data, path) = (directory.path().display().to_string(), directory.path().join(DIRECTORY));
        let log = AuditLog::open(&path, AuditSettings::default()).unwrap();
        for _ in 0..3 {
            log.write(Call::default(), EntryKind::Call, "OK", 0).await.unwrap();
        }
        drop(log);
        let (_, text) = output(&["verify", "--data", &data]).unwrap();
        let hash = text.lines().find_map(|line| line.strip_prefix("last hash ")).unwrap().to_owned();
        let verify = || output(&["verify", "--data", &data, "--expect", &hash]).unwrap();
        let first = path.join("audit-00000000000000000001.jsonl");
        let all = std::fs::read_to_string(&first).unwrap();
        let rest: String = all.lines().skip(2).map(|line| format!("{line}\n")).collect();
        std::fs::write(&first, rest).unwrap();
        let (exit, text) = verify();
        assert!(exit == Exit::No && text.contains("has the sequence 3; by the name of the file it is 1"), "{text}");
        std::fs::rename(&first, path.join("audit-00000000000000000003.jsonl")).unwrap();
        let (exit, text) = verify();
        assert!(text.contains("lines before 3 are gone, as after --audit-files-max"), "{text}");
        assert!(exit == Exit::Success && !text.contains("nothing before it"), "{text}");
        assert!(text.contains("line 3; no line from 3 to it has changed"), "{text}");
    }
}
