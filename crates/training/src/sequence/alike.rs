//! Histories that are alike: what did those choose who chose the same items? (V-SKNN and STAN: Ludewig & Jannach 2018, Garg
//! et al. 2019.)
use super::pairs::{ItemPairs, Scores};

/// Past histories, found by their items.
#[derive(Debug, Clone)]
pub struct Alike {
    histories: Vec<Vec<u32>>,
    /// By item: the histories with it, latest first.
    postings: Vec<Vec<u32>>,
    /// ln(histories / histories with the item).
    rarity: Vec<f32>,
    /// Weight of an item of the asking history in units of the one after it.
    pub decay: f32,
    /// Half of what a neighbour counts is gone after so many later histories; infinite: they have no order in time.
    pub half_life: f32,
}

/// Histories of one item that are looked at.
const POSTINGS_MAX: usize = 800;
/// Most alike histories that are asked.
const NEIGHBOURS: usize = 300;
/// Items of a history at most; the latest.
const ITEMS_MAX: usize = 100;

impl Alike {
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

    /// Adds to `scores` what the most alike histories chose, the more the nearer to what they share with `history`.
    /// `matches` is room for one number of each past history, empty before and after.
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
        let asking = &history[history.len().saturating_sub(ITEMS_MAX)..];
        let count = self.histories.len();
        let best = matches.best(NEIGHBOURS, |_| false);
        for (index, likeness) in best {
            let other = &self.histories[index as usize];
            let age = (count - 1 - index as usize) as f32;
            let weight = likeness / (other.len() as f32).sqrt() * (-age / self.half_life).exp2();
            let shared = other.iter().rposition(|item| asking.contains(item)).unwrap_or(0);
            for (place, item) in other.iter().enumerate() {
                scores.add(*item, weight / (1.0 + 0.5 * place.abs_diff(shared) as f32));
            }
        }
        matches.clear();
    }

    /// Room for [`Self::add_history`].
    pub fn empty_matches(&self) -> Scores {
        Scores::new(self.histories.len())
    }
}

/// Every item goes with itself: read with a decay, how often and how lately a history has it.
pub fn itself(item_count: usize) -> ItemPairs {
    ItemPairs::new(item_count, (0..item_count as u32).map(|item| (item, item, 1.0)).collect(), 1)
}
