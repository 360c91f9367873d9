//! From scores to a slate: policy input, arrangement, reasons.
use crate::{
    bundle::Head,
    context::{RankedCandidates, RequestContext},
    features::RecentItem,
    fusion::{Candidate, Candidates, NOT_FOUND},
    generation::Generation,
    models::Models,
    policy::{self, Arranged, BaseScores, CandidateIndex, PinSlot, Placed, PolicyInput, Ranking, ScoreParts, Team},
    request::*,
    retrieve,
    serving::{Plan, ServingConfig},
    source::{CandidateSource, ScoredRows},
    trace::{ConfiguredRanking, PolicyRules, is_by_field},
};
use lodestone_catalog::{Catalog, Filter, Item};
use lodestone_core::{
    ids::{ItemId, ItemKey, Row},
    text,
    units::UnixMillis,
};
use lodestone_index::KeyedNeighbours;
use std::{cmp::Ordering, sync::Arc};

/// Number of days after its creation in which an item is new.
pub const NEW_ITEM_DAYS: i64 = 30;

/// Number of tiers of items with some words of a query. Items with less than a quarter of the best share have only
/// words that hardly matter, such as "of", and the model places them among the items without any.
const COVERAGE_TIERS: f32 = 4.0;

/// The parts of the policy that do not come from the request's options.
pub struct PolicyContext<'a> {
    pub plan: &'a Plan,
    pub order: Order,
    pub query_tiers: QueryTiers,
    /// Whether the repeat fraction of a serving configuration applies.
    pub mixes_repeats: bool,
    /// The matches of a search, which precede its other results.
    pub matches: Option<&'a SearchMatches>,
    /// Seeds everything that is drawn.
    pub seed: u64,
}

/// The items that match a search. Facets and the total size count them.
pub struct SearchMatches {
    /// Ascending.
    pub rows: Vec<Row>,
    pub by: MatchedBy,
}

/// How the items of [`SearchMatches`] match. The first way by which an item matches applies to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchedBy {
    /// They have every word of the query, or their id or SKU is the query.
    AllWords,
    /// No item has every word.
    SomeWords,
    /// No item has any word. The matches are the results of the vector search.
    Meaning,
}

impl SearchMatches {
    fn contains(&self, row: Row) -> bool {
        self.rows.binary_search(&row).is_ok()
    }

    /// How a candidate matches the query.
    fn query_match(&self, candidates: &Candidates, candidate: &Candidate) -> QueryMatch {
        let rank = usize::from(candidate.ranks[CandidateSource::Lexical.index()]);
        let has_words = rank != usize::from(NOT_FOUND) || self.by != MatchedBy::Meaning && self.contains(candidate.row);
        match has_words {
            true if rank < candidates.exact_match_count => QueryMatch::Identifier,
            true if self.by == MatchedBy::AllWords && self.contains(candidate.row) => QueryMatch::AllWords,
            true => QueryMatch::SomeWords,
            false => QueryMatch::Meaning,
        }
    }
}

/// Which score orders the slate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The ranking model's, if it ran.
    Model,
    Retrieval,
}

/// Whether rows that match the whole query precede the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryTiers {
    Apply,
    Ignore,
}

/// Gathers the input of the policy. `may_pin` returns whether a pin may show a row.
pub fn policy_rules(
    context: &RequestContext,
    ranked: &RankedCandidates,
    options: &Options,
    policy: &PolicyContext,
    models: &Models,
    may_pin: &dyn Fn(Row) -> bool,
) -> PolicyRules {
    let candidates = &ranked.candidates.list;
    let tiers = match policy.query_tiers {
        QueryTiers::Apply => query_tiers(&ranked.candidates),
        QueryTiers::Ignore => Vec::new(),
    };
    let fused: Vec<f32> = candidates.iter().map(|candidate| candidate.evidence.fused).collect();
    let ranking = |config: &Arc<ServingConfig>| {
        let weight = |head: &Head| config.head_weights.get(&head.name).copied().unwrap_or(head.weight);
        let uses_model = config.ranker && policy.order == Order::Model && !ranked.heads.is_empty();
        let weights: Vec<f32> = if uses_model { models.heads.iter().map(weight).collect() } else { Vec::new() };
        let base = BaseScores { heads: &ranked.heads, weights: &weights, fused: &fused, tiers: &tiers };
        let scores = base.scores(config.candidates.min(candidates.len())).unwrap_or_else(|| fused.clone());
        ConfiguredRanking {
            serving_config: config.name.clone(),
            weights,
            diversity: options.diversity.unwrap_or(config.diversity),
            repeat_fraction: config.repeat_fraction.filter(|_| policy.mixes_repeats),
            scores,
        }
    };
    let rankings: Vec<ConfiguredRanking> = policy.plan.configs.iter().map(ranking).collect();
    let is_repeat = |candidate: &Candidate| context.user.stats(context.catalog.get(candidate.row).key).bought_count > 0;
    let repeats = match rankings.iter().any(|ranking| ranking.repeat_fraction.is_some()) {
        true => candidates.iter().map(is_repeat).collect(),
        false => Vec::new(),
    };
    let (pins, pinned_rows) = pin_slots(context, candidates, options, may_pin);
    let is_interleaved = policy.plan.configs.len() > 1;
    PolicyRules {
        rankings,
        boost_factors: options.boosts.iter().map(|boost| boost.factor).collect(),
        boost_masks: boost_masks(context, candidates, &options.boosts),
        field_ranks: field_ranks(context, candidates, options.order_by, policy.matches),
        repeats,
        pins,
        pinned_rows,
        exploration: policy.plan.main().exploration.clone().filter(|_| !is_interleaved),
        seed: policy.seed,
        tiers,
    }
}

/// Applies the policy. Returns the whole slate and the arrangement that it comes from.
pub fn arrange(
    context: &mut RequestContext,
    ranked: &RankedCandidates,
    rules: &PolicyRules,
    matches: Option<&SearchMatches>,
    options: &Options,
    models: &Models,
) -> (Slate, Arranged) {
    let candidates = &ranked.candidates.list;
    let rankings = rules.rankings.iter();
    let rankings: Vec<Ranking> = rankings
        .map(|ranking| Ranking {
            scores: &ranking.scores,
            diversity: ranking.diversity,
            repeat_fraction: ranking.repeat_fraction,
        })
        .collect();
    let input = PolicyInput {
        rankings: &rankings,
        boost_factors: &rules.boost_factors,
        boost_masks: &rules.boost_masks,
        field_ranks: &rules.field_ranks,
        repeats: &rules.repeats,
        pins: &rules.pins,
        exploration: rules.exploration.as_ref(),
        seed: rules.seed,
    };
    let catalog: &Catalog = context.catalog;
    let vector = |candidate: CandidateIndex| catalog.get(candidates[candidate.index()].row).vectors.query_space();
    let arranged = policy::arrange(&input, vector);
    let entry = |placed: &Placed| {
        let candidate = candidates.get(placed.candidate.index());
        let row = candidate
            .map_or_else(|| rules.pinned_rows[placed.candidate.index() - candidates.len()], |candidate| candidate.row);
        SlateEntry {
            key: catalog.get(row).key,
            score: placed.score,
            is_pinned: placed.is_pinned,
            sources: candidate.map_or([None; 2], Candidate::best_sources),
            query_match: candidate
                .zip(matches)
                .map(|(candidate, matches)| matches.query_match(&ranked.candidates, candidate)),
        }
    };
    let entries = arranged.placed.iter().map(entry).collect();
    let debug = match options.debug >= DebugLevel::Scores {
        true => (arranged.placed.iter())
            .map(|placed| {
                Some(result_debug(score_parts(ranked, rules, placed)?, placed, ranked, models, options.debug))
            })
            .collect(),
        false => Vec::new(),
    };
    context.end_stage("policy");
    let source_count = |(source, list): &(CandidateSource, ScoredRows)| SourceCount {
        source: *source,
        count: list.len(),
        strategy: ranked.candidates.strategy_of(*source),
    };
    let slate = Slate {
        entries,
        debug,
        recent: context.user.recent.clone(),
        now: context.now,
        shown: Shown::Offered(None),
        reason: None,
        include_items: options.include_items,
        dropped_pins: arranged.dropped_pins.iter().map(|at| options.pins[*at].item.clone()).collect(),
        sources: ranked.candidates.lists.iter().map(source_count).collect(),
    };
    (slate, arranged)
}

/// By candidate: bit b is set if boost b matches.
fn boost_masks(context: &RequestContext, candidates: &[Candidate], boosts: &[Boost]) -> Vec<u32> {
    if boosts.is_empty() {
        return Vec::new();
    }
    let mask = |candidate: &Candidate| {
        let item = &context.catalog.get(candidate.row).item;
        let matching = boosts.iter().enumerate().filter(|(_, boost)| boost.filter.matches(item));
        matching.fold(0, |mask, (at, _)| mask | 1 << at)
    };
    candidates.iter().map(mask).collect()
}

/// By candidate: its rank by the field; equal fields have equal ranks. Empty if no field orders. The matches of a
/// search precede its other candidates, because the cheapest item of all that resemble the query is seldom what was
/// sought.
fn field_ranks(
    context: &RequestContext,
    candidates: &[Candidate],
    order: OrderBy,
    matches: Option<&SearchMatches>,
) -> Vec<u32> {
    if !is_by_field(order) {
        return Vec::new();
    }
    let is_match: Vec<bool> =
        candidates.iter().map(|candidate| matches.is_some_and(|matches| matches.contains(candidate.row))).collect();
    let title = |candidate: &Candidate| text::normalize(&context.catalog.get(candidate.row).item.title);
    let titles: Vec<String> = match order {
        OrderBy::Title => candidates.iter().map(title).collect(),
        _ => Vec::new(),
    };
    let by_field = |a: u32, b: u32| {
        let (a, b) = (a as usize, b as usize);
        let fields = || compare_fields(context.catalog, order, candidates[a].row, candidates[b].row);
        is_match[b].cmp(&is_match[a]).then_with(fields).then_with(|| titles.get(a).cmp(&titles.get(b)))
    };
    let mut sorted: Vec<u32> = (0..candidates.len() as u32).collect();
    sorted.sort_by(|a, b| by_field(*a, *b));
    let (mut ranks, mut rank) = (vec![0; candidates.len()], 0);
    for (at, &candidate) in sorted.iter().enumerate() {
        if at > 0 && by_field(sorted[at - 1], candidate) != Ordering::Equal {
            rank += 1;
        }
        ranks[candidate as usize] = rank;
    }
    ranks
}

fn compare_fields(catalog: &Catalog, order: OrderBy, a: Row, b: Row) -> Ordering {
    let item = |row: Row| &catalog.get(row).item;
    let price = |row: Row| item(row).price.map(|price| price.micros());
    match order {
        // Titles are normalised once and not for each comparison.
        OrderBy::Score | OrderBy::Title => Ordering::Equal,
        // Items without a price come last in both directions.
        OrderBy::Price => price(a).unwrap_or(i64::MAX).cmp(&price(b).unwrap_or(i64::MAX)),
        OrderBy::PriceDescending => price(b).cmp(&price(a)),
        OrderBy::CreateTimeDescending => item(b).created_at.cmp(&item(a).created_at),
    }
}

/// The pins by candidate, and the pinned rows that are not candidates; these have the indices after the candidates.
fn pin_slots(
    context: &RequestContext,
    candidates: &[Candidate],
    options: &Options,
    may_pin: &dyn Fn(Row) -> bool,
) -> (Vec<PinSlot>, Vec<Row>) {
    let mut others: Vec<Row> = Vec::new();
    let mut index_of = |row: Row| {
        let found = candidates.iter().position(|candidate| candidate.row == row);
        let other = || others.iter().position(|other| *other == row).map(|at| candidates.len() + at);
        let index = found.or_else(other).unwrap_or_else(|| {
            others.push(row);
            candidates.len() + others.len() - 1
        });
        CandidateIndex(index as u32)
    };
    let slot = |pin: &Pin| {
        let row = context.catalog.row_of(&context.generation.state.keys, &pin.item).filter(|row| may_pin(*row));
        PinSlot { candidate: row.map(&mut index_of), rank: pin.rank }
    };
    let pins = options.pins.iter().map(slot).collect();
    (pins, others)
}

/// By candidate: 2 if the query names its id or SKU, 1 if it has all words of the query, otherwise 0. The ranking model
/// orders the candidates of each tier, so that a shopper who types a name in a language that the model did not learn
/// still finds it first. Utilities are below 1.
///
/// If no item has all words, those with some of them precede the others, in [`COVERAGE_TIERS`] by their share of the
/// words.
fn query_tiers(candidates: &Candidates) -> Vec<u8> {
    let coverage_best = candidates.coverage.iter().copied().fold(0.0, f32::max);
    let tier = |candidate: &Candidate| {
        let rank = usize::from(candidate.ranks[CandidateSource::Lexical.index()]);
        match candidates.coverage.get(rank) {
            Some(coverage) if coverage_best > 0.0 => (COVERAGE_TIERS * coverage / coverage_best) as u8,
            // All matches are in descriptions.
            Some(_) => 1,
            None => u8::from(rank < candidates.full_match_count) + u8::from(rank < candidates.exact_match_count),
        }
    };
    candidates.list.iter().map(tier).collect()
}

/// None for a pin that is no candidate.
fn score_parts(ranked: &RankedCandidates, rules: &PolicyRules, placed: &Placed) -> Option<ScoreParts> {
    let at = placed.candidate.index();
    let fused = [ranked.candidates.list.get(at)?.evidence.fused];
    let ranking = rules.rankings.get(usize::from(placed.team == Some(Team::B)))?;
    let width = ranking.weights.len();
    let heads = ranked.heads.get(at * width..(at + 1) * width).unwrap_or_default();
    let tiers = rules.tiers.get(at..=at).unwrap_or_default();
    let parts = BaseScores { heads, weights: &ranking.weights, fused: &fused, tiers }.parts(0)?;
    Some(parts.with_boosts(&rules.boost_factors, rules.boost_masks.get(at).copied().unwrap_or(0)))
}

fn result_debug(
    score_parts: ScoreParts,
    placed: &Placed,
    ranked: &RankedCandidates,
    models: &Models,
    level: DebugLevel,
) -> ResultDebug {
    let at = placed.candidate.index();
    let candidate = &ranked.candidates.list[at];
    let heads = models.heads.len();
    // A source may have several lists; the one with the best rank of the candidate has its score.
    let score_of = |source: CandidateSource, rank: u16| {
        let mut lists = ranked.candidates.lists.iter().filter(|(of, _)| *of == source);
        lists.find_map(|(_, list)| list.get(rank as usize).filter(|(row, _)| *row == candidate.row))
    };
    let found = CandidateSource::ALL.into_iter().zip(candidate.ranks).filter(|(_, rank)| *rank != NOT_FOUND);
    ResultDebug {
        source_scores: found
            .filter_map(|(source, rank)| Some((source.name(), f64::from(score_of(source, rank)?.1))))
            .collect(),
        retrieval_score: f64::from(candidate.evidence.fused),
        retrieval_rank: at + 1,
        score_parts,
        heads: match ranked.heads.is_empty() {
            true => Vec::new(),
            false => models
                .heads
                .iter()
                .zip(&ranked.heads[at * heads..])
                .map(|(head, probability)| (head.name.clone(), f64::from(*probability)))
                .collect(),
        },
        features: match level >= DebugLevel::Features {
            true => ranked.features_of(at).to_vec(),
            false => Vec::new(),
        },
    }
}

/// A whole ordered answer. Results are materialised page by page, because most pages are never requested.
///
/// The order is frozen. Whether an item is shown, and its fields, are those of the moment at which its page is
/// requested. Entries have keys and not rows, because a later page may read the
/// catalogue of another bundle, whose rows differ.
#[derive(Default)]
pub struct Slate {
    pub entries: Vec<SlateEntry>,
    /// Parallel to `entries`; empty unless the request asks for it.
    debug: Vec<Option<ResultDebug>>,
    /// The user's recent items, which reasons name as evidence.
    recent: Vec<RecentItem>,
    /// The time of the answer.
    now: UnixMillis,
    pub shown: Shown,
    /// The reason of every result that is not pinned, for lists whose results share one.
    pub reason: Option<Reason>,
    include_items: bool,
    pub dropped_pins: Vec<ItemId>,
    pub sources: Vec<SourceCount>,
}

/// One entry of a slate.
#[derive(Debug, Clone, Copy)]
pub struct SlateEntry {
    key: ItemKey,
    score: f32,
    is_pinned: bool,
    /// See [`Candidate::best_sources`]. None for a pin that no source found.
    sources: [Option<CandidateSource>; 2],
    /// None without a query.
    query_match: Option<QueryMatch>,
}

/// The entries of a slate that a page may show.
#[derive(Debug, Clone)]
pub enum Shown {
    /// Items in stock that match the filter.
    Offered(Option<Filter>),
    /// All: the caller named them.
    All,
}

impl Default for Shown {
    fn default() -> Self {
        Self::Offered(None)
    }
}

/// A page of a slate.
#[derive(Debug)]
pub struct SlatePage {
    pub results: Vec<RankedItem>,
    /// Index of the entry with which the next page starts. None: this is the last page.
    pub next: Option<usize>,
}

impl Slate {
    /// The items of the first `count` entries, best first.
    pub fn keys(&self, count: usize) -> Vec<ItemKey> {
        self.entries.iter().take(count).map(|entry| entry.key).collect()
    }

    /// The next `size` results from the entry with index `offset`. `generation` made the slate, `catalog` has the items
    /// of now. An item that was deleted, sold out or no longer matches the filter is left out, and the page is filled
    /// with the items after it; ranks are those of the frozen order.
    pub fn page(&self, generation: &Generation, catalog: &Catalog, offset: usize, size: usize) -> SlatePage {
        let mut shown = (offset..self.entries.len()).filter_map(|at| {
            let item = catalog.row_of_key(self.entries[at].key).map(|row| (row, &catalog.get(row).item));
            let is_shown = match &self.shown {
                Shown::Offered(filter) => item.is_some_and(|(row, item)| {
                    catalog.is_offered(row) && filter.as_ref().is_none_or(|filter| filter.matches(item))
                }),
                Shown::All => true,
            };
            is_shown.then_some((at, item.map(|(_, item)| item)))
        });
        let own_catalog = generation.catalog.load();
        let result = |(at, item): (usize, Option<&Arc<Item>>)| {
            let entry = &self.entries[at];
            // The key of an item of a catalogue is never released.
            let id = generation.state.keys.id(entry.key)?;
            Some(RankedItem {
                id,
                rank: at + 1,
                score: f64::from(entry.score),
                reasons: self.reasons(entry, generation, &own_catalog, item.map(Arc::as_ref)),
                query_match: entry.query_match,
                item: item.filter(|_| self.include_items).cloned(),
                debug: self.debug.get(at).cloned().flatten(),
            })
        };
        let results = shown.by_ref().take(size).filter_map(result).collect();
        SlatePage { results, next: shown.next().map(|(at, _)| at) }
    }

    /// The reasons of an entry: a pin, then the list's reason or those of the sources, then that the item is new.
    fn reasons(
        &self,
        entry: &SlateEntry,
        generation: &Generation,
        catalog: &Catalog,
        item: Option<&Item>,
    ) -> Vec<Reason> {
        let plain = |code| Reason { code, evidence: Vec::new() };
        let of_source = |source| match &self.reason {
            Some(reason) => Some(reason.clone()),
            None => self.reason_of(source, entry, generation, catalog),
        };
        let of_sources = entry.sources.into_iter().flatten().filter_map(of_source);
        let count = if self.reason.is_some() { 1 } else { entry.sources.len() };
        let pinned = entry.is_pinned.then(|| plain(ReasonCode::Pinned));
        let is_new = item.is_some_and(|item| is_new(item, self.now));
        let new = is_new.then(|| plain(ReasonCode::New));
        pinned.into_iter().chain(of_sources.take(count)).chain(new).collect()
    }

    fn reason_of(
        &self,
        source: CandidateSource,
        entry: &SlateEntry,
        generation: &Generation,
        catalog: &Catalog,
    ) -> Option<Reason> {
        let evidence =
            |table: Option<&KeyedNeighbours>| retrieve::evidence_for(&self.recent, catalog, table, entry.key);
        let (code, evidence) = match source {
            CandidateSource::UserVector => (ReasonCode::FitsHistory, evidence(None)),
            CandidateSource::QueryVector => (ReasonCode::MatchesMeaning, Vec::new()),
            CandidateSource::Lexical => (ReasonCode::MatchesWords, Vec::new()),
            CandidateSource::Transitions => (ReasonCode::OftenNext, evidence(Some(&generation.transitions))),
            CandidateSource::CoPurchases => (ReasonCode::BoughtTogether, evidence(Some(&generation.co_purchases))),
            CandidateSource::ItemToItem => (ReasonCode::FitsHistory, evidence(Some(&generation.item_to_item))),
            CandidateSource::SimilarTexts => (ReasonCode::Similar, evidence(Some(&generation.similar_texts))),
            CandidateSource::SimilarHistories => (ReasonCode::FitsHistory, evidence(None)),
            CandidateSource::Similar => (ReasonCode::Similar, Vec::new()),
            CandidateSource::Popular => (ReasonCode::Popular, Vec::new()),
            CandidateSource::History => (ReasonCode::BoughtBefore, vec![entry.key]),
            CandidateSource::Trending => (ReasonCode::Trending, Vec::new()),
            // It fills the list; nothing speaks for the item.
            CandidateSource::Catalogue => return None,
        };
        Some(Reason { code, evidence: evidence.into_iter().filter_map(|key| generation.state.keys.id(key)).collect() })
    }
}

/// Whether an item was created less than [`NEW_ITEM_DAYS`] days before `now`. An item with a later creation is not new
/// yet.
fn is_new(item: &Item, now: UnixMillis) -> bool {
    item.created_at.is_some_and(|at| at <= now && at.0.saturating_add(NEW_ITEM_DAYS * UnixMillis::DAY) > now.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fusion::Fusion;

    fn tiers(lexical: &[u32], vector: &[u32], with: impl Fn(Candidates) -> Candidates) -> Vec<(u32, u8)> {
        let list = |rows: &[u32]| rows.iter().map(|row| (Row(*row), 1.0)).collect();
        let mut fusion = Fusion::new(10);
        fusion.add(CandidateSource::Lexical, list(lexical));
        fusion.add(CandidateSource::QueryVector, list(vector));
        let candidates = with(fusion.finish(10, |row| ItemKey(row.0)));
        let rows = candidates.list.iter().map(|candidate| candidate.row.0);
        let mut tiers: Vec<(u32, u8)> = rows.zip(query_tiers(&candidates)).collect();
        tiers.sort_unstable();
        tiers
    }

    #[test]
    fn exact_matches_precede_full_matches_and_these_the_others() {
        let found = tiers(&[0, 1, 2], &[3], |found| Candidates { exact_match_count: 1, full_match_count: 2, ..found });
        assert_eq!(found, [(0, 2), (1, 1), (2, 0), (3, 0)]);
    }

    #[test]
    fn without_a_full_match_items_with_more_of_the_words_precede_the_others() {
        let found = tiers(&[0, 1, 2], &[3, 1], |found| Candidates { coverage: vec![0.6, 0.35, 0.1], ..found });
        assert_eq!(found, [(0, 4), (1, 2), (2, 0), (3, 0)]);
        let in_descriptions = tiers(&[0, 1], &[3], |found| Candidates { coverage: vec![0.0, 0.0], ..found });
        assert_eq!(in_descriptions, [(0, 1), (1, 1), (3, 0)]);
    }
}
