//! Who is in which arm.

/// The number of the arm that a user at `place` (0 to below 1, from a hash of experiment and user) has, or none for a
/// user outside of the experiment. `shares` are those of the arms: at least 0, together at most 1.
///
/// Changing shares moves only the users it must: nobody leaves an arm that grows, and nobody comes into one that shrinks.
/// This holds as long as there are one or two arms, or no share is above one in the number of arms: each arm begins at an end
/// of its own part of the line and grows inwards. Even arms grow upwards and odd ones downwards, so that two arms grow towards
/// each other and users outside are between them. An arm that outgrows its part goes on in the free ends of the others; with
/// three and more arms a later change may then move more users (no assignment without memory can avoid that).
pub fn arm_at(place: f64, shares: &[f64]) -> Option<usize> {
    let width = 1.0 / shares.len() as f64;
    let own = |arm: usize| shares[arm].clamp(0.0, width);
    let home = ((place / width) as usize).min(shares.len().checked_sub(1)?);
    let (start, end) = (home as f64 * width, (home + 1) as f64 * width);
    let is_own = |arm: usize| match arm.is_multiple_of(2) {
        true => place < start + own(arm),
        false => place >= end - own(arm),
    };
    if is_own(home) {
        return Some(home);
    }
    // How far the place is into the free ends, in the order in which they are given away: to even arms from below.
    let free = |arm: usize| width - own(arm);
    let free_before: f64 = (0..home).map(free).sum();
    let into = match home.is_multiple_of(2) {
        true => place - start - own(home),
        false => place - start,
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

    const PLACES: usize = 20_000;

    fn arms(shares: &[f64]) -> Vec<Option<usize>> {
        (0..PLACES).map(|place| arm_at((place as f64 + 0.5) / PLACES as f64, shares)).collect()
    }

    fn share(arms: &[Option<usize>], arm: Option<usize>) -> f64 {
        arms.iter().filter(|other| **other == arm).count() as f64 / PLACES as f64
    }

    /// Shares of `count` arms with a sum of at most 1; each at most `most`.
    fn shares(count: usize, most: f64) -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(0.0..1.0f64, count + 1).prop_map(move |parts| {
            let sum: f64 = parts.iter().sum::<f64>().max(1e-9);
            parts[..count].iter().map(|part| (part / sum).min(most)).collect()
        })
    }

    fn check_shares(shares: &[f64]) -> Result<(), TestCaseError> {
        let found = arms(shares);
        for (arm, due) in shares.iter().enumerate() {
            prop_assert!((share(&found, Some(arm)) - due).abs() < 3.0 / PLACES as f64, "arm {arm} of {shares:?}");
        }
        Ok(())
    }

    /// As many come into an arm or leave it as its share changes by: nobody leaves an arm that grows or comes into one that
    /// shrinks.
    fn check_moves(before: &[f64], after: &[f64]) -> Result<(), TestCaseError> {
        let (was, is) = (arms(before), arms(after));
        for (arm, (before, after)) in before.iter().zip(after).enumerate() {
            let moved = was.iter().zip(&is).filter(|(was, is)| (**was == Some(arm)) != (**is == Some(arm))).count();
            let must = (before - after).abs();
            let moved = moved as f64 / PLACES as f64;
            prop_assert!((moved - must).abs() < 4.0 / PLACES as f64, "arm {arm}: {moved} moved and {must} must");
        }
        Ok(())
    }

    #[test]
    fn no_arms_have_nobody() {
        assert_eq!(arm_at(0.5, &[]), None);
        assert_eq!(arm_at(0.5, &[0.0, 0.0]), None);
        assert_eq!((arm_at(0.0, &[1.0]), arm_at(0.999_999, &[1.0])), (Some(0), Some(0)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn every_arm_has_its_share(one in shares(1, 1.0), two in shares(2, 1.0), three in shares(3, 1.0), seven in shares(7, 1.0)) {
            for shares in [one, two, three, seven] {
                check_shares(&shares)?;
            }
        }

        #[test]
        fn a_change_of_shares_moves_only_those_who_must_move(
            two in (shares(2, 1.0), shares(2, 1.0)), one in (shares(1, 1.0), shares(1, 1.0)), five in (shares(5, 0.2), shares(5, 0.2)),
        ) {
            check_moves(&one.0, &one.1)?;
            check_moves(&two.0, &two.1)?;
            check_moves(&five.0, &five.1)?;
        }
    }
}
