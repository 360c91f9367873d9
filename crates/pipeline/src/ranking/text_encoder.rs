//! From texts to vectors of the query's space, by whichever encoder a bundle has.
use super::{
    onnx::{Device, QueryEncoder, RankingError, Runtime},
    sentence::SentenceEncoder,
};
use lodestone_catalog::Item;
use lodestone_core::text;

/// What makes vectors of queries and of items' texts.
pub enum TextEncoder {
    /// Learned on the shop's own titles, from hashed words and character n-grams.
    Terms { encoder: QueryEncoder, bucket_count: u32 },
    /// A sentence encoder that the shop brought.
    Sentence(Box<SentenceEncoder>),
}

impl TextEncoder {
    /// Opens the model and checks its inputs and outputs. With the bytes of a `tokenizer.json` it is a sentence encoder.
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

    /// What is encoded of an item.
    pub fn text_of(&self, item: &Item) -> String {
        match self {
            Self::Terms { .. } => item.search_text(),
            Self::Sentence(_) => item.sentence(),
        }
    }

    /// Vectors of length 1; none for a text that says nothing.
    pub fn encode(&mut self, texts: &[&str]) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
        let mut said: Vec<bool> = Vec::with_capacity(texts.len());
        let vectors = match self {
            Self::Terms { encoder, bucket_count } => {
                let mut terms: Vec<Vec<u32>> =
                    texts.iter().map(|text| text::hashed_terms(text, *bucket_count)).collect();
                said.extend(terms.iter().map(|terms| !terms.is_empty()));
                terms.retain(|terms| !terms.is_empty());
                encoder.encode_batch(&terms)?
            }
            Self::Sentence(encoder) => {
                said.extend(texts.iter().map(|text| !text.trim().is_empty()));
                let texts: Vec<&str> = texts.iter().copied().filter(|text| !text.trim().is_empty()).collect();
                encoder.encode(&texts, &mut |_| {})?
            }
        };
        let count = said.iter().filter(|said| **said).count().max(1);
        let mut vectors = vectors.chunks_exact((vectors.len() / count).max(1)).map(<[f32]>::to_vec);
        Ok(said.into_iter().map(|said| if said { vectors.next() } else { None }).collect())
    }
}
