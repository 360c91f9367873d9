//! The tokenizer of a sentence encoder: `tokenizer.json` of Hugging Face, read by the crate `tokenizers`.
use super::{onnx::RankingError, sentence_config::SentenceConfig};
use serde::Deserialize;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerImpl, TruncationParams,
    pattern::{Invert, Pattern},
    pre_tokenizers::split::SplitPattern,
};

/// Errors of a regular expression in one text after which the rest of the text is split at white space.
const REGEX_ERRORS_MAX: usize = 3;

/// A tokenizer of `tokenizers` with another splitter.
type Parsed = TokenizerImpl<ModelWrapper, NormalizerWrapper, Splitter, PostProcessorWrapper, DecoderWrapper>;

/// Converts texts to token numbers.
pub(super) struct TextTokenizer {
    tokenizer: Parsed,
    lower_case: bool,
}

impl TextTokenizer {
    /// Reads `tokenizer.json`. Texts are truncated to the configuration's number of tokens and are not padded.
    pub(super) fn from_bytes(json: &[u8], config: &SentenceConfig) -> Result<Self, RankingError> {
        let mut tokenizer = parse(json)?;
        let truncation = TruncationParams { max_length: config.tokens_max, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(refuse)?;
        tokenizer.with_padding(None);
        Ok(Self { tokenizer, lower_case: config.lower_case })
    }

    /// Checks that `tokenizer.json` can be read.
    pub(super) fn check(json: &[u8]) -> Result<(), RankingError> {
        parse(json).map(|_| ())
    }

    /// Returns the token numbers of a text after its prefix.
    pub(super) fn tokens(&self, prefix: &str, text: &str) -> Result<Vec<i64>, RankingError> {
        let failed =
            |error: tokenizers::Error| RankingError::Run { model: "sentence_encoder", message: error.to_string() };
        // As sentence-transformers does, which trains most of these models.
        let mut text = [prefix, text].concat().trim().to_owned();
        if self.lower_case {
            text = text.to_lowercase();
        }
        let encoding = self.tokenizer.encode(text, true).map_err(failed)?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }
}

fn parse(json: &[u8]) -> Result<Parsed, RankingError> {
    serde_json::from_slice(json).map_err(|error| refuse(error.into()))
}

fn refuse(error: tokenizers::Error) -> RankingError {
    RankingError::Contract { model: "sentence_encoder", problem: format!("tokenizer.json: {error}") }
}

/// Splits a text into the pieces of which the model makes tokens.
///
/// The splits by a regular expression in `tokenizers` end without an error if the expression needs too much
/// backtracking, and the rest of the text is lost or becomes one piece. This type searches again after the word where
/// the expression failed.
enum Splitter {
    Sequence(Vec<Splitter>),
    Split {
        regex: Regex,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// Other kinds have no regular expression, or one without backtracking.
    Other(PreTokenizerWrapper),
}

impl<'de> Deserialize<'de> for Splitter {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Splitter::new(PreTokenizerWrapper::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Splitter {
    fn new(parsed: PreTokenizerWrapper) -> Result<Self, Box<fancy_regex::Error>> {
        Ok(match parsed {
            PreTokenizerWrapper::Sequence(sequence) => {
                Self::Sequence(sequence.into_iter().map(Self::new).collect::<Result<_, _>>()?)
            }
            PreTokenizerWrapper::Split(split) => {
                let expression = match &split.pattern {
                    SplitPattern::String(text) => fancy_regex::escape(text).into_owned(),
                    SplitPattern::Regex(expression) => expression.clone(),
                };
                // A piece that is not removed.
                let keeps_matches = split.invert && matches!(split.behavior, SplitDelimiterBehavior::Removed);
                let regex = Regex { regex: fancy_regex::Regex::new(&expression)?, keeps_matches };
                Self::Split { regex, behavior: split.behavior, invert: split.invert }
            }
            other => Self::Other(other),
        })
    }
}

impl PreTokenizer for Splitter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.pre_tokenize(text)),
            Self::Split { regex, behavior, invert: true } => {
                text.split(|_, normalized| normalized.split(Invert(regex), *behavior))
            }
            Self::Split { regex, behavior, invert: false } => {
                text.split(|_, normalized| normalized.split(regex, *behavior))
            }
            Self::Other(other) => other.pre_tokenize(text),
        }
    }
}

/// A regular expression that covers the whole text even where it fails.
struct Regex {
    regex: fancy_regex::Regex,
    /// Whether a word that the expression cannot judge counts as a match, because only matches are kept.
    keeps_matches: bool,
}

impl Pattern for &Regex {
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<((usize, usize), bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let mut pieces = Vec::new();
        let (mut done, mut errors) = (0, 0);
        while done < text.len() && errors <= REGEX_ERRORS_MAX {
            match self.matches_from(text, done, &mut pieces) {
                Ok(end) => {
                    if end < text.len() {
                        pieces.push(((end, text.len()), false));
                    }
                    return Ok(pieces);
                }
                Err(end) => {
                    done = end_of_word(text, end);
                    pieces.push(((end, done), self.keeps_matches));
                    errors += 1;
                }
            }
        }
        while done < text.len() {
            let end = end_of_word(text, done);
            pieces.push(((done, end), self.keeps_matches));
            done = end;
        }
        Ok(pieces)
    }
}

impl Regex {
    /// Appends the matches from a position on and the text between them. Returns the end of the last match. An error
    /// is the end of the last match before the expression failed.
    fn matches_from(&self, text: &str, begin: usize, pieces: &mut Vec<((usize, usize), bool)>) -> Result<usize, usize> {
        let mut done = begin;
        for found in self.regex.find_iter(&text[begin..]) {
            let found = found.map_err(|_| done)?;
            let (start, end) = (begin + found.start(), begin + found.end());
            if done != start {
                pieces.push(((done, start), false));
            }
            pieces.push(((start, end), true));
            done = end;
        }
        Ok(done)
    }
}

/// Returns the end of the first word after `begin`, with the white space before it.
fn end_of_word(text: &str, begin: usize) -> usize {
    let rest = &text[begin..];
    let word = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
    rest[word..].find(char::is_whitespace).map_or(text.len(), |length| begin + word + length)
}

#[cfg(test)]
mod tests {
    use super::{super::sentence_config::Pooling, *};
    use serde_json::json;

    /// A tokenizer of whole words that are separated by `split`.
    fn tokenizer(split: serde_json::Value, tokens_max: usize) -> TextTokenizer {
        let words = ["[UNK]", "red", "mug", "blue", "lamp", " red", " mug", " blue", " lamp", "query:"];
        let vocabulary: serde_json::Map<_, _> =
            words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": split, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
        });
        let config = SentenceConfig {
            output: "last_hidden_state".to_owned(),
            pooling: Pooling::Mean,
            query_prefix: String::new(),
            passage_prefix: String::new(),
            tokens_max,
            lower_case: true,
            dimensions: 2,
        };
        TextTokenizer::from_bytes(file.to_string().as_bytes(), &config).unwrap()
    }

    fn split(regex: &str, behavior: &str, invert: bool) -> serde_json::Value {
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert})
    }

    /// Backtracks exponentially on a word of the letter z: fancy-regex gives up.
    const HARD: &str = r"(?:z|zz)+(?!z)y";

    #[test]
    fn a_text_keeps_its_tail_where_a_regular_expression_gives_up() {
        let hard = "z".repeat(60);
        let lost = format!("red mug {hard} blue lamp");
        assert!(fancy_regex::Regex::new(HARD).unwrap().find(&lost).is_err(), "the text is hard for the expression");
        let words = format!(r"{HARD}|[^\s]+");
        let spaces = format!(r"{HARD}|\s+");
        for splitter in [split(&words, "Removed", true), split(&spaces, "Removed", false)] {
            let tokenizer = tokenizer(json!({"type": "Sequence", "pretokenizers": [splitter]}), 16);
            assert_eq!(tokenizer.tokens("", "red mug blue lamp").unwrap(), [1, 2, 3, 4]);
            let tokens = tokenizer.tokens("", &lost).unwrap();
            assert!(tokens.starts_with(&[1, 2]) && tokens.ends_with(&[3, 4]), "{tokens:?}");
        }
    }

    #[test]
    fn a_text_on_which_an_expression_fails_often_is_read_to_its_end() {
        let hard = format!("{} ", "z".repeat(60)).repeat(20);
        let tokenizer = tokenizer(split(&format!(r"{HARD}|[^\s]+"), "Removed", true), 64);
        assert!(tokenizer.tokens("", &format!("{hard} blue lamp")).unwrap().len() > 20);
    }

    #[test]
    fn prefix_case_and_length_are_those_of_the_configuration() {
        let tokenizer = tokenizer(json!({"type": "WhitespaceSplit"}), 16);
        assert_eq!(tokenizer.tokens("query: ", " RED lamp ").unwrap(), [9, 1, 4]);
        assert_eq!(tokenizer.tokens("", &"mug ".repeat(40)).unwrap().len(), 16);
    }
}
