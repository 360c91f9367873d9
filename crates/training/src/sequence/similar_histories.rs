//! Nearest-neighbour recommendation: scores the items of past histories that share items with a query history (V-SKNN
//! and STAN: Ludewig & Jannach 2018, Garg et al. 2019).
use super::pairs::Scores;

/// Past histories with an inverted index by item.
#[derive(Debug, Clone)]
pub struct SimilarHistories {
    histories: Vec<Vec<u32>>,
    /// The histories with each item, latest first.
    postings: Vec<Vec<u32>>,
    /// Inverse document frequency of each item: ln(histories / histories with the item).
    rarity: Vec<f32>,
    /// Weight of an item of the query history as a share of its successor's.
    pub decay: f32,
    /// Number of later histories after which a neighbour counts half; infinite: all count the same.
    pub half_life: f32,
}

/// Most histories read for one item, the latest.
const POSTINGS_MAX: usize = 800;
/// Most neighbours, the most similar histories.
const NEIGHBOURS: usize = 300;
/// Most items read of a history, the latest.
const ITEMS_MAX: usize = 100;

impl SimilarHistories {
    pub fn new(histories: &[&[u32]], item_count: usize, decay: f32, half_life: f32) -> Self {
        let mut postings = vec![Vec::new(); item_count];
        let mut kept = Vec::with_capacity(histories.len());
        for (index, history) in histories.iter().enumerate() {
            let latest = history[history.len().saturating_sub(ITEMS_MAX)..].to_vec();
            for item in &latest {
                let posting: &mut Vec<u32> = &mut postings[*item as usize];
                if posting.last() != Some(&(index as u32)) {
                    posting.push(index as u32);
                }
            }
            kept.push(latest);
        }
        let count = histories.len().max(1) as f32;
        let rarity = postings.iter().map(|posting| (count / (posting.len() as f32).max(1.0)).ln().max(0.1)).collect();
        postings.iter_mut().for_each(|posting| posting.reverse());
        Self { histories: kept, postings, rarity, decay, half_life }
    }

    /// Adds the items of the most similar histories to `scores`, with more weight the closer they are to the latest
    /// item shared with `history`. `matches` is scratch memory of [`Self::empty_matches`], empty before and after.
    pub fn add_history(&self, history: &[u32], matches: &mut Scores, scores: &mut Scores) {
        let mut share = 1.0;
        for item in history.iter().rev() {
            for index in self.postings[*item as usize].iter().take(POSTINGS_MAX) {
                matches.add(*index, share * self.rarity[*item as usize]);
            }
            share *= self.decay;
            if share < 0.01 {
                break;
            }
        }
        let query = &history[history.len().saturating_sub(ITEMS_MAX)..];
        let count = self.histories.len();
        let best = matches.best(NEIGHBOURS, |_| false);
        for (index, similarity) in best {
            let other = &self.histories[index as usize];
            let age = (count - 1 - index as usize) as f32;
            let weight = similarity / (other.len() as f32).sqrt() * (-age / self.half_life).exp2();
            let shared = other.iter().rposition(|item| query.contains(item)).unwrap_or(0);
            for (position, item) in other.iter().enumerate() {
                scores.add(*item, weight / (1.0 + 0.5 * position.abs_diff(shared) as f32));
            }
        }
        matches.clear();
    }

    /// Returns scratch memory for [`Self::add_history`].
    pub fn empty_matches(&self) -> Scores {
        Scores::new(self.histories.len())
    }
}
