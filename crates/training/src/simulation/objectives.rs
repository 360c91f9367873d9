//! Outcomes of serving configurations with objectives, over their weights.
use super::outcome::{Day, Trajectories};
use crate::EvaluateOptions;
use lodestone_core::statistics::{MeanInterval, bootstrap_mean, resamples};
use lodestone_experiments::plots;
use std::fmt;

/// A simulated configuration: an objective and its weight. Weight 0: relevance alone.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SimulatedObjective {
    /// The name in a serving file.
    pub objective: String,
    /// 0 to 1.
    pub weight: f64,
}

/// Means over shoppers, with 95 % bootstrap intervals.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct ObjectiveRates {
    /// Per shopper and day, days without a visit included.
    pub clicks: MeanInterval,
    pub purchases: MeanInterval,
    /// In units of the currency.
    pub revenue: MeanInterval,
    /// Share of the days after the first one with a visit.
    pub return_rate: MeanInterval,
}

/// One point of a curve.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ObjectivePoint {
    #[serde(flatten)]
    pub of: SimulatedObjective,
    pub rates: ObjectiveRates,
    /// Minus those of relevance alone, paired by shopper.
    pub difference: ObjectiveRates,
    /// Whether no other point has at least the same revenue and return rate, and more of one.
    pub is_pareto_optimal: bool,
}

/// The curves of all objectives.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ObjectiveCurves {
    /// Shoppers of all seeds.
    pub shopper_count: usize,
    /// Relevance alone, then by objective and weight.
    pub points: Vec<ObjectivePoint>,
}

/// Returns clicks, purchases and revenue per day, and the share of days after the first one with a visit.
fn metrics(days: &[Day]) -> [f64; 4] {
    let count = days.len().max(1) as f64;
    let sum = |of: fn(&Day) -> f64| days.iter().map(of).sum::<f64>() / count;
    let later = days.get(1..).unwrap_or_default();
    let visits = later.iter().filter(|day| day.visited).count() as f64;
    [
        sum(|day| f64::from(day.clicks)),
        sum(|day| f64::from(day.purchases)),
        sum(|day| day.revenue_micros as f64 / 1e6),
        visits / later.len().max(1) as f64,
    ]
}

/// Computes the curves. `seeds` has for each seed the trajectories of each configuration; the first one is relevance alone.
pub fn objective_curves(
    seeds: &[Vec<Trajectories>],
    configs: &[SimulatedObjective],
    options: &EvaluateOptions,
) -> ObjectiveCurves {
    let of_config = |config: usize| -> Vec<[f64; 4]> {
        seeds.iter().flat_map(|configs| &configs[config]).map(|days| metrics(days)).collect()
    };
    let base = of_config(0);
    let resamples = resamples(base.len(), options.bootstrap_count, options.seed);
    let rates = |values: &[[f64; 4]]| {
        let mean = |metric: usize| {
            let values: Vec<f64> = values.iter().map(|of| of[metric]).collect();
            bootstrap_mean(&values, &resamples)
        };
        ObjectiveRates { clicks: mean(0), purchases: mean(1), revenue: mean(2), return_rate: mean(3) }
    };
    let point = |(index, config): (usize, &SimulatedObjective)| {
        let own = of_config(index);
        let minus = |(own, base): (&[f64; 4], &[f64; 4])| std::array::from_fn(|metric| own[metric] - base[metric]);
        let differences: Vec<[f64; 4]> = own.iter().zip(&base).map(minus).collect();
        ObjectivePoint {
            of: config.clone(),
            rates: rates(&own),
            difference: rates(&differences),
            is_pareto_optimal: false,
        }
    };
    let mut points: Vec<ObjectivePoint> = configs.iter().enumerate().map(point).collect();
    let values: Vec<[f64; 2]> =
        points.iter().map(|point| [point.rates.revenue.mean, point.rates.return_rate.mean]).collect();
    let dominates = |a: &[f64; 2], b: &[f64; 2]| a != b && a[0] >= b[0] && a[1] >= b[1];
    for (point, own) in points.iter_mut().zip(&values) {
        point.is_pareto_optimal = !values.iter().any(|other| dominates(other, own));
    }
    ObjectiveCurves { shopper_count: base.len(), points }
}

/// Plots the return rate over the revenue, as one SVG with a line for each objective that starts at relevance alone.
pub fn plot_objectives(curves: &ObjectiveCurves) -> String {
    let place = |point: &ObjectivePoint| (point.rates.revenue.mean, point.rates.return_rate.mean);
    let mut lines: Vec<plots::Line> = Vec::new();
    for point in curves.points.iter().skip(1) {
        match lines.iter_mut().find(|line| line.name == point.of.objective) {
            Some(line) => line.points.push(place(point)),
            None => {
                let points = curves.points.first().map(place).into_iter().chain([place(point)]).collect();
                lines.push(plots::Line { name: point.of.objective.clone(), points });
            }
        }
    }
    let (x, y) = ("revenue per shopper and day", "return rate");
    plots::stacked(&[plots::lines(&lines, x, y, plots::Scales::Independent)])
}

impl fmt::Display for ObjectiveCurves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} shoppers; per shopper and day, with 95 % bootstrap intervals over shoppers; * no other point is better",
            self.shopper_count
        )?;
        let [revenue, return_rate] = ["revenue", "return rate"];
        writeln!(f, "{:<20}{revenue:<28}{return_rate:<28}{:<28}clicks", "", "purchases")?;
        let row = |f: &mut fmt::Formatter<'_>, name: String, rates: &ObjectiveRates| {
            let ObjectiveRates { clicks, purchases, revenue, return_rate } = rates;
            let [revenue, return_rate, purchases] = [revenue, return_rate, purchases].map(ToString::to_string);
            writeln!(f, "{name:<20}{revenue:<28}{return_rate:<28}{purchases:<28}{clicks}")
        };
        for (index, point) in self.points.iter().enumerate() {
            let star = if point.is_pareto_optimal { " *" } else { "" };
            if index == 0 {
                row(f, format!("relevance{star}"), &point.rates)?;
            } else {
                row(f, format!("{} {}{star}", point.of.objective, point.of.weight), &point.rates)?;
                row(f, "  - relevance".to_owned(), &point.difference)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_compared_with_relevance_and_with_each_other() {
        let days = |revenue: i64, visited: bool| {
            vec![Day { visited, clicks: 1, purchases: 1, revenue_micros: revenue * 1_000_000 }; 3]
        };
        let lives = |revenue: i64, share: usize| -> Trajectories {
            (0..40).map(|number| days(revenue, number % 4 < share)).collect()
        };
        let config = |objective: &str, weight: f64| SimulatedObjective { objective: objective.to_owned(), weight };
        let configs =
            [config("relevance", 0.0), config("loyalty", 0.5), config("revenue", 0.5), config("revenue", 1.0)];
        let seed = vec![lives(4, 2), lives(4, 3), lives(9, 1), lives(8, 1)];
        let curves = objective_curves(&[seed.clone(), seed], &configs, &EvaluateOptions::default());
        assert_eq!(curves.shopper_count, 80);
        let point = &curves.points[2];
        assert_eq!((point.difference.revenue.mean, point.difference.return_rate.mean), (5.0, -0.25));
        let optimal: Vec<bool> = curves.points.iter().map(|point| point.is_pareto_optimal).collect();
        assert_eq!(optimal, [false, true, true, false]);
        let svg = plot_objectives(&curves);
        assert!(svg.matches("<polyline").count() == 2 && !svg.contains("NaN"), "{svg}");
        assert!(curves.to_string().contains("loyalty 0.5 *"));
    }
}
