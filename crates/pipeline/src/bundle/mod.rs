//! Bundles: the output of a training as one directory, verified by SHA-256.
//!
//! Useful for: moving models and indexes from training to serving. Not useful for: data that changes between trainings
//! (users, stock, new items), which is in the event log.
mod manifest;

use crate::{
    features::ContextCounts,
    ranking::{KnownAnswer, QueryEncoderFiles, QueryEncoderKind},
    text_indexes::TextIndexes,
};
use lodestone_catalog::Item;
use lodestone_dataset::{self as dataset, DatasetError};
use lodestone_events::{Counts, ItemCounts, storage};
use lodestone_index::{FileError, FrozenGraph, Histories, Neighbours};
use lodestone_loyalty::TrainedLoyalty;
use lodestone_state::users::EVENTS_MAX;
pub use manifest::{FileSum, Head, Manifest, ManifestError, RelevanceFloor, sha256};
use prost::Message;
use rayon::prelude::*;
use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

pub const MANIFEST: &str = "manifest.json";
const ITEMS: &str = "items.parquet";
const ITEM_VECTORS: &str = "item_vectors.index";
const TITLE_VECTORS: &str = "title_vectors.index";
const LEXICAL: &str = "lexical.index";
const COMPLETIONS: &str = "completions.index";
const TEXT_PROJECTION: &str = "text_projection.f32";
const TRANSITIONS: &str = "transitions.neighbours";
const CO_PURCHASES: &str = "co_purchases.neighbours";
const ITEM_TO_ITEM: &str = "item_to_item.neighbours";
const SIMILAR_TEXTS: &str = "similar_texts.neighbours";
const HISTORIES: &str = "histories.index";
const POPULARITY: &str = "popularity.counts";
const CONTEXT_COUNTS: &str = "context.counts";
const USER_ENCODER: &str = "user_encoder.onnx";
const ENCODER_WEIGHTS: &str = "user_encoder.weights";
pub(crate) const QUERY_ENCODER: &str = "query_encoder.onnx";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
const KNOWN_ANSWER: &str = "known_answer.json";
const TRAINING: &str = "training.json";
const RANKER: &str = "ranker.onnx";
const GOLDEN: &str = "golden.json";
const LOYALTY: &str = "loyalty.json";

/// A bundle in memory. A row is an index in `items`.
#[derive(Clone)]
pub struct Bundle {
    pub manifest: Manifest,
    pub items: Vec<Item>,
    /// The items' vectors in the user space: the user encoder's dimensions, length 1.
    pub item_vectors: Arc<FrozenGraph>,
    /// The titles' vectors in the query space: the query encoder's dimensions, length 1.
    pub title_vectors: Arc<FrozenGraph>,
    pub text_indexes: TextIndexes,
    /// `[query dimensions × user dimensions]`, row-major. A title's vector times this matrix, normalised, is the
    /// vector of an item without training data.
    pub text_projection: Vec<f32>,
    /// Items that users choose in the next basket.
    pub transitions: Neighbours,
    /// Items that are bought in the same basket.
    pub co_purchases: Neighbours,
    /// Items that users with the same items choose, by the item-to-item model EASE.
    pub item_to_item: Neighbours,
    /// Items that users choose within a few steps of an item.
    /// Items with similar texts.
    pub similar_texts: Neighbours,
    /// Earlier histories of users, without their ids.
    pub histories: Histories,
    /// Popularity at the end of the training data, by row.
    pub popularity: ItemCounts,
    /// Users by item and value of the viewer's context, for the declared features of kind `context_affinity`.
    pub context_counts: ContextCounts,
    /// Empty: the training had too few events for a user encoder. Then the user space is the query space.
    pub user_encoder: Vec<u8>,
    /// The encoders' weights for a warm start of a later training.
    pub encoder_weights: Option<Vec<u8>>,
    pub query_encoder: Vec<u8>,
    /// The `tokenizer.json` of a sentence encoder.
    pub tokenizer: Option<Vec<u8>>,
    /// A query with its vector, which the query encoder must return after loading. None during training.
    pub known_answer: Option<KnownAnswer>,
    /// Loss curves as JSON, for `evaluate --report`.
    pub training: Option<Vec<u8>>,
    /// Empty: the training had too few lists for a ranking model, and answers have the order of retrieval.
    pub ranker: Vec<u8>,
    /// The loyalty model, or the reason why there is none.
    pub loyalty: Arc<TrainedLoyalty>,
    /// Golden requests with their expected answers as JSON, for the self-test after loading.
    pub golden: Option<Vec<u8>>,
}

/// The reason why a bundle cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("bundle {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("bundle {path}: {source}")]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("bundle {path}: trained with feature schema {found}, this program computes {expected}; train again")]
    Schema { path: PathBuf, found: String, expected: String },
    #[error("bundle file {path} is missing")]
    Missing { path: PathBuf },
    #[error("bundle file {path} is damaged: its SHA-256 is {found}, the manifest says {expected}")]
    Damaged { path: PathBuf, found: String, expected: String },
    #[error("bundle file {path} is damaged: it has {found} bytes, the manifest says {expected}")]
    Length { path: PathBuf, found: u64, expected: u64 },
    #[error("bundle file {path}: {problem}")]
    Content { path: PathBuf, problem: String },
    #[error(transparent)]
    Items(#[from] DatasetError),
    #[error(transparent)]
    Index(#[from] FileError),
    #[error("{path} exists and is not empty; choose another directory or remove it")]
    Exists { path: PathBuf },
}

impl Bundle {
    /// Reads a bundle on all threads of the current rayon pool. Verifies each file against the manifest's checksum before
    /// its content is used.
    pub fn open(directory: &Path) -> Result<Self, BundleError> {
        let begun = Instant::now();
        let path = directory.join(MANIFEST);
        let text = read_regular(&path).map_err(|source| BundleError::Io { path: path.clone(), source })?;
        let manifest = Manifest::parse(&text).map_err(|source| BundleError::Manifest { path: path.clone(), source })?;
        manifest.check(directory)?;
        let file = |name: &str| read_verified(directory, name, &manifest);
        let items = || Ok::<_, BundleError>(dataset::parse_items(&directory.join(ITEMS), file(ITEMS)?)?);
        let index = |name: &str| {
            let (path, sum) = listed(directory, name, &manifest)?;
            FrozenGraph::open_verified(&path, |bytes| verify(&path, bytes, sum)).map(Arc::new)
        };
        let neighbours = |name: &str| {
            Neighbours::from_bytes(&file(name)?)
                .map_err(|error| BundleError::Content { path: directory.join(name), problem: error.to_string() })
        };
        let text_index = |name: &str| file(name).map(Arc::new);
        // The large files, the longest first.
        let ((items, (item_vectors, title_vectors)), ((lexical, completions), tables)) = rayon::join(
            || rayon::join(items, || rayon::join(|| index(ITEM_VECTORS), || index(TITLE_VECTORS))),
            || {
                rayon::join(
                    || rayon::join(|| text_index(LEXICAL), || text_index(COMPLETIONS)),
                    || {
                        let names = [TRANSITIONS, CO_PURCHASES, ITEM_TO_ITEM, SIMILAR_TEXTS];
                        names.into_par_iter().map(neighbours).collect::<Result<Vec<Neighbours>, BundleError>>()
                    },
                )
            },
        );
        let (items, item_vectors, title_vectors) = (items?, item_vectors?, title_vectors?);
        let text_indexes = TextIndexes { lexical: lexical?, completions: completions? };
        let check_rows = |name: &str, rows: &str, found: usize| match found == items.len() {
            true => Ok(()),
            false => Err(BundleError::Content {
                path: directory.join(name),
                problem: format!("{found} {rows} for {} items", items.len()),
            }),
        };
        check_rows(ITEM_VECTORS, "vectors", item_vectors.row_count())?;
        check_rows(TITLE_VECTORS, "vectors", title_vectors.row_count())?;
        let tables: [Neighbours; 4] = tables?.try_into().expect("one table for each name");
        for (name, table) in [TRANSITIONS, CO_PURCHASES, ITEM_TO_ITEM, SIMILAR_TEXTS].into_iter().zip(&tables) {
            check_rows(name, "rows", table.row_count())?;
        }
        let [transitions, co_purchases, item_to_item, similar_texts] = tables;
        let projection = |from: usize, to: usize| {
            let bytes = file(TEXT_PROJECTION)?;
            parse_projection(&bytes, from, to)
                .map_err(|problem| BundleError::Content { path: directory.join(TEXT_PROJECTION), problem })
        };
        let histories = || {
            let path = directory.join(HISTORIES);
            let histories = Histories::from_bytes(&file(HISTORIES)?)
                .map_err(|error| BundleError::Content { path, problem: error.to_string() })?;
            check_rows(HISTORIES, "rows of histories", histories.row_count())?;
            Ok::<_, BundleError>(histories)
        };
        let popularity = || {
            let path = directory.join(POPULARITY);
            let bytes = file(POPULARITY)?;
            let problem = |problem: String| BundleError::Content { path, problem };
            match bytes.len() == items.len() * Counts::BYTES {
                true => ItemCounts::from_bytes(&bytes).map_err(|error| problem(error.to_owned())),
                false => Err(problem(format!("{} bytes for {} items of {}", bytes.len(), items.len(), Counts::BYTES))),
            }
        };
        let context_counts = || {
            let fields = manifest.features.counted_fields();
            ContextCounts::from_bytes(&file(CONTEXT_COUNTS)?, items.len(), &fields)
                .map_err(|problem| BundleError::Content { path: directory.join(CONTEXT_COUNTS), problem })
        };
        let loyalty = || {
            let path = directory.join(LOYALTY);
            let bytes = file(LOYALTY)?;
            let problem = |problem: String| BundleError::Content { path, problem };
            let loyalty: TrainedLoyalty = match serde_json::from_slice(&bytes) {
                Ok(loyalty) => loyalty,
                Err(error) => return Err(problem(error.to_string())),
            };
            match loyalty.check() {
                Ok(()) => Ok(Arc::new(loyalty)),
                Err(reason) => Err(problem(reason)),
            }
        };
        let optional = |name: &str| manifest.files.contains_key(name).then(|| file(name)).transpose();
        let tokenizer = optional(TOKENIZER)?;
        if tokenizer.is_some() != matches!(manifest.query_encoder, QueryEncoderKind::Sentence(_)) {
            let problem = format!("only a sentence encoder has a {TOKENIZER}, and it needs one");
            return Err(BundleError::Content { path, problem });
        }
        let known_answer = optional(KNOWN_ANSWER)?.map(|json| serde_json::from_slice(&json)).transpose();
        let known_answer = known_answer
            .map_err(|error| BundleError::Content { path: directory.join(KNOWN_ANSWER), problem: error.to_string() })?;
        let bundle = Self {
            text_projection: projection(title_vectors.dimensions(), item_vectors.dimensions())?,
            item_vectors,
            title_vectors,
            text_indexes,
            tokenizer,
            known_answer,
            encoder_weights: optional(ENCODER_WEIGHTS)?,
            training: optional(TRAINING)?,
            golden: optional(GOLDEN)?,
            transitions,
            co_purchases,
            item_to_item,
            similar_texts,
            histories: histories()?,
            popularity: popularity()?,
            context_counts: context_counts()?,
            user_encoder: file(USER_ENCODER)?,
            query_encoder: file(QUERY_ENCODER)?,
            ranker: file(RANKER)?,
            loyalty: loyalty()?,
            items,
            manifest,
        };
        let (bytes, read_ms) = (bundle.manifest.byte_count(), begun.elapsed().as_millis() as u64);
        tracing::info!(bundle = %bundle.manifest.name, items = bundle.items.len(), bytes, read_ms, "read the bundle");
        Ok(bundle)
    }

    pub fn query_encoder_files(&self) -> QueryEncoderFiles<'_> {
        QueryEncoderFiles {
            kind: &self.manifest.query_encoder,
            model: &self.query_encoder,
            tokenizer: self.tokenizer.as_deref(),
            known_answer: self.known_answer.as_ref(),
        }
    }

    /// Writes the bundle to a temporary directory, syncs it and renames it, so that a reader never sees a part of it.
    pub fn write(mut self, directory: &Path) -> Result<Manifest, BundleError> {
        if directory.is_dir() && fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(BundleError::Exists { path: directory.to_owned() });
        }
        let temporary = directory.with_extension("partial");
        let io = |path: &Path, source| BundleError::Io { path: path.to_owned(), source };
        let _ = fs::remove_dir_all(&temporary);
        fs::create_dir_all(&temporary).map_err(|source| io(&temporary, source))?;

        // The manifest may be that of another bundle, with files that this one lacks.
        self.manifest.files.clear();
        dataset::write_items(&temporary.join(ITEMS), &self.items)?;
        let items = fs::read(temporary.join(ITEMS)).map_err(|source| io(&temporary, source))?;
        self.manifest.add_file(ITEMS, &items);
        for (name, index) in [(ITEM_VECTORS, &self.item_vectors), (TITLE_VECTORS, &self.title_vectors)] {
            let path = temporary.join(name);
            index.write(&path)?;
            self.manifest.add_file(name, &fs::read(&path).map_err(|source| io(&path, source))?);
        }
        let loyalty = serde_json::to_vec(&*self.loyalty).expect("finite numbers and texts serialise to JSON");
        let files: [(&str, Vec<u8>); 12] = [
            (TEXT_PROJECTION, bytemuck::cast_slice(&self.text_projection).to_vec()),
            (TRANSITIONS, self.transitions.to_bytes()),
            (CO_PURCHASES, self.co_purchases.to_bytes()),
            (ITEM_TO_ITEM, self.item_to_item.to_bytes()),
            (SIMILAR_TEXTS, self.similar_texts.to_bytes()),
            (HISTORIES, self.histories.to_bytes()),
            (POPULARITY, self.popularity.to_bytes(self.items.len())),
            (CONTEXT_COUNTS, self.context_counts.encode_to_vec()),
            (USER_ENCODER, self.user_encoder),
            (QUERY_ENCODER, self.query_encoder),
            (RANKER, self.ranker),
            (LOYALTY, loyalty),
        ];
        let known_answer = self.known_answer.as_ref().map(serde_json::to_vec).transpose();
        let known_answer = known_answer.expect("a text and numbers serialise to JSON");
        let optional = [
            (TOKENIZER, self.tokenizer),
            (KNOWN_ANSWER, known_answer),
            (ENCODER_WEIGHTS, self.encoder_weights),
            (TRAINING, self.training),
            (GOLDEN, self.golden),
        ];
        let optional = optional.into_iter().filter_map(|(name, bytes)| Some((name, bytes?)));
        for (name, bytes) in [(LEXICAL, &self.text_indexes.lexical), (COMPLETIONS, &self.text_indexes.completions)] {
            self.manifest.add_file(name, bytes);
            write_synced(&temporary.join(name), bytes).map_err(|source| io(&temporary.join(name), source))?;
        }
        for (name, bytes) in files.into_iter().chain(optional) {
            self.manifest.add_file(name, &bytes);
            write_synced(&temporary.join(name), &bytes).map_err(|source| io(&temporary.join(name), source))?;
        }
        let text = serde_json::to_vec_pretty(&self.manifest)
            .map_err(|source| BundleError::Manifest { path: temporary.clone(), source: source.into() })?;
        write_synced(&temporary.join(MANIFEST), &text).map_err(|source| io(&temporary, source))?;
        let _ = fs::remove_dir(directory);
        storage::rename(&temporary, directory).map_err(|source| io(directory, source))?;
        Ok(self.manifest)
    }
}

/// Writes a file and syncs it.
fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    fs::File::open(path)?.sync_all()
}

/// Reads a regular file, or a link to one. Reading a pipe would wait for its writer, possibly for ever.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    read_regular_up_to(path, u64::MAX)
}

/// Reads a regular file, or a link to one, of at most `bytes_max`.
pub fn read_regular_up_to(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    length_of_regular(path)?;
    let mut bytes = Vec::new();
    // A file that grows meanwhile is not read on.
    fs::File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("has more than {bytes_max} bytes"))),
        false => Ok(bytes),
    }
}

/// The same as text.
pub fn read_regular_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let bytes = read_regular_up_to(path, bytes_max)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "is not UTF-8"))
}

/// Returns the size of a regular file, or of one that a link names, in bytes.
pub fn length_of_regular(path: &Path) -> io::Result<u64> {
    let metadata = fs::metadata(path)?;
    match metadata.is_file() {
        true => Ok(metadata.len()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "is not a regular file")),
    }
}

fn read_verified(directory: &Path, name: &str, manifest: &Manifest) -> Result<Vec<u8>, BundleError> {
    let (path, sum) = listed(directory, name, manifest)?;
    let bytes = fs::read(&path).map_err(|source| BundleError::Io { path: path.clone(), source })?;
    verify(&path, &bytes, sum)?;
    Ok(bytes)
}

/// Returns the path and the checksum of a file that the manifest lists, if it has the listed length.
fn listed<'m>(directory: &Path, name: &str, manifest: &'m Manifest) -> Result<(PathBuf, &'m FileSum), BundleError> {
    let path = directory.join(name);
    let Some(sum) = manifest.files.get(name) else {
        return Err(BundleError::Content { path, problem: "the manifest does not list it".to_owned() });
    };
    match length_of_regular(&path) {
        Ok(found) if found == sum.bytes => Ok((path, sum)),
        // A file that grew is not read.
        Ok(found) => Err(BundleError::Length { path, found, expected: sum.bytes }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(BundleError::Missing { path }),
        Err(source) => Err(BundleError::Io { path, source }),
    }
}

fn verify(path: &Path, bytes: &[u8], sum: &FileSum) -> Result<(), BundleError> {
    let found = sha256(bytes);
    match found == sum.sha256 {
        true => Ok(()),
        false => Err(BundleError::Damaged { path: path.to_owned(), found, expected: sum.sha256.clone() }),
    }
}

/// Parses the projection from the query space to the user space, which have these dimensions.
fn parse_projection(bytes: &[u8], from: usize, to: usize) -> Result<Vec<f32>, String> {
    if bytes.len() != from * to * 4 {
        return Err(format!(
            "has {} bytes, expected {}: {from} dimensions of {TITLE_VECTORS} × {to} dimensions of {ITEM_VECTORS} × 4",
            bytes.len(),
            from * to * 4
        ));
    }
    let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(format!("number {index} is not finite")),
        None => Ok(values),
    }
}

impl Manifest {
    fn check(&self, directory: &Path) -> Result<(), BundleError> {
        let expected = self.features.hash();
        if self.feature_schema != expected {
            let (path, found) = (directory.to_owned(), self.feature_schema.clone());
            return Err(BundleError::Schema { path, found, expected });
        }
        if !(1..=EVENTS_MAX).contains(&self.encoder_events) {
            let problem = format!("encoder_events is {}; it must be within 1 and {EVENTS_MAX}", self.encoder_events);
            return Err(BundleError::Content { path: directory.join(MANIFEST), problem });
        }
        Ok(())
    }
}
