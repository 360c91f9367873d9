//! Keyed random numbers.

/// The decision that a random number is for: the first part of its key.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
pub enum Purpose {
    Product = 1,
    Launch,
    Taste,
    Drift,
    Visit,
    Hour,
    Search,
    Examine,
    Click,
    Buy,
    Shelf,
}

/// Random numbers that depend on their key and the seed only, not on the number of earlier draws. So all arms of an
/// experiment share common random numbers, and they differ by the lists alone.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    seed: u64,
}

impl Draws {
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Returns a number in `[0, 1)`.
    pub fn uniform(self, purpose: Purpose, key: &[u64]) -> f64 {
        let mut state = mixed(self.seed ^ mixed(purpose as u64));
        for part in key {
            state = mixed(state ^ part.wrapping_add(0x9E37_79B9_7F4A_7C15));
        }
        (state >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns a normally distributed number of mean 0 and variance 1, by the Box-Muller transform.
    pub fn normal(self, purpose: Purpose, key: &[u64]) -> f64 {
        let part = |last: u64| self.uniform(purpose, &[key, &[last]].concat());
        (-2.0 * (1.0 - part(0)).ln()).sqrt() * (std::f64::consts::TAU * part(1)).cos()
    }

    /// Returns an integer below `count`, which must be positive.
    pub fn below(self, count: usize, purpose: Purpose, key: &[u64]) -> usize {
        ((self.uniform(purpose, key) * count as f64) as usize).min(count - 1)
    }

    /// Returns true with the given probability.
    pub fn happens(self, probability: f64, purpose: Purpose, key: &[u64]) -> bool {
        self.uniform(purpose, key) < probability
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mixed(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_uniform_and_depend_on_each_part_of_their_key() {
        let draws = Draws::new(1);
        let numbers: Vec<f64> = (0..10_000).map(|n| draws.uniform(Purpose::Click, &[n, 7])).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = numbers.iter().sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        let one = draws.uniform(Purpose::Click, &[1, 7]);
        assert_eq!(one, draws.uniform(Purpose::Click, &[1, 7]));
        for other in [
            draws.uniform(Purpose::Buy, &[1, 7]),
            draws.uniform(Purpose::Click, &[7, 1]),
            draws.uniform(Purpose::Click, &[1]),
            Draws::new(2).uniform(Purpose::Click, &[1, 7]),
        ] {
            assert_ne!(one, other);
        }
        let normals: Vec<f64> = (0..10_000).map(|n| draws.normal(Purpose::Taste, &[n])).collect();
        let mean = normals.iter().sum::<f64>() / 10_000.0;
        let variance = normals.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 10_000.0;
        assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
