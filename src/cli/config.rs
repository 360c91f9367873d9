//! `lodestone config` and `lodestone doctor`: the settings of a server and the machine, before it serves.
use super::{
    catalogs::CatalogSource,
    exit::Exit,
    listen::ListenAddresses,
    output::OutputArgs,
    paths::output_directory,
    serve::{Addresses, ServeArgs, catalog_sources, check_data, default_source, engine_config},
    settings::Settings,
    store_options,
};
use crate::audit;
use anyhow::{Context, ensure};
use lodestone_core::{error_chain::format_error_chain, units::UnixMillis};
use lodestone_engine::{LogMissing, event_log};
use lodestone_events::{LogDirectory, log};
use lodestone_pipeline::bundle::Bundle;
use lodestone_rollout::Store;
use lodestone_rules::Synonyms;
use rustix::{
    fs::statvfs,
    process::{Resource, getrlimit},
};
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// Free space of the data directory's file system below which `doctor` warns: the log of days of a busy shop.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Remaining validity of certificates below which `doctor` warns.
const CERTIFICATE_DAYS_MIN: i64 = 14;
/// Descriptors of a server beyond those of connections: log segments, answers, models, the threads' own.
const OTHER_DESCRIPTORS: u64 = 256;
/// Difference of the clocks of two machines that is no mistake.
const CLOCK_TOLERANCE_MS: i64 = 1000;

#[derive(clap::Subcommand)]
pub(crate) enum ConfigCommand {
    Show(ShowArgs),
    Check(CheckArgs),
}

/// Prints each setting of a server with its origin: default, file, environment or flag. Secrets are masked.
#[derive(clap::Args)]
#[command(
    override_usage = "lodestone config show [FLAGS OF serve]",
    after_help = "\
Example:
  lodestone config show --config lodestone.toml --workers 4"
)]
pub(crate) struct ShowArgs {
    // First, because the help headings of the others continue.
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    _serve: ServeArgs,
}

/// Checks the settings of a server and the files that they name. Exit code 1 if something is wrong.
///
/// Binds no port and writes nothing. Reads certificates, keys, bundles with their checksums, serving files, catalogues
/// and synonyms.
#[derive(clap::Args)]
#[command(
    override_usage = "lodestone config check [FLAGS OF serve]",
    after_help = "\
Example:
  lodestone config check --config lodestone.toml"
)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    serve: ServeArgs,
}

/// Checks whether a server can start and run with its settings on this machine. Exit code 1 if something is wrong.
///
/// Checks what `lodestone config check` checks, and the library of ONNX Runtime, the event log, ports, the limit of
/// descriptors, disk space, the clock and the validity of certificates. For each problem it prints the remedy. The
/// server must be stopped, because a running one holds the ports and the log.
#[derive(clap::Args)]
#[command(
    override_usage = "lodestone doctor [FLAGS OF serve]",
    after_help = "\
Example:
  lodestone doctor --config lodestone.toml"
)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    serve: ServeArgs,
}

/// The outcome of a check.
#[derive(serde::Serialize)]
struct Finding {
    check: String,
    is_right: bool,
    /// What was found, or the problem and its remedy.
    detail: String,
}

#[derive(Default, serde::Serialize)]
struct Findings {
    checks: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, check: impl Into<String>, outcome: anyhow::Result<String>) {
        let is_right = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|error| format_error_chain(&*error));
        self.checks.push(Finding { check: check.into(), is_right, detail });
    }

    fn wrong_count(&self) -> usize {
        self.checks.iter().filter(|finding| !finding.is_right).count()
    }

    /// Writes the outcomes. Returns [`Exit::No`] if something is wrong.
    fn write(&self, output: &OutputArgs) -> anyhow::Result<Exit> {
        output.write(self)?;
        Ok(Exit::answer(self.wrong_count() == 0))
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
        for Finding { check, is_right, detail } in &self.checks {
            writeln!(f, "{:5}  {check:width$}  {detail}", if *is_right { "ok" } else { "WRONG" })?;
        }
        writeln!(f, "{} checks, {} wrong", self.checks.len(), self.wrong_count())
    }
}

pub(crate) fn run(command: &ConfigCommand, settings: &Settings) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Show(args) => {
            args.output.write(settings)?;
            Ok(Exit::Success)
        }
        ConfigCommand::Check(args) => {
            let mut findings = Findings::default();
            check_settings(&args.serve, &mut findings);
            findings.write(&args.output)
        }
    }
}

pub(crate) fn doctor(args: &DoctorArgs) -> anyhow::Result<Exit> {
    let (serve, mut findings) = (&args.serve, Findings::default());
    check_settings(serve, &mut findings);
    findings.add("library", library(serve));
    for source in sources_of(serve) {
        let of = |check: &str| format!("{check} of {}", source.name);
        findings.add(of("data"), writable(&source.data));
        findings.add(of("disk"), disk(&source.data));
        findings.add(of("log"), event_log_state(&source.data));
        findings.add(of("clock"), clock(&source.data, UnixMillis::now()));
    }
    findings.add("audit log", audit_log(&serve.data));
    // Unresolved addresses are findings already.
    if let Ok(addresses) = Addresses::resolve(serve) {
        findings.add("port", port(&addresses.grpc));
        if let Some(metrics) = &addresses.metrics {
            findings.add("metrics port", port(metrics));
        }
    }
    findings.add("descriptors", descriptors(serve.connections_max, getrlimit(Resource::Nofile).current));
    if let Some(expiry) = serve.security.certificates_expiry() {
        findings.add("certificates", certificates(expiry, UnixMillis::now()));
    }
    findings.write(&args.output)
}

/// Checks all that needs no port, no library and no writing.
fn check_settings(args: &ServeArgs, findings: &mut Findings) {
    let addresses = Addresses::resolve(args);
    if let Ok(addresses) = &addresses {
        let opened = args.security.open(&addresses.grpc).map(|security| {
            let on = |is_on: bool| if is_on { "on" } else { "off" };
            let (keys, tokens) = (on(security.api_keys.is_some()), on(security.jwt.is_some()));
            format!("TLS {}, API keys {keys}, tokens {tokens}", on(security.tls.is_some()))
        });
        findings.add("security", opened);
    }
    findings.add("connections", args.connections.check().map(|()| "limits fit each other".to_owned()));
    let collector = args.observability.collector();
    findings.add("traces", collector.map(|of| of.map_or("off".to_owned(), |of| format!("to {}", of.endpoint))));
    let distinct = addresses.and_then(|addresses| {
        addresses.check_distinct()?;
        Ok(format!("{} resolves", addresses.grpc.text()))
    });
    findings.add("addresses", distinct);
    let catalogs = catalog_sources(args);
    let sources = sources_of(args);
    for source in &sources {
        let of = |check: &str| format!("{check} of {}", source.name);
        let from = |path: &Option<PathBuf>| match path {
            Some(path) => format!("{} is valid", path.display()),
            None => "defaults".to_owned(),
        };
        findings.add(of("serving"), engine_config(args, source).map(|_| from(&source.serving)));
        if let Some(path) = &source.synonyms {
            let opened = Synonyms::open(path).context(source.setting("synonyms"));
            findings.add(of("synonyms"), opened.map(|_| from(&source.synonyms)));
        }
        findings.add(of("bundle"), bundle(source));
        findings.add(of("data"), check_data(source));
    }
    findings.add("catalogs", catalogs.map(|sources| format!("{} in total", sources.len())));
}

/// Returns the catalogues. If the file of the others has a mistake, returns that of the flags, which is still checked.
fn sources_of(args: &ServeArgs) -> Vec<CatalogSource> {
    catalog_sources(args).unwrap_or_else(|_| vec![default_source(args)])
}

/// Verifies the checksums of a bundle, or reads the manifest of a store's current one.
fn bundle(source: &CatalogSource) -> anyhow::Result<String> {
    let Some(location) = &source.store else {
        let path = source.bundle.as_deref().context("--bundle or --store is required")?;
        let bundle = Bundle::open(path)?;
        return Ok(format!(
            "{} of format {} with {} items",
            bundle.manifest.name,
            bundle.manifest.format,
            bundle.items.len()
        ));
    };
    let store = Store::open_existing(location, store_options())?;
    let current =
        store.current()?.context("--store has no current bundle; publish one with `lodestone bundle publish`")?;
    let manifest = store.manifest(&current.name)?;
    Ok(format!("the store's current bundle is {} of format {}", manifest.name, manifest.format))
}

/// Appends the remedy to the problem.
fn or_else<T>(outcome: anyhow::Result<T>, remedy: &str) -> anyhow::Result<T> {
    outcome.map_err(|error| anyhow::anyhow!("{}; {remedy}", format_error_chain(&*error)))
}

fn library(args: &ServeArgs) -> anyhow::Result<String> {
    Ok(args.library.load()?.build_info().to_owned())
}

fn writable(data: &Path) -> anyhow::Result<String> {
    let checked = output_directory(&data.to_string_lossy()).map_err(anyhow::Error::msg);
    let remedy = "give the user of the server the right to write, or choose another --data";
    or_else(checked.with_context(|| format!("--data {}", data.display())), remedy)?;
    Ok(format!("{} is writable", data.display()))
}

/// Returns the nearest directory that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or(Path::new("."))
}

fn disk(data: &Path) -> anyhow::Result<String> {
    let stat = statvfs(existing(data)).with_context(|| format!("--data {}", data.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    ensure!(
        free >= FREE_BYTES_MIN,
        "{free} bytes are free on the file system of --data {}; at least {FREE_BYTES_MIN} are needed: enlarge it, or \
         remove files",
        data.display()
    );
    Ok(format!("{} MiB are free", free >> 20))
}

/// Checks that the log of a data directory is free and not damaged.
fn event_log_state(data: &Path) -> anyhow::Result<String> {
    let directory = match event_log(data) {
        Ok(directory) => directory,
        Err(LogMissing::Unused { .. }) => return Ok("there is none yet".to_owned()),
        Err(error) => return Err(error.into()),
    };
    let is_in_use = LogDirectory::from(directory.as_path()).is_in_use().context("the lock of the log")?;
    ensure!(!is_in_use, "{} is in use by another process; stop it, or choose another --data", directory.display());
    let found = log::check(&directory)?;
    ensure!(
        found.damaged.is_empty(),
        "{} is damaged in {} places; see `lodestone events verify --data {}`",
        directory.display(),
        found.damaged.len(),
        data.display()
    );
    Ok(format!("{} records in {} files, free and whole", found.records, found.files))
}

/// Checks that no line of the audit log of a data directory was changed.
fn audit_log(data: &Path) -> anyhow::Result<String> {
    let directory = data.join(audit::DIRECTORY);
    if !directory.exists() {
        return Ok("there is none yet".to_owned());
    }
    let found = audit::verify(&directory, None)?;
    if let Some(violation) = found.violation {
        anyhow::bail!(
            "line {} of {} {}; compare with a backup, and move the directory away to begin another log",
            violation.line,
            violation.file.display(),
            violation.problem
        );
    }
    Ok(format!("{} lines fit", found.line_count))
}

/// Checks that no file of the log was written after now, by a clock that was ahead or before one that is behind.
fn clock(data: &Path, now: UnixMillis) -> anyhow::Result<String> {
    let Ok(directory) = event_log(data) else { return Ok("no log to compare with".to_owned()) };
    let mut newest = None;
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        newest = newest.max(Some(entry?.metadata()?.modified()?));
    }
    let newest = newest.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let ahead = newest.map_or(0, |at| at.as_millis() as i64 - now.0);
    ensure!(
        ahead <= CLOCK_TOLERANCE_MS,
        "the newest file of {} was written {} s after the time of the clock; set the clock, for instance by NTP",
        directory.display(),
        ahead / 1000
    );
    Ok("not behind the log".to_owned())
}

fn port(addresses: &ListenAddresses) -> anyhow::Result<String> {
    addresses.bind()?;
    Ok(format!("{} is free", addresses.shown()))
}

/// Checks the limit of descriptors; none: unlimited.
fn descriptors(connections_max: usize, limit: Option<u64>) -> anyhow::Result<String> {
    let needed = connections_max as u64 + OTHER_DESCRIPTORS;
    let Some(limit) = limit else { return Ok("unlimited".to_owned()) };
    ensure!(
        limit >= needed,
        "`ulimit -n` is {limit}; --connections-max {connections_max} needs {needed}: raise it with `ulimit -n {needed}`, or \
         set --connections-max to at most {}",
        limit.saturating_sub(OTHER_DESCRIPTORS).max(1)
    );
    Ok(format!("`ulimit -n` is {limit}, and {needed} are needed"))
}

fn certificates(expiry: UnixMillis, now: UnixMillis) -> anyhow::Result<String> {
    let days = (expiry.0 - now.0).div_euclid(UnixMillis::DAY);
    ensure!(
        days >= CERTIFICATE_DAYS_MIN,
        "a certificate of --tls-cert or --tls-client-ca expires in {days} days; renew it at least {CERTIFICATE_DAYS_MIN} \
         days before"
    );
    Ok(format!("valid for {days} days"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_certificates_and_clocks_are_judged_with_their_remedy() {
        assert!(descriptors(1000, None).is_ok());
        assert!(descriptors(1000, Some(1256)).is_ok());
        let error = descriptors(1000, Some(1255)).unwrap_err().to_string();
        assert!(error.contains("ulimit -n 1256") && error.contains("at most 999"), "{error}");
        let now = UnixMillis(0);
        assert_eq!(certificates(UnixMillis(14 * UnixMillis::DAY), now).unwrap(), "valid for 14 days");
        let error = certificates(UnixMillis(14 * UnixMillis::DAY - 1), now).unwrap_err().to_string();
        assert!(error.contains("expires in 13 days") && error.contains("renew"), "{error}");
    }

    #[tokio::test]
    async fn a_changed_audit_log_is_found() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(audit_log(data.path()).unwrap(), "there is none yet");
        let directory = data.path().join(audit::DIRECTORY);
        let log = audit::AuditLog::open(&directory, audit::AuditSettings::default()).unwrap();
        log.write(audit::Call::default(), audit::EntryKind::Call, "OK", 0).await.unwrap();
        assert_eq!(audit_log(data.path()).unwrap(), "1 lines fit");
        let file = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("OK", "NO")).unwrap();
        let error = audit_log(data.path()).unwrap_err().to_string();
        assert!(error.contains("line 1 of") && error.contains("move the directory away"), "{error}");
    }

    #[test]
    fn a_held_or_damaged_log_and_a_clock_behind_it_are_found() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(event_log_state(data.path()).unwrap(), "there is none yet");
        let now = UnixMillis::now();
        let log = lodestone_events::EventLog::open(data.path().join("log").as_path()).unwrap();
        let error = event_log_state(data.path()).unwrap_err().to_string();
        assert!(error.contains("in use by another process; stop it"), "{error}");
        drop(log);
        assert!(event_log_state(data.path()).unwrap().contains("free and whole"));
        assert!(clock(data.path(), UnixMillis(now.0 + UnixMillis::DAY)).is_ok());
        let error = clock(data.path(), UnixMillis(now.0 - UnixMillis::DAY)).unwrap_err().to_string();
        assert!(error.contains("set the clock"), "{error}");
    }
}
