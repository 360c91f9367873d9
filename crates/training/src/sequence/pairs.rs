//! Co-occurrence counts: weighted tables from each item to others, counted in histories.
use std::cmp::Ordering;

/// An item, another item, and the weight of the pair.
pub type Triple = (u32, u32, f32);

/// Sorts by pair and sums the weights of equal pairs.
fn merge(triples: &mut Vec<Triple>) {
    // A stable sort, so that the weights of a pair are summed in insertion order.
    triples.sort_by_key(|(from, to, _)| (*from, *to));
    triples.dedup_by(|next, first| {
        let same = (next.0, next.1) == (first.0, first.1);
        if same {
            first.2 += next.2;
        }
        same
    });
}

/// Collects pairs and merges equal ones from time to time, so that memory depends on the number of distinct pairs.
struct PairCounter {
    triples: Vec<Triple>,
    merge_at: usize,
}

impl PairCounter {
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

/// The weighted pairs of each item, heaviest first, in compressed sparse rows.
#[derive(Debug, Clone, Default)]
pub struct ItemPairs {
    starts: Vec<usize>,
    items: Vec<u32>,
    weights: Vec<f32>,
}

impl ItemPairs {
    /// Sums the weights of equal pairs and keeps the heaviest `keep` of each item.
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

    /// Returns the mean weight, or 1 if there are no pairs.
    pub fn mean_weight(&self) -> f32 {
        let sum: f64 = self.weights.iter().map(|weight| f64::from(*weight)).sum();
        if self.weights.is_empty() { 1.0 } else { (sum / self.weights.len() as f64) as f32 }
    }
}

/// Counts transitions: a pair within `window` steps adds 1 / distance from the earlier to the later item, and `reverse`
/// times that in the opposite direction. `weight` returns the weight of the history with an index.
pub fn transitions(
    histories: &[&[u32]],
    item_count: usize,
    window: usize,
    reverse: f32,
    keep: usize,
    weight: impl Fn(usize) -> f32,
) -> ItemPairs {
    let mut counter = PairCounter::new();
    for (index, history) in histories.iter().enumerate() {
        for (position, from) in history.iter().enumerate() {
            for (step, to) in history[position + 1..].iter().take(window).enumerate() {
                let value = weight(index) / (step + 1) as f32;
                if from != to {
                    counter.add(*from, *to, value);
                    if reverse > 0.0 {
                        counter.add(*to, *from, reverse * value);
                    }
                }
            }
        }
    }
    ItemPairs::new(item_count, counter.triples, keep)
}

/// Returns the item-to-item cosine (Sarwar et al. 2001): the co-occurrences of two items within `window` steps, divided
/// by the geometric mean of their counts. `shrink` is added to each count, because one co-occurrence of two rare items
/// is weak evidence.
pub fn neighbours(histories: &[&[u32]], item_count: usize, window: usize, shrink: f32, keep: usize) -> ItemPairs {
    let mut counts = vec![0.0f32; item_count];
    histories.iter().flat_map(|history| history.iter()).for_each(|item| counts[*item as usize] += 1.0);
    let mut counter = PairCounter::new();
    for history in histories {
        for (position, from) in history.iter().enumerate() {
            for to in history[position + 1..].iter().take(window).filter(|to| *to != from) {
                let scale = ((counts[*from as usize] + shrink) * (counts[*to as usize] + shrink)).sqrt();
                counter.add(*from, *to, 1.0 / scale);
                counter.add(*to, *from, 1.0 / scale);
            }
        }
    }
    ItemPairs::new(item_count, counter.triples, keep)
}

/// Pairs each item with itself. Read with a decay, this table scores how often and how recently a history contains an
/// item.
pub fn identity_pairs(item_count: usize) -> ItemPairs {
    ItemPairs::new(item_count, (0..item_count as u32).map(|item| (item, item, 1.0)).collect(), 1)
}

/// Returns the second-order table: the pairs of each item's pairs, with the rows of `pairs` normalised to sum 1.
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

/// A sparse accumulator of scores by item.
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

    /// Returns the items with a score.
    pub fn touched(&self) -> &[u32] {
        &self.touched
    }

    /// Adds the rows of a history's items: the latest with weight 1, each earlier one with `decay` times the weight of
    /// its successor, until the weight is below 0.001.
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

    /// Returns the `count` items with the highest scores that are not skipped, best first.
    pub fn best(&self, count: usize, skip: impl Fn(u32) -> bool) -> Vec<(u32, f32)> {
        let scored = self.touched.iter().filter(|item| !skip(**item)).map(|item| (*item, self.get(*item)));
        best(scored.collect(), count)
    }
}

/// Returns the `count` highest scores, best first; ties are in the order of items.
pub fn best(mut scored: Vec<(u32, f32)>, count: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
    if scored.len() > count && count > 0 {
        scored.select_nth_unstable_by(count - 1, order);
    }
    scored.truncate(count);
    scored.sort_unstable_by(order);
    scored
}
