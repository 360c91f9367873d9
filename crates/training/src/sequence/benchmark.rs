//! The public benchmarks: files in, figures out. Every figure is for items that the models were not shown.
use super::{
    SequenceError,
    files::{
        Catalogue, ItemNumbers, read_accounts, read_baskets, read_catalogue, read_prefixes, read_sequences,
        read_sessions,
    },
    metrics::{BasketMetrics, HitMetrics},
    next_basket::{BasketConfig, train_baskets},
    next_item::{NextItemConfig, NextItemModel, leave_one_out, train_next_item},
    sessions::{SessionConfig, train_sessions},
    sources::{Asked, Sources},
};
use crate::{Progress, sequence::blend::Blend};
use ahash::AHashMap;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;
use std::{
    fmt,
    path::{Path, PathBuf},
    time::Instant,
};

/// Threads and seeds of a benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Trials {
    pub seed: u64,
    /// How many seeds, from `seed` on.
    pub seeds: usize,
    pub threads: usize,
}

/// Mean over the seeds, and the standard deviation of one seed's figure (0 with one seed).
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub mean: HitMetrics,
    pub spread: HitMetrics,
}

impl Summary {
    fn of(figures: &[HitMetrics]) -> Self {
        let count = figures.len().max(1) as f64;
        let mean = HitMetrics::combine(figures, |values| values.iter().sum::<f64>() / count);
        let spread = HitMetrics::combine(figures, |values| {
            let mean = values.iter().sum::<f64>() / count;
            let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
            (squares / (count - 1.0).max(1.0)).sqrt()
        });
        Self { mean, spread }
    }
}

/// Figures of one source, of the union of all (`retrieval`), or of the union as the ranker orders it (`ranked`).
#[derive(Debug, Clone, Serialize)]
pub struct Method {
    pub method: String,
    #[serde(flatten)]
    pub all: Summary,
    /// Users whose last item comes before the one before it in the items' order; none where that is not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descending: Option<Summary>,
}

/// What a benchmark of next items or clicks found.
#[derive(Debug, Clone, Serialize)]
pub struct HitReport {
    pub items: usize,
    /// Users or prefixes whose next item was to be found.
    pub asked: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_descending: Option<usize>,
    pub seeds: Vec<u64>,
    /// Of one seed, in the mean: reading, training and asking.
    pub seconds: f64,
    pub encoder_epochs: Vec<usize>,
    /// Units of the ranker's hidden layer; 0: it is linear.
    pub ranker_hidden: Vec<usize>,
    /// Share of the right items that are in the union, and how many items the union has.
    pub union_recall: f64,
    pub union_items: f64,
    /// The whole: `methods`' last.
    #[serde(flatten)]
    pub ranked: HitMetrics,
    /// 95 % by resampling users, of the first seed: the whole's HR@10 and NDCG@10.
    pub hr_at_10_interval: [f64; 2],
    pub ndcg_at_10_interval: [f64; 2],
    pub methods: Vec<Method>,
}

/// The rank of each answer by each method.
struct Ranks {
    methods: Vec<String>,
    /// `[asked][methods]`.
    ranks: Vec<Vec<Option<usize>>>,
    union_items: f64,
}

/// Asks all, in parts so that progress can be seen.
fn ranks(sources: &Sources, blend: &Blend, asked: &[Asked], progress: &mut dyn FnMut(Progress)) -> Ranks {
    const PART: usize = 1024;
    let names = sources.names();
    let (mut ranks, mut union_items) = (Vec::with_capacity(asked.len()), 0usize);
    for part in asked.chunks(PART) {
        let histories: Vec<&[u32]> = part.iter().map(|(history, _)| *history).collect();
        let found = sources.ask(&histories, |index, found| {
            let answer = part[index].1;
            let alone = (0..names.len()).map(|source| found.rank_alone(source, answer));
            let ranked = found.rank_by(&blend.scores(&found.features), answer);
            (alone.chain([found.rank_fused(answer), ranked]).collect(), found.candidates.len())
        });
        for (each, count) in found {
            ranks.push(each);
            union_items += count;
        }
        progress(Progress { stage: "asking", done: ranks.len(), total: asked.len(), loss: f32::NAN });
    }
    let methods = names.into_iter().chain(["retrieval", "ranked"]).map(str::to_owned).collect();
    Ranks { methods, ranks, union_items: union_items as f64 / asked.len().max(1) as f64 }
}

/// One seed's part of a [`HitReport`].
struct CanaryEvaluation {
    ranks: Ranks,
    epochs: usize,
    hidden: usize,
    seconds: f64,
}

/// Sums trials up. `descending` tells whom to show apart, `user` who stands behind each one asked.
fn report(
    items: usize,
    seeds: Vec<u64>,
    trials: &[CanaryEvaluation],
    descending: Option<&[bool]>,
    user: &[usize],
) -> HitReport {
    let first = &trials[0].ranks;
    let (asked, retrieval) = (first.ranks.len(), first.methods.len() - 2);
    let of = |method: usize, wanted: &dyn Fn(usize) -> bool| -> Summary {
        let figures = trials.iter().map(|trial| {
            let chosen = trial.ranks.ranks.iter().enumerate().filter(|(index, _)| wanted(*index));
            HitMetrics::of(chosen.map(|(_, ranks)| ranks[method]))
        });
        Summary::of(&figures.collect::<Vec<_>>())
    };
    let methods: Vec<Method> = (0..first.methods.len())
        .map(|method| Method {
            method: first.methods[method].clone(),
            all: of(method, &|_| true),
            descending: descending.map(|descending| of(method, &|index| descending[index])),
        })
        .collect();
    let mean = |value: &dyn Fn(&CanaryEvaluation) -> f64| trials.iter().map(value).sum::<f64>() / trials.len() as f64;
    let recall = |trial: &CanaryEvaluation| {
        let found = trial.ranks.ranks.iter().filter(|ranks| ranks[retrieval].is_some()).count();
        found as f64 / asked.max(1) as f64
    };
    let last: Vec<Option<usize>> = first.ranks.iter().map(|ranks| ranks[retrieval + 1]).collect();
    let [hr_at_10_interval, ndcg_at_10_interval] = intervals(&last, user);
    HitReport {
        items,
        asked,
        asked_descending: descending.map(|descending| descending.iter().filter(|is| **is).count()),
        seeds,
        seconds: mean(&|trial| trial.seconds),
        encoder_epochs: trials.iter().map(|trial| trial.epochs).collect(),
        ranker_hidden: trials.iter().map(|trial| trial.hidden).collect(),
        union_recall: mean(&recall),
        union_items: mean(&|trial| trial.ranks.union_items),
        ranked: methods.last().map(|method| method.all.mean).unwrap_or_default(),
        hr_at_10_interval,
        ndcg_at_10_interval,
        methods,
    }
}

/// Samples of a bootstrap.
const RESAMPLES: usize = 1000;

/// Percentile bootstrap (Efron 1979) over users: the middle 95 % of HR@10 and of NDCG@10.
fn intervals(ranks: &[Option<usize>], user: &[usize]) -> [[f64; 2]; 2] {
    let users = user.iter().max().map_or(0, |greatest| greatest + 1);
    let mut sums = vec![[0.0f64; 3]; users];
    for (rank, user) in ranks.iter().zip(user) {
        let gain = rank.filter(|rank| *rank <= 10).map_or(0.0, |rank| 1.0 / (rank as f64 + 1.0).log2());
        let sum = &mut sums[*user];
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
            (0..3).for_each(|place| total[place] += sum[place]);
        }
        drawn[0].push(total[1] / total[0]);
        drawn[1].push(total[2] / total[0]);
    }
    drawn.map(|mut values| {
        values.sort_by(f64::total_cmp);
        [values[RESAMPLES / 40], values[RESAMPLES - 1 - RESAMPLES / 40]]
    })
}

impl fmt::Display for HitReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "{} items, {} asked, {} seed(s), {:.0} s each; encoder's best epoch {:?}; union of {:.0} items has {:.1} % of the \
             answers",
            self.items,
            self.asked,
            self.seeds.len(),
            self.seconds,
            self.encoder_epochs,
            self.union_items,
            100.0 * self.union_recall
        )?;
        let header = |f: &mut fmt::Formatter, title: &str| {
            writeln!(
                f,
                "{title:<20} {:>7} {:>7} {:>16} {:>16} {:>7} {:>7} {:>16}",
                "HR@5", "NDCG@5", "HR@10", "NDCG@10", "HR@20", "NDCG@20", "MRR@20"
            )
        };
        let row = |f: &mut fmt::Formatter, name: &str, summary: &Summary| {
            let (m, s) = (summary.mean, summary.spread);
            let both = |mean: f64, spread: f64| format!("{mean:.4} ± {spread:.4}");
            writeln!(
                f,
                "{name:<20} {:>7.4} {:>7.4} {:>16} {:>16} {:>7.4} {:>7.4} {:>16}",
                m.hr_at_5,
                m.ndcg_at_5,
                both(m.hr_at_10, s.hr_at_10),
                both(m.ndcg_at_10, s.ndcg_at_10),
                m.hr_at_20,
                m.ndcg_at_20,
                both(m.mrr_at_20, s.mrr_at_20)
            )
        };
        header(f, "all")?;
        self.methods.iter().try_for_each(|method| row(f, &method.method, &method.all))?;
        if let Some(count) = self.asked_descending {
            header(f, &format!("{count} descending"))?;
            for method in &self.methods {
                method.descending.iter().try_for_each(|summary| row(f, &method.method, summary))?;
            }
        }
        let [low, high] = self.hr_at_10_interval;
        let [low_gain, high_gain] = self.ndcg_at_10_interval;
        writeln!(f, "ranked, 95 %: HR@10 {low:.4} to {high:.4}, NDCG@10 {low_gain:.4} to {high_gain:.4}")
    }
}

/// Files of [`next_item`].
#[derive(Debug, Clone)]
pub struct NextItemFiles {
    pub sequences: PathBuf,
    pub items: PathBuf,
    pub users: Option<PathBuf>,
}

/// Leave-one-out with full ranking; items of the history are not ranked. Everyone with at least three items is asked for the
/// last one.
pub fn next_item(
    files: &NextItemFiles,
    trials: Trials,
    progress: &mut dyn FnMut(Progress),
) -> Result<HitReport, SequenceError> {
    let mut catalogue = read_catalogue(&files.items)?;
    let (users, histories) = read_sequences(&files.sequences, &mut catalogue.items)?;
    catalogue.complete();
    let split = leave_one_out(&histories);
    if split.test.is_empty() {
        let problem = "nobody has three items: one to learn from, one to validate, one to find";
        return Err(SequenceError::TooLittle(problem.to_owned()));
    }
    let asked_users = split.test.iter().map(|(index, _)| users[*index].as_str());
    let user = match &files.users {
        Some(path) => user_numbers(asked_users, path)?,
        None => (0..split.test.len()).collect(),
    };
    let asked: Vec<Asked> = split.test.iter().map(|(_, asked)| *asked).collect();
    let descending: Vec<bool> = asked.iter().map(|asked| is_descending(asked, &catalogue)).collect();
    let seeds: Vec<u64> = (0..trials.seeds as u64).map(|index| trials.seed + index).collect();
    let mut done = Vec::new();
    for seed in &seeds {
        let begun = Instant::now();
        let config = NextItemConfig::for_data(&split.train, catalogue.items.count(), trials.threads, *seed);
        let NextItemModel { sources, blend, epochs } = train_next_item(&split, &catalogue, &config, progress)?;
        let ranks = ranks(&sources, &blend, &asked, progress);
        done.push(CanaryEvaluation { ranks, epochs, hidden: blend.hidden(), seconds: begun.elapsed().as_secs_f64() });
    }
    Ok(report(catalogue.items.count(), seeds, &done, Some(&descending), &user))
}

/// Whether the last item comes before the one before it in the items' order.
fn is_descending((history, answer): &Asked, catalogue: &Catalogue) -> bool {
    let latest = history.last().map(|item| &catalogue.order[*item as usize]);
    latest.is_some_and(|latest| catalogue.order[*answer as usize] < *latest)
}

/// Numbers of the users behind users.
fn user_numbers<'a>(users: impl Iterator<Item = &'a str>, path: &Path) -> Result<Vec<usize>, SequenceError> {
    let names = read_accounts(path)?;
    let mut numbers: AHashMap<&str, usize> = AHashMap::new();
    let user = users.map(|user| {
        let name = names.get(user).ok_or_else(|| SequenceError::File {
            path: path.to_owned(),
            problem: format!("does not have user `{user}` of the sequences"),
        })?;
        let next = numbers.len();
        Ok(*numbers.entry(name.as_str()).or_insert(next))
    });
    user.collect()
}

/// Files of [`sessions`].
#[derive(Debug, Clone)]
pub struct SessionFiles {
    pub train: PathBuf,
    pub test: PathBuf,
}

/// Next clicks of later sessions, ranked among all items; what is in the session may come again.
pub fn sessions(
    files: &SessionFiles,
    trials: Trials,
    progress: &mut dyn FnMut(Progress),
) -> Result<HitReport, SequenceError> {
    let mut items = ItemNumbers::default();
    let train = read_sessions(&files.train, &mut items)?;
    let test = read_prefixes(&files.test, &mut items)?;
    if test.is_empty() {
        return Err(SequenceError::TooLittle("the test has no line".to_owned()));
    }
    let train: Vec<&[u32]> = train.iter().map(Vec::as_slice).collect();
    let asked: Vec<Asked> = test.iter().map(|(clicks, next)| (clicks.as_slice(), *next)).collect();
    let user: Vec<usize> = (0..asked.len()).collect();
    let seeds: Vec<u64> = (0..trials.seeds as u64).map(|index| trials.seed + index).collect();
    let mut done = Vec::new();
    for seed in &seeds {
        let begun = Instant::now();
        let config = SessionConfig::for_data(&train, items.count(), trials.threads, *seed);
        let model = train_sessions(&train, items.count(), &config, progress)?;
        let ranks = ranks(&model.sources, &model.blend, &asked, progress);
        let seconds = begun.elapsed().as_secs_f64();
        done.push(CanaryEvaluation { ranks, epochs: model.epochs, hidden: model.blend.hidden(), seconds });
    }
    Ok(report(items.count(), seeds, &done, None, &user))
}

/// Files of [`next_basket`].
#[derive(Debug, Clone)]
pub struct BasketFiles {
    pub history: PathBuf,
    pub future: PathBuf,
}

/// Figures of one way to foretell baskets.
#[derive(Debug, Clone, Serialize)]
pub struct BasketMethod {
    pub method: &'static str,
    #[serde(flatten)]
    pub mean: BasketMetrics,
    pub spread: BasketMetrics,
}

/// What a benchmark of next baskets found.
#[derive(Debug, Clone, Serialize)]
pub struct BasketReport {
    pub items: usize,
    /// Users whose next basket was to be found.
    pub asked: usize,
    pub seeds: Vec<u64>,
    pub seconds: f64,
    pub ranker_hidden: Vec<usize>,
    /// The whole: `methods`' last.
    #[serde(flatten)]
    pub ranked: BasketMetrics,
    pub methods: Vec<BasketMethod>,
}

/// Next baskets of users whose earlier ones are known, ranked among all items.
pub fn next_basket(
    files: &BasketFiles,
    trials: Trials,
    progress: &mut dyn FnMut(Progress),
) -> Result<BasketReport, SequenceError> {
    let mut items = ItemNumbers::default();
    let known = read_baskets(&files.history, &mut items)?;
    let future = read_baskets(&files.future, &mut items)?;
    let place: AHashMap<&str, usize> =
        known.iter().enumerate().map(|(place, (user, _))| (user.as_str(), place)).collect();
    let (mut asked, mut wanted): (Vec<&[Vec<u32>]>, Vec<Vec<u32>>) = (Vec::new(), Vec::new());
    for (user, baskets) in &future {
        let Some(basket) = baskets.first() else { continue };
        let history: &[Vec<u32>] = place.get(user.as_str()).map_or(&[], |place| &known[*place].1);
        asked.push(history);
        wanted.push(basket.clone());
    }
    if asked.is_empty() {
        return Err(SequenceError::TooLittle("nobody has a next basket to be found".to_owned()));
    }
    let histories: Vec<&[Vec<u32>]> = known.iter().map(|(_, baskets)| baskets.as_slice()).collect();
    let seeds: Vec<u64> = (0..trials.seeds as u64).map(|index| trials.seed + index).collect();
    let (mut figures, mut hidden, begun) = ([Vec::new(), Vec::new()], Vec::new(), Instant::now());
    for seed in &seeds {
        let mut config = BasketConfig::default();
        config.blend.seed = *seed;
        let model = train_baskets(&histories, items.count(), &config, progress)?;
        let foretold = model.foretell(&asked, 20);
        hidden.push(model.blend.hidden());
        for (method, figures) in [1, 0].into_iter().zip(&mut figures) {
            figures.push(BasketMetrics::of(foretold.iter().map(|lists| &lists[method][..]).zip(&wanted)));
        }
    }
    let methods: Vec<BasketMethod> = ["retrieval", "ranked"]
        .into_iter()
        .zip(&figures)
        .map(|(method, figures)| {
            let count = figures.len().max(1) as f64;
            let mean = |values: &[f64]| values.iter().sum::<f64>() / count;
            let spread = |values: &[f64]| {
                let mean = mean(values);
                (values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / (count - 1.0).max(1.0))
                    .sqrt()
            };
            let (mean, spread) = (BasketMetrics::combine(figures, mean), BasketMetrics::combine(figures, spread));
            BasketMethod { method, mean, spread }
        })
        .collect();
    Ok(BasketReport {
        items: items.count(),
        asked: asked.len(),
        seconds: begun.elapsed().as_secs_f64() / seeds.len().max(1) as f64,
        seeds,
        ranker_hidden: hidden,
        ranked: methods.last().map(|method| method.mean).unwrap_or_default(),
        methods,
    })
}

impl fmt::Display for BasketReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "{} items, {} users asked, {} seed(s), {:.0} s each",
            self.items,
            self.asked,
            self.seeds.len(),
            self.seconds
        )?;
        writeln!(
            f,
            "{:<12} {:>16} {:>16} {:>8} {:>10} {:>8}",
            "", "Recall@10", "NDCG@10", "PHR@10", "Recall@20", "NDCG@20"
        )?;
        for method in &self.methods {
            let (m, s) = (method.mean, method.spread);
            let both = |mean: f64, spread: f64| format!("{mean:.4} ± {spread:.4}");
            writeln!(
                f,
                "{:<12} {:>16} {:>16} {:>8.4} {:>10.4} {:>8.4}",
                method.method,
                both(m.recall_at_10, s.recall_at_10),
                both(m.ndcg_at_10, s.ndcg_at_10),
                m.phr_at_10,
                m.recall_at_20,
                m.ndcg_at_20
            )?;
        }
        Ok(())
    }
}
