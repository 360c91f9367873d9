//! Text similarity of items: TF-IDF vectors, their cosine, and dense vectors by dimensionality reduction.
use super::pairs::{ItemPairs, Scores};
use crate::{
    kernels::{add_scaled, dot},
    sequence::{samples::ItemText, transformer::Bits},
};
use ahash::AHashMap;
use rayon::prelude::*;

/// Sparse rows of (term, weight), each of length 1 or empty.
#[derive(Debug, Clone, Default)]
pub struct TermVectors {
    starts: Vec<usize>,
    terms: Vec<u32>,
    weights: Vec<f32>,
    term_count: usize,
}

/// Terms in a greater share of the items are dropped, because they distinguish little and cost the most.
const COMMON_SHARE: f32 = 0.2;

impl TermVectors {
    /// Weights each item's distinct terms by ln(items / items with the term). Terms of a single item are dropped,
    /// because they make it similar to no other.
    pub fn new(documents: &[Vec<String>]) -> Self {
        let mut numbers: AHashMap<&str, u32> = AHashMap::new();
        let mut frequency: Vec<u32> = Vec::new();
        let mut rows: Vec<Vec<u32>> = Vec::with_capacity(documents.len());
        for document in documents {
            let mut row = Vec::with_capacity(document.len());
            for term in document {
                let next = numbers.len() as u32;
                row.push(*numbers.entry(term.as_str()).or_insert(next));
            }
            row.sort_unstable();
            row.dedup();
            frequency.resize(numbers.len(), 0);
            row.iter().for_each(|term| frequency[*term as usize] += 1);
            rows.push(row);
        }
        let count = documents.len() as f32;
        let limit = (COMMON_SHARE * count).max(2.0);
        let mut vectors = Self { starts: vec![0], term_count: numbers.len(), ..Self::default() };
        for row in rows {
            let kept = row.into_iter().filter(|term| (2.0..=limit).contains(&(frequency[*term as usize] as f32)));
            let weighted: Vec<(u32, f32)> =
                kept.map(|term| (term, (count / frequency[term as usize] as f32).ln().max(0.1))).collect();
            let length = weighted.iter().map(|(_, weight)| weight * weight).sum::<f32>().sqrt().max(1e-9);
            vectors.terms.extend(weighted.iter().map(|(term, _)| *term));
            vectors.weights.extend(weighted.iter().map(|(_, weight)| weight / length));
            vectors.starts.push(vectors.terms.len());
        }
        vectors
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    fn item_count(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn row(&self, item: u32) -> impl Iterator<Item = (u32, f32)> {
        let range = self.starts[item as usize]..self.starts[item as usize + 1];
        self.terms[range.clone()].iter().copied().zip(self.weights[range].iter().copied())
    }

    /// Adds the terms of a history to `out`: the latest item's with weight 1, each earlier one's with `decay` times the
    /// weight of its successor.
    pub fn profile(&self, history: &[u32], decay: f32, out: &mut Scores) {
        let mut share = 1.0;
        for item in history.iter().rev() {
            self.row(*item).for_each(|(term, weight)| out.add(term, share * weight));
            share *= decay;
            if share < 1e-3 {
                break;
            }
        }
    }

    /// Returns an empty accumulator for [`Self::profile`].
    pub fn empty_profile(&self) -> Scores {
        Scores::new(self.term_count)
    }

    /// Returns the dot product of a profile and an item.
    pub fn against(&self, profile: &Scores, item: u32) -> f32 {
        self.row(item).map(|(term, weight)| weight * profile.get(term)).sum()
    }

    /// Returns the `keep` most similar items of each item by cosine.
    pub fn neighbours(&self, keep: usize) -> ItemPairs {
        let mut postings: Vec<Vec<(u32, f32)>> = vec![Vec::new(); self.term_count];
        for item in 0..self.item_count() as u32 {
            self.row(item).for_each(|(term, weight)| postings[term as usize].push((item, weight)));
        }
        let rows: Vec<Vec<(u32, u32, f32)>> = (0..self.item_count() as u32)
            .into_par_iter()
            .map_init(
                || Scores::new(self.item_count()),
                |scores, item| {
                    for (term, weight) in self.row(item) {
                        for (other, other_weight) in &postings[term as usize] {
                            scores.add(*other, weight * other_weight);
                        }
                    }
                    let best = scores.best(keep, |other| other == item);
                    scores.clear();
                    best.into_iter().map(|(other, similarity)| (item, other, similarity)).collect()
                },
            )
            .collect();
        ItemPairs::new(self.item_count(), rows.into_iter().flatten().collect(), keep)
    }

    /// Returns the coordinates of each item in the `width` leading singular directions (subspace iteration: Halko,
    /// Martinsson & Tropp 2011, algorithm 4.4). Rows have length 1, or 0 for items without terms.
    pub fn dense(&self, width: usize) -> ItemText {
        let items = self.item_count();
        let width = width.min(items).min(self.term_count).max(1);
        let mut bits = Bits(0x9E37_79B9_7F4A_7C15);
        let mut basis: Vec<f32> =
            (0..self.term_count * width).map(|_| (bits.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect();
        let transposed = self.transposed();
        for _ in 0..5 {
            let mut image = self.times(&basis, width);
            orthonormalise(&mut image, width);
            basis = transposed.times(&image, width);
            orthonormalise(&mut basis, width);
        }
        let mut vectors = self.times(&basis, width);
        for row in vectors.chunks_exact_mut(width) {
            let length = dot(row, row).sqrt();
            if length > 1e-6 {
                row.iter_mut().for_each(|value| *value /= length);
            }
        }
        ItemText { vectors, width }
    }

    fn times(&self, dense: &[f32], width: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.item_count() * width];
        out.par_chunks_mut(width).enumerate().for_each(|(item, out)| {
            for (term, weight) in self.row(item as u32) {
                add_scaled(out, weight, &dense[term as usize * width..][..width]);
            }
        });
        out
    }

    fn transposed(&self) -> Self {
        let mut starts = vec![0usize; self.term_count + 1];
        self.terms.iter().for_each(|term| starts[*term as usize + 1] += 1);
        (0..self.term_count).for_each(|term| starts[term + 1] += starts[term]);
        let mut next = starts.clone();
        let (mut terms, mut weights) = (vec![0u32; self.terms.len()], vec![0.0f32; self.terms.len()]);
        for item in 0..self.item_count() as u32 {
            for (term, weight) in self.row(item) {
                let position = &mut next[term as usize];
                (terms[*position], weights[*position]) = (item, weight);
                *position += 1;
            }
        }
        Self { starts, terms, weights, term_count: self.item_count() }
    }
}

/// Orthonormalises the columns in place (modified Gram-Schmidt); a column that depends on earlier ones becomes 0.
fn orthonormalise(matrix: &mut [f32], width: usize) {
    let rows = matrix.len() / width;
    let mut columns = vec![0.0; matrix.len()];
    for (row, values) in matrix.chunks_exact(width).enumerate() {
        values.iter().enumerate().for_each(|(column, value)| columns[column * rows + row] = *value);
    }
    for column in 0..width {
        let (before, rest) = columns.split_at_mut(column * rows);
        let current = &mut rest[..rows];
        let initial = dot(current, current).sqrt();
        for earlier in before.chunks_exact(rows) {
            let along = dot(current, earlier);
            add_scaled(current, -along, earlier);
        }
        let length = dot(current, current).sqrt();
        let scale = if length > 1e-5 * initial { 1.0 / length } else { 0.0 };
        current.iter_mut().for_each(|value| *value *= scale);
    }
    for (row, values) in matrix.chunks_exact_mut(width).enumerate() {
        values.iter_mut().enumerate().for_each(|(column, value)| *value = columns[column * rows + row]);
    }
}
