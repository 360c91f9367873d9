//! Leave-one-out: everyone's last item is to be found, the one before it teaches the ranker and stops the encoder.
use super::{
    Pause, SequenceError,
    alike::Alike,
    blend::{Blend, BlendConfig, train_best_blend},
    encoder::encoder_quality,
    files::Catalogue,
    fit::{EncoderConfig, TrainedEncoder, train_encoder},
    latest,
    pairs::{neighbours, transitions, two_steps},
    samples::{ItemText, next_items, windows},
    sources::{Asked, Sources, Table, TermSource, lists},
    text::TermVectors,
};
use crate::Progress;

/// Which items of each history are learned from, and which are asked for.
#[derive(Debug, Clone)]
pub struct Split<'a> {
    /// Histories without their last two items.
    pub train: Vec<&'a [u32]>,
    pub validation: Vec<Asked<'a>>,
    /// The index of each asked history, and what is asked: the last item by all before it.
    pub test: Vec<(usize, Asked<'a>)>,
}

/// Cuts each history, of which the latest [`super::HISTORY_MAX`] events are taken: the last item is the test, the one before it the validation, the rest is learned from. Histories of
/// fewer than three items are learned from, and nothing is asked of them.
pub fn leave_one_out(histories: &[Vec<u32>]) -> Split<'_> {
    let mut split = Split { train: Vec::new(), validation: Vec::new(), test: Vec::new() };
    for (index, history) in histories.iter().enumerate() {
        match history.as_slice() {
            [learned @ .., validation, test] if !learned.is_empty() => {
                let learned = latest(learned);
                split.train.push(learned);
                split.validation.push((learned, *validation));
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
    /// Numbers of an item's text vector at most.
    pub text_width: usize,
    /// Candidates of each source.
    pub per_source: usize,
}

impl NextItemConfig {
    /// Settings for data of this size.
    pub fn for_data(train: &[&[u32]], item_count: usize, threads: usize, seed: u64) -> Self {
        Self {
            encoder: EncoderConfig::for_data(train, item_count, threads, seed),
            blend: BlendConfig { seed, ..BlendConfig::default() },
            text_width: 64,
            per_source: 150,
        }
    }
}

/// Sources that were fitted to the histories before the validation items, and the ranker that learned from these items.
#[derive(Debug, Clone)]
pub struct NextItemModel {
    pub sources: Sources,
    pub blend: Blend,
    /// Epochs until the encoder was at its best.
    pub epochs: usize,
}

/// Steps between two items that still count as one after the other.
const WINDOW: usize = 5;
/// Of a pair's weight, for the way back.
const REVERSE: f32 = 0.5;
/// Weight of an item of the history in units of the one after it.
const DECAY: f32 = 0.8;

/// Counts and texts: all sources but the encoder.
pub fn count_sources(train: &[&[u32]], catalogue: &Catalogue, per_source: usize) -> Sources {
    let item_count = catalogue.items.count();
    let mut popularity = vec![0.0; item_count];
    train.iter().flat_map(|history| history.iter()).for_each(|item| popularity[*item as usize] += 1.0);
    let both_ways = transitions(train, item_count, WINDOW, REVERSE, 500, |_| 1.0);
    let onwards = transitions(train, item_count, 3, 0.0, 200, |_| 1.0);
    let two_steps = two_steps(&both_ways, item_count, 200);
    let near = neighbours(train, item_count, 50, 1.0, 500);
    let tables = vec![
        Table::new("transitions", both_ways, DECAY, true),
        Table::new("neighbours", near, DECAY, true),
        Table::new("two steps", two_steps, DECAY, true),
        Table::new("onwards", onwards, 0.5, false),
    ];
    let documents = [("text", &catalogue.words), ("attributes", &catalogue.attributes)];
    let terms = documents.into_iter().filter_map(|(name, documents)| {
        let vectors = TermVectors::new(documents);
        let alike = vectors.neighbours(200);
        (!vectors.is_empty()).then_some(TermSource { name, vectors, alike, decay: DECAY })
    });
    let terms = terms.collect();
    let alike = Some(Alike::new(train, item_count, DECAY, f32::INFINITY));
    Sources { encoders: Vec::new(), tables, terms, alike, popularity, recent: Vec::new(), repeats: false, per_source }
}

/// Short vectors of words and attributes together, for the encoder.
pub fn item_text(catalogue: &Catalogue, width: usize) -> ItemText {
    let documents = catalogue.words.iter().zip(&catalogue.attributes).map(|(words, attributes)| {
        let attributes = attributes.iter().map(|attribute| format!("={attribute}"));
        words.iter().cloned().chain(attributes).collect()
    });
    let vectors = TermVectors::new(&documents.collect::<Vec<Vec<String>>>());
    if vectors.is_empty() { ItemText::default() } else { vectors.dense(width) }
}

/// Learns from the histories before the validation items; the ranker, and when the encoder stops, from the validation items.
/// The test items are not looked at.
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
        &mut Pause::default(),
        &mut |encoder| encoder_quality(encoder, &split.validation, false),
        progress,
    )?;
    let mut sources = count_sources(&split.train, catalogue, config.per_source);
    sources.encoders = vec![encoder];
    let lists = lists(&sources, &split.validation, progress);
    let blend = train_best_blend(lists, &config.blend, progress)?;
    Ok(NextItemModel { sources, blend, epochs })
}
