//! What the shoppers did in each arm, and how far the arms differ.
use crate::EvaluateOptions;
use lodestone_core::statistics::{MeanInterval, bootstrap_mean, resamples};
use lodestone_experiments::plots;
use std::fmt;

/// What the engine is told of the shoppers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// The first bundle; nothing that happens after its training is told.
    Off,
    /// The first bundle; every event is written, so that the next answer knows it.
    Live,
    /// Every event is written, and each night a bundle is trained, judged and put in place.
    Loop,
}

impl Arm {
    pub const ALL: [Arm; 3] = [Arm::Off, Arm::Live, Arm::Loop];

    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Live => "live",
            Self::Loop => "loop",
        }
    }

    pub fn writes_events(self) -> bool {
        self != Self::Off
    }
}

/// What one shopper did on one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Day {
    pub came: bool,
    pub clicks: u32,
    pub purchases: u32,
}

/// What all shoppers did in one arm with one seed: `[shoppers][days]`.
pub type Lives = Vec<Vec<Day>>;

/// Means over shoppers, with 95 % bootstrap intervals.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Rates {
    /// Clicks of a shopper on a day, whether they came or not.
    pub clicks: MeanInterval,
    /// Products that a shopper bought on a day.
    pub purchases: MeanInterval,
    /// Share of the days after the first on which a shopper came: on the first day nobody knows yet what the lists are like.
    pub return_rate: MeanInterval,
}

#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct DayRates {
    pub clicks: f64,
    pub purchases: f64,
    pub came: f64,
}

#[derive(Debug, Clone, serde::Serialize)]
pub struct ArmOutcome {
    pub arm: Arm,
    pub rates: Rates,
    /// Means over shoppers of each watched day.
    pub days: Vec<DayRates>,
}

/// One arm less another, shopper by shopper.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Difference {
    pub more: Arm,
    pub less: Arm,
    pub rates: Rates,
    /// The same of each seed alone, without intervals: clicks, purchases, return rate.
    pub by_seed: Vec<[f64; 3]>,
}

#[derive(Debug, Clone, serde::Serialize)]
pub struct Outcomes {
    /// Shoppers of all seeds.
    pub shopper_count: usize,
    pub arms: Vec<ArmOutcome>,
    pub differences: Vec<Difference>,
}

/// Compares the arms. `seeds`: by seed the lives in each arm, in the order of [`Arm::ALL`]; the same shoppers in all arms.
pub fn outcomes(seeds: &[[Lives; 3]], options: &EvaluateOptions) -> Outcomes {
    let of_arm = |arm: usize| seeds.iter().flat_map(move |lives| &lives[arm]);
    let shopper_count = of_arm(0).count();
    let resamples = resamples(shopper_count, options.bootstrap_count, options.seed);
    let rates = |values: &dyn Fn(usize) -> Vec<f64>| Rates {
        clicks: bootstrap_mean(&values(0), &resamples),
        purchases: bootstrap_mean(&values(1), &resamples),
        return_rate: bootstrap_mean(&values(2), &resamples),
    };
    let arms = Arm::ALL.into_iter().enumerate().map(|(place, arm)| ArmOutcome {
        arm,
        rates: rates(&|what| of_arm(place).map(|life| of_life(life)[what]).collect()),
        days: days(&of_arm(place).collect::<Vec<_>>()),
    });
    let difference = |more: usize, less: usize| {
        let pairs = |seed: &[Lives; 3], what: usize| -> Vec<f64> {
            seed[more].iter().zip(&seed[less]).map(|(more, less)| of_life(more)[what] - of_life(less)[what]).collect()
        };
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
        Difference {
            more: Arm::ALL[more],
            less: Arm::ALL[less],
            rates: rates(&|what| seeds.iter().flat_map(|seed| pairs(seed, what)).collect()),
            by_seed: seeds.iter().map(|seed| std::array::from_fn(|what| mean(pairs(seed, what)))).collect(),
        }
    };
    Outcomes {
        shopper_count,
        arms: arms.collect(),
        differences: vec![difference(2, 0), difference(1, 0), difference(2, 1)],
    }
}

/// Clicks and purchases by day, and the share of later days with a visit.
fn of_life(life: &[Day]) -> [f64; 3] {
    let days = life.len().max(1) as f64;
    let sum = |of: fn(&Day) -> u32| life.iter().map(|day| f64::from(of(day))).sum::<f64>();
    let later = life.len().saturating_sub(1).max(1) as f64;
    let returned = life.iter().skip(1).filter(|day| day.came).count() as f64;
    [sum(|day| day.clicks) / days, sum(|day| day.purchases) / days, returned / later]
}

fn days(lives: &[&Vec<Day>]) -> Vec<DayRates> {
    let count = lives.len().max(1) as f64;
    let day_count = lives.first().map_or(0, |life| life.len());
    let mean =
        |day: usize, of: fn(&Day) -> u32| lives.iter().map(|life| f64::from(of(&life[day]))).sum::<f64>() / count;
    (0..day_count)
        .map(|day| DayRates {
            clicks: mean(day, |day| day.clicks),
            purchases: mean(day, |day| day.purchases),
            came: mean(day, |day| u32::from(day.came)),
        })
        .collect()
}

/// Each day's clicks, purchases and visits of the three arms, as one SVG.
pub fn plot(outcomes: &Outcomes) -> String {
    let panel = |label: &str, of: fn(&DayRates) -> f64| {
        let line = |outcome: &ArmOutcome| plots::Line {
            name: outcome.arm.name().to_owned(),
            points: outcome.days.iter().enumerate().map(|(day, rates)| (day as f64 + 1.0, of(rates))).collect(),
        };
        plots::lines(&outcomes.arms.iter().map(line).collect::<Vec<_>>(), "day", label, false)
    };
    plots::stacked(&[
        panel("clicks of a shopper", |day| day.clicks),
        panel("purchases of a shopper", |day| day.purchases),
        panel("share of shoppers who came", |day| day.came),
    ])
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} shoppers; of a shopper and day, 95 % bootstrap intervals over shoppers", self.shopper_count)?;
        writeln!(f, "{:<12}{:<28}{:<28}return rate", "", "clicks", "purchases")?;
        let mut row = |name: String, rates: &Rates| {
            let [clicks, purchases] = [rates.clicks.to_string(), rates.purchases.to_string()];
            writeln!(f, "{name:<12}{clicks:<28}{purchases:<28}{}", rates.return_rate)
        };
        self.arms.iter().try_for_each(|arm| row(arm.arm.name().to_owned(), &arm.rates))?;
        self.differences
            .iter()
            .try_for_each(|other| row(format!("{} - {}", other.more.name(), other.less.name()), &other.rates))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_arm_gives_more_is_found_by_shopper_and_seed() {
        let life = |clicks: u32, came: bool| vec![Day { came, clicks, purchases: 1 }; 4];
        let lives = |clicks: u32, came: bool| -> Lives { (0..50).map(|n| life(clicks + n % 3, came)).collect() };
        let seeds =
            [[lives(1, false), lives(2, true), lives(4, true)], [lives(1, false), lives(2, true), lives(5, true)]];
        let found = outcomes(&seeds, &EvaluateOptions::default());
        assert_eq!(found.shopper_count, 100);
        let difference = &found.differences[0];
        assert_eq!((difference.more, difference.less), (Arm::Loop, Arm::Off));
        assert!((difference.rates.clicks.mean - 3.5).abs() < 1e-9 && difference.rates.clicks.low > 3.3);
        assert_eq!(difference.by_seed.iter().map(|seed| seed[0]).collect::<Vec<_>>(), [3.0, 4.0]);
        assert_eq!((difference.rates.purchases.mean, difference.rates.return_rate.mean), (0.0, 1.0));
        let svg = plot(&found);
        assert!(svg.starts_with("<svg xmlns=") && svg.matches("<polyline").count() == 9 && !svg.contains("NaN"));
        assert!(found.to_string().contains("loop - off"));
    }
}
