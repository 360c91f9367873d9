//! Inference of the ranking model and the encoders with ONNX Runtime.
mod external_data;
mod known_answer;
mod onnx;
mod sentence;
mod sentence_config;
mod text_encoder;
mod tokenizer;

pub use external_data::{ModelFileError, read_model};
pub use known_answer::KnownAnswer;
pub use onnx::{Device, QueryEncoder, Ranker, RankingError, Runtime, RuntimeError, UserEncoder, UserInput};
pub use sentence::{SentenceEncoder, SentenceFiles, TextRole};
pub use sentence_config::{EncoderProperties, EncoderSource, Pooling, SentenceConfig, SentenceError};
pub use text_encoder::{QueryEncoderFiles, QueryEncoderKind, TextEncoder};
