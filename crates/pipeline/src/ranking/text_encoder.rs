//! The query encoder of a bundle, of either kind.
use super::{
    known_answer::KnownAnswer,
    onnx::{Device, QueryEncoder, RankingError, Runtime},
    sentence::{SentenceEncoder, TextRole},
    sentence_config::SentenceConfig,
};
use lodestone_catalog::Item;
use lodestone_core::text;
use serde::{Deserialize, Serialize};

/// The kind of a bundle's query encoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryEncoderKind {
    /// Trained on the shop's own titles; reads hashed words and character n-grams.
    HashedTerms { bucket_count: u32 },
    /// An external sentence encoder.
    Sentence(SentenceConfig),
}

/// The files of a bundle's query encoder.
#[derive(Debug, Clone, Copy)]
pub struct QueryEncoderFiles<'a> {
    pub kind: &'a QueryEncoderKind,
    /// ONNX.
    pub model: &'a [u8],
    /// `tokenizer.json` of a sentence encoder.
    pub tokenizer: Option<&'a [u8]>,
    /// None during training.
    pub known_answer: Option<&'a KnownAnswer>,
}

/// Maps queries and item texts to vectors in the query space.
pub enum TextEncoder {
    Terms { encoder: QueryEncoder, bucket_count: u32 },
    Sentence(Box<SentenceEncoder>),
}

impl TextEncoder {
    /// Opens the model, checks its inputs and outputs, and checks that it returns the known answer.
    pub fn open(runtime: &Runtime, files: QueryEncoderFiles, device: Device) -> Result<Self, RankingError> {
        let mut encoder = match files.kind {
            QueryEncoderKind::HashedTerms { bucket_count } => {
                Self::Terms { encoder: QueryEncoder::open(runtime, files.model, device)?, bucket_count: *bucket_count }
            }
            QueryEncoderKind::Sentence(config) => {
                let tokenizer = files.tokenizer.ok_or_else(|| RankingError::Contract {
                    model: "sentence_encoder",
                    problem: "the bundle has no tokenizer.json".to_owned(),
                })?;
                let opened = SentenceEncoder::from_bytes(runtime, files.model, tokenizer, config, device, 1)?;
                Self::Sentence(Box::new(opened))
            }
        };
        if let Some(known) = files.known_answer {
            let found = encoder.encode(&[&known.query], TextRole::Query)?.remove(0);
            known.check(&found.unwrap_or_default())?;
        }
        Ok(encoder)
    }

    /// Encodes the query as a known answer; none if it has no vector.
    pub fn known_answer(&mut self, query: &str) -> Result<Option<KnownAnswer>, RankingError> {
        let vector = self.encode(&[query], TextRole::Query)?.remove(0);
        Ok(vector.map(|vector| KnownAnswer { query: query.to_owned(), vector }))
    }

    pub fn is_sentence_encoder(&self) -> bool {
        matches!(self, Self::Sentence(_))
    }

    /// Returns the text of an item that is encoded.
    pub fn text_of(&self, item: &Item) -> String {
        match self {
            Self::Terms { .. } => item.search_text(),
            Self::Sentence(_) => item.sentence(),
        }
    }

    /// Encodes texts as vectors of length 1; none for a text without terms.
    pub fn encode(&mut self, texts: &[&str], role: TextRole) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
        let mut has_terms: Vec<bool> = Vec::with_capacity(texts.len());
        let vectors = match self {
            Self::Terms { encoder, bucket_count } => {
                let mut terms: Vec<Vec<u32>> =
                    texts.iter().map(|text| text::hashed_terms(text, *bucket_count)).collect();
                has_terms.extend(terms.iter().map(|terms| !terms.is_empty()));
                terms.retain(|terms| !terms.is_empty());
                encoder.encode_batch(&terms)?
            }
            Self::Sentence(encoder) => {
                has_terms.extend(texts.iter().map(|text| !text.trim().is_empty()));
                let texts: Vec<&str> = texts.iter().copied().filter(|text| !text.trim().is_empty()).collect();
                encoder.encode(&texts, role, &mut |_| {})?
            }
        };
        let count = has_terms.iter().filter(|has_terms| **has_terms).count().max(1);
        let mut vectors = vectors.chunks_exact((vectors.len() / count).max(1)).map(<[f32]>::to_vec);
        // The model may know no token of a text, and then its vector is 0.
        let has_length = |vector: &Vec<f32>| vector.iter().any(|value| *value != 0.0);
        Ok(has_terms
            .into_iter()
            .map(|has_terms| if has_terms { vectors.next().filter(has_length) } else { None })
            .collect())
    }
}
