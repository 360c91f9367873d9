//! Purchases that were given back: what a refund takes from the events of its user.
use super::EventKind;
use ahash::AHashMap;
use std::hash::Hash;

/// One item of an event, as [`Refunds::of`] reads it.
#[derive(Debug, Clone, Copy)]
pub struct RefundLine<K> {
    pub item: K,
    pub kind: EventKind,
    pub thousandths: u64,
}

/// The lines of a user's events that refunds take back.
///
/// A refund takes its quantity from the latest purchases of the item before it, because files and shops seldom name the
/// order that is given back. A purchase of which nothing remains no longer counts as a purchase. If no purchase of the
/// item remains, the earlier views, carts and other events of the item are no evidence of interest either.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refunds {
    /// By line; empty if there is no refund.
    refunded: Vec<bool>,
    withdrawn: Vec<bool>,
}

impl Refunds {
    /// Reads the lines of one user in time order. O(lines), and O(lines) for each refund.
    pub fn of<K: Copy + Eq + Hash>(lines: &[RefundLine<K>]) -> Self {
        if !lines.iter().any(|line| line.kind == EventKind::Refund) {
            return Self::default();
        }
        let mut refunds = Self { refunded: vec![false; lines.len()], withdrawn: vec![false; lines.len()] };
        // By item: the purchases of which a part remains, as index and thousandths.
        let mut open: AHashMap<K, Vec<(usize, u64)>> = AHashMap::new();
        for (index, line) in lines.iter().enumerate() {
            match line.kind {
                EventKind::Purchase => open.entry(line.item).or_default().push((index, line.thousandths)),
                EventKind::Refund => refunds.refund(lines, index, open.entry(line.item).or_default()),
                _ => {}
            }
        }
        refunds
    }

    fn refund<K: Copy + Eq>(&mut self, lines: &[RefundLine<K>], refund: usize, open: &mut Vec<(usize, u64)>) {
        self.withdrawn[refund] = true;
        let mut left = lines[refund].thousandths;
        while let Some((purchase, remaining)) = open.last_mut().filter(|_| left > 0) {
            let taken = left.min(*remaining);
            (left, *remaining) = (left - taken, *remaining - taken);
            if *remaining == 0 {
                self.refunded[*purchase] = true;
                self.withdrawn[*purchase] = true;
                open.pop();
            }
        }
        if open.is_empty() {
            let of_item = (0..refund).filter(|line| lines[*line].item == lines[refund].item);
            of_item.for_each(|line| self.withdrawn[line] = true);
        }
    }

    /// Whether the line is a purchase that was refunded in full.
    pub fn is_refunded(&self, line: usize) -> bool {
        self.refunded.get(line).copied().unwrap_or(false)
    }

    /// Whether the line is no evidence that the user wants the item: a refund, a purchase that was refunded in full, or
    /// an earlier event of an item of which no purchase remains.
    pub fn is_withdrawn(&self, line: usize) -> bool {
        self.withdrawn.get(line).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use EventKind::{Purchase, Refund, View};
    use proptest::prelude::*;

    fn refunds(lines: &[(EventKind, u32, u32)]) -> (Vec<usize>, Vec<usize>) {
        let of = |&(kind, item, pieces): &(EventKind, u32, u32)| RefundLine {
            item,
            kind,
            thousandths: u64::from(pieces) * 1000,
        };
        let lines: Vec<RefundLine<u32>> = lines.iter().map(of).collect();
        let refunds = Refunds::of(&lines);
        let all = 0..lines.len();
        (
            all.clone().filter(|line| refunds.is_refunded(*line)).collect(),
            all.filter(|line| refunds.is_withdrawn(*line)).collect(),
        )
    }

    #[test]
    fn a_refund_of_all_pieces_takes_the_purchase_and_the_events_before_it() {
        let lines = [(View, 1, 1), (View, 2, 1), (Purchase, 1, 2), (Refund, 1, 2), (View, 1, 1)];
        assert_eq!(refunds(&lines), (vec![2], vec![0, 2, 3]));
    }

    #[test]
    fn refunds_of_parts_add_up_and_a_part_changes_nothing() {
        let part = [(Purchase, 1, 3), (Refund, 1, 1)];
        assert_eq!(refunds(&part), (vec![], vec![1]));
        assert_eq!(refunds(&[&part[..], &[(Refund, 1, 2)]].concat()), (vec![0], vec![0, 1, 2]));
    }

    #[test]
    fn a_refund_takes_the_latest_purchases_before_it() {
        let lines = [(Purchase, 1, 1), (Purchase, 1, 1), (Refund, 1, 1), (Purchase, 1, 1)];
        assert_eq!(refunds(&lines), (vec![1], vec![1, 2]));
        let lines = [(Purchase, 1, 2), (Purchase, 1, 1), (Refund, 1, 2)];
        assert_eq!(refunds(&lines), (vec![1], vec![1, 2]));
    }

    #[test]
    fn a_refund_of_an_unknown_purchase_withdraws_the_events_before_it() {
        assert_eq!(refunds(&[(View, 1, 1), (Refund, 1, 1), (View, 1, 1)]), (vec![], vec![0, 1]));
    }

    proptest! {
        #[test]
        fn as_many_pieces_remain_as_were_bought_and_not_given_back(
            lines in proptest::collection::vec((0usize..3, 0u32..2, 1u32..4), 0..30)
        ) {
            let lines: Vec<_> =
                lines.into_iter().map(|(kind, item, pieces)| ([View, Purchase, Refund][kind], item, pieces)).collect();
            let (refunded, withdrawn) = refunds(&lines);
            prop_assert!(refunded.iter().all(|line| lines[*line].0 == Purchase && withdrawn.contains(line)));
            for item in 0..2 {
                // A refund cannot take more than what was bought before it.
                let mut owned = 0;
                for (kind, _, pieces) in lines.iter().filter(|line| line.1 == item) {
                    match kind {
                        Purchase => owned += pieces,
                        Refund => owned = owned.saturating_sub(*pieces),
                        _ => {}
                    }
                }
                let kept = (0..lines.len()).filter(|line| lines[*line].0 == Purchase && lines[*line].1 == item);
                let kept: u32 = kept.filter(|line| !refunded.contains(line)).map(|line| lines[line].2).sum();
                prop_assert!((owned > 0) == (kept > 0) && kept >= owned);
            }
        }
    }
}
