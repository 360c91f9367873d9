//! The command line: parses arguments, calls the library, writes results.
//!
//! Conventions of every command: [`output`] defines `--format` and `--out`, [`exit`] the exit codes. Results go to
//! standard output, progress and logs to standard error.
mod answers;
mod audit;
mod backup;
mod benchmark;
mod bundle;
mod campaign;
mod catalogs;
mod client;
mod config;
mod connections;
mod encoder;
mod evaluate;
mod events;
mod exit;
mod experiment;
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod import;
mod incentive_budget;
mod inventory;
mod items;
mod key;
mod listen;
mod load_steps;
mod load_test;
mod lock;
mod log;
mod loyalty;
mod matrix;
mod numbers;
mod observability;
mod output;
mod paths;
mod progress;
mod retrain;
mod security;
mod serve;
mod settings;
mod signal;
mod simulate;
mod threads;
mod time;
mod train;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
pub use exit::Exit;
use lodestone_core::error_chain::format_error_chain;
use lodestone_pipeline::ranking::Runtime;
use settings::ArgumentError;
use std::path::PathBuf;

/// A gRPC ranking engine for online shops.
///
/// From the files of a shop to ranked results: `import` converts the files to canonical Parquet, `train` fits the
/// models and writes a bundle, `evaluate` measures it on later data, `serve` answers gRPC requests with it.
#[derive(Parser)]
#[command(version, about, max_term_width = 110, after_help = after_help())]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn after_help() -> String {
    format!(
        "Output: every command that returns a result takes --format table|json and --out. --out FILE writes the result to \
         a file instead of standard output; where the result is a dataset or a bundle, --out names its directory and a \
         summary is printed. Progress and logs go to standard error.\n\n{}\n\
         Examples:\n  \
           lodestone import --mapping mapping.toml --events transactions.csv.zst --out data\n  \
           lodestone train --data data --out bundle\n  \
           lodestone evaluate --data data --bundle bundle\n  \
           lodestone serve --bundle bundle --data data",
        Exit::help()
    )
}

#[derive(Subcommand)]
enum Command {
    Import(import::ImportArgs),
    /// Brings items of a file to a running server.
    #[command(subcommand)]
    Items(items::ItemsCommand),
    Train(train::TrainCommandArgs),
    Evaluate(evaluate::EvaluateArgs),
    Retrain(retrain::RetrainArgs),
    Gate(gate::GateArgs),
    /// Builds bundles from models trained elsewhere, inspects bundles, and manages stores of bundles.
    #[command(subcommand)]
    Bundle(bundle::BundleCommand),
    #[command(override_usage = serve::USAGE, after_help = serve::EXAMPLES)]
    Serve(serve::ServeArgs),
    /// Shows and checks the settings of a server.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Doctor(config::DoctorArgs),
    /// Manages the API keys of a server.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Shows and verifies the audit log.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Exports and shows logged answers with the probability of every item shown.
    #[command(subcommand)]
    Answers(answers::AnswersCommand),
    /// Exports, verifies, repairs and compacts the event log.
    #[command(subcommand)]
    Events(events::EventsCommand),
    /// Copies a data directory while the server runs, verifies copies and restores them.
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Benchmarks parts of the engine on your own data or on public datasets; the help of each command describes its
    /// files.
    #[command(subcommand)]
    Benchmark(benchmark::Benchmark),
    /// Analyses online experiments.
    #[command(subcommand)]
    Experiment(experiment::ExperimentCommand),
    /// Scores all users for loyalty, and reports on the shop's customers.
    #[command(subcommand)]
    Loyalty(loyalty::LoyaltyCommand),
    Simulate(simulate::SimulateArgs),
    LoadTest(load_test::LoadTestArgs),
}

/// Path of the ONNX Runtime library.
#[derive(clap::Args)]
struct LibraryArgs {
    /// The ONNX Runtime library (libonnxruntime.so). Default: ORT_DYLIB_PATH, then the usual library directories.
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

impl LibraryArgs {
    fn load(&self) -> anyhow::Result<Runtime> {
        Ok(Runtime::load(self.onnxruntime.as_deref())?)
    }
}

/// Returns the options of a store: the credentials in the environment.
#[expect(clippy::disallowed_methods, reason = "the SDKs of object stores define these variables")]
fn store_options() -> impl Iterator<Item = (String, String)> {
    let is_credential =
        |(name, _): &(String, String)| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
    std::env::vars().filter(is_credential).map(|(name, value)| (name.to_lowercase(), value))
}

/// Runs the program. Usage errors end the process with [`Exit::Error`].
pub fn run() -> Exit {
    let (matches, settings) = match settings::parse(Cli::command(), std::env::args_os().collect()) {
        Ok(parsed) => parsed,
        Err(ArgumentError::Usage(error)) => error.exit(),
        Err(ArgumentError::Line(problem)) => {
            eprintln!("lodestone: {problem}");
            return Exit::Error;
        }
    };
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if let Err(error) = signal::survive_file_size_limit() {
        eprintln!("lodestone: signals: {error}");
        return Exit::Error;
    }
    let result: anyhow::Result<Exit> = match cli.command {
        Command::Import(args) => import::import(&args),
        Command::Items(command) => items::run(&command),
        Command::Train(args) => train::train(args),
        Command::Evaluate(args) => evaluate::evaluate(&args),
        Command::Retrain(args) => retrain::retrain(&args),
        Command::Gate(args) => gate::gate(&args),
        Command::Bundle(command) => bundle::run(command),
        Command::Serve(args) => serve::serve(args, &settings),
        Command::Config(command) => config::run(&command, &settings),
        Command::Doctor(args) => config::doctor(&args),
        Command::Key(command) => key::run(&command),
        Command::Audit(command) => audit::run(&command),
        Command::Answers(command) => answers::run(&command),
        Command::Events(command) => events::run(&command),
        Command::Backup(command) => backup::run(&command),
        Command::Benchmark(command) => benchmark::run(command),
        Command::Experiment(command) => experiment::run(command),
        Command::Loyalty(command) => loyalty::run(&command),
        Command::Simulate(args) => simulate::simulate(args),
        Command::LoadTest(args) => load_test::load_test(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("lodestone: {}", format_error_chain(&*error));
        Exit::Error
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands that return no result: a server.
    const WITHOUT_RESULT: [&str; 1] = ["serve"];

    fn leaves(command: &clap::Command, path: &str, visit: &mut impl FnMut(&str, &clap::Command)) {
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            match sub.has_subcommands() {
                true => leaves(sub, &path, visit),
                false => visit(path.trim(), sub),
            }
        }
    }

    #[test]
    fn every_command_has_format_out_and_a_description() {
        let cli = Cli::command();
        cli.clone().debug_assert();
        leaves(&cli, "", &mut |path, command| {
            assert!(command.get_about().is_some(), "{path} has no description");
            if WITHOUT_RESULT.contains(&path) {
                return;
            }
            let flags: Vec<_> = command.get_arguments().filter_map(|argument| argument.get_long()).collect();
            for flag in ["format", "json", "out"] {
                assert!(flags.contains(&flag), "{path} has no --{flag}");
            }
        });
    }
}
