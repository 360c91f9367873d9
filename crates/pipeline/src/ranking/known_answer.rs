//! A query with the vector that its encoder must return.
use super::onnx::RankingError;
use serde::{Deserialize, Serialize};

/// Minimum cosine of the vector and the expected one. An int8 model differs between processors by less; another
/// pooling, prefix or tokenizer differs by more.
const COSINE_MIN: f32 = 0.98;

/// `known_answer.json` of a bundle: a query with its vector on the machine that built the bundle. Also of a model
/// directory: a query with its vector by another program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownAnswer {
    pub query: String,
    pub vector: Vec<f32>,
}

impl KnownAnswer {
    /// Checks that `found` has the direction of the expected vector.
    pub(super) fn check(&self, found: &[f32]) -> Result<(), RankingError> {
        let Self { query, vector } = self;
        let refuse = |problem| Err(RankingError::Contract { model: "query_encoder", problem });
        if vector.len() != found.len() {
            let (found, expected) = (found.len(), vector.len());
            return refuse(format!("the vector of the query `{query}` has {found} dimensions, expected {expected}"));
        }
        let cosine = cosine(found, vector);
        match cosine >= COSINE_MIN {
            true => Ok(()),
            false => refuse(format!(
                "the vector of the query `{query}` has a cosine of {cosine:.3} with the known answer, at least \
                 {COSINE_MIN} is required; the pooling, a prefix, the tokenizer, the library or the processor differs"
            )),
        }
    }
}

/// Returns the cosine of two vectors; 0 if one of them is 0.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f32::MIN_POSITIVE)
}
