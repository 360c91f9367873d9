//! A simulated shopper: known tastes that drift, and reactions to lists.
use super::{
    draws::{Draws, Purpose},
    shop::{KINDS, STYLES, Shop, complement},
};
use std::collections::BTreeMap;

const PREFERRED_KINDS: usize = 3;
const PREFERRED_STYLES: usize = 2;
/// Utilities of a preferred and another kind, and of a preferred and another style.
const KIND_UTILITY: [f64; 2] = [1.5, -1.0];
const STYLE_UTILITY: [f64; 2] = [1.0, -0.6];
/// Utility that a needed kind gains, and the days for which a purchase causes a need for its complement.
const NEED_UTILITY: f64 = 1.5;
const NEED_DAYS: i64 = 5;
/// Daily probabilities that another kind, or another style, replaces a preferred one.
const DRIFT: [f64; 2] = [0.05, 0.03];
/// Utility that an owned product loses. A third of the kinds is used up after some days.
const OWNED_UTILITY: f64 = -4.0;
const USED_UP_DAYS: i64 = 10;
/// A rank is examined with the probability `rank ^ -EXAMINE_POWER` (position-based click model).
const EXAMINE_POWER: f64 = 0.7;
/// An examined product is clicked with the probability `σ(SLOPE · (utility − CLICK_FROM))`, a clicked one bought with
/// `σ(SLOPE · (utility − BUY_FROM))`.
const SLOPE: f64 = 1.5;
const CLICK_FROM: f64 = 1.5;
const BUY_FROM: f64 = 2.5;
/// Most purchases from one list.
const BOUGHT_MAX: usize = 3;
/// The logit of the probability of a visit on a day is that at satisfaction 0 plus `VISIT_SLOPE · satisfaction`.
const VISIT_SLOPE: f64 = 2.4;
/// Weight of the last visit in the satisfaction.
const LAST_VISIT: f64 = 0.35;
/// Probability that a visit includes a search, and that its query names a style.
const SEARCHES: f64 = 0.3;
const SEARCH_NAMES_STYLE: f64 = 0.5;

/// A simulated shopper.
#[derive(Debug, Clone)]
pub struct Shopper {
    number: u64,
    /// Logit of the probability of a visit on a day at satisfaction 0.
    visit_base: f64,
    kinds: Vec<usize>,
    styles: Vec<usize>,
    /// Running mean over visits, 0 to 1.
    satisfaction: f64,
    /// Products with the day of the last purchase.
    owned: BTreeMap<usize, i64>,
    /// The needed kind and the last day of the need.
    need: Option<(usize, i64)>,
}

/// The list that a shopper requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    FirstPage,
    Search(String),
}

/// A click on a product of a list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reaction {
    pub product: usize,
    /// From 1.
    pub rank: usize,
    pub is_bought: bool,
    utility: f64,
}

impl Shopper {
    /// `visit_probability`: of a visit on a day at satisfaction 0, between 0 and 1.
    pub fn new(number: usize, visit_probability: f64, draws: Draws) -> Self {
        let number = number as u64;
        let sample = |count: usize, of: usize, dimension: u64| {
            let mut all: Vec<usize> = (0..of).collect();
            all.sort_by(|a, b| {
                let order = |x: &usize| draws.uniform(Purpose::Taste, &[number, dimension, *x as u64]);
                order(a).total_cmp(&order(b))
            });
            all.truncate(count);
            all
        };
        Self {
            number,
            visit_base: (visit_probability / (1.0 - visit_probability)).ln(),
            kinds: sample(PREFERRED_KINDS, KINDS.len(), 0),
            styles: sample(PREFERRED_STYLES, STYLES.len(), 1),
            satisfaction: 0.4,
            owned: BTreeMap::new(),
            need: None,
        }
    }

    pub fn id(&self) -> String {
        format!("s{:04}", self.number)
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn satisfaction(&self) -> f64 {
        self.satisfaction
    }

    /// Starts a day: tastes may drift, the same in every arm, and needs expire.
    pub fn start_day(&mut self, day: i64, draws: Draws) {
        let key = |part: u64| [self.number, day as u64, part];
        for (dimension, preferred, of) in [(0, &mut self.kinds, KINDS.len()), (1, &mut self.styles, STYLES.len())] {
            if draws.happens(DRIFT[dimension], Purpose::Drift, &key(dimension as u64)) {
                let index = draws.below(preferred.len(), Purpose::Drift, &key(2 + dimension as u64));
                let from = draws.below(of, Purpose::Drift, &key(4 + dimension as u64));
                // The first from `from` on that is not preferred yet.
                if let Some(new) = (0..of).map(|step| (from + step) % of).find(|new| !preferred.contains(new)) {
                    preferred[index] = new;
                }
            }
        }
        self.need = self.need.filter(|(_, until)| day <= *until);
    }

    /// Whether the shopper visits on this day.
    pub fn visits(&self, day: i64, draws: Draws) -> bool {
        let probability = logistic(self.visit_base + VISIT_SLOPE * self.satisfaction);
        draws.happens(probability, Purpose::Visit, &[self.number, day as u64])
    }

    /// Returns the time of a visit, as a share of the day.
    pub fn hour(&self, day: i64, draws: Draws) -> f64 {
        draws.uniform(Purpose::Hour, &[self.number, day as u64])
    }

    /// Returns the intent of list number `list` of a visit: first the first page, then perhaps a search for a needed or
    /// preferred kind. None ends the visit.
    pub fn next_intent(&self, list: usize, day: i64, draws: Draws) -> Option<Intent> {
        let key = |part: u64| [self.number, day as u64, part];
        match list {
            0 => return Some(Intent::FirstPage),
            1 if draws.happens(SEARCHES, Purpose::Search, &key(0)) => {}
            _ => return None,
        }
        let kind = match self.need {
            Some((kind, _)) => kind,
            None => self.kinds[draws.below(self.kinds.len(), Purpose::Search, &key(1))],
        };
        let style = self.styles[draws.below(self.styles.len(), Purpose::Search, &key(2))];
        Some(Intent::Search(match draws.happens(SEARCH_NAMES_STYLE, Purpose::Search, &key(3)) {
            true => format!("{} {}", STYLES[style], KINDS[kind]),
            false => KINDS[kind].to_owned(),
        }))
    }

    /// Returns the utility of a product.
    pub fn utility(&self, product: usize, shop: &Shop, day: i64) -> f64 {
        let of = &shop.products[product];
        let mut utility = of.quality + shop.fashion(of.style, day);
        utility += KIND_UTILITY[usize::from(!self.kinds.contains(&of.kind))];
        utility += STYLE_UTILITY[usize::from(!self.styles.contains(&of.style))];
        if self.need.is_some_and(|(kind, _)| kind == of.kind) {
            utility += NEED_UTILITY;
        }
        let is_used_up = |bought: &i64| of.kind.is_multiple_of(3) && day - bought >= USED_UP_DAYS;
        if self.owned.get(&product).is_some_and(|bought| !is_used_up(bought)) {
            utility += OWNED_UTILITY;
        }
        utility
    }

    /// Returns the clicks on a list, from its top. `list` is the number of the list within the visit. The same product
    /// at the same rank of the same list causes the same reaction in every arm.
    pub fn react(&self, products: &[usize], list: usize, shop: &Shop, day: i64, draws: Draws) -> Vec<Reaction> {
        let mut reactions: Vec<Reaction> = Vec::new();
        for (index, &product) in products.iter().enumerate() {
            let rank = index + 1;
            let key = |last: usize| [self.number, day as u64, list as u64, last as u64];
            let utility = self.utility(product, shop, day);
            let clicks = draws.happens((rank as f64).powf(-EXAMINE_POWER), Purpose::Examine, &key(rank))
                && draws.happens(logistic(SLOPE * (utility - CLICK_FROM)), Purpose::Click, &key(product));
            if clicks {
                let bought = reactions.iter().filter(|reaction| reaction.is_bought).count();
                let is_bought = bought < BOUGHT_MAX
                    && draws.happens(logistic(SLOPE * (utility - BUY_FROM)), Purpose::Buy, &key(product));
                reactions.push(Reaction { product, rank, is_bought, utility });
            }
        }
        reactions
    }

    /// Records the purchases from one list: owned products, and the need for a complement.
    pub fn record_purchases(&mut self, reactions: &[Reaction], shop: &Shop, day: i64) {
        for reaction in reactions.iter().filter(|reaction| reaction.is_bought) {
            let kind = shop.products[reaction.product].kind;
            self.owned.insert(reaction.product, day);
            self.need = match self.need {
                Some((needed, _)) if needed == kind => None,
                _ => Some((complement(kind), day + NEED_DAYS)),
            };
        }
    }

    /// Ends a visit: updates the satisfaction by one minus the probability that all of the clicked products were a
    /// disappointment. A visit without a click counts 0.
    pub fn end_visit(&mut self, reactions: &[Reaction]) {
        let disappointment: f64 =
            reactions.iter().map(|reaction| 1.0 - logistic(SLOPE * (reaction.utility - CLICK_FROM))).product();
        self.satisfaction += LAST_VISIT * (1.0 - disappointment - self.satisfaction);
    }
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::{SimulationConfig, VISIT_PROBABILITY};

    fn shop() -> (Shop, Draws) {
        let draws = Draws::new(3);
        (Shop::new(&SimulationConfig::default(), draws), draws)
    }

    /// Returns all products by decreasing utility.
    fn by_utility(shopper: &Shopper, shop: &Shop) -> Vec<usize> {
        let mut all: Vec<usize> = (0..shop.products.len()).collect();
        all.sort_by(|a, b| shopper.utility(*b, shop, 0).total_cmp(&shopper.utility(*a, shop, 0)));
        all
    }

    #[test]
    fn preferred_products_and_first_ranks_are_clicked_most() {
        let (shop, draws) = shop();
        let (mut of_best, mut of_worst, mut by_rank) = (0, 0, [0usize; 12]);
        for number in 0..300 {
            let shopper = Shopper::new(number, VISIT_PROBABILITY, draws);
            let all = by_utility(&shopper, &shop);
            for reaction in shopper.react(&all[..12], 0, &shop, 0, draws) {
                of_best += 1;
                by_rank[reaction.rank - 1] += 1;
            }
            of_worst += shopper.react(&all[all.len() - 12..], 0, &shop, 0, draws).len();
        }
        assert!(of_best > 300 && of_worst < 30, "{of_best} {of_worst}");
        assert!(by_rank[0] > 2 * by_rank[7], "{by_rank:?}");
    }

    #[test]
    fn satisfied_shoppers_visit_more_often() {
        let (shop, draws) = shop();
        let (mut satisfied, mut dissatisfied) = (0, 0);
        for number in 0..300 {
            let mut shopper = Shopper::new(number, VISIT_PROBABILITY, draws);
            let all = by_utility(&shopper, &shop);
            let reactions = shopper.react(&all[..12], 0, &shop, 0, draws);
            let mut other = shopper.clone();
            shopper.end_visit(&reactions);
            other.end_visit(&[]);
            assert!(shopper.satisfaction() >= other.satisfaction());
            let days = |shopper: &Shopper| (1..20).filter(|day| shopper.visits(*day, draws)).count();
            satisfied += days(&shopper);
            dissatisfied += days(&other);
        }
        assert!(satisfied as f64 > 1.2 * dissatisfied as f64, "{satisfied} {dissatisfied}");
    }

    #[test]
    fn a_purchase_lowers_its_own_utility_and_raises_that_of_its_complement() {
        let (shop, draws) = shop();
        let mut shopper = Shopper::new(1, VISIT_PROBABILITY, draws);
        let product = by_utility(&shopper, &shop)[0];
        let partner = (0..shop.products.len())
            .find(|other| shop.products[*other].kind == complement(shop.products[product].kind));
        let utility = |shopper: &Shopper, product| shopper.utility(product, &shop, 0);
        let before = [utility(&shopper, product), utility(&shopper, partner.unwrap())];
        shopper.record_purchases(&[Reaction { product, rank: 1, is_bought: true, utility: before[0] }], &shop, 0);
        assert!(utility(&shopper, product) < before[0] - 3.0);
        assert!(utility(&shopper, partner.unwrap()) > before[1] + 1.0);
        shopper.start_day(NEED_DAYS + 1, draws);
        assert!(shopper.need.is_none());
    }

    #[test]
    fn drift_replaces_tastes_and_keeps_their_number() {
        let draws = Draws::new(3);
        let mut changed = 0;
        for number in 0..100 {
            let mut shopper = Shopper::new(number, VISIT_PROBABILITY, draws);
            let before = shopper.clone();
            (0..10).for_each(|day| shopper.start_day(day, draws));
            let distinct: std::collections::BTreeSet<&usize> = shopper.kinds.iter().collect();
            assert_eq!((distinct.len(), shopper.styles.len()), (PREFERRED_KINDS, PREFERRED_STYLES));
            changed += usize::from(before.kinds != shopper.kinds);
        }
        assert!((20..60).contains(&changed), "{changed} of 100 changed in ten days");
    }
}
