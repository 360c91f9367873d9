//! A made shopper: known tastes that drift, and what they do with a list.
use super::{
    draws::{Draws, Purpose},
    shop::{KINDS, STYLES, Shop, companion},
};
use std::collections::BTreeMap;

const LOVED_KINDS: usize = 3;
const LOVED_STYLES: usize = 2;
/// What a loved or other kind, and a loved or other style, are worth.
const KIND_WORTH: [f64; 2] = [1.5, -1.0];
const STYLE_WORTH: [f64; 2] = [1.0, -0.6];
/// A kind that goes with something just bought is worth so much more, for so many days.
const NEED_WORTH: f64 = 1.5;
const NEED_DAYS: i64 = 5;
/// Probability on a day that a loved kind, a loved style gives way to another.
const DRIFT: [f64; 2] = [0.05, 0.03];
/// What is owned is not wanted again; a third of the kinds is used up after some days.
const OWNED_WORTH: f64 = -4.0;
const USED_UP_DAYS: i64 = 10;
/// A place is looked at with the probability `rank ^ -EXAMINE_POWER` (the position-based model of clicks).
const EXAMINE_POWER: f64 = 0.7;
/// What is looked at is clicked with the probability `σ(SLOPE · (worth − CLICK_FROM))`, and what is clicked is bought likewise.
const SLOPE: f64 = 1.5;
const CLICK_FROM: f64 = 1.5;
const BUY_FROM: f64 = 2.5;
const BOUGHT_MAX: usize = 3;
/// A visit on a day has the probability `σ(VISIT_BASE + VISIT_SLOPE · satisfaction)`: 0.15 for nobody's shop, 0.65 at the best.
const VISIT_BASE: f64 = -1.75;
const VISIT_SLOPE: f64 = 2.4;
/// How much the last visit weighs in the satisfaction.
const LAST_VISIT: f64 = 0.35;
const SEARCHES: f64 = 0.3;
const SEARCH_NAMES_STYLE: f64 = 0.5;

/// Someone whose tastes are known.
#[derive(Debug, Clone)]
pub struct Shopper {
    number: u64,
    kinds: Vec<usize>,
    styles: Vec<usize>,
    /// 0 to 1: how much the last visits gave.
    satisfaction: f64,
    /// Products with the day of the last purchase.
    owned: BTreeMap<usize, i64>,
    /// A kind that goes with something just bought, and until when it is wanted.
    need: Option<(usize, i64)>,
}

/// What a shopper wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    FirstPage,
    Search(String),
}

/// A product of a list that was clicked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reaction {
    pub product: usize,
    /// From 1.
    pub rank: usize,
    pub is_bought: bool,
    worth: f64,
}

impl Shopper {
    pub fn new(number: usize, draws: Draws) -> Self {
        let number = number as u64;
        let some = |count: usize, of: usize, what: u64| {
            let mut all: Vec<usize> = (0..of).collect();
            all.sort_by(|a, b| {
                let order = |x: &usize| draws.uniform(Purpose::Taste, &[number, what, *x as u64]);
                order(a).total_cmp(&order(b))
            });
            all.truncate(count);
            all
        };
        Self {
            number,
            kinds: some(LOVED_KINDS, KINDS.len(), 0),
            styles: some(LOVED_STYLES, STYLES.len(), 1),
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

    /// A night passes: a taste may give way to another, the same for every arm.
    pub fn begin_day(&mut self, day: i64, draws: Draws) {
        let name = |part: u64| [self.number, day as u64, part];
        for (what, loved, of) in [(0, &mut self.kinds, KINDS.len()), (1, &mut self.styles, STYLES.len())] {
            if draws.happens(DRIFT[what], Purpose::Drift, &name(what as u64)) {
                let place = draws.below(loved.len(), Purpose::Drift, &name(2 + what as u64));
                let from = draws.below(of, Purpose::Drift, &name(4 + what as u64));
                // The first that is not loved yet.
                if let Some(new) = (0..of).map(|step| (from + step) % of).find(|new| !loved.contains(new)) {
                    loved[place] = new;
                }
            }
        }
        self.need = self.need.filter(|(_, until)| day <= *until);
    }

    /// Whether they come on this day.
    pub fn comes(&self, day: i64, draws: Draws) -> bool {
        let probability = logistic(VISIT_BASE + VISIT_SLOPE * self.satisfaction);
        draws.happens(probability, Purpose::Visit, &[self.number, day as u64])
    }

    /// When on a day they come, as a share of it.
    pub fn hour(&self, day: i64, draws: Draws) -> f64 {
        draws.uniform(Purpose::Hour, &[self.number, day as u64])
    }

    /// What they ask the shop for with the list number `list` of a visit: first its first page, then perhaps a search for what they
    /// need or a kind that they love. None: they leave.
    pub fn asks(&self, list: usize, day: i64, draws: Draws) -> Option<Wish> {
        let name = |part: u64| [self.number, day as u64, part];
        match list {
            0 => return Some(Wish::FirstPage),
            1 if draws.happens(SEARCHES, Purpose::Search, &name(0)) => {}
            _ => return None,
        }
        let kind = match self.need {
            Some((kind, _)) => kind,
            None => self.kinds[draws.below(self.kinds.len(), Purpose::Search, &name(1))],
        };
        let style = self.styles[draws.below(self.styles.len(), Purpose::Search, &name(2))];
        Some(Wish::Search(match draws.happens(SEARCH_NAMES_STYLE, Purpose::Search, &name(3)) {
            true => format!("{} {}", STYLES[style], KINDS[kind]),
            false => KINDS[kind].to_owned(),
        }))
    }

    /// What a product is worth to them; 0 leaves them cold.
    pub fn worth(&self, product: usize, shop: &Shop, day: i64) -> f64 {
        let of = &shop.products[product];
        let mut worth = of.quality + shop.fashion(of.style, day);
        worth += KIND_WORTH[usize::from(!self.kinds.contains(&of.kind))];
        worth += STYLE_WORTH[usize::from(!self.styles.contains(&of.style))];
        if self.need.is_some_and(|(kind, _)| kind == of.kind) {
            worth += NEED_WORTH;
        }
        let is_used_up = |bought: &i64| of.kind.is_multiple_of(3) && day - bought >= USED_UP_DAYS;
        if self.owned.get(&product).is_some_and(|bought| !is_used_up(bought)) {
            worth += OWNED_WORTH;
        }
        worth
    }

    /// Looks at a list from its top. `list`: which list of the visit it is. The same product at the same place of the same list gets
    /// the same answer in every arm.
    pub fn look(&self, products: &[usize], list: usize, shop: &Shop, day: i64, draws: Draws) -> Vec<Reaction> {
        let mut reactions: Vec<Reaction> = Vec::new();
        for (place, &product) in products.iter().enumerate() {
            let rank = place + 1;
            let name = |last: usize| [self.number, day as u64, list as u64, last as u64];
            let worth = self.worth(product, shop, day);
            let clicks = draws.happens((rank as f64).powf(-EXAMINE_POWER), Purpose::Examine, &name(rank))
                && draws.happens(logistic(SLOPE * (worth - CLICK_FROM)), Purpose::Click, &name(product));
            if clicks {
                let bought = reactions.iter().filter(|reaction| reaction.is_bought).count();
                let is_bought = bought < BOUGHT_MAX
                    && draws.happens(logistic(SLOPE * (worth - BUY_FROM)), Purpose::Buy, &name(product));
                reactions.push(Reaction { product, rank, is_bought, worth });
            }
        }
        reactions
    }

    /// Takes home what was bought in one list.
    pub fn take_home(&mut self, reactions: &[Reaction], shop: &Shop, day: i64) {
        for reaction in reactions.iter().filter(|reaction| reaction.is_bought) {
            let kind = shop.products[reaction.product].kind;
            self.owned.insert(reaction.product, day);
            self.need = match self.need {
                Some((needed, _)) if needed == kind => None,
                _ => Some((companion(kind), day + NEED_DAYS)),
            };
        }
    }

    /// Remembers what a visit gave: one minus the probability that each of the clicked products was a disappointment. A visit
    /// without a click gave nothing.
    pub fn leave(&mut self, reactions: &[Reaction]) {
        let disappointment: f64 =
            reactions.iter().map(|reaction| 1.0 - logistic(SLOPE * (reaction.worth - CLICK_FROM))).product();
        self.satisfaction += LAST_VISIT * (1.0 - disappointment - self.satisfaction);
    }
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::SimulationConfig;

    fn shop() -> (Shop, Draws) {
        let draws = Draws::new(3);
        (Shop::new(&SimulationConfig::default(), draws), draws)
    }

    /// Products by falling worth to the shopper.
    fn best(shopper: &Shopper, shop: &Shop) -> Vec<usize> {
        let mut all: Vec<usize> = (0..shop.products.len()).collect();
        all.sort_by(|a, b| shopper.worth(*b, shop, 0).total_cmp(&shopper.worth(*a, shop, 0)));
        all
    }

    #[test]
    fn a_list_of_what_is_wanted_is_clicked_more_and_its_top_most() {
        let (shop, draws) = shop();
        let (mut of_best, mut of_worst, mut by_rank) = (0, 0, [0usize; 12]);
        for number in 0..300 {
            let shopper = Shopper::new(number, draws);
            let all = best(&shopper, &shop);
            for reaction in shopper.look(&all[..12], 0, &shop, 0, draws) {
                of_best += 1;
                by_rank[reaction.rank - 1] += 1;
            }
            of_worst += shopper.look(&all[all.len() - 12..], 0, &shop, 0, draws).len();
        }
        assert!(of_best > 300 && of_worst < 30, "{of_best} {of_worst}");
        assert!(by_rank[0] > 2 * by_rank[7], "{by_rank:?}");
    }

    #[test]
    fn whoever_found_something_comes_more_often() {
        let (shop, draws) = shop();
        let (mut pleased, mut bored) = (0, 0);
        for number in 0..300 {
            let mut shopper = Shopper::new(number, draws);
            let all = best(&shopper, &shop);
            let reactions = shopper.look(&all[..12], 0, &shop, 0, draws);
            let mut other = shopper.clone();
            shopper.leave(&reactions);
            other.leave(&[]);
            assert!(shopper.satisfaction() >= other.satisfaction());
            let days = |shopper: &Shopper| (1..20).filter(|day| shopper.comes(*day, draws)).count();
            pleased += days(&shopper);
            bored += days(&other);
        }
        assert!(pleased as f64 > 1.2 * bored as f64, "{pleased} {bored}");
    }

    #[test]
    fn what_was_bought_is_not_wanted_again_but_what_goes_with_it_is() {
        let (shop, draws) = shop();
        let mut shopper = Shopper::new(1, draws);
        let product = best(&shopper, &shop)[0];
        let partner =
            (0..shop.products.len()).find(|other| shop.products[*other].kind == companion(shop.products[product].kind));
        let worth = |shopper: &Shopper, product| shopper.worth(product, &shop, 0);
        let before = [worth(&shopper, product), worth(&shopper, partner.unwrap())];
        shopper.take_home(&[Reaction { product, rank: 1, is_bought: true, worth: before[0] }], &shop, 0);
        assert!(worth(&shopper, product) < before[0] - 3.0);
        assert!(worth(&shopper, partner.unwrap()) > before[1] + 1.0);
        shopper.begin_day(NEED_DAYS + 1, draws);
        assert!(shopper.need.is_none());
    }

    #[test]
    fn tastes_drift_but_stay_as_many() {
        let draws = Draws::new(3);
        let mut changed = 0;
        for number in 0..100 {
            let mut shopper = Shopper::new(number, draws);
            let before = shopper.clone();
            (0..10).for_each(|day| shopper.begin_day(day, draws));
            let distinct: std::collections::BTreeSet<&usize> = shopper.kinds.iter().collect();
            assert_eq!((distinct.len(), shopper.styles.len()), (LOVED_KINDS, LOVED_STYLES));
            changed += usize::from(before.kinds != shopper.kinds);
        }
        assert!((20..60).contains(&changed), "{changed} of 100 changed in ten days");
    }
}
