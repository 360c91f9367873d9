//! Files of bundles, and vectors of other programs. Checksums protect the files of a bundle against damage, not against
//! the one who writes the manifest.
use crate::files::{in_directory, select, selecting, with_file, written};
use lodestone::cli;
use lodestone_catalog::Item;
use lodestone_core::ids::{ItemId, ItemKey, Row};
use lodestone_events::ItemCounts;
use lodestone_index::{
    BuildConfig, CompletionCandidate, CompletionSource, FrozenGraph, Histories, Languages, Lexical, MatchMode,
    Neighbours, Precision, RowChange, Suggester,
};
use lodestone_pipeline::{
    bundle::{Head, Manifest},
    features::{ContextCounts, ContextField},
    ranking::{QueryEncoderKind, read_model},
};
use std::{fs, sync::OnceLock};

const NEIGHBOURS: usize = 0;
const HISTORIES: usize = 1;
const POPULARITY: usize = 2;
const CONTEXT_COUNTS: usize = 3;
const COMPLETIONS: usize = 4;
const LEXICAL: usize = 5;
const TABLES: usize = 6;
/// Rows of the catalogue of these tables.
const ROWS: usize = 4;

pub(crate) fn table_seeds() -> Vec<Vec<u8>> {
    let pairs = [(0, 1, 2.0), (0, 3, 1.0), (1, 0, 2.0), (2, 3, 0.5)];
    let pairs = pairs.map(|(row, neighbour, weight)| (Row(row), Row(neighbour), weight));
    // The users of the platform `web` chose the items 0 and 2.
    let users = b"\x0a\x03web\x12\x02\x00\x02\x1a\x02\x03\x01";
    let field = [&b"\x0a\x08platform\x12\x0d"[..], users].concat();
    let candidate = |text: &str, source| CompletionCandidate {
        text: text.to_owned(),
        category: "Kitchen".to_owned(),
        weight: 1.0,
        source,
    };
    let completions =
        Suggester::build([candidate("Red mug", CompletionSource::Title), candidate("mug", CompletionSource::Phrase)]);
    let (lexical, words_begin) = lexical_file();
    vec![
        selecting(COMPLETIONS, completions.to_bytes()),
        selecting(LEXICAL, &lexical[*words_begin..]),
        selecting(NEIGHBOURS, Neighbours::from_counts(ROWS, pairs, 3).to_bytes()),
        selecting(HISTORIES, Histories::new(ROWS, &[vec![0, 1, 2], vec![3, 1]]).to_bytes()),
        selecting(POPULARITY, ItemCounts::default().to_bytes(ROWS)),
        selecting(CONTEXT_COUNTS, [&b"\x0a\x19"[..], &field].concat()),
    ]
}

pub(crate) fn accepts_table(input: &[u8]) -> bool {
    let Some((table, bytes)) = select(input, TABLES) else { return false };
    let keys: Vec<ItemKey> = (0..ROWS as u32).rev().map(ItemKey).collect();
    match table {
        NEIGHBOURS => Neighbours::from_bytes(bytes).is_ok_and(|table| {
            assert_eq!(table.to_bytes(), bytes);
            for row in 0..=table.row_count() {
                let (neighbours, weights) = table.of(Row(row as u32));
                assert_eq!(neighbours.len(), weights.len());
            }
            if table.row_count() <= ROWS {
                table.by_key(&keys);
            }
            true
        }),
        HISTORIES => Histories::from_bytes(bytes).is_ok_and(|histories| {
            assert_eq!(histories.to_bytes(), bytes);
            if histories.row_count() <= ROWS {
                let query = keys.iter().map(|key| (*key, 1.0));
                histories.by_key(&keys).score(query, |_, score| assert!(score.is_finite()));
            }
            true
        }),
        POPULARITY => ItemCounts::from_bytes(bytes).is_ok(),
        COMPLETIONS => Suggester::read(bytes).is_ok_and(|completions| {
            for prefix in ["", "m", "red m"] {
                assert!(completions.complete(prefix, 5, &|_| 0.0).len() <= 5);
            }
            true
        }),
        LEXICAL => {
            let (lexical, words_begin) = lexical_file();
            let bytes = [&lexical[..*words_begin], bytes].concat();
            Lexical::read(&bytes, ROWS, Languages::default()).is_ok_and(|lexical| {
                use_lexical(&lexical);
                true
            })
        }
        _ => ContextCounts::from_bytes(bytes, ROWS, &[ContextField::Platform]).is_ok_and(|counts| {
            counts.by_key(&keys);
            true
        }),
    }
}

/// The items of [`lexical_file`], whose rows are their indices.
fn lexical_items() -> [Item; ROWS] {
    let mut number = 0;
    ["Red retrospot mug", "Blaue Tassen", "Wi-Fi router 2.4 GHz", "陶瓷马克杯"].map(|title| {
        number += 1;
        Item::titled(ItemId::parse(&format!("SKU-{number}")).expect("a short id"), title)
    })
}

/// Returns a lexical index, and the byte at which its forward index and vocabulary begin. Inputs replace what follows this
/// byte: tantivy's files before it are of another project and guarded by checksums alone, and the arrays before them are
/// lists of texts as those of the completions.
fn lexical_file() -> &'static (Vec<u8>, usize) {
    static FILE: OnceLock<(Vec<u8>, usize)> = OnceLock::new();
    FILE.get_or_init(|| {
        let file = Lexical::file_of(&lexical_items(), &[]).expect("an index in memory");
        let mut at = b"LSLEXIC1".len();
        // Skips an array of values of this size, and returns their number.
        let mut skip = |size: usize| {
            let count = u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes")) as usize;
            at += 8 + count * size;
            count
        };
        // The searchable attributes, and the names of tantivy's files: lengths, then bytes.
        skip(4);
        skip(1);
        let name_count = skip(4);
        skip(1);
        for _ in 0..name_count {
            skip(1);
        }
        (file, at)
    })
}

/// Searches an index of [`lexical_items`], replaces an item and removes another one.
fn use_lexical(lexical: &Lexical) {
    let rows_of = |query: &str| -> Vec<usize> {
        lexical.correct(query, &|_| true).expect("an index in memory");
        let matches = lexical.search_all_then_any(query, ROWS, &|_| true).expect("an index in memory");
        assert!(matches.coverage.iter().all(|share| (0.0..=1.0).contains(share)), "{query}");
        let found = [MatchMode::Any, MatchMode::Prefix, MatchMode::All].map(|mode| {
            let found = lexical.search(query, mode, ROWS, &|_| true).expect("an index in memory");
            assert!(found.iter().all(|(row, score)| row.index() < ROWS && score.is_finite()));
            found
        });
        found[2].iter().map(|(row, _)| row.index()).collect()
    };
    for query in ["red mug", "retrospt mug", "retrospotmug", "tasse", "wi fi", "马克杯", "router 2.4"] {
        rows_of(query);
    }
    let [mug, cups, ..] = &lexical_items();
    let teapot = Item::titled(mug.id.clone(), "Green teapot");
    let changes = [
        RowChange { row: Row(0), old: Some(mug), new: Some(&teapot) },
        RowChange { row: Row(1), old: Some(cups), new: None },
    ];
    lexical.apply(&changes).expect("an index in memory");
    lexical.refresh().expect("an index in memory");
    assert_eq!(rows_of("teapot").first(), Some(&0));
    assert!(!rows_of("tassen").contains(&1));
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    let encoder = QueryEncoderKind::HashedTerms { bucket_count: 1024 };
    let mut manifest = Manifest::new("b-1".to_owned(), 1_767_225_600_000, 1_767_000_000_000, 50, encoder);
    manifest.heads = vec![Head { name: "purchase".to_owned(), weight: 1.0, scale: 1.5, offset: -0.5 }];
    manifest.searchable_attributes = vec!["colour".to_owned()];
    manifest.add_file("ranker.onnx", b"ranker");
    vec![serde_json::to_vec(&manifest).expect("texts and finite numbers")]
}

pub(crate) fn accepts_manifest(input: &[u8]) -> bool {
    Manifest::parse(input).is_ok_and(|manifest| {
        let written = serde_json::to_vec(&manifest).expect("texts and finite numbers");
        let read = Manifest::parse(&written).expect("a manifest that was accepted is accepted again");
        assert_eq!((read.files, read.features.hash()), (manifest.files, manifest.features.hash()));
        true
    })
}

const DIMENSIONS: usize = 4;

pub(crate) fn index_seeds() -> Vec<Vec<u8>> {
    // The last two vectors are equal.
    let vectors: Vec<f32> =
        (0..12).chain([11]).flat_map(|n| (0..DIMENSIONS).map(move |d| ((n + 3 * d) as f32).sin())).collect();
    let seed = |precision| {
        let config = BuildConfig { m: 2, ef_construction: 8, precision, ..BuildConfig::default() };
        let graph = FrozenGraph::build(&vectors, DIMENSIONS, config, &|_| {}).expect("finite vectors");
        written("index", |path| graph.write(path).expect("the directory is writable"))
    };
    Precision::ALL.into_iter().map(seed).collect()
}

/// Opens an index and searches it.
pub(crate) fn accepts_index(input: &[u8]) -> bool {
    let Ok(graph) = with_file("index", input, FrozenGraph::open) else { return false };
    let query: Vec<f32> = (0..graph.dimensions()).map(|at| (at as f32).cos()).collect();
    let is_row = |(row, _): &(Row, f32)| row.index() < graph.row_count();
    assert!(graph.search(&query, 3, 8).iter().all(is_row));
    let odd = vec![0xAAAA_AAAA_AAAA_AAAA; graph.row_count().div_ceil(64)];
    let mut hits = Vec::new();
    graph.search_eligible(&query, 3, 8, &odd, graph.row_count() / 2, &mut hits);
    assert!(hits.iter().all(is_row));
    for row in (0..graph.row_count().min(20)).map(|row| Row(row as u32)) {
        assert!(graph.vector(row).is_none_or(|vector| vector.len() == graph.dimensions()));
    }
    true
}

/// The file with weights next to the model of [`accepts_model`].
const WEIGHTS: (&str, &[u8]) = ("model.onnx.data", b"abcdefgh");

pub(crate) fn model_seeds() -> Vec<Vec<u8>> {
    /// A field with a length below 128.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8][..], content].concat()
    }
    let entry = |key: &str, value: &str| field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    // data_location (14) is EXTERNAL (1).
    let external =
        [field(8, b"w"), entry("location", WEIGHTS.0), entry("offset", "2"), entry("length", "3"), vec![0x70, 1]];
    let graph = [field(2, b"name"), field(5, &external.concat())].concat();
    vec![field(7, &graph)]
}

pub(crate) fn accepts_model(input: &[u8]) -> bool {
    in_directory(|directory| {
        fs::write(directory.join(WEIGHTS.0), WEIGHTS.1).expect("the directory is writable");
        let path = directory.join("model.onnx");
        fs::write(&path, input).expect("the directory is writable");
        read_model(&path).is_ok()
    })
}

const VECTOR_FILES: [&str; 2] = ["vectors.npy", "vectors.fvecs"];

pub(crate) fn vector_file_seeds() -> Vec<Vec<u8>> {
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }\n";
    let values: Vec<u8> = [0.5f32, 1.0, -1.0, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend_from_slice(&(header.len() as u16).to_le_bytes());
    npy.extend_from_slice(header.as_bytes());
    npy.extend_from_slice(&values);
    let fvecs = [&2u32.to_le_bytes()[..], &values[..8], &2u32.to_le_bytes(), &values[8..]].concat();
    vec![selecting(0, npy), selecting(1, fvecs)]
}

pub(crate) fn accepts_vector_file(input: &[u8]) -> bool {
    let Some((format, content)) = select(input, VECTOR_FILES.len()) else { return false };
    with_file(VECTOR_FILES[format], content, cli::fuzzing::accepts_vectors)
}
