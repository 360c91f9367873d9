//! The command line: parse, hand over, print. Data goes to stdout, talk to stderr.
//! Exit codes: 0 done, 1 ran and the answer is no, 2 usage, configuration or failure.
mod answers;
mod benchmark;
mod bundle;
mod events;
mod experiment;
mod load_test;
mod lock;
mod matrix;
mod offline;
mod retrain;
mod serve;
mod simulate;
mod time;

use clap::{Parser, Subcommand};
use lodestone_rollout::{Store, StoreError};
use std::path::PathBuf;

/// A gRPC ranking engine for online shops.
///
/// From a shop's files to an answer: `import` makes them canonical, `train` learns a bundle from them, `evaluate`
/// judges it on what came later, `serve` answers.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Turns a shop's CSV, JSONL or Parquet into canonical items and events, and reports what it dropped and why.
    Import(offline::ImportArgs),
    /// Learns encoders, neighbours and the ranking model from imported data and writes a bundle.
    Train(offline::TrainArgs),
    /// Judges a bundle on the part of the data that came after its training.
    Evaluate(offline::EvaluateArgs),
    /// Gathers, trains, judges and publishes: the learning loop as one command, for cron.
    Retrain(retrain::RetrainArgs),
    /// Decides whether a new bundle may replace the current one: exit code 1 and the reason if not.
    Gate(offline::GateArgs),
    /// Brings models of your own into a bundle, or says what a bundle holds.
    #[command(subcommand)]
    Bundle(bundle::BundleCommand),
    /// Answers gRPC requests from a bundle.
    Serve(serve::ServeArgs),
    /// Exports or shows what was answered, with the probability of everything that was shown.
    #[command(subcommand)]
    Answers(answers::AnswersCommand),
    /// Exports, verifies, repairs and compacts the log of what shoppers did.
    #[command(subcommand)]
    Events(events::EventsCommand),
    /// Measures parts of the engine on data of your own; each command tells what its file must be.
    #[command(subcommand)]
    Benchmark(benchmark::Benchmark),
    /// Experiments on shoppers: what their arms did.
    #[command(subcommand)]
    Experiment(experiment::ExperimentCommand),
    /// Puts made shoppers in front of real servers: what the learning loop is worth to clicks, purchases and coming back.
    Simulate(simulate::SimulateArgs),
    /// Measures a running server: requests per second, latencies, and where the time goes.
    LoadTest(load_test::LoadTestArgs),
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table for users.
    Text,
    /// JSON for programs.
    Json,
}

/// Where the library of ONNX Runtime is.
#[derive(clap::Args)]
pub struct LibraryArgs {
    /// The library of ONNX Runtime (libonnxruntime.so). Default: ORT_DYLIB_PATH, then the usual places.
    #[arg(long, env = "ORT_DYLIB_PATH", value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
}

/// Where bundles are published.
#[derive(clap::Args)]
pub struct StoreArgs {
    /// A directory, or in a build with the cargo feature `s3`, `gcs` or `azure`, as the image is, a place such as s3://bucket/path;
    /// its access comes from the environment (AWS_…, GOOGLE_…, AZURE_…).
    #[arg(long, value_name = "DIR|URL", env = "LODESTONE_STORE")]
    pub store: String,
}

impl StoreArgs {
    pub fn open(&self) -> Result<Store, StoreError> {
        open_store(&self.store)
    }
}

/// Opens a store with what the environment says of its access.
fn open_store(place: &str) -> Result<Store, StoreError> {
    let is_access = |(name, _): &(String, String)| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|of| name.starts_with(of));
    Store::open(place, std::env::vars().filter(is_access).map(|(name, value)| (name.to_lowercase(), value)))
}

/// An error with its causes; one that its effect already tells is not told twice.
fn told(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !told.contains(&cause) {
            told = if told.is_empty() { cause } else { format!("{told}: {cause}") };
        }
    }
    told
}

/// Runs the program and gives its exit code.
pub fn run() -> i32 {
    let cli = Cli::parse();
    let result: anyhow::Result<i32> = match cli.command {
        Command::Import(args) => offline::import(args).map(|()| 0),
        Command::Train(args) => offline::train(args),
        Command::Evaluate(args) => offline::evaluate(args),
        Command::Retrain(args) => retrain::retrain(args),
        Command::Gate(args) => offline::gate(args),
        Command::Bundle(command) => bundle::run(command).map(|()| 0),
        Command::Serve(args) => serve::serve(args).map(|()| 0),
        Command::Answers(command) => answers::run(command),
        Command::Events(command) => events::run(command),
        Command::Benchmark(command) => benchmark::run(command),
        Command::Experiment(command) => experiment::run(command),
        Command::Simulate(args) => simulate::simulate(args).map(|()| 0),
        Command::LoadTest(args) => load_test::load_test(args).map(|()| 0),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lodestone: {}", told(&error));
            2
        }
    }
}
