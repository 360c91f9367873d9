//! The sample ratio check: whether the users are split between the arms as expected.
use lodestone_core::statistics::chi_square_p_value;
use serde::Serialize;

/// A p-value below this is a sample ratio mismatch. It is small, because the check runs at every look and a false alarm
/// costs an experiment (Fabijan et al. 2019, "Diagnosing sample ratio mismatch in online controlled experiments").
pub(crate) const SAMPLE_RATIO_P: f64 = 0.001;

/// A chi-square test of the counts of users against the shares.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SampleRatio {
    pub chi_square: f64,
    pub p: f64,
    /// The split differs from the expected shares, so differences between the arms are not valid.
    pub mismatch: bool,
}

/// Tests the number of users of each arm against the expected shares, which may have any sum above 0. Returns `None` if
/// fewer than two arms have a share, or if there are no users. A user in an arm with share 0 is a mismatch.
pub fn sample_ratio(counts: &[u64], shares: &[f64]) -> Option<SampleRatio> {
    let arms: Vec<(f64, f64)> = counts.iter().zip(shares).map(|(count, share)| (*count as f64, *share)).collect();
    let (users, total) = arms.iter().fold((0.0, 0.0), |sum, arm| (sum.0 + arm.0, sum.1 + arm.1));
    let with_share = arms.iter().filter(|arm| arm.1 > 0.0).count();
    if users == 0.0 || with_share < 2 {
        return None;
    }
    let term = |(count, share): &(f64, f64)| match (*count, share * users / total) {
        (0.0, 0.0) => 0.0,
        (count, expected) => (count - expected).powi(2) / expected,
    };
    let chi_square: f64 = arms.iter().map(term).sum();
    let p = if chi_square.is_finite() { chi_square_p_value(chi_square, with_share - 1) } else { 0.0 };
    Some(SampleRatio { chi_square, p, mismatch: p < SAMPLE_RATIO_P })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn a_wrong_split_is_a_mismatch_and_a_right_one_is_not() {
        assert!(sample_ratio(&[600, 400], &[0.5, 0.5]).unwrap().mismatch);
        assert!(!sample_ratio(&[505, 495], &[0.5, 0.5]).unwrap().mismatch);
        assert!(!sample_ratio(&[600, 400], &[0.6, 0.4]).unwrap().mismatch);
        assert!(!sample_ratio(&[100, 205], &[0.1, 0.2]).unwrap().mismatch, "shares need not have a sum of 1");
        assert!(sample_ratio(&[500, 500, 1], &[0.5, 0.5, 0.0]).unwrap().mismatch);
        // 60 and 40 of 100: chi-square 4, p 0.0455.
        let few = sample_ratio(&[60, 40], &[0.5, 0.5]).unwrap();
        assert!((few.chi_square - 4.0).abs() < 1e-12 && (few.p - 0.0455).abs() < 1e-4 && !few.mismatch);
        assert_eq!(sample_ratio(&[0, 0], &[0.5, 0.5]), None);
        assert_eq!(sample_ratio(&[10], &[1.0]), None);
    }

    #[test]
    fn false_alarms_are_as_rare_as_the_level() {
        let mut rng = StdRng::seed_from_u64(5);
        let mut below = [0; 2];
        for _ in 0..2000 {
            let first = (0..1000).filter(|_| rng.random_bool(0.5)).count() as u64;
            let ratio = sample_ratio(&[first, 1000 - first], &[0.5, 0.5]).unwrap();
            below[0] += i32::from(ratio.p < 0.05);
            below[1] += i32::from(ratio.mismatch);
        }
        assert!((60..150).contains(&below[0]) && below[1] < 10, "{below:?} of 2000");
    }
}
