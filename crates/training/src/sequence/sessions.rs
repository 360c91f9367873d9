//! Anonymous sessions in time order: the next click. The latest sessions teach the ranker and stop the encoder; then the
//! counts are made anew from all sessions.
use super::{
    Pause, SequenceError,
    alike::{Alike, itself},
    blend::{Blend, BlendConfig, train_best_blend},
    encoder::encoder_quality,
    fit::{EncoderConfig, train_encoder},
    latest,
    pairs::{neighbours, transitions, two_steps},
    samples::{ItemText, next_items, windows},
    sources::{Asked, Sources, Table, lists},
};
use crate::Progress;

/// How a [`SessionModel`] is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionConfig {
    pub encoder: EncoderConfig,
    pub blend: BlendConfig,
    /// Candidates of each source.
    pub per_source: usize,
}

impl SessionConfig {
    /// Settings for data of this size.
    pub fn for_data(sessions: &[&[u32]], item_count: usize, threads: usize, seed: u64) -> Self {
        Self {
            encoder: EncoderConfig::for_data(sessions, item_count, threads, seed),
            blend: BlendConfig { seed, ..BlendConfig::default() },
            per_source: 100,
        }
    }
}

/// What answers the sessions that come after those that it learned from.
#[derive(Debug, Clone)]
pub struct SessionModel {
    pub sources: Sources,
    pub blend: Blend,
    /// Epochs until the encoder was at its best.
    pub epochs: usize,
}

/// Share of the sessions, the latest, that is held back to learn the ranker from.
const HELD_BACK: f64 = 0.04;
/// Prefixes that the ranker learns from at most.
const LISTS_MAX: usize = 15_000;
/// Half of the weight of a session is gone after this share of all, in what counts the latest the most.
const HALF_LIFE: f32 = 0.1;

/// Counts of sessions in time order: all sources but the encoder. An item of the session may come again where that happens.
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
    let repeats =
        sessions.iter().any(|session| (1..session.len()).any(|place| session[..place].contains(&session[place])));
    let both_ways = transitions(sessions, item_count, 10, 0.5, 500, |_| 1.0);
    let mut tables = vec![
        Table::new("two steps", two_steps(&both_ways, item_count, 200), 0.6, true),
        Table::new("transitions", both_ways, 0.6, true),
        Table::new("transitions of late", transitions(sessions, item_count, 10, 0.5, 300, weight), 0.6, true),
        Table::new("onwards", transitions(sessions, item_count, 2, 0.0, 300, |_| 1.0), 0.3, false),
        Table::new("onwards of late", transitions(sessions, item_count, 1, 0.0, 300, weight), 0.3, false),
        Table::new("neighbours", neighbours(sessions, item_count, 30, 5.0, 500), 0.8, true),
    ];
    if repeats {
        tables.push(Table::new("repeats", itself(item_count), 0.7, true));
    }
    let alike = Some(Alike::new(sessions, item_count, 0.7, 4.0 * half_life));
    Sources { encoders: Vec::new(), tables, terms: Vec::new(), alike, popularity, recent, repeats, per_source }
}

/// Every prefix of every session, with what came next.
pub fn prefixes<'a>(sessions: &[&'a [u32]]) -> Vec<Asked<'a>> {
    let each = sessions.iter().flat_map(|session| (1..session.len()).map(|end| (&session[..end], session[end])));
    each.collect()
}

/// Learns from sessions in time order.
pub fn train_sessions(
    sessions: &[&[u32]],
    item_count: usize,
    config: &SessionConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<SessionModel, SequenceError> {
    let sessions: Vec<&[u32]> = sessions.iter().map(|session| latest(session)).collect();
    let held = ((sessions.len() as f64 * HELD_BACK) as usize).max(1).min(sessions.len());
    let (early, late) = sessions.split_at(sessions.len() - held);
    let asked = prefixes(late);
    let every = asked.len().div_ceil(LISTS_MAX).max(1);
    let asked: Vec<Asked> = asked.into_iter().step_by(every).collect();
    let longest = config.encoder.shape.positions;
    let text = ItemText::default();
    let trained = train_encoder(
        &next_items(&windows(early, longest)),
        item_count,
        &text,
        &config.encoder,
        &mut Pause::default(),
        &mut |encoder| encoder_quality(encoder, &asked, true),
        progress,
    )?;
    let mut sources = session_sources(early, item_count, config.per_source);
    sources.encoders = vec![trained.encoder.clone()];
    let blend = train_best_blend(lists(&sources, &asked, progress), &config.blend, progress)?;
    // The same sources as those that the ranker knows, from all sessions.
    let repeats = sources.repeats;
    let mut sources = session_sources(&sessions, item_count, config.per_source);
    if sources.repeats != repeats {
        sources = session_sources(early, item_count, config.per_source);
    }
    sources.encoders = vec![trained.encoder];
    Ok(SessionModel { sources, blend, epochs: trained.epochs })
}
