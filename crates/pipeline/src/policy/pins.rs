use super::CandidateIndex;
use ahash::AHashSet;
use std::collections::BTreeMap;

/// A pin with its resolved candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinSlot {
    /// None if the item is unknown, sold out or does not match the filter.
    pub candidate: Option<CandidateIndex>,
    /// From 1.
    pub rank: usize,
}

/// An order that includes pins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// Each candidate of the organic order and of the placed pins once, with true for a pin.
    pub order: Vec<(CandidateIndex, bool)>,
    /// Indices of the pins that were not placed.
    pub dropped: Vec<usize>,
}

/// Places pins at their ranks. The organic candidates keep their order and fill the remaining slots. A pinned candidate
/// leaves its organic slot. A pin beyond the end comes last. Drops pins without a candidate or with rank 0, and all but
/// the first of pins with the same candidate or the same rank.
pub fn place_pins(organic: &[CandidateIndex], pins: &[PinSlot]) -> Placement {
    let mut dropped = Vec::new();
    let mut pinned = AHashSet::new();
    let mut by_rank: BTreeMap<usize, CandidateIndex> = BTreeMap::new();
    for (i, pin) in pins.iter().enumerate() {
        match pin.candidate {
            Some(candidate) if pin.rank > 0 && !by_rank.contains_key(&pin.rank) && pinned.insert(candidate) => {
                by_rank.insert(pin.rank, candidate);
            }
            _ => dropped.push(i),
        }
    }
    let mut order = Vec::with_capacity(organic.len() + by_rank.len());
    let mut pins = by_rank.into_iter().peekable();
    let mut seen = AHashSet::new();
    for &candidate in organic {
        while let Some((_, pin)) = pins.next_if(|&(rank, _)| rank == order.len() + 1) {
            order.push((pin, true));
        }
        if !pinned.contains(&candidate) && seen.insert(candidate) {
            order.push((candidate, false));
        }
    }
    order.extend(pins.map(|(_, pin)| (pin, true)));
    Placement { order, dropped }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn candidates(numbers: &[u32]) -> Vec<CandidateIndex> {
        numbers.iter().copied().map(CandidateIndex).collect()
    }

    fn pin(candidate: u32, rank: usize) -> PinSlot {
        PinSlot { candidate: Some(CandidateIndex(candidate)), rank }
    }

    fn order(placement: &Placement) -> Vec<u32> {
        placement.order.iter().map(|(candidate, _)| candidate.0).collect()
    }

    #[test]
    fn pins_have_their_slots_and_candidates_fill_the_rest() {
        let placement = place_pins(&candidates(&[10, 11, 12, 13]), &[pin(13, 1), pin(99, 3)]);
        assert_eq!(order(&placement), [13, 10, 99, 11, 12]);
        assert_eq!(placement.order[2], (CandidateIndex(99), true));
        assert!(placement.dropped.is_empty());
    }

    #[test]
    fn a_pin_beyond_the_end_comes_last() {
        assert_eq!(order(&place_pins(&candidates(&[1, 2]), &[pin(9, 50), pin(8, 7)])), [1, 2, 8, 9]);
    }

    #[test]
    fn pins_that_cannot_be_placed_are_reported() {
        let pins = [pin(5, 1), PinSlot { candidate: None, rank: 2 }, pin(6, 1), pin(5, 3), pin(7, 0)];
        let placement = place_pins(&candidates(&[1]), &pins);
        assert_eq!(order(&placement), [5, 1]);
        assert_eq!(placement.dropped, [1, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn each_candidate_appears_once_and_every_pin_is_in_its_slot(
            organic in prop::collection::btree_set(0u32..60, 0..40),
            pins in prop::collection::vec((prop::option::of(0u32..60), 0usize..70), 0..20),
        ) {
            let organic: Vec<CandidateIndex> = organic.into_iter().map(CandidateIndex).collect();
            let pins: Vec<PinSlot> =
                pins.into_iter().map(|(candidate, rank)| PinSlot { candidate: candidate.map(CandidateIndex), rank }).collect();
            let placement = place_pins(&organic, &pins);
            let placed: Vec<&PinSlot> =
                pins.iter().enumerate().filter(|(i, _)| !placement.dropped.contains(i)).map(|(_, pin)| pin).collect();
            let expected: BTreeSet<CandidateIndex> =
                organic.iter().copied().chain(placed.iter().filter_map(|pin| pin.candidate)).collect();
            prop_assert_eq!(placement.order.len(), expected.len());
            prop_assert_eq!(placement.order.iter().map(|pair| pair.0).collect::<BTreeSet<_>>(), expected);
            let organic_count = placement.order.iter().filter(|pair| !pair.1).count();
            for pin in placed {
                let ahead = pins.iter().enumerate()
                    .filter(|(i, other)| !placement.dropped.contains(i) && other.rank < pin.rank).count();
                let slot = (pin.rank - 1).min(organic_count + ahead);
                prop_assert_eq!(Some(placement.order[slot].0), pin.candidate);
            }
        }
    }
}
