//! Stage one: several sources give candidates, which are fused into one list.
use super::{
    fusion::{Candidates, Fusion, Table, best_of},
    generation::{Generation, Space},
};
use lodestone_core::{bits, ids::{ItemKey, Row}, units::UnixMillis};
use lodestone_catalog::{Catalog, Filter};
use crate::features::{UserContext, Recent};
use lodestone_index::{LexicalError, Neighbours, dot};
use std::{borrow::Cow, time::Instant};

/// The sources, in the order of [`super::fusion::Candidate::places`].
pub const SOURCES: [&str; 8] =
    ["user_vector", "query_vector", "words", "next", "together", "similar", "popular", "history"];
pub const USER_VECTOR: usize = 0;
pub const QUERY_VECTOR: usize = 1;
pub const WORDS: usize = 2;
pub const NEXT: usize = 3;
pub const TOGETHER: usize = 4;
pub const SIMILAR: usize = 5;
pub const POPULAR: usize = 6;
pub const HISTORY: usize = 7;

/// A list of rows with scores, best first.
pub type Found = Vec<(Row, f32)>;

/// Which rows a request may show, one bit for each.
pub struct Eligible<'a> {
    bits: Cow<'a, [u64]>,
}

impl<'a> Eligible<'a> {
    /// What is alive and in stock.
    pub fn offered(catalog: &'a Catalog) -> Self {
        Self { bits: Cow::Borrowed(catalog.offered()) }
    }

    /// Without the excluded rows.
    pub fn without(mut self, excluded: impl Iterator<Item = Row>) -> Self {
        for row in excluded {
            if self.keeps(row) {
                self.bits.to_mut()[row.index() / 64] &= !(1 << (row.index() % 64));
            }
        }
        self
    }

    /// Only the rows whose items meet the filter.
    pub fn matching(self, catalog: &Catalog, filter: &Filter) -> Self {
        Self { bits: Cow::Owned(catalog.matching(filter, &self.bits)) }
    }

    /// In ascending order.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        bits::ones(&self.bits, 0).map(|row| Row(row as u32))
    }

    #[inline]
    pub fn keeps(&self, row: Row) -> bool {
        bits::has(&self.bits, row.index())
    }
}

/// What stage one is asked.
pub struct RetrievalInput<'a> {
    pub generation: &'a Generation,
    pub catalog: &'a Catalog,
    pub user: &'a UserContext,
    /// The words and their vector.
    pub query: Option<(&'a str, Option<&'a [f32]>)>,
    /// Items to start from; the user's recent ones when it is not about given items.
    pub anchors: &'a [Recent],
    pub eligible: &'a Eligible<'a>,
    pub now: UnixMillis,
    /// Candidates of each source.
    pub source_count: usize,
    /// Candidates after fusion.
    pub candidate_count: usize,
}

impl RetrievalInput<'_> {
    fn fusion(&self) -> Fusion {
        Fusion::new(self.catalog.row_count())
    }

    fn spread(&self, fusion: &mut Fusion, table: Table, only_found: bool) {
        let neighbours = match table {
            Table::Next => &self.generation.next,
            Table::Together => &self.generation.together,
        };
        fusion.spread(table, neighbours, self.anchors, self.catalog, |row| self.eligible.keeps(row), only_found);
    }

    fn is_anchor(&self, row: Row) -> bool {
        self.anchors.iter().any(|anchor| anchor.row == row)
    }

    /// Fuses; rows that were found also get what the neighbour tables say of them.
    fn finish(&self, mut fusion: Fusion) -> Candidates {
        self.spread(&mut fusion, Table::Next, true);
        self.spread(&mut fusion, Table::Together, true);
        fusion.finish(self.candidate_count)
    }
}

/// Candidates for a user: what they may want next.
pub fn for_user(ask: &RetrievalInput) -> Candidates {
    let mut fusion = ask.fusion();
    ask.spread(&mut fusion, Table::Next, false);
    ask.spread(&mut fusion, Table::Together, false);
    let next = fusion.best_spread(Table::Next, ask.source_count);
    let together = fusion.best_spread(Table::Together, ask.source_count / 2);
    if let Some(vector) = &ask.user.vector {
        let found = near(ask, &mut fusion, vector, Space::User);
        fusion.add(USER_VECTOR, found);
    }
    fusion.add(NEXT, next);
    fusion.add(TOGETHER, together);
    fusion.add(HISTORY, history(ask));
    fusion.add(POPULAR, popular(ask));
    fusion.finish(ask.candidate_count)
}

/// Candidates that answer a query.
pub fn for_query(ask: &RetrievalInput) -> Result<Candidates, LexicalError> {
    let (query, vector) = ask.query.unwrap_or_default();
    let keep = |row| ask.eligible.keeps(row);
    let words = ask.generation.lexical.search_all_then_any(query, ask.source_count, &keep)?;
    let mut fusion = ask.fusion();
    fusion.add(WORDS, words.rows);
    if let Some(vector) = vector {
        let found = near(ask, &mut fusion, vector, Space::Query);
        fusion.add(QUERY_VECTOR, found);
    }
    Ok(Candidates { words_exact: words.exact, words_complete: words.complete, ..ask.finish(fusion) })
}

/// Items like the anchors, in both spaces.
pub fn like_anchors(ask: &RetrievalInput) -> Candidates {
    let mut fusion = ask.fusion();
    for anchor in ask.anchors.iter().take(5) {
        let vectors = &ask.catalog.get(anchor.row).vectors;
        for (space, vector) in [(Space::User, vectors.user_space()), (Space::Query, vectors.query_space())] {
            let mut found = near(ask, &mut fusion, vector, space);
            found.retain(|(row, _)| !ask.is_anchor(*row));
            fusion.add(SIMILAR, found);
        }
    }
    ask.finish(fusion)
}

/// Items bought with the anchors.
pub fn with_anchors(ask: &RetrievalInput) -> Candidates {
    let mut fusion = ask.fusion();
    ask.spread(&mut fusion, Table::Together, false);
    let mut together = fusion.best_spread(Table::Together, ask.source_count + ask.anchors.len());
    together.retain(|(row, _)| !ask.is_anchor(*row));
    together.truncate(ask.source_count);
    fusion.add(TOGETHER, together);
    ask.spread(&mut fusion, Table::Next, true);
    fusion.finish(ask.candidate_count)
}

/// Items that the user bought.
pub fn bought_before(ask: &RetrievalInput) -> Candidates {
    let mut fusion = ask.fusion();
    fusion.add(HISTORY, history(ask));
    ask.spread(&mut fusion, Table::Next, true);
    fusion.finish(ask.candidate_count)
}

/// Items in a given order, such as trending or recently viewed ones.
pub fn in_order(catalog: &Catalog, source: usize, found: Found, count: usize) -> Candidates {
    let mut fusion = Fusion::new(catalog.row_count());
    fusion.add(source, found);
    fusion.finish(count)
}

/// The nearest to a vector; the fusion notes how and how long.
fn near(ask: &RetrievalInput, fusion: &mut Fusion, vector: &[f32], space: Space) -> Found {
    let begun = Instant::now();
    let vector_of = |row: Row| space.vector(ask.catalog, row);
    let index = ask.generation.vectors_of(space);
    let (found, way) = index.search(vector, ask.source_count, &ask.eligible.bits, vector_of);
    fusion.note_near(way, begun.elapsed());
    found
}

/// What the user bought: often and lately first.
fn history(ask: &RetrievalInput) -> Found {
    let bought = ask.user.items().filter(|(_, stats)| stats.bought_count > 0).filter_map(|(key, stats)| {
        let row = ask.catalog.row_of_key(key).filter(|row| ask.eligible.keeps(*row))?;
        Some((row, stats.bought_count as f32 / (1.0 + stats.days_since(stats.bought_at, ask.now).max(0.0))))
    });
    best_of(bought.collect(), ask.source_count)
}

/// What many users buy.
fn popular(ask: &RetrievalInput) -> Found {
    let eligible = |key: ItemKey| ask.catalog.row_of_key(key).filter(|row| ask.eligible.keeps(*row));
    let top = ask.generation.live.popular(ask.now);
    top.iter().filter_map(|(key, score)| Some((eligible(*key)?, *score))).take(ask.source_count / 2).collect()
}

/// The recent items that speak most for a row, by a neighbour table or by likeness.
pub fn evidence_for(user: &[Recent], catalog: &Catalog, table: Option<&Neighbours>, row: Row) -> Vec<ItemKey> {
    let target = catalog.get(row);
    let mut scored: Vec<(ItemKey, f32)> = user
        .iter()
        .filter(|recent| recent.row != row)
        .map(|recent| {
            let weight = match table {
                Some(table) => {
                    let (keys, weights) = table.of(Row(recent.key.0));
                    keys.iter().position(|key| *key == target.key.0).map_or(0.0, |index| weights[index])
                }
                None => dot(catalog.get(recent.row).vectors.user_space(), target.vectors.user_space()),
            };
            (recent.key, weight * recent.weight)
        })
        .filter(|(_, score)| *score > 0.0)
        .collect();
    scored.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
    scored.truncate(2);
    scored.into_iter().map(|(key, _)| key).collect()
}
