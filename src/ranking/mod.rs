//! Stage two and the encoders: learned functions, run by ONNX Runtime.
mod onnx;
#[cfg(feature = "train")]
mod sentence;

pub use onnx::{Device, PersonEncoder, PersonInput, QueryEncoder, Ranker, RankingError, Runtime, RuntimeError};
#[cfg(feature = "train")]
pub use sentence::{SentenceEncoder, SentenceError};
