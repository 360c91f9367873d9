//! The query encoder of a bundle, of either kind.
use super::{
    onnx::{Device, QueryEncoder, RankingError, Runtime},
    sentence::SentenceEncoder,
};
use lodestone_catalog::Item;
use lodestone_core::text;

/// Maps queries and item texts to vectors in the query space.
pub enum TextEncoder {
    /// Trained on the shop's own titles; reads hashed words and character n-grams.
    Terms { encoder: QueryEncoder, bucket_count: u32 },
    /// An external sentence encoder.
    Sentence(Box<SentenceEncoder>),
}

impl TextEncoder {
    /// Opens the model and checks its inputs and outputs. It is a sentence encoder if there is a `tokenizer.json`.
    pub fn open(
        runtime: &Runtime,
        model: &[u8],
        tokenizer: Option<&[u8]>,
        bucket_count: u32,
        device: Device,
    ) -> Result<Self, RankingError> {
        Ok(match tokenizer {
            Some(tokenizer) => {
                Self::Sentence(Box::new(SentenceEncoder::from_bytes(runtime, model, tokenizer, device, 1)?))
            }
            None => Self::Terms { encoder: QueryEncoder::open(runtime, model, device)?, bucket_count },
        })
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
    pub fn encode(&mut self, texts: &[&str]) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
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
                encoder.encode(&texts, &mut |_| {})?
            }
        };
        let count = has_terms.iter().filter(|has_terms| **has_terms).count().max(1);
        let mut vectors = vectors.chunks_exact((vectors.len() / count).max(1)).map(<[f32]>::to_vec);
        Ok(has_terms.into_iter().map(|has_terms| if has_terms { vectors.next() } else { None }).collect())
    }
}
