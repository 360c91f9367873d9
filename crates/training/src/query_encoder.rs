//! A shared tower for queries and titles: the mean of hashed terms' embeddings, one residual layer, length 1. Learned with
//! softmax over the batch's titles (in-batch negatives) from spans of titles.
use super::{
    Progress,
    onnx::{Dim, ExportCheck, GraphWriter, ModelError, NORM_EPSILON, compare, weights_in},
};
use burn::{
    module::{Module, Param},
    nn::{Linear, LinearConfig},
    optim::{AdamConfig, GradientsParams},
    tensor::{Device, Distribution, Int, Tensor, TensorData, activation::log_softmax},
};
use lodestone_catalog::VECTOR_DIM;
use lodestone_pipeline::ranking::{Device as RunDevice, QueryEncoder, Runtime};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

#[derive(Debug, Clone)]
pub(crate) struct QueryEncoderConfig {
    pub bucket_count: u32,
    pub epochs: usize,
    pub batch: usize,
    pub learning_rate: f64,
    pub temperature: f64,
    pub seed: u64,
    /// Steps at most over all epochs, so that large catalogues take no longer than small ones.
    pub steps_max: usize,
}

impl Default for QueryEncoderConfig {
    fn default() -> Self {
        Self {
            bucket_count: 32_768,
            epochs: 3,
            batch: 256,
            learning_rate: 2e-3,
            temperature: 0.05,
            seed: 1,
            steps_max: 300,
        }
    }
}

pub(crate) struct TrainedQueryEncoder {
    pub onnx: Vec<u8>,
    pub check: ExportCheck,
    tower: Tower,
    device: Device,
}

#[derive(Module, Debug)]
struct Tower {
    /// `[buckets × VECTOR_DIM]`
    table: Param<Tensor<2>>,
    layer: Linear,
}

impl Tower {
    fn new(buckets: usize, device: &Device) -> Self {
        let table = Tensor::random([buckets, VECTOR_DIM], Distribution::Normal(0.0, 0.1), device);
        Self { table: Param::from_tensor(table), layer: LinearConfig::new(VECTOR_DIM, VECTOR_DIM).init(device) }
    }

    /// The tower of an exported model; none where it has another shape.
    fn exported(onnx: &[u8], buckets: usize, device: &Device) -> Option<Self> {
        let weights = |name: &str, count: usize| weights_in(onnx, name).filter(|values| values.len() == count);
        let matrix = |values, rows| Tensor::<2>::from_data(TensorData::new(values, [rows, VECTOR_DIM]), device);
        let table = matrix(weights("table", buckets * VECTOR_DIM)?, buckets);
        let weight = matrix(weights("layer.weight", VECTOR_DIM * VECTOR_DIM)?, VECTOR_DIM);
        let bias = TensorData::new(weights("layer.bias", VECTOR_DIM)?, [VECTOR_DIM]);
        let bias = Some(Param::from_tensor(Tensor::<1>::from_data(bias, device)));
        Some(Self { table: Param::from_tensor(table), layer: Linear { weight: Param::from_tensor(weight), bias } })
    }

    /// `ids` and `mask` `[texts × terms]` to `[texts × VECTOR_DIM]`, length 1.
    fn forward(&self, ids: Tensor<2, Int>, mask: Tensor<2>) -> Tensor<2> {
        let [texts, terms] = ids.dims();
        let embedded = self.table.val().select(0, ids.reshape([texts * terms]));
        let embedded = embedded.reshape([texts, terms, VECTOR_DIM]) * mask.clone().reshape([texts, terms, 1]);
        let sum = embedded.sum_dim(1).reshape([texts, VECTOR_DIM]);
        let mean = sum / mask.sum_dim(1);
        normalize(mean.clone() + self.layer.forward(mean).tanh())
    }
}

/// Rows of length 1.
pub(super) fn normalize(rows: Tensor<2>) -> Tensor<2> {
    let norm = (rows.clone().square().sum_dim(1) + NORM_EPSILON).sqrt();
    rows / norm
}

/// A matrix's numbers.
pub(super) fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().expect("the data was converted to f32")
}

fn padded(texts: &[&Vec<u32>], device: &Device) -> (Tensor<2, Int>, Tensor<2>) {
    let width = texts.iter().map(|terms| terms.len()).max().unwrap_or(1).max(1);
    let (mut ids, mut mask) = (vec![0i32; texts.len() * width], vec![0f32; texts.len() * width]);
    for (row, terms) in texts.iter().enumerate() {
        for (column, term) in terms.iter().enumerate() {
            ids[row * width + column] = *term as i32;
            mask[row * width + column] = 1.0;
        }
    }
    let shape = [texts.len(), width];
    (Tensor::from_data(TensorData::new(ids, shape), device), Tensor::from_data(TensorData::new(mask, shape), device))
}

/// Learns the tower. `texts` are the hashed terms of whole titles, none empty; a sample is the terms of a query and the
/// place of its text. `start`: an exported tower to begin with, instead of random weights. Deterministic for a seed with one
/// thread.
pub(crate) fn train_query_encoder(
    texts: &[Vec<u32>],
    samples: &[(Vec<u32>, u32)],
    config: &QueryEncoderConfig,
    start: Option<&[u8]>,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainedQueryEncoder, ModelError> {
    const STAGE: &str = "query encoder";
    let device = Device::flex().autodiff();
    device.seed(config.seed);
    let buckets = config.bucket_count as usize;
    let start = start.and_then(|onnx| Tower::exported(onnx, buckets, &device));
    let mut tower = start.unwrap_or_else(|| Tower::new(buckets, &device));
    let mut optimizer = AdamConfig::new().init();
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut order: Vec<usize> = (0..samples.len()).collect();
    let steps_of_epoch = samples.len().div_ceil(config.batch);
    let steps = (steps_of_epoch * config.epochs).min(config.steps_max);
    for step in 0..steps {
        if step % steps_of_epoch == 0 {
            order.shuffle(&mut rng);
        }
        let start = (step % steps_of_epoch) * config.batch;
        let chosen: Vec<&(Vec<u32>, u32)> =
            order[start..(start + config.batch).min(order.len())].iter().map(|index| &samples[*index]).collect();
        if chosen.len() < 2 {
            continue;
        }
        let loss = batch_loss(&tower, texts, &chosen, config, &device);
        let value = numbers(loss.clone())[0];
        if !value.is_finite() {
            return Err(ModelError::Diverged { stage: STAGE, step });
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &tower);
        tower = optimizer.step(config.learning_rate, tower, gradients);
        progress(Progress { stage: STAGE, done: step + 1, total: steps, loss: value });
    }
    let tower = tower.valid();
    let device = Device::flex();
    let onnx = export(&tower)?;
    let check = check(&tower, &onnx, samples, texts, runtime, &device)?;
    Ok(TrainedQueryEncoder { onnx, check, tower, device })
}

fn batch_loss(
    tower: &Tower,
    texts: &[Vec<u32>],
    chosen: &[&(Vec<u32>, u32)],
    config: &QueryEncoderConfig,
    device: &Device,
) -> Tensor<1> {
    let count = chosen.len();
    let queries: Vec<&Vec<u32>> = chosen.iter().map(|(terms, _)| terms).collect();
    let titles: Vec<&Vec<u32>> = chosen.iter().map(|(_, text)| &texts[*text as usize]).collect();
    let (ids, mask) = padded(&queries, device);
    let queries = tower.forward(ids, mask);
    let (ids, mask) = padded(&titles, device);
    let titles = tower.forward(ids, mask);
    // The same title twice in a batch is no negative of itself.
    let mut bias = vec![0f32; count * count];
    let mut diagonal = vec![0f32; count * count];
    for row in 0..count {
        diagonal[row * count + row] = 1.0;
        for column in 0..count {
            if row != column && chosen[row].1 == chosen[column].1 {
                bias[row * count + column] = -1e4;
            }
        }
    }
    let square = |values| Tensor::<2>::from_data(TensorData::new(values, [count, count]), device);
    let logits = queries.matmul(titles.transpose()) / config.temperature + square(bias);
    -(log_softmax(logits, 1) * square(diagonal)).sum() / count as f64
}

impl TrainedQueryEncoder {
    /// Vectors `[texts × VECTOR_DIM]` of length 1.
    pub(crate) fn encode(&self, texts: &[Vec<u32>]) -> Vec<f32> {
        encode(&self.tower, texts, &self.device)
    }
}

fn encode(tower: &Tower, texts: &[Vec<u32>], device: &Device) -> Vec<f32> {
    let mut vectors = Vec::with_capacity(texts.len() * VECTOR_DIM);
    for batch in texts.chunks(256) {
        let (ids, mask) = padded(&batch.iter().collect::<Vec<_>>(), device);
        vectors.extend(numbers(tower.forward(ids, mask)));
    }
    vectors
}

fn export(tower: &Tower) -> Result<Vec<u8>, ModelError> {
    let [buckets, dim] = tower.table.val().dims();
    let mut graph = GraphWriter::new("query_encoder");
    graph.int_input("term_ids", &[Dim::Any("texts"), Dim::Any("terms")]);
    graph.float_input("mask", &[Dim::Any("texts"), Dim::Any("terms")]);
    graph.weights("table", &[buckets, dim], &numbers(tower.table.val()));
    graph.integers("terms_axis", &[1]);
    graph.integers("last_axis", &[-1]);
    graph.node("Gather", &["table", "term_ids"], "embedded", &[]);
    graph.node("Unsqueeze", &["mask", "last_axis"], "mask3", &[]);
    graph.node("Mul", &["embedded", "mask3"], "masked", &[]);
    let flat = [("keepdims", super::onnx::Attribute::Int(0))];
    let kept = [("keepdims", super::onnx::Attribute::Int(1))];
    graph.node("ReduceSum", &["masked", "terms_axis"], "sum", &flat);
    graph.node("ReduceSum", &["mask", "terms_axis"], "count", &kept);
    graph.node("Div", &["sum", "count"], "mean", &[]);
    let bias = tower.layer.bias.as_ref().map(|bias| numbers(bias.val())).unwrap_or_else(|| vec![0.0; dim]);
    graph.linear("mean", "layer", [dim, dim], &numbers(tower.layer.weight.val()), &bias);
    graph.node("Tanh", &["layer"], "activated", &[]);
    graph.node("Add", &["mean", "activated"], "residual", &[]);
    graph.normalize("residual", "query");
    graph.output("query", &[Dim::Any("texts"), Dim::Is(dim)]);
    graph.finish()
}

fn check(
    tower: &Tower,
    onnx: &[u8],
    samples: &[(Vec<u32>, u32)],
    texts: &[Vec<u32>],
    runtime: &Runtime,
    device: &Device,
) -> Result<ExportCheck, ModelError> {
    let mut encoder = QueryEncoder::open(runtime, onnx, RunDevice::Cpu)?;
    let spans: Vec<Vec<u32>> = samples.iter().take(40).map(|(terms, _)| terms.clone()).collect();
    let titles: Vec<Vec<u32>> = texts.iter().take(40).cloned().collect();
    let mut pairs = Vec::new();
    for batch in [&spans, &titles, &titles[..1].to_vec()] {
        if !batch.is_empty() {
            pairs.push((encode(tower, batch, device), encoder.encode_batch(batch)?));
        }
    }
    compare("query_encoder", &pairs)
}
