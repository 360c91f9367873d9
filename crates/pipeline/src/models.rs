//! The models of a generation, as one worker owns them.
use crate::{
    bundle::{Bundle, Head},
    policy,
    ranking::{Device, Ranker, RankingError, Runtime, TextEncoder, TextRole, UserEncoder, UserInput},
    saved_vectors::SavedVectors,
};
use lodestone_catalog::{Catalog, Item, ItemVectors};
use lodestone_core::{faults, units::UnixMillis};
use lodestone_state::users::History;

/// The models of one worker. Workers do not share sessions, because a run of ONNX Runtime needs exclusive access.
pub struct Models {
    /// None in a bundle that was trained on too few events for one. Then no user has a vector.
    pub user: Option<UserEncoder>,
    pub query: TextEncoder,
    pub ranker: Option<Ranker>,
    pub heads: Vec<Head>,
    /// Maximum number of events that the user encoder reads.
    pub encoder_events: usize,
}

impl Models {
    /// Opens the models and checks their inputs and outputs. The user encoder must have the width of the items'
    /// vectors. A bundle of few events has no user encoder and no ranker, and one in training no ranker yet.
    pub fn open(runtime: &Runtime, bundle: &Bundle, device: Device) -> Result<Self, RankingError> {
        Ok(Self {
            user: match bundle.user_encoder.is_empty() {
                true => None,
                false => {
                    let width = bundle.item_vectors.dimensions();
                    Some(UserEncoder::open(runtime, &bundle.user_encoder, width, device)?)
                }
            },
            query: TextEncoder::open(runtime, bundle.query_encoder_files(), device)?,
            ranker: match bundle.ranker.is_empty() {
                true => None,
                false => Some(open_ranker(runtime, bundle, device)?),
            },
            heads: bundle.manifest.heads.clone(),
            encoder_events: bundle.manifest.encoder_events,
        })
    }

    /// Encodes queries; none for a missing query or one without terms.
    pub fn encode_queries(&mut self, queries: &[Option<&str>]) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
        let texts: Vec<&str> = queries.iter().flatten().copied().collect();
        let mut vectors = self.query.encode(&texts, TextRole::Query)?.into_iter();
        Ok(queries.iter().map(|query| query.and_then(|_| vectors.next().flatten())).collect())
    }

    /// Encodes users by their histories, each as a vector in the user space; none without a user encoder, or if no item
    /// of the history is in the catalogue of the request.
    pub fn encode_users(
        &mut self,
        histories: &[(&History, &Catalog)],
        now: UnixMillis,
    ) -> Result<Vec<Option<Vec<f32>>>, RankingError> {
        let Some(user) = &mut self.user else { return Ok(vec![None; histories.len()]) };
        let input = |(history, catalog): &(&History, &Catalog)| user_input(history, catalog, now, self.encoder_events);
        let inputs: Vec<UserInput> = histories.iter().map(input).collect();
        let is_encodable: Vec<bool> = inputs.iter().map(|input| !input.kinds.is_empty()).collect();
        let encodable: Vec<UserInput> = inputs.into_iter().filter(|input| !input.kinds.is_empty()).collect();
        let encoded = user.encode_batch(&encodable)?;
        let mut vectors = encoded.chunks_exact(user.width()).map(<[f32]>::to_vec);
        Ok(is_encodable.into_iter().map(|is_encoded| if is_encoded { vectors.next() } else { None }).collect())
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

/// Returns the latest events whose items are in the catalogue, at most `events_max`, latest last, as the input of the
/// user encoder. Refunds and what they withdraw are left out.
fn user_input(history: &History, catalog: &Catalog, now: UnixMillis, events_max: usize) -> UserInput {
    let refunds = history.refunds();
    let mut found: Vec<_> = history
        .events
        .iter()
        .enumerate()
        .rev()
        .filter(|(index, _)| !refunds.is_withdrawn(*index))
        .map(|(_, event)| event)
        .filter_map(|event| Some((catalog.row_of_key(event.item)?, event)))
        .take(events_max)
        .collect();
    found.reverse();
    let mut input = UserInput::default();
    let count = found.len();
    for (index, (row, event)) in found.into_iter().enumerate() {
        input.items.extend_from_slice(catalog.own(row).vectors.user_space());
        input.kinds.push(event.kind as i64);
        input.positions.push((count - 1 - index) as i64);
        input.ages.push(now.days_since(UnixMillis(i64::from(event.at_s) * 1000)).ln_1p());
    }
    input
}

/// The linear projection from the query space into the user space.
#[derive(Debug, Clone)]
pub struct TextProjection {
    /// `[query_dimension × user_dimension]`, row-major.
    pub matrix: Vec<f32>,
    pub query_dimension: usize,
    pub user_dimension: usize,
}

/// Computes vectors of items that are not in the bundle: the encoded text, unless it is saved, and its projection into the
/// user space.
pub fn embed_items(
    projection: &TextProjection,
    models: &mut Models,
    saved: &SavedVectors,
    items: &[&Item],
) -> Result<Vec<ItemVectors>, RankingError> {
    const BATCH: usize = 64;
    let mut vectors = Vec::with_capacity(items.len());
    for batch in items.chunks(BATCH) {
        let texts: Vec<String> = batch.iter().map(|item| models.query.text_of(item)).collect();
        let encoded = saved.or_encode(&texts, |texts| {
            let fault = faults::check("encode", texts.iter().copied());
            fault.map_err(|fault| RankingError::Run { model: "query_encoder", message: fault.to_string() })?;
            models.query.encode(texts, TextRole::Passage)
        })?;
        for (encoded, item) in encoded.into_iter().zip(batch) {
            // A text without words has no vector. The index needs one, so it gets an arbitrary unit vector.
            let encoded = encoded.unwrap_or_else(|| unit_vector(projection.query_dimension));
            if encoded.len() != projection.query_dimension {
                let problem = format!("{} numbers for item {}", encoded.len(), item.id);
                return Err(RankingError::Contract { model: "query_encoder", problem });
            }
            vectors.push(ItemVectors::new(&project(&encoded, projection), &encoded));
        }
    }
    Ok(vectors)
}

/// Returns the unit vector along the first axis.
fn unit_vector(dimensions: usize) -> Vec<f32> {
    (0..dimensions).map(|at| f32::from(u8::from(at == 0))).collect()
}

/// Computes `normalize(text × projection)`, `[user_dimension]`.
fn project(text: &[f32], projection: &TextProjection) -> Vec<f32> {
    let mut out = vec![0.0f32; projection.user_dimension];
    for (value, weights) in text.iter().zip(projection.matrix.chunks_exact(projection.user_dimension)) {
        for (out, weight) in out.iter_mut().zip(weights) {
            *out += value * weight;
        }
    }
    let norm = out.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm < 1e-6 {
        return unit_vector(projection.user_dimension);
    }
    out.iter_mut().for_each(|x| *x /= norm);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_catalog::ItemKeys;
    use lodestone_core::{
        ids::{EventId, ItemId, UserId},
        units::Quantity,
    };
    use lodestone_events::{Event, EventKind, EventLine};
    use std::sync::Arc;

    #[test]
    fn the_user_encoder_reads_the_latest_known_events_in_the_width_of_the_items() {
        const DIMENSIONS: usize = 3;
        let (keys, mut catalog) = (ItemKeys::default(), Catalog::default());
        let id = |item: usize| ItemId::parse(&format!("i{item}")).unwrap();
        for item in 0..5 {
            let vectors = ItemVectors::new(&[item as f32; DIMENSIONS], &[0.0; 2]);
            catalog.upsert(&keys, Arc::new(Item::titled(id(item), "title")), vectors);
        }
        catalog.delete(&keys, &id(3));
        let view = |item: usize| {
            let line = EventLine { item: id(item), quantity: Quantity::ONE, price: None, rank: 0 };
            let (event, user) = (EventId::parse("e").unwrap(), UserId::visitor("v").unwrap());
            Event { lines: vec![line], ..Event::new(event, EventKind::View, user, UnixMillis(1000 * item as i64)) }
        };
        let history = History::default().with_context(&(0..5).map(view).collect::<Vec<_>>(), &keys);
        for (events_max, items) in
            [(1, &[4.0][..]), (2, &[2.0, 4.0]), (4, &[0.0, 1.0, 2.0, 4.0]), (9, &[0.0, 1.0, 2.0, 4.0])]
        {
            let input = user_input(&history, &catalog, UnixMillis(5000), events_max);
            let expected: Vec<f32> = items.iter().flat_map(|item| [*item; DIMENSIONS]).collect();
            assert_eq!(input.items, expected, "at most {events_max} events");
            assert_eq!(input.positions, (0..items.len() as i64).rev().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_text_is_projected_to_a_unit_vector_of_the_user_space() {
        let projection =
            TextProjection { matrix: vec![3.0, 0.0, 4.0, 0.0, 1.0, 0.0], query_dimension: 2, user_dimension: 3 };
        assert_eq!(project(&[1.0, 0.0], &projection), [0.6, 0.0, 0.8]);
        assert_eq!(project(&[0.0, 2.0], &projection), [0.0, 1.0, 0.0]);
        assert_eq!(project(&[0.0, 0.0], &projection), [1.0, 0.0, 0.0], "an arbitrary one for a text without words");
    }
}
