//! Items with similar texts: the cosine of their words, weighted by inverse document frequency (TF-IDF: Salton &
//! Buckley 1988).
use ahash::AHashMap;
use lodestone_catalog::Item;
use lodestone_core::{ids::Row, text};
use lodestone_index::Neighbours;
use rayon::prelude::*;

/// Neighbours kept for an item.
const NEIGHBOURS_MAX: usize = 100;
/// Words in a greater share of the items are dropped, because they distinguish little.
const COMMON_SHARE: f32 = 0.2;
/// Most pairs of items that are compared. The most frequent words beyond it are dropped.
const PAIRS_MAX: u64 = 4_000_000_000;

/// Returns the most similar items of each item, with a mean weight of 1. An item without a word that another one has
/// gets none.
pub(crate) fn similar_texts(items: &[Item]) -> Neighbours {
    let vectors = term_vectors(items);
    let mut postings: AHashMap<u32, Vec<(u32, f32)>> = AHashMap::new();
    for (row, vector) in vectors.iter().enumerate() {
        vector.iter().for_each(|(term, weight)| postings.entry(*term).or_default().push((row as u32, *weight)));
    }
    let neighbours = |scores: &mut Vec<f32>, row: usize| {
        let mut touched: Vec<u32> = Vec::new();
        for (term, weight) in &vectors[row] {
            for (other, other_weight) in &postings[term] {
                let score = &mut scores[*other as usize];
                if *score == 0.0 {
                    touched.push(*other);
                }
                *score += weight * other_weight;
            }
        }
        let scored = touched.iter().filter(|other| **other as usize != row);
        let mut best: Vec<(u32, f32)> = scored.map(|other| (*other, scores[*other as usize])).collect();
        touched.iter().for_each(|other| scores[*other as usize] = 0.0);
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if best.len() > NEIGHBOURS_MAX {
            best.select_nth_unstable_by(NEIGHBOURS_MAX, order);
            best.truncate(NEIGHBOURS_MAX);
        }
        best.into_iter().map(|(other, score)| (Row(row as u32), Row(other), score)).collect::<Vec<_>>()
    };
    let scores = || vec![0.0; items.len()];
    let pairs: Vec<Vec<_>> = (0..items.len()).into_par_iter().map_init(scores, neighbours).collect();
    with_mean_1(items.len(), pairs.into_iter().flatten().collect())
}

/// Builds a table whose weights have the mean 1.
fn with_mean_1(items: usize, mut pairs: Vec<(Row, Row, f32)>) -> Neighbours {
    // In a fixed order, so that the mean is the same in each training.
    pairs.sort_unstable_by_key(|(from, to, _)| (*from, *to));
    let mean = pairs.iter().map(|(.., weight)| f64::from(*weight)).sum::<f64>() / pairs.len().max(1) as f64;
    let scale = if mean > 0.0 { (1.0 / mean) as f32 } else { 1.0 };
    let scaled = pairs.into_iter().map(|(from, to, weight)| (from, to, scale * weight));
    Neighbours::from_counts(items, scaled, NEIGHBOURS_MAX)
}

/// Returns the weighted terms of each item, a vector of length 1. Terms of a single item are dropped, because they make
/// it similar to no other.
fn term_vectors(items: &[Item]) -> Vec<Vec<(u32, f32)>> {
    let mut numbers: AHashMap<String, u32> = AHashMap::new();
    let mut frequency: Vec<u64> = Vec::new();
    let mut rows: Vec<Vec<u32>> = Vec::with_capacity(items.len());
    for item in items {
        let mut row = Vec::new();
        for word in text::normalize(&item.search_text()).split(|c: char| !c.is_alphanumeric()) {
            if !word.is_empty() {
                let next = numbers.len() as u32;
                row.push(*numbers.entry(word.to_owned()).or_insert(next));
            }
        }
        row.sort_unstable();
        row.dedup();
        frequency.resize(numbers.len(), 0);
        row.iter().for_each(|term| frequency[*term as usize] += 1);
        rows.push(row);
    }
    let count = items.len() as f32;
    let limit = frequency_limit(frequency.clone(), (COMMON_SHARE * count).max(2.0) as u64);
    let vector = |row: Vec<u32>| {
        let kept = row.into_iter().filter(|term| (2..=limit).contains(&frequency[*term as usize]));
        let weighted = kept.map(|term| (term, (count / frequency[term as usize] as f32).ln().max(0.1)));
        let weighted: Vec<(u32, f32)> = weighted.collect();
        let length = weighted.iter().map(|(_, weight)| weight * weight).sum::<f32>().sqrt();
        weighted.into_iter().map(|(term, weight)| (term, weight / length)).collect()
    };
    rows.into_iter().map(vector).collect()
}

/// Returns the greatest frequency, at most `limit`, with which terms have no more than [`PAIRS_MAX`] pairs of items.
fn frequency_limit(mut frequency: Vec<u64>, limit: u64) -> u64 {
    frequency.sort_unstable();
    let mut pairs = 0;
    let beyond = frequency.into_iter().take_while(|of_term| *of_term <= limit).find(|of_term| {
        pairs += of_term * of_term;
        pairs > PAIRS_MAX
    });
    beyond.map_or(limit, |of_term| of_term - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::ItemId;

    #[test]
    fn items_that_share_rare_words_are_most_similar() {
        let titles = ["red lamp", "red velvet lamp", "velvet chair", "Chair", "blue mug", "lamp"];
        let filler = (0..20).map(|number| format!("only {number}"));
        let titles = titles.into_iter().map(str::to_owned).chain(filler);
        let item = |(index, title): (usize, String)| Item::titled(ItemId::parse(&index.to_string()).unwrap(), &title);
        let table = similar_texts(&titles.enumerate().map(item).collect::<Vec<Item>>());
        assert_eq!(table.of(Row(0)).0, [1, 5]);
        assert_eq!(table.of(Row(2)).0, [3, 1]);
        assert!(table.of(Row(4)).0.is_empty(), "no other item has one of its words");
        assert!(table.of(Row(7)).0.is_empty(), "a word of most items says nothing");
    }

    #[test]
    fn the_most_frequent_terms_are_dropped_if_there_are_too_many_pairs() {
        assert_eq!(frequency_limit(vec![2, 5, 9, 200], 100), 100);
        assert_eq!(frequency_limit(vec![2, 60_000, 50_000], 80_000), 59_999);
    }
}
