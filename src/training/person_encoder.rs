//! The person encoder: one pre-norm transformer block, read at the latest event, over the vectors of a person's recent
//! items (SASRec's last layer; Kang & McAuley 2018), trained to predict the next basket with a full softmax over all items.
//! An item's vector is its title's vector times a learned projection plus a residual of its own, so that an item without
//! any event has a vector too.
use super::{
    Progress,
    onnx::{Attribute, Dim, ExportCheck, GraphWriter, ModelError, compare},
    query_encoder::{normalize, numbers},
};
use crate::{
    catalog::VECTOR_DIM,
    ranking::{Device as RunDevice, PersonEncoder, PersonInput, Runtime},
};
use burn::{
    module::{Module, Param},
    nn::{Dropout, DropoutConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig},
    optim::{AdamConfig, GradientsParams},
    tensor::{
        Device, Distribution, Int, Tensor, TensorData,
        activation::{gelu, log_softmax, softmax},
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// One event of a history; the latest stands last.
#[derive(Debug, Clone, Copy)]
pub struct HistoryToken {
    /// Place in the item table.
    pub item: u32,
    /// Number of the event's kind, below 16.
    pub kind: u8,
    pub age_days: f32,
}

/// A history and what was chosen next, with shares that sum to 1.
#[derive(Debug, Clone)]
pub struct SequenceSample {
    pub history: Vec<HistoryToken>,
    pub targets: Vec<(u32, f32)>,
}

#[derive(Debug, Clone)]
pub struct PersonEncoderConfig {
    pub epochs_max: usize,
    /// Epochs without a better validation loss before it stops.
    pub patience: usize,
    pub batch: usize,
    pub learning_rate: f64,
    pub dropout: f64,
    /// Share of the items whose residual is left out of a step.
    pub residual_dropout: f64,
    pub temperature: f64,
    pub seed: u64,
}

impl Default for PersonEncoderConfig {
    fn default() -> Self {
        Self {
            epochs_max: 8,
            patience: 1,
            batch: 128,
            learning_rate: 1e-3,
            dropout: 0.2,
            residual_dropout: 0.1,
            temperature: 0.07,
            seed: 1,
        }
    }
}

pub struct TrainedPersonEncoder {
    /// `[items × VECTOR_DIM]`, length 1.
    pub item_vectors: Vec<f32>,
    /// `[text_dimension × VECTOR_DIM]`.
    pub text_projection: Vec<f32>,
    pub onnx: Vec<u8>,
    pub check: ExportCheck,
    pub validation_loss: f32,
    /// By step.
    pub validation_losses: Vec<(usize, f32)>,
}

const HEADS: usize = 2;
const HEAD_DIM: usize = VECTOR_DIM / HEADS;
const KINDS: usize = 16;
const POSITIONS: usize = 64;
const FFN: usize = 4 * VECTOR_DIM;
const MASKED: f32 = -1e4;

#[derive(Module, Debug)]
struct Encoder {
    residual: Param<Tensor<2>>,
    projection: Param<Tensor<2>>,
    kinds: Param<Tensor<2>>,
    positions: Param<Tensor<2>>,
    age: Param<Tensor<2>>,
    readout: Param<Tensor<2>>,
    norm: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    norm_ffn: LayerNorm,
    ffn_in: Linear,
    ffn_out: Linear,
    output: Linear,
    dropout: Dropout,
}

/// A batch, left-padded: the latest event is in the last column.
struct Batch {
    items: Tensor<1, Int>,
    kinds: Tensor<1, Int>,
    positions: Tensor<1, Int>,
    ages: Tensor<2>,
    mask: Tensor<2>,
    targets: Tensor<2>,
    size: usize,
    length: usize,
}

impl Encoder {
    fn new(items: usize, text_dimension: usize, config: &PersonEncoderConfig, device: &Device) -> Self {
        let small = |rows: usize| {
            Param::from_tensor(Tensor::random([rows, VECTOR_DIM], Distribution::Normal(0.0, 0.02), device))
        };
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let norm = || LayerNormConfig::new(VECTOR_DIM).init(device);
        // Other dimensions come in by a random projection, which about keeps inner products (Johnson and Lindenstrauss).
        let projection = match text_dimension {
            VECTOR_DIM => Tensor::eye(VECTOR_DIM, device),
            other => {
                Tensor::random([other, VECTOR_DIM], Distribution::Normal(0.0, (VECTOR_DIM as f64).powf(-0.5)), device)
            }
        };
        Self {
            residual: Param::from_tensor(Tensor::zeros([items, VECTOR_DIM], device)),
            projection: Param::from_tensor(projection),
            kinds: small(KINDS),
            positions: small(POSITIONS),
            age: small(1),
            readout: small(1),
            norm: norm(),
            query: linear(VECTOR_DIM, VECTOR_DIM),
            key: linear(VECTOR_DIM, VECTOR_DIM),
            value: linear(VECTOR_DIM, VECTOR_DIM),
            attended: linear(VECTOR_DIM, VECTOR_DIM),
            norm_ffn: norm(),
            ffn_in: linear(VECTOR_DIM, FFN),
            ffn_out: linear(FFN, VECTOR_DIM),
            output: linear(VECTOR_DIM, VECTOR_DIM),
            dropout: DropoutConfig::new(config.dropout).init(),
        }
    }

    /// All items' vectors `[items × VECTOR_DIM]`; `kept` `[items × 1]` is 0 where the residual is left out.
    fn items(&self, texts: Tensor<2>, kept: Option<Tensor<2>>) -> Tensor<2> {
        let residual = match kept {
            Some(kept) => self.residual.val() * kept,
            None => self.residual.val(),
        };
        normalize(texts.matmul(self.projection.val()) + residual)
    }

    /// `items` `[batch × length × VECTOR_DIM]` to persons `[batch × VECTOR_DIM]`, length 1.
    fn forward(&self, items: Tensor<3>, batch: &Batch) -> Tensor<2> {
        let (size, length) = (batch.size, batch.length);
        let shape = [size, length, VECTOR_DIM];
        let kinds = self.kinds.val().select(0, batch.kinds.clone()).reshape(shape);
        let positions = self.positions.val().select(0, batch.positions.clone()).reshape(shape);
        let ages = batch.ages.clone().reshape([size, length, 1]) * self.age.val().reshape([1, 1, VECTOR_DIM]);
        let tokens = self.dropout.forward(items + kinds + positions + ages);
        let latest = tokens.clone().slice([0..size, length - 1..length]).reshape([size, VECTOR_DIM]);
        let readout = latest + self.readout.val();

        let normed = self.norm.forward(tokens);
        let heads = [size, length, HEADS, HEAD_DIM];
        let keys = self.key.forward(normed.clone()).reshape(heads).permute([0, 2, 3, 1]);
        let values = self.value.forward(normed).reshape(heads).permute([0, 2, 1, 3]);
        let query = self.query.forward(self.norm.forward(readout.clone())).reshape([size, HEADS, 1, HEAD_DIM]);
        let scores = query.matmul(keys) / (HEAD_DIM as f64).sqrt();
        let bias = (batch.mask.clone() - 1.0) * -MASKED;
        let weights = softmax(scores + bias.reshape([size, 1, 1, length]), 3);
        let read = weights.matmul(values).reshape([size, VECTOR_DIM]);
        let hidden = readout + self.dropout.forward(self.attended.forward(read));
        let ffn = self.ffn_out.forward(gelu(self.ffn_in.forward(self.norm_ffn.forward(hidden.clone()))));
        normalize(self.output.forward(hidden + self.dropout.forward(ffn)))
    }

    fn loss(&self, texts: &Tensor<2>, kept: Option<Tensor<2>>, batch: &Batch, temperature: f64) -> Tensor<1> {
        let items = self.items(texts.clone(), kept);
        let chosen = items.clone().select(0, batch.items.clone()).reshape([batch.size, batch.length, VECTOR_DIM]);
        let persons = self.forward(chosen, batch);
        let logits = persons.matmul(items.transpose()) / temperature;
        -(log_softmax(logits, 1) * batch.targets.clone()).sum() / batch.size as f64
    }
}

fn batch_of(samples: &[&SequenceSample], item_count: usize, device: &Device) -> Batch {
    let size = samples.len();
    let length = samples.iter().map(|sample| sample.history.len()).max().unwrap_or(1).max(1);
    let cells = size * length;
    let (mut items, mut kinds, mut positions) = (vec![0i32; cells], vec![0i32; cells], vec![0i32; cells]);
    let (mut ages, mut mask) = (vec![0f32; cells], vec![0f32; cells]);
    let mut targets = vec![0f32; size * item_count];
    for (row, sample) in samples.iter().enumerate() {
        let count = sample.history.len();
        for (index, token) in sample.history.iter().enumerate() {
            let cell = row * length + length - count + index;
            items[cell] = token.item as i32;
            kinds[cell] = i32::from(token.kind).min(KINDS as i32 - 1);
            positions[cell] = ((count - 1 - index) as i32).min(POSITIONS as i32 - 1);
            ages[cell] = token.age_days.max(0.0).ln_1p();
            mask[cell] = 1.0;
        }
        for (item, share) in &sample.targets {
            targets[row * item_count + *item as usize] = *share;
        }
    }
    let flat = |values| Tensor::<1, Int>::from_data(TensorData::new(values, [cells]), device);
    let matrix = |values, width| Tensor::<2>::from_data(TensorData::new(values, [size, width]), device);
    Batch {
        items: flat(items),
        kinds: flat(kinds),
        positions: flat(positions),
        ages: matrix(ages, length),
        mask: matrix(mask, length),
        targets: matrix(targets, item_count),
        size,
        length,
    }
}

/// Learns the encoder and the item vectors. `text_vectors` is `[items × text_dimension]`; histories are not empty. Stops when
/// the loss on `validation` grows.
pub fn train_person_encoder(
    text_vectors: &[f32],
    text_dimension: usize,
    samples: &[SequenceSample],
    validation: &[SequenceSample],
    config: &PersonEncoderConfig,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainedPersonEncoder, ModelError> {
    const STAGE: &str = "person encoder";
    let item_count = text_vectors.len() / text_dimension;
    if samples.is_empty() || item_count == 0 {
        return Err(ModelError::TooLittle(
            "nobody bought twice: a person encoder needs persons with at least two baskets".to_owned(),
        ));
    }
    let device = Device::flex().autodiff();
    device.seed(config.seed);
    let texts = |device: &Device| {
        Tensor::<2>::from_data(TensorData::new(text_vectors.to_vec(), [item_count, text_dimension]), device)
    };
    let training_texts = texts(&device);
    let mut encoder = Encoder::new(item_count, text_dimension, config, &device);
    let mut optimizer = AdamConfig::new().init();
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut order: Vec<usize> = (0..samples.len()).collect();
    let steps = samples.len().div_ceil(config.batch);
    let inner = Device::flex();
    let inner_texts = texts(&inner);
    let (mut best, mut best_loss, mut worse) = (encoder.clone().valid(), f32::INFINITY, 0);
    let mut validation_losses = Vec::new();
    for epoch in 0..config.epochs_max {
        order.shuffle(&mut rng);
        for (step, chosen) in order.chunks(config.batch).enumerate() {
            let chosen: Vec<&SequenceSample> = chosen.iter().map(|index| &samples[*index]).collect();
            let batch = batch_of(&chosen, item_count, &device);
            let kept: Vec<f32> =
                (0..item_count).map(|_| f32::from(u8::from(!rng.random_bool(config.residual_dropout)))).collect();
            let kept = Tensor::from_data(TensorData::new(kept, [item_count, 1]), &device);
            let loss = encoder.loss(&training_texts, Some(kept), &batch, config.temperature);
            let value = numbers(loss.clone())[0];
            if !value.is_finite() {
                return Err(ModelError::Diverged { stage: STAGE, step: epoch * steps + step });
            }
            let gradients = GradientsParams::from_grads(loss.backward(), &encoder);
            encoder = optimizer.step(config.learning_rate, encoder, gradients);
            let done = epoch * steps + step + 1;
            progress(Progress { stage: STAGE, done, total: config.epochs_max * steps, loss: value });
        }
        let candidate = encoder.valid();
        let loss = validation_loss(&candidate, &inner_texts, validation, config, &inner);
        validation_losses.push(((epoch + 1) * steps, loss));
        if validation.is_empty() || loss < best_loss {
            (best, best_loss, worse) = (candidate, loss, 0);
        } else {
            worse += 1;
            if worse > config.patience {
                break;
            }
        }
    }
    let onnx = export(&best)?;
    let check = check(&best, &onnx, item_count, runtime, &inner)?;
    let item_vectors = numbers(best.items(inner_texts, None));
    if item_vectors.iter().any(|value| !value.is_finite()) {
        return Err(ModelError::NotFinite { model: "person_encoder" });
    }
    Ok(TrainedPersonEncoder {
        item_vectors,
        text_projection: numbers(best.projection.val()),
        onnx,
        check,
        validation_loss: best_loss,
        validation_losses,
    })
}

fn validation_loss(
    encoder: &Encoder,
    texts: &Tensor<2>,
    validation: &[SequenceSample],
    config: &PersonEncoderConfig,
    device: &Device,
) -> f32 {
    let item_count = texts.dims()[0];
    let (mut sum, mut count) = (0.0, 0);
    for chosen in validation.chunks(config.batch) {
        let chosen: Vec<&SequenceSample> = chosen.iter().collect();
        let batch = batch_of(&chosen, item_count, device);
        sum += numbers(encoder.loss(texts, None, &batch, config.temperature))[0] * chosen.len() as f32;
        count += chosen.len();
    }
    if count == 0 { f32::INFINITY } else { sum / count as f32 }
}

fn export(encoder: &Encoder) -> Result<Vec<u8>, ModelError> {
    let d = VECTOR_DIM;
    let mut graph = GraphWriter::new("person_encoder");
    let (batch, length) = (|| Dim::Any("batch"), || Dim::Any("length"));
    graph.float_input("items", &[batch(), length(), Dim::Is(d)]);
    graph.int_input("kinds", &[batch(), length()]);
    graph.int_input("positions", &[batch(), length()]);
    graph.float_input("ages", &[batch(), length()]);
    graph.float_input("mask", &[batch(), length()]);
    for (name, table) in [("kind", &encoder.kinds), ("position", &encoder.positions)] {
        let rows = table.val().dims()[0];
        graph.weights(&format!("{name}_table"), &[rows, d], &numbers(table.val()));
        graph.node("Gather", &[&format!("{name}_table"), &format!("{name}s")], &format!("{name}_vectors"), &[]);
    }
    graph.weights("age_vector", &[d], &numbers(encoder.age.val()));
    graph.weights("readout_vector", &[d], &numbers(encoder.readout.val()));
    graph.integers("last_axis", &[-1]);
    graph.node("Unsqueeze", &["ages", "last_axis"], "ages3", &[]);
    graph.node("Mul", &["ages3", "age_vector"], "age_vectors", &[]);
    graph.node("Add", &["items", "kind_vectors"], "tokens1", &[]);
    graph.node("Add", &["tokens1", "position_vectors"], "tokens2", &[]);
    graph.node("Add", &["tokens2", "age_vectors"], "tokens", &[]);
    // The latest event is the last of its row.
    graph.integers("latest_start", &[-1]);
    graph.integers("latest_end", &[i64::MAX]);
    graph.integers("length_axis", &[1]);
    graph.node("Slice", &["tokens", "latest_start", "latest_end", "length_axis"], "latest3", &[]);
    graph.node("Squeeze", &["latest3", "length_axis"], "latest", &[]);
    graph.node("Add", &["latest", "readout_vector"], "readout", &[]);
    layer_norm(&mut graph, "tokens", "normed", "norm", Some(&encoder.norm));
    layer_norm(&mut graph, "readout", "readout_normed", "norm", None);
    write_linear(&mut graph, "normed", "key", &encoder.key);
    write_linear(&mut graph, "normed", "value", &encoder.value);
    write_linear(&mut graph, "readout_normed", "query", &encoder.query);
    graph.integers("heads_shape", &[0, 0, HEADS as i64, HEAD_DIM as i64]);
    graph.integers("query_shape", &[0, HEADS as i64, 1, HEAD_DIM as i64]);
    graph.node("Reshape", &["key", "heads_shape"], "key4", &[]);
    graph.node("Reshape", &["value", "heads_shape"], "value4", &[]);
    graph.node("Reshape", &["query", "query_shape"], "query4", &[]);
    graph.node("Transpose", &["key4"], "keys", &[("perm", Attribute::Ints(vec![0, 2, 3, 1]))]);
    graph.node("Transpose", &["value4"], "values", &[("perm", Attribute::Ints(vec![0, 2, 1, 3]))]);
    graph.node("MatMul", &["query4", "keys"], "raw_scores", &[]);
    graph.weights("scale", &[1], &[1.0 / (HEAD_DIM as f32).sqrt()]);
    graph.node("Mul", &["raw_scores", "scale"], "scores", &[]);
    graph.weights("one", &[1], &[1.0]);
    graph.weights("masked", &[1], &[-MASKED]);
    graph.integers("mask_axes", &[1, 2]);
    graph.node("Sub", &["mask", "one"], "mask_less_one", &[]);
    graph.node("Mul", &["mask_less_one", "masked"], "bias2", &[]);
    graph.node("Unsqueeze", &["bias2", "mask_axes"], "bias", &[]);
    graph.node("Add", &["scores", "bias"], "biased", &[]);
    graph.node("Softmax", &["biased"], "weights", &[("axis", Attribute::Int(-1))]);
    graph.node("MatMul", &["weights", "values"], "read4", &[]);
    graph.integers("flat_shape", &[0, d as i64]);
    graph.node("Reshape", &["read4", "flat_shape"], "read", &[]);
    write_linear(&mut graph, "read", "attended", &encoder.attended);
    graph.node("Add", &["readout", "attended"], "hidden", &[]);
    layer_norm(&mut graph, "hidden", "hidden_normed", "norm_ffn", Some(&encoder.norm_ffn));
    write_linear(&mut graph, "hidden_normed", "ffn_in", &encoder.ffn_in);
    graph.node("Gelu", &["ffn_in"], "ffn_activated", &[]);
    write_linear(&mut graph, "ffn_activated", "ffn_out", &encoder.ffn_out);
    graph.node("Add", &["hidden", "ffn_out"], "block", &[]);
    write_linear(&mut graph, "block", "output", &encoder.output);
    graph.normalize("output", "person");
    graph.output("person", &[batch(), Dim::Is(d)]);
    graph.finish()
}

fn write_linear(graph: &mut GraphWriter, input: &str, output: &str, layer: &Linear) {
    let dims = layer.weight.val().dims();
    let bias = layer.bias.as_ref().map(|bias| numbers(bias.val())).unwrap_or_else(|| vec![0.0; dims[1]]);
    graph.linear(input, output, dims, &numbers(layer.weight.val()), &bias);
}

/// Writes the weights only with the first use of a norm.
fn layer_norm(graph: &mut GraphWriter, input: &str, output: &str, name: &str, weights: Option<&LayerNorm>) {
    let (gamma, beta) = (format!("{name}.gamma"), format!("{name}.beta"));
    if let Some(norm) = weights {
        graph.weights(&gamma, &[VECTOR_DIM], &numbers(norm.gamma.val()));
        let values = norm.beta.as_ref().map(|beta| numbers(beta.val())).unwrap_or_else(|| vec![0.0; VECTOR_DIM]);
        graph.weights(&beta, &[VECTOR_DIM], &values);
    }
    let attributes = [("axis", Attribute::Int(-1)), ("epsilon", Attribute::Float(1e-5))];
    graph.node("LayerNormalization", &[input, &gamma, &beta], output, &attributes);
}

fn check(
    encoder: &Encoder,
    onnx: &[u8],
    item_count: usize,
    runtime: &Runtime,
    device: &Device,
) -> Result<ExportCheck, ModelError> {
    let mut session = PersonEncoder::open(runtime, onnx, RunDevice::Cpu)?;
    let mut rng = StdRng::seed_from_u64(7);
    let (mut pairs, mut inputs) = (Vec::new(), Vec::new());
    for length in [1usize, 2, 7, 31, 50] {
        let tokens = (0..length).map(|_| HistoryToken {
            item: rng.random_range(0..item_count as u32),
            kind: rng.random_range(1..15),
            age_days: rng.random_range(0.0..400.0),
        });
        let sample = SequenceSample { history: tokens.collect(), targets: Vec::new() };
        let batch = batch_of(&[&sample], item_count, device);
        let items: Vec<f32> = (0..length * VECTOR_DIM).map(|_| rng.random_range(-0.3..0.3)).collect();
        let shape = [1, length, VECTOR_DIM];
        let expected =
            numbers(encoder.forward(Tensor::from_data(TensorData::new(items.clone(), shape), device), &batch));
        let input = PersonInput {
            items,
            kinds: sample.history.iter().map(|token| i64::from(token.kind)).collect(),
            positions: (0..length as i64).rev().collect(),
            ages: sample.history.iter().map(|token| token.age_days.ln_1p()).collect(),
        };
        pairs.push((expected, session.encode_batch(std::slice::from_ref(&input))?));
        inputs.push(input);
    }
    // Served together, each history is padded to the longest.
    let together = session.encode_batch(&inputs)?;
    let alone: Vec<f32> = pairs.iter().flat_map(|(_, alone)| alone.iter().copied()).collect();
    pairs.push((alone, together));
    compare("person_encoder", &pairs)
}
