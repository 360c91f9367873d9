//! Sets of rows as bits, 64 to a word.

/// Whether a bit is set; what is beyond the words is not.
#[inline]
pub fn has(bits: &[u64], at: usize) -> bool {
    bits.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
}

/// The places of the set bits from the word `first_word` on, ascending.
pub fn ones(bits: &[u64], first_word: usize) -> impl Iterator<Item = usize> + '_ {
    bits.iter().enumerate().skip(first_word).flat_map(|(index, &word)| {
        let without_lowest = |word: &u64| Some(word & (word - 1)).filter(|rest| *rest != 0);
        std::iter::successors((word != 0).then_some(word), without_lowest)
            .map(move |word| index * 64 + word.trailing_zeros() as usize)
    })
}

/// How many of the first `length` bits are set.
pub fn count(bits: &[u64], length: usize) -> usize {
    let (whole, part) = (length / 64, length % 64);
    let full: usize = bits.iter().take(whole).map(|word| word.count_ones() as usize).sum();
    full + bits.get(whole).map_or(0, |word| (word & ((1 << part) - 1)).count_ones() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_three_see_the_same_bits(bits in prop::collection::vec(any::<u64>(), 0..6), length in 0usize..400) {
            let set: Vec<usize> = (0..400).filter(|at| has(&bits, *at)).collect();
            prop_assert_eq!(ones(&bits, 0).collect::<Vec<_>>(), set.clone());
            prop_assert_eq!(count(&bits, length), set.iter().filter(|at| **at < length).count());
            prop_assert!(ones(&bits, 2).eq(set.into_iter().filter(|at| *at >= 128)));
        }
    }
}
