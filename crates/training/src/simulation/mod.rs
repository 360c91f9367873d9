//! Simulated shoppers with known tastes. Their true preferences, which a real shop never observes, measure the effect
//! of the learning loop.
//!
//! The module is pure: no clock, no files, no server. `cli/simulate` runs the shoppers against real servers.
//! `docs/simulation.md` lists the assumptions.
mod draws;
mod history;
mod objectives;
mod outcome;
mod shop;
mod shopper;

pub use draws::Draws;
use history::first_history;
pub use history::{DisplayedList, UserAction, Visit, dataset_events};
pub use objectives::{
    ObjectiveCurves, ObjectivePoint, ObjectiveRates, SimulatedObjective, objective_curves, plot_objectives,
};
pub use outcome::{Arm, ArmOutcome, Day, Difference, Outcomes, Rates, Trajectories, outcomes, plot};
pub use shop::{Product, Shop, id_of, product_of};
pub use shopper::{Intent, Reaction, Shopper};

/// Default probability of a visit on a day of a shopper who never found anything.
const VISIT_PROBABILITY: f64 = 0.148;

/// Size and duration of a simulation.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct SimulationConfig {
    /// Products on the last day. A fifth of them are launched during the simulated days.
    pub product_count: usize,
    pub shopper_count: usize,
    /// Days of history before the first simulated one, on which the first bundle is trained.
    pub history_days: usize,
    /// Simulated days, 0, 1, 2, …
    pub day_count: usize,
    /// Length of a list.
    pub page_size: usize,
    /// Probability of a visit on a day of a shopper who never found anything, between 0 and 1.
    pub visit_probability: f64,
}

impl Default for SimulationConfig {
    fn default() -> Self {
        Self {
            product_count: 360,
            shopper_count: 400,
            history_days: 40,
            day_count: 8,
            page_size: 12,
            visit_probability: VISIT_PROBABILITY,
        }
    }
}

/// The shop and its shoppers before the first simulated day, with the history until then.
pub struct InitialState {
    pub shop: Shop,
    pub shoppers: Vec<Shopper>,
    pub history: Vec<Visit>,
}

/// Creates a shop and simulates the history of its shoppers.
pub fn initial_state(config: &SimulationConfig, draws: Draws) -> InitialState {
    let shop = Shop::new(config, draws);
    let shopper = |number: usize| Shopper::new(number, config.visit_probability, draws);
    let mut shoppers: Vec<Shopper> = (0..config.shopper_count).map(shopper).collect();
    let history = first_history(&shop, &mut shoppers, config, draws);
    InitialState { shop, shoppers, history }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::units::UnixMillis;
    use lodestone_events::EventKind;

    #[test]
    fn the_history_depends_on_the_seed_alone() {
        let config = SimulationConfig { shopper_count: 60, history_days: 10, ..SimulationConfig::default() };
        let rows = |seed| {
            let state = initial_state(&config, Draws::new(seed));
            dataset_events(&state.history, &state.shop, UnixMillis(0))
        };
        assert_eq!(rows(1), rows(1));
        assert_ne!(rows(1), rows(2));
    }

    #[test]
    fn shoppers_who_visit_rarely_have_fewer_visits() {
        let visits = |visit_probability: f64| {
            let config = SimulationConfig { shopper_count: 200, visit_probability, ..SimulationConfig::default() };
            initial_state(&config, Draws::new(1)).history.len()
        };
        // Of 8,000 days of shoppers.
        let (often, rarely) = (visits(VISIT_PROBABILITY), visits(0.01));
        assert!(often > 1500 && (80..600).contains(&rarely), "{often} {rarely}");
    }

    #[test]
    fn the_history_has_enough_purchases_and_ends_before_the_first_day() {
        let config = SimulationConfig::default();
        let state = initial_state(&config, Draws::new(1));
        let rows = dataset_events(&state.history, &state.shop, UnixMillis(0));
        let purchases = rows.iter().filter(|row| row.kind == EventKind::Purchase).count();
        assert!((500..20_000).contains(&purchases), "{purchases} purchases");
        assert!(rows.iter().all(|row| row.at < UnixMillis(0) && row.kind != EventKind::Impression));
        let launched = state.shop.products.iter().filter(|product| product.launch_day.is_some()).count();
        assert!((30..110).contains(&launched), "{launched} of 360 products are launched later");
        assert!(
            rows.iter()
                .filter_map(|row| row.item.as_ref())
                .all(|item| { state.shop.products[product_of(item.as_str()).unwrap()].launch_day.is_none() })
        );
        let mean = state.shoppers.iter().map(Shopper::satisfaction).sum::<f64>() / 400.0;
        assert!((0.05..0.7).contains(&mean), "the history leaves room for better and worse lists: {mean}");
    }
}
