//! Data of the tests.
use rand::{Rng, SeedableRng, rngs::StdRng};

pub(crate) const ITEMS: u32 = 40;

/// Returns histories in which the next item usually has the next number.
pub(crate) fn histories(count: usize) -> Vec<Vec<u32>> {
    let mut rng = StdRng::seed_from_u64(5);
    let one = |rng: &mut StdRng| {
        let mut item = rng.random_range(0..ITEMS);
        let mut history = vec![item];
        for _ in 0..rng.random_range(4..9) {
            item = (item + if rng.random_bool(0.8) { 1 } else { rng.random_range(2..20) }) % ITEMS;
            if !history.contains(&item) {
                history.push(item);
            }
        }
        history
    };
    (0..count).map(|_| one(&mut rng)).collect()
}
