use crate::{catalog::Item, engine::Boost, ids::Row};

/// Multiplies the score of each row by the factors of all boosts whose filter its item matches, and sorts best first;
/// equal scores keep their order. A score below 0 is divided, so that a factor above 1 always lifts. Factors that are
/// not finite and above 0 change nothing; scores stay finite where they were.
pub fn apply_boosts<'c>(scored: &mut [(Row, f32)], boosts: &[Boost], item_of: impl Fn(Row) -> &'c Item) {
    if boosts.is_empty() {
        return;
    }
    for (row, score) in scored.iter_mut() {
        let item = item_of(*row);
        for boost in boosts.iter().filter(|boost| boost.factor.is_finite() && boost.factor > 0.0) {
            if boost.filter.matches(item) {
                let boosted = if *score >= 0.0 { *score * boost.factor } else { *score / boost.factor };
                *score = if score.is_finite() { boosted.clamp(f32::MIN, f32::MAX) } else { *score };
            }
        }
    }
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::Filter, ids::ItemId};
    use proptest::prelude::*;

    fn items() -> Vec<Item> {
        let item = |id: &str, brand: &str| {
            let mut item = Item::titled(ItemId::parse(id).unwrap(), id);
            item.brand = brand.to_owned();
            item
        };
        vec![item("a", "Acme"), item("b", "Best"), item("c", "Acme")]
    }

    fn boost(filter: &str, factor: f32) -> Boost {
        Boost { filter: Filter::parse(filter).unwrap(), factor }
    }

    #[test]
    fn a_boost_lifts_what_matches_and_boosts_multiply() {
        let items = items();
        let mut scored = vec![(Row(1), 1.0), (Row(0), 0.4), (Row(2), 0.3)];
        let boosts = [boost(r#"brand = "Acme""#, 2.0), boost(r#"item_id = "c""#, 2.0)];
        apply_boosts(&mut scored, &boosts, |row| &items[row.index()]);
        assert_eq!(scored, [(Row(2), 1.2), (Row(1), 1.0), (Row(0), 0.8)]);
    }

    #[test]
    fn a_factor_above_one_lifts_a_score_below_zero() {
        let items = items();
        let mut scored = vec![(Row(1), -1.0), (Row(0), -1.5)];
        apply_boosts(&mut scored, &[boost(r#"brand = "Acme""#, 2.0)], |row| &items[row.index()]);
        assert_eq!(scored[0].0, Row(0));
    }

    proptest! {
        #[test]
        fn nobody_is_lost_or_doubled(scores in prop::collection::vec(-1e30f32..1e30, 3), factor in any::<f32>()) {
            let items = items();
            let mut scored: Vec<(Row, f32)> = scores.iter().enumerate().map(|(i, &s)| (Row(i as u32), s)).collect();
            apply_boosts(&mut scored, &[boost(r#"brand = "Acme""#, factor)], |row| &items[row.index()]);
            let mut rows: Vec<u32> = scored.iter().map(|pair| pair.0.0).collect();
            prop_assert!(scored.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            prop_assert!(scored.iter().all(|pair| pair.1.is_finite()));
            rows.sort_unstable();
            prop_assert_eq!(rows, vec![0, 1, 2]);
        }
    }
}
