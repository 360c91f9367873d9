//! The layout of arms on the unit interval.

/// Returns the number of the arm at `position`, a hash of experiment and user in [0, 1), or none if the user new
/// outside of the experiment. `shares` are at least 0, and their sum new at most 1.
///
/// A change of shares moves the minimum number of users: no user leaves an arm that grows or enters an arm that
/// shrinks. This holds for one or two arms, and for more arms as long as no share exceeds one divided by the number of
/// arms. Each arm has its own section of the interval, starts at one end of it and grows inwards. Even arms grow
/// upwards and odd arms downwards, so that two arms grow towards each other, with the users outside of the experiment
/// between them. An arm that outgrows its section continues in the free ends of the others. With three or more arms a
/// later change may then move more users, which no assignment without memory can avoid.
pub fn arm_at(position: f64, shares: &[f64]) -> Option<usize> {
    let width = 1.0 / shares.len() as f64;
    let own = |arm: usize| shares[arm].clamp(0.0, width);
    let home = ((position / width) as usize).min(shares.len().checked_sub(1)?);
    let (start, end) = (home as f64 * width, (home + 1) as f64 * width);
    let is_own = |arm: usize| match arm.is_multiple_of(2) {
        true => position < start + own(arm),
        false => position >= end - own(arm),
    };
    if is_own(home) {
        return Some(home);
    }
    // The offset of the position in the free ends, in the order of their allocation: to even arms from below, to odd
    // arms from above.
    let free = |arm: usize| width - own(arm);
    let free_before: f64 = (0..home).map(free).sum();
    let into = match home.is_multiple_of(2) {
        true => position - start - own(home),
        false => position - start,
    };
    let from_below = free_before + into;
    let from_above = (0..shares.len()).map(free).sum::<f64>() - from_below;
    let excess = |arm: usize| (shares[arm] - width).max(0.0);
    let taken_by = |parity: usize, along: f64| {
        let mut end = 0.0;
        (parity..shares.len()).step_by(2).find(|arm| {
            end += excess(*arm);
            excess(*arm) > 0.0 && along < end
        })
    };
    taken_by(0, from_below).or_else(|| taken_by(1, from_above))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POSITIONS: usize = 20_000;

    fn arms(shares: &[f64]) -> Vec<Option<usize>> {
        (0..POSITIONS).map(|position| arm_at((position as f64 + 0.5) / POSITIONS as f64, shares)).collect()
    }

    fn share(arms: &[Option<usize>], arm: Option<usize>) -> f64 {
        arms.iter().filter(|other| **other == arm).count() as f64 / POSITIONS as f64
    }

    /// Generates shares of `count` arms, each at most `most`, with a sum of at most 1.
    fn shares(count: usize, most: f64) -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.0..1.0f64, count + 1).prop_map(move |parts| {
            let sum: f64 = parts.iter().sum::<f64>().max(1e-9);
            parts[..count].iter().map(|part| (part / sum).min(most)).collect()
        })
    }

    fn check_shares(shares: &[f64]) -> Result<(), TestCaseError> {
        let found = arms(shares);
        for (arm, expected) in shares.iter().enumerate() {
            prop_assert!(
                (share(&found, Some(arm)) - expected).abs() < 3.0 / POSITIONS as f64,
                "arm {arm} of {shares:?}"
            );
        }
        Ok(())
    }

    /// Checks that the share of users who enter or leave an arm equals the change of its share.
    fn check_moves(before: &[f64], after: &[f64]) -> Result<(), TestCaseError> {
        let (old, new) = (arms(before), arms(after));
        for (arm, (before, after)) in before.iter().zip(after).enumerate() {
            let moved = old.iter().zip(&new).filter(|(old, new)| (**old == Some(arm)) != (**new == Some(arm))).count();
            let minimum = (before - after).abs();
            let moved = moved as f64 / POSITIONS as f64;
            prop_assert!(
                (moved - minimum).abs() < 4.0 / POSITIONS as f64,
                "arm {arm}: {moved} moved, the minimum is {minimum}"
            );
        }
        Ok(())
    }

    #[test]
    fn without_shares_all_users_are_outside() {
        assert_eq!(arm_at(0.5, &[]), None);
        assert_eq!(arm_at(0.5, &[0.0, 0.0]), None);
        assert_eq!((arm_at(0.0, &[1.0]), arm_at(0.999_999, &[1.0])), (Some(0), Some(0)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn every_arm_receives_its_share(one in shares(1, 1.0), two in shares(2, 1.0), three in shares(3, 1.0), seven in shares(7, 1.0)) {
            for shares in [one, two, three, seven] {
                check_shares(&shares)?;
            }
        }

        #[test]
        fn a_change_of_shares_moves_the_minimum_number_of_users(
            two in (shares(2, 1.0), shares(2, 1.0)), one in (shares(1, 1.0), shares(1, 1.0)), five in (shares(5, 0.2), shares(5, 0.2)),
        ) {
            check_moves(&one.0, &one.1)?;
            check_moves(&two.0, &two.1)?;
            check_moves(&five.0, &five.1)?;
        }
    }
}
