//! The next basket: what is bought again and what for the first time. Everyone's last known basket teaches the ranker; then
//! the counts are made anew from all baskets.
use super::{
    SequenceError,
    alike::{Alike, itself},
    blend::{Blend, BlendConfig, Lists, train_best_blend},
    latest,
    pairs::{best, neighbours, transitions},
    sources::{Sources, Table},
};
use crate::Progress;

/// How a [`BasketModel`] is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct BasketConfig {
    pub blend: BlendConfig,
    /// Candidates of each source.
    pub per_source: usize,
}

impl Default for BasketConfig {
    fn default() -> Self {
        Self { blend: BlendConfig::default(), per_source: 100 }
    }
}

/// What foretells everyone's next basket.
#[derive(Debug, Clone)]
pub struct BasketModel {
    pub sources: Sources,
    pub blend: Blend,
}

/// Weight of a basket in units of the one after it, in what is popular of late.
const RECENCY: f32 = 0.6;

/// Items of the baskets, oldest first; the latest [`super::HISTORY_MAX`].
pub fn flat(baskets: &[Vec<u32>]) -> Vec<u32> {
    latest(&baskets.iter().flatten().copied().collect::<Vec<u32>>()).to_vec()
}

/// Counts of histories of baskets, oldest first, each with an item once.
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
    let tables = vec![
        Table::new("bought often", itself(item_count), 0.995, true),
        Table::new("bought of late", itself(item_count), 0.9, true),
        Table::new("bought last", itself(item_count), 0.6, false),
        Table::new("together", neighbours(&baskets, item_count, 40, 5.0, 300), 0.95, true),
        Table::new("neighbours", neighbours(&flattened, item_count, 60, 5.0, 300), 0.95, true),
        Table::new("onwards", transitions(&flattened, item_count, 15, 0.0, 300, |_| 1.0), 0.9, true),
    ];
    let alike = Some(Alike::new(&flattened, item_count, 0.98, f32::INFINITY));
    Sources { encoders: Vec::new(), tables, terms: Vec::new(), alike, popularity, recent, repeats: true, per_source }
}

/// Learns from everyone's baskets, oldest first. The sources that are given back know them all.
pub fn train_baskets(
    histories: &[&[Vec<u32>]],
    item_count: usize,
    config: &BasketConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<BasketModel, SequenceError> {
    let cut = histories.iter().filter(|history| history.len() >= 2).filter_map(|history| history.split_last());
    let (wanted, early): (Vec<&Vec<u32>>, Vec<&[Vec<u32>]>) = cut.unzip();
    if early.is_empty() {
        let problem = "nobody has two baskets: there is no next basket to learn from";
        return Err(SequenceError::TooLittle(problem.to_owned()));
    }
    let sources = basket_sources(&early, item_count, config.per_source);
    let asked: Vec<Vec<u32>> = early.iter().map(|history| flat(history)).collect();
    let mut lists = Lists::new(sources.feature_names().len());
    for (part, asked_part) in asked.chunks(1024).enumerate() {
        let asked_part: Vec<&[u32]> = asked_part.iter().map(Vec::as_slice).collect();
        let found = sources.ask(&asked_part, |index, found| {
            let wanted = wanted[part * 1024 + index];
            let is_wanted = |item: &u32| f32::from(u8::from(wanted.binary_search(item).is_ok()));
            let labels: Vec<f32> = found.candidates.iter().map(is_wanted).collect();
            labels.contains(&1.0).then(|| (found.features.clone(), labels))
        });
        found.into_iter().flatten().for_each(|(features, labels)| lists.push(&features, &labels));
        let done = part * 1024 + asked_part.len();
        progress(Progress { stage: "candidates", done, total: asked.len(), loss: f32::NAN });
    }
    let blend = train_best_blend(lists, &config.blend, progress)?;
    Ok(BasketModel { sources: basket_sources(histories, item_count, config.per_source), blend })
}

impl BasketModel {
    /// The best `count` items for each user, by the ranker and by the union alone.
    pub fn foretell(&self, histories: &[&[Vec<u32>]], count: usize) -> Vec<[Vec<u32>; 2]> {
        let asked: Vec<Vec<u32>> = histories.iter().map(|history| flat(history)).collect();
        let asked: Vec<&[u32]> = asked.iter().map(Vec::as_slice).collect();
        self.sources.ask(&asked, |_, found| {
            let scored = found.candidates.iter().copied().zip(self.blend.scores(&found.features));
            let ranked = best(scored.collect(), count).into_iter().map(|(item, _)| item).collect();
            [ranked, found.candidates.iter().take(count).copied().collect()]
        })
    }
}
