//! How a sentence encoder reads texts: its properties, from the files of a model directory in the layout of
//! sentence-transformers or from the caller.
use super::{
    external_data::ModelFileError,
    onnx::{ModelOutput, RankingError},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Range of the maximum number of tokens.
const TOKENS_MIN: usize = 16;
const TOKENS_MAX: usize = 32_768;
/// A `model_max_length` from this number on means that the tokenizer has no limit.
const LENGTH_UNLIMITED: f64 = 1e6;
/// Names of the prompts of queries and passages, in the order of sentence-transformers.
const QUERY_PROMPTS: [&str; 1] = ["query"];
const PASSAGE_PROMPTS: [&str; 3] = ["document", "passage", "corpus"];

/// The reason why a sentence encoder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SentenceError {
    #[error("{path}: {source}; an encoder is a directory with model.onnx or onnx/model.onnx, and tokenizer.json")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    File(ModelFileError),
    #[error("{path}: {problem}")]
    Config { path: PathBuf, problem: String },
    #[error("{path}: {source}")]
    Model { path: PathBuf, source: RankingError },
}

/// How token vectors become the vector of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The vector of the first token.
    Cls,
    /// The vector of the last token.
    LastToken,
    /// The model's output has one vector for each text already.
    Model,
}

/// All properties of a sentence encoder that its ONNX file and its tokenizer do not contain. Its vectors are always
/// scaled to length 1, because the index compares by cosine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SentenceConfig {
    /// Name of the model's output.
    pub output: String,
    pub pooling: Pooling,
    /// Text before each query.
    pub query_prefix: String,
    /// Text before each item's text.
    pub passage_prefix: String,
    /// Maximum number of tokens of a text, with its prefix and special tokens. Longer texts are truncated.
    pub tokens_max: usize,
    /// Whether texts are converted to lower case before the tokenizer reads them.
    pub lower_case: bool,
    /// Number of first dimensions that are kept, at most those of the output (Matryoshka representation).
    pub dimensions: usize,
}

/// A model directory, and properties that take precedence over those in its files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncoderSource {
    /// Has `model.onnx` or `onnx/model.onnx`, and `tokenizer.json`.
    pub directory: PathBuf,
    pub properties: EncoderProperties,
}

/// Properties of a sentence encoder; none: not declared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncoderProperties {
    pub output: Option<String>,
    pub pooling: Option<Pooling>,
    pub query_prefix: Option<String>,
    pub passage_prefix: Option<String>,
    pub tokens_max: Option<usize>,
    pub dimensions: Option<usize>,
}

/// The properties of a model directory before the model's outputs are known.
pub(super) struct DeclaredConfig {
    output: Option<String>,
    pooling: Option<Pooling>,
    /// Whether the pooling is the source's property and not from a file.
    is_pooling_set: bool,
    query_prefix: String,
    passage_prefix: String,
    tokens_max: usize,
    lower_case: bool,
    dimensions: Option<usize>,
    /// Numbers of dimensions for which the model was trained; empty: only all of them, or not known.
    matryoshka: Vec<usize>,
    /// The dimensions of the token vectors, as the pooling's file has them.
    width: Option<usize>,
    /// A module after the pooling, which only an output of the model can contain.
    further_module: Option<String>,
}

#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize, Default)]
struct SentenceTransformers {
    prompts: Option<BTreeMap<String, String>>,
    default_prompt_name: Option<String>,
    similarity_fn_name: Option<String>,
    truncate_dim: Option<usize>,
}

#[derive(Deserialize, Default)]
struct SentenceBert {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize, Default)]
struct TokenizerFile {
    /// 10³⁰ without a limit, which exceeds an integer.
    model_max_length: Option<f64>,
}

#[derive(Deserialize, Default)]
struct ModelFile {
    #[serde(default)]
    matryoshka_dimensions: Vec<usize>,
}

/// The files of a model directory that declare properties.
struct Files<'a> {
    directory: &'a Path,
}

impl Files<'_> {
    /// Reads a file; none if the directory lacks it.
    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, SentenceError> {
        let path = self.directory.join(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SentenceError::Io { path, source }),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| refuse(&path, error.to_string()))
    }
}

fn refuse(path: &Path, problem: impl Into<String>) -> SentenceError {
    SentenceError::Config { path: path.to_owned(), problem: problem.into() }
}

impl DeclaredConfig {
    /// Reads the files of a model directory. Fails if neither they nor the source's properties declare the prefixes or
    /// the maximum number of tokens, and if they declare a model that this program would read wrongly.
    pub(super) fn read(source: &EncoderSource) -> Result<Self, SentenceError> {
        let EncoderSource { directory, properties } = source;
        let files = Files { directory };
        let modules: Vec<Module> = files.read("modules.json")?.unwrap_or_default();
        let transformers: Option<SentenceTransformers> = files.read("config_sentence_transformers.json")?;
        let transformers = transformers.unwrap_or_default();
        let bert: SentenceBert = files.read("sentence_bert_config.json")?.unwrap_or_default();
        let model: ModelFile = files.read("config.json")?.unwrap_or_default();
        let is = |module: &&Module, name: &str| module.kind.rsplit('.').next() == Some(name);
        let pooling_path = modules.iter().find(|module| is(module, "Pooling")).map_or("1_Pooling", |found| &found.path);
        let (declared_pooling, width) = pooling(&files, pooling_path, properties.pooling)?;
        let further =
            modules.iter().find(|module| !["Transformer", "Pooling", "Normalize"].iter().any(|name| is(module, name)));
        check_similarity(directory, &modules, transformers.similarity_fn_name.as_deref())?;
        let prefix = |set: &Option<String>, names: &[&str], flag| match set {
            Some(prefix) => Ok(prefix.clone()),
            None => declared_prefix(directory, &transformers, names, flag),
        };
        Ok(Self {
            output: properties.output.clone(),
            pooling: declared_pooling,
            is_pooling_set: properties.pooling.is_some(),
            query_prefix: prefix(&properties.query_prefix, &QUERY_PROMPTS, "--query-prefix")?,
            passage_prefix: prefix(&properties.passage_prefix, &PASSAGE_PROMPTS, "--passage-prefix")?,
            tokens_max: tokens_max(&files, &bert, properties.tokens_max)?,
            lower_case: bert.do_lower_case,
            dimensions: properties.dimensions.or(transformers.truncate_dim),
            matryoshka: model.matryoshka_dimensions,
            width,
            further_module: further.map(|module| module.kind.clone()),
        })
    }

    /// Selects the output: the declared one, otherwise the only one, otherwise the one that the usual exports write.
    pub(super) fn select_output<'a>(
        &self,
        directory: &Path,
        outputs: &'a [ModelOutput],
    ) -> Result<&'a ModelOutput, SentenceError> {
        const USUAL: [&str; 3] = ["sentence_embedding", "last_hidden_state", "token_embeddings"];
        let named = |name: &str| outputs.iter().find(|output| output.name == name);
        let found = match (&self.output, outputs) {
            (Some(name), _) => named(name),
            (None, [only]) => Some(only),
            (None, _) => USUAL.into_iter().find_map(named),
        };
        found.ok_or_else(|| {
            let names = outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>().join(", ");
            let problem = match &self.output {
                Some(name) => format!("the model has no output `{name}` of float32 vectors; it has {names}"),
                None => format!("the model has the outputs {names}; name one with --encoder-output"),
            };
            refuse(directory, problem)
        })
    }

    /// Completes the configuration with the selected output, whose vectors have `width` dimensions.
    pub(super) fn complete(
        self,
        directory: &Path,
        output: &ModelOutput,
        width: usize,
    ) -> Result<SentenceConfig, SentenceError> {
        let refused = |problem: String| Err(refuse(directory, problem));
        let name = &output.name;
        let pooling = match (output.has_tokens, self.pooling) {
            (true, None) => {
                return refused(format!(
                    "the output `{name}` has a vector for each token, and the directory has no 1_Pooling/config.json; \
                     declare the pooling with --encoder-pooling mean, cls or last-token"
                ));
            }
            (true, Some(Pooling::Model)) => {
                return refused(format!(
                    "the output `{name}` has a vector for each token, so the pooling must not be `model`"
                ));
            }
            (false, Some(Pooling::Mean | Pooling::Cls | Pooling::LastToken)) if self.is_pooling_set => {
                return refused(format!(
                    "the output `{name}` has one vector for each text; it needs no --encoder-pooling"
                ));
            }
            (true, Some(pooling)) => pooling,
            (false, _) => Pooling::Model,
        };
        if let Some(module) = self.further_module.filter(|_| output.has_tokens) {
            return refused(format!(
                "modules.json has the module {module}, which the output `{name}` does not contain; export the whole \
                 model, with one vector for each text"
            ));
        }
        if let Some(declared) = self.width.filter(|declared| output.has_tokens && *declared != width) {
            return refused(format!(
                "the output `{name}` has {width} dimensions; 1_Pooling/config.json declares {declared}"
            ));
        }
        let dimensions = self.dimensions.unwrap_or(width);
        if !(1..=width).contains(&dimensions) {
            return refused(format!("{dimensions} dimensions; the output `{name}` has {width}"));
        }
        if dimensions != width && !self.matryoshka.is_empty() && !self.matryoshka.contains(&dimensions) {
            return refused(format!(
                "{dimensions} dimensions; config.json declares that the model was trained for {:?}",
                self.matryoshka
            ));
        }
        Ok(SentenceConfig {
            output: name.clone(),
            pooling,
            query_prefix: self.query_prefix,
            passage_prefix: self.passage_prefix,
            tokens_max: self.tokens_max,
            lower_case: self.lower_case,
            dimensions,
        })
    }
}

/// Returns the pooling and the dimensions of the token vectors. The files of sentence-transformers have one flag for
/// each mode (`pooling_mode_mean_tokens`) or, since version 5, the names of the modes (`pooling_mode`).
fn pooling(
    files: &Files,
    directory: &str,
    declared: Option<Pooling>,
) -> Result<(Option<Pooling>, Option<usize>), SentenceError> {
    let name = format!("{directory}/config.json");
    let Some(config) = files.read::<serde_json::Map<String, serde_json::Value>>(&name)? else {
        return Ok((declared, None));
    };
    let path = files.directory.join(&name);
    let width =
        ["word_embedding_dimension", "embedding_dimension"].into_iter().find_map(|key| config.get(key)?.as_u64());
    let width = width.map(|width| width as usize);
    if declared.is_some() {
        return Ok((declared, width));
    }
    if config.get("include_prompt").and_then(serde_json::Value::as_bool) == Some(false) {
        return Err(refuse(&path, "`include_prompt` is false: a mean without the prefix is not supported"));
    }
    let mut modes: Vec<&str> = match config.get("pooling_mode") {
        Some(serde_json::Value::String(mode)) => vec![mode],
        Some(serde_json::Value::Array(modes)) => modes.iter().filter_map(serde_json::Value::as_str).collect(),
        _ => Vec::new(),
    };
    let flags = config.iter().filter(|(_, value)| value.as_bool() == Some(true));
    modes.extend(flags.filter_map(|(key, _)| key.strip_prefix("pooling_mode_")));
    let modes: Vec<(&str, Option<Pooling>)> = modes
        .into_iter()
        .map(|mode| match mode {
            // All means of one text have the same direction, whatever they are divided by.
            "mean_tokens" | "mean" | "mean_sqrt_len_tokens" => (mode, Some(Pooling::Mean)),
            "cls_token" | "cls" => (mode, Some(Pooling::Cls)),
            "lasttoken" => (mode, Some(Pooling::LastToken)),
            _ => (mode, None),
        })
        .collect();
    match modes[..] {
        [(_, Some(pooling))] => Ok((Some(pooling), width)),
        [(mode, None)] => {
            Err(refuse(&path, format!("the pooling `{mode}` is not supported; supported are mean, cls and last token")))
        }
        _ => {
            let names: Vec<&str> = modes.iter().map(|(mode, _)| *mode).collect();
            Err(refuse(&path, format!("declares {} poolings {names:?}; exactly one is needed", names.len())))
        }
    }
}

/// Refuses a model whose vectors are compared in another way than by cosine. A model without `similarity_fn_name` is
/// compared by cosine in sentence-transformers too.
fn check_similarity(directory: &Path, modules: &[Module], similarity: Option<&str>) -> Result<(), SentenceError> {
    let is_normalised = modules.iter().any(|module| module.kind.ends_with(".Normalize"));
    match similarity {
        None | Some("cosine") => Ok(()),
        // Of vectors of length 1, the inner product is the cosine, and the distance orders like it.
        Some(_) if is_normalised => Ok(()),
        Some(other) => Err(refuse(
            &directory.join("config_sentence_transformers.json"),
            format!("the model compares vectors of any length by `{other}`; the index compares by cosine"),
        )),
    }
}

/// Returns the declared prompt of queries or passages, which is empty if the model declares prompts but not this one.
fn declared_prefix(
    directory: &Path,
    transformers: &SentenceTransformers,
    names: &[&str],
    flag: &str,
) -> Result<String, SentenceError> {
    let refused = |problem: String| {
        let set = format!(
            "{problem}; set {flag} TEXT, or {flag} \"\" if the model needs none (E5 needs \"query: \" and \"passage: \")"
        );
        Err(refuse(&directory.join("config_sentence_transformers.json"), set))
    };
    let Some(prompts) = &transformers.prompts else {
        return refused(format!("the text before each {} is not declared (`prompts`)", names[0]));
    };
    let default = transformers.default_prompt_name.as_deref();
    if let Some(prompt) = names.iter().copied().chain(default).find_map(|name| prompts.get(name)) {
        return Ok(prompt.clone());
    }
    let is_known = |name: &String| QUERY_PROMPTS.iter().chain(&PASSAGE_PROMPTS).any(|known| known == name);
    match prompts.is_empty() || prompts.keys().any(is_known) {
        true => Ok(String::new()),
        false => {
            let found = prompts.keys().cloned().collect::<Vec<_>>().join(", ");
            refused(format!("of the prompts {found}, none is named {}", names.join(" or ")))
        }
    }
}

/// Returns the maximum number of tokens: the declared one, otherwise that of sentence-transformers, otherwise that of
/// the tokenizer.
fn tokens_max(files: &Files, bert: &SentenceBert, declared: Option<usize>) -> Result<usize, SentenceError> {
    let tokenizer: TokenizerFile = files.read("tokenizer_config.json")?.unwrap_or_default();
    let limit = tokenizer.model_max_length.filter(|length| *length < LENGTH_UNLIMITED).map(|length| length as usize);
    let found = declared.or(bert.max_seq_length).or(limit);
    let Some(tokens) = found else {
        return Err(refuse(
            files.directory,
            "the maximum number of tokens is not declared: sentence_bert_config.json has no `max_seq_length`, \
             tokenizer_config.json no `model_max_length`; set --encoder-tokens-max",
        ));
    };
    match (TOKENS_MIN..=TOKENS_MAX).contains(&tokens) {
        true => Ok(tokens),
        false => Err(refuse(
            files.directory,
            format!("the maximum number of tokens is {tokens}; it must be within {TOKENS_MIN} and {TOKENS_MAX}"),
        )),
    }
}
