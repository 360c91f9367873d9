//! Results of the public benchmarks, and their text form.
use super::{
    metrics::{BasketMetrics, HitMetrics},
    protocol::Protocol,
    served::{QueryLists, ServedLists},
};
use crate::comparison::Comparison;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;
use std::fmt;

/// Mean of a metric over several runs.
fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation of a single run; 0 with one run.
fn standard_deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt()
}

/// Mean over the seeds, and the standard deviation of a single seed (0 with one seed).
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub mean: HitMetrics,
    pub spread: HitMetrics,
}

impl Summary {
    fn of(runs: &[HitMetrics]) -> Self {
        Self { mean: HitMetrics::combine(runs, mean), spread: HitMetrics::combine(runs, standard_deviation) }
    }
}

/// Metrics of one source, of the candidates in the order of fusion (`retrieval`), or of the answer (`ranked`).
#[derive(Debug, Clone, Serialize)]
pub struct Method {
    pub method: String,
    #[serde(flatten)]
    pub all: Summary,
    /// Users whose target comes before their latest known item in the items' order; `None` if the benchmark has no
    /// such split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descending: Option<Summary>,
}

/// The result of a benchmark of next items or clicks.
#[derive(Debug, Clone, Serialize)]
pub struct HitReport {
    pub items: usize,
    /// Users or prefixes with a target.
    #[serde(rename = "asked")]
    pub queries: usize,
    #[serde(rename = "asked_descending", skip_serializing_if = "Option::is_none")]
    pub queries_descending: Option<usize>,
    pub seeds: Vec<u64>,
    /// Mean time of one seed: training and evaluation.
    pub seconds: f64,
    pub encoder_epochs: Vec<usize>,
    /// Share of the targets that are among the candidates, and the mean number of candidates.
    pub candidate_recall: f64,
    pub candidates: f64,
    /// The metrics of the answers, the last of `methods`.
    #[serde(flatten)]
    pub ranked: HitMetrics,
    /// 95 % bootstrap intervals over user clusters of the answers, for the first seed.
    pub hr_at_10_interval: [f64; 2],
    pub ndcg_at_10_interval: [f64; 2],
    pub methods: Vec<Method>,
    /// The answers and the baselines on a sample of the queries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baselines: Option<Comparison>,
}

/// The result of one seed.
pub(super) struct Run {
    /// The sources, then `retrieval` and `ranked`.
    methods: Vec<String>,
    /// `[queries][methods]`: the rank of the target, from 1; `None`: not in the first items of the list.
    ranks: Vec<Vec<Option<usize>>>,
    candidate_recall: f64,
    candidates: f64,
    epochs: usize,
    seconds: f64,
}

impl Run {
    /// Each query has one target.
    pub(super) fn new(protocol: &Protocol, served: &ServedLists, seconds: f64) -> Self {
        let count = served.of_queries.len().max(1) as f64;
        let sum = |value: &dyn Fn(&QueryLists) -> usize| served.of_queries.iter().map(value).sum::<usize>();
        let (found, candidates) = (sum(&|lists| lists.found_count), sum(&|lists| lists.candidate_count));
        let rank = |list: &Vec<u32>, target: u32| list.iter().position(|row| *row == target).map(|index| index + 1);
        let of_queries = protocol.queries.iter().zip(&served.of_queries);
        let ranks = of_queries.map(|(query, of)| of.lists.iter().map(|list| rank(list, query.targets[0])).collect());
        Self {
            ranks: ranks.collect(),
            candidate_recall: found as f64 / count,
            candidates: candidates as f64 / count,
            methods: served.methods.clone(),
            epochs: served.epochs,
            seconds,
        }
    }

    /// Returns the ranks of the targets by a method; none of them if no query has candidates of it.
    fn ranks_of<'a>(&'a self, method: &str) -> impl Iterator<Item = Option<usize>> + use<'a> {
        let index = self.methods.iter().position(|name| name == method);
        self.ranks.iter().map(move |ranks| index.and_then(|index| ranks[index]))
    }
}

/// Groups of queries that a report distinguishes.
pub(super) struct QueryGroups {
    /// Whether each query is descending, see [`Method::descending`]; `None`: no such split.
    pub(super) descending: Option<Vec<bool>>,
    /// The cluster of each query; clusters are resampled as a whole.
    pub(super) clusters: Vec<usize>,
}

impl HitReport {
    /// Summarises the runs of `seeds`; `runs` is not empty.
    pub(super) fn new(items: usize, seeds: Vec<u64>, runs: &[Run], groups: &QueryGroups) -> Self {
        let first = &runs[0];
        let descending = groups.descending.as_ref();
        let summary = |method: &str, is_counted: &dyn Fn(usize) -> bool| -> Summary {
            let metrics = runs.iter().map(|run| {
                let counted = run.ranks_of(method).enumerate().filter(|(index, _)| is_counted(*index));
                HitMetrics::of(counted.map(|(_, rank)| rank))
            });
            Summary::of(&metrics.collect::<Vec<_>>())
        };
        let methods = first.methods.iter().map(|method| Method {
            method: method.clone(),
            all: summary(method, &|_| true),
            descending: descending.map(|descending| summary(method, &|index| descending[index])),
        });
        let methods: Vec<Method> = methods.collect();
        let mean = |value: &dyn Fn(&Run) -> f64| runs.iter().map(value).sum::<f64>() / runs.len() as f64;
        let last: Vec<Option<usize>> = first.ranks_of(RANKED).collect();
        let [hr_at_10_interval, ndcg_at_10_interval] = intervals(&last, &groups.clusters);
        Self {
            items,
            queries: first.ranks.len(),
            queries_descending: descending.map(|descending| descending.iter().filter(|is| **is).count()),
            seeds,
            seconds: mean(&|run| run.seconds),
            encoder_epochs: runs.iter().map(|run| run.epochs).collect(),
            candidate_recall: mean(&|run| run.candidate_recall),
            candidates: mean(&|run| run.candidates),
            ranked: methods.last().map(|method| method.all.mean).unwrap_or_default(),
            hr_at_10_interval,
            ndcg_at_10_interval,
            methods,
            baselines: None,
        }
    }
}

/// The method of the answers.
const RANKED: &str = "ranked";

/// Resamples of the bootstrap.
const RESAMPLES: usize = 1000;

/// Returns the 95 % percentile bootstrap intervals (Efron 1979) of HR@10 and NDCG@10 over clusters.
fn intervals(ranks: &[Option<usize>], clusters: &[usize]) -> [[f64; 2]; 2] {
    let count = clusters.iter().max().map_or(0, |greatest| greatest + 1);
    let mut sums = vec![[0.0f64; 3]; count];
    for (rank, cluster) in ranks.iter().zip(clusters) {
        let gain = rank.filter(|rank| *rank <= 10).map_or(0.0, |rank| 1.0 / (rank as f64 + 1.0).log2());
        let sum = &mut sums[*cluster];
        *sum = [sum[0] + 1.0, sum[1] + f64::from(u8::from(gain > 0.0)), sum[2] + gain];
    }
    sums.retain(|sum| sum[0] > 0.0);
    if sums.is_empty() {
        return [[0.0; 2]; 2];
    }
    let mut rng = StdRng::seed_from_u64(1);
    let mut drawn: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..RESAMPLES {
        let mut total = [0.0; 3];
        for _ in 0..sums.len() {
            let sum = sums[rng.random_range(0..sums.len())];
            (0..3).for_each(|index| total[index] += sum[index]);
        }
        drawn[0].push(total[1] / total[0]);
        drawn[1].push(total[2] / total[0]);
    }
    drawn.map(|mut values| {
        values.sort_by(f64::total_cmp);
        [values[RESAMPLES / 40], values[RESAMPLES - 1 - RESAMPLES / 40]]
    })
}

/// Formats mean and spread.
fn with_spread(mean: f64, spread: f64) -> String {
    format!("{mean:.4} ± {spread:.4}")
}

fn write_hit_header(f: &mut fmt::Formatter, title: &str) -> fmt::Result {
    writeln!(
        f,
        "{title:<20} {:>7} {:>7} {:>16} {:>16} {:>7} {:>7} {:>16}",
        "HR@5", "NDCG@5", "HR@10", "NDCG@10", "HR@20", "NDCG@20", "MRR@20"
    )
}

fn write_hit_row(f: &mut fmt::Formatter, name: &str, summary: &Summary) -> fmt::Result {
    let (m, s) = (summary.mean, summary.spread);
    writeln!(
        f,
        "{name:<20} {:>7.4} {:>7.4} {:>16} {:>16} {:>7.4} {:>7.4} {:>16}",
        m.hr_at_5,
        m.ndcg_at_5,
        with_spread(m.hr_at_10, s.hr_at_10),
        with_spread(m.ndcg_at_10, s.ndcg_at_10),
        m.hr_at_20,
        m.ndcg_at_20,
        with_spread(m.mrr_at_20, s.mrr_at_20)
    )
}

impl fmt::Display for HitReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "{} items, {} queries, {} seed(s), {:.0} s each; best epoch of the encoder {:?}; {:.0} candidates contain \
             {:.1} % of the targets",
            self.items,
            self.queries,
            self.seeds.len(),
            self.seconds,
            self.encoder_epochs,
            self.candidates,
            100.0 * self.candidate_recall
        )?;
        write_hit_header(f, "all")?;
        self.methods.iter().try_for_each(|method| write_hit_row(f, &method.method, &method.all))?;
        if let Some(count) = self.queries_descending {
            write_hit_header(f, &format!("{count} descending"))?;
            for method in &self.methods {
                method.descending.iter().try_for_each(|summary| write_hit_row(f, &method.method, summary))?;
            }
        }
        let [low, high] = self.hr_at_10_interval;
        let [low_gain, high_gain] = self.ndcg_at_10_interval;
        writeln!(f, "ranked, 95 %: HR@10 {low:.4} to {high:.4}, NDCG@10 {low_gain:.4} to {high_gain:.4}")?;
        self.baselines.iter().try_for_each(|comparison| write!(f, "\n{comparison}"))
    }
}

/// Metrics of one source, of the candidates in the order of fusion (`retrieval`), or of the answer (`ranked`).
#[derive(Debug, Clone, Serialize)]
pub struct BasketMethod {
    pub method: String,
    #[serde(flatten)]
    pub mean: BasketMetrics,
    pub spread: BasketMetrics,
}

impl BasketMethod {
    fn new(method: &str, runs: &[BasketMetrics]) -> Self {
        let spread = BasketMetrics::combine(runs, standard_deviation);
        Self { method: method.to_owned(), mean: BasketMetrics::combine(runs, mean), spread }
    }
}

/// The result of a benchmark of next baskets.
#[derive(Debug, Clone, Serialize)]
pub struct BasketReport {
    pub items: usize,
    /// Users with a next basket.
    #[serde(rename = "asked")]
    pub queries: usize,
    pub seeds: Vec<u64>,
    /// Mean time of one seed.
    pub seconds: f64,
    pub encoder_epochs: Vec<usize>,
    /// Mean share of the targets that are among the candidates.
    pub candidate_recall: f64,
    /// The metrics of the answers, the last of `methods`.
    #[serde(flatten)]
    pub ranked: BasketMetrics,
    pub methods: Vec<BasketMethod>,
    /// The answers and the baselines on a sample of the users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baselines: Option<Comparison>,
}

impl BasketReport {
    /// Summarises the runs of `seeds`; `runs` is not empty.
    pub(super) fn new(protocol: &Protocol, seeds: Vec<u64>, runs: &[ServedLists], seconds: f64) -> Self {
        let metrics = |run: &ServedLists, method: &str| {
            let index = run.methods.iter().position(|name| name == method);
            let list = |lists: &[Vec<u32>]| index.map_or_else(Vec::new, |index| lists[index].clone());
            let lists: Vec<Vec<u32>> = run.of_queries.iter().map(|of| list(&of.lists)).collect();
            let targets = protocol.queries.iter().map(|query| &query.targets);
            BasketMetrics::of(lists.iter().map(Vec::as_slice).zip(targets))
        };
        let method = |name: &String| {
            BasketMethod::new(name, &runs.iter().map(|run| metrics(run, name)).collect::<Vec<BasketMetrics>>())
        };
        let methods: Vec<BasketMethod> = runs[0].methods.iter().map(method).collect();
        let recall = |run: &ServedLists| {
            let shares = run.of_queries.iter().zip(&protocol.queries);
            let shares = shares.map(|(of, query)| of.found_count as f64 / query.targets.len() as f64);
            mean(&shares.collect::<Vec<f64>>())
        };
        Self {
            items: protocol.items.len(),
            queries: protocol.queries.len(),
            seeds,
            seconds,
            encoder_epochs: runs.iter().map(|run| run.epochs).collect(),
            candidate_recall: mean(&runs.iter().map(recall).collect::<Vec<f64>>()),
            ranked: methods.last().map(|method| method.mean).unwrap_or_default(),
            methods,
            baselines: None,
        }
    }
}

impl fmt::Display for BasketReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "{} items, {} users with a next basket, {} seed(s), {:.0} s each; best epoch of the encoder {:?}; the candidates \
             contain {:.1} % of the targets",
            self.items,
            self.queries,
            self.seeds.len(),
            self.seconds,
            self.encoder_epochs,
            100.0 * self.candidate_recall
        )?;
        writeln!(
            f,
            "{:<12} {:>16} {:>16} {:>8} {:>10} {:>8}",
            "", "Recall@10", "NDCG@10", "PHR@10", "Recall@20", "NDCG@20"
        )?;
        for method in &self.methods {
            let (m, s) = (method.mean, method.spread);
            writeln!(
                f,
                "{:<12} {:>16} {:>16} {:>8.4} {:>10.4} {:>8.4}",
                method.method,
                with_spread(m.recall_at_10, s.recall_at_10),
                with_spread(m.ndcg_at_10, s.ndcg_at_10),
                m.phr_at_10,
                m.recall_at_20,
                m.ndcg_at_20
            )?;
        }
        self.baselines.iter().try_for_each(|comparison| write!(f, "\n{comparison}"))
    }
}
