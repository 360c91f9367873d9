//! The rows of a query in every segment.
use super::{super::hnsw::TopRows, LexicalError};
use lodestone_core::ids::Row;
use tantivy::{
    DocId, DocSet, Searcher, TERMINATED,
    columnar::Column,
    query::{EnableScoring, Query},
};

/// Rows that are looked at for an unfinished word: half a catalogue may have a word that starts with one letter, and whoever
/// types does not wait.
const PREFIX_ROWS_MAX: usize = 4000;

/// The `count` best rows of a query.
pub(super) fn best_of(
    searcher: &Searcher,
    query: &dyn Query,
    count: usize,
    keep: &dyn Fn(Row) -> bool,
) -> Result<Vec<(Row, f32)>, LexicalError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let weight = query.weight(EnableScoring::enabled_from_searcher(searcher))?;
    let mut best = TopRows::new(count);
    for segment in searcher.segment_readers() {
        let rows = segment.fast_fields().u64("row")?;
        let threshold = best.threshold().unwrap_or(f32::MIN);
        weight.for_each_pruning(threshold, segment, &mut |document, score| {
            if let Some(row) =
                row_of(&rows, document).filter(|&row| score.is_finite() && best.wants(row, score) && keep(row))
            {
                best.push(row, score);
            }
            best.threshold().unwrap_or(f32::MIN)
        })?;
    }
    Ok(best.into_sorted())
}

/// The `count` best of the first [`PREFIX_ROWS_MAX`] rows of a query; each segment gives its share of them.
pub(super) fn best_of_some(
    searcher: &Searcher,
    query: &dyn Query,
    count: usize,
    keep: &dyn Fn(Row) -> bool,
) -> Result<Vec<(Row, f32)>, LexicalError> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let weight = query.weight(EnableScoring::enabled_from_searcher(searcher))?;
    let all = searcher.num_docs().max(1) as usize;
    let mut best = TopRows::new(count);
    for segment in searcher.segment_readers() {
        let rows = segment.fast_fields().u64("row")?;
        let mut left = (PREFIX_ROWS_MAX * segment.num_docs() as usize).div_ceil(all);
        let mut scorer = weight.scorer(segment, 1.0)?;
        let mut document = scorer.doc();
        while document != TERMINATED && left > 0 {
            left -= 1;
            let score = scorer.score();
            if let Some(row) =
                row_of(&rows, document).filter(|&row| score.is_finite() && best.wants(row, score) && keep(row))
            {
                best.push(row, score);
            }
            document = scorer.advance();
        }
    }
    Ok(best.into_sorted())
}

fn row_of(rows: &Column<u64>, document: DocId) -> Option<Row> {
    rows.first(document).and_then(|row| u32::try_from(row).ok()).map(Row)
}

/// All rows of a query.
pub(super) fn all_of(
    searcher: &Searcher,
    query: &dyn Query,
    keep: &dyn Fn(Row) -> bool,
) -> Result<Vec<Row>, LexicalError> {
    let weight = query.weight(EnableScoring::disabled_from_searcher(searcher))?;
    let mut found = Vec::new();
    for segment in searcher.segment_readers() {
        let rows = segment.fast_fields().u64("row")?;
        weight.for_each_no_score(segment, &mut |documents| {
            found.extend(documents.iter().filter_map(|document| row_of(&rows, *document)).filter(|row| keep(*row)));
        })?;
    }
    Ok(found)
}
