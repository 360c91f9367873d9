//! The models of a generation, as one worker owns them.
use crate::{
    bundle::{Bundle, Head},
    policy,
    ranking::{Device, Ranker, RankingError, Runtime, TextEncoder, TextRole, UserEncoder, UserInput},
};
use lodestone_catalog::{Catalog, Item, ItemVectors, VECTOR_DIM};
use lodestone_core::units::UnixMillis;
use lodestone_state::users::History;

/// Maximum number of events that the user encoder reads.
pub const ENCODED_EVENTS_MAX: usize = 50;

/// The models of one worker. Workers do not share sessions, because a run of ONNX Runtime needs exclusive access.
pub struct Models {
    pub user: UserEncoder,
    pub query: TextEncoder,
    pub ranker: Option<Ranker>,
    pub heads: Vec<Head>,
}

impl Models {
    /// Opens the models and checks their inputs and outputs. A bundle in training has no ranker yet.
    pub fn open(runtime: &Runtime, bundle: &Bundle, device: Device) -> Result<Self, RankingError> {
        Ok(Self {
            user: UserEncoder::open(runtime, &bundle.user_encoder, device)?,
            query: TextEncoder::open(runtime, bundle.query_encoder_files(), device)?,
            ranker: match bundle.ranker.is_empty() {
                true => None,
                false => Some(open_ranker(runtime, bundle, device)?),
            },
            heads: bundle.manifest.heads.clone(),
        })
    }

    /// Encodes queries; none for a missing query or one without terms.
    pub fn encode_queries(&mut self, queries: &[Option<&str>]) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
        let texts: Vec<&str> = queries.iter().flatten().copied().collect();
        let mut vectors = self.query.encode(&texts, TextRole::Query)?.into_iter();
        Ok(queries.iter().map(|query| query.and_then(|_| vectors.next().flatten())).collect())
    }

    /// Encodes users, `[VECTOR_DIM]` each; none if no item of the history is in the catalogue.
    pub fn encode_users(
        &mut self,
        histories: &[&History],
        catalog: &Catalog,
        now: UnixMillis,
    ) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
        let inputs = histories.iter().map(|history| user_input(history, catalog, now)).collect();
        encode_some(inputs, |input: &UserInput| !input.kinds.is_empty(), |inputs| self.user.encode_batch(inputs))
    }

    /// Computes probabilities `[rows × heads]` of features `[rows × columns of the schema]`. Empty without a ranker or
    /// without rows.
    pub fn probabilities(&mut self, features: &[f32]) -> Result<Vec<f32>, RankingError> {
        let Some(ranker) = self.ranker.as_mut().filter(|_| !features.is_empty()) else {
            return Ok(Vec::new());
        };
        let row_count = features.len() / ranker.column_count();
        // The kernel for a single row adds in another order than the kernel for several rows. So a single row is scored
        // twice, which makes the probabilities of a row independent of the batch, and a replay bit-equal.
        let mut heads = match row_count {
            1 => ranker.score(&[features, features].concat(), 2)?,
            _ => ranker.score(features, row_count)?,
        };
        heads.truncate(row_count * self.heads.len());
        for row in heads.chunks_exact_mut(self.heads.len()) {
            for (logit, head) in row.iter_mut().zip(&self.heads) {
                *logit = 1.0 / (1.0 + (-(head.scale * *logit + head.offset)).exp());
            }
        }
        Ok(heads)
    }

    /// Computes utilities of features `[rows × columns of the schema]` with the bundle's head weights. Empty without a
    /// ranker.
    pub fn utilities(&mut self, features: &[f32]) -> Result<Vec<f32>, RankingError> {
        let heads = self.probabilities(features)?;
        let weights: Vec<f32> = self.heads.iter().map(|head| head.weight).collect();
        Ok(heads.chunks_exact(weights.len().max(1)).map(|heads| policy::utility(&weights, heads)).collect())
    }
}

/// Opens the ranking model and checks that it has as many heads as the manifest.
fn open_ranker(runtime: &Runtime, bundle: &Bundle, device: Device) -> Result<Ranker, RankingError> {
    let ranker = Ranker::open(runtime, &bundle.ranker, bundle.manifest.features.names(), device)?;
    let (found, named) = (ranker.head_count(), bundle.manifest.heads.len());
    match found == named {
        true => Ok(ranker),
        false => Err(RankingError::Contract {
            model: "ranker",
            problem: format!("has {found} heads, but the manifest has {named}"),
        }),
    }
}

/// Encodes the inputs that are encodable, in one run. Returns a vector or none for each input, in order.
fn encode_some<T>(
    inputs: Vec<T>,
    is_encodable: impl Fn(&T) -> bool,
    encode: impl FnOnce(&[T]) -> Result<Vec<f32>, RankingError>,
) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
    let encodable: Vec<bool> = inputs.iter().map(&is_encodable).collect();
    let encoded = encode(&inputs.into_iter().filter(is_encodable).collect::<Vec<_>>())?;
    let mut vectors = encoded.chunks_exact(VECTOR_DIM).map(<[f32]>::to_vec);
    Ok(encodable.into_iter().map(|is_encoded| if is_encoded { vectors.next() } else { None }).collect())
}

/// Returns the latest events whose items are in the catalogue, latest last, as the input of the user encoder. Refunds
/// and what they withdraw are left out.
fn user_input(history: &History, catalog: &Catalog, now: UnixMillis) -> UserInput {
    let refunds = history.refunds();
    let mut found: Vec<_> = history
        .events
        .iter()
        .enumerate()
        .rev()
        .filter(|(index, _)| !refunds.is_withdrawn(*index))
        .map(|(_, event)| event)
        .filter_map(|event| Some((catalog.row_of_key(event.item)?, event)))
        .take(ENCODED_EVENTS_MAX)
        .collect();
    found.reverse();
    let mut input = UserInput::default();
    let count = found.len();
    for (index, (row, event)) in found.into_iter().enumerate() {
        input.items.extend_from_slice(catalog.get(row).vectors.user_space());
        input.kinds.push(event.kind as i64);
        input.positions.push((count - 1 - index) as i64);
        input.ages.push(now.days_since(UnixMillis(i64::from(event.at_s) * 1000)).ln_1p());
    }
    input
}

/// The linear projection from the query space into the user space.
#[derive(Debug, Clone)]
pub struct TextProjection {
    /// `[query_dimension × VECTOR_DIM]`, row-major.
    pub matrix: Vec<f32>,
    pub query_dimension: usize,
}

/// Computes vectors of items that are not in the bundle: the encoded text, and its projection into the user space.
pub fn embed_items(
    projection: &TextProjection,
    models: &mut Models,
    items: &[&Item],
) -> Result<Vec<ItemVectors>, RankingError> {
    const BATCH: usize = 64;
    let mut vectors = Vec::with_capacity(items.len());
    for batch in items.chunks(BATCH) {
        let texts: Vec<String> = batch.iter().map(|item| models.query.text_of(item)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        for (encoded, item) in models.query.encode(&texts, TextRole::Passage)?.into_iter().zip(batch) {
            // A text without words has no vector. The index needs one, so it gets an arbitrary unit vector.
            let encoded = encoded.unwrap_or_else(|| unit_vector(projection.query_dimension));
            if encoded.len() != projection.query_dimension {
                let problem = format!("{} numbers for item {}", encoded.len(), item.id);
                return Err(RankingError::Contract { model: "query_encoder", problem });
            }
            vectors.push(ItemVectors::new(&project(&encoded, &projection.matrix), &encoded));
        }
    }
    Ok(vectors)
}

/// Returns the unit vector along the first axis.
fn unit_vector(dimensions: usize) -> Vec<f32> {
    (0..dimensions).map(|at| f32::from(u8::from(at == 0))).collect()
}

/// Computes `normalize(text × projection)`, `[VECTOR_DIM]`.
fn project(text: &[f32], projection: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0f32; VECTOR_DIM];
    for (value, weights) in text.iter().zip(projection.chunks_exact(VECTOR_DIM)) {
        for (out, weight) in out.iter_mut().zip(weights) {
            *out += value * weight;
        }
    }
    let norm = out.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm < 1e-6 {
        return unit_vector(VECTOR_DIM);
    }
    out.iter_mut().for_each(|x| *x /= norm);
    out
}
