//! From a shop's events to a bundle, and the judgement of a bundle. Training replays the events through the same fold,
//! retrieval and features that serve requests; nothing that comes after a moment is known at it.
mod adam;
mod bring;
mod checkpoint;
mod counts;
mod evaluate;
mod gate;
mod gather;
mod kernels;
mod layers;
mod lists;
mod losses;
mod onnx;
mod query_encoder;
mod query_side;
mod ranker;
mod replay;
mod report;
mod search_benchmark;
pub mod sequence;
pub mod simulation;
mod softmax;
mod train;
mod user_encoder;
mod warm;

pub use bring::{ExternalModelError, ExternalModels, bring};
pub use checkpoint::{Found, path_for as checkpoint_of};
pub use evaluate::{EvaluateOptions, Evaluation, evaluate};
pub use gate::{GateOptions, Verdict, gate};
pub use gather::{Gathered, Gathering};
pub use onnx::ExportCheck;
pub use report::report;
pub use search_benchmark::{
    SearchBenchmarkError, SearchBenchmarkOptions, SearchQuality, SearchReport, search_benchmark,
};
pub use train::{TrainError, TrainOptions, TrainReport, train};
pub use warm::Start;

/// A step of a long work, for a progress bar.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    pub stage: &'static str,
    pub done: usize,
    pub total: usize,
    /// NaN where there is none.
    pub loss: f32,
}
