//! The learned functions, as one worker owns them.
use super::world::{World, array};
use crate::{
    bundle::{Bundle, Head},
    catalog::{Catalog, Item, ItemVectors, VECTOR_DIM},
    people::History,
    ranking::{Device, PersonEncoder, PersonInput, QueryEncoder, Ranker, RankingError, Runtime},
    text,
    units::UnixMillis,
};

/// Events of the history that the person encoder reads.
pub const ENCODED_EVENTS_MAX: usize = 50;

/// Sessions are not shared: ONNX Runtime's run takes them exclusively.
pub struct Models {
    pub person: PersonEncoder,
    pub query: QueryEncoder,
    pub ranker: Option<Ranker>,
    pub heads: Vec<Head>,
    bucket_count: u32,
}

impl Models {
    /// Opens the three models and checks their inputs and outputs. A bundle in training has no ranker yet.
    pub fn open(runtime: &Runtime, bundle: &Bundle, device: Device) -> Result<Self, RankingError> {
        Ok(Self {
            person: PersonEncoder::open(runtime, &bundle.person_encoder, device)?,
            query: QueryEncoder::open(runtime, &bundle.query_encoder, device)?,
            ranker: match bundle.ranker.is_empty() {
                true => None,
                false => Some(Ranker::open(runtime, &bundle.ranker, device)?),
            },
            heads: bundle.manifest.heads.clone(),
            bucket_count: bundle.manifest.term_bucket_count,
        })
    }

    /// Vectors of queries, `[VECTOR_DIM]` each; none for one that is not asked or has no term.
    pub fn encode_queries(&mut self, queries: &[Option<&str>]) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
        let terms: Vec<Vec<u32>> = queries
            .iter()
            .map(|query| query.map_or_else(Vec::new, |query| text::hashed_terms(query, self.bucket_count)))
            .collect();
        encode_those(terms, |terms| !terms.is_empty(), |terms| self.query.encode_batch(terms))
    }

    /// Vectors of people, `[VECTOR_DIM]` each; none where no item of the history is in the catalogue.
    pub fn encode_people(
        &mut self,
        histories: &[&History],
        catalog: &Catalog,
        now: UnixMillis,
    ) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
        let inputs = histories.iter().map(|history| person_input(history, catalog, now)).collect();
        encode_those(inputs, |input: &PersonInput| !input.kinds.is_empty(), |inputs| self.person.encode_batch(inputs))
    }
}

/// Encodes those inputs that can be, in one run, and puts each vector at its input's place.
fn encode_those<T>(
    inputs: Vec<T>,
    can: impl Fn(&T) -> bool,
    encode: impl FnOnce(&[T]) -> Result<Vec<f32>, RankingError>,
) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
    let places: Vec<bool> = inputs.iter().map(&can).collect();
    let encoded = encode(&inputs.into_iter().filter(can).collect::<Vec<_>>())?;
    let mut vectors = encoded.chunks_exact(VECTOR_DIM).map(<[f32]>::to_vec);
    Ok(places.into_iter().map(|encodes| if encodes { vectors.next() } else { None }).collect())
}

/// The latest events whose items are in the catalogue, latest last.
fn person_input(history: &History, catalog: &Catalog, now: UnixMillis) -> PersonInput {
    let mut found: Vec<_> = history
        .events
        .iter()
        .rev()
        .filter_map(|event| Some((catalog.row_of_key(event.item)?, event)))
        .take(ENCODED_EVENTS_MAX)
        .collect();
    found.reverse();
    let mut input = PersonInput::default();
    let count = found.len();
    for (index, (row, event)) in found.into_iter().enumerate() {
        input.items.extend_from_slice(&catalog.get(row).vectors.person_space);
        input.kinds.push(event.kind as i64);
        input.positions.push((count - 1 - index) as i64);
        input.ages.push(now.days_since(UnixMillis(i64::from(event.at_s) * 1000)).ln_1p());
    }
    input
}

/// Vectors of items that the bundle does not have: the encoded title, and its projection into the person's space.
pub fn embed_items(world: &World, models: &mut Models, items: &[Item]) -> Result<Vec<ItemVectors>, RankingError> {
    const BATCH: usize = 64;
    let mut vectors = Vec::with_capacity(items.len());
    for batch in items.chunks(BATCH) {
        let terms: Vec<Vec<u32>> = batch
            .iter()
            .map(|item| text::hashed_terms(&item.search_text(), models.bucket_count))
            .map(|terms| if terms.is_empty() { vec![0] } else { terms })
            .collect();
        let encoded = models.query.encode_batch(&terms)?;
        vectors.extend(encoded.chunks_exact(VECTOR_DIM).map(|query| ItemVectors {
            person_space: array(&project(query, &world.text_projection)),
            query_space: array(query),
        }));
    }
    Ok(vectors)
}

/// `normalize(text × projection)`; the text's own vector where the product vanishes.
fn project(text: &[f32], projection: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0f32; VECTOR_DIM];
    for (value, weights) in text.iter().zip(projection.chunks_exact(VECTOR_DIM)) {
        for (out, weight) in out.iter_mut().zip(weights) {
            *out += value * weight;
        }
    }
    let norm = out.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm < 1e-6 {
        return text.to_vec();
    }
    out.iter_mut().for_each(|x| *x /= norm);
    out
}
