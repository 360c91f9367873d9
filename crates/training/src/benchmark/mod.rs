//! The public benchmarks of recommendation: a data set becomes the items and events of a shop, the training makes a
//! bundle of them, and the pipeline of requests answers the test queries.
mod compared;
mod files;
mod metrics;
mod protocol;
mod report;
mod served;

use crate::{EncoderSettings, Progress, error::TrainError};
use lodestone_pipeline::ranking::Runtime;
pub use metrics::{BasketMetrics, HitMetrics, basket_quality};
use protocol::Protocol;
pub use report::{BasketMethod, BasketReport, HitReport, Method, Summary};
use report::{QueryGroups, Run};
use std::{path::PathBuf, time::Instant};

/// Options of all benchmarks.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// The first seed.
    pub seed: u64,
    /// Number of runs, each with the next seed.
    pub seeds: usize,
    /// The size of the user encoder.
    pub encoder: EncoderSettings,
    /// Whether the answers of the last seed are compared with the baselines of the evaluation.
    pub with_baselines: bool,
}

impl RunOptions {
    fn seeds(&self) -> Vec<u64> {
        (0..self.seeds as u64).map(|index| self.seed + index).collect()
    }
}

/// Files of [`next_item`].
#[derive(Debug, Clone)]
pub struct NextItemFiles {
    pub sequences: PathBuf,
    pub items: PathBuf,
    /// Clusters of users, which are resampled as a whole for the intervals. `None`: each user is a cluster.
    pub clusters: Option<PathBuf>,
}

/// Evaluates leave-one-out with full ranking, without the items of the history. The last item of each user with at
/// least three items is the target.
pub fn next_item(
    files: &NextItemFiles,
    runtime: &Runtime,
    options: RunOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<HitReport, TrainError> {
    let (protocol, groups) = protocol::leave_one_out(files)?;
    hit_report(&protocol, &groups, runtime, options, progress)
}

/// Files of [`sessions`].
#[derive(Debug, Clone)]
pub struct SessionFiles {
    pub train: PathBuf,
    pub test: PathBuf,
}

/// Evaluates the next clicks of later sessions, ranked among all items; items of the session may repeat.
pub fn sessions(
    files: &SessionFiles,
    runtime: &Runtime,
    options: RunOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<HitReport, TrainError> {
    let protocol = protocol::next_clicks(files)?;
    let groups = QueryGroups { descending: None, clusters: (0..protocol.queries.len()).collect() };
    hit_report(&protocol, &groups, runtime, options, progress)
}

/// Files of [`next_basket`].
#[derive(Debug, Clone)]
pub struct BasketFiles {
    pub history: PathBuf,
    pub future: PathBuf,
}

/// Evaluates the next baskets of users with known earlier baskets, ranked among all items.
pub fn next_basket(
    files: &BasketFiles,
    runtime: &Runtime,
    options: RunOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<BasketReport, TrainError> {
    let protocol = protocol::next_baskets(files)?;
    let begun = Instant::now();
    let mut runs = Vec::new();
    for seed in options.seeds() {
        runs.push(served::lists(&protocol, runtime, options.encoder, seed, progress)?);
    }
    let seconds = begun.elapsed().as_secs_f64() / runs.len().max(1) as f64;
    let last = runs.last().filter(|_| options.with_baselines);
    let baselines = last.and_then(|last| compared::compare(&protocol, last, progress));
    Ok(BasketReport { baselines, ..BasketReport::new(&protocol, options.seeds(), &runs, seconds) })
}

fn hit_report(
    protocol: &Protocol,
    groups: &QueryGroups,
    runtime: &Runtime,
    options: RunOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<HitReport, TrainError> {
    let (mut runs, mut last) = (Vec::new(), None);
    for seed in options.seeds() {
        let begun = Instant::now();
        let lists = served::lists(protocol, runtime, options.encoder, seed, progress)?;
        runs.push(Run::new(protocol, &lists, begun.elapsed().as_secs_f64()));
        last = Some(lists);
    }
    let last = last.filter(|_| options.with_baselines);
    let baselines = last.and_then(|last| compared::compare(protocol, &last, progress));
    Ok(HitReport { baselines, ..HitReport::new(protocol.items.len(), options.seeds(), &runs, groups) })
}
