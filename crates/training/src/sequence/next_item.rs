//! Next-item recommendation with leave-one-out: the last item of each history is the test target; the second-to-last
//! one stops the encoder and trains the ranker.
use super::{
    Interruption, SequenceError,
    blend::{Blend, BlendConfig, train_best_blend},
    encoder::encoder_quality,
    encoder_config::EncoderConfig,
    files::Catalogue,
    fit::{TrainedEncoder, train_encoder},
    latest,
    pairs::{neighbours, transitions, two_steps},
    samples::{ItemText, Repeats, next_items, windows},
    similar_histories::SimilarHistories,
    sources::{NextItemQuery, Sources, Table, TableRole, TermSource, lists},
    text::TermVectors,
};
use crate::Progress;

/// Training histories and the queries of validation and test.
#[derive(Debug, Clone)]
pub struct Split<'a> {
    /// Histories without their last two items.
    pub train: Vec<&'a [u32]>,
    pub validation: Vec<NextItemQuery<'a>>,
    /// The index of each history with a test query, and the query: all items but the last, and the last as target.
    pub test: Vec<(usize, NextItemQuery<'a>)>,
}

/// Splits each history: the last item is the test target, the one before it the validation target, and the rest is the
/// training history. Histories of fewer than three items are only trained on. Histories are cut to the latest
/// [`super::HISTORY_MAX`] events.
pub fn leave_one_out(histories: &[Vec<u32>]) -> Split<'_> {
    let mut split = Split { train: Vec::new(), validation: Vec::new(), test: Vec::new() };
    for (index, history) in histories.iter().enumerate() {
        match history.as_slice() {
            [train @ .., validation, test] if !train.is_empty() => {
                let train = latest(train);
                split.train.push(train);
                split.validation.push((train, *validation));
                let known = latest(&history[..history.len() - 1]);
                split.test.push((index, (known, *test)));
            }
            short => split.train.push(short),
        }
    }
    split
}

/// How a [`NextItemModel`] is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct NextItemConfig {
    pub encoder: EncoderConfig,
    pub blend: BlendConfig,
    /// Dimensions of an item's text vector.
    pub text_width: usize,
    /// Most candidates of each source.
    pub per_source: usize,
}

impl NextItemConfig {
    /// Returns settings for these training histories.
    pub fn for_data(train: &[&[u32]], item_count: usize, threads: usize, seed: u64) -> Self {
        Self {
            encoder: EncoderConfig::for_data(train, item_count, threads, seed),
            blend: BlendConfig { seed, ..BlendConfig::default() },
            text_width: 64,
            per_source: 150,
        }
    }
}

/// Sources that are fitted to the histories before the validation targets, and the ranker that is trained on these
/// targets.
#[derive(Debug, Clone)]
pub struct NextItemModel {
    pub sources: Sources,
    pub blend: Blend,
    /// Epochs until the encoder's best validation score.
    pub epochs: usize,
}

/// Greatest distance of two items that counts as a transition.
const WINDOW: usize = 5;
/// Weight of the reverse pair, as a share of the pair's weight.
const REVERSE: f32 = 0.5;
/// Weight of an item of the history as a share of its successor's.
const DECAY: f32 = 0.8;

/// Returns all sources except the encoder: co-occurrence counts, text similarity and similar histories.
pub fn count_sources(train: &[&[u32]], catalogue: &Catalogue, per_source: usize) -> Sources {
    let item_count = catalogue.items.count();
    let mut popularity = vec![0.0; item_count];
    train.iter().flat_map(|history| history.iter()).for_each(|item| popularity[*item as usize] += 1.0);
    let both_directions = transitions(train, item_count, WINDOW, REVERSE, 500, |_| 1.0);
    let forward = transitions(train, item_count, 3, 0.0, 200, |_| 1.0);
    let two_steps = two_steps(&both_directions, item_count, 200);
    let neighbours = neighbours(train, item_count, 50, 1.0, 500);
    let tables = vec![
        Table::new("transitions", both_directions, DECAY, TableRole::Candidates),
        Table::new("neighbours", neighbours, DECAY, TableRole::Candidates),
        Table::new("two-step transitions", two_steps, DECAY, TableRole::Candidates),
        Table::new("forward transitions", forward, 0.5, TableRole::FeatureOnly),
    ];
    let documents = [("text", &catalogue.words), ("attributes", &catalogue.attributes)];
    let terms = documents.into_iter().filter_map(|(name, documents)| {
        let vectors = TermVectors::new(documents);
        let similar = vectors.neighbours(200);
        (!vectors.is_empty()).then_some(TermSource { name, vectors, similar, decay: DECAY })
    });
    let terms = terms.collect();
    let histories = Some(SimilarHistories::new(train, item_count, DECAY, f32::INFINITY));
    Sources {
        encoders: Vec::new(),
        tables,
        terms,
        histories,
        popularity,
        recent: Vec::new(),
        repeats: Repeats::Excluded,
        per_source,
    }
}

/// Returns dense vectors of words and attributes together, for the encoder.
pub fn item_text(catalogue: &Catalogue, width: usize) -> ItemText {
    let documents = catalogue.words.iter().zip(&catalogue.attributes).map(|(words, attributes)| {
        let attributes = attributes.iter().map(|attribute| format!("={attribute}"));
        words.iter().cloned().chain(attributes).collect()
    });
    let vectors = TermVectors::new(&documents.collect::<Vec<Vec<String>>>());
    if vectors.is_empty() { ItemText::default() } else { vectors.dense(width) }
}

/// Trains the sources on the histories before the validation targets. The validation targets train the ranker and stop
/// the encoder. The test targets are not read.
pub fn train_next_item(
    split: &Split,
    catalogue: &Catalogue,
    config: &NextItemConfig,
    progress: &mut dyn FnMut(Progress),
) -> Result<NextItemModel, SequenceError> {
    let item_count = catalogue.items.count();
    let text = item_text(catalogue, config.text_width);
    let windows = windows(&split.train, config.encoder.shape.positions);
    let TrainedEncoder { encoder, epochs, .. } = train_encoder(
        &next_items(&windows),
        item_count,
        &text,
        &config.encoder,
        &mut Interruption::default(),
        &mut |encoder| encoder_quality(encoder, &split.validation, Repeats::Excluded),
        progress,
    )?;
    let mut sources = count_sources(&split.train, catalogue, config.per_source);
    sources.encoders = vec![encoder];
    let lists = lists(&sources, &split.validation, progress);
    let blend = train_best_blend(lists, &config.blend, progress)?;
    Ok(NextItemModel { sources, blend, epochs })
}
