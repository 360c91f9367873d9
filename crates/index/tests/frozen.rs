//! Tests of the frozen graph against the exact scan: recall, filters, equal vectors, vectors of any length, files.
use lodestone_core::ids::Row;
use lodestone_index::{BuildConfig, FileError, FrozenError, FrozenGraph, Precision, SearchStrategy, VectorIndex, dot};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{collections::HashSet, fs, sync::Arc};

/// Returns vectors around centres that do not depend on the seed. Their lengths are 1 if `unit`, otherwise different.
fn vectors(count: usize, dimensions: usize, unit: bool, seed: u64) -> Vec<f32> {
    let draw = |scale: f32, random: &mut StdRng| -> Vec<f32> {
        (0..dimensions).map(|_| (random.random::<f32>() + random.random::<f32>() - 1.0) * scale).collect()
    };
    let mut centres_random = StdRng::seed_from_u64(0);
    let centres: Vec<Vec<f32>> = (0..40).map(|_| draw(1.0, &mut centres_random)).collect();
    let mut random = StdRng::seed_from_u64(seed);
    let mut values = Vec::with_capacity(count * dimensions);
    for row in 0..count {
        let mut vector: Vec<f32> =
            draw(0.6, &mut random).iter().zip(&centres[row * 7 % 40]).map(|(a, b)| a + b).collect();
        let length = dot(&vector, &vector).sqrt();
        let wanted = if unit { 1.0 } else { 0.2 + (row % 17) as f32 / 5.0 };
        vector.iter_mut().for_each(|x| *x *= wanted / length);
        values.extend(vector);
    }
    values
}

fn built(values: &[f32], dimensions: usize) -> FrozenGraph {
    FrozenGraph::build(values, dimensions, BuildConfig::default(), &|_| {}).unwrap()
}

fn exact(
    values: &[f32],
    dimensions: usize,
    query: &[f32],
    count: usize,
    keep: impl Fn(u32) -> bool,
) -> Vec<(Row, f32)> {
    let mut all: Vec<(Row, f32)> = values
        .chunks_exact(dimensions)
        .enumerate()
        .filter(|(row, _)| keep(*row as u32))
        .map(|(row, vector)| (Row(row as u32), dot(query, vector)))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(count);
    all
}

fn recall(found: &[(Row, f32)], truth: &[(Row, f32)]) -> f64 {
    let rows: HashSet<Row> = found.iter().map(|(row, _)| *row).collect();
    assert_eq!(rows.len(), found.len(), "a row occurs twice");
    truth.iter().filter(|(row, _)| rows.contains(row)).count() as f64 / truth.len().max(1) as f64
}

#[test]
fn recall_is_high_for_unit_vectors_and_for_vectors_of_any_length() {
    for (dimensions, unit) in [(64, true), (64, false), (100, true), (384, false)] {
        let values = vectors(6000, dimensions, unit, 1);
        let index = built(&values, dimensions);
        let queries = vectors(100, dimensions, unit, 2);
        let recalls: f64 = queries
            .chunks_exact(dimensions)
            .map(|query| {
                let found = index.search(query, 50, 120);
                assert!(found.windows(2).all(|pair| pair[0].1 >= pair[1].1));
                recall(&found, &exact(&values, dimensions, query, 50, |_| true))
            })
            .sum();
        assert!(recalls / 100.0 >= 0.98, "{dimensions} dimensions, unit {unit}: recall {}", recalls / 100.0);
    }
}

#[test]
fn filters_keep_recall_at_every_selectivity() {
    const DIMENSIONS: usize = 32;
    let values = vectors(20_000, DIMENSIONS, true, 3);
    let index = built(&values, DIMENSIONS);
    let queries = vectors(30, DIMENSIONS, true, 4);
    let mut strategies = HashSet::new();
    for share in [1, 20, 200, 2_000, 10_000, 15_000, 20_000usize] {
        // Eligible rows are spread, or the nearest to one vector.
        let mut near: Vec<u32> = (0..20_000).collect();
        let of = |row: &u32| &values[*row as usize * DIMENSIONS..][..DIMENSIONS];
        near.sort_by(|a, b| dot(of(b), of(&0)).total_cmp(&dot(of(a), of(&0))));
        let spread: Vec<u32> = (0..20_000).filter(|row| (*row as usize * 7919) % 20_000 < share).collect();
        for kept in [&near[..share], &spread[..]] {
            let mut bits = vec![0u64; 20_000 / 64 + 1];
            kept.iter().for_each(|row| bits[*row as usize / 64] |= 1 << (row % 64));
            let is_kept = |row: u32| bits[row as usize / 64] >> (row % 64) & 1 == 1;
            let (mut found, mut recalls) = (Vec::new(), 0.0);
            for query in queries.chunks_exact(DIMENSIONS) {
                strategies
                    .insert(format!("{:?}", index.search_eligible(query, 20, 100, &bits, kept.len(), &mut found)));
                assert!(found.iter().all(|(row, _)| is_kept(row.0)), "a row is not eligible");
                recalls += recall(&found, &exact(&values, DIMENSIONS, query, 20, is_kept)) / 30.0;
            }
            assert!(recalls >= 0.98, "{share} of 20,000: recall {recalls}");
        }
    }
    assert_eq!(strategies.len(), 3, "not each strategy was used: {strategies:?}");
}

#[test]
fn equal_vectors_are_all_found_and_do_not_hide_others() {
    let mut values = vectors(1000, 16, true, 5);
    let copy = values[..16].to_vec();
    (0..300).for_each(|_| values.extend_from_slice(&copy));
    let index = built(&values, 16);
    let same: HashSet<u32> = index.search(&copy, 301, 400).iter().map(|(row, _)| row.0).collect();
    assert_eq!(same.len(), 301);
    assert!((1000..1300).all(|row| same.contains(&row)) && same.contains(&0));
    for row in 0..1000u32 {
        let own = &values[row as usize * 16..][..16];
        assert!(index.search(own, 301, 400).iter().any(|(found, _)| *found == Row(row)));
        assert_eq!(index.vector(Row(row)).unwrap(), own);
    }
}

#[test]
fn lower_precisions_keep_recall_and_take_less_memory() {
    const DIMENSIONS: usize = 100;
    let values = vectors(8000, DIMENSIONS, false, 11);
    let queries = vectors(100, DIMENSIONS, true, 12);
    let directory = tempfile::tempdir().unwrap();
    let mut sizes = Vec::new();
    for precision in Precision::ALL {
        let config = BuildConfig { precision, ..BuildConfig::default() };
        let path = directory.path().join("index");
        FrozenGraph::build(&values, DIMENSIONS, config, &|_| {}).unwrap().write(&path).unwrap();
        let index = FrozenGraph::open(&path).unwrap();
        assert_eq!(index.precision(), precision);
        let recalls: f64 = queries
            .chunks_exact(DIMENSIONS)
            .map(|query| recall(&index.search(query, 50, 120), &exact(&values, DIMENSIONS, query, 50, |_| true)))
            .sum();
        let required = if precision == Precision::Int8 { 0.95 } else { 0.98 };
        assert!(recalls / 100.0 >= required, "{precision:?}: recall {}", recalls / 100.0);
        for row in [0usize, 17, 7999] {
            let stored = index.vector(Row(row as u32)).unwrap();
            let own = &values[row * DIMENSIONS..][..DIMENSIONS];
            let error = if precision == Precision::Int8 { 3e-2 } else { 2e-3 };
            assert!(stored.iter().zip(own).all(|(a, b)| (a - b).abs() < error), "{precision:?}: {stored:?} of {own:?}");
        }
        sizes.push(index.bytes_per_row().1);
    }
    assert!(sizes[0] > 1.9 * sizes[1] && sizes[1] > 1.9 * sizes[2] && sizes[2] > 9.0 * sizes[3], "{sizes:?}");
}

#[test]
fn recall_does_not_degrade_when_half_of_the_items_are_replaced() {
    const DIMENSIONS: usize = 64;
    const ROWS: usize = 12_000;
    // Rows 0 to 6,000 are replaced by the rows from 12,000 on.
    let values = vectors(ROWS + ROWS / 2, DIMENSIONS, true, 13);
    let of = |row: Row| &values[row.index() * DIMENSIONS..][..DIMENSIONS];
    let queries = vectors(200, DIMENSIONS, true, 14);
    let alive: Vec<Row> = (ROWS / 2..ROWS + ROWS / 2).map(|row| Row(row as u32)).collect();
    let mut bits = vec![0u64; (ROWS + ROWS / 2).div_ceil(64)];
    alive.iter().for_each(|row| bits[row.index() / 64] |= 1 << (row.index() % 64));
    let is_alive = |row: u32| row as usize >= ROWS / 2;
    let index = VectorIndex::new(Arc::new(built(&values[..ROWS * DIMENSIONS], DIMENSIONS)), 10_000);
    assert!(!index.needs_merge(ROWS));
    let new: Vec<(Row, &[f32])> = (ROWS..ROWS + ROWS / 2).map(|row| (Row(row as u32), of(Row(row as u32)))).collect();
    index.set_many(&new).unwrap();
    let measured = |index: &VectorIndex| {
        let recalls = queries.chunks_exact(DIMENSIONS).map(|query| {
            let (found, _) = index.search(query, 100, &bits, of);
            assert!(found.iter().all(|(row, _)| is_alive(row.0)), "a replaced row was returned");
            recall(&found, &exact(&values, DIMENSIONS, query, 100, is_alive))
        });
        recalls.sum::<f64>() / 200.0
    };
    assert!(index.needs_merge(ROWS), "6,000 live and 6,000 dead rows of 12,000");
    let spread = measured(&index);

    // The last row is added while the graph is built.
    let (last, others) = alive.split_last().unwrap();
    let frozen = index.freeze(others, last.index(), of).unwrap();
    index.replace(frozen, &[(*last, of(*last))]).unwrap();
    assert!((index.live_count(), index.needs_merge(ROWS)) == (1, false));
    let merged = measured(&index);
    let fresh = VectorIndex::new(Arc::new(built(&values[ROWS / 2 * DIMENSIONS..], DIMENSIONS)), 0);
    let all = vec![u64::MAX; ROWS.div_ceil(64)];
    let fresh: f64 = queries
        .chunks_exact(DIMENSIONS)
        .map(|query| {
            let found = fresh.search(query, 100, &all, |row| of(Row(row.0 + 6000))).0;
            recall(&found, &exact(&values[ROWS / 2 * DIMENSIONS..], DIMENSIONS, query, 100, |_| true)) / 200.0
        })
        .sum();
    assert!(merged >= fresh - 0.005, "merged {merged}, fresh {fresh}");
    assert!(spread >= fresh - 0.005, "before the merge {spread}, fresh {fresh}");
    let found = index.search(of(*last), 1, &bits, of).0;
    assert_eq!(found[0].0, *last);
}

#[test]
fn builds_on_one_thread_with_the_same_seed_are_identical() {
    let values = vectors(3000, 24, true, 6);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let bytes = |name: &str| {
        let path = directory.path().join(name);
        pool.install(|| built(&values, 24)).write(&path).unwrap();
        fs::read(path).unwrap()
    };
    assert!(bytes("a") == bytes("b"));
}

#[test]
fn an_opened_index_returns_the_same_results() {
    let values = vectors(2000, 40, false, 7);
    let index = built(&values, 40);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index");
    index.write(&path).unwrap();
    let opened = FrozenGraph::open(&path).unwrap();
    for query in vectors(50, 40, true, 8).chunks_exact(40) {
        assert_eq!(opened.search(query, 30, 100), index.search(query, 30, 100));
    }
}

/// Whoever writes a bundle must not be able to end the server, or to let it follow ids that were not checked.
#[test]
fn an_opened_index_does_not_depend_on_its_file() {
    let values = vectors(2000, 40, false, 7);
    let index = built(&values, 40);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index");
    index.write(&path).unwrap();
    let search = |index: &FrozenGraph| -> Vec<_> {
        vectors(20, 40, true, 8).chunks_exact(40).map(|query| index.search(query, 30, 100)).collect()
    };
    let expected = search(&index);
    let bytes = fs::read(&path).unwrap();
    let overwritten = FrozenGraph::open(&path).unwrap();
    // In place, as a copy over the file does.
    fs::write(&path, vec![0xFF; bytes.len()]).unwrap();
    assert_eq!(search(&overwritten), expected);
    fs::write(&path, &bytes).unwrap();
    let truncated = FrozenGraph::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert_eq!(search(&truncated), expected);
}

#[test]
fn invalid_vectors_and_parameters_are_errors() {
    let mut values = vectors(10, 8, true, 9);
    values[8 * 3 + 5] = f32::NAN;
    let error = |values: &[f32], dimensions, m| {
        FrozenGraph::build(values, dimensions, BuildConfig { m, ..BuildConfig::default() }, &|_| {}).err().unwrap()
    };
    assert_eq!(error(&values, 8, 16), FrozenError::NotFinite { vector: 3, position: 5 });
    assert_eq!(error(&values, 7, 16), FrozenError::Shape { values: 80, dimensions: 7 });
    assert_eq!(error(&values, 0, 16), FrozenError::Dimensions(0));
    assert_eq!(error(&values, 8, 300), FrozenError::M(300));
    let index = built(&vectors(10, 8, true, 9), 8);
    assert!(index.search(&[1.0; 7], 5, 10).is_empty() && index.search(&[f32::NAN; 8], 5, 10).is_empty());
    assert!(index.search(&[1.0; 8], 0, 10).is_empty());
    assert_eq!(index.search(&[1.0; 8], 50, 1).len(), 10);
    assert!(built(&[], 8).search(&[1.0; 8], 5, 10).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Opening a corrupt file returns an error, or an index whose searches stay within the file.
    #[test]
    fn a_corrupt_file_is_an_error_or_a_searchable_index(changes in prop::collection::vec((any::<u32>(), any::<u8>()), 1..4), cut in any::<u32>()) {
        let values = vectors(300, 8, true, 10);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("index");
        built(&values, 8).write(&path).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in changes {
            // Half of the changes are in the header and the layer sizes.
            let at = if at % 2 == 0 { at as usize % 200 } else { at as usize % bytes.len() };
            bytes[at] = byte;
        }
        if cut % 3 == 0 {
            bytes.truncate(cut as usize % bytes.len());
        }
        fs::write(&path, &bytes).unwrap();
        match FrozenGraph::open(&path) {
            Ok(index) => {
                let query = vec![0.5; index.dimensions()];
                let _ = index.search(&query, 10, 50);
                let mut found = Vec::new();
                let strategy = index.search_eligible(&query, 10, 50, &[u64::MAX; 4], 256, &mut found);
                prop_assert!(matches!(strategy, SearchStrategy::Scan | SearchStrategy::Walk | SearchStrategy::WidenedWalk));
            }
            Err(FileError::Format { problem, .. }) => prop_assert!(!problem.is_empty()),
            Err(error) => prop_assert!(bytes.is_empty(), "{}", error),
        }
    }
}
