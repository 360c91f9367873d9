//! Inference of the ranking model and the encoders with ONNX Runtime.
mod external_data;
mod onnx;
mod sentence;
mod text_encoder;

pub use external_data::{ModelFileError, model_files, read_model};
pub use onnx::{Device, QueryEncoder, Ranker, RankingError, Runtime, RuntimeError, UserEncoder, UserInput};
pub use sentence::{SentenceEncoder, SentenceError};
pub use text_encoder::TextEncoder;
