//! Next-basket prediction, of repeated and new purchases. The last known basket of each user trains the ranker; then
//! the counts are rebuilt from all baskets.
use super::{
    SequenceError,
    blend::{Blend, BlendConfig, Lists, train_best_blend},
    latest,
    pairs::{best, identity_pairs, neighbours, transitions},
    samples::Repeats,
    similar_histories::SimilarHistories,
    sources::{Sources, Table, TableRole},
};
use crate::Progress;

/// How a [`BasketModel`] is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct BasketConfig {
    pub blend: BlendConfig,
    /// Most candidates of each source.
    pub per_source: usize,
}

impl Default for BasketConfig {
    fn default() -> Self {
        Self { blend: BlendConfig::default(), per_source: 100 }
    }
}

/// A model that predicts the next basket of each user.
#[derive(Debug, Clone)]
pub struct BasketModel {
    pub sources: Sources,
    pub blend: Blend,
}

/// Users between two progress reports.
const PART: usize = 1024;
/// Weight of a basket in recent popularity, as a share of its successor's.
const RECENCY: f32 = 0.6;

/// Returns the items of the baskets, oldest first; the latest [`super::HISTORY_MAX`].
pub fn flat(baskets: &[Vec<u32>]) -> Vec<u32> {
    latest(&baskets.iter().flatten().copied().collect::<Vec<u32>>()).to_vec()
}

/// Returns the sources of basket histories, oldest basket first; a basket contains an item at most once.
pub fn basket_sources(histories: &[&[Vec<u32>]], item_count: usize, per_source: usize) -> Sources {
    let (mut popularity, mut recent) = (vec![0.0; item_count], vec![0.0; item_count]);
    for history in histories {
        for (age, basket) in history.iter().rev().enumerate() {
            for item in basket {
                popularity[*item as usize] += 1.0;
                recent[*item as usize] += RECENCY.powi(age.min(100) as i32);
            }
        }
    }
    let baskets: Vec<&[u32]> = histories.iter().flat_map(|history| history.iter().map(Vec::as_slice)).collect();
    let flattened: Vec<Vec<u32>> = histories.iter().map(|history| flat(history)).collect();
    let flattened: Vec<&[u32]> = flattened.iter().map(Vec::as_slice).collect();
    let forward = transitions(&flattened, item_count, 15, 0.0, 300, |_| 1.0);
    let tables = vec![
        Table::new("bought often", identity_pairs(item_count), 0.995, TableRole::Candidates),
        Table::new("bought recently", identity_pairs(item_count), 0.9, TableRole::Candidates),
        Table::new("bought last", identity_pairs(item_count), 0.6, TableRole::FeatureOnly),
        Table::new("co-purchases", neighbours(&baskets, item_count, 40, 5.0, 300), 0.95, TableRole::Candidates),
        Table::new("neighbours", neighbours(&flattened, item_count, 60, 5.0, 300), 0.95, TableRole::Candidates),
        Table::new("forward transitions", forward, 0.9, TableRole::Candidates),
    ];
    let histories = Some(SimilarHistories::new(&flattened, item_count, 0.98, f32::INFINITY));
    let repeats = Repeats::Allowed;
    Sources { encoders: Vec::new(), tables, terms: Vec::new(), histories, popularity, recent, repeats, per_source }
}

/// Trains a model on the baskets of all users, oldest first. The returned sources include the last baskets.
pub fn train_baskets(
    histories: &[&[Vec<u32>]],
    item_count: usize,
    config: &BasketConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<BasketModel, SequenceError> {
    let cut = histories.iter().filter(|history| history.len() >= 2).filter_map(|history| history.split_last());
    let (targets, early): (Vec<&Vec<u32>>, Vec<&[Vec<u32>]>) = cut.unzip();
    if early.is_empty() {
        let problem = "no user has two baskets; the ranker needs at least one next basket to learn from";
        return Err(SequenceError::TooLittle(problem.to_owned()));
    }
    let sources = basket_sources(&early, item_count, config.per_source);
    let queries: Vec<Vec<u32>> = early.iter().map(|history| flat(history)).collect();
    let mut lists = Lists::new(sources.feature_names().len());
    for (number, part) in queries.chunks(PART).enumerate() {
        let part: Vec<&[u32]> = part.iter().map(Vec::as_slice).collect();
        let labelled = sources.retrieve(&part, |index, set| {
            let targets = targets[number * PART + index];
            let label = |item: &u32| f32::from(u8::from(targets.binary_search(item).is_ok()));
            let labels: Vec<f32> = set.candidates.iter().map(label).collect();
            labels.contains(&1.0).then(|| (set.features.clone(), labels))
        });
        labelled.into_iter().flatten().for_each(|(features, labels)| lists.push(&features, &labels));
        let done = number * PART + part.len();
        progress(Progress { stage: "candidates", done, total: queries.len(), loss: f32::NAN });
    }
    let blend = train_best_blend(lists, &config.blend, progress)?;
    Ok(BasketModel { sources: basket_sources(histories, item_count, config.per_source), blend })
}

impl BasketModel {
    /// Returns the best `count` items for each user: by the ranker, and in the order of the union.
    pub fn predict(&self, histories: &[&[Vec<u32>]], count: usize) -> Vec<[Vec<u32>; 2]> {
        let queries: Vec<Vec<u32>> = histories.iter().map(|history| flat(history)).collect();
        let queries: Vec<&[u32]> = queries.iter().map(Vec::as_slice).collect();
        self.sources.retrieve(&queries, |_, set| {
            let scored = set.candidates.iter().copied().zip(self.blend.scores(&set.features));
            let ranked = best(scored.collect(), count).into_iter().map(|(item, _)| item).collect();
            [ranked, set.candidates.iter().take(count).copied().collect()]
        })
    }
}
