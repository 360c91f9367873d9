//! Writes ONNX files: the few messages that are needed, with the official field numbers (onnx.proto, IR version 9,
//! operator set 20).
use super::{kernels::GELU_SHARPNESS, sequence::SequenceError};
use lodestone_pipeline::ranking::RankingError;
use prost::Message;

/// The greatest difference between an export and its original that is taken.
pub(crate) const DIFFERENCE_MAX: f32 = 1e-4;

/// How far an export is from the trained model, over random inputs.
#[derive(Debug, Clone)]
pub struct ExportCheck {
    pub model: &'static str,
    pub max_difference: f32,
}

/// Why a model was not trained or exported.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Ranking(#[from] RankingError),
    #[error(
        "the ONNX export of {model} differs from the trained model by {difference:e}; the limit is {DIFFERENCE_MAX:e}"
    )]
    Export { model: &'static str, difference: f32 },
    #[error("weights of {model} are not finite; train with a smaller learning rate")]
    NotFinite { model: &'static str },
    #[error("the loss of {stage} diverged at step {step}; train with a smaller learning rate")]
    Diverged { stage: &'static str, step: usize },
    #[error("{0}")]
    TooLittle(String),
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    #[error("the training was stopped")]
    Stopped,
}

/// Compares the outputs of ONNX Runtime with those of the trained model.
pub(crate) fn compare(model: &'static str, pairs: &[(Vec<f32>, Vec<f32>)]) -> Result<ExportCheck, ModelError> {
    let differences = pairs.iter().flat_map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs()));
    let max_difference = differences.fold(0.0, f32::max);
    let same_length = pairs.iter().all(|(a, b)| a.len() == b.len());
    match same_length && max_difference <= DIFFERENCE_MAX {
        true => Ok(ExportCheck { model, max_difference }),
        false => Err(ModelError::Export { model, difference: max_difference }),
    }
}

/// A dimension of an input or output.
pub(crate) enum Dim {
    Any(&'static str),
    Is(usize),
}

/// A graph that is being written. Names of values are the wires.
pub(crate) struct GraphWriter {
    model: &'static str,
    graph: GraphProto,
    is_finite: bool,
}

const FLOAT: i32 = 1;
const INT64: i32 = 7;

impl GraphWriter {
    pub(crate) fn new(model: &'static str) -> Self {
        Self { model, graph: GraphProto { name: model.to_owned(), ..Default::default() }, is_finite: true }
    }

    pub(crate) fn float_input(&mut self, name: &str, dims: &[Dim]) {
        self.graph.input.push(value_info(name, FLOAT, dims));
    }

    pub(crate) fn int_input(&mut self, name: &str, dims: &[Dim]) {
        self.graph.input.push(value_info(name, INT64, dims));
    }

    pub(crate) fn output(&mut self, name: &str, dims: &[Dim]) {
        self.graph.output.push(value_info(name, FLOAT, dims));
    }

    /// A constant of floats.
    pub(crate) fn weights(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        self.is_finite &= values.iter().all(|value| value.is_finite());
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(name, dims, FLOAT, raw);
    }

    /// A constant list of integers.
    pub(crate) fn integers(&mut self, name: &str, values: &[i64]) {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.initializer(name, &[values.len()], INT64, raw);
    }

    fn initializer(&mut self, name: &str, dims: &[usize], data_type: i32, raw_data: Vec<u8>) {
        let dims = dims.iter().map(|dim| *dim as i64).collect();
        self.graph.initializer.push(TensorProto { dims, data_type, name: name.to_owned(), raw_data });
    }

    /// An operator with one output.
    pub(crate) fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: &[(&str, Attribute)]) {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            name: output.to_owned(),
            op_type: op.to_owned(),
            attribute: attributes.iter().map(|(name, value)| value.to_proto(name)).collect(),
        });
    }

    /// `output = input × weight + bias`.
    pub(crate) fn linear(&mut self, input: &str, output: &str, dims: [usize; 2], weight: &[f32], bias: &[f32]) {
        let (w, b, product) = (format!("{output}.weight"), format!("{output}.bias"), format!("{output}.product"));
        self.weights(&w, &dims, weight);
        self.weights(&b, &[dims[1]], bias);
        self.node("MatMul", &[input, &w], &product, &[]);
        self.node("Add", &[&product, &b], output, &[]);
    }

    /// `output = input × σ(1.702 × input)`: the sigmoid form of GELU, as in training.
    pub(crate) fn gelu(&mut self, input: &str, output: &str) {
        let (sharpness, sharpened) = (format!("{output}.sharpness"), format!("{output}.sharpened"));
        let gate = format!("{output}.gate");
        self.weights(&sharpness, &[1], &[GELU_SHARPNESS]);
        self.node("Mul", &[input, &sharpness], &sharpened, &[]);
        self.node("Sigmoid", &[&sharpened], &gate, &[]);
        self.node("Mul", &[input, &gate], output, &[]);
    }

    /// `output = input / ‖input‖` over the last axis.
    pub(crate) fn normalize(&mut self, input: &str, output: &str) {
        let (square, norm, axes) = (format!("{output}.sum"), format!("{output}.norm"), format!("{output}.axes"));
        let (epsilon, safe) = (format!("{output}.epsilon"), format!("{output}.safe"));
        self.integers(&axes, &[-1]);
        self.weights(&epsilon, &[1], &[NORM_EPSILON]);
        self.node("ReduceSumSquare", &[input, &axes], &square, &[("keepdims", Attribute::Int(1))]);
        self.node("Add", &[&square, &epsilon], &safe, &[]);
        self.node("Sqrt", &[&safe], &norm, &[]);
        self.node("Div", &[input, &norm], output, &[]);
    }

    /// The file's bytes. Refuses weights that are not finite.
    pub(crate) fn finish(self) -> Result<Vec<u8>, ModelError> {
        if !self.is_finite {
            return Err(ModelError::NotFinite { model: self.model });
        }
        let model = ModelProto {
            ir_version: 9,
            producer_name: "lodestone".to_owned(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 20 }],
        };
        Ok(model.encode_to_vec())
    }
}

/// The floats of a constant of a file that a [`GraphWriter`] wrote; none where it has no such constant.
pub(crate) fn weights_in(model: &[u8], name: &str) -> Option<Vec<f32>> {
    let graph = ModelProto::decode(model).ok()?.graph?;
    let tensor = graph.initializer.into_iter().find(|tensor| tensor.name == name && tensor.data_type == FLOAT)?;
    Some(tensor.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// Added under the root of a norm, here and in the trained models.
pub(crate) const NORM_EPSILON: f32 = 1e-12;

/// A value of an operator's attribute.
pub(crate) enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
}

impl Attribute {
    fn to_proto(&self, name: &str) -> AttributeProto {
        let base = AttributeProto { name: name.to_owned(), ..Default::default() };
        match self {
            Self::Float(f) => AttributeProto { f: *f, r#type: 1, ..base },
            Self::Int(i) => AttributeProto { i: *i, r#type: 2, ..base },
            Self::Ints(ints) => AttributeProto { ints: ints.clone(), r#type: 7, ..base },
        }
    }
}

fn value_info(name: &str, elem_type: i32, dims: &[Dim]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|dim| match dim {
            Dim::Any(name) => Dimension { dim_value: None, dim_param: Some((*name).to_owned()) },
            Dim::Is(size) => Dimension { dim_value: Some(*size as i64), dim_param: None },
        })
        .collect();
    let tensor_type = TensorType { elem_type, shape: Some(TensorShape { dim }) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetIdProto>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetIdProto {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    f: f32,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    r#type: i32,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<TensorShape>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorShape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, optional, tag = "1")]
    dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    dim_param: Option<String>,
}
