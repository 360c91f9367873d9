//! From scores to a slate: policy input, arrangement, reasons.
use crate::{
    bundle::Head,
    context::{RankedCandidates, RequestContext},
    features::{FEATURE_COUNT, RecentItem},
    fusion::{Candidate, Candidates, NOT_FOUND},
    generation::Generation,
    models::Models,
    policy::{self, Arranged, BaseScores, CandidateIndex, PinSlot, Placed, PolicyInput, Ranking},
    request::*,
    retrieve,
    serving::{Plan, ServingConfig},
    source::{CandidateSource, ScoredRows},
    trace::{ConfiguredRanking, PolicyRules, is_by_field},
};
use lodestone_catalog::Catalog;
use lodestone_core::ids::{ItemId, ItemKey, Row};
use lodestone_index::KeyedNeighbours;
use std::{cmp::Ordering, ops::Range, sync::Arc};

/// The parts of the policy that do not come from the request's options.
pub struct PolicyContext<'a> {
    pub plan: &'a Plan,
    pub order: Order,
    pub query_tiers: QueryTiers,
    /// Seeds everything that is drawn.
    pub seed: u64,
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
        let diversity = options.diversity.unwrap_or(config.diversity);
        ConfiguredRanking { serving_config: config.name.clone(), weights, diversity, scores }
    };
    let (pins, pinned_rows) = pin_slots(context, candidates, options, may_pin);
    let is_interleaved = policy.plan.configs.len() > 1;
    PolicyRules {
        rankings: policy.plan.configs.iter().map(ranking).collect(),
        boost_factors: options.boosts.iter().map(|boost| boost.factor).collect(),
        boost_masks: boost_masks(context, candidates, &options.boosts),
        field_ranks: field_ranks(context, candidates, options.order_by),
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
    options: &Options,
    models: &Models,
) -> (Slate, Arranged) {
    let candidates = &ranked.candidates.list;
    let rankings = rules.rankings.iter();
    let rankings: Vec<Ranking> =
        rankings.map(|ranking| Ranking { scores: &ranking.scores, diversity: ranking.diversity }).collect();
    let input = PolicyInput {
        rankings: &rankings,
        boost_factors: &rules.boost_factors,
        boost_masks: &rules.boost_masks,
        field_ranks: &rules.field_ranks,
        pins: &rules.pins,
        exploration: rules.exploration.as_ref(),
        seed: rules.seed,
    };
    let catalog: &Catalog = context.catalog;
    let vector = |candidate: CandidateIndex| catalog.get(candidates[candidate.index()].row).vectors.query_space();
    let arranged = policy::arrange(&input, vector);
    let entry = |placed: &Placed| match candidates.get(placed.candidate.index()) {
        Some(candidate) => {
            let origin = Origin::Sources(candidate.best_sources());
            SlateEntry { row: candidate.row, score: placed.score, origin }
        }
        None => {
            let row = rules.pinned_rows[placed.candidate.index() - candidates.len()];
            SlateEntry { row, score: placed.score, origin: Origin::Pinned }
        }
    };
    let entries = arranged.placed.iter().map(entry).collect();
    let debug = match options.debug >= DebugLevel::Scores {
        true => (arranged.placed.iter())
            .map(|placed| placed.candidate.index())
            .map(|at| (at < candidates.len()).then(|| result_debug(at, ranked, models, options.debug)))
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

/// By candidate: its rank by the field; equal fields have equal ranks. Empty if no field orders.
fn field_ranks(context: &RequestContext, candidates: &[Candidate], order: OrderBy) -> Vec<u32> {
    if !is_by_field(order) {
        return Vec::new();
    }
    let by_field = |a: u32, b: u32| {
        let row = |candidate: u32| candidates[candidate as usize].row;
        compare_fields(context.catalog, order, row(a), row(b))
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
        OrderBy::Score => Ordering::Equal,
        // Items without a price come last in both directions.
        OrderBy::Price => price(a).unwrap_or(i64::MAX).cmp(&price(b).unwrap_or(i64::MAX)),
        OrderBy::PriceDescending => price(b).cmp(&price(a)),
        OrderBy::CreateTimeDescending => item(b).created_at.cmp(&item(a).created_at),
        OrderBy::Title => item(a).title.cmp(&item(b).title),
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
fn query_tiers(candidates: &Candidates) -> Vec<u8> {
    let tier = |candidate: &Candidate| {
        let rank = usize::from(candidate.ranks[CandidateSource::Lexical.index()]);
        u8::from(rank < candidates.full_match_count) + u8::from(rank < candidates.exact_match_count)
    };
    candidates.list.iter().map(tier).collect()
}

fn result_debug(at: usize, ranked: &RankedCandidates, models: &Models, level: DebugLevel) -> ResultDebug {
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
            true => ranked.features[at * FEATURE_COUNT..(at + 1) * FEATURE_COUNT].to_vec(),
            false => Vec::new(),
        },
    }
}

/// A whole ordered answer. Results are materialised page by page, because most pages are never requested.
#[derive(Default)]
pub struct Slate {
    pub entries: Vec<SlateEntry>,
    /// Parallel to `entries`; empty unless the request asks for it.
    debug: Vec<Option<ResultDebug>>,
    /// The user's recent items, which reasons name as evidence.
    recent: Vec<RecentItem>,
    /// The reason of every result that is not pinned, for lists whose results share one.
    pub reason: Option<Reason>,
    include_items: bool,
    pub dropped_pins: Vec<ItemId>,
    pub sources: Vec<SourceCount>,
}

/// One entry of a slate.
#[derive(Debug, Clone, Copy)]
pub struct SlateEntry {
    row: Row,
    score: f32,
    origin: Origin,
}

#[derive(Debug, Clone, Copy)]
enum Origin {
    Pinned,
    /// See [`Candidate::best_sources`].
    Sources([Option<CandidateSource>; 2]),
}

impl Slate {
    /// The items of the first `count` entries, best first.
    pub fn keys(&self, generation: &Generation, count: usize) -> Vec<ItemKey> {
        let catalog = generation.catalog.load();
        self.entries.iter().take(count).map(|entry| catalog.get(entry.row).key).collect()
    }

    /// The results of a range of entries. Rows outlive their items, so a later page shows the items that the first page
    /// froze.
    pub fn results(&self, generation: &Generation, range: Range<usize>) -> Vec<RankedItem> {
        let catalog = generation.catalog.load();
        range
            .map(|at| {
                let entry = &self.entries[at];
                let item = &catalog.get(entry.row).item;
                RankedItem {
                    id: item.id.clone(),
                    rank: at + 1,
                    score: f64::from(entry.score),
                    reasons: self.reasons(entry, generation, &catalog),
                    item: self.include_items.then(|| item.clone()),
                    debug: self.debug.get(at).cloned().flatten(),
                }
            })
            .collect()
    }

    fn reasons(&self, entry: &SlateEntry, generation: &Generation, catalog: &Catalog) -> Vec<Reason> {
        let Origin::Sources(sources) = entry.origin else {
            return vec![Reason { code: ReasonCode::Pinned, evidence: Vec::new() }];
        };
        if let Some(reason) = &self.reason {
            return vec![reason.clone()];
        }
        let evidence =
            |table: Option<&KeyedNeighbours>| retrieve::evidence_for(&self.recent, catalog, table, entry.row);
        let reason = |source: CandidateSource| {
            let (code, evidence) = match source {
                CandidateSource::UserVector => (ReasonCode::FitsHistory, evidence(None)),
                CandidateSource::QueryVector => (ReasonCode::MatchesMeaning, Vec::new()),
                CandidateSource::Lexical => (ReasonCode::MatchesWords, Vec::new()),
                CandidateSource::Transitions => (ReasonCode::OftenNext, evidence(Some(&generation.transitions))),
                CandidateSource::CoPurchases => (ReasonCode::BoughtTogether, evidence(Some(&generation.co_purchases))),
                CandidateSource::Similar => (ReasonCode::Similar, Vec::new()),
                CandidateSource::Popular => (ReasonCode::Popular, Vec::new()),
                CandidateSource::History => (ReasonCode::BoughtBefore, vec![catalog.get(entry.row).key]),
            };
            let ids = |keys: Vec<ItemKey>| keys.into_iter().map(|key| generation.state.keys.id(key)).collect();
            Reason { code, evidence: ids(evidence) }
        };
        sources.into_iter().flatten().map(reason).collect()
    }
}
