//! The relevance floor of vector search: the similarity below which an item is no result. Learned from queries that
//! match an item of the catalogue and queries that match none.
use super::{Progress, error::TrainError, query_side::query_from_title};
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::Item;
use lodestone_core::{
    ids::Row,
    text::{self, TokenKind},
};
use lodestone_index::{FrozenGraph, dot};
use lodestone_pipeline::{
    bundle::{Bundle, RelevanceFloor},
    ranking::{Device, RankingError, Runtime, TextEncoder, TextRole},
};
use rand::{
    Rng, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use std::{collections::BTreeMap, fmt, path::Path};

/// Most matching queries, and most queries that match nothing.
const QUERIES: usize = 1000;
/// Queries of one run of the encoder.
const BATCH: usize = 64;
/// Width of the vector search.
const WIDTH: usize = 200;
/// Seeds of the queries that the floor is learned from, and of those that measure it.
const LEARNED_SEED: u64 = 1;
const MEASURED_SEED: u64 = 2;
/// Number of first letters in which an imitated word differs from every word of the catalogue: a word with the same
/// beginning is a misspelling of it.
const BEGINNING: usize = 4;
/// Queries that no shop's item answers, in several languages, one a line.
const UNRELATED: &str = include_str!("unrelated_queries.txt");

/// Precision and recall of a bundle's relevance floor, on other queries than those that it was learned from. Precision
/// counts matching and other queries as if there were as many of both.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RelevanceCut {
    pub cosine_min: f32,
    /// Spans of titles, some of them misspelled. Recall is the share whose item is above the floor.
    pub matching_query_count: usize,
    /// Queries of which no item has a word. One is a false positive if any item is above the floor.
    pub other_query_count: usize,
    pub precision: f32,
    pub recall: f32,
}

impl fmt::Display for RelevanceCut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "relevance floor, cosine of at least {:.3}: precision {:.3} at recall {:.3} ({} queries that match an item, \
             {} that match none)",
            self.cosine_min, self.precision, self.recall, self.matching_query_count, self.other_query_count
        )
    }
}

/// Sets the relevance floor and the known answer of a bundle's query encoder.
pub(super) fn calibrate(
    bundle: &mut Bundle,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), TrainError> {
    bundle.known_answer = None;
    let mut encoder = TextEncoder::open(runtime, bundle.query_encoder_files(), Device::Cpu)?;
    for item in &bundle.items {
        bundle.known_answer = encoder.known_answer(&item.title)?;
        if bundle.known_answer.is_some() {
            break;
        }
    }
    bundle.manifest.relevance = learn(&bundle.items, &bundle.title_vectors, &mut encoder, progress)?;
    Ok(())
}

/// Learns the relevance floor of an encoder, whose vectors of the items are `title_vectors`.
pub(super) fn learn(
    items: &[Item],
    title_vectors: &FrozenGraph,
    encoder: &mut TextEncoder,
    progress: &mut dyn FnMut(Progress),
) -> Result<RelevanceFloor, RankingError> {
    Ok(Scores::of(items, title_vectors, encoder, LEARNED_SEED, progress)?.best_floor())
}

/// Measures the relevance floor of the bundle in a directory.
pub(super) fn of_bundle(
    bundle: &Path,
    runtime: &Runtime,
    progress: &mut dyn FnMut(Progress),
) -> Result<RelevanceCut, TrainError> {
    let bundle = Bundle::open(bundle)?;
    let mut encoder = TextEncoder::open(runtime, bundle.query_encoder_files(), Device::Cpu)?;
    let scores = Scores::of(&bundle.items, &bundle.title_vectors, &mut encoder, MEASURED_SEED, progress)?;
    let RelevanceFloor { cosine_min, precision, recall } = scores.at(bundle.manifest.relevance.cosine_min);
    Ok(RelevanceCut {
        cosine_min,
        matching_query_count: scores.matching.len(),
        other_query_count: scores.others.len(),
        precision,
        recall,
    })
}

/// Cosines of queries.
struct Scores {
    /// Of queries that match an item: with this item.
    matching: Vec<f32>,
    /// Of queries that match none: with the closest item.
    others: Vec<f32>,
}

impl Scores {
    fn of(
        items: &[Item],
        title_vectors: &FrozenGraph,
        encoder: &mut TextEncoder,
        seed: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, RankingError> {
        let samples = samples(items, &mut StdRng::seed_from_u64(seed));
        let (mut scores, mut done) = (Self { matching: Vec::new(), others: Vec::new() }, 0);
        for batch in samples.chunks(BATCH) {
            let queries: Vec<&str> = batch.iter().map(|sample| sample.query.as_str()).collect();
            for (sample, vector) in batch.iter().zip(encoder.encode(&queries, TextRole::Query)?) {
                // A query without a vector is answered without one.
                let Some(vector) = vector else { continue };
                match sample.item {
                    Some(row) => scores.matching.extend(title_vectors.vector(row).map(|item| dot(&item, &vector))),
                    None => scores.others.extend(title_vectors.search(&vector, 1, WIDTH).iter().map(|hit| hit.1)),
                }
            }
            done += batch.len();
            progress(Progress { stage: "relevance", done, total: samples.len(), loss: f32::NAN });
        }
        Ok(scores)
    }

    /// Returns the floor with the greatest F1 score, the lowest one of equals. Without queries of both kinds there is
    /// no floor.
    fn best_floor(&self) -> RelevanceFloor {
        if self.matching.is_empty() || self.others.is_empty() {
            return RelevanceFloor::NONE;
        }
        let f1 = |floor: &RelevanceFloor| {
            2.0 * floor.precision * floor.recall / (floor.precision + floor.recall).max(f32::MIN_POSITIVE)
        };
        let mut candidates = self.matching.clone();
        candidates.sort_unstable_by(f32::total_cmp);
        let mut best = self.at(candidates[0]);
        for cosine_min in candidates {
            let floor = self.at(cosine_min);
            if f1(&floor) > f1(&best) {
                best = floor;
            }
        }
        best
    }

    fn at(&self, cosine_min: f32) -> RelevanceFloor {
        let share = |cosines: &[f32]| {
            let above = cosines.iter().filter(|cosine| **cosine >= cosine_min).count();
            above as f32 / cosines.len().max(1) as f32
        };
        let (recall, false_positives) = (share(&self.matching), share(&self.others));
        RelevanceFloor { cosine_min, precision: recall / (recall + false_positives).max(f32::MIN_POSITIVE), recall }
    }
}

/// A query, with the row of the item that matches it, if one does.
struct Sample {
    query: String,
    item: Option<Row>,
}

/// Returns queries that match an item, then queries that match none: words that look like those of the catalogue,
/// random letters, and queries about other subjects.
fn samples(items: &[Item], rng: &mut StdRng) -> Vec<Sample> {
    let words = CatalogueWords::of(items);
    let mut rows: Vec<usize> = (0..items.len()).collect();
    rows.shuffle(rng);
    let matching =
        |row: &usize| Sample { query: query_from_title(&items[*row].title, rng), item: Some(Row(*row as u32)) };
    let mut samples: Vec<Sample> = rows.iter().take(QUERIES).map(matching).collect();
    let unrelated: Vec<&str> = UNRELATED.lines().filter(|line| words.has_none_of(line)).collect();
    for number in 0..QUERIES {
        let query = match (number % 3, unrelated.choose(rng)) {
            (0, Some(line)) => (*line).to_owned(),
            (1, _) => random_letters(rng),
            _ => words.imitation(rng),
        };
        if !query.is_empty() && words.has_none_of(&query) {
            samples.push(Sample { query, item: None });
        }
    }
    samples
}

/// Returns one to three words of random letters.
fn random_letters(rng: &mut StdRng) -> String {
    let word = |rng: &mut StdRng| (0..rng.random_range(4..=8)).map(|_| rng.random_range('a'..='z')).collect::<String>();
    (0..rng.random_range(1..=3)).map(|_| word(rng)).collect::<Vec<_>>().join(" ")
}

/// The words of a catalogue.
#[derive(Default)]
struct CatalogueWords {
    tokens: AHashSet<String>,
    beginnings: AHashSet<String>,
    /// By two neighbouring letters: how often each letter follows, in their order. 0 is before and after a word.
    following: AHashMap<[char; 2], BTreeMap<char, u32>>,
}

impl CatalogueWords {
    fn of(items: &[Item]) -> Self {
        let mut words = Self::default();
        for item in items {
            let text = [&item.search_text(), " ", &item.description].concat();
            for word in text::written_words(&text) {
                words.beginnings.insert(beginning(&word));
                let mut letters = ['\0'; 2];
                for next in word.chars().chain(['\0']) {
                    *words.following.entry(letters).or_default().entry(next).or_default() += 1;
                    letters = [letters[1], next];
                }
            }
            words.tokens.extend(tokens(&text));
        }
        words
    }

    fn has_none_of(&self, query: &str) -> bool {
        tokens(query).all(|token| !self.tokens.contains(&token))
    }

    /// Returns one to three words of which every three neighbouring letters are in a word of the catalogue. Empty if
    /// the catalogue has no words of letters.
    fn imitation(&self, rng: &mut StdRng) -> String {
        let count = rng.random_range(1..=3);
        let words = (0..count).map(|_| self.imitated_word(rng));
        words
            .filter(|word| word.chars().count() > BEGINNING && !self.beginnings.contains(&beginning(word)))
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn imitated_word(&self, rng: &mut StdRng) -> String {
        let (mut word, mut letters) = (String::new(), ['\0'; 2]);
        for _ in 0..text::WORD_CHARS_MAX {
            let counts = self.following.get(&letters).into_iter().flatten();
            let following: Vec<(char, u32)> = counts.map(|(next, count)| (*next, *count)).collect();
            match following.choose_weighted(rng, |(_, count)| *count) {
                Err(_) | Ok(('\0', _)) => break,
                Ok((next, _)) => {
                    word.push(*next);
                    letters = [letters[1], *next];
                }
            }
        }
        word
    }
}

fn beginning(word: &str) -> String {
    word.chars().take(BEGINNING).collect()
}

fn tokens(text: &str) -> impl Iterator<Item = String> {
    let tokens = text::tokens(text).into_iter();
    tokens.filter(|token| matches!(token.kind, TokenKind::Word | TokenKind::Segment)).map(|token| token.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::ItemId;

    #[test]
    fn the_floor_separates_queries_that_match_from_those_that_do_not() {
        let scores = Scores { matching: vec![0.9, 0.8, 0.7, 0.2], others: vec![0.3, 0.4, 0.1, 0.75] };
        let floor = scores.best_floor();
        assert_eq!((floor.cosine_min, floor.precision, floor.recall), (0.7, 0.75, 0.75));
        let none = Scores { matching: vec![0.5], others: Vec::new() };
        assert_eq!(none.best_floor(), RelevanceFloor::NONE);
    }

    #[test]
    fn other_queries_have_no_word_of_the_catalogue() {
        let titles = ["Red retrospot mug", "Weather house", "Blue lamp for the desk", "蓝色马克杯"];
        let items: Vec<Item> = (titles.iter().enumerate())
            .map(|(number, title)| Item::titled(ItemId::parse(&format!("i{number}")).unwrap(), title))
            .collect();
        let words = CatalogueWords::of(&items);
        let samples = samples(&items, &mut StdRng::seed_from_u64(3));
        let (matching, others): (Vec<_>, Vec<_>) = samples.iter().partition(|sample| sample.item.is_some());
        assert!(matching.len() == items.len() && others.len() > QUERIES / 2, "{} {}", matching.len(), others.len());
        assert!(others.iter().all(|sample| words.has_none_of(&sample.query)));
        assert!(others.iter().all(|sample| !sample.query.contains("weather")), "the shop sells weather houses");
    }
}
