//! Bit sets over rows: bit `i % 64` of word `i / 64` represents row `i`.

/// Returns true if the bit `index` is set. Bits beyond the last word are not set.
#[inline]
pub fn has(bits: &[u64], index: usize) -> bool {
    bits.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
}

/// Sets a bit, and adds words if there are too few.
pub fn set(bits: &mut Vec<u64>, index: usize) {
    if bits.len() <= index / 64 {
        bits.resize(index / 64 + 1, 0);
    }
    bits[index / 64] |= 1 << (index % 64);
}

/// Returns the indices of the set bits in ascending order, starting at the word `first_word`.
pub fn ones(bits: &[u64], first_word: usize) -> Ones<'_> {
    Ones { bits, next: first_word, word: 0 }
}

/// The indices of the set bits of a bit set, ascending.
#[derive(Clone)]
pub struct Ones<'b> {
    bits: &'b [u64],
    /// The index of the word behind the current one.
    next: usize,
    /// The bits of the current word that are left.
    word: u64,
}

impl Iterator for Ones<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.word == 0 {
            self.word = *self.bits.get(self.next)?;
            self.next += 1;
        }
        let bit = self.word.trailing_zeros() as usize;
        self.word &= self.word - 1;
        Some((self.next - 1) * 64 + bit)
    }
}

/// Returns the indices of the set bits in descending order.
pub fn ones_descending(bits: &[u64]) -> impl Iterator<Item = usize> + '_ {
    bits.iter().enumerate().rev().flat_map(|(index, &word)| {
        let highest = |word: u64| 63 - word.leading_zeros();
        let without_highest = move |word: &u64| Some(word & !(1 << highest(*word))).filter(|rest| *rest != 0);
        std::iter::successors((word != 0).then_some(word), without_highest)
            .map(move |word| index * 64 + highest(word) as usize)
    })
}

/// Returns a bit set of `length` bits in which these are set.
pub fn of(indices: impl IntoIterator<Item = usize>, length: usize) -> Vec<u64> {
    let mut bits = vec![0; length.div_ceil(64)];
    indices.into_iter().for_each(|index| bits[index / 64] |= 1 << (index % 64));
    bits
}

/// Returns the bits that are set in both sets, of the length of the shorter one.
pub fn and(a: &[u64], b: &[u64]) -> Vec<u64> {
    a.iter().zip(b).map(|(a, b)| a & b).collect()
}

/// Returns whether no bit is set.
pub fn is_empty(bits: &[u64]) -> bool {
    bits.iter().all(|word| *word == 0)
}

/// Counts the set bits among the first `length` bits.
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
        fn has_ones_and_count_agree(bits in prop::collection::vec(any::<u64>(), 0..6), length in 0usize..400) {
            let set: Vec<usize> = (0..400).filter(|index| has(&bits, *index)).collect();
            prop_assert_eq!(ones(&bits, 0).collect::<Vec<_>>(), set.clone());
            prop_assert_eq!(&of(set.iter().copied(), bits.len() * 64), &bits);
            prop_assert_eq!(is_empty(&bits), set.is_empty());
            prop_assert_eq!(count(&bits, length), set.iter().filter(|index| **index < length).count());
            prop_assert!(ones_descending(&bits).eq(set.iter().rev().copied()));
            prop_assert!(ones(&bits, 2).eq(set.into_iter().filter(|index| *index >= 128)));
        }
    }
}
