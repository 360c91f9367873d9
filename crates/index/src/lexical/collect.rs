//! Collectors: run a query over all segments and return rows.
use super::{super::hnsw::TopRows, LexicalError};
use lodestone_core::{bits, ids::Row};
use tantivy::{
    DocId, DocSet, Searcher, SegmentReader, TERMINATED,
    columnar::Column,
    query::{EnableScoring, Query},
};

/// Maximum rows that are scored for an unfinished word, because half of a catalogue may match a prefix of one letter,
/// and a search while the user types must be fast.
const PREFIX_ROWS_MAX: usize = 4000;
/// Documents whose rows are read at once.
const DOCUMENTS_READ: usize = 64;

/// Returns the `count` best rows of a query that pass `keep`, best first.
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
        let rows = LiveRows::of(segment)?;
        let threshold = best.threshold().unwrap_or(f32::MIN);
        weight.for_each_pruning(threshold, segment, &mut |document, score| {
            if let Some(row) =
                rows.of_document(document).filter(|&row| score.is_finite() && best.accepts(row, score) && keep(row))
            {
                best.push(row, score);
            }
            best.threshold().unwrap_or(f32::MIN)
        })?;
    }
    Ok(best.into_sorted())
}

/// Returns the `count` best of the first [`PREFIX_ROWS_MAX`] rows of a query. Each segment contributes rows in
/// proportion to its size.
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
        let rows = LiveRows::of(segment)?;
        let mut left = (PREFIX_ROWS_MAX * segment.num_docs() as usize).div_ceil(all);
        let mut scorer = weight.scorer(segment, 1.0)?;
        let mut document = scorer.doc();
        while document != TERMINATED && left > 0 {
            left -= 1;
            let score = scorer.score();
            if let Some(row) =
                rows.of_document(document).filter(|&row| score.is_finite() && best.accepts(row, score) && keep(row))
            {
                best.push(row, score);
            }
            document = scorer.advance();
        }
    }
    Ok(best.into_sorted())
}

/// The rows of a segment's documents.
struct LiveRows<'s> {
    rows: Column<u64>,
    segment: &'s SegmentReader,
}

impl<'s> LiveRows<'s> {
    fn of(segment: &'s SegmentReader) -> Result<Self, LexicalError> {
        Ok(Self { rows: segment.fast_fields().u64("row")?, segment })
    }

    /// Returns the row of a document; none if it is replaced or deleted.
    fn of_document(&self, document: DocId) -> Option<Row> {
        let row = self.rows.first(document).and_then(|row| u32::try_from(row).ok()).map(Row)?;
        (!self.segment.is_deleted(document)).then_some(row)
    }
}

/// Sets the bits of the rows of a query that are in `among`. Both are bit sets over rows of equal length.
pub(super) fn add_rows_of(
    searcher: &Searcher,
    query: &dyn Query,
    among: &[u64],
    rows: &mut [u64],
) -> Result<(), LexicalError> {
    let weight = query.weight(EnableScoring::disabled_from_searcher(searcher))?;
    for segment in searcher.segment_readers() {
        let (row_of, alive) = (segment.fast_fields().u64("row")?, segment.alive_bitset());
        let mut found = [None; DOCUMENTS_READ];
        weight.for_each_no_score(segment, &mut |documents| {
            for documents in documents.chunks(DOCUMENTS_READ) {
                row_of.first_vals(documents, &mut found[..documents.len()]);
                for (document, row) in documents.iter().zip(found) {
                    let row = row.filter(|_| alive.is_none_or(|alive| alive.is_alive(*document)));
                    let Some(row) = row.map(|row| row as usize).filter(|row| bits::has(among, *row)) else { continue };
                    rows[row / 64] |= 1 << (row % 64);
                }
            }
        })?;
    }
    Ok(())
}

/// Returns all rows of a query that pass `keep`, with their scores, in no order.
pub(super) fn scores_of(
    searcher: &Searcher,
    query: &dyn Query,
    keep: &dyn Fn(Row) -> bool,
) -> Result<Vec<(Row, f32)>, LexicalError> {
    let weight = query.weight(EnableScoring::enabled_from_searcher(searcher))?;
    let mut hits = Vec::new();
    for segment in searcher.segment_readers() {
        let rows = LiveRows::of(segment)?;
        weight.for_each(segment, &mut |document, score| {
            hits.extend(rows.of_document(document).filter(|row| keep(*row)).map(|row| (row, score)));
        })?;
    }
    Ok(hits)
}

/// Returns whether a row of a query passes `keep`.
pub(super) fn any_of(searcher: &Searcher, query: &dyn Query, keep: &dyn Fn(Row) -> bool) -> Result<bool, LexicalError> {
    let weight = query.weight(EnableScoring::disabled_from_searcher(searcher))?;
    for segment in searcher.segment_readers() {
        let rows = LiveRows::of(segment)?;
        let mut scorer = weight.scorer(segment, 1.0)?;
        let mut document = scorer.doc();
        while document != TERMINATED {
            if rows.of_document(document).is_some_and(keep) {
                return Ok(true);
            }
            document = scorer.advance();
        }
    }
    Ok(false)
}
