//! The sources of candidates, the union of what they find, and the features by which a blend orders it.
use super::{
    alike::Alike,
    blend::Lists,
    encoder::{SequenceEncoder, logits},
    pairs::{ItemPairs, Scores, best},
    text::TermVectors,
    transformer::Tokens,
};
use crate::{
    Progress,
    kernels::{dot, exponentials},
};
use rayon::prelude::*;

/// A table from item to item, read for the latest items of a history.
#[derive(Debug, Clone)]
pub struct Table {
    pub name: &'static str,
    pub pairs: ItemPairs,
    /// Weight of an item of the history in units of the one after it.
    pub decay: f32,
    /// Is asked for candidates; else it only gives a feature.
    pub retrieves: bool,
    /// Added to a score before its logarithm: a tenth of a usual weight.
    floor: f32,
}

impl Table {
    pub fn new(name: &'static str, pairs: ItemPairs, decay: f32, retrieves: bool) -> Self {
        let floor = 0.1 * pairs.usual_weight();
        Self { name, pairs, decay, retrieves, floor }
    }
}

/// Likeness by terms: candidates from the table of the most alike, features from the terms themselves.
#[derive(Debug, Clone)]
pub struct TermSource {
    pub name: &'static str,
    pub vectors: TermVectors,
    pub alike: ItemPairs,
    pub decay: f32,
}

/// A history and the item that came next.
pub type Asked<'a> = (&'a [u32], u32);

/// What is known of a catalogue and of how users went through it.
#[derive(Debug, Clone)]
pub struct Sources {
    pub encoders: Vec<SequenceEncoder>,
    pub tables: Vec<Table>,
    pub terms: Vec<TermSource>,
    pub alike: Option<Alike>,
    /// How often each item was chosen.
    pub popularity: Vec<f32>,
    /// The same, the latest choices counting the most; empty where the order in time is not known.
    pub recent: Vec<f32>,
    /// Items of the history may be chosen again.
    pub repeats: bool,
    /// Candidates of each source.
    pub per_source: usize,
}

/// Rank constant of reciprocal-rank fusion (Cormack, Clarke & Büttcher 2009).
const FUSION_RANK: f32 = 60.0;
/// Users whose logits are computed in one product.
const USERS: usize = 32;
/// Added to what alike histories say before its logarithm: a tenth of one of them.
const ALIKE_FLOOR: f32 = 0.1;
/// Added to cosines before their logarithm.
const COSINE_FLOOR: f32 = 0.01;

/// What the sources say to one history.
pub struct Found<'a> {
    sources: &'a Sources,
    history: &'a [u32],
    /// Logits of all items by encoder; -∞ for those that may not be chosen.
    encoded: &'a [Vec<f32>],
    scores: &'a [Scores],
    alike: &'a Scores,
    /// By source with a name, the best first.
    lists: Vec<Vec<(u32, f32)>>,
    /// The union, best by reciprocal-rank fusion first.
    pub candidates: Vec<u32>,
    /// `[candidates × width]`.
    pub features: Vec<f32>,
}

/// Memory of one thread.
struct Room {
    tables: Vec<Scores>,
    matches: Scores,
    alike: Scores,
    /// Logits of some users with all items.
    block: Vec<f32>,
}

impl Sources {
    /// Names of the sources that are asked for candidates.
    pub fn names(&self) -> Vec<&'static str> {
        let encoder = (!self.encoders.is_empty()).then_some("encoder");
        let tables = self.tables.iter().filter(|table| table.retrieves).map(|table| table.name);
        let alike = self.alike.as_ref().map(|_| "alike");
        let terms = self.terms.iter().map(|terms| terms.name);
        encoder.into_iter().chain(tables).chain(alike).chain(terms).chain(["popularity"]).collect()
    }

    pub fn feature_names(&self) -> Vec<String> {
        let encoders = (0..self.encoders.len())
            .flat_map(|index| [format!("encoder {index}"), format!("encoder {index}, vector of the latest item")]);
        let tables = self
            .tables
            .iter()
            .flat_map(|table| [format!("{} × {:.1}", table.name, table.decay), format!("{}, latest item", table.name)]);
        let terms = self.terms.iter().flat_map(|terms| {
            [terms.name.to_owned(), format!("{}, latest item", terms.name), format!("{}, most alike", terms.name)]
        });
        encoders
            .chain(tables)
            .chain(self.alike.as_ref().map(|_| "alike".to_owned()))
            .chain(terms)
            .chain((!self.recent.is_empty()).then(|| "recent".to_owned()))
            .chain(["popularity".to_owned(), "fusion".to_owned(), "items of the history".to_owned()])
            .collect()
    }

    /// Asks all sources for each history and gives what `visit` makes of it, in order.
    pub fn ask<R: Send>(&self, histories: &[&[u32]], visit: impl Fn(usize, &Found) -> R + Sync) -> Vec<R> {
        let item_count = self.popularity.len();
        let counts = if self.recent.is_empty() { &self.popularity } else { &self.recent };
        let popular: Vec<u32> =
            best(counts.iter().enumerate().map(|(item, count)| (item as u32, *count)).collect(), self.per_source + 200)
                .into_iter()
                .map(|(item, _)| item)
                .collect();
        let tokens: Vec<Tokens> = histories.iter().map(|history| Tokens::from(*history)).collect();
        let users: Vec<Vec<f32>> = self.encoders.iter().map(|encoder| encoder.encode(&tokens)).collect();
        let chunks: Vec<usize> = (0..histories.len()).step_by(USERS).collect();
        let room = || Room {
            tables: vec![Scores::new(item_count); self.tables.len()],
            matches: self.alike.as_ref().map_or_else(|| Scores::new(0), Alike::empty_matches),
            alike: Scores::new(item_count),
            block: Vec::new(),
        };
        let results: Vec<Vec<R>> = chunks
            .into_par_iter()
            .map_init(room, |room, begin| {
                let end = (begin + USERS).min(histories.len());
                let mut encoded: Vec<Vec<Vec<f32>>> = vec![Vec::new(); end - begin];
                for (encoder, users) in self.encoders.iter().zip(&users) {
                    let d = encoder.width();
                    let block = &mut room.block;
                    block.resize((end - begin) * item_count, 0.0);
                    logits(block, &users[begin * d..end * d], encoder.item_vectors(), d);
                    encoded
                        .iter_mut()
                        .zip(block.chunks_exact(item_count))
                        .for_each(|(all, row)| all.push(row.to_vec()));
                }
                let visited = (begin..end).zip(&mut encoded).map(|(index, encoded)| {
                    let found = self.find(histories[index], encoded, room, &popular);
                    visit(index, &found)
                });
                visited.collect()
            })
            .collect();
        results.into_iter().flatten().collect()
    }

    fn find<'a>(
        &'a self,
        history: &'a [u32],
        encoded: &'a mut [Vec<f32>],
        room: &'a mut Room,
        popular: &[u32],
    ) -> Found<'a> {
        let mut seen: Vec<u32> = if self.repeats { Vec::new() } else { history.to_vec() };
        seen.sort_unstable();
        let is_seen = |item: u32| seen.binary_search(&item).is_ok();
        let mut lists = Vec::new();
        for logits in encoded.iter_mut() {
            seen.iter().for_each(|item| logits[*item as usize] = f32::NEG_INFINITY);
            log_softmax(logits);
        }
        if let Some((first, others)) = encoded.split_first() {
            let all = (0..first.len())
                .map(|item| (item as u32, first[item] + others.iter().map(|other| other[item]).sum::<f32>()));
            lists.push(best(all.filter(|(_, score)| *score > f32::NEG_INFINITY).collect(), self.per_source));
        }
        for (table, scores) in self.tables.iter().zip(room.tables.iter_mut()) {
            scores.clear();
            scores.add_history(&table.pairs, history, table.decay);
            if table.retrieves {
                lists.push(scores.best(self.per_source, is_seen));
            }
        }
        room.alike.clear();
        if let Some(alike) = &self.alike {
            alike.add_history(history, &mut room.matches, &mut room.alike);
            lists.push(room.alike.best(self.per_source, is_seen));
        }
        let mut alike = Scores::new(if self.terms.is_empty() { 0 } else { self.popularity.len() });
        for terms in &self.terms {
            alike.clear();
            alike.add_history(&terms.alike, history, terms.decay);
            lists.push(alike.best(self.per_source, is_seen));
        }
        let popular = popular.iter().filter(|item| !is_seen(**item)).take(self.per_source);
        lists.push(popular.map(|item| (*item, self.popularity[*item as usize])).collect());
        let mut found = Found {
            sources: self,
            history,
            encoded,
            scores: &room.tables,
            alike: &room.alike,
            lists,
            candidates: Vec::new(),
            features: Vec::new(),
        };
        found.unite();
        found
    }
}

/// Logits to ln of probabilities, in place; -∞ stays.
fn log_softmax(logits: &mut [f32]) {
    let mut copy = logits.to_vec();
    let (peak, sum) = exponentials(&mut copy);
    let shift = peak + sum.ln();
    logits.iter_mut().for_each(|logit| *logit -= shift);
}

impl Found<'_> {
    fn unite(&mut self) {
        let mut fused: Vec<(u32, f32)> = Vec::new();
        for list in &self.lists {
            fused.extend(
                list.iter().enumerate().map(|(rank, (item, _))| (*item, 1.0 / (FUSION_RANK + rank as f32 + 1.0))),
            );
        }
        fused.sort_unstable_by_key(|(item, _)| *item);
        fused.dedup_by(|next, first| {
            let same = next.0 == first.0;
            if same {
                first.1 += next.1;
            }
            same
        });
        let count = fused.len();
        let fused = best(fused, count);
        self.candidates = fused.iter().map(|(item, _)| *item).collect();
        self.features = self.features(&fused);
    }

    fn features(&self, fused: &[(u32, f32)]) -> Vec<f32> {
        let sources = self.sources;
        let latest = self.history.last().copied();
        let mut columns: Vec<Vec<f32>> = Vec::new();
        let items = || fused.iter().map(|(item, _)| *item);
        for (encoder, logits) in sources.encoders.iter().zip(self.encoded) {
            let d = encoder.width();
            let vector = |item: u32| &encoder.item_vectors()[item as usize * d..][..d];
            columns.push(items().map(|item| logits[item as usize].max(-30.0)).collect());
            columns
                .push(items().map(|item| latest.map_or(0.0, |latest| cosine(vector(latest), vector(item)))).collect());
        }
        let mut one = Scores::new(sources.popularity.len());
        for (table, scores) in sources.tables.iter().zip(self.scores) {
            columns.push(items().map(|item| (scores.get(item) + table.floor).ln()).collect());
            one.clear();
            latest.into_iter().for_each(|latest| one.add_history(&table.pairs, &[latest], 1.0));
            columns.push(items().map(|item| (one.get(item) + table.floor).ln()).collect());
        }
        if sources.alike.is_some() {
            columns.push(items().map(|item| (self.alike.get(item) + ALIKE_FLOOR).ln()).collect());
        }
        for terms in &sources.terms {
            columns.extend(self.likeness(terms, fused));
        }
        if !sources.recent.is_empty() {
            columns.push(items().map(|item| (1.0 + sources.recent[item as usize]).ln()).collect());
        }
        columns.push(items().map(|item| (1.0 + sources.popularity[item as usize]).ln()).collect());
        columns.push(fused.iter().map(|(_, score)| *score * FUSION_RANK).collect());
        columns.push(vec![(1.0 + self.history.len() as f32).ln(); fused.len()]);
        let width = columns.len();
        let mut features = vec![0.0; fused.len() * width];
        for (column, values) in columns.iter().enumerate() {
            values.iter().enumerate().for_each(|(row, value)| features[row * width + column] = *value);
        }
        features
    }

    /// Likeness to the whole history, to its latest item, and to the one of its latest ten that is most alike.
    fn likeness(&self, terms: &TermSource, fused: &[(u32, f32)]) -> [Vec<f32>; 3] {
        let mut profile = terms.vectors.empty_profile();
        terms.vectors.profile(self.history, terms.decay, &mut profile);
        let against = |profile: &Scores| -> Vec<f32> {
            fused.iter().map(|(item, _)| terms.vectors.against(profile, *item)).collect()
        };
        let whole = against(&profile).into_iter().map(|value| (COSINE_FLOOR + value).ln()).collect();
        let (mut latest, mut most) = (vec![0.0; fused.len()], vec![0.0f32; fused.len()]);
        for (age, item) in self.history.iter().rev().take(10).enumerate() {
            profile.clear();
            terms.vectors.profile(&[*item], 1.0, &mut profile);
            let values = against(&profile);
            most.iter_mut().zip(&values).for_each(|(most, value)| *most = most.max(*value));
            if age == 0 {
                latest = values;
            }
        }
        [whole, latest, most]
    }

    /// Rank of an item, from 1, among all that a source scores; none where it has no score. Equal scores count against it.
    pub fn rank_alone(&self, source: usize, item: u32) -> Option<usize> {
        let place = self.lists[source].iter().position(|(other, _)| *other == item)?;
        let score = self.lists[source][place].1;
        Some(self.lists[source].iter().filter(|(_, other)| *other >= score).count())
    }

    /// Rank of an item in the union, from 1.
    pub fn rank_fused(&self, item: u32) -> Option<usize> {
        self.candidates.iter().position(|other| *other == item).map(|place| place + 1)
    }

    /// Rank of an item, from 1, by scores of the candidates. Equal scores count against it.
    pub fn rank_by(&self, scores: &[f32], item: u32) -> Option<usize> {
        let place = self.candidates.iter().position(|other| *other == item)?;
        Some(scores.iter().filter(|other| **other >= scores[place]).count())
    }
}

/// Histories that [`lists`] asks at most, spread evenly: the lists of more would not fit in memory.
const ASKED_MAX: usize = 25_000;

/// Lists of those asked whose next item is in the union: its candidates with features, the next item labelled.
pub fn lists(sources: &Sources, asked: &[Asked], progress: &mut dyn FnMut(Progress)) -> Lists {
    let mut lists = Lists::new(sources.feature_names().len());
    let every = asked.len().div_ceil(ASKED_MAX).max(1);
    let asked: Vec<Asked> = asked.iter().step_by(every).copied().collect();
    for (part, asked_part) in asked.chunks(LISTS_AT_A_TIME).enumerate() {
        let histories: Vec<&[u32]> = asked_part.iter().map(|(history, _)| *history).collect();
        let found = sources.ask(&histories, |index, found| {
            let next = asked_part[index].1;
            let labels: Vec<f32> = found.candidates.iter().map(|item| f32::from(u8::from(*item == next))).collect();
            labels.contains(&1.0).then(|| (found.features.clone(), labels))
        });
        found.into_iter().flatten().for_each(|(features, labels)| lists.push(&features, &labels));
        let done = (part * LISTS_AT_A_TIME + asked_part.len()).min(asked.len());
        progress(Progress { stage: "candidates", done, total: asked.len(), loss: f32::NAN });
    }
    lists
}

/// Histories between two steps of a progress bar.
const LISTS_AT_A_TIME: usize = 1024;

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-12)
}
