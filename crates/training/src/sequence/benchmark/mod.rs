//! The public benchmarks of sequence models: read files, train, evaluate on held-out items.
mod report;

use super::{
    SequenceError,
    blend::Blend,
    files::{
        Catalogue, ItemNumbers, read_baskets, read_catalogue, read_clusters, read_prefixes, read_sequences,
        read_sessions,
    },
    metrics::BasketMetrics,
    next_basket::{BasketConfig, train_baskets},
    next_item::{NextItemConfig, NextItemModel, leave_one_out, train_next_item},
    sessions::{SessionConfig, train_sessions},
    sources::{NextItemQuery, Sources},
};
use crate::Progress;
use ahash::AHashMap;
pub use report::{BasketMethod, BasketReport, HitReport, Method, Summary};
use report::{QueryGroups, Ranks, Run};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Seeds and threads of a benchmark.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// The first seed.
    pub seed: u64,
    /// Number of runs, each with the next seed.
    pub seeds: usize,
    pub threads: usize,
}

impl RunOptions {
    fn seeds(&self) -> Vec<u64> {
        (0..self.seeds as u64).map(|index| self.seed + index).collect()
    }
}

/// Returns the rank of each query's target by each method, computed in parts with a progress report after each.
fn ranks(sources: &Sources, blend: &Blend, queries: &[NextItemQuery], progress: &mut dyn FnMut(Progress)) -> Ranks {
    const PART: usize = 1024;
    let names = sources.names();
    let (mut ranks, mut union_items) = (Vec::with_capacity(queries.len()), 0usize);
    for part in queries.chunks(PART) {
        let histories: Vec<&[u32]> = part.iter().map(|(history, _)| *history).collect();
        let of_part = sources.retrieve(&histories, |index, set| {
            let target = part[index].1;
            let alone = (0..names.len()).map(|source| set.rank_alone(source, target));
            let ranked = set.rank_by(&blend.scores(&set.features), target);
            (alone.chain([set.rank_fused(target), ranked]).collect(), set.candidates.len())
        });
        for (of_query, count) in of_part {
            ranks.push(of_query);
            union_items += count;
        }
        progress(Progress { stage: "evaluation", done: ranks.len(), total: queries.len(), loss: f32::NAN });
    }
    let methods = names.into_iter().chain(["retrieval", "ranked"]).map(str::to_owned).collect();
    Ranks { methods, ranks, union_items: union_items as f64 / queries.len().max(1) as f64 }
}

/// Files of [`next_item`].
#[derive(Debug, Clone)]
pub struct NextItemFiles {
    pub sequences: PathBuf,
    pub items: PathBuf,
    /// Clusters of users, which are resampled as a whole for the intervals. `None`: each user is a cluster.
    pub clusters: Option<PathBuf>,
}

/// Evaluates leave-one-out with full ranking, without the items of the history. The last item of each user with at
/// least three items is the target.
pub fn next_item(
    files: &NextItemFiles,
    options: RunOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<HitReport, SequenceError> {
    let mut catalogue = read_catalogue(&files.items)?;
    let (users, histories) = read_sequences(&files.sequences, &mut catalogue.items)?;
    catalogue.complete();
    let split = leave_one_out(&histories);
    if split.test.is_empty() {
        let problem = "no user has three items, one each for training, validation and test";
        return Err(SequenceError::TooLittle(problem.to_owned()));
    }
    let test_users = split.test.iter().map(|(index, _)| users[*index].as_str());
    let clusters = match &files.clusters {
        Some(path) => cluster_numbers(test_users, path)?,
        None => (0..split.test.len()).collect(),
    };
    let queries: Vec<NextItemQuery> = split.test.iter().map(|(_, query)| *query).collect();
    let descending: Vec<bool> = queries.iter().map(|query| is_descending(query, &catalogue)).collect();
    let seeds = options.seeds();
    let mut runs = Vec::new();
    for seed in &seeds {
        let begun = Instant::now();
        let config = NextItemConfig::for_data(&split.train, catalogue.items.count(), options.threads, *seed);
        let NextItemModel { sources, blend, epochs } = train_next_item(&split, &catalogue, &config, progress)?;
        let ranks = ranks(&sources, &blend, &queries, progress);
        runs.push(Run { ranks, epochs, hidden: blend.hidden(), seconds: begun.elapsed().as_secs_f64() });
    }
    let groups = QueryGroups { descending: Some(descending), clusters };
    Ok(HitReport::new(catalogue.items.count(), seeds, &runs, &groups))
}

/// Returns whether the target comes before the latest item of the history in the items' order.
fn is_descending((history, target): &NextItemQuery, catalogue: &Catalogue) -> bool {
    let latest = history.last().map(|item| &catalogue.order[*item as usize]);
    latest.is_some_and(|latest| catalogue.order[*target as usize] < *latest)
}

/// Returns consecutive numbers of the users' clusters.
fn cluster_numbers<'a>(users: impl Iterator<Item = &'a str>, path: &Path) -> Result<Vec<usize>, SequenceError> {
    let clusters = read_clusters(path)?;
    let mut numbers: AHashMap<&str, usize> = AHashMap::new();
    let numbered = users.map(|user| {
        let cluster = clusters.get(user).ok_or_else(|| SequenceError::File {
            path: path.to_owned(),
            problem: format!("has no cluster for user `{user}` of the sequences"),
        })?;
        let next = numbers.len();
        Ok(*numbers.entry(cluster.as_str()).or_insert(next))
    });
    numbered.collect()
}

/// Files of [`sessions`].
#[derive(Debug, Clone)]
pub struct SessionFiles {
    pub train: PathBuf,
    pub test: PathBuf,
}

/// Evaluates the next clicks of later sessions, ranked among all items; items of the session may repeat.
pub fn sessions(
    files: &SessionFiles,
    options: RunOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<HitReport, SequenceError> {
    let mut items = ItemNumbers::default();
    let train = read_sessions(&files.train, &mut items)?;
    let test = read_prefixes(&files.test, &mut items)?;
    if test.is_empty() {
        return Err(SequenceError::TooLittle("the test file has no lines".to_owned()));
    }
    let train: Vec<&[u32]> = train.iter().map(Vec::as_slice).collect();
    let queries: Vec<NextItemQuery> = test.iter().map(|(clicks, next)| (clicks.as_slice(), *next)).collect();
    let seeds = options.seeds();
    let mut runs = Vec::new();
    for seed in &seeds {
        let begun = Instant::now();
        let config = SessionConfig::for_data(&train, items.count(), options.threads, *seed);
        let model = train_sessions(&train, items.count(), &config, progress)?;
        let ranks = ranks(&model.sources, &model.blend, &queries, progress);
        let seconds = begun.elapsed().as_secs_f64();
        runs.push(Run { ranks, epochs: model.epochs, hidden: model.blend.hidden(), seconds });
    }
    let groups = QueryGroups { descending: None, clusters: (0..queries.len()).collect() };
    Ok(HitReport::new(items.count(), seeds, &runs, &groups))
}

/// Files of [`next_basket`].
#[derive(Debug, Clone)]
pub struct BasketFiles {
    pub history: PathBuf,
    pub future: PathBuf,
}

/// Evaluates the next baskets of users with known earlier baskets, ranked among all items.
pub fn next_basket(
    files: &BasketFiles,
    options: RunOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<BasketReport, SequenceError> {
    let mut items = ItemNumbers::default();
    let known = read_baskets(&files.history, &mut items)?;
    let future = read_baskets(&files.future, &mut items)?;
    let index_of: AHashMap<&str, usize> =
        known.iter().enumerate().map(|(index, (user, _))| (user.as_str(), index)).collect();
    let (mut queries, mut targets): (Vec<&[Vec<u32>]>, Vec<Vec<u32>>) = (Vec::new(), Vec::new());
    for (user, baskets) in &future {
        let Some(basket) = baskets.first() else { continue };
        let history: &[Vec<u32>] = index_of.get(user.as_str()).map_or(&[], |index| &known[*index].1);
        queries.push(history);
        targets.push(basket.clone());
    }
    if queries.is_empty() {
        return Err(SequenceError::TooLittle("no user has a next basket".to_owned()));
    }
    let histories: Vec<&[Vec<u32>]> = known.iter().map(|(_, baskets)| baskets.as_slice()).collect();
    let seeds = options.seeds();
    let (mut runs, mut hidden, begun) = ([Vec::new(), Vec::new()], Vec::new(), Instant::now());
    for seed in &seeds {
        let mut config = BasketConfig::default();
        config.blend.seed = *seed;
        let model = train_baskets(&histories, items.count(), &config, progress)?;
        let predicted = model.predict(&queries, 20);
        hidden.push(model.blend.hidden());
        for (list, runs) in [1, 0].into_iter().zip(&mut runs) {
            runs.push(BasketMetrics::of(predicted.iter().map(|lists| &lists[list][..]).zip(&targets)));
        }
    }
    let methods: Vec<BasketMethod> =
        ["retrieval", "ranked"].into_iter().zip(&runs).map(|(method, runs)| BasketMethod::new(method, runs)).collect();
    Ok(BasketReport {
        items: items.count(),
        queries: queries.len(),
        seconds: begun.elapsed().as_secs_f64() / seeds.len().max(1) as f64,
        seeds,
        ranker_hidden: hidden,
        ranked: methods.last().map(|method| method.mean).unwrap_or_default(),
        methods,
    })
}
