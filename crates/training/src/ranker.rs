//! The ranking model: features to the logits of the heads. A small network next to a linear path, trained listwise on
//! the candidates that retrieval returned.
use super::{
    Progress,
    adam::{Adam, Moments},
    kernels::{add, exponentials, gelu, gelu_backward},
    layers::{Linear, Stream, generator},
    onnx::{Dim, ExportCheck, GraphWriter, ModelError, compare},
};
use lodestone_pipeline::ranking::{Device, Ranker, Runtime};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// The candidates of one request with their outcomes.
#[derive(Debug, Clone)]
pub(crate) struct RankingList {
    /// `[candidates × features]`.
    pub features: Vec<f32>,
    /// `[candidates × heads]`: 0 to 1, or NaN where it is not known. In a weighted list, weights of 0 and more.
    pub labels: Vec<f32>,
    /// Whether each label counts by its own weight. Otherwise the positive labels of a head have the weight 1
    /// together. A weighted list does not calibrate the heads.
    pub is_weighted: bool,
}

/// Lists to learn a ranking model from.
#[derive(Clone, Copy)]
pub(crate) struct RankingData<'a> {
    pub lists: &'a [RankingList],
    /// Lists that decide when to stop, and on which the heads are calibrated.
    pub validation: &'a [RankingList],
    /// In the order of the lists' features.
    pub feature_names: &'a [String],
    /// In the order of the lists' labels.
    pub heads: &'a [String],
}

#[derive(Debug, Clone)]
pub(crate) struct RankerConfig {
    /// With few lists there are more; see [`STEPS_MIN`].
    pub epochs_max: usize,
    pub patience: usize,
    /// Lists in a step.
    pub batch: usize,
    pub learning_rate: f32,
    /// Weight of the pointwise loss that keeps the logits calibratable.
    pub pointwise_weight: f32,
    pub seed: u64,
}

impl Default for RankerConfig {
    fn default() -> Self {
        Self { epochs_max: 5, patience: 2, batch: 16, learning_rate: 1e-3, pointwise_weight: 0.1, seed: 1 }
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

/// Units of the hidden layers.
const HIDDEN: [usize; 2] = [64, 32];

/// Two hidden layers, and a linear path from the features to the logits next to them.
#[derive(Debug, Clone)]
struct Network {
    first: Linear,
    second: Linear,
    third: Linear,
    skip: Linear,
    /// Of all layers.
    weights: Vec<f32>,
}

/// Intermediate values of a forward pass, which the backward pass reads.
struct Trace {
    /// Inputs and outputs of the activations, `[rows × units]`.
    before: [Vec<f32>; 2],
    after: [Vec<f32>; 2],
    /// `[rows × heads]`
    logits: Vec<f32>,
}

impl Network {
    fn new(features: usize, heads: usize, rng: &mut impl Rng) -> Self {
        let mut end = 0;
        let mut layer = |inputs, outputs| {
            let layer = Linear::new(end, inputs, outputs);
            end = layer.range.end;
            layer
        };
        let (first, second) = (layer(features, HIDDEN[0]), layer(HIDDEN[0], HIDDEN[1]));
        let (third, skip) = (layer(HIDDEN[1], heads), layer(features, heads));
        let mut weights = vec![0.0; end];
        [&first, &second, &third, &skip].into_iter().for_each(|layer| layer.initialise(&mut weights, rng));
        Self { first, second, third, skip, weights }
    }

    /// `features`: standardised, `[rows × features]`.
    fn forward(&self, features: &[f32]) -> Trace {
        let active = |before: &[f32]| {
            let mut after = vec![0.0; before.len()];
            gelu(&mut after, before);
            after
        };
        let first = self.first.forward(&self.weights, features);
        let first_active = active(&first);
        let second = self.second.forward(&self.weights, &first_active);
        let second_active = active(&second);
        let mut logits = self.third.forward(&self.weights, &second_active);
        add(&mut logits, &self.skip.forward(&self.weights, features));
        Trace { before: [first, second], after: [first_active, second_active], logits }
    }

    /// Returns the gradient of all weights; `dlogits` `[rows × heads]` is the gradient of the logits.
    fn backward(&self, dlogits: &[f32], features: &[f32], trace: &Trace) -> Vec<f32> {
        let mut gradient = vec![0.0; self.weights.len()];
        self.skip.gradient(&mut gradient, dlogits, features);
        let mut dhidden = self.third.backward(&mut gradient, dlogits, &trace.after[1], &self.weights);
        gelu_backward(&mut dhidden, &trace.before[1]);
        let mut dhidden = self.second.backward(&mut gradient, &dhidden, &trace.after[0], &self.weights);
        gelu_backward(&mut dhidden, &trace.before[0]);
        self.first.gradient(&mut gradient, &dhidden, features);
        gradient
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

const STAGE: &str = "ranker";
/// The learning rate falls linearly to this share of its first value.
const LEARNING_RATE_LAST: f32 = 0.05;
/// Few lists are read more often, until there were this many steps: a network after a dozen steps is almost as it was
/// drawn.
const STEPS_MIN: usize = 300;
/// Times the learning rate, the share of the weights that a step subtracts.
const WEIGHT_DECAY: f32 = 1e-4;

/// Trains on the lists, stops when the validation loss no longer falls, and calibrates each head. Returns
/// [`ModelError::Stopped`] when `stop` becomes true. The same seed returns the same model, with any number of threads.
pub(crate) fn train_ranker(
    data: RankingData,
    config: &RankerConfig,
    stop: &AtomicBool,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainedRanker, ModelError> {
    if data.lists.is_empty() || data.validation.is_empty() {
        return Err(ModelError::TooLittle("the ranker needs lists to learn from and lists to stop by".to_owned()));
    }
    let scale = Scale::of(data.lists, data.feature_names.len());
    let mut rng = generator(config.seed, Stream::Ranker);
    let network = Network::new(data.feature_names.len(), data.heads.len(), &mut rng);
    let mut trainer = Trainer { network, scale, pointwise_weight: config.pointwise_weight };
    let best = trainer.learn(data, config, stop, &mut rng, progress)?;
    trainer.network = best.network;
    let onnx = export(&trainer)?;
    let check = check(&trainer, &onnx, data, runtime)?;
    let calibration = trainer.calibrate([data.validation, data.lists]);
    Ok(TrainedRanker {
        onnx,
        calibration,
        check,
        validation_loss: best.loss,
        validation_losses: best.validation_losses,
    })
}

/// A network in training.
struct Trainer {
    network: Network,
    scale: Scale,
    pointwise_weight: f32,
}

/// The network with the least validation loss.
struct Best {
    network: Network,
    loss: f32,
    /// By step.
    validation_losses: Vec<(usize, f32)>,
}

/// Lists that one thread takes at a time. It does not depend on the number of threads, so the sums do not either.
const PART: usize = 4;

impl Trainer {
    fn learn(
        &mut self,
        data: RankingData,
        config: &RankerConfig,
        stop: &AtomicBool,
        rng: &mut impl Rng,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Best, ModelError> {
        let mut order: Vec<usize> = (0..data.lists.len()).collect();
        let steps = order.len().div_ceil(config.batch);
        let epochs_max = config.epochs_max.max(STEPS_MIN.div_ceil(steps));
        let total = epochs_max * steps;
        let adam = |step: usize| {
            let left = 1.0 - step as f32 / total as f32;
            let learning_rate = config.learning_rate * (LEARNING_RATE_LAST + (1.0 - LEARNING_RATE_LAST) * left);
            Adam { learning_rate, betas: (0.9, 0.999), epsilon: 1e-8, weight_decay: WEIGHT_DECAY }
        };
        let mut moments = Moments::new(self.network.weights.len());
        let mut best = Best { network: self.network.clone(), loss: f32::INFINITY, validation_losses: Vec::new() };
        let (mut done, mut worse) = (0, 0);
        for _ in 0..epochs_max {
            order.shuffle(rng);
            for chosen in order.chunks(config.batch) {
                if stop.load(Ordering::Relaxed) {
                    return Err(ModelError::Stopped);
                }
                let chosen: Vec<&RankingList> = chosen.iter().map(|index| &data.lists[*index]).collect();
                let (loss, gradient) = self.loss_and_gradient(&chosen);
                if !loss.is_finite() {
                    return Err(ModelError::Diverged { stage: STAGE, step: done });
                }
                done += 1;
                moments.update(&mut self.network.weights, &gradient, adam(done).at(done));
                progress(Progress { stage: STAGE, done, total, loss });
            }
            let loss = self.loss(data.validation);
            best.validation_losses.push((done, loss));
            if loss < best.loss {
                (best.network, best.loss, worse) = (self.network.clone(), loss, 0);
            } else {
                worse += 1;
                if worse > config.patience {
                    break;
                }
            }
        }
        Ok(best)
    }

    /// Mean loss of the lists.
    fn loss(&self, lists: &[RankingList]) -> f32 {
        let loss = |list: &RankingList| self.list_loss(list, &mut self.logits(&list.features), 1.0);
        let losses: Vec<f64> = lists.par_iter().map(loss).collect();
        (losses.iter().sum::<f64>() / lists.len() as f64) as f32
    }

    /// Mean loss of the lists and the gradient of all weights.
    fn loss_and_gradient(&self, lists: &[&RankingList]) -> (f32, Vec<f32>) {
        let weight = 1.0 / lists.len() as f32;
        let parts: Vec<(f64, Vec<f32>)> = lists.par_chunks(PART).map(|lists| self.part(lists, weight)).collect();
        let (mut loss, mut gradient) = (0.0, vec![0.0; self.network.weights.len()]);
        for (part_loss, part) in &parts {
            loss += part_loss;
            add(&mut gradient, part);
        }
        (loss as f32, gradient)
    }

    /// Sum of the lists' losses times `weight`, and the gradient of all weights.
    fn part(&self, lists: &[&RankingList], weight: f32) -> (f64, Vec<f32>) {
        let features: Vec<f32> = lists.iter().flat_map(|list| self.scale.apply(&list.features)).collect();
        let mut trace = self.network.forward(&features);
        let mut dlogits = std::mem::take(&mut trace.logits);
        let (mut loss, mut rest) = (0.0, &mut dlogits[..]);
        for list in lists {
            let (own, after) = rest.split_at_mut(list.labels.len());
            loss += self.list_loss(list, own, weight);
            rest = after;
        }
        (loss * f64::from(weight), self.network.backward(&dlogits, &features, &trace))
    }

    /// Softmax cross-entropy over the list for each head, plus a share of the pointwise logistic loss; candidates whose
    /// label is not known are left out of both. Turns the logits `[candidates × heads]` into the loss's gradient
    /// times `weight`.
    fn list_loss(&self, list: &RankingList, logits: &mut [f32], weight: f32) -> f64 {
        let heads = self.network.third.outputs;
        let pointwise_weight = if list.is_weighted { 0.0 } else { self.pointwise_weight };
        let (mut loss, mut cells, mut powers) = (0.0, Vec::new(), Vec::new());
        for head in 0..heads {
            cells.clear();
            cells.extend((head..logits.len()).step_by(heads).filter(|cell| !list.labels[*cell].is_nan()));
            powers.clear();
            powers.extend(cells.iter().map(|cell| logits[*cell]));
            let positives: f32 = cells.iter().map(|cell| list.labels[*cell]).sum();
            let share_of = |label: f32| if list.is_weighted { label } else { label / positives.max(1.0) };
            let (peak, sum) = exponentials(&mut powers);
            let shares = share_of(positives);
            if !cells.is_empty() {
                loss += f64::from(shares * (sum.ln() + peak));
            }
            for (cell, power) in cells.iter().zip(&powers) {
                let (logit, label) = (logits[*cell], list.labels[*cell]);
                // ln(1 + e^logit) - label × logit, without overflow.
                let pointwise = logit.max(0.0) + (-logit.abs()).exp().ln_1p() - label * logit;
                loss += f64::from(pointwise_weight * pointwise - share_of(label) * logit);
                let slope = 1.0 / (1.0 + (-logit).exp()) - label;
                logits[*cell] = weight * (shares * power / sum - share_of(label) + pointwise_weight * slope);
            }
            let unknown = (head..logits.len()).step_by(heads).filter(|cell| list.labels[*cell].is_nan());
            unknown.for_each(|cell| logits[cell] = 0.0);
        }
        loss
    }

    /// `features` `[rows × features]` to `[rows × heads]`.
    fn logits(&self, features: &[f32]) -> Vec<f32> {
        self.network.forward(&self.scale.apply(features)).logits
    }

    /// Fits scale and offset of each head by Newton's method on the logistic loss: on the first part of the lists, and
    /// for a head that has few positive labels there, because its labels come late, on all.
    fn calibrate(&self, parts: [&[RankingList]; 2]) -> Vec<Calibration> {
        let heads = self.network.third.outputs;
        let mut points: Vec<Vec<(f64, f64)>> = vec![Vec::new(); heads];
        for lists in parts {
            let positives = |points: &[(f64, f64)]| points.iter().map(|(_, label)| label).sum::<f64>();
            let is_wanting: Vec<bool> =
                points.iter().map(|points| positives(points) < CALIBRATION_POSITIVES_MIN).collect();
            if !is_wanting.contains(&true) {
                break;
            }
            for list in lists.iter().filter(|list| !list.is_weighted) {
                let logits = self.logits(&list.features);
                for (index, (logit, label)) in logits.iter().zip(&list.labels).enumerate() {
                    if is_wanting[index % heads] && !label.is_nan() {
                        points[index % heads].push((f64::from(*logit), f64::from(*label)));
                    }
                }
            }
        }
        points.iter().map(|points| platt(points)).collect()
    }
}

/// Positive labels that a calibration needs.
const CALIBRATION_POSITIVES_MIN: f64 = 20.0;

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

fn export(trainer: &Trainer) -> Result<Vec<u8>, ModelError> {
    let Trainer { network, scale, .. } = trainer;
    let width = scale.mean.len();
    let mut graph = GraphWriter::new("ranker");
    graph.float_input("features", &[Dim::Any("candidates"), Dim::Is(width)]);
    graph.weights("mean", &[width], &scale.mean);
    graph.weights("inverse", &[width], &scale.inverse);
    graph.node("Sub", &["features", "mean"], "centred", &[]);
    graph.node("Mul", &["centred", "inverse"], "scaled", &[]);
    let layer = |graph: &mut GraphWriter, input: &str, output: &str, layer: &Linear| {
        let (matrix, bias) = layer.matrix_and_bias(&network.weights);
        graph.linear(input, output, [layer.inputs, layer.outputs], matrix, bias);
    };
    layer(&mut graph, "scaled", "first", &network.first);
    layer(&mut graph, "scaled", "skip", &network.skip);
    graph.gelu("first", "first_active");
    layer(&mut graph, "first_active", "second", &network.second);
    graph.gelu("second", "second_active");
    layer(&mut graph, "second_active", "third", &network.third);
    graph.node("Add", &["third", "skip"], "logits", &[]);
    graph.output("logits", &[Dim::Any("candidates"), Dim::Is(network.third.outputs)]);
    graph.finish()
}

fn check(trainer: &Trainer, onnx: &[u8], data: RankingData, runtime: &Runtime) -> Result<ExportCheck, ModelError> {
    let mut ranker = Ranker::open(runtime, onnx, data.feature_names, Device::Cpu)?;
    let width = trainer.scale.mean.len();
    let mut rng = StdRng::seed_from_u64(7);
    let mut pairs = Vec::new();
    for rows in [1usize, 3, 50, 250] {
        // Real rows, and rows within half a standard deviation of them.
        let real = &data.validation[0].features;
        let deviation = |column: usize| match trainer.scale.inverse[column] {
            0.0 => 1.0,
            inverse => 1.0 / inverse,
        };
        let noise =
            |rng: &mut StdRng, column| rng.random_range(-0.5..0.5) * f32::from(u8::from(rows > 1)) * deviation(column);
        let features: Vec<f32> =
            (0..rows * width).map(|index| real[index % real.len()] + noise(&mut rng, index % width)).collect();
        pairs.push((trainer.logits(&features), ranker.score(&features, rows)?));
    }
    compare("ranker", &pairs)
}

/// Returns the logits of `features` after a training on the lists, without an export.
#[cfg(test)]
pub(crate) fn learned_logits(lists: &[RankingList], width: usize, features: &[f32]) -> Vec<f32> {
    let heads = ["click".to_owned()];
    let names = vec![String::new(); width];
    let data = RankingData { lists, validation: lists, feature_names: &names, heads: &heads };
    let network = Network::new(width, 1, &mut generator(1, Stream::Ranker));
    let config = RankerConfig { learning_rate: 1e-2, ..RankerConfig::default() };
    let mut trainer = Trainer { network, scale: Scale::of(lists, width), pointwise_weight: config.pointwise_weight };
    let rng = &mut generator(1, Stream::Ranker);
    trainer.network = trainer.learn(data, &config, &AtomicBool::new(false), rng, &mut |_| {}).unwrap().network;
    trainer.logits(features)
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

    /// Three lists of 2 heads; some labels are not known, and one list has no positive label of the second head.
    fn lists(width: usize) -> Vec<RankingList> {
        let number = |index: usize| (index as f32 * 1.3).sin();
        let unknown = f32::NAN;
        vec![
            RankingList {
                features: (0..4 * width).map(number).collect(),
                labels: vec![1.0, 0.0, 0.0, unknown, 0.0, 0.0, 0.5, 0.0],
                is_weighted: false,
            },
            RankingList {
                features: (100..100 + 3 * width).map(number).collect(),
                labels: vec![0.0, unknown, 1.0, unknown, 0.0, unknown],
                is_weighted: false,
            },
            RankingList {
                features: (200..200 + 2 * width).map(number).collect(),
                labels: vec![0.0, 0.4, 2.5, unknown],
                is_weighted: true,
            },
        ]
    }

    fn trainer(lists: &[RankingList], width: usize) -> Trainer {
        let network = Network::new(width, 2, &mut generator(3, Stream::Ranker));
        Trainer { network, scale: Scale::of(lists, width), pointwise_weight: 0.1 }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        const WIDTH: usize = 5;
        const STEP: f32 = 1e-2;
        let lists = lists(WIDTH);
        let chosen: Vec<&RankingList> = lists.iter().collect();
        let mut trainer = trainer(&lists, WIDTH);
        let (_, gradient) = trainer.loss_and_gradient(&chosen);
        assert_eq!(gradient.len(), 6 * 64 + 65 * 32 + 33 * 2 + 6 * 2);
        for (index, analytic) in gradient.iter().enumerate() {
            let mut loss = |shift: f32| {
                let before = trainer.network.weights[index];
                trainer.network.weights[index] = before + shift;
                let loss = trainer.loss_and_gradient(&chosen).0;
                trainer.network.weights[index] = before;
                loss
            };
            let numeric = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
            let is_close = (numeric - analytic).abs() <= 2e-4 + 0.02 * numeric.abs();
            assert!(is_close, "weight {index}: {analytic}, by differences {numeric}");
        }
    }

    /// The loss as it is defined, in f64.
    #[test]
    fn the_loss_is_that_of_its_definition() {
        let lists = lists(5);
        let trainer = trainer(&lists, 5);
        let mut expected = 0.0;
        for list in &lists {
            let logits = trainer.logits(&list.features);
            for head in 0..2 {
                let known: Vec<(f64, f64)> = (head..logits.len())
                    .step_by(2)
                    .filter(|cell| !list.labels[*cell].is_nan())
                    .map(|cell| (f64::from(logits[cell]), f64::from(list.labels[cell])))
                    .collect();
                let sum: f64 = known.iter().map(|(logit, _)| logit.exp()).sum();
                let positives = known.iter().map(|(_, label)| label).sum::<f64>().max(1.0);
                let (positives, pointwise_weight) = if list.is_weighted { (1.0, 0.0) } else { (positives, 0.1) };
                for (logit, label) in known {
                    let p = 1.0 / (1.0 + (-logit).exp());
                    let pointwise = label * p.ln() + (1.0 - label) * (1.0 - p).ln();
                    expected -= (label / positives * (logit.exp() / sum).ln() + pointwise_weight * pointwise) / 3.0;
                }
            }
        }
        let chosen: Vec<&RankingList> = lists.iter().collect();
        for loss in [trainer.loss(&lists), trainer.loss_and_gradient(&chosen).0] {
            assert!((f64::from(loss) - expected).abs() < 1e-5, "{loss} {expected}");
        }
    }

    #[test]
    fn the_same_seed_returns_the_same_network_and_the_loss_falls() {
        let lists: Vec<RankingList> = (0..40).flat_map(|_| lists(5)).collect();
        let heads = ["a".to_owned(), "b".to_owned()];
        let data = RankingData {
            lists: &lists,
            validation: &lists[..2],
            feature_names: &["1", "2", "3", "4", "5"].map(str::to_owned),
            heads: &heads,
        };
        let learned = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut trainer = trainer(&lists, 5);
            let (config, stop) = (RankerConfig { learning_rate: 1e-2, ..Default::default() }, AtomicBool::new(false));
            let rng = &mut generator(1, Stream::Ranker);
            pool.install(|| trainer.learn(data, &config, &stop, rng, &mut |_| {})).unwrap()
        };
        let (best, other) = (learned(1), learned(3));
        assert_eq!(best.network.weights, other.network.weights);
        let untrained = trainer(&lists, 5).loss(&lists[..2]);
        assert!(best.loss < 0.8 * untrained, "{} {untrained}", best.loss);
    }
}
