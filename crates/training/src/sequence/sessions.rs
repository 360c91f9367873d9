//! Next-click prediction for anonymous sessions in time order. The latest sessions train the ranker and stop the
//! encoder; then the counts are rebuilt from all sessions.
use super::{
    Interruption, SequenceError,
    blend::{Blend, BlendConfig, train_best_blend},
    encoder::encoder_quality,
    encoder_config::EncoderConfig,
    fit::train_encoder,
    latest,
    pairs::{identity_pairs, neighbours, transitions, two_steps},
    samples::{ItemText, Repeats, next_items, windows},
    similar_histories::SimilarHistories,
    sources::{NextItemQuery, Sources, Table, TableRole, lists},
};
use crate::Progress;

/// How a [`SessionModel`] is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionConfig {
    pub encoder: EncoderConfig,
    pub blend: BlendConfig,
    /// Most candidates of each source.
    pub per_source: usize,
}

impl SessionConfig {
    /// Returns settings for these sessions.
    pub fn for_data(sessions: &[&[u32]], item_count: usize, threads: usize, seed: u64) -> Self {
        Self {
            encoder: EncoderConfig::for_data(sessions, item_count, threads, seed),
            blend: BlendConfig { seed, ..BlendConfig::default() },
            per_source: 100,
        }
    }
}

/// A model that predicts the next click of sessions later than those it was trained on.
#[derive(Debug, Clone)]
pub struct SessionModel {
    pub sources: Sources,
    pub blend: Blend,
    /// Epochs until the encoder's best validation score.
    pub epochs: usize,
}

/// Share of the sessions, the latest, that is held out to train the ranker.
const HELD_OUT: f64 = 0.04;
/// Most prefixes that train the ranker.
const LISTS_MAX: usize = 15_000;
/// Share of all sessions after which the recency weight of a session halves.
const HALF_LIFE: f32 = 0.1;

/// Returns all sources except the encoder, from sessions in time order. Items of the session may be recommended again
/// if any session repeats an item.
pub fn session_sources(sessions: &[&[u32]], item_count: usize, per_source: usize) -> Sources {
    let half_life = HALF_LIFE * sessions.len() as f32;
    let weight = |index: usize| (-((sessions.len() - 1 - index) as f32) / half_life).exp2();
    let (mut popularity, mut recent) = (vec![0.0; item_count], vec![0.0; item_count]);
    for (index, session) in sessions.iter().enumerate() {
        for item in session.iter() {
            popularity[*item as usize] += 1.0;
            recent[*item as usize] += weight(index);
        }
    }
    let has_repeats = |session: &&[u32]| (1..session.len()).any(|end| session[..end].contains(&session[end]));
    let repeats = if sessions.iter().any(has_repeats) { Repeats::Allowed } else { Repeats::Excluded };
    let both_directions = transitions(sessions, item_count, 10, 0.5, 500, |_| 1.0);
    let recent_transitions = transitions(sessions, item_count, 10, 0.5, 300, weight);
    let forward = transitions(sessions, item_count, 2, 0.0, 300, |_| 1.0);
    let recent_forward = transitions(sessions, item_count, 1, 0.0, 300, weight);
    let mut tables = vec![
        Table::new("two-step transitions", two_steps(&both_directions, item_count, 200), 0.6, TableRole::Candidates),
        Table::new("transitions", both_directions, 0.6, TableRole::Candidates),
        Table::new("recent transitions", recent_transitions, 0.6, TableRole::Candidates),
        Table::new("forward transitions", forward, 0.3, TableRole::FeatureOnly),
        Table::new("recent forward transitions", recent_forward, 0.3, TableRole::FeatureOnly),
        Table::new("neighbours", neighbours(sessions, item_count, 30, 5.0, 500), 0.8, TableRole::Candidates),
    ];
    if repeats == Repeats::Allowed {
        tables.push(Table::new("repeats", identity_pairs(item_count), 0.7, TableRole::Candidates));
    }
    let histories = Some(SimilarHistories::new(sessions, item_count, 0.7, 4.0 * half_life));
    Sources { encoders: Vec::new(), tables, terms: Vec::new(), histories, popularity, recent, repeats, per_source }
}

/// Returns every prefix of every session with its next item.
pub fn prefixes<'a>(sessions: &[&'a [u32]]) -> Vec<NextItemQuery<'a>> {
    let each = sessions.iter().flat_map(|session| (1..session.len()).map(|end| (&session[..end], session[end])));
    each.collect()
}

/// Trains a model on sessions in time order.
pub fn train_sessions(
    sessions: &[&[u32]],
    item_count: usize,
    config: &SessionConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<SessionModel, SequenceError> {
    let sessions: Vec<&[u32]> = sessions.iter().map(|session| latest(session)).collect();
    let held = ((sessions.len() as f64 * HELD_OUT) as usize).max(1).min(sessions.len());
    let (early, late) = sessions.split_at(sessions.len() - held);
    let queries = prefixes(late);
    let every = queries.len().div_ceil(LISTS_MAX).max(1);
    let queries: Vec<NextItemQuery> = queries.into_iter().step_by(every).collect();
    let longest = config.encoder.shape.positions;
    let text = ItemText::default();
    let trained = train_encoder(
        &next_items(&windows(early, longest)),
        item_count,
        &text,
        &config.encoder,
        &mut Interruption::default(),
        &mut |encoder| encoder_quality(encoder, &queries, Repeats::Allowed),
        progress,
    )?;
    let mut sources = session_sources(early, item_count, config.per_source);
    sources.encoders = vec![trained.encoder.clone()];
    let blend = train_best_blend(lists(&sources, &queries, progress), &config.blend, progress)?;
    // The ranker's features require the same sources, so the early sessions decide about repeats.
    let repeats = sources.repeats;
    let mut sources = session_sources(&sessions, item_count, config.per_source);
    if sources.repeats != repeats {
        sources = session_sources(early, item_count, config.per_source);
    }
    sources.encoders = vec![trained.encoder];
    Ok(SessionModel { sources, blend, epochs: trained.epochs })
}
