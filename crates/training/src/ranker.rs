//! The ranking model: features to the logits of the heads; a small network beside a linear path, trained listwise on what
//! retrieval really returned.
use super::{
    Progress,
    onnx::{Dim, ExportCheck, GraphWriter, ModelError, compare},
    query_encoder::numbers,
};
use burn::{
    module::Module,
    nn::{Linear, LinearConfig},
    optim::{AdamConfig, GradientsParams},
    tensor::{
        Device, Tensor, TensorData,
        activation::{gelu, log_sigmoid, log_softmax},
    },
};
use lodestone_pipeline::ranking::{Device as RunDevice, Ranker, Runtime};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::sync::atomic::{AtomicBool, Ordering};

/// The candidates of one request with what became of them.
#[derive(Debug, Clone)]
pub(crate) struct RankingList {
    /// `[candidates × features]`.
    pub features: Vec<f32>,
    /// `[candidates × heads]`: 0 to 1, or NaN where it is not known.
    pub labels: Vec<f32>,
}

#[derive(Debug, Clone)]
pub(crate) struct RankerConfig {
    pub epochs_max: usize,
    pub patience: usize,
    /// Lists in a step.
    pub batch: usize,
    pub learning_rate: f64,
    /// Weight of the pointwise loss that keeps the logits calibratable.
    pub pointwise_weight: f64,
    pub seed: u64,
}

impl Default for RankerConfig {
    fn default() -> Self {
        Self { epochs_max: 10, patience: 2, batch: 16, learning_rate: 1e-3, pointwise_weight: 0.1, seed: 1 }
    }
}

/// `probability = sigmoid(scale × logit + offset)` (Platt 1999).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Calibration {
    pub scale: f32,
    pub offset: f32,
}

pub(crate) struct TrainedRanker {
    pub onnx: Vec<u8>,
    /// One for each head.
    pub calibration: Vec<Calibration>,
    pub check: ExportCheck,
    pub validation_loss: f32,
    /// By step.
    pub validation_losses: Vec<(usize, f32)>,
}

const HIDDEN: [usize; 2] = [64, 32];
const MASKED: f32 = -1e4;

#[derive(Module, Debug)]
struct Network {
    first: Linear,
    second: Linear,
    third: Linear,
    skip: Linear,
}

impl Network {
    fn new(features: usize, heads: usize, device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        Self {
            first: linear(features, HIDDEN[0]),
            second: linear(HIDDEN[0], HIDDEN[1]),
            third: linear(HIDDEN[1], heads),
            skip: linear(features, heads),
        }
    }

    /// Standardised features `[rows × features]` to logits `[rows × heads]`.
    fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        let hidden = gelu(self.first.forward(features.clone()));
        let hidden = gelu(self.second.forward(hidden));
        self.third.forward(hidden) + self.skip.forward(features)
    }
}

/// Mean and inverse deviation of each feature.
struct Scale {
    mean: Vec<f32>,
    inverse: Vec<f32>,
}

impl Scale {
    fn of(lists: &[RankingList], width: usize) -> Self {
        let (mut sum, mut square, mut count) = (vec![0f64; width], vec![0f64; width], 0f64);
        for row in lists.iter().flat_map(|list| list.features.chunks_exact(width)) {
            count += 1.0;
            for (column, value) in row.iter().enumerate() {
                sum[column] += f64::from(*value);
                square[column] += f64::from(*value) * f64::from(*value);
            }
        }
        let mean: Vec<f64> = sum.iter().map(|sum| sum / count.max(1.0)).collect();
        let inverse = square.iter().zip(&mean).map(|(square, mean)| {
            let variance = (square / count.max(1.0) - mean * mean).max(0.0);
            // A feature that never varied says nothing, whatever it does in serving.
            if variance < 1e-12 { 0.0 } else { (1.0 / variance.sqrt()) as f32 }
        });
        Self { inverse: inverse.collect(), mean: mean.iter().map(|mean| *mean as f32).collect() }
    }

    fn apply(&self, features: &[f32]) -> Vec<f32> {
        let width = self.mean.len();
        features.iter().enumerate().map(|(i, x)| (x - self.mean[i % width]) * self.inverse[i % width]).collect()
    }
}

/// Trains on `lists`, stops by `validation`, calibrates each head on it; ends with [`ModelError::Stopped`] when `stop` says so.
#[allow(clippy::too_many_arguments)]
pub(crate) fn train_ranker(
    lists: &[RankingList],
    validation: &[RankingList],
    feature_names: &[&str],
    heads: &[String],
    config: &RankerConfig,
    stop: &AtomicBool,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainedRanker, ModelError> {
    const STAGE: &str = "ranker";
    let (width, head_count) = (feature_names.len(), heads.len());
    if lists.is_empty() || validation.is_empty() {
        return Err(ModelError::TooLittle("the ranker needs lists to learn from and lists to stop by".to_owned()));
    }
    let scale = Scale::of(lists, width);
    let device = Device::flex().autodiff();
    device.seed(config.seed);
    let mut network = Network::new(width, head_count, &device);
    let mut optimizer = AdamConfig::new().init();
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut order: Vec<usize> = (0..lists.len()).collect();
    let steps = lists.len().div_ceil(config.batch);
    let inner = Device::flex();
    let (mut best, mut best_loss, mut worse) = (network.clone().valid(), f32::INFINITY, 0);
    let mut validation_losses = Vec::new();
    for epoch in 0..config.epochs_max {
        order.shuffle(&mut rng);
        for (step, chosen) in order.chunks(config.batch).enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Err(ModelError::Stopped);
            }
            let chosen: Vec<&RankingList> = chosen.iter().map(|index| &lists[*index]).collect();
            let loss = loss(&network, &chosen, &scale, head_count, config, &device);
            let value = numbers(loss.clone())[0];
            if !value.is_finite() {
                return Err(ModelError::Diverged { stage: STAGE, step: epoch * steps + step });
            }
            let gradients = GradientsParams::from_grads(loss.backward(), &network);
            network = optimizer.step(config.learning_rate, network, gradients);
            let done = epoch * steps + step + 1;
            progress(Progress { stage: STAGE, done, total: config.epochs_max * steps, loss: value });
        }
        let candidate = network.valid();
        let total: f32 = validation
            .chunks(config.batch)
            .map(|chunk| {
                let chosen: Vec<&RankingList> = chunk.iter().collect();
                numbers(loss(&candidate, &chosen, &scale, head_count, config, &inner))[0] * chunk.len() as f32
            })
            .sum();
        let validation_loss = total / validation.len() as f32;
        validation_losses.push(((epoch + 1) * steps, validation_loss));
        if validation_loss < best_loss {
            (best, best_loss, worse) = (candidate, validation_loss, 0);
        } else {
            worse += 1;
            if worse > config.patience {
                break;
            }
        }
    }
    let onnx = export(&best, &scale, head_count)?;
    let check = check(&best, &scale, &onnx, validation, runtime, &inner)?;
    let calibration = calibrate(&best, &scale, [validation, lists], head_count, &inner);
    Ok(TrainedRanker { onnx, calibration, check, validation_loss: best_loss, validation_losses })
}

/// Listwise softmax cross-entropy of each head, plus a share of the pointwise one.
fn loss(
    network: &Network,
    lists: &[&RankingList],
    scale: &Scale,
    heads: usize,
    config: &RankerConfig,
    device: &Device,
) -> Tensor<1> {
    let width = scale.mean.len();
    let count = lists.len();
    let longest = lists.iter().map(|list| list.features.len() / width).max().unwrap_or(1);
    let mut features = vec![0f32; count * longest * width];
    // By head: `[lists × longest]`.
    let cells = count * longest;
    let (mut share, mut bias) = (vec![0f32; heads * cells], vec![MASKED; heads * cells]);
    let (mut positive, mut negative) = (vec![0f32; heads * cells], vec![0f32; heads * cells]);
    for (index, list) in lists.iter().enumerate() {
        let scaled = scale.apply(&list.features);
        features[index * longest * width..index * longest * width + scaled.len()].copy_from_slice(&scaled);
        for head in 0..heads {
            let labels: Vec<f32> = list.labels.iter().skip(head).step_by(heads).copied().collect();
            let positives = labels.iter().filter(|label| !label.is_nan()).sum::<f32>().max(1.0);
            for (place, label) in labels.iter().enumerate().filter(|(_, label)| !label.is_nan()) {
                let cell = head * cells + index * longest + place;
                bias[cell] = 0.0;
                share[cell] = label / positives;
                positive[cell] = *label;
                negative[cell] = 1.0 - label;
            }
        }
    }
    let features = Tensor::<2>::from_data(TensorData::new(features, [cells, width]), device);
    let shape = [heads, count, longest];
    let tensor = |values| Tensor::<3>::from_data(TensorData::new(values, shape), device);
    let logits = network.forward(features).transpose().reshape(shape);
    let listwise = -(log_softmax(logits.clone() + tensor(bias), 2) * tensor(share)).sum() / count as f64;
    let pointwise = -(log_sigmoid(logits.clone()) * tensor(positive) + log_sigmoid(-logits) * tensor(negative)).sum()
        / count as f64;
    listwise + pointwise * config.pointwise_weight
}

fn logits(network: &Network, scale: &Scale, features: &[f32], device: &Device) -> Vec<f32> {
    let width = scale.mean.len();
    let shape = [features.len() / width, width];
    numbers(network.forward(Tensor::from_data(TensorData::new(scale.apply(features), shape), device)))
}

/// Positive labels that a calibration needs.
const CALIBRATION_POSITIVES_MIN: f64 = 20.0;

/// Fits scale and offset of each head by Newton's method on the logistic loss: on the lists that were not learned from, and
/// for a head of which these hardly speak, as its labels come late, on all.
fn calibrate(
    network: &Network,
    scale: &Scale,
    parts: [&[RankingList]; 2],
    heads: usize,
    device: &Device,
) -> Vec<Calibration> {
    let mut points: Vec<Vec<(f64, f64)>> = vec![Vec::new(); heads];
    for lists in parts {
        let positives = |points: &[(f64, f64)]| points.iter().map(|(_, label)| label).sum::<f64>();
        let is_wanting: Vec<bool> = points.iter().map(|points| positives(points) < CALIBRATION_POSITIVES_MIN).collect();
        if !is_wanting.contains(&true) {
            break;
        }
        for list in lists {
            let logits = logits(network, scale, &list.features, device);
            for (index, (logit, label)) in logits.iter().zip(&list.labels).enumerate() {
                if is_wanting[index % heads] && !label.is_nan() {
                    points[index % heads].push((f64::from(*logit), f64::from(*label)));
                }
            }
        }
    }
    points.iter().map(|points| platt(points)).collect()
}

fn platt(points: &[(f64, f64)]) -> Calibration {
    let (mut scale, mut offset) = (1.0f64, 0.0f64);
    for _ in 0..30 {
        // The ridge keeps the step finite where all labels are alike.
        let (mut ga, mut gb, mut haa, mut hab, mut hbb) = (0.0, 0.0, 1e-3, 0.0, 1e-3);
        for (logit, label) in points {
            let p = 1.0 / (1.0 + (-(scale * logit + offset)).exp());
            let (error, weight) = (p - label, p * (1.0 - p));
            ga += error * logit;
            gb += error;
            haa += weight * logit * logit;
            hab += weight * logit;
            hbb += weight;
        }
        let determinant = haa * hbb - hab * hab;
        if determinant.abs() < 1e-12 {
            break;
        }
        let (da, db) = ((hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant);
        scale -= da.clamp(-1.0, 1.0);
        offset -= db.clamp(-1.0, 1.0);
        if da.abs() + db.abs() < 1e-6 {
            break;
        }
    }
    // A calibration never turns the model's order around.
    Calibration { scale: scale.max(1e-3) as f32, offset: offset as f32 }
}

fn export(network: &Network, scale: &Scale, heads: usize) -> Result<Vec<u8>, ModelError> {
    let width = scale.mean.len();
    let mut graph = GraphWriter::new("ranker");
    graph.float_input("features", &[Dim::Any("candidates"), Dim::Is(width)]);
    graph.weights("mean", &[width], &scale.mean);
    graph.weights("inverse", &[width], &scale.inverse);
    graph.node("Sub", &["features", "mean"], "centred", &[]);
    graph.node("Mul", &["centred", "inverse"], "scaled", &[]);
    let layer = |graph: &mut GraphWriter, input: &str, output: &str, linear: &Linear| {
        let dims = linear.weight.val().dims();
        let bias = linear.bias.as_ref().map(|bias| numbers(bias.val())).unwrap_or_else(|| vec![0.0; dims[1]]);
        graph.linear(input, output, dims, &numbers(linear.weight.val()), &bias);
    };
    layer(&mut graph, "scaled", "first", &network.first);
    layer(&mut graph, "scaled", "skip", &network.skip);
    graph.node("Gelu", &["first"], "first_active", &[]);
    layer(&mut graph, "first_active", "second", &network.second);
    graph.node("Gelu", &["second"], "second_active", &[]);
    layer(&mut graph, "second_active", "third", &network.third);
    graph.node("Add", &["third", "skip"], "logits", &[]);
    graph.output("logits", &[Dim::Any("candidates"), Dim::Is(heads)]);
    graph.finish()
}

fn check(
    network: &Network,
    scale: &Scale,
    onnx: &[u8],
    lists: &[RankingList],
    runtime: &Runtime,
    device: &Device,
) -> Result<ExportCheck, ModelError> {
    let mut ranker = Ranker::open(runtime, onnx, RunDevice::Cpu)?;
    let width = scale.mean.len();
    let mut rng = StdRng::seed_from_u64(7);
    let mut pairs = Vec::new();
    for rows in [1usize, 3, 50, 250] {
        // Real rows and rows around them.
        let real = &lists[0].features;
        let features: Vec<f32> = (0..rows * width)
            .map(|index| real[index % real.len()] + rng.random_range(-0.5..0.5) * f32::from(u8::from(rows > 1)))
            .collect();
        pairs.push((logits(network, scale, &features, device), ranker.score(&features, rows)?));
    }
    compare("ranker", &pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calibration_recovers_a_known_shift() {
        let mut rng = StdRng::seed_from_u64(1);
        let points: Vec<(f64, f64)> = (0..20_000)
            .map(|_| {
                let logit: f64 = rng.random_range(-4.0..4.0);
                let p = 1.0 / (1.0 + (-(0.5 * logit - 2.0)).exp());
                (logit, f64::from(u8::from(rng.random_bool(p))))
            })
            .collect();
        let fitted = platt(&points);
        assert!((fitted.scale - 0.5).abs() < 0.05 && (fitted.offset + 2.0).abs() < 0.1, "{fitted:?}");
    }

    #[test]
    fn calibration_survives_labels_that_are_all_alike() {
        let fitted = platt(&[(1.0, 0.0), (2.0, 0.0)]);
        assert!(fitted.scale.is_finite() && fitted.offset.is_finite());
    }
}
