//! Candidate sources, the union of their candidates, and the features that the blend ranks it by.
use super::{
    blend::Lists,
    encoder::{SequenceEncoder, logits},
    pairs::{ItemPairs, Scores, best},
    samples::Repeats,
    similar_histories::SimilarHistories,
    text::TermVectors,
    transformer::Tokens,
};
use crate::{
    Progress,
    kernels::{dot, exponentials},
};
use rayon::prelude::*;

/// Whether a table contributes candidates or only features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableRole {
    Candidates,
    FeatureOnly,
}

/// An item-to-item table, read for the latest items of a history.
#[derive(Debug, Clone)]
pub struct Table {
    pub name: &'static str,
    pub pairs: ItemPairs,
    /// Weight of an item of the history as a share of its successor's.
    pub decay: f32,
    pub role: TableRole,
    /// Added to a score before its logarithm: a tenth of the mean weight.
    floor: f32,
}

impl Table {
    pub fn new(name: &'static str, pairs: ItemPairs, decay: f32, role: TableRole) -> Self {
        let floor = 0.1 * pairs.mean_weight();
        Self { name, pairs, decay, role, floor }
    }

    fn retrieves(&self) -> bool {
        self.role == TableRole::Candidates
    }
}

/// Similarity by terms: candidates from the table of the most similar items, features from the term vectors.
#[derive(Debug, Clone)]
pub struct TermSource {
    pub name: &'static str,
    pub vectors: TermVectors,
    /// The most similar items of each item.
    pub similar: ItemPairs,
    pub decay: f32,
}

/// A history and its next item, the target.
pub type NextItemQuery<'a> = (&'a [u32], u32);

/// All candidate sources and item statistics of one catalogue.
#[derive(Debug, Clone)]
pub struct Sources {
    pub encoders: Vec<SequenceEncoder>,
    pub tables: Vec<Table>,
    pub terms: Vec<TermSource>,
    pub histories: Option<SimilarHistories>,
    /// Interactions with each item.
    pub popularity: Vec<f32>,
    /// The same, weighted by recency; empty if the order in time is unknown.
    pub recent: Vec<f32>,
    pub repeats: Repeats,
    /// Most candidates of each source.
    pub per_source: usize,
}

/// Name of the source of similar histories.
const HISTORIES: &str = "similar histories";
/// Rank constant of reciprocal-rank fusion (Cormack, Clarke & Büttcher 2009).
const FUSION_RANK: f32 = 60.0;
/// Histories whose logits are computed in one matrix product.
const USERS: usize = 32;
/// Added to the score of the similar histories before its logarithm: a tenth of one history.
const HISTORIES_FLOOR: f32 = 0.1;
/// Added to cosines before their logarithm.
const COSINE_FLOOR: f32 = 0.01;

/// The candidates of one history, with their scores and features.
pub struct CandidateSet<'a> {
    sources: &'a Sources,
    history: &'a [u32],
    /// Log-probabilities of all items by encoder; -∞ for items that are excluded.
    encoded: &'a [Vec<f32>],
    /// Scores of each table.
    tables: &'a [Scores],
    /// Scores of the similar histories.
    histories: &'a Scores,
    /// The candidates of each source in the order of [`Sources::names`], best first.
    lists: Vec<Vec<(u32, f32)>>,
    /// The union of all sources, in the order of reciprocal-rank fusion.
    pub candidates: Vec<u32>,
    /// `[candidates × width]`.
    pub features: Vec<f32>,
}

/// Reusable memory of one thread.
struct Scratch {
    tables: Vec<Scores>,
    matches: Scores,
    histories: Scores,
    /// Logits of [`USERS`] histories with all items.
    block: Vec<f32>,
}

impl Sources {
    /// Returns the names of the sources that contribute candidates.
    pub fn names(&self) -> Vec<&'static str> {
        let encoder = (!self.encoders.is_empty()).then_some("encoder");
        let tables = self.tables.iter().filter(|table| table.retrieves()).map(|table| table.name);
        let histories = self.histories.as_ref().map(|_| HISTORIES);
        let terms = self.terms.iter().map(|terms| terms.name);
        encoder.into_iter().chain(tables).chain(histories).chain(terms).chain(["popularity"]).collect()
    }

    pub fn feature_names(&self) -> Vec<String> {
        let encoders = (0..self.encoders.len())
            .flat_map(|index| [format!("encoder {index}"), format!("encoder {index}, vector of the latest item")]);
        let tables = self
            .tables
            .iter()
            .flat_map(|table| [format!("{} × {:.1}", table.name, table.decay), format!("{}, latest item", table.name)]);
        let terms = self.terms.iter().flat_map(|terms| {
            [terms.name.to_owned(), format!("{}, latest item", terms.name), format!("{}, most similar", terms.name)]
        });
        encoders
            .chain(tables)
            .chain(self.histories.as_ref().map(|_| HISTORIES.to_owned()))
            .chain(terms)
            .chain((!self.recent.is_empty()).then(|| "recent".to_owned()))
            .chain(["popularity".to_owned(), "fusion".to_owned(), "items of the history".to_owned()])
            .collect()
    }

    /// Retrieves the candidates of each history and returns the results of `visit`, in the order of the histories.
    pub fn retrieve<R: Send>(&self, histories: &[&[u32]], visit: impl Fn(usize, &CandidateSet) -> R + Sync) -> Vec<R> {
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
        let scratch = || Scratch {
            tables: vec![Scores::new(item_count); self.tables.len()],
            matches: self.histories.as_ref().map_or_else(|| Scores::new(0), SimilarHistories::empty_matches),
            histories: Scores::new(item_count),
            block: Vec::new(),
        };
        let results: Vec<Vec<R>> = chunks
            .into_par_iter()
            .map_init(scratch, |scratch, begin| {
                let end = (begin + USERS).min(histories.len());
                let mut encoded: Vec<Vec<Vec<f32>>> = vec![Vec::new(); end - begin];
                for (encoder, users) in self.encoders.iter().zip(&users) {
                    let d = encoder.width();
                    let block = &mut scratch.block;
                    block.resize((end - begin) * item_count, 0.0);
                    logits(block, &users[begin * d..end * d], encoder.item_vectors(), d);
                    encoded
                        .iter_mut()
                        .zip(block.chunks_exact(item_count))
                        .for_each(|(all, row)| all.push(row.to_vec()));
                }
                let visited = (begin..end).zip(&mut encoded).map(|(index, encoded)| {
                    let candidates = self.candidates(histories[index], encoded, scratch, &popular);
                    visit(index, &candidates)
                });
                visited.collect()
            })
            .collect();
        results.into_iter().flatten().collect()
    }

    fn candidates<'a>(
        &'a self,
        history: &'a [u32],
        encoded: &'a mut [Vec<f32>],
        scratch: &'a mut Scratch,
        popular: &[u32],
    ) -> CandidateSet<'a> {
        let mut seen: Vec<u32> = match self.repeats {
            Repeats::Allowed => Vec::new(),
            Repeats::Excluded => history.to_vec(),
        };
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
        for (table, scores) in self.tables.iter().zip(scratch.tables.iter_mut()) {
            scores.clear();
            scores.add_history(&table.pairs, history, table.decay);
            if table.retrieves() {
                lists.push(scores.best(self.per_source, is_seen));
            }
        }
        scratch.histories.clear();
        if let Some(similar) = &self.histories {
            similar.add_history(history, &mut scratch.matches, &mut scratch.histories);
            lists.push(scratch.histories.best(self.per_source, is_seen));
        }
        let mut similar = Scores::new(if self.terms.is_empty() { 0 } else { self.popularity.len() });
        for terms in &self.terms {
            similar.clear();
            similar.add_history(&terms.similar, history, terms.decay);
            lists.push(similar.best(self.per_source, is_seen));
        }
        let popular = popular.iter().filter(|item| !is_seen(**item)).take(self.per_source);
        lists.push(popular.map(|item| (*item, self.popularity[*item as usize])).collect());
        let mut candidates = CandidateSet {
            sources: self,
            history,
            encoded,
            tables: &scratch.tables,
            histories: &scratch.histories,
            lists,
            candidates: Vec::new(),
            features: Vec::new(),
        };
        candidates.unite();
        candidates
    }
}

/// Turns logits into log-probabilities, in place; -∞ stays.
fn log_softmax(logits: &mut [f32]) {
    let mut copy = logits.to_vec();
    let (peak, sum) = exponentials(&mut copy);
    let shift = peak + sum.ln();
    logits.iter_mut().for_each(|logit| *logit -= shift);
}

impl CandidateSet<'_> {
    /// Merges the lists by reciprocal-rank fusion and computes the features of the union.
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
        for (table, scores) in sources.tables.iter().zip(self.tables) {
            columns.push(items().map(|item| (scores.get(item) + table.floor).ln()).collect());
            one.clear();
            latest.into_iter().for_each(|latest| one.add_history(&table.pairs, &[latest], 1.0));
            columns.push(items().map(|item| (one.get(item) + table.floor).ln()).collect());
        }
        if sources.histories.is_some() {
            columns.push(items().map(|item| (self.histories.get(item) + HISTORIES_FLOOR).ln()).collect());
        }
        for terms in &sources.terms {
            columns.extend(self.similarities(terms, fused));
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

    /// Returns the similarity to the whole history, to its latest item, and to the most similar of its latest ten
    /// items.
    fn similarities(&self, terms: &TermSource, fused: &[(u32, f32)]) -> [Vec<f32>; 3] {
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

    /// Returns the rank of an item, from 1, in the list of one source, or `None` if the list lacks it. Equal scores
    /// count against the item.
    pub fn rank_alone(&self, source: usize, item: u32) -> Option<usize> {
        let (_, score) = *self.lists[source].iter().find(|(other, _)| *other == item)?;
        Some(self.lists[source].iter().filter(|(_, other)| *other >= score).count())
    }

    /// Returns the rank of an item in the union, from 1.
    pub fn rank_fused(&self, item: u32) -> Option<usize> {
        self.candidates.iter().position(|other| *other == item).map(|index| index + 1)
    }

    /// Returns the rank of an item, from 1, by scores of the candidates. Equal scores count against the item.
    pub fn rank_by(&self, scores: &[f32], item: u32) -> Option<usize> {
        let index = self.candidates.iter().position(|other| *other == item)?;
        Some(scores.iter().filter(|other| **other >= scores[index]).count())
    }
}

/// Most queries of [`lists`], spread evenly, because the lists of more would not fit in memory.
const QUERIES_MAX: usize = 25_000;

/// Returns the training lists of the ranker: for each query whose target is in the union, the candidates with their
/// features, the target labelled 1.
pub fn lists(sources: &Sources, queries: &[NextItemQuery], progress: &mut dyn FnMut(Progress)) -> Lists {
    let mut lists = Lists::new(sources.feature_names().len());
    let every = queries.len().div_ceil(QUERIES_MAX).max(1);
    let queries: Vec<NextItemQuery> = queries.iter().step_by(every).copied().collect();
    for (number, part) in queries.chunks(PART).enumerate() {
        let histories: Vec<&[u32]> = part.iter().map(|(history, _)| *history).collect();
        let labelled = sources.retrieve(&histories, |index, set| {
            let next = part[index].1;
            let labels: Vec<f32> = set.candidates.iter().map(|item| f32::from(u8::from(*item == next))).collect();
            labels.contains(&1.0).then(|| (set.features.clone(), labels))
        });
        labelled.into_iter().flatten().for_each(|(features, labels)| lists.push(&features, &labels));
        let done = (number * PART + part.len()).min(queries.len());
        progress(Progress { stage: "candidates", done, total: queries.len(), loss: f32::NAN });
    }
    lists
}

/// Queries between two progress reports.
const PART: usize = 1024;

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-12)
}
