//! Reciprocal rank fusion.
use crate::ids::Row;
use ahash::{AHashMap, AHashSet};

/// Merges ranked lists, each best first, into one, best first: a row's score is the sum over the lists of
/// `weight / (k + rank)`, rank from 1. A row counts once in a list, at its first place. A list without a finite
/// positive weight gives its rows nothing, but none is lost; missing weights are 1. `k` below 1 counts as 1. Rows with
/// equal scores are in the order of their numbers, so that the same lists always give the same answer.
pub fn reciprocal_rank_fusion(lists: &[&[(Row, f32)]], weights: &[f32], k: f32) -> Vec<(Row, f32)> {
    let k = if k.is_finite() { k.max(1.0) } else { 60.0 };
    let mut scores: AHashMap<Row, f32> = AHashMap::new();
    let mut seen = AHashSet::new();
    for (i, list) in lists.iter().enumerate() {
        let weight = weights.get(i).copied().unwrap_or(1.0);
        let weight = if weight.is_finite() { weight.max(0.0) } else { 0.0 };
        seen.clear();
        let mut rank = 0.0_f32;
        for &(row, _) in *list {
            if seen.insert(row) {
                rank += 1.0;
                *scores.entry(row).or_insert(0.0) += weight / (k + rank);
            }
        }
    }
    let mut fused: Vec<(Row, f32)> = scores.into_iter().collect();
    fused.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    fused
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn list(rows: &[u32]) -> Vec<(Row, f32)> {
        rows.iter().map(|&row| (Row(row), 0.0)).collect()
    }

    #[test]
    fn a_row_in_both_lists_beats_the_first_of_one() {
        let (a, b) = (list(&[1, 2, 3]), list(&[4, 2, 5]));
        let fused = reciprocal_rank_fusion(&[&a, &b], &[1.0, 1.0], 60.0);
        assert_eq!(fused[0].0, Row(2));
        assert!((fused[0].1 - 2.0 / 62.0).abs() < 1e-6);
    }

    #[test]
    fn a_heavier_list_wins() {
        let (a, b) = (list(&[1]), list(&[2]));
        assert_eq!(reciprocal_rank_fusion(&[&a, &b], &[1.0, 2.0], 60.0)[0].0, Row(2));
    }

    proptest! {
        #[test]
        fn no_row_is_lost_or_doubled(
            lists in prop::collection::vec(prop::collection::vec(0u32..50, 0..40), 0..5),
            weights in prop::collection::vec(any::<f32>(), 0..5), k in any::<f32>(),
        ) {
            let lists: Vec<_> = lists.iter().map(|rows| list(rows)).collect();
            let slices: Vec<&[(Row, f32)]> = lists.iter().map(Vec::as_slice).collect();
            let fused = reciprocal_rank_fusion(&slices, &weights, k);
            let expected: BTreeSet<Row> = lists.iter().flatten().map(|&(row, _)| row).collect();
            prop_assert_eq!(fused.len(), expected.len());
            prop_assert_eq!(fused.iter().map(|&(row, _)| row).collect::<BTreeSet<_>>(), expected);
            prop_assert!(fused.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            prop_assert_eq!(&fused, &reciprocal_rank_fusion(&slices, &weights, k));
        }
    }
}
