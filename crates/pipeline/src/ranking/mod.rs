//! Stage two and the encoders: learned functions, run by ONNX Runtime.
mod onnx;
mod sentence;
mod text_encoder;

pub use onnx::{Device, UserEncoder, UserInput, QueryEncoder, Ranker, RankingError, Runtime, RuntimeError};
pub use sentence::{SentenceEncoder, SentenceError};
pub use text_encoder::TextEncoder;
