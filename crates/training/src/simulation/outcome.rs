//! Outcomes of the arms, and their differences.
use crate::EvaluateOptions;
use lodestone_core::statistics::{MeanInterval, bootstrap_mean, resamples};
use lodestone_experiments::plots;
use std::fmt;

/// An arm of the simulation: the feedback that the engine receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// The first bundle, without events after its training.
    Off,
    /// The first bundle, with every event written before the next answer.
    Live,
    /// Every event is written, and each night a bundle is trained, evaluated and activated.
    Loop,
    /// Like `Loop`, and the server explores.
    Explore,
    /// Like `Explore`, and the trainings learn from the answer log.
    Answers,
}

impl Arm {
    /// The arms of the loop, and further ones that learn from the answer log or serve as their control.
    pub fn of(with_answers: bool) -> &'static [Arm] {
        const ALL: [Arm; 5] = [Arm::Off, Arm::Live, Arm::Loop, Arm::Explore, Arm::Answers];
        if with_answers { &ALL } else { &ALL[..3] }
    }

    /// Whether a bundle is trained every night.
    pub fn retrains(self) -> bool {
        matches!(self, Self::Loop | Self::Explore | Self::Answers)
    }

    pub fn explores(self) -> bool {
        matches!(self, Self::Explore | Self::Answers)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Live => "live",
            Self::Loop => "loop",
            Self::Explore => "explore",
            Self::Answers => "answers",
        }
    }

    pub fn writes_events(self) -> bool {
        self != Self::Off
    }
}

/// The actions of one shopper on one day.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Day {
    pub visited: bool,
    pub clicks: u32,
    pub purchases: u32,
    /// The prices of the bought products.
    pub revenue_micros: i64,
}

/// The days of all shoppers in one arm with one seed: `[shoppers][days]`.
pub type Trajectories = Vec<Vec<Day>>;

/// Means over shoppers, with 95 % bootstrap intervals.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Rates {
    /// Clicks per shopper and day, days without a visit included.
    pub clicks: MeanInterval,
    /// Bought products per shopper and day.
    pub purchases: MeanInterval,
    /// Share of the days with a visit. The first day does not count, because no earlier list can affect it.
    pub return_rate: MeanInterval,
}

/// Means over shoppers of one day.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct DayRates {
    pub clicks: f64,
    pub purchases: f64,
    #[serde(rename = "came")]
    pub visits: f64,
}

/// Outcome of one arm.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ArmOutcome {
    pub arm: Arm,
    pub rates: Rates,
    /// By simulated day.
    pub days: Vec<DayRates>,
}

/// Difference of two arms, paired by shopper.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Difference {
    pub more: Arm,
    pub less: Arm,
    pub rates: Rates,
    /// By seed: differences of clicks, purchases and return rate, without intervals.
    pub by_seed: Vec<[f64; 3]>,
}

/// Outcomes of all arms.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Outcomes {
    /// Shoppers of all seeds.
    pub shopper_count: usize,
    pub arms: Vec<ArmOutcome>,
    pub differences: Vec<Difference>,
}

/// The compared arms, by their numbers.
const COMPARED: [[usize; 2]; 6] = [[2, 0], [1, 0], [2, 1], [4, 3], [3, 2], [4, 2]];

/// Compares the arms. `seeds` has for each seed the trajectories of each arm, in the order of [`Arm::of`]. All arms of
/// a seed have the same shoppers.
pub fn outcomes(seeds: &[Vec<Trajectories>], arms: &[Arm], options: &EvaluateOptions) -> Outcomes {
    let of_arm = |arm: usize| seeds.iter().flat_map(move |arms| &arms[arm]);
    let shopper_count = of_arm(0).count();
    let resamples = resamples(shopper_count, options.bootstrap_count, options.seed);
    let rates = |values: &dyn Fn(usize) -> Vec<f64>| Rates {
        clicks: bootstrap_mean(&values(0), &resamples),
        purchases: bootstrap_mean(&values(1), &resamples),
        return_rate: bootstrap_mean(&values(2), &resamples),
    };
    let outcome_of = |(index, arm): (usize, &Arm)| ArmOutcome {
        arm: *arm,
        rates: rates(&|metric| of_arm(index).map(|days| metrics(days)[metric]).collect()),
        days: days(&of_arm(index).collect::<Vec<_>>()),
    };
    let difference = |[more, less]: [usize; 2]| {
        let pairs = |seed: &[Trajectories], metric: usize| -> Vec<f64> {
            seed[more]
                .iter()
                .zip(&seed[less])
                .map(|(more, less)| metrics(more)[metric] - metrics(less)[metric])
                .collect()
        };
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
        Difference {
            more: arms[more],
            less: arms[less],
            rates: rates(&|metric| seeds.iter().flat_map(|seed| pairs(seed, metric)).collect()),
            by_seed: seeds.iter().map(|seed| std::array::from_fn(|metric| mean(pairs(seed, metric)))).collect(),
        }
    };
    Outcomes {
        shopper_count,
        arms: arms.iter().enumerate().map(outcome_of).collect(),
        differences: COMPARED.into_iter().filter(|pair| pair[0].max(pair[1]) < arms.len()).map(difference).collect(),
    }
}

/// Returns clicks and purchases per day, and the share of days after the first with a visit.
fn metrics(days: &[Day]) -> [f64; 3] {
    let count = days.len().max(1) as f64;
    let sum = |of: fn(&Day) -> u32| days.iter().map(|day| f64::from(of(day))).sum::<f64>();
    let later_count = days.len().saturating_sub(1).max(1) as f64;
    let later_visits = days.iter().skip(1).filter(|day| day.visited).count() as f64;
    [sum(|day| day.clicks) / count, sum(|day| day.purchases) / count, later_visits / later_count]
}

fn days(trajectories: &[&Vec<Day>]) -> Vec<DayRates> {
    let count = trajectories.len().max(1) as f64;
    let day_count = trajectories.first().map_or(0, |days| days.len());
    let mean = |day: usize, of: fn(&Day) -> u32| {
        trajectories.iter().map(|days| f64::from(of(&days[day]))).sum::<f64>() / count
    };
    (0..day_count)
        .map(|day| DayRates {
            clicks: mean(day, |day| day.clicks),
            purchases: mean(day, |day| day.purchases),
            visits: mean(day, |day| u32::from(day.visited)),
        })
        .collect()
}

/// Plots clicks, purchases and visits of the arms by day, as one SVG.
pub fn plot(outcomes: &Outcomes) -> String {
    let panel = |label: &str, of: fn(&DayRates) -> f64| {
        let line = |outcome: &ArmOutcome| plots::Line {
            name: outcome.arm.name().to_owned(),
            points: outcome.days.iter().enumerate().map(|(day, rates)| (day as f64 + 1.0, of(rates))).collect(),
        };
        plots::lines(&outcomes.arms.iter().map(line).collect::<Vec<_>>(), "day", label, plots::Scales::Independent)
    };
    plots::stacked(&[
        panel("clicks per shopper", |day| day.clicks),
        panel("purchases per shopper", |day| day.purchases),
        panel("share of shoppers who visit", |day| day.visits),
    ])
}

impl fmt::Display for Outcomes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} shoppers; per shopper and day, with 95 % bootstrap intervals over shoppers",
            self.shopper_count
        )?;
        writeln!(f, "{:<19}{:<28}{:<28}return rate", "", "clicks", "purchases")?;
        let mut row = |name: String, rates: &Rates| {
            let [clicks, purchases] = [rates.clicks.to_string(), rates.purchases.to_string()];
            writeln!(f, "{name:<19}{clicks:<28}{purchases:<28}{}", rates.return_rate)
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
    fn differences_of_arms_are_paired_by_shopper_and_reported_by_seed() {
        let days = |clicks: u32, visited: bool| vec![Day { visited, clicks, purchases: 1, revenue_micros: 0 }; 4];
        let arm =
            |clicks: u32, visited: bool| -> Trajectories { (0..50).map(|n| days(clicks + n % 3, visited)).collect() };
        let seeds =
            [[arm(1, false), arm(2, true), arm(4, true)], [arm(1, false), arm(2, true), arm(5, true)]].map(Vec::from);
        let more: Vec<Vec<Trajectories>> =
            seeds.iter().map(|seed| [&seed[..], &[arm(3, true), arm(9, true)]].concat()).collect();
        let more = outcomes(&more, Arm::of(true), &EvaluateOptions::default());
        let of_answers = &more.differences[3];
        assert_eq!((of_answers.more, of_answers.less, of_answers.rates.clicks.mean), (Arm::Answers, Arm::Explore, 6.0));
        seeds.iter().for_each(|seed| assert_eq!(seed.len(), Arm::of(false).len()));
        let outcomes = outcomes(&seeds, Arm::of(false), &EvaluateOptions::default());
        assert_eq!(outcomes.differences.len(), 3);
        assert_eq!(outcomes.shopper_count, 100);
        let difference = &outcomes.differences[0];
        assert_eq!((difference.more, difference.less), (Arm::Loop, Arm::Off));
        assert!((difference.rates.clicks.mean - 3.5).abs() < 1e-9 && difference.rates.clicks.low > 3.3);
        assert_eq!(difference.by_seed.iter().map(|seed| seed[0]).collect::<Vec<_>>(), [3.0, 4.0]);
        assert_eq!((difference.rates.purchases.mean, difference.rates.return_rate.mean), (0.0, 1.0));
        let svg = plot(&outcomes);
        assert!(svg.starts_with("<svg xmlns=") && svg.matches("<polyline").count() == 9 && !svg.contains("NaN"));
        assert!(outcomes.to_string().contains("loop - off"));
    }
}
