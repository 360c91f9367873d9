//! From scores to a slate: rules, policy, reasons.
use super::{fusion::{Candidate, Candidates, NO_PLACE}, generation::Generation, models::Models, request::*, retrieve::{self, SOURCES}, trace::{ConfiguredRanking, Rules, is_by_field}};
use crate::context::{Ranked, RequestContext};
use crate::{bundle::Head, features::{FEATURE_COUNT, Recent}, policy::{self, Arranged, Base, PolicyInput, PinSlot, Ranking}, serving::{Plan, ServingConfig}};
use lodestone_catalog::Catalog;
use lodestone_core::ids::{ItemId, ItemKey, Row};
use lodestone_index::Neighbours;
use std::{cmp::Ordering, ops::Range, sync::Arc};

/// What decides the order beyond the request's options.
pub struct PolicyContext<'a> {
    pub plan: &'a Plan,
    /// The list answers a question of its own (alike, together, when): its order is that of retrieval.
    pub has_own_order: bool,
    /// Rows that have all words of the query come before others, and those that it names before these.
    pub puts_matches_first: bool,
    /// Of everything that is drawn.
    pub seed: u64,
}

impl RequestContext<'_> {
    /// What the policy is given. `pins_ok` says which rows a pin may show.
    pub fn rules(
        &self,
        ranked: &Ranked,
        options: &Options,
        asking: &PolicyContext,
        models: &Models,
        pins_ok: &dyn Fn(Row) -> bool,
    ) -> Rules {
        let candidates = &ranked.candidates.list;
        let tiers = if asking.puts_matches_first { tiers(&ranked.candidates) } else { Vec::new() };
        let fused: Vec<f32> = candidates.iter().map(|candidate| candidate.evidence.fused).collect();
        let ranking = |config: &Arc<ServingConfig>| {
            let weight = |head: &Head| config.head_weights.get(&head.name).copied().unwrap_or(head.weight);
            let uses_model = config.ranker && !asking.has_own_order && !ranked.heads.is_empty();
            let weights: Vec<f32> = if uses_model { models.heads.iter().map(weight).collect() } else { Vec::new() };
            let base = Base { heads: &ranked.heads, weights: &weights, fused: &fused, tiers: &tiers };
            let scores = base.scores(config.candidates.min(candidates.len())).unwrap_or_else(|| fused.clone());
            let diversity = options.diversity.unwrap_or(config.diversity);
            ConfiguredRanking { serving_config: config.name.clone(), weights, diversity, scores }
        };
        let (pins, pinned_rows) = self.pins(candidates, options, pins_ok);
        let is_alone = asking.plan.configs.len() == 1;
        Rules {
            rankings: asking.plan.configs.iter().map(ranking).collect(),
            boost_factors: options.boosts.iter().map(|boost| boost.factor).collect(),
            boost_masks: self.boost_masks(candidates, &options.boosts),
            field_places: self.field_places(candidates, options.order_by),
            pins,
            pinned_rows,
            exploration: asking.plan.main().exploration.clone().filter(|_| is_alone),
            seed: asking.seed,
            tiers,
        }
    }

    /// Arranges the answer. Gives the whole slate, and what was arranged.
    pub fn slate(&mut self, ranked: &Ranked, rules: &Rules, options: &Options, models: &Models) -> (Slate, Arranged) {
        let candidates = &ranked.candidates.list;
        let rankings = rules.rankings.iter();
        let rankings: Vec<Ranking> =
            rankings.map(|ranking| Ranking { scores: &ranking.scores, diversity: ranking.diversity }).collect();
        let given = PolicyInput {
            rankings: &rankings,
            boost_factors: &rules.boost_factors,
            boost_masks: &rules.boost_masks,
            field_places: &rules.field_places,
            pins: &rules.pins,
            exploration: rules.exploration.as_ref(),
            seed: rules.seed,
        };
        let vector = |candidate: u32| self.catalog.get(candidates[candidate as usize].row).vectors.query_space();
        let arranged = policy::arrange(&given, vector);
        let places = arranged.places.iter().map(|place| match candidates.get(place.candidate as usize) {
            Some(candidate) => {
                Place { row: candidate.row, score: place.score, why: Why::Sources(candidate.best_sources()) }
            }
            None => {
                let row = rules.pinned_rows[place.candidate as usize - candidates.len()];
                Place { row, score: place.score, why: Why::Pinned }
            }
        });
        let places = places.collect();
        let debug = match options.debug >= DebugLevel::Scores {
            true => (arranged.places.iter())
                .map(|place| place.candidate as usize)
                .map(|at| (at < candidates.len()).then(|| result_debug(at, ranked, models, options.debug)))
                .collect(),
            false => Vec::new(),
        };
        self.stage("policy");
        let lists = ranked.candidates.lists.iter();
        let sources = lists
            .map(|(source, list)| SourceCount {
                source: SOURCES[*source],
                count: list.len(),
                way: ranked.candidates.way_of(*source),
            })
            .collect();
        let slate = Slate {
            places,
            debug,
            recent: self.user.recent.clone(),
            reason: None,
            include_items: options.include_items,
            dropped_pins: arranged.dropped_pins.iter().map(|at| options.pins[*at].item.clone()).collect(),
            sources,
        };
        (slate, arranged)
    }

    /// By candidate: bit b is set where boost b matches.
    fn boost_masks(&self, candidates: &[Candidate], boosts: &[Boost]) -> Vec<u32> {
        if boosts.is_empty() {
            return Vec::new();
        }
        let mask = |candidate: &Candidate| {
            let item = &self.catalog.get(candidate.row).item;
            let matching = boosts.iter().enumerate().filter(|(_, boost)| boost.filter.matches(item));
            matching.fold(0, |mask, (at, _)| mask | 1 << at)
        };
        candidates.iter().map(mask).collect()
    }

    /// By candidate: its place by the field; equal fields have equal places. Empty where no field orders.
    fn field_places(&self, candidates: &[Candidate], order: OrderBy) -> Vec<u32> {
        if !is_by_field(order) {
            return Vec::new();
        }
        let by_field = |a: u32, b: u32| self.compare(order, candidates[a as usize].row, candidates[b as usize].row);
        let mut sorted: Vec<u32> = (0..candidates.len() as u32).collect();
        sorted.sort_by(|a, b| by_field(*a, *b));
        let (mut places, mut place) = (vec![0; candidates.len()], 0);
        for (at, &candidate) in sorted.iter().enumerate() {
            if at > 0 && by_field(sorted[at - 1], candidate) != Ordering::Equal {
                place += 1;
            }
            places[candidate as usize] = place;
        }
        places
    }

    fn compare(&self, order: OrderBy, a: Row, b: Row) -> Ordering {
        let item = |row: Row| &self.catalog.get(row).item;
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

    /// The pins by candidates' numbers, and the rows that are no candidates, which have the numbers after those.
    fn pins(&self, candidates: &[Candidate], options: &Options, ok: &dyn Fn(Row) -> bool) -> (Vec<PinSlot>, Vec<Row>) {
        let mut others: Vec<Row> = Vec::new();
        let mut number = |row: Row| {
            let found = candidates.iter().position(|candidate| candidate.row == row);
            let other = || others.iter().position(|other| *other == row).map(|at| candidates.len() + at);
            found.or_else(other).unwrap_or_else(|| {
                others.push(row);
                candidates.len() + others.len() - 1
            })
        };
        let slot = |pin: &Pin| {
            let row = self.catalog.row_of(&self.generation.live.keys, &pin.item).filter(|row| ok(*row));
            PinSlot { row: row.map(|row| Row(number(row) as u32)), rank: pin.rank }
        };
        let pins = options.pins.iter().map(slot).collect();
        (pins, others)
    }
}

/// What the query names by id or SKU comes first, then what has all of its words, then what is only near to it: the ranking
/// model orders each of the three, and a shopper who typed a name in another language than the model learned still finds it
/// first. Utilities are below 1.
fn tiers(candidates: &Candidates) -> Vec<u8> {
    let tier = |candidate: &Candidate| {
        let place = usize::from(candidate.places[retrieve::WORDS]);
        u8::from(place < candidates.words_complete) + u8::from(place < candidates.words_exact)
    };
    candidates.list.iter().map(tier).collect()
}

fn result_debug(at: usize, ranked: &Ranked, models: &Models, level: DebugLevel) -> ResultDebug {
    let candidate = &ranked.candidates.list[at];
    let heads = models.heads.len();
    // Several lists may come from one source: the one with the best place speaks.
    let score_of = |source: usize, place: u16| {
        let mut lists = ranked.candidates.lists.iter().filter(|(of, _)| *of == source);
        lists.find_map(|(_, list)| list.get(place as usize).filter(|(row, _)| *row == candidate.row))
    };
    let found = candidate.places.iter().enumerate().filter(|(_, place)| **place != NO_PLACE);
    ResultDebug {
        source_scores: found
            .filter_map(|(source, place)| Some((SOURCES[source], f64::from(score_of(source, *place)?.1))))
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

/// An ordered answer, whole. Its results are written out page by page: most are never seen.
#[derive(Default)]
pub struct Slate {
    pub places: Vec<Place>,
    /// As `places`; empty where it was not asked for.
    debug: Vec<Option<ResultDebug>>,
    /// The user's recent items, which reasons name as evidence.
    recent: Vec<Recent>,
    /// The reason of every result that is not pinned, for lists that answer one question.
    pub reason: Option<Reason>,
    include_items: bool,
    pub dropped_pins: Vec<ItemId>,
    pub sources: Vec<SourceCount>,
}

/// One place of a slate.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    row: Row,
    score: f32,
    why: Why,
}

#[derive(Debug, Clone, Copy)]
enum Why {
    Pinned,
    /// The sources that placed it best; see [`super::Candidate::best_sources`].
    Sources([Option<u8>; 2]),
}

impl Slate {
    /// The items of the first `count` places, best first.
    pub fn keys(&self, generation: &Generation, count: usize) -> Vec<ItemKey> {
        let catalog = generation.catalog.load();
        self.places.iter().take(count).map(|place| catalog.get(place.row).key).collect()
    }

    /// The results of a range of places. Rows outlive their items, so a later page shows what the first one froze.
    pub fn results(&self, generation: &Generation, range: Range<usize>) -> Vec<RankedItem> {
        let catalog = generation.catalog.load();
        range
            .map(|at| {
                let place = &self.places[at];
                let item = &catalog.get(place.row).item;
                RankedItem {
                    id: item.id.clone(),
                    rank: at + 1,
                    score: f64::from(place.score),
                    reasons: self.reasons(place, generation, &catalog),
                    item: self.include_items.then(|| item.clone()),
                    debug: self.debug.get(at).cloned().flatten(),
                }
            })
            .collect()
    }

    fn reasons(&self, place: &Place, generation: &Generation, catalog: &Catalog) -> Vec<Reason> {
        let Why::Sources(sources) = place.why else {
            return vec![Reason { code: ReasonCode::Pinned, evidence: Vec::new() }];
        };
        if let Some(reason) = &self.reason {
            return vec![reason.clone()];
        }
        let evidence = |table: Option<&Neighbours>| retrieve::evidence_for(&self.recent, catalog, table, place.row);
        let reason = |source: u8| {
            let (code, evidence) = match source as usize {
                retrieve::WORDS => (ReasonCode::MatchesWords, Vec::new()),
                retrieve::QUERY_VECTOR => (ReasonCode::MatchesMeaning, Vec::new()),
                retrieve::NEXT => (ReasonCode::ChosenNext, evidence(Some(&generation.next))),
                retrieve::TOGETHER => (ReasonCode::BoughtTogether, evidence(Some(&generation.together))),
                retrieve::SIMILAR => (ReasonCode::Similar, Vec::new()),
                retrieve::POPULAR => (ReasonCode::Popular, Vec::new()),
                retrieve::HISTORY => (ReasonCode::BoughtBefore, vec![catalog.get(place.row).key]),
                _ => (ReasonCode::FitsHistory, evidence(None)),
            };
            let ids = |keys: Vec<ItemKey>| keys.into_iter().map(|key| generation.live.keys.id(key)).collect();
            Reason { code, evidence: ids(evidence) }
        };
        sources.into_iter().flatten().map(reason).collect()
    }
}
