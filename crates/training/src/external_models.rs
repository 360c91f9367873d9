//! Bundles with external models, which another program trained.
use super::{
    Progress,
    error::TrainError,
    query_side::embed_with,
    relevance,
    train::{check_item_vectors, freeze},
};
use lodestone_core::{ids::Row, units::UnixMillis};
use lodestone_index::FrozenGraph;
use lodestone_pipeline::{
    bundle::{Bundle, Head, Manifest},
    golden_requests,
    ranking::{
        Device, EncoderSource, ModelFileError, Ranker, RankingError, Runtime, SentenceFiles, UserEncoder, UserInput,
        read_model,
    },
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::path::{Path, PathBuf};

/// A user encoder, and the items' vectors in its space.
#[derive(Debug, Clone)]
pub struct ExternalUserEncoder {
    /// `user_encoder.onnx`.
    pub model: PathBuf,
    /// `[items × width]`, in the order of the bundle's items. The vectors are normalised.
    pub item_vectors: Vec<f32>,
    /// Dimensions of a vector.
    pub width: usize,
}

/// Models that replace those of a bundle. None keeps the bundle's own.
#[derive(Debug, Clone, Default)]
pub struct ExternalModels {
    pub user: Option<ExternalUserEncoder>,
    pub query_encoder: Option<EncoderSource>,
    /// `ranker.onnx`, and its heads if they differ from the bundle's.
    pub ranker: Option<(PathBuf, Option<Vec<Head>>)>,
}

/// Errors of [`bundle_external_models`].
#[derive(Debug, thiserror::Error)]
pub enum ExternalModelError {
    #[error(transparent)]
    File(#[from] ModelFileError),
    #[error("{path}: {source}")]
    Model { path: PathBuf, source: RankingError },
    #[error("{path}: {problem}")]
    Output { path: PathBuf, problem: String },
    #[error("item vectors: the file has {found} numbers; the bundle needs {items} items × {width}")]
    Shape { found: usize, items: usize, width: usize },
    #[error(transparent)]
    Train(#[from] TrainError),
}

/// Lengths of the random histories that check a user encoder, in addition to the longest that the bundle allows.
const CHECKED_LENGTHS: [usize; 4] = [1, 2, 7, 31];
/// Regularisation of the projection from title vectors to item vectors, relative to the mean diagonal element of FᵀF.
const RIDGE: f64 = 0.1;

/// Replaces models of the bundle `from` and writes the result to `out`. Checks each model's inputs and outputs, also
/// its outputs on random inputs. A ridge regression from title vectors to item vectors provides the vectors of new
/// items.
pub fn bundle_external_models(
    from: &Path,
    out: &Path,
    models: &ExternalModels,
    name: &str,
    now: UnixMillis,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), ExternalModelError> {
    let mut bundle = Bundle::open(from).map_err(TrainError::from)?;
    if let Some(user @ ExternalUserEncoder { item_vectors, width, .. }) = &models.user {
        let model = read_model(&user.model)?;
        check_user_encoder(user, &model, bundle.manifest.encoder_events, runtime)?;
        if item_vectors.len() != bundle.items.len() * width {
            let (found, items) = (item_vectors.len(), bundle.items.len());
            return Err(ExternalModelError::Shape { found, items, width: *width });
        }
        let vectors = normalized(item_vectors, *width);
        check_item_vectors("item", &bundle.items, &vectors, *width)?;
        bundle.item_vectors = freeze(&vectors, *width).map_err(TrainError::from)?;
        bundle.user_encoder = model;
    }
    if models.user.is_some() || models.query_encoder.is_some() {
        // The weights belong to the replaced encoders.
        bundle.encoder_weights = None;
    }
    if let Some(source) = &models.query_encoder {
        let files = SentenceFiles::read(runtime, source).map_err(TrainError::from)?;
        let side = embed_with(&files, &bundle.items, runtime, progress)?;
        let dimension = side.title_vectors.len() / bundle.items.len().max(1);
        check_item_vectors("title", &bundle.items, &side.title_vectors, dimension)?;
        bundle.title_vectors = freeze(&side.title_vectors, dimension).map_err(TrainError::from)?;
        (bundle.query_encoder, bundle.tokenizer) = (side.model, side.tokenizer);
        bundle.manifest.query_encoder = side.kind;
        if bundle.user_encoder.is_empty() {
            // Without a user encoder, the user space is the query space.
            bundle.item_vectors = bundle.title_vectors.clone();
        }
        relevance::calibrate(&mut bundle, runtime, progress)?;
    }
    if models.user.is_some() || models.query_encoder.is_some() {
        bundle.text_projection = ridge_regression(&bundle.title_vectors, &bundle.item_vectors);
    }
    if let Some((path, heads)) = &models.ranker {
        let model = read_model(path)?;
        if let Some(heads) = heads {
            bundle.manifest.heads.clone_from(heads);
        }
        check_ranker(path, &model, &bundle.manifest, runtime)?;
        bundle.ranker = model;
    }
    bundle.manifest.name = name.to_owned();
    bundle.manifest.created_ms = now.0;
    bundle.golden = Some(golden_requests(&bundle, runtime).map_err(TrainError::from)?);
    bundle.write(out).map_err(TrainError::from)?;
    Ok(())
}

/// Checks a user encoder on histories of at most `events` events.
fn check_user_encoder(
    user: &ExternalUserEncoder,
    model: &[u8],
    events: usize,
    runtime: &Runtime,
) -> Result<(), ExternalModelError> {
    let (path, width) = (&user.model, user.width);
    let failed = |source| ExternalModelError::Model { path: path.clone(), source };
    let mut encoder = UserEncoder::open(runtime, model, width, Device::Cpu).map_err(failed)?;
    let mut rng = StdRng::seed_from_u64(1);
    let inputs: Vec<UserInput> = CHECKED_LENGTHS
        .into_iter()
        .filter(|length| *length < events)
        .chain([events])
        .map(|length| UserInput {
            items: (0..length * width).map(|_| rng.random_range(-0.3..0.3)).collect(),
            kinds: (0..length).map(|_| rng.random_range(1..8)).collect(),
            positions: (0..length as i64).rev().collect(),
            ages: (0..length).map(|_| rng.random_range(0.0..6.0)).collect(),
        })
        .collect();
    let batch = encoder.encode_batch(&inputs).map_err(failed)?;
    for (input, vector) in inputs.iter().zip(batch.chunks(width)) {
        let alone = encoder.encode_batch(std::slice::from_ref(input)).map_err(failed)?;
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        let events = input.kinds.len();
        let problem = if length.is_nan() || (length - 1.0).abs() >= 0.01 {
            format!("the vector of a history of {events} events has length {length}; it must be 1")
        } else if alone.iter().zip(vector).any(|(a, b)| (a - b).abs() > 1e-3) {
            format!(
                "the vector of a history of {events} events changes in a batch with longer ones; padding, which `mask` \
                 excludes, must not affect it"
            )
        } else {
            continue;
        };
        return Err(ExternalModelError::Output { path: path.clone(), problem });
    }
    Ok(())
}

fn check_ranker(path: &Path, model: &[u8], manifest: &Manifest, runtime: &Runtime) -> Result<(), ExternalModelError> {
    let (heads, features) = (manifest.heads.len(), manifest.features.names());
    let failed = |source| ExternalModelError::Model { path: path.to_owned(), source };
    let refuse = |problem| Err(ExternalModelError::Output { path: path.to_owned(), problem });
    let mut ranker = Ranker::open(runtime, model, features, Device::Cpu).map_err(failed)?;
    if ranker.head_count() != heads {
        return refuse(format!(
            "the model has {} heads, but {heads} are described; describe the model's heads",
            ranker.head_count()
        ));
    }
    let mut rng = StdRng::seed_from_u64(1);
    for rows in [1, 3, 200] {
        let features: Vec<f32> = (0..rows * ranker.column_count()).map(|_| rng.random_range(-2.0..2.0)).collect();
        let logits = ranker.score(&features, rows).map_err(failed)?;
        if let Some(at) = logits.iter().position(|logit| !logit.is_finite()) {
            return refuse(format!("logit {at} of {rows} candidates is not finite"));
        }
    }
    Ok(())
}

fn normalized(vectors: &[f32], dimensions: usize) -> Vec<f32> {
    let mut out = vectors.to_vec();
    for vector in out.chunks_mut(dimensions) {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        // A zero or NaN vector stays unchanged, so that the check can report its item.
        if length > 0.0 {
            vector.iter_mut().for_each(|x| *x /= length);
        }
    }
    out
}

/// Ridge regression: returns the matrix P, `[from dimensions × to dimensions]`, row-major, that minimises the sum of
/// |from P - to|² + λ|P|². P is `(FᵀF + λI)⁻¹ FᵀT`, computed by Cholesky decomposition in f64.
fn ridge_regression(from: &FrozenGraph, to: &FrozenGraph) -> Vec<f32> {
    let (n, m) = (from.dimensions(), to.dimensions());
    let (mut gram, mut right) = (vec![0.0f64; n * n], vec![0.0f64; n * m]);
    for row in (0..from.row_count()).map(|row| Row(row as u32)) {
        let (Some(f), Some(t)) = (from.vector(row), to.vector(row)) else { continue };
        for i in 0..n {
            let value = f64::from(f[i]);
            gram[i * n..i * n + i + 1].iter_mut().zip(&f).for_each(|(sum, x)| *sum += value * f64::from(*x));
            right[i * m..(i + 1) * m].iter_mut().zip(&t).for_each(|(sum, x)| *sum += value * f64::from(*x));
        }
    }
    let mean = (0..n).map(|i| gram[i * n + i]).sum::<f64>() / n.max(1) as f64;
    (0..n).for_each(|i| gram[i * n + i] += RIDGE * mean + 1e-9);
    // The lower triangle becomes L. Forward and back substitution then solve each column.
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| gram[i * n + k] * gram[j * n + k]).sum();
            let rest = gram[i * n + j] - sum;
            gram[i * n + j] = if i == j { rest.max(1e-12).sqrt() } else { rest / gram[j * n + j] };
        }
    }
    for column in 0..m {
        for i in 0..n {
            let sum: f64 = (0..i).map(|k| gram[i * n + k] * right[k * m + column]).sum();
            right[i * m + column] = (right[i * m + column] - sum) / gram[i * n + i];
        }
        for i in (0..n).rev() {
            let sum: f64 = (i + 1..n).map(|k| gram[k * n + i] * right[k * m + column]).sum();
            right[i * m + column] = (right[i * m + column] - sum) / gram[i * n + i];
        }
    }
    right.into_iter().map(|value| value as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_index::{BuildConfig, FrozenGraph};

    #[test]
    fn a_ridge_regression_recovers_a_known_projection() {
        let mut rng = StdRng::seed_from_u64(3);
        let from: Vec<f32> = (0..500 * 6).map(|_| rng.random_range(-1.0..1.0)).collect();
        let projection: Vec<f32> = (0..6 * 4).map(|_| rng.random_range(-1.0..1.0)).collect();
        let to: Vec<f32> = from
            .chunks(6)
            .flat_map(|f| (0..4).map(|c| (0..6).map(|i| f[i] * projection[i * 4 + c]).sum()).collect::<Vec<f32>>())
            .collect();
        let index = |values: &[f32], d| FrozenGraph::build(values, d, BuildConfig::default(), &|_| {}).unwrap();
        let estimate = ridge_regression(&index(&from, 6), &index(&to, 4));
        // Regularisation shrinks all elements by the factor 1 + RIDGE.
        for (estimate, exact) in estimate.iter().zip(&projection) {
            assert!((estimate * (1.0 + RIDGE as f32) - exact).abs() < 0.05, "{estimate}, expected {exact}");
        }
    }
}
