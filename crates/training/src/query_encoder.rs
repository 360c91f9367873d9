//! A shared tower for queries and titles: the mean of hashed terms' embeddings, one residual layer, length 1. Learned
//! with softmax over the batch's titles (in-batch negatives) from spans of titles.
use super::{
    Progress,
    adam::{Adam, Moments},
    kernels::{AdamStep, add, add_scaled, normalise_rows, normalise_rows_backward, scale, tanh, tanh_backward},
    layers::{Linear, Stream, generator, normal},
    onnx::{Attribute, Dim, ExportCheck, GraphWriter, ModelError, compare, weights_in},
    softmax::{Softmax, Targets},
};
use lodestone_pipeline::ranking::{Device, QueryEncoder, Runtime};
use rand::{Rng, seq::SliceRandom};
use rayon::prelude::*;

/// Dimensions of the query space: the codes of 64 dimensions fill one cache line of the index. The user encoder's width
/// does not affect them, because titles are projected into the user space.
pub(crate) const WIDTH: usize = 64;

#[derive(Debug, Clone)]
pub(crate) struct QueryEncoderConfig {
    pub bucket_count: u32,
    pub epochs: usize,
    pub batch: usize,
    pub learning_rate: f32,
    pub temperature: f32,
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

/// Hashed terms of a query, not empty, and the index of its text.
pub(crate) type QuerySample = (Vec<u32>, u32);

/// Texts and queries to learn from.
#[derive(Clone, Copy)]
pub(crate) struct QueryEncoderData<'a> {
    /// Hashed terms of each item's whole text; none is empty.
    pub texts: &'a [Vec<u32>],
    pub samples: &'a [QuerySample],
}

pub(crate) struct TrainedQueryEncoder {
    pub onnx: Vec<u8>,
    pub check: ExportCheck,
    tower: Tower,
}

#[derive(Debug, Clone)]
struct Tower {
    /// `[buckets × WIDTH]`
    table: Vec<f32>,
    /// Weights of [`layer`].
    layer: Vec<f32>,
}

/// The residual layer.
fn layer() -> Linear {
    Linear::new(0, WIDTH, WIDTH)
}

/// Standard deviation of the embeddings before the first step.
const TABLE_DEVIATION: f32 = 0.1;

/// Outputs and intermediate values of the forward pass, which the backward pass reads: `[texts × WIDTH]` each.
struct Trace {
    /// Means of the terms' embeddings.
    mean: Vec<f32>,
    activated: Vec<f32>,
    /// Of length 1.
    out: Vec<f32>,
    /// 1 / length before the rows were scaled to length 1: `[texts]`.
    inverse: Vec<f32>,
}

impl Tower {
    fn new(buckets: usize, rng: &mut impl Rng) -> Self {
        let table = (0..buckets * WIDTH).map(|_| TABLE_DEVIATION * normal(rng)).collect();
        let mut weights = vec![0.0; layer().range.end];
        layer().initialise(&mut weights, rng);
        Self { table, layer: weights }
    }

    /// The tower of an exported model; none if its shape is another.
    fn exported(onnx: &[u8], buckets: usize) -> Option<Self> {
        let weights = |name: &str, count: usize| weights_in(onnx, name).filter(|values| values.len() == count);
        let table = weights("table", buckets * WIDTH)?;
        let matrix = weights("layer.weight", WIDTH * WIDTH)?;
        let bias = weights("layer.bias", WIDTH)?;
        Some(Self { table, layer: [matrix, bias].concat() })
    }

    fn forward(&self, texts: &[&[u32]]) -> Trace {
        let mut mean = vec![0.0; texts.len() * WIDTH];
        for (terms, mean) in texts.iter().zip(mean.chunks_exact_mut(WIDTH)) {
            for term in *terms {
                add(mean, row(&self.table, *term));
            }
            scale(mean, 1.0 / terms.len() as f32);
        }
        let mut activated = layer().forward(&self.layer, &mean);
        tanh(&mut activated);
        let mut out = mean.clone();
        add(&mut out, &activated);
        let mut inverse = vec![0.0; texts.len()];
        normalise_rows(&mut out, WIDTH, &mut inverse);
        Trace { mean, activated, out, inverse }
    }

    /// Adds the gradients that follow from `dout` `[texts × WIDTH]`, the gradient of the output, to `gradient`.
    fn backward(&self, gradient: &mut Gradient, mut dout: Vec<f32>, texts: &[&[u32]], trace: &Trace) {
        normalise_rows_backward(&mut dout, &trace.out, WIDTH, &trace.inverse);
        let mut dmean = dout.clone();
        tanh_backward(&mut dout, &trace.activated);
        add(&mut dmean, &layer().backward(&mut gradient.layer, &dout, &trace.mean, &self.layer));
        for (terms, dmean) in texts.iter().zip(dmean.chunks_exact(WIDTH)) {
            for term in *terms {
                let begin = *term as usize * WIDTH;
                add_scaled(&mut gradient.table[begin..begin + WIDTH], 1.0 / terms.len() as f32, dmean);
            }
        }
    }

    /// Vectors `[texts × WIDTH]` of length 1.
    fn encode(&self, texts: &[Vec<u32>]) -> Vec<f32> {
        let chunks: Vec<Vec<f32>> = texts.par_chunks(256).map(|texts| self.forward(&slices(texts)).out).collect();
        chunks.concat()
    }
}

fn row(table: &[f32], term: u32) -> &[f32] {
    &table[term as usize * WIDTH..][..WIDTH]
}

fn slices(texts: &[Vec<u32>]) -> Vec<&[u32]> {
    texts.iter().map(Vec::as_slice).collect()
}

/// Gradient of a [`Tower`], in its shapes.
struct Gradient {
    table: Vec<f32>,
    layer: Vec<f32>,
}

impl Gradient {
    fn new(tower: &Tower) -> Self {
        Self { table: vec![0.0; tower.table.len()], layer: vec![0.0; tower.layer.len()] }
    }

    fn clear(&mut self) {
        self.table.fill(0.0);
        self.layer.fill(0.0);
    }
}

/// Queries and titles of a step, each title once.
struct Batch<'a> {
    queries: Vec<&'a [u32]>,
    titles: Vec<&'a [u32]>,
    /// The title of each query.
    targets: Targets,
    /// ln of the number of queries that have a title. Added to the logits of all titles but the query's own, it makes
    /// the softmax that of a batch in which titles repeat, but where none is a negative of itself.
    log_counts: Vec<f32>,
}

impl<'a> Batch<'a> {
    fn new(data: QueryEncoderData<'a>, chosen: &[usize]) -> Self {
        let text_of = |sample: &usize| data.samples[*sample].1;
        let mut rows: Vec<u32> = chosen.iter().map(text_of).collect();
        rows.sort_unstable();
        rows.dedup();
        let (mut targets, mut counts) = (Targets::default(), vec![0.0f32; rows.len()]);
        for sample in chosen {
            let title = rows.partition_point(|row| *row < text_of(sample));
            targets.push(std::iter::once((title as u32, 1.0)));
            counts[title] += 1.0;
        }
        Self {
            queries: chosen.iter().map(|sample| data.samples[*sample].0.as_slice()).collect(),
            titles: rows.iter().map(|row| data.texts[*row as usize].as_slice()).collect(),
            targets,
            log_counts: counts.into_iter().map(f32::ln).collect(),
        }
    }

    /// Mean over the queries of -ln p(title), and its gradient, which is added to `gradient`.
    fn loss_and_gradient(&self, tower: &Tower, temperature: f32, gradient: &mut Gradient) -> f32 {
        let (queries, titles) = rayon::join(|| tower.forward(&self.queries), || tower.forward(&self.titles));
        let softmax = Softmax {
            hidden: &queries.out,
            items: &titles.out,
            width: WIDTH,
            scale: 1.0 / temperature,
            targets: &self.targets,
            log_q_correction: &self.log_counts,
        };
        let (mut dqueries, mut dtitles) = (vec![0.0; queries.out.len()], vec![0.0; titles.out.len()]);
        let loss = softmax.loss_and_gradient(&mut dqueries, &mut dtitles, 1.0 / self.queries.len() as f32);
        tower.backward(gradient, dqueries, &self.queries, &queries);
        tower.backward(gradient, dtitles, &self.titles, &titles);
        loss as f32
    }
}

/// Adam's moments of a [`Tower`].
struct Optimiser {
    table: Moments,
    layer: Moments,
}

impl Optimiser {
    fn new(tower: &Tower) -> Self {
        Self { table: Moments::new(tower.table.len()), layer: Moments::new(tower.layer.len()) }
    }

    fn update(&mut self, tower: &mut Tower, gradient: &Gradient, step: AdamStep) {
        self.layer.update(&mut tower.layer, &gradient.layer, step);
        // Embeddings without a gradient move too, by their moments: search is better for it.
        self.table.update_in_parallel(&mut tower.table, &gradient.table, step);
    }
}

const STAGE: &str = "query encoder";

/// Learns the tower, beginning with `start`, an exported one, or else with random weights. The same seed returns the
/// same model, with any number of threads.
pub(crate) fn train_query_encoder(
    data: QueryEncoderData,
    config: &QueryEncoderConfig,
    start: Option<&[u8]>,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<TrainedQueryEncoder, ModelError> {
    let mut rng = generator(config.seed, Stream::QueryEncoder);
    let buckets = config.bucket_count as usize;
    let start = start.and_then(|onnx| Tower::exported(onnx, buckets));
    let mut tower = start.unwrap_or_else(|| Tower::new(buckets, &mut rng));
    learn(&mut tower, data, config, &mut rng, progress)?;
    let onnx = export(&tower)?;
    let check = check(&tower, &onnx, data, runtime)?;
    Ok(TrainedQueryEncoder { onnx, check, tower })
}

fn learn(
    tower: &mut Tower,
    data: QueryEncoderData,
    config: &QueryEncoderConfig,
    rng: &mut impl Rng,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), ModelError> {
    let adam = Adam { learning_rate: config.learning_rate, betas: (0.9, 0.999), epsilon: 1e-8, weight_decay: 0.0 };
    let (mut optimiser, mut gradient) = (Optimiser::new(tower), Gradient::new(tower));
    let mut order: Vec<usize> = (0..data.samples.len()).collect();
    let steps_of_epoch = order.len().div_ceil(config.batch);
    let steps = (steps_of_epoch * config.epochs).min(config.steps_max);
    let mut updates = 0;
    for step in 0..steps {
        if step % steps_of_epoch == 0 {
            order.shuffle(rng);
        }
        let begin = (step % steps_of_epoch) * config.batch;
        let chosen = &order[begin..(begin + config.batch).min(order.len())];
        if chosen.len() < 2 {
            continue;
        }
        gradient.clear();
        let loss = Batch::new(data, chosen).loss_and_gradient(tower, config.temperature, &mut gradient);
        if !loss.is_finite() {
            return Err(ModelError::Diverged { stage: STAGE, step });
        }
        updates += 1;
        optimiser.update(tower, &gradient, adam.at(updates));
        progress(Progress { stage: STAGE, done: step + 1, total: steps, loss });
    }
    Ok(())
}

impl TrainedQueryEncoder {
    /// Vectors `[texts × WIDTH]` of length 1.
    pub(crate) fn encode(&self, texts: &[Vec<u32>]) -> Vec<f32> {
        self.tower.encode(texts)
    }
}

fn export(tower: &Tower) -> Result<Vec<u8>, ModelError> {
    let mut graph = GraphWriter::new("query_encoder");
    graph.int_input("term_ids", &[Dim::Any("texts"), Dim::Any("terms")]);
    graph.float_input("mask", &[Dim::Any("texts"), Dim::Any("terms")]);
    graph.weights("table", &[tower.table.len() / WIDTH, WIDTH], &tower.table);
    graph.integers("terms_axis", &[1]);
    graph.integers("last_axis", &[-1]);
    graph.node("Gather", &["table", "term_ids"], "embedded", &[]);
    graph.node("Unsqueeze", &["mask", "last_axis"], "mask3", &[]);
    graph.node("Mul", &["embedded", "mask3"], "masked", &[]);
    graph.node("ReduceSum", &["masked", "terms_axis"], "sum", &[("keepdims", Attribute::Int(0))]);
    graph.node("ReduceSum", &["mask", "terms_axis"], "count", &[("keepdims", Attribute::Int(1))]);
    graph.node("Div", &["sum", "count"], "mean", &[]);
    let (matrix, bias) = layer().matrix_and_bias(&tower.layer);
    graph.linear("mean", "layer", [WIDTH, WIDTH], matrix, bias);
    graph.node("Tanh", &["layer"], "activated", &[]);
    graph.node("Add", &["mean", "activated"], "residual", &[]);
    graph.normalize("residual", "query");
    graph.output("query", &[Dim::Any("texts"), Dim::Is(WIDTH)]);
    graph.finish()
}

fn check(tower: &Tower, onnx: &[u8], data: QueryEncoderData, runtime: &Runtime) -> Result<ExportCheck, ModelError> {
    let mut encoder = QueryEncoder::open(runtime, onnx, Device::Cpu)?;
    let queries: Vec<Vec<u32>> = data.samples.iter().take(40).map(|(terms, _)| terms.clone()).collect();
    let titles: Vec<Vec<u32>> = data.texts.iter().take(40).cloned().collect();
    let mut pairs = Vec::new();
    for batch in [&queries, &titles, &titles[..1].to_vec()] {
        if !batch.is_empty() {
            pairs.push((tower.encode(batch), encoder.encode_batch(batch)?));
        }
    }
    compare("query_encoder", &pairs)
}

#[cfg(test)]
mod tests {
    use super::{super::kernels::dot, *};

    const BUCKETS: usize = 12;
    const TEMPERATURE: f32 = 0.5;

    fn data() -> (Vec<Vec<u32>>, Vec<QuerySample>) {
        let texts = vec![vec![0, 1, 2], vec![3, 4, 4, 5], vec![6], vec![7, 8, 9, 10]];
        let samples = vec![(vec![0, 1], 0), (vec![4], 1), (vec![2, 2, 3], 0), (vec![6, 11], 2), (vec![9], 3)];
        (texts, samples)
    }

    fn tower() -> Tower {
        let mut tower = Tower::new(BUCKETS, &mut generator(5, Stream::QueryEncoder));
        // Longer than before a training, so that differences of the loss are more than rounding.
        tower.table.iter_mut().for_each(|value| *value *= 8.0);
        tower
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let ((texts, samples), mut tower) = (data(), tower());
        let data = QueryEncoderData { texts: &texts, samples: &samples };
        let batch = Batch::new(data, &[0, 1, 2, 3, 4]);
        let loss = |tower: &Tower| batch.loss_and_gradient(tower, TEMPERATURE, &mut Gradient::new(tower));
        let mut gradient = Gradient::new(&tower);
        batch.loss_and_gradient(&tower, TEMPERATURE, &mut gradient);
        fn part(tower: &mut Tower, is_table: bool) -> &mut [f32] {
            if is_table { &mut tower.table } else { &mut tower.layer }
        }
        const STEP: f32 = 1e-2;
        for (is_table, analytic) in [(true, &gradient.table), (false, &gradient.layer)] {
            for (index, analytic) in analytic.iter().enumerate() {
                let before = part(&mut tower, is_table)[index];
                part(&mut tower, is_table)[index] = before + STEP;
                let high = loss(&tower);
                part(&mut tower, is_table)[index] = before - STEP;
                let low = loss(&tower);
                part(&mut tower, is_table)[index] = before;
                let numeric = (high - low) / (2.0 * STEP);
                let is_close = (numeric - analytic).abs() <= 3e-4 + 0.02 * numeric.abs();
                assert!(is_close, "table {is_table}, {index}: {analytic}, by differences {numeric}");
            }
        }
    }

    /// The loss over a matrix of queries × queries' titles in which other queries' copies of a query's title are left
    /// out.
    #[test]
    fn a_title_that_repeats_in_a_batch_is_no_negative_of_itself() {
        let ((texts, samples), tower) = (data(), tower());
        let vectors = |terms: &[u32]| tower.forward(&[terms]).out;
        let mut expected = 0.0;
        for (query, title) in &samples {
            let query = vectors(query);
            let logit = |title: u32| dot(&query, &vectors(&texts[title as usize])) / TEMPERATURE;
            let others = samples.iter().filter(|(_, other)| other != title).map(|(_, other)| logit(*other).exp());
            let own = logit(*title);
            expected += ((own.exp() + others.sum::<f32>()).ln() - own) / samples.len() as f32;
        }
        let data = QueryEncoderData { texts: &texts, samples: &samples };
        let batch = Batch::new(data, &[0, 1, 2, 3, 4]);
        let loss = batch.loss_and_gradient(&tower, TEMPERATURE, &mut Gradient::new(&tower));
        assert!((loss - expected).abs() < 1e-5, "{loss} {expected}");
    }

    #[test]
    fn the_same_seed_returns_the_same_tower_and_titles_are_found_by_their_queries() {
        let (texts, samples) = data();
        let data = QueryEncoderData { texts: &texts, samples: &samples };
        let config = QueryEncoderConfig { bucket_count: BUCKETS as u32, epochs: 100, batch: 5, ..Default::default() };
        let learned = |threads: usize| {
            let mut rng = generator(config.seed, Stream::QueryEncoder);
            let mut tower = Tower::new(BUCKETS, &mut rng);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| learn(&mut tower, data, &config, &mut rng, &mut |_| {})).unwrap();
            tower
        };
        let (tower, other) = (learned(1), learned(3));
        assert!(tower.table == other.table && tower.layer == other.layer);
        let titles = tower.encode(&texts);
        for (query, title) in &samples {
            let query = tower.forward(&[query]).out;
            let scores: Vec<f32> = titles.chunks_exact(WIDTH).map(|title| dot(&query, title)).collect();
            let best = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
            assert_eq!(best, Some(*title as usize), "{scores:?}");
        }
    }
}
