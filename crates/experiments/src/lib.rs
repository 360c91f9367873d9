//! Analysis of experiments on users: assignment to arms, the sample ratio check, and metrics of the arms with
//! sequential intervals. All functions are pure functions of exposures and outcomes; only `files` reads files. Use it
//! to decide between serving configurations; to select candidates for an experiment, see [`off_policy`].
#![forbid(unsafe_code)]
mod analysis;
mod certificate;
mod files;
mod interleaving;
mod observations;
pub mod off_policy;
mod page;
pub mod plots;
mod sample_ratio;

pub use analysis::{
    AnalysisOptions, ArmCount, ArmMean, Comparison, ExperimentError, ExperimentReport, LeftOut, Look, MetricReport,
    analyse,
};
pub use certificate::{Certificate, CertificateError, CertificateOptions, CertifiedMetric, Verdict, certify};
pub use files::{ExperimentFileError, ExperimentLog, read_answers, read_outcomes, read_slots};
pub use interleaving::{InterleavingReport, credit};
pub use observations::{Draft, Exposure, Outcome, Team};
pub use sample_ratio::{SampleRatio, sample_ratio};
