//! The results behind a slate. A slate has the first results of an answer and is frozen; a tail describes which results
//! follow and in which order, so that each page is selected from the items of its moment, and an answer of 100,000
//! results takes no more memory than one of 250.
use crate::{
    generation::Generation,
    popularity::PopularityView,
    request::{QueryMatch, SoldOut},
    retrieve::{EligibleRows, rows_of},
};
use lodestone_catalog::{Catalog, Filter, OrderBy, Part, Position, Selected, SortValue, StoredValue, select};
use lodestone_core::ids::Row;
use lodestone_index::{LexicalError, MatchScope, QueryText};
use lodestone_rules::Synonyms;
use std::sync::Arc;

/// The results behind a slate.
#[derive(Debug, Clone)]
pub struct Tail {
    pub members: TailMembers,
    pub order: TailOrder,
    /// Whether a group has one result.
    pub one_per_group: bool,
    pub sold_out: SoldOut,
    /// The position of the slate's last item in the order, if the slate has the same order.
    pub start: Option<Position>,
}

/// The items of a tail. Only items that the request neither excludes nor filters out are among them, and sold-out ones
/// only if the request shows them.
#[derive(Debug, Clone)]
pub enum TailMembers {
    All,
    /// The matches of a query, as it was searched.
    Matches {
        query: String,
        synonyms: Vec<Arc<Synonyms>>,
        scope: MatchScope,
    },
}

/// The order of a tail. Ties are in the order of the keys.
#[derive(Debug, Clone)]
pub enum TailOrder {
    Fields(OrderBy),
    /// By popularity, then the newest first.
    Popularity,
    /// By the lexical score of the query.
    Score,
}

impl Tail {
    /// How its items match the query; none without a query.
    pub fn query_match(&self) -> Option<QueryMatch> {
        match &self.members {
            TailMembers::All => None,
            TailMembers::Matches { scope: MatchScope::Identifier, .. } => Some(QueryMatch::Identifier),
            TailMembers::Matches { scope: MatchScope::AllWords, .. } => Some(QueryMatch::AllWords),
            TailMembers::Matches { scope: MatchScope::SomeWords, .. } => Some(QueryMatch::SomeWords),
        }
    }

    /// Returns the rows of a part in their order, without the `hidden` ones. `catalog` is that of the generation.
    pub fn select(
        &self,
        generation: &Generation,
        catalog: &Catalog,
        filter: Option<&Filter>,
        hidden: impl Iterator<Item = Row>,
        part: Part,
    ) -> Selected {
        let mut eligible = EligibleRows::of(catalog, self.sold_out).without(hidden);
        let part = Part { one_per_group: self.one_per_group.then_some(catalog), ..part };
        if let Some(filter) = filter {
            eligible = eligible.matching(catalog, filter);
        }
        let found = match &self.order {
            TailOrder::Fields(order) => self.by_fields(generation, catalog, &eligible, order, part),
            TailOrder::Popularity => {
                Ok(self.by_popularity(&generation.popularity(), catalog, &eligible, self.behind_slate(part)))
            }
            TailOrder::Score => self.by_score(generation, catalog, &eligible, part),
        };
        found.unwrap_or_else(|error| {
            tracing::warn!(%error, "the lexical source failed");
            Selected::default()
        })
    }

    /// A part without a position begins behind the slate's last item.
    fn behind_slate<'p>(&'p self, part: Part<'p>) -> Part<'p> {
        Part { after: part.after.or(self.start.as_ref()), ..part }
    }

    fn by_fields(
        &self,
        generation: &Generation,
        catalog: &Catalog,
        eligible: &EligibleRows,
        order: &OrderBy,
        part: Part,
    ) -> Result<Selected, LexicalError> {
        let part = self.behind_slate(part);
        Ok(match &self.members {
            TailMembers::All => catalog.select_by(order, eligible.rows(), part),
            TailMembers::Matches { query, synonyms, scope } => {
                let query = QueryText { text: query, synonyms };
                let rows = generation.lexical.matching_in(query, *scope, eligible.bits())?;
                catalog.select_by(order, rows_of(&rows), part)
            }
        })
    }

    /// The scores of a query change with every write of an item, because the frequencies of words change. So the
    /// position of the last result is the one that its item has now.
    fn by_score(
        &self,
        generation: &Generation,
        catalog: &Catalog,
        eligible: &EligibleRows,
        part: Part,
    ) -> Result<Selected, LexicalError> {
        let TailMembers::Matches { query, synonyms, scope } = &self.members else { return Ok(Selected::default()) };
        let query = QueryText { text: query, synonyms };
        let scored = generation.lexical.scores_in(query, *scope, &|row| eligible.contains(row))?;
        let current = part.after.map(|after| {
            let row = catalog.row_of_key(after.key);
            let at = row.and_then(|row| scored.binary_search_by_key(&row, |(row, _)| *row).ok());
            at.map_or_else(
                || after.clone(),
                |at| {
                    let score = StoredValue::Number(scored[at].1.into());
                    let in_stock = self.in_stock(catalog, scored[at].0).into();
                    Position { values: vec![in_stock, score], ..*after }
                },
            )
        });
        let rows = scored.iter().map(|(row, score)| {
            let value = move |at: usize| match at {
                0 => self.in_stock(catalog, *row),
                _ => SortValue::Number(f64::from(*score)),
            };
            (*row, value)
        });
        Ok(select(rows, |row| catalog.key_of(row), [true; 2], Part { after: current.as_ref(), ..part }))
    }

    fn by_popularity(
        &self,
        popularity: &PopularityView,
        catalog: &Catalog,
        eligible: &EligibleRows,
        part: Part,
    ) -> Selected {
        let rows = eligible.rows().map(|row: Row| {
            let counts = popularity.counts(catalog.key_of(row)).rank().parts();
            let value = move |at: usize| match at {
                0 => self.in_stock(catalog, row),
                1 | 2 => SortValue::Number(counts[at - 1]),
                _ => catalog.create_time(row),
            };
            (row, value)
        });
        select(rows, |row| catalog.key_of(row), [true; 4], part)
    }

    /// The first value of each position but those of fields, which have their own.
    fn in_stock(&self, catalog: &Catalog, row: Row) -> SortValue<'static> {
        match self.sold_out {
            SoldOut::Last => SortValue::Flag(catalog.is_offered(row)),
            SoldOut::Hidden | SoldOut::Shown | SoldOut::ShownUnlessDiscontinued => SortValue::Missing,
        }
    }
}
