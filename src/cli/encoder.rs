//! Flags that name an external sentence encoder, for all commands that take one.
use clap::{ValueEnum, builder::PossibleValue};
use lodestone_pipeline::ranking::{EncoderProperties, EncoderSource, Pooling};
use std::path::PathBuf;

/// An external sentence encoder for queries and item texts.
#[derive(clap::Args)]
pub(crate) struct EncoderArgs {
    /// A sentence encoder for queries and item texts instead of one trained on the titles: a directory with model.onnx
    /// and tokenizer.json, as on Hugging Face. Its properties come from the other files of the directory or from the
    /// following flags; see docs/bring-your-own-model.md.
    #[arg(long, value_name = "DIR")]
    query_encoder: Option<PathBuf>,
    /// Output of the sentence encoder. Default: the only one, otherwise sentence_embedding or last_hidden_state.
    #[arg(long, value_name = "NAME", requires = "query_encoder")]
    encoder_output: Option<String>,
    /// How token vectors become the vector of a text. Default: that of 1_Pooling/config.json.
    #[arg(long, value_name = "POOLING", requires = "query_encoder")]
    encoder_pooling: Option<PoolingArg>,
    /// Text before each query; may be empty. Default: the prompt in config_sentence_transformers.json.
    #[arg(long, value_name = "TEXT", requires = "query_encoder")]
    query_prefix: Option<String>,
    /// Text before each item's text; may be empty. Default: the prompt in config_sentence_transformers.json.
    #[arg(long, value_name = "TEXT", requires = "query_encoder")]
    passage_prefix: Option<String>,
    /// Maximum number of tokens of a text, 16 to 32,768. Default: that of sentence_bert_config.json, otherwise that of
    /// tokenizer_config.json.
    #[arg(long, value_name = "N", requires = "query_encoder")]
    encoder_tokens_max: Option<usize>,
    /// Number of first dimensions that are kept, of a model that was trained for it (Matryoshka). Default: all.
    #[arg(long, value_name = "N", requires = "query_encoder")]
    encoder_dimensions: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct PoolingArg(Pooling);

impl ValueEnum for PoolingArg {
    fn value_variants<'a>() -> &'a [Self] {
        // `model` follows from an output with one vector for each text.
        &[Self(Pooling::Mean), Self(Pooling::Cls), Self(Pooling::LastToken)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let name = match self.0 {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::LastToken => "last-token",
            Pooling::Model => return None,
        };
        Some(PossibleValue::new(name))
    }
}

impl EncoderArgs {
    /// Returns the encoder; none without `--query-encoder`.
    pub(crate) fn source(&self) -> Option<EncoderSource> {
        Some(EncoderSource {
            directory: self.query_encoder.clone()?,
            properties: EncoderProperties {
                output: self.encoder_output.clone(),
                pooling: self.encoder_pooling.map(|pooling| pooling.0),
                query_prefix: self.query_prefix.clone(),
                passage_prefix: self.passage_prefix.clone(),
                tokens_max: self.encoder_tokens_max,
                dimensions: self.encoder_dimensions,
            },
        })
    }
}
