//! What goes with what: tables from an item to others with weights, counted in histories.
use std::cmp::Ordering;

/// From an item, to an item, weight.
pub type Triple = (u32, u32, f32);

/// Sorts by pair and adds up the weights of each.
fn merge(triples: &mut Vec<Triple>) {
    // Stable: weights of a pair are added in the order in which they were counted.
    triples.sort_by_key(|(from, to, _)| (*from, *to));
    triples.dedup_by(|next, first| {
        let same = (next.0, next.1) == (first.0, first.1);
        if same {
            first.2 += next.2;
        }
        same
    });
}

/// Pairs that are being counted; equal ones are merged now and then, so that memory follows the distinct pairs.
struct Counted {
    triples: Vec<Triple>,
    merge_at: usize,
}

impl Counted {
    fn new() -> Self {
        Self { triples: Vec::new(), merge_at: 1 << 24 }
    }

    fn add(&mut self, from: u32, to: u32, weight: f32) {
        if self.triples.len() >= self.merge_at {
            merge(&mut self.triples);
            self.merge_at = self.merge_at.max(2 * self.triples.len());
        }
        self.triples.push((from, to, weight));
    }
}

/// For each item others with a weight, heaviest first.
#[derive(Debug, Clone, Default)]
pub struct ItemPairs {
    starts: Vec<usize>,
    items: Vec<u32>,
    weights: Vec<f32>,
}

impl ItemPairs {
    /// Adds up `(from, to, weight)` and keeps the heaviest `keep` of each item.
    pub fn new(item_count: usize, mut triples: Vec<Triple>, keep: usize) -> Self {
        merge(&mut triples);
        let mut pairs = Self { starts: vec![0], ..Self::default() };
        let mut rest = &mut triples[..];
        for item in 0..item_count as u32 {
            let (row, after) = rest.split_at_mut(rest.partition_point(|(from, ..)| *from <= item));
            rest = after;
            row.sort_unstable_by(|a, b| b.2.total_cmp(&a.2).then(a.1.cmp(&b.1)));
            for (_, to, weight) in row.iter().take(keep) {
                pairs.items.push(*to);
                pairs.weights.push(*weight);
            }
            pairs.starts.push(pairs.items.len());
        }
        pairs
    }

    pub fn row(&self, item: u32) -> impl Iterator<Item = (u32, f32)> {
        let range = self.starts[item as usize]..self.starts[item as usize + 1];
        self.items[range.clone()].iter().copied().zip(self.weights[range].iter().copied())
    }

    /// Mean weight; 1 without pairs.
    pub fn usual_weight(&self) -> f32 {
        let sum: f64 = self.weights.iter().map(|weight| f64::from(*weight)).sum();
        if self.weights.is_empty() { 1.0 } else { (sum / self.weights.len() as f64) as f32 }
    }

    /// Changes each weight by its pair.
    pub fn map(mut self, mut change: impl FnMut(u32, u32, f32) -> f32) -> Self {
        for from in 0..self.starts.len() - 1 {
            for place in self.starts[from]..self.starts[from + 1] {
                self.weights[place] = change(from as u32, self.items[place], self.weights[place]);
            }
        }
        self
    }
}

/// How often items follow each other: a pair `distance` steps apart adds 1 / distance to what comes later, and `reverse` of
/// it to what came before, within `window` steps. `weight` is that of the history with this index.
pub fn transitions(
    histories: &[&[u32]],
    item_count: usize,
    window: usize,
    reverse: f32,
    keep: usize,
    weight: impl Fn(usize) -> f32,
) -> ItemPairs {
    let mut counted = Counted::new();
    for (index, history) in histories.iter().enumerate() {
        for (place, from) in history.iter().enumerate() {
            for (step, to) in history[place + 1..].iter().take(window).enumerate() {
                let value = weight(index) / (step + 1) as f32;
                if from != to {
                    counted.add(*from, *to, value);
                    if reverse > 0.0 {
                        counted.add(*to, *from, reverse * value);
                    }
                }
            }
        }
    }
    ItemPairs::new(item_count, counted.triples, keep)
}

/// Item-to-item cosine (Sarwar et al. 2001): in how many histories both are, over the root of the histories of each, with
/// `shrink` histories added to each so that two rare items are not alike by one accident.
pub fn neighbours(histories: &[&[u32]], item_count: usize, window: usize, shrink: f32, keep: usize) -> ItemPairs {
    let mut counts = vec![0.0f32; item_count];
    histories.iter().flat_map(|history| history.iter()).for_each(|item| counts[*item as usize] += 1.0);
    let mut counted = Counted::new();
    for history in histories {
        for (place, from) in history.iter().enumerate() {
            for to in history[place + 1..].iter().take(window).filter(|to| *to != from) {
                let scale = ((counts[*from as usize] + shrink) * (counts[*to as usize] + shrink)).sqrt();
                counted.add(*from, *to, 1.0 / scale);
                counted.add(*to, *from, 1.0 / scale);
            }
        }
    }
    ItemPairs::new(item_count, counted.triples, keep)
}

/// Two steps of `pairs`, each row made to sum to 1: what goes with what goes with an item.
pub fn two_steps(pairs: &ItemPairs, item_count: usize, keep: usize) -> ItemPairs {
    let sums: Vec<f32> = (0..item_count as u32).map(|item| pairs.row(item).map(|(_, weight)| weight).sum()).collect();
    let mut scores = Scores::new(item_count);
    let mut out = ItemPairs { starts: vec![0], ..ItemPairs::default() };
    for item in 0..item_count as u32 {
        for (middle, first) in pairs.row(item).take(50) {
            let share = first / (sums[item as usize] * sums[middle as usize]).max(1e-9);
            for (end, second) in pairs.row(middle).take(50).filter(|(end, _)| *end != item) {
                scores.add(end, share * second);
            }
        }
        for (end, weight) in scores.best(keep, |_| false) {
            out.items.push(end);
            out.weights.push(weight);
        }
        out.starts.push(out.items.len());
        scores.clear();
    }
    out
}

/// Scores of all items, most of them 0.
#[derive(Debug, Clone)]
pub struct Scores {
    values: Vec<f32>,
    touched: Vec<u32>,
}

impl Scores {
    pub fn new(item_count: usize) -> Self {
        Self { values: vec![0.0; item_count], touched: Vec::new() }
    }

    pub fn clear(&mut self) {
        self.touched.drain(..).for_each(|item| self.values[item as usize] = 0.0);
    }

    /// Adds a positive weight.
    pub fn add(&mut self, item: u32, weight: f32) {
        let value = &mut self.values[item as usize];
        if *value == 0.0 {
            self.touched.push(item);
        }
        *value += weight;
    }

    pub fn get(&self, item: u32) -> f32 {
        self.values[item as usize]
    }

    /// Items with a score.
    pub fn touched(&self) -> &[u32] {
        &self.touched
    }

    /// Adds the rows of a history's items, the latest with weight 1 and each earlier one `decay` of the next. Items of no
    /// more than a thousandth are left out.
    pub fn add_history(&mut self, pairs: &ItemPairs, history: &[u32], decay: f32) {
        let mut share = 1.0;
        for item in history.iter().rev() {
            for (other, weight) in pairs.row(*item) {
                self.add(other, share * weight);
            }
            share *= decay;
            if share < 1e-3 {
                break;
            }
        }
    }

    /// The best `count` items that are not skipped, best first.
    pub fn best(&self, count: usize, skip: impl Fn(u32) -> bool) -> Vec<(u32, f32)> {
        let scored = self.touched.iter().filter(|item| !skip(**item)).map(|item| (*item, self.get(*item)));
        best(scored.collect(), count)
    }
}

/// The best `count`, best first; equal scores by item.
pub fn best(mut scored: Vec<(u32, f32)>, count: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
    if scored.len() > count && count > 0 {
        scored.select_nth_unstable_by(count - 1, order);
    }
    scored.truncate(count);
    scored.sort_unstable_by(order);
    scored
}
