//! Made shoppers with known tastes: what a real shop never sees, so that a loop can be judged by what shoppers wanted.
//!
//! Pure: no clock, no files, no server. `cli/simulate` puts the shoppers in front of real ones. What is assumed is in
//! `docs/simulation.md`.
mod draws;
mod history;
mod outcome;
mod shop;
mod shopper;

pub use draws::Draws;
pub use history::{Deed, Seen, Visit, dataset_events, first_history};
pub use outcome::{Arm, ArmOutcome, Day, Difference, Lives, Outcomes, Rates, outcomes, plot};
pub use shop::{Product, Shop, id_of, product_of};
pub use shopper::{Reaction, Shopper, Wish};

/// How large a made shop is, and how long it is watched.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct SimulationConfig {
    /// Products at the end; a fifth of them come into the shop during the watched days.
    pub product_count: usize,
    pub shopper_count: usize,
    /// Days before the first watched one, from which the first bundle learns.
    pub history_days: usize,
    /// Watched days, 0, 1, 2, …
    pub day_count: usize,
    /// Places of a list.
    pub page_size: usize,
}

impl Default for SimulationConfig {
    fn default() -> Self {
        Self { product_count: 360, shopper_count: 400, history_days: 40, day_count: 8, page_size: 12 }
    }
}

/// The shop and its shoppers on the eve of the first watched day, and what they did until then.
pub struct Beginning {
    pub shop: Shop,
    pub shoppers: Vec<Shopper>,
    pub history: Vec<Visit>,
}

/// Makes a shop and lets its shoppers live through the days before the first watched one.
pub fn begin(config: &SimulationConfig, draws: Draws) -> Beginning {
    let shop = Shop::new(config, draws);
    let mut shoppers: Vec<Shopper> = (0..config.shopper_count).map(|number| Shopper::new(number, draws)).collect();
    let history = first_history(&shop, &mut shoppers, config, draws);
    Beginning { shop, shoppers, history }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::units::UnixMillis;
    use lodestone_events::EventKind;

    #[test]
    fn the_same_seed_gives_the_same_history_and_another_seed_another() {
        let config = SimulationConfig { shopper_count: 60, history_days: 10, ..SimulationConfig::default() };
        let rows = |seed| {
            let beginning = begin(&config, Draws::new(seed));
            dataset_events(&beginning.history, &beginning.shop, UnixMillis(0))
        };
        assert_eq!(rows(1), rows(1));
        assert_ne!(rows(1), rows(2));
    }

    #[test]
    fn a_history_has_what_a_bundle_learns_from_and_nothing_of_the_watched_days() {
        let config = SimulationConfig::default();
        let beginning = begin(&config, Draws::new(1));
        let rows = dataset_events(&beginning.history, &beginning.shop, UnixMillis(0));
        let purchases = rows.iter().filter(|row| row.kind == EventKind::Purchase).count();
        assert!((500..20_000).contains(&purchases), "{purchases} purchases");
        assert!(rows.iter().all(|row| row.at < UnixMillis(0) && row.kind != EventKind::Impression));
        let launched = beginning.shop.products.iter().filter(|product| product.launch_day.is_some()).count();
        assert!((30..110).contains(&launched), "{launched} of 360 come later");
        assert!(
            rows.iter()
                .filter_map(|row| row.item.as_ref())
                .all(|item| { beginning.shop.products[product_of(item.as_str()).unwrap()].launch_day.is_none() })
        );
        let mean = beginning.shoppers.iter().map(Shopper::satisfaction).sum::<f64>() / 400.0;
        assert!((0.05..0.7).contains(&mean), "the first shop is neither worthless nor perfect: {mean}");
    }
}
