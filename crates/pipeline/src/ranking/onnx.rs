//! ONNX Runtime sessions; the only file that uses the crate `ort`. The library is loaded at run time, so that one
//! binary runs with its CPU build or its CUDA build.
use super::external_data::external_files;
use crate::features::FEATURES;
use ort::{
    environment::Environment,
    session::{Session, SessionInputValue, builder::GraphOptimizationLevel},
    value::{Outlet, TensorElementType, TensorRef, ValueType},
};
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

/// Usual paths of the library.
const USUAL_PATHS: [&str; 6] = [
    "target/tools/onnxruntime/libonnxruntime.so",
    "/usr/local/lib/libonnxruntime.so",
    "/usr/lib/libonnxruntime.so",
    "/usr/lib/x86_64-linux-gnu/libonnxruntime.so",
    "/usr/lib/aarch64-linux-gnu/libonnxruntime.so",
    "/opt/onnxruntime/lib/libonnxruntime.so",
];

/// The reason why ONNX Runtime cannot be loaded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    #[error(
        "the library of ONNX Runtime was not found (searched {searched}); install it with `make setup`, or unpack \
         libonnxruntime.so from PyPI's `onnxruntime` wheel, and name it with --onnxruntime FILE or ORT_DYLIB_PATH"
    )]
    NotFound { searched: String },
    #[error("the library of ONNX Runtime {path} cannot be loaded: {message}; version 1.24 or later is needed")]
    Load { path: PathBuf, message: String },
}

/// The reason why a model cannot be opened or run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RankingError {
    #[error("model {model} cannot be opened: {message}")]
    Open { model: &'static str, message: String },
    #[error("model {model}: {problem}")]
    Contract { model: &'static str, problem: String },
    #[error("model {model} failed: {message}")]
    Run { model: &'static str, message: String },
    #[error("model {model} returned a number that is not finite")]
    NotFinite { model: &'static str },
    #[error("device cuda: {0}")]
    Cuda(String),
}

/// The device on which models run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    #[default]
    Cpu,
    /// Needs the cargo feature `cuda`, the CUDA build of the library, and a GPU; otherwise opening fails.
    Cuda,
}

/// The loaded library. A process loads it once.
#[derive(Clone)]
pub struct Runtime {
    environment: Arc<Environment>,
}

impl Runtime {
    /// Loads the library from the given file, or from the first of the usual paths that exists. Later calls return the
    /// first library.
    pub fn load(library: Option<&Path>) -> Result<Self, RuntimeError> {
        static LOADED: OnceLock<Result<Runtime, RuntimeError>> = OnceLock::new();
        LOADED.get_or_init(|| Self::load_first(library)).clone()
    }

    /// Returns the description of the loaded build, with its version.
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }

    fn load_first(library: Option<&Path>) -> Result<Self, RuntimeError> {
        let paths: Vec<PathBuf> = match library {
            Some(path) => vec![path.to_owned()],
            None => USUAL_PATHS.iter().map(PathBuf::from).collect(),
        };
        let Some(path) = paths.iter().find(|path| path.is_file()) else {
            let searched = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
            return Err(RuntimeError::NotFound { searched });
        };
        let failed = |message: String| RuntimeError::Load { path: path.clone(), message };
        // Microsoft's builds send telemetry unless it is disabled.
        let environment = ort::init_from(path).map_err(|e| failed(e.to_string()))?.with_telemetry(false);
        let environment = environment.build().map_err(|e| failed(e.to_string()))?;
        Ok(Self { environment: Arc::new(environment) })
    }

    fn open(
        &self,
        model: &'static str,
        bytes: &[u8],
        device: Device,
        inputs: &[Contract],
        output: &Contract,
    ) -> Result<Session, RankingError> {
        let session = self.session(model, bytes, device)?;
        check(model, "input", session.inputs(), inputs)?;
        check(model, "output", session.outputs(), std::slice::from_ref(output))?;
        Ok(session)
    }

    fn session(&self, model: &'static str, bytes: &[u8], device: Device) -> Result<Session, RankingError> {
        let failed = |message: String| RankingError::Open { model, message };
        let external = external_files(bytes);
        if !external.is_empty() {
            let problem = format!(
                "its weights are in other files ({}); `lodestone bundle build` reads them from the model's directory",
                external.join(", ")
            );
            return Err(RankingError::Contract { model, problem });
        }
        let builder = Session::builder(&self.environment).map_err(|e| failed(e.to_string()))?;
        let builder = builder.with_intra_threads(1).map_err(|e| failed(e.to_string()))?;
        let builder =
            builder.with_optimization_level(GraphOptimizationLevel::Level3).map_err(|e| failed(e.to_string()))?;
        let mut builder = on_device(builder, device)?;
        builder.commit_from_memory(bytes).map_err(|e| failed(e.to_string()))
    }
}

fn on_device(
    builder: ort::session::builder::SessionBuilder,
    device: Device,
) -> Result<ort::session::builder::SessionBuilder, RankingError> {
    match device {
        Device::Cpu => Ok(builder),
        Device::Cuda => builder
            .with_execution_providers([ort::ep::CUDA::default().build().error_on_failure()])
            .map_err(|error| RankingError::Cuda(error.to_string())),
    }
}

/// The required name, type and shape of an input or output.
struct Contract<'a> {
    name: &'static str,
    element: TensorElementType,
    /// -1: any size.
    shape: &'a [i64],
}

const fn floats<'a>(name: &'static str, shape: &'a [i64]) -> Contract<'a> {
    Contract { name, element: TensorElementType::Float32, shape }
}

const fn integers<'a>(name: &'static str, shape: &'a [i64]) -> Contract<'a> {
    Contract { name, element: TensorElementType::Int64, shape }
}

/// Checks that a model has exactly the expected inputs or outputs.
fn check(model: &'static str, side: &str, found: &[Outlet], expected: &[Contract]) -> Result<(), RankingError> {
    let refuse = |problem: String| Err(RankingError::Contract { model, problem });
    let names: Vec<&str> = found.iter().map(Outlet::name).collect();
    let expected_names: Vec<&str> = expected.iter().map(|contract| contract.name).collect();
    if names.len() != expected_names.len() || expected_names.iter().any(|name| !names.contains(name)) {
        return refuse(format!("{side}s are {names:?}, expected {expected_names:?}"));
    }
    for contract in expected {
        let Some(outlet) = found.iter().find(|outlet| outlet.name() == contract.name) else { continue };
        let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
            return refuse(format!("{side} `{}` is not a tensor", contract.name));
        };
        if *ty != contract.element {
            return refuse(format!("{side} `{}` holds {ty}, expected {}", contract.name, contract.element));
        }
        let matches = |(found, expected): (&i64, &i64)| *found == -1 || *expected == -1 || found == expected;
        if shape.len() != contract.shape.len() || !shape.iter().zip(contract.shape).all(matches) {
            return refuse(format!(
                "{side} `{}` has the shape {:?}, expected {:?} (-1: any)",
                contract.name,
                shape.to_vec(),
                contract.shape
            ));
        }
    }
    Ok(())
}

/// Returns the size of the last dimension of a model's output, of which there are `what`. The model must fix it.
fn output_width(model: &'static str, session: &Session, what: &str) -> Result<usize, RankingError> {
    let output = &session.outputs()[0];
    let width = match output.dtype() {
        ValueType::Tensor { shape, .. } => shape.last().copied().filter(|width| *width > 0),
        _ => None,
    };
    width.map(|width| width as usize).ok_or_else(|| {
        let problem = format!("output `{}` must have a fixed number of {what}", output.name());
        RankingError::Contract { model, problem }
    })
}

type Input<'a> = (&'static str, SessionInputValue<'a>);

/// Runs a model and returns its first output, `length` finite numbers.
fn run(
    model: &'static str,
    session: &mut Session,
    inputs: Vec<Input>,
    length: usize,
) -> Result<Vec<f32>, RankingError> {
    let values = run_output(model, session, inputs, 0)?;
    match values.len() == length {
        true => Ok(values),
        false => {
            let problem = format!("returned {} numbers, expected {length}", values.len());
            Err(RankingError::Contract { model, problem })
        }
    }
}

/// Runs a model and returns one of its outputs, finite numbers.
fn run_output(
    model: &'static str,
    session: &mut Session,
    inputs: Vec<Input>,
    output: usize,
) -> Result<Vec<f32>, RankingError> {
    let failed = |error: ort::Error| RankingError::Run { model, message: error.to_string() };
    let inputs: Vec<(Cow<str>, SessionInputValue)> =
        inputs.into_iter().map(|(name, value)| (Cow::Borrowed(name), value)).collect();
    let outputs = session.run(inputs).map_err(failed)?;
    let (_, values) = outputs[output].try_extract_tensor::<f32>().map_err(failed)?;
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(values.to_vec()),
        false => Err(RankingError::NotFinite { model }),
    }
}

fn tensor<'a, T>(model: &'static str, shape: &[usize], values: &'a [T]) -> Result<SessionInputValue<'a>, RankingError>
where
    T: ort::value::PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static,
{
    TensorRef::from_array_view((shape.to_vec(), values))
        .map(SessionInputValue::from)
        .map_err(|error| RankingError::Run { model, message: error.to_string() })
}

/// A history as the input of the user encoder, latest event last; all fields are parallel.
#[derive(Debug, Clone, Default)]
pub struct UserInput {
    /// `[events × width]`: the vectors of the items.
    pub items: Vec<f32>,
    /// The numbers of [`lodestone_events::EventKind`].
    pub kinds: Vec<i64>,
    /// 0 for the latest event.
    pub positions: Vec<i64>,
    /// ln(1 + days).
    pub ages: Vec<f32>,
}

/// The transformer that maps a history to a vector in the user space.
pub struct UserEncoder {
    session: Session,
    width: usize,
}

impl UserEncoder {
    const NAME: &str = "user_encoder";

    /// Opens the model and checks its inputs and outputs. `width` is the number of dimensions of the user space.
    pub fn open(runtime: &Runtime, bytes: &[u8], width: usize, device: Device) -> Result<Self, RankingError> {
        let (items, user) = ([-1, -1, width as i64], [-1, width as i64]);
        let inputs = [
            floats("items", &items),
            integers("kinds", &[-1, -1]),
            integers("positions", &[-1, -1]),
            floats("ages", &[-1, -1]),
            floats("mask", &[-1, -1]),
        ];
        let output = floats("user", &user);
        Ok(Self { session: runtime.open(Self::NAME, bytes, device, &inputs, &output)?, width })
    }

    /// Returns the number of dimensions of a user's vector.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Encodes histories as vectors `[users × width]` of length 1. No history may be empty. Shorter histories are
    /// padded and masked.
    pub fn encode_batch(&mut self, users: &[UserInput]) -> Result<Vec<f32>, RankingError> {
        let Some(length) = users.iter().map(|user| user.kinds.len()).max() else {
            return Ok(Vec::new());
        };
        let cells = users.len() * length;
        let mut items = Vec::with_capacity(cells * self.width);
        let (mut kinds, mut positions) = (Vec::with_capacity(cells), Vec::with_capacity(cells));
        let (mut ages, mut mask) = (Vec::with_capacity(cells), Vec::with_capacity(cells));
        for (index, user) in users.iter().enumerate() {
            // Left-pad, because the model reads the last position.
            let begin = (index + 1) * length - user.kinds.len();
            items.resize(begin * self.width, 0.0);
            kinds.resize(begin, 0);
            positions.resize(begin, 0);
            ages.resize(begin, 0.0);
            mask.resize(begin, 0.0f32);
            items.extend_from_slice(&user.items);
            kinds.extend_from_slice(&user.kinds);
            positions.extend_from_slice(&user.positions);
            ages.extend_from_slice(&user.ages);
            mask.resize((index + 1) * length, 1.0);
        }
        let shape = [users.len(), length];
        let inputs = vec![
            ("items", tensor(Self::NAME, &[users.len(), length, self.width], &items)?),
            ("kinds", tensor(Self::NAME, &shape, &kinds)?),
            ("positions", tensor(Self::NAME, &shape, &positions)?),
            ("ages", tensor(Self::NAME, &shape, &ages)?),
            ("mask", tensor(Self::NAME, &shape, &mask)?),
        ];
        run(Self::NAME, &mut self.session, inputs, users.len() * self.width)
    }
}

/// The model that maps hashed terms to a vector in the query space.
pub struct QueryEncoder {
    session: Session,
    width: usize,
}

impl QueryEncoder {
    const NAME: &str = "query_encoder";

    /// Opens the model and checks its inputs and outputs.
    pub fn open(runtime: &Runtime, bytes: &[u8], device: Device) -> Result<Self, RankingError> {
        let inputs = [integers("term_ids", &[-1, -1]), floats("mask", &[-1, -1])];
        let session = runtime.open(Self::NAME, bytes, device, &inputs, &floats("query", &[-1, -1]))?;
        let width = output_width(Self::NAME, &session, "dimensions")?;
        Ok(Self { session, width })
    }

    /// Encodes texts as vectors `[texts × width]` of length 1. No list of terms may be empty.
    pub fn encode_batch(&mut self, texts: &[Vec<u32>]) -> Result<Vec<f32>, RankingError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let length = texts.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let (mut ids, mut mask) = (vec![0i64; texts.len() * length], vec![0f32; texts.len() * length]);
        for (row, terms) in texts.iter().enumerate() {
            for (column, term) in terms.iter().enumerate() {
                ids[row * length + column] = i64::from(*term);
                mask[row * length + column] = 1.0;
            }
        }
        let shape = [texts.len(), length];
        let inputs =
            vec![("term_ids", tensor(Self::NAME, &shape, &ids)?), ("mask", tensor(Self::NAME, &shape, &mask)?)];
        run(Self::NAME, &mut self.session, inputs, texts.len() * self.width)
    }
}

/// The ranking model, which maps features to the logits of the heads.
pub struct Ranker {
    session: Session,
    column_count: usize,
    head_count: usize,
}

impl Ranker {
    const NAME: &str = "ranker";

    /// Opens the model and checks its inputs and outputs. It must have one column for each of the features.
    pub fn open(
        runtime: &Runtime,
        bytes: &[u8],
        features: &[impl AsRef<str>],
        device: Device,
    ) -> Result<Self, RankingError> {
        let output = floats("logits", &[-1, -1]);
        let session = runtime.open(Self::NAME, bytes, device, &[floats("features", &[-1, -1])], &output)?;
        check_columns(&session, features)?;
        let head_count = output_width(Self::NAME, &session, "heads")?;
        Ok(Self { session, column_count: features.len(), head_count })
    }

    pub fn column_count(&self) -> usize {
        self.column_count
    }

    pub fn head_count(&self) -> usize {
        self.head_count
    }

    /// Computes logits `[rows × heads]` of features `[rows × columns]`.
    pub fn score(&mut self, features: &[f32], row_count: usize) -> Result<Vec<f32>, RankingError> {
        let inputs = vec![("features", tensor(Self::NAME, &[row_count, self.column_count], features)?)];
        run(Self::NAME, &mut self.session, inputs, row_count * self.head_count)
    }
}

/// Checks that the ranking model has one column for each feature, or any number of columns.
fn check_columns(session: &Session, features: &[impl AsRef<str>]) -> Result<(), RankingError> {
    let found = match session.inputs()[0].dtype() {
        ValueType::Tensor { shape, .. } => shape[1],
        _ => -1,
    };
    if found == -1 || found == features.len() as i64 {
        return Ok(());
    }
    let declared: Vec<&str> = features.iter().skip(FEATURES.len()).map(AsRef::as_ref).collect();
    let declared = match declared.is_empty() {
        true => "no declared ones".to_owned(),
        false => format!("the declared {}", declared.join(", ")),
    };
    let problem = format!(
        "input `features` has {found} columns, but the bundle has {} features: {} built-in ones and {declared}",
        features.len(),
        features.len().min(FEATURES.len())
    );
    Err(RankingError::Contract { model: Ranker::NAME, problem })
}

/// A session of a sentence model in the format of Hugging Face's ONNX exports, before an output is selected. Inputs:
/// `input_ids`, and optionally `attention_mask`, `token_type_ids` and `position_ids`.
pub(super) struct SentenceSession {
    session: Session,
    input_names: Vec<&'static str>,
}

/// A sentence model with its selected output: `[texts × tokens × width]` or `[texts × width]`.
pub(super) struct SentenceModel {
    session: Session,
    input_names: Vec<&'static str>,
    /// The output's position among the model's outputs.
    output: usize,
    /// Whether the output has one vector per token.
    has_tokens: bool,
    width: usize,
}

/// An output of the model.
pub(super) struct ModelOutput {
    pub name: String,
    /// Whether it has a vector for each token, `[texts, tokens, dimensions]`, or for each text, `[texts, dimensions]`.
    pub has_tokens: bool,
}

impl SentenceSession {
    const NAME: &str = "sentence_encoder";

    /// Opens the model and checks its inputs.
    pub(super) fn open(runtime: &Runtime, bytes: &[u8], device: Device) -> Result<Self, RankingError> {
        const INPUTS: [&str; 4] = ["input_ids", "attention_mask", "token_type_ids", "position_ids"];
        let session = runtime.session(Self::NAME, bytes, device)?;
        let found: Vec<&str> = session.inputs().iter().map(Outlet::name).collect();
        let input_names: Vec<&'static str> = INPUTS.into_iter().filter(|name| found.contains(name)).collect();
        if input_names.len() != found.len() || !found.contains(&INPUTS[0]) {
            let problem = format!(
                "inputs are {found:?}, expected input_ids and at most {:?}; export the model for feature extraction, \
                 without a cache",
                &INPUTS[1..]
            );
            return Err(RankingError::Contract { model: Self::NAME, problem });
        }
        let contracts: Vec<Contract> = input_names.iter().map(|name| integers(name, &[-1, -1])).collect();
        check(Self::NAME, "input", session.inputs(), &contracts)?;
        Ok(Self { session, input_names })
    }

    /// Returns the outputs that may be vectors of tokens or texts.
    pub(super) fn outputs(&self) -> Vec<ModelOutput> {
        let output = |outlet: &Outlet| match outlet.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } if matches!(shape.len(), 2 | 3) => {
                Some(ModelOutput { name: outlet.name().to_owned(), has_tokens: shape.len() == 3 })
            }
            _ => None,
        };
        self.session.outputs().iter().filter_map(output).collect()
    }

    /// Selects an output and runs the model once for its width, which need not be declared.
    pub(super) fn select(self, name: &str) -> Result<SentenceModel, RankingError> {
        let selected = self.outputs().into_iter().find(|output| output.name == name);
        let position = self.session.outputs().iter().position(|outlet| outlet.name() == name);
        let Some((selected, output)) = selected.zip(position) else {
            let names: Vec<&str> = self.session.outputs().iter().map(Outlet::name).collect();
            let problem = format!("outputs are {names:?}; `{name}`, of float32 vectors, is missing");
            return Err(RankingError::Contract { model: Self::NAME, problem });
        };
        let Self { session, input_names } = self;
        let has_tokens = selected.has_tokens;
        let mut model = SentenceModel { session, input_names, output, has_tokens, width: 0 };
        model.width = model.run(&[&[0]])?.len();
        match model.width {
            0 => Err(RankingError::Contract { model: Self::NAME, problem: format!("output `{name}` is empty") }),
            _ => Ok(model),
        }
    }
}

impl SentenceModel {
    /// Returns the number of dimensions of a vector of the output.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Returns whether the output has one vector per token.
    pub(super) fn has_tokens(&self) -> bool {
        self.has_tokens
    }

    /// Runs the model on tokenised texts. Returns the output: `[texts × width]`, or with token vectors `[texts ×
    /// longest text × width]`, where the vectors after a text's last token are meaningless.
    pub(super) fn encode(&mut self, texts: &[&[i64]]) -> Result<Vec<f32>, RankingError> {
        let rows = if self.has_tokens { texts.len() * padded_length(texts) } else { texts.len() };
        let (values, expected) = (self.run(texts)?, rows * self.width);
        match values.len() == expected {
            true => Ok(values),
            false => {
                let problem = format!("returned {} numbers, expected {expected}", values.len());
                Err(RankingError::Contract { model: SentenceSession::NAME, problem })
            }
        }
    }

    fn run(&mut self, texts: &[&[i64]]) -> Result<Vec<f32>, RankingError> {
        const NAME: &str = SentenceSession::NAME;
        let length = padded_length(texts);
        let cells = texts.len() * length;
        let (mut ids, mut mask, mut positions) =
            (Vec::with_capacity(cells), Vec::with_capacity(cells), Vec::with_capacity(cells));
        for (index, text) in texts.iter().enumerate() {
            let end = (index + 1) * length;
            ids.extend_from_slice(text);
            mask.resize(ids.len(), 1i64);
            positions.extend(0..text.len() as i64);
            ids.resize(end, 0);
            mask.resize(end, 0);
            positions.resize(end, 0);
        }
        let (types, shape) = (vec![0i64; cells], [texts.len(), length]);
        let values_of = |name: &str| match name {
            "input_ids" => &ids,
            "attention_mask" => &mask,
            "position_ids" => &positions,
            _ => &types,
        };
        let inputs = self.input_names.iter();
        let inputs = inputs
            .map(|name| Ok((*name, tensor(NAME, &shape, values_of(name))?)))
            .collect::<Result<Vec<Input>, RankingError>>()?;
        run_output(NAME, &mut self.session, inputs, self.output)
    }
}

/// Returns the number of tokens of the longest text, at least 1.
pub(super) fn padded_length(texts: &[&[i64]]) -> usize {
    texts.iter().map(|text| text.len()).max().unwrap_or(0).max(1)
}
