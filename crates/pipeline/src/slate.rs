//! From scores to a slate: policy input, arrangement, reasons.
use crate::{
    bundle::Head,
    context::{RankedCandidates, RequestContext},
    features::RecentItem,
    fusion::{Candidate, Candidates, NOT_FOUND},
    generation::Generation,
    models::Models,
    policy::{
        self, Arranged, BaseScores, BlendInput, CandidateIndex, HeadColumns, ObjectiveFacts, ObjectiveMix, PinSlot,
        Placed, PolicyInput, Ranking, ScoreParts, Team,
    },
    request::*,
    retrieve::{self, EligibleRows},
    serving::{Plan, ServingConfig},
    source::{CandidateSource, ScoredRows},
    tail::{Tail, TailMembers},
    trace::{BlendedObjectives, ConfiguredRanking, PolicyRules},
};
use ahash::AHashSet;
use lodestone_catalog::{Catalog, Filter, Item, OfferKey, OrderBy, Part, Position, ReadMask};
use lodestone_core::{
    bits,
    ids::{ItemId, ItemKey, Row},
    units::UnixMillis,
};
use lodestone_events::Rank;
use lodestone_index::{KeyedNeighbours, MatchScope};
use lodestone_loyalty::{UserSummary, day_of};
use lodestone_rules::Objective;
use std::sync::Arc;

/// Maximum size of the variants that a result lists, in bytes, so that a page has several results.
const VARIANTS_BYTES_MAX: usize = 1 << 20;

/// Days after a visit in which the head `return_visit` counts another one, which the user's return risk is about.
const RETURN_DAYS: u32 = 14;

/// Number of days after its creation in which an item is new.
pub const NEW_ITEM_DAYS: i64 = 30;

/// Number of items of a shop that have the reason POPULAR where no source found them: those of most popularity.
const POPULAR_ITEMS: usize = 1000;

/// Number of tiers of items with some words of a query. With four, an item with the query's rare word shared a tier with
/// one that has only its two common words, if the best item has the rare word and a common one.
const COVERAGE_TIERS: f32 = 16.0;
/// Items with less than this part of the best share have only words that hardly matter, such as "of", and the model
/// places them among the items without any.
const COVERAGE_MIN: f32 = 0.25;

/// The parts of the policy that do not come from the request's options.
pub struct PolicyContext<'a> {
    pub plan: &'a Plan,
    pub order: Order,
    pub query_tiers: QueryTiers,
    /// Whether the repeat fraction of a serving configuration applies.
    pub mixes_repeats: bool,
    /// What orders candidates of equal fields, if the request orders by fields.
    pub field_ties: FieldTies,
    /// Whether all candidates are results, also more than the serving configuration ranks.
    pub keeps_all: bool,
    /// Results of the first page.
    pub page_size: usize,
    /// Seeds everything that is drawn.
    pub seed: u64,
}

/// The items that match a search, as bit sets over rows. Facets and the total size count them.
pub struct SearchMatches {
    pub rows: Vec<u64>,
    /// Those whose id or SKU is the query.
    pub exact: Vec<u64>,
    pub by: MatchedBy,
}

/// How the items of [`SearchMatches`] match. The first way by which an item matches applies to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatchedBy {
    Words(MatchScope),
    /// No item has any word. The matches are the results of the vector search.
    Meaning,
}

impl SearchMatches {
    pub fn contains(&self, row: Row) -> bool {
        bits::has(&self.rows, row.index())
    }

    /// Returns those of the matches that are eligible, which are the matches of fewer rows. None: there are none, so that
    /// other rows may match by fewer words.
    pub fn among(&self, eligible: &EligibleRows) -> Option<Self> {
        let rows = bits::and(&self.rows, eligible.bits());
        let is_same = !bits::is_empty(&rows) || self.by == MatchedBy::Meaning;
        is_same.then(|| Self { rows, exact: bits::and(&self.exact, eligible.bits()), by: self.by })
    }

    /// How a candidate matches the query.
    fn query_match(&self, candidate: &Candidate) -> QueryMatch {
        let (row, is_lexical) = (candidate.row, candidate.ranks[CandidateSource::Lexical.index()] != NOT_FOUND);
        match self.by {
            _ if bits::has(&self.exact, row.index()) => QueryMatch::Identifier,
            MatchedBy::Words(MatchScope::Identifier | MatchScope::AllWords) if self.contains(row) => {
                QueryMatch::AllWords
            }
            MatchedBy::Words(MatchScope::SomeWords) if self.contains(row) => QueryMatch::SomeWords,
            _ if is_lexical => QueryMatch::SomeWords,
            MatchedBy::Words(_) | MatchedBy::Meaning => QueryMatch::Meaning,
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

/// What orders candidates of equal fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldTies {
    /// The score.
    ByScore,
    /// The key of the item: the candidates are the first items of a longer list in this order.
    ByKey,
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
    let uses_model = |config: &ServingConfig| config.ranker && policy.order == Order::Model && !ranked.heads.is_empty();
    let mixes = policy.plan.configs.iter().filter(|config| uses_model(config));
    let mixes: Vec<&ObjectiveMix> = mixes.filter_map(|config| config.objectives.as_ref()).collect();
    let rows = candidates.iter().map(|candidate| candidate.row);
    let of_user = context.history.summary.as_deref();
    let facts = objective_facts(context.generation, context.catalog, &mixes, rows, of_user, context.now);
    let columns = HeadColumns::new(models.heads.iter().map(|head| head.name.as_str()));
    let ranking = |config: &Arc<ServingConfig>| {
        let weight = |head: &Head| config.head_weights.get(&head.name).copied().unwrap_or(head.weight);
        let weights: Vec<f32> = if uses_model(config) { models.heads.iter().map(weight).collect() } else { Vec::new() };
        let base = BaseScores { heads: &ranked.heads, weights: &weights, fused: &fused, tiers: &tiers };
        // Those that boosts raise are candidates beyond the number of the configuration.
        let keeps_all = policy.keeps_all || context.boosted.is_some();
        let count = if keeps_all { candidates.len() } else { config.candidates.min(candidates.len()) };
        let mix = config.objectives.as_ref().filter(|_| uses_model(config));
        let objectives = mix.and_then(|mix| {
            let slots = policy.page_size;
            let input = BlendInput { mix, facts: &facts, columns, heads: &ranked.heads, tiers: &tiers, slots };
            let blend = policy::blend(base.relevance(count)?, &input);
            Some(BlendedObjectives { mix: mix.clone(), slots, blend })
        });
        let scores = match &objectives {
            Some(objectives) => base.with_tiers(objectives.blend.scores.clone()),
            None => base.scores(count).unwrap_or_else(|| fused.clone()),
        };
        ConfiguredRanking {
            serving_config: config.name.clone(),
            serving_config_etag: config.etag.clone(),
            weights,
            diversity: options.diversity.unwrap_or(config.diversity),
            repeat_fraction: config.repeat_fraction.filter(|_| policy.mixes_repeats),
            objectives,
            scores,
        }
    };
    let rankings: Vec<ConfiguredRanking> = policy.plan.configs.iter().map(ranking).collect();
    let is_repeat = |candidate: &Candidate| context.user.stats(context.catalog.key_of(candidate.row)).bought_count > 0;
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
        field_ranks: field_ranks(context, candidates, &options.order_by, policy.field_ties),
        repeats,
        pins,
        pinned_rows,
        exploration: policy.plan.main().exploration.clone().filter(|_| !is_interleaved),
        objective_facts: facts,
        seed: policy.seed,
        tiers,
    }
}

/// Applies the policy. Returns the whole slate and the arrangement that it comes from.
pub fn arrange(
    context: &mut RequestContext,
    ranked: &RankedCandidates,
    rules: &PolicyRules,
    options: &Options,
    models: &Models,
) -> (Slate, Arranged) {
    let matches = context.matches.as_ref();
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
    let vector = |candidate: CandidateIndex| catalog.own(candidates[candidate.index()].row).vectors.query_space();
    let arranged = policy::arrange(&input, vector);
    let entry = |placed: &Placed| {
        let candidate = candidates.get(placed.candidate.index());
        let row = candidate
            .map_or_else(|| rules.pinned_rows[placed.candidate.index() - candidates.len()], |candidate| candidate.row);
        SlateEntry {
            key: catalog.key_of(row),
            score: placed.score,
            is_pinned: placed.is_pinned,
            sources: candidate.map_or([None; 2], Candidate::best_sources),
            query_match: candidate.zip(matches).map(|(candidate, matches)| matches.query_match(candidate)),
        }
    };
    let entries: Vec<SlateEntry> = arranged.placed.iter().map(entry).collect();
    let group_of = |entry: &SlateEntry| {
        let row = catalog.row_of_key(entry.key).filter(|_| context.one_per_group);
        row.map_or("", |row| catalog.own(row).item.group_id.as_str()).into()
    };
    let groups: Vec<Box<str>> = entries.iter().map(group_of).collect();
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
        shown: Shown::default(),
        offers: OfferKey::default(),
        reason: None,
        tail: None,
        read_mask: options.read_mask.clone(),
        excluded: options.exclude.clone(),
        variants: context.one_per_group.then_some(Variants { groups, list_size: options.variant_list_size }),
        dropped_pins: arranged.dropped_pins.iter().map(|at| options.pins[*at].item.clone()).collect(),
        sources: ranked.candidates.lists.iter().map(source_count).collect(),
    };
    (slate, arranged)
}

/// Gathers what mixtures of objectives read apart from the heads: prices and margins of the rows, and the risk of the user.
pub fn objective_facts(
    generation: &Generation,
    catalog: &Catalog,
    mixes: &[&ObjectiveMix],
    rows: impl Iterator<Item = Row>,
    summary: Option<&UserSummary>,
    now: UnixMillis,
) -> ObjectiveFacts {
    let has = |objective: Objective| mixes.iter().any(|mix| mix.has(objective));
    let (prices, margins) = match mixes.iter().any(|mix| mix.needs_prices()) {
        true => prices_and_margins(generation, catalog, rows, now, has(Objective::Margin)),
        false => Default::default(),
    };
    let loyalty = generation.loyalty.model().filter(|_| has(Objective::Loyalty));
    let return_risk = loyalty.map(|model| model.return_risk(summary, day_of(now), RETURN_DAYS) as f32);
    ObjectiveFacts { prices, margins, return_risk }
}

/// Returns the prices that a viewer sees, in units of the currency that most of the rows have, and the margins; NaN:
/// unknown. A row without a cost has the mean margin share of the catalogue.
fn prices_and_margins(
    generation: &Generation,
    catalog: &Catalog,
    rows: impl Iterator<Item = Row>,
    now: UnixMillis,
    with_margins: bool,
) -> (Vec<f32>, Vec<f32>) {
    let items: Vec<&Item> = rows.map(|row| &*catalog.get(row).item).collect();
    let price = |item: &Item| item.price_at(now).price.map(|price| price.units() as f32);
    let mut currencies: Vec<(&str, usize)> = Vec::new();
    for item in items.iter().filter(|item| price(item).is_some()) {
        match currencies.iter_mut().find(|(code, _)| code.eq_ignore_ascii_case(&item.currency)) {
            Some((_, count)) => *count += 1,
            None => currencies.push((&item.currency, 1)),
        }
    }
    // Of several with as many rows the first, which the best candidate has.
    let most = currencies.iter().rev().max_by_key(|(_, count)| *count).map_or("", |(code, _)| *code);
    let known = |item: &&Item| price(item).filter(|_| item.currency.eq_ignore_ascii_case(most)).unwrap_or(f32::NAN);
    let prices: Vec<f32> = items.iter().map(known).collect();
    if !with_margins {
        return (prices, Vec::new());
    }
    let lacks_cost = items.iter().any(|item| item.cost.is_none());
    let share = if lacks_cost { generation.mean_margin_share(now) } else { None };
    let share = share.map_or(f32::NAN, |share| share as f32);
    let margin = |(item, price): (&&Item, &f32)| match item.margin_at(now) {
        Some(margin) if !price.is_nan() => margin as f32,
        _ => share * price,
    };
    let margins = items.iter().zip(&prices).map(margin).collect();
    (prices, margins)
}

/// By candidate: bit b is set if boost b matches.
fn boost_masks(context: &RequestContext, candidates: &[Candidate], boosts: &[Boost]) -> Vec<u64> {
    if boosts.is_empty() {
        return Vec::new();
    }
    let mask = |candidate: &Candidate| {
        let matches = |filter: &Filter| context.catalog.matches(filter, candidate.row);
        let matching = boosts.iter().enumerate().filter(|(_, boost)| matches(&boost.filter));
        matching.fold(0, |mask, (at, _)| mask | 1 << at)
    };
    candidates.iter().map(mask).collect()
}

/// By candidate: its rank by the fields; equal values have equal ranks. Empty if no field orders.
fn field_ranks(context: &RequestContext, candidates: &[Candidate], order: &OrderBy, ties: FieldTies) -> Vec<u32> {
    if order.is_empty() {
        return Vec::new();
    }
    match ties {
        // They are in the order of the fields and keys already.
        FieldTies::ByKey => (0..candidates.len() as u32).collect(),
        FieldTies::ByScore => {
            let rows: Vec<Row> = candidates.iter().map(|candidate| candidate.row).collect();
            context.catalog.ranks_by(order, &rows)
        }
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
    let is_candidate = |row: Row| candidates.iter().any(|candidate| candidate.row == row);
    let slot = |pin: &Pin| {
        let row = pinned_row(context.named_rows(&pin.item).filter(|row| may_pin(*row)), is_candidate);
        PinSlot { candidate: row.map(&mut index_of), rank: pin.rank }
    };
    let pins = options.pins.iter().map(slot).collect();
    (pins, others)
}

/// Returns the row that a pin shows, of those that its id names and that it may show: the one that is a candidate,
/// otherwise the first.
pub fn pinned_row(named: impl Iterator<Item = Row>, is_candidate: impl Fn(Row) -> bool) -> Option<Row> {
    let named: Vec<Row> = named.collect();
    named.iter().find(|row| is_candidate(**row)).or(named.first()).copied()
}

/// By candidate: 2 if the query names its id or SKU, 1 if it has all words of the query, otherwise 0. The ranking model
/// orders the candidates of each tier, so that a shopper who types a name in a language that the model did not learn
/// still finds it first. Utilities are below 1.
///
/// If no item has all words, those with some of them precede the others, in [`COVERAGE_TIERS`] by their share of the
/// words.
pub(crate) fn query_tiers(candidates: &Candidates) -> Vec<u8> {
    let coverage_best = candidates.coverage.iter().copied().fold(0.0, f32::max);
    let tier = |candidate: &Candidate| {
        let rank = usize::from(candidate.ranks[CandidateSource::Lexical.index()]);
        match candidates.coverage.get(rank) {
            Some(coverage) if *coverage < COVERAGE_MIN * coverage_best => 0,
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
    let blended = ranking.objectives.as_ref().and_then(|of| of.blend.scores.get(at).copied());
    let parts = ScoreParts { base: blended.unwrap_or(parts.base), ..parts };
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

/// The first results of an answer in their order, and what follows. Results are materialised page by page, because most
/// pages are never requested.
///
/// The order of the entries is frozen; the tail is selected page by page. Whether an item is shown, and its fields, are
/// those of the moment at which its page is requested. Entries have keys and not rows, because a later page may read
/// the catalogue of another bundle, whose rows differ.
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
    /// The viewer's choice of offers, by which all pages see the catalogue.
    pub offers: OfferKey,
    /// The reason of every result that is not pinned, for lists whose results share one.
    pub reason: Option<Reason>,
    /// The results behind the entries. None: the entries are the whole answer.
    pub tail: Option<Tail>,
    /// The fields of the results' items. None: results have no items.
    read_mask: Option<ReadMask>,
    /// Items and groups that the request excludes.
    excluded: Vec<ItemId>,
    /// None: a group may have several results.
    variants: Option<Variants>,
    pub dropped_pins: Vec<ItemId>,
    pub sources: Vec<SourceCount>,
}

/// How results stand for their groups.
struct Variants {
    /// By entry: the group of its item; empty without one. By id, because a later page may read the catalogue of
    /// another bundle, whose groups have other numbers.
    groups: Vec<Box<str>>,
    /// Most variants that a result lists.
    list_size: usize,
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
    /// Items that match the filter, and sold-out ones only if the request shows them.
    Eligible { filter: Option<Filter>, sold_out: SoldOut },
    /// All: the caller named them.
    All,
}

impl Default for Shown {
    fn default() -> Self {
        Self::Eligible { filter: None, sold_out: SoldOut::Hidden }
    }
}

/// The beginning of a page.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PageStart {
    /// Number of results before the page.
    pub offset: usize,
    /// The position of the last result before the page in the order of the tail. None: that result is no result of the
    /// tail, or the page was requested by its number.
    pub after: Option<Position>,
}

/// A page of an answer.
#[derive(Debug)]
pub struct SlatePage {
    pub results: Vec<RankedItem>,
    /// By result: its position in the order of the tail; none for entries of the slate.
    positions: Vec<Option<Position>>,
    /// None: this is the last page.
    pub next: Option<PageStart>,
}

impl SlatePage {
    /// Removes the results after the first `count`, so that the next page begins with them.
    pub fn truncate(&mut self, count: usize) {
        let Some(first) = self.results.get(count) else { return };
        let after = match self.positions[count] {
            Some(_) => count.checked_sub(1).and_then(|last| self.positions[last].clone()),
            None => None,
        };
        self.next = Some(PageStart { offset: first.rank - 1, after });
        self.results.truncate(count);
        self.positions.truncate(count);
    }
}

/// The items of now: a generation, and a snapshot of its catalogue as the viewer sees it.
#[derive(Clone, Copy)]
pub struct CurrentItems<'a> {
    pub generation: &'a Generation,
    pub catalog: &'a Catalog,
}

impl Slate {
    /// The items of the first `count` entries, best first.
    pub fn keys(&self, count: usize) -> Vec<ItemKey> {
        self.entries.iter().take(count).map(|entry| entry.key).collect()
    }

    /// Takes the debug information of the entries out, so that it is not kept with the slate: with features it has several
    /// times the bytes of the entries. Empty unless the request asks for it.
    pub fn take_debug(&mut self) -> Vec<Option<ResultDebug>> {
        std::mem::take(&mut self.debug)
    }

    /// The memory of the slate in bytes, approximately.
    pub fn bytes(&self) -> usize {
        let ids = |ids: &[ItemId]| ids.iter().map(|id| size_of::<ItemId>() + id.as_str().len()).sum::<usize>();
        let groups = self.variants.iter().flat_map(|variants| &variants.groups);
        // A parsed filter has several times the bytes of its text.
        let filter = match &self.shown {
            Shown::Eligible { filter: Some(filter), .. } => 4 * filter.to_string().len(),
            Shown::Eligible { filter: None, .. } | Shown::All => 0,
        };
        let query = self.tail.iter().map(|tail| match &tail.members {
            TailMembers::Matches { query, .. } => query.len(),
            TailMembers::All => 0,
        });
        size_of::<Self>()
            + size_of_val(&*self.entries)
            + size_of_val(&*self.debug)
            + size_of_val(&*self.recent)
            + groups.map(|group| size_of::<Box<str>>() + group.len()).sum::<usize>()
            + self.reason.iter().map(|reason| ids(&reason.evidence)).sum::<usize>()
            + ids(&self.excluded)
            + ids(&self.dropped_pins)
            + filter
            + query.sum::<usize>()
    }

    /// Returns whether the page may have results of the tail, whose selection reads all of its items.
    pub fn reaches_tail(&self, start: &PageStart, size: usize) -> bool {
        self.tail.is_some() && start.offset.saturating_add(size) >= self.entries.len()
    }

    /// Returns the `size` results from a start. `generation` made the slate. An item of the slate that was deleted,
    /// sold out or no longer matches the filter is left out, and the page is filled with the items after it; ranks
    /// are those of the frozen order.
    pub fn page(&self, generation: &Generation, now: CurrentItems, start: &PageStart, size: usize) -> SlatePage {
        let keys = &generation.state.keys;
        let excluded: AHashSet<Row> = self.excluded.iter().flat_map(|id| now.catalog.named_rows(keys, id)).collect();
        let mut page = self.page_of_entries(generation, now.catalog, &excluded, start.offset, size);
        if let Some(tail) = self.tail.as_ref().filter(|_| page.next.is_none()) {
            self.append_tail(&mut page, tail, now, &excluded, start, size);
        }
        page
    }

    /// Appends results of the tail up to `size` results.
    fn append_tail(
        &self,
        page: &mut SlatePage,
        tail: &Tail,
        now: CurrentItems,
        excluded: &AHashSet<Row>,
        start: &PageStart,
        size: usize,
    ) {
        let first = start.offset.max(self.entries.len());
        let skip = if start.after.is_some() { 0 } else { first - self.entries.len() };
        let part = Part { after: start.after.as_ref(), skip, count: size - page.results.len(), ..Part::default() };
        let hidden = excluded.iter().copied().chain(self.shown_products(now.catalog));
        let selected = tail.select(now.generation, now.catalog, self.filter(), hidden, part);
        let popularity = now.generation.popularity();
        let popular = popularity.rank_of_most_popular(POPULAR_ITEMS);
        for (at, (row, position)) in selected.rows.into_iter().enumerate() {
            let content = now.catalog.get(row);
            let is_popular = is_popular(popularity.counts(content.key).rank(), popular);
            let query_match = tail.query_match();
            let reasons = [
                (query_match.is_some(), ReasonCode::MatchesWords),
                (is_popular, ReasonCode::Popular),
                (is_new(&content.item, self.now), ReasonCode::New),
            ];
            let reasons = reasons.into_iter().filter(|(is_true, _)| *is_true);
            page.results.push(RankedItem {
                rank: first + at + 1,
                score: 0.0,
                reasons: reasons.map(|(_, code)| Reason { code, evidence: Vec::new() }).collect(),
                query_match,
                item: self.result_item(now.catalog, row),
                debug: None,
                ..self.with_variants(now.catalog, row, excluded)
            });
            page.positions.push(Some(position));
        }
        if selected.has_more {
            let after = page.positions.last().cloned().flatten();
            let offset = page.results.last().map_or(first, |result| result.rank.max(self.entries.len()));
            page.next = Some(PageStart { offset, after });
        }
    }

    fn filter(&self) -> Option<&Filter> {
        match &self.shown {
            Shown::Eligible { filter, .. } => filter.as_ref(),
            Shown::All => None,
        }
    }

    fn is_shown(&self, catalog: &Catalog, row: Row, excluded: &AHashSet<Row>) -> bool {
        let sold_out = match self.shown {
            Shown::Eligible { sold_out, .. } => sold_out,
            Shown::All => SoldOut::Hidden,
        };
        sold_out.shows(catalog, row)
            && self.filter().is_none_or(|filter| catalog.matches(filter, row))
            && !excluded.contains(&row)
    }

    /// Returns the rows that the group of an entry has now.
    fn rows_of_group<'c>(&self, catalog: &'c Catalog, at: usize) -> &'c [Row] {
        let id = self.variants.as_ref().and_then(|variants| variants.groups.get(at)).filter(|id| !id.is_empty());
        id.and_then(|id| catalog.group_named(id)).map_or(&[], |group| catalog.rows_of_group(group))
    }

    /// Returns the rows of the entries and, if a group has one result, of their groups.
    pub fn shown_products<'c>(&'c self, catalog: &'c Catalog) -> impl Iterator<Item = Row> + 'c {
        (0..self.entries.len()).flat_map(move |at| {
            let row = catalog.row_of_key(self.entries[at].key);
            let variants = row.filter(|_| self.variants.is_some()).map(|row| catalog.variants_of(row));
            row.into_iter().chain(variants.into_iter().flatten()).chain(self.rows_of_group(catalog, at).iter().copied())
        })
    }

    /// Returns the row of an entry or, if it may not be shown and is not pinned, that of another variant of its group
    /// that has no entry.
    fn shown_variant(&self, catalog: &Catalog, at: usize, excluded: &AHashSet<Row>) -> Option<Row> {
        let entry = &self.entries[at];
        let row = catalog.row_of_key(entry.key).filter(|row| self.is_shown(catalog, *row, excluded));
        let other = || {
            let mut others = self.rows_of_group(catalog, at).iter().copied().filter(|_| !entry.is_pinned);
            let has_entry = |row: Row| self.entries.iter().any(|entry| entry.key == catalog.key_of(row));
            others.find(|row| self.is_shown(catalog, *row, excluded) && !has_entry(*row))
        };
        row.or_else(other)
    }

    /// Returns a row's item with the fields that the request asks for; none if it asks for no items.
    fn result_item(&self, catalog: &Catalog, row: Row) -> Option<Arc<Item>> {
        self.read_mask.as_ref().map(|mask| mask.of(&catalog.shown_item(row)))
    }

    /// Returns the result of a row with its variants and without a rank.
    fn with_variants(&self, catalog: &Catalog, row: Row, excluded: &AHashSet<Row>) -> RankedItem {
        let item = &catalog.get(row).item;
        let mut result = RankedItem::named(item.id.clone());
        let grouped = catalog.group_of(row).and(self.variants.as_ref());
        if let Some(Variants { list_size, .. }) = grouped {
            let others = || {
                let others = catalog.variants_of(row).filter(move |other| *other != row);
                others.filter(|other| self.is_shown(catalog, *other, excluded))
            };
            result.variant_count = 1 + others().count();
            let mut bytes = 0;
            let listed = std::iter::once(row).chain(others()).take(*list_size);
            let shown = listed.map(|row| match self.result_item(catalog, row) {
                Some(item) => (item_bytes(&item), item),
                None => (0, catalog.get(row).item.clone()),
            });
            let fitting = shown.take_while(|(of_item, _)| {
                bytes += of_item;
                bytes <= VARIANTS_BYTES_MAX
            });
            result.variants = fitting.map(|(_, item)| item).collect();
        }
        result
    }

    /// Returns the next `size` entries from the one with index `offset`.
    fn page_of_entries(
        &self,
        generation: &Generation,
        catalog: &Catalog,
        excluded: &AHashSet<Row>,
        offset: usize,
        size: usize,
    ) -> SlatePage {
        let mut shown = (offset..self.entries.len()).filter_map(|at| {
            let row = catalog.row_of_key(self.entries[at].key);
            match &self.shown {
                Shown::Eligible { .. } => Some((at, Some(self.shown_variant(catalog, at, excluded)?))),
                Shown::All => Some((at, row)),
            }
        });
        let own_catalog = generation.catalog.load();
        let fills = |entry: &SlateEntry| entry.sources[0] == Some(CandidateSource::Catalogue);
        let popular = match self.entries.iter().any(fills) {
            true => generation.popularity().rank_of_most_popular(POPULAR_ITEMS),
            false => None,
        };
        let result = |(at, row): (usize, Option<Row>)| {
            let entry = &self.entries[at];
            let item = row.map(|row| &catalog.get(row).item);
            let described = match row {
                Some(row) => self.with_variants(catalog, row, excluded),
                // The key of an item of a catalogue is never released.
                None => RankedItem::named(generation.state.keys.id(entry.key)?),
            };
            Some(RankedItem {
                rank: at + 1,
                score: f64::from(entry.score),
                reasons: self.reasons(entry, generation, &own_catalog, item.map(Arc::as_ref), popular),
                query_match: entry.query_match,
                item: row.and_then(|row| self.result_item(catalog, row)),
                debug: self.debug.get(at).cloned().flatten(),
                ..described
            })
        };
        let results: Vec<RankedItem> = shown.by_ref().take(size).filter_map(result).collect();
        let next = shown.next().map(|(at, _)| PageStart { offset: at, after: None });
        SlatePage { positions: vec![None; results.len()], results, next }
    }

    /// The reasons of an entry, each code once: a pin, then the list's reason or those of the sources, then that the item
    /// is new. `popular` is the rank that makes an item popular that no source found.
    fn reasons(
        &self,
        entry: &SlateEntry,
        generation: &Generation,
        catalog: &Catalog,
        item: Option<&Item>,
        popular: Option<Rank>,
    ) -> Vec<Reason> {
        let plain = |code| Reason { code, evidence: Vec::new() };
        let of_source = |source| match &self.reason {
            Some(reason) => Some(reason.clone()),
            // It fills the list: popularity is the only thing that may speak for the item.
            None if source == CandidateSource::Catalogue => {
                let rank = generation.popularity().counts(entry.key).rank();
                is_popular(rank, popular).then(|| plain(ReasonCode::Popular))
            }
            None => self.reason_of(source, entry, generation, catalog),
        };
        let of_sources = entry.sources.into_iter().flatten().filter_map(of_source);
        let count = if self.reason.is_some() { 1 } else { entry.sources.len() };
        let pinned = entry.is_pinned.then(|| plain(ReasonCode::Pinned));
        let new = item.is_some_and(|item| is_new(item, self.now)).then(|| plain(ReasonCode::New));
        join_equal_codes(pinned.into_iter().chain(of_sources.take(count)).chain(new))
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
            CandidateSource::Caller => (ReasonCode::Candidate, Vec::new()),
            CandidateSource::Catalogue => return None,
        };
        Some(Reason { code, evidence: evidence.into_iter().filter_map(|key| generation.state.keys.id(key)).collect() })
    }
}

/// Joins the evidence of reasons with one code, because several sources have the same code. The order is that of the first
/// reason of each code.
fn join_equal_codes(reasons: impl Iterator<Item = Reason>) -> Vec<Reason> {
    let mut joined: Vec<Reason> = Vec::new();
    for reason in reasons {
        match joined.iter_mut().find(|of| of.code == reason.code) {
            None => joined.push(reason),
            Some(of) => {
                let new: Vec<ItemId> = reason.evidence.into_iter().filter(|id| !of.evidence.contains(id)).collect();
                of.evidence.extend(new);
                of.evidence.truncate(EVIDENCE_MAX);
            }
        }
    }
    joined
}

/// Whether an item's rank reaches that of the most popular items.
fn is_popular(rank: Rank, popular: Option<Rank>) -> bool {
    rank != Rank::NONE && popular.is_some_and(|popular| rank.cmp_popular_first(&popular).is_le())
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
    fn reasons_of_one_code_are_one_with_the_evidence_of_all() {
        let reason = |code, evidence: &[&str]| Reason {
            code,
            evidence: evidence.iter().map(|id| ItemId::parse(id).unwrap()).collect(),
        };
        let joined = join_equal_codes(
            [
                reason(ReasonCode::FitsHistory, &["a", "b"]),
                reason(ReasonCode::Popular, &[]),
                reason(ReasonCode::FitsHistory, &["b", "c"]),
                reason(ReasonCode::FitsHistory, &["d"]),
            ]
            .into_iter(),
        );
        let found: Vec<(ReasonCode, String)> = joined
            .iter()
            .map(|of| (of.code, of.evidence.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")))
            .collect();
        assert_eq!(found, [(ReasonCode::FitsHistory, "a b c".to_owned()), (ReasonCode::Popular, String::new())]);
    }

    #[test]
    fn exact_matches_precede_full_matches_and_these_the_others() {
        let found = tiers(&[0, 1, 2], &[3], |found| Candidates { exact_match_count: 1, full_match_count: 2, ..found });
        assert_eq!(found, [(0, 2), (1, 1), (2, 0), (3, 0)]);
    }

    #[test]
    fn without_a_full_match_items_with_more_of_the_words_precede_the_others() {
        let found = tiers(&[0, 1, 2], &[3, 1], |found| Candidates { coverage: vec![0.6, 0.35, 0.1], ..found });
        assert_eq!(found, [(0, 16), (1, 9), (2, 0), (3, 0)]);
        // The best has a rare word and a common one, the next the rare word, the third both common words.
        let of_words = vec![0.75, 0.55, 0.46];
        let found = tiers(&[0, 1, 2], &[2, 1], |found| Candidates { coverage: of_words.clone(), ..found });
        assert!(found[0].1 > found[1].1 && found[1].1 > found[2].1, "{found:?}");
        let in_descriptions = tiers(&[0, 1], &[3], |found| Candidates { coverage: vec![0.0, 0.0], ..found });
        assert_eq!(in_descriptions, [(0, 1), (1, 1), (3, 0)]);
    }
}
