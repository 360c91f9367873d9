//! The first stage: several sources return candidates, which are fused into one list.
use crate::{
    features::{RecentItem, UserContext},
    fusion::{Candidates, Fusion, NeighbourTable, Origin, best_of},
    generation::{Generation, Space},
    popularity::PopularityView,
    request::SoldOut,
    source::{CandidateSource, ScoredRows},
};
use ahash::AHashSet;
use lodestone_catalog::{Catalog, Filter, Part, SeenGroups, SortValue, select};
use lodestone_core::{
    bits,
    ids::{ItemKey, Row},
    units::UnixMillis,
};
use lodestone_events::Rank;
use lodestone_index::{KeyedNeighbours, LexicalError, QueryText, dot};
use lodestone_rules::Synonyms;
use std::{borrow::Cow, convert::Infallible, sync::Arc, time::Instant};

/// Anchor items whose similar items are searched.
const SIMILAR_ANCHORS_MAX: usize = 5;
/// Rows that a source returns for each product that it should find, in a catalogue with groups.
const ROWS_PER_PRODUCT: usize = 4;
/// The same for a search that finds few products among so many rows.
const WIDENED_ROWS_PER_PRODUCT: usize = 64;

/// Items that boosts raise and that are candidates in addition to those of the other limits.
pub const BOOSTED_CANDIDATES_MAX: usize = 500;

/// The rows that a response may contain, as one bit per row.
pub struct EligibleRows<'a> {
    bits: Cow<'a, [u64]>,
}

impl<'a> EligibleRows<'a> {
    /// Items that exist, in stock or not.
    pub fn alive(catalog: &'a Catalog) -> Self {
        Self { bits: Cow::Borrowed(catalog.alive()) }
    }

    /// Items that exist and are in stock.
    pub fn offered(catalog: &'a Catalog) -> Self {
        Self { bits: Cow::Borrowed(catalog.offered()) }
    }

    /// Items that exist and may appear by what becomes of those that are sold out.
    pub fn of(catalog: &'a Catalog, sold_out: SoldOut) -> Self {
        match sold_out {
            SoldOut::Hidden => Self::offered(catalog),
            SoldOut::Last | SoldOut::Shown => Self::alive(catalog),
            SoldOut::ShownUnlessDiscontinued => Self::alive(catalog).matching(catalog, &Filter::not_discontinued()),
        }
    }

    /// Items that an answer may contain, and that pins may show: not excluded, matching all filters, in stock unless the
    /// request shows others. `filters` are those of the request and of its rules.
    pub fn for_request<'f>(
        catalog: &'a Catalog,
        sold_out: SoldOut,
        excluded: impl Iterator<Item = Row>,
        filters: impl Iterator<Item = &'f Filter>,
    ) -> Self {
        let shown = Self::of(catalog, sold_out).without(excluded);
        filters.fold(shown, |rows, filter| rows.matching(catalog, filter))
    }

    /// Keeps the rows that are in stock.
    pub fn in_stock(&self, catalog: &Catalog) -> Self {
        Self { bits: Cow::Owned(bits::and(&self.bits, catalog.offered())) }
    }

    /// Removes the excluded rows.
    pub fn without(mut self, excluded: impl Iterator<Item = Row>) -> Self {
        for row in excluded {
            if self.contains(row) {
                self.bits.to_mut()[row.index() / 64] &= !(1 << (row.index() % 64));
            }
        }
        self
    }

    /// Keeps the rows whose items match the filter.
    pub fn matching(self, catalog: &Catalog, filter: &Filter) -> Self {
        Self { bits: Cow::Owned(catalog.matching(filter, &self.bits)) }
    }

    /// Returns those of the rows whose items match at least one of the filters.
    pub fn matching_any<'f>(
        &self,
        catalog: &Catalog,
        filters: impl Iterator<Item = &'f Filter>,
    ) -> EligibleRows<'static> {
        let mut bits = vec![0; self.bits.len()];
        for filter in filters {
            let matching = catalog.matching(filter, &self.bits);
            bits.iter_mut().zip(matching).for_each(|(all, matching)| *all |= matching);
        }
        EligibleRows { bits: Cow::Owned(bits) }
    }

    /// One bit for each row.
    pub fn bits(&self) -> &[u64] {
        &self.bits
    }

    /// In ascending order.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        rows_of(&self.bits)
    }

    /// In descending order, so that items that were written last come first.
    fn latest_rows(&self) -> impl Iterator<Item = Row> {
        bits::ones_descending(&self.bits).map(|row| Row(row as u32))
    }

    pub fn count(&self) -> usize {
        bits::count(&self.bits, self.bits.len() * 64)
    }

    #[inline]
    pub fn contains(&self, row: Row) -> bool {
        bits::has(&self.bits, row.index())
    }
}

/// Returns the rows of a bit set in ascending order.
pub fn rows_of(bits: &[u64]) -> impl Iterator<Item = Row> {
    bits::ones(bits, 0).map(|row| Row(row as u32))
}

/// How many candidates the first stage returns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetrievalLimits {
    /// Of each source.
    pub per_source: usize,
    /// After fusion.
    pub fused: usize,
    /// Minimum cosine of an item that only the vector search finds for a query. None: the bundle's.
    pub query_cosine_min: Option<f32>,
}

/// A query's text and, if the encoder has one for it, its vector.
#[derive(Clone, Copy)]
pub struct Query<'a> {
    pub text: &'a str,
    pub vector: Option<&'a [f32]>,
    /// Those of rules and sets, in addition to those of the lexical index.
    pub synonyms: &'a [Arc<Synonyms>],
}

/// The input of the first stage.
#[derive(Clone, Copy)]
pub struct RetrievalInput<'a> {
    pub generation: &'a Generation,
    pub catalog: &'a Catalog,
    pub user: &'a UserContext,
    pub popularity: &'a PopularityView,
    pub query: Option<Query<'a>>,
    /// Items from which a list of similar items or of items bought together starts.
    pub anchors: &'a [RecentItem],
    pub eligible: &'a EligibleRows<'a>,
    /// Those of the eligible rows that boosts raise. They are searched too, because a boost cannot raise what is no
    /// candidate. None: the request has no such boost.
    pub boosted: Option<&'a EligibleRows<'a>>,
    pub now: UnixMillis,
    pub limits: RetrievalLimits,
    /// Whether a group has one result, in a catalogue that has groups. The candidates still have several variants; see
    /// [`crate::products::keep_one_per_group`]. In this case and with boosts, they may be more than the limit.
    pub one_per_group: bool,
}

impl RetrievalInput<'_> {
    /// Number of rows that a source returns to find a number of products.
    pub fn row_count(&self, product_count: usize) -> usize {
        if self.one_per_group { ROWS_PER_PRODUCT * product_count } else { product_count }
    }

    /// Searches for rows of a number of products. The variants of a group are close to each other, so that a search is
    /// repeated for more rows while the found ones are of less than half as many products. `rows_of` returns the rows
    /// of a result.
    pub fn widened<T, E>(
        &self,
        product_count: usize,
        mut search: impl FnMut(usize) -> Result<T, E>,
        rows_of: impl Fn(&T) -> &ScoredRows,
    ) -> Result<T, E> {
        let mut count = product_count;
        loop {
            let found = search(count)?;
            let rows = rows_of(&found);
            let is_complete = || {
                let mut is_new = self.is_new_product(None);
                2 * rows.iter().filter(|(row, _)| is_new(*row)).count() >= product_count
            };
            if !self.one_per_group
                || rows.len() < count
                || count >= WIDENED_ROWS_PER_PRODUCT * product_count
                || is_complete()
            {
                return Ok(found);
            }
            count *= ROWS_PER_PRODUCT;
        }
    }

    /// Number of candidates after fusion.
    fn fused_count(&self) -> usize {
        if self.one_per_group || self.boosted.is_some() { usize::MAX } else { self.limits.fused }
    }

    /// Returns a function that is true for a row without a group, and for the first row of each group that no list has.
    fn is_new_product(&self, fusion: Option<&Fusion>) -> impl FnMut(Row) -> bool + '_ {
        let mut seen = SeenGroups::default();
        if let Some(fusion) = fusion.filter(|_| self.one_per_group) {
            fusion.found_rows().filter_map(|row| self.catalog.group_of(row)).for_each(|group| _ = seen.add(group));
        }
        move |row| !self.one_per_group || self.catalog.group_of(row).is_none_or(|group| seen.add(group))
    }

    /// Number of products that the lists still lack.
    fn missing_count(&self, fusion: &Fusion) -> usize {
        let found = match self.one_per_group {
            false => fusion.found_count(),
            true => {
                let mut is_new = self.is_new_product(None);
                fusion.found_rows().filter(|row| is_new(*row)).count()
            }
        };
        self.limits.fused.saturating_sub(found)
    }

    fn fusion(&self) -> Fusion {
        Fusion::new(self.catalog.row_count())
    }

    /// Starts from the anchors or from the items of the user: from the recent ones or, in the item-to-item model, from
    /// all.
    fn spread(&self, fusion: &mut Fusion, table: NeighbourTable, origin: Origin) {
        use NeighbourTable::*;
        let items = match origin {
            Origin::User => &self.user.recent,
            Origin::Anchors => self.anchors,
        };
        let count = if table == SimilarTextsOfLast { 1 } else { items.len() };
        let weighted = items.iter().take(count).map(|item| (item.key, item.weight));
        let generation = self.generation;
        let neighbours = match table {
            Transitions => &generation.transitions,
            CoPurchases => &generation.co_purchases,
            ItemToItem => &generation.item_to_item,
            SimilarTexts | SimilarTextsOfLast => &generation.similar_texts,
            SimilarHistories => return fusion.spread_histories(&generation.histories, weighted),
        };
        match (table, origin) {
            (ItemToItem, Origin::User) => {
                fusion.spread(table, origin, neighbours, self.user.chosen.iter().copied());
            }
            _ => fusion.spread(table, origin, neighbours, weighted),
        }
    }

    fn is_anchor(&self, row: Row) -> bool {
        // Another variant of a product is no product that is similar to it.
        let group = self.catalog.group_of(row);
        self.anchors
            .iter()
            .any(|anchor| anchor.row == row || group.is_some() && self.catalog.group_of(anchor.row) == group)
    }

    fn eligible_row(&self, key: ItemKey) -> Option<Row> {
        self.catalog.row_of_key(key).filter(|row| self.eligible.contains(*row))
    }

    /// Fuses the lists. The candidates also get their weights in the neighbour tables.
    fn finish(&self, mut fusion: Fusion) -> Candidates {
        NeighbourTable::ALL.into_iter().for_each(|table| self.spread(&mut fusion, table, Origin::User));
        self.fused(fusion)
    }

    fn fused(&self, fusion: Fusion) -> Candidates {
        fusion.finish(self.fused_count(), |row| self.catalog.key_of(row))
    }
}

/// Candidates for the user's next interaction.
pub fn for_user(input: &RetrievalInput) -> Candidates {
    let per_source = input.row_count(input.limits.per_source);
    let mut fusion = input.fusion();
    if let Some(vector) = &input.user.vector {
        let found = search_vectors(input, &mut fusion, vector, Space::User);
        fusion.add(CandidateSource::UserVector, found);
    }
    for (source, table, count) in [
        (CandidateSource::Transitions, NeighbourTable::Transitions, per_source),
        (CandidateSource::CoPurchases, NeighbourTable::CoPurchases, per_source / 2),
        (CandidateSource::ItemToItem, NeighbourTable::ItemToItem, per_source),
        (CandidateSource::SimilarTexts, NeighbourTable::SimilarTexts, per_source),
        (CandidateSource::SimilarHistories, NeighbourTable::SimilarHistories, per_source),
    ] {
        input.spread(&mut fusion, table, Origin::User);
        let found = fusion.best_spread(table, Origin::User, count, |key| input.eligible_row(key));
        fusion.add(source, found);
    }
    input.spread(&mut fusion, NeighbourTable::SimilarTextsOfLast, Origin::User);
    fusion.add(CandidateSource::History, history(input));
    // The other sources know little about a new user, or find little behind a filter.
    let missing = input.missing_count(&fusion);
    fusion.add(CandidateSource::Popular, popular(input, missing.max(input.limits.per_source / 2)));
    fill_from_catalogue(input, &mut fusion);
    append_boosted(input, &mut fusion);
    input.fused(fusion)
}

/// Appends items that boosts raise and no list has: those near the user's vector, then popular ones, then the latest.
fn append_boosted(input: &RetrievalInput, fusion: &mut Fusion) {
    let Some(boosted) = input.boosted else { return };
    let input = RetrievalInput { eligible: boosted, boosted: None, ..*input };
    let end = fusion.found_count() + input.row_count(BOOSTED_CANDIDATES_MAX);
    let missing = |fusion: &Fusion| end - fusion.found_count();
    if let Some(vector) = &input.user.vector {
        let found = search_vectors(&input, fusion, vector, Space::User);
        fusion.append(CandidateSource::UserVector, found.into_iter(), missing(fusion));
    }
    let found = popular(&input, BOOSTED_CANDIDATES_MAX);
    fusion.append(CandidateSource::Popular, found.into_iter(), missing(fusion));
    let latest = input.eligible.latest_rows().map(|row| (row, 0.0));
    fusion.append(CandidateSource::Catalogue, latest, missing(fusion));
}

/// Items that sell more than usual, then popular ones.
pub fn trending(input: &RetrievalInput) -> Candidates {
    let count = input.limits.fused;
    let mut fusion = input.fusion();
    let row = |key: &ItemKey| {
        let row = input.eligible_row(*key)?;
        Some((row, input.popularity.counts(*key).sales_trend(input.now).unwrap_or_default()))
    };
    let mut is_new = input.is_new_product(Some(&fusion));
    let trending = input.popularity.trending().iter().filter_map(row).filter(|(row, _)| is_new(*row));
    fusion.append(CandidateSource::Trending, trending, count);
    let mut is_new = input.is_new_product(Some(&fusion));
    let popular = popular(input, count).into_iter().filter(|(row, _)| is_new(*row));
    fusion.append(CandidateSource::Popular, popular, count);
    fill_from_catalogue(input, &mut fusion);
    input.fused(fusion)
}

/// Items by the time of their creation, the newest first. Items without one, and those that are announced for a later
/// time, follow by popularity.
pub fn new_arrivals(input: &RetrievalInput) -> Candidates {
    let count = input.limits.fused;
    let rows = input.eligible.rows().map(|row| {
        let content = input.catalog.get(row);
        let created = content.created_at.filter(|at| *at <= input.now);
        let created = created.map_or(SortValue::Missing, |at| SortValue::Number(at.0 as f64));
        let value = move |at: usize| match at {
            0 => created,
            _ => SortValue::Number(input.popularity.counts(content.key).rank().parts()[at - 1]),
        };
        (row, value)
    });
    let key_of = |row: Row| input.catalog.key_of(row);
    let one_per_group = input.one_per_group.then_some(input.catalog);
    let newest = select(rows, key_of, [true; 3], Part { count, one_per_group, ..Part::default() }).rows;
    let rows = newest.into_iter().map(|(row, _)| (row, 0.0)).collect();
    ordered_rows(input.catalog, CandidateSource::Catalogue, rows, count)
}

/// Candidates for a query: items with its words, and items whose vectors are close to its vector. If the query is an
/// item's identifier, only that item.
pub fn for_query(input: &RetrievalInput) -> Result<Candidates, LexicalError> {
    let Some(Query { text, vector, synonyms }) = input.query else { return Ok(Candidates::default()) };
    let query = QueryText { text, synonyms };
    let eligible = |row| input.eligible.contains(row);
    let search = |count: usize| input.generation.lexical.search_all_then_any(query, count, &eligible);
    let mut matches = input.widened(input.limits.per_source, search, |matches| &matches.rows)?;
    let is_identifier = matches.is_identifier();
    if let Some(boosted) = input.boosted.filter(|_| !is_identifier) {
        let (count, is_boosted) = (input.row_count(BOOSTED_CANDIDATES_MAX), |row| boosted.contains(row));
        matches.merge(input.generation.lexical.search_all_then_any(query, count, &is_boosted)?);
    }
    let mut fusion = input.fusion();
    if let Some(vector) = vector.filter(|_| !is_identifier) {
        let cosine_min = input.limits.query_cosine_min.unwrap_or(input.generation.manifest.relevance.cosine_min);
        let mut found = search_vectors(input, &mut fusion, vector, Space::Query);
        remove_irrelevant(&mut found, &matches.rows, cosine_min);
        fusion.add(CandidateSource::QueryVector, found);
    }
    let coverage = matches.coverage;
    fusion.add(CandidateSource::Lexical, matches.rows);
    Ok(Candidates {
        exact_match_count: matches.exact,
        full_match_count: matches.complete,
        coverage,
        ..input.finish(fusion)
    })
}

/// Removes the rows with a lower cosine than the minimum from those of a vector search, except those that the lexical
/// search found too.
pub fn remove_irrelevant(found: &mut ScoredRows, lexical: &ScoredRows, cosine_min: f32) {
    let lexical: AHashSet<Row> = lexical.iter().map(|(row, _)| *row).collect();
    found.retain(|(row, cosine)| *cosine >= cosine_min || lexical.contains(row));
}

/// Returns whether an item that exists would be a candidate for the query if every item were eligible.
pub fn has_match(input: &RetrievalInput) -> bool {
    let eligible = EligibleRows::alive(input.catalog);
    let limits = RetrievalLimits { per_source: 1, fused: 1, ..input.limits };
    for_query(&RetrievalInput { eligible: &eligible, boosted: None, limits, ..*input })
        .is_ok_and(|found| !found.list.is_empty())
}

/// Items similar to the anchors in both spaces, and those that users chose after them.
pub fn similar(input: &RetrievalInput) -> Candidates {
    let mut fusion = input.fusion();
    anchored_list(input, &mut fusion, NeighbourTable::Transitions, CandidateSource::Transitions);
    for anchor in input.anchors.iter().take(SIMILAR_ANCHORS_MAX) {
        let vectors = &input.catalog.own(anchor.row).vectors;
        for (space, vector) in [(Space::User, vectors.user_space()), (Space::Query, vectors.query_space())] {
            let mut found = search_vectors(input, &mut fusion, vector, space);
            found.retain(|(row, _)| !input.is_anchor(*row));
            fusion.add(CandidateSource::Similar, found);
        }
    }
    input.finish(fusion)
}

/// Items bought together with the anchors.
pub fn bought_together(input: &RetrievalInput) -> Candidates {
    let mut fusion = input.fusion();
    anchored_list(input, &mut fusion, NeighbourTable::CoPurchases, CandidateSource::CoPurchases);
    input.finish(fusion)
}

/// Adds the neighbours of the anchors by a table, without the anchors. The candidates also get their weights in the
/// other tables.
fn anchored_list(input: &RetrievalInput, fusion: &mut Fusion, table: NeighbourTable, source: CandidateSource) {
    NeighbourTable::OF_ANCHORS.into_iter().for_each(|table| input.spread(fusion, table, Origin::Anchors));
    let per_source = input.row_count(input.limits.per_source);
    let count = per_source + input.anchors.len();
    let mut found = fusion.best_spread(table, Origin::Anchors, count, |key| input.eligible_row(key));
    found.retain(|(row, _)| !input.is_anchor(*row));
    found.truncate(per_source);
    fusion.add(source, found);
}

/// Items that the user bought before.
pub fn bought_before(input: &RetrievalInput) -> Candidates {
    let mut fusion = input.fusion();
    fusion.add(CandidateSource::History, history(input));
    input.finish(fusion)
}

/// The eligible items of an ordered list of keys.
pub fn ordered_keys(input: &RetrievalInput, source: CandidateSource, list: Vec<(ItemKey, f32)>) -> Candidates {
    let rows = list.into_iter().filter_map(|(key, score)| Some((input.eligible_row(key)?, score)));
    ordered_rows(input.catalog, source, rows.collect(), input.fused_count())
}

/// The first `count` rows of an ordered list.
pub fn ordered_rows(catalog: &Catalog, source: CandidateSource, found: ScoredRows, count: usize) -> Candidates {
    let mut fusion = Fusion::new(catalog.row_count());
    fusion.add(source, found);
    fusion.finish(count, |row| catalog.key_of(row))
}

/// The nearest rows of a vector. The fusion records the strategy and the duration.
fn search_vectors(input: &RetrievalInput, fusion: &mut Fusion, vector: &[f32], space: Space) -> ScoredRows {
    let begun = Instant::now();
    let vector_of = |row: Row| space.vector(input.catalog, row);
    let index = input.generation.vector_index(space);
    let search = |count: usize| Ok::<_, Infallible>(index.search(vector, count, &input.eligible.bits, vector_of));
    let Ok((found, strategy)) = input.widened(input.limits.per_source, search, |(found, _)| found);
    fusion.record_vector_search(strategy, begun.elapsed());
    found
}

/// Bought items; frequent and recent purchases first.
fn history(input: &RetrievalInput) -> ScoredRows {
    let bought = input.user.items().filter(|(_, stats)| stats.bought_count > 0).filter_map(|(key, stats)| {
        let row = input.eligible_row(key)?;
        Some((row, stats.bought_count as f32 / (1.0 + stats.days_since(stats.bought_at, input.now).max(0.0))))
    });
    best_of(bought.collect(), input.limits.per_source)
}

/// The `count` most popular eligible products. Reads the items in the order of popularity or, if that takes longer, all
/// eligible ones.
pub fn popular(input: &RetrievalInput, count: usize) -> ScoredRows {
    let score = |key: ItemKey| input.popularity.counts(key).score(input.now);
    let eligible_count = input.eligible.count();
    let share = eligible_count as f64 / input.catalog.row_count().max(1) as f64;
    let mut is_new = input.is_new_product(None);
    if (eligible_count as f64) < (count as f64 / share).min(input.popularity.item_count_max() as f64) {
        let ranked = input.eligible.rows().map(|row| (row, input.catalog.key_of(row)));
        let mut ranked: Vec<(Rank, Row, ItemKey)> =
            ranked.map(|(row, key)| (input.popularity.counts(key).rank(), row, key)).collect();
        ranked.retain(|(rank, ..)| *rank != Rank::NONE);
        ranked.sort_unstable_by(|a, b| a.0.cmp_popular_first(&b.0).then(a.2.cmp(&b.2)));
        let first = ranked.into_iter().filter(|(_, row, _)| is_new(*row)).take(count);
        return first.map(|(_, row, key)| (row, score(key))).collect();
    }
    let eligible = input.popularity.popular().filter_map(|key| Some((input.eligible_row(key)?, score(key))));
    eligible.filter(|(row, _)| is_new(*row)).take(count).collect()
}

/// Appends eligible items that no list has, if the lists have fewer rows than the limit. So an answer is not empty
/// while an eligible item exists.
fn fill_from_catalogue(input: &RetrievalInput, fusion: &mut Fusion) {
    let missing = input.missing_count(fusion);
    if missing > 0 {
        let mut is_new = input.is_new_product(Some(fusion));
        let rows = input.eligible.latest_rows().filter(|row| is_new(*row)).map(|row| (row, 0.0));
        fusion.append(CandidateSource::Catalogue, rows, missing);
    }
}

/// The recent items that contribute most to an item's score, by a neighbour table or, without one, by similarity.
/// Deleted items are not evidence.
pub fn evidence_for(
    recent: &[RecentItem],
    catalog: &Catalog,
    table: Option<&KeyedNeighbours>,
    target: ItemKey,
) -> Vec<ItemKey> {
    let vector = |key: ItemKey| catalog.row_of_key(key).map(|row| catalog.own(row).vectors.user_space());
    let weight = |key: ItemKey| match table {
        Some(table) => catalog.row_of_key(key).map(|_| table.weight(key, target)),
        None => Some(dot(vector(key)?, vector(target)?)),
    };
    let others = recent.iter().filter(|recent| recent.key != target);
    let mut scored: Vec<(ItemKey, f32)> = others
        .filter_map(|recent| Some((recent.key, weight(recent.key)? * recent.weight)))
        .filter(|(_, score)| *score > 0.0)
        .collect();
    scored.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
    scored.truncate(2);
    scored.into_iter().map(|(key, _)| key).collect()
}
