//! Inference of the ranking model and the encoders with ONNX Runtime.
mod onnx;
mod sentence;
mod text_encoder;

pub use onnx::{Device, QueryEncoder, Ranker, RankingError, Runtime, RuntimeError, UserEncoder, UserInput};
pub use sentence::{SentenceEncoder, SentenceError};
pub use text_encoder::TextEncoder;
