//! From candidates to a slate: features, ranking model, policy, reasons.
use super::{
    fusion::{Candidates, NO_PLACE},
    generation::Generation,
    models::Models,
    request::*,
    retrieve::{self, SOURCES},
};
use crate::{
    catalog::Catalog,
    features::{self, FEATURE_COUNT, FEATURES, Moment, PersonContext, Recent},
    ids::{ItemId, ItemKey, Row},
    people::History,
    policy,
    retrieval::Neighbours,
    units::UnixMillis,
};
use ahash::AHashMap;
use std::{
    cmp::Ordering,
    sync::Arc,
    time::{Duration, Instant},
};

/// One request's view of a generation, and what it has to tell about itself.
pub struct Story<'a> {
    pub generation: &'a Generation,
    pub catalog: Arc<Catalog>,
    pub history: History,
    pub person: PersonContext,
    pub person_known: bool,
    pub now: UnixMillis,
    pub degradations: Vec<Degradation>,
    pub stages: Vec<(&'static str, Duration)>,
    mark: Instant,
}

/// Candidates with what stage two made of them; all parallel, in the order of retrieval.
pub struct Ranked {
    pub candidates: Candidates,
    /// `[candidates × FEATURE_COUNT]`.
    pub features: Vec<f32>,
    /// `[candidates × heads]`, probabilities. Empty where the ranker was skipped.
    pub heads: Vec<f32>,
    pub scores: Vec<f32>,
}

impl<'a> Story<'a> {
    /// Takes one snapshot of the person, with the request's context events.
    pub fn begin(
        generation: &'a Generation,
        catalog: &Arc<Catalog>,
        viewer: &Viewer,
        options: &Options,
        now: UnixMillis,
    ) -> Self {
        let mark = Instant::now();
        let known = generation.live.people.history(&viewer.person);
        let person_known = known.is_some();
        let mut history = known.unwrap_or_default();
        if !options.context_events.is_empty() {
            history = history.with_context(&options.context_events, &generation.live.keys);
        }
        let mut story = Self {
            person: PersonContext::new(&history, catalog, &generation.next),
            generation,
            catalog: catalog.clone(),
            history,
            person_known,
            now,
            degradations: Vec::new(),
            stages: Vec::with_capacity(8),
            mark,
        };
        story.stage("state");
        story
    }

    /// Begins a stage after other stories had the thread.
    pub fn resume(&mut self) {
        self.mark = Instant::now();
    }

    /// Ends a stage that was one run for several stories; each bears its share.
    fn shared_stage(stories: &mut [Self], name: &'static str, begun: Instant) {
        let share = begun.elapsed() / stories.len().max(1) as u32;
        for story in stories {
            story.stages.push((name, share));
            story.resume();
        }
    }

    /// Ends a stage and names it.
    pub fn stage(&mut self, name: &'static str) {
        let now = Instant::now();
        self.stages.push((name, now - self.mark));
        self.mark = now;
    }

    /// Ends the stage of retrieval; the search for near vectors, which is a part of it, is told apart.
    pub fn retrieved(&mut self, near_time: Duration) {
        self.stage("retrieve");
        if let Some((_, whole)) = self.stages.last_mut() {
            *whole = whole.saturating_sub(near_time);
        }
        self.stages.push(("near", near_time));
    }

    pub fn degrade(&mut self, code: DegradationCode, subject: &str) {
        self.degradations.push(Degradation { code, subject: subject.to_owned() });
    }

    /// Makes the people's vectors; the stories are of one catalogue and one moment. A failure costs the sources that need them and is declared.
    pub fn encode_people(stories: &mut [Self], models: &mut Models) {
        let begun = Instant::now();
        let Some(first) = stories.first() else { return };
        let histories: Vec<&History> = stories.iter().map(|story| &story.history).collect();
        match models.encode_people(&histories, &first.catalog, first.now) {
            Ok(vectors) => {
                for (story, vector) in stories.iter_mut().zip(vectors) {
                    story.person.vector = vector;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the person encoder failed");
                for story in stories.iter_mut() {
                    story.degrade(DegradationCode::EncoderSkipped, "person_encoder");
                }
            }
        }
        Self::shared_stage(stories, "encode", begun);
    }

    /// Makes the vectors of those stories that have a query.
    pub fn encode_queries(
        stories: &mut [Self],
        models: &mut Models,
        queries: &[Option<&str>],
    ) -> Vec<Option<Vec<f32>>> {
        if queries.iter().all(Option::is_none) {
            return vec![None; stories.len()];
        }
        let begun = Instant::now();
        let vectors = models.encode_queries(queries).unwrap_or_else(|error| {
            tracing::warn!(%error, "the query encoder failed");
            for story in stories.iter_mut() {
                story.degrade(DegradationCode::EncoderSkipped, "query_encoder");
            }
            vec![None; stories.len()]
        });
        Self::shared_stage(stories, "encode_query", begun);
        vectors
    }

    /// Features `[n × FEATURE_COUNT]` of the candidates.
    pub fn features(&mut self, candidates: &Candidates, query_vector: Option<&[f32]>) -> Vec<f32> {
        let popularity = self.generation.live.popularity.read();
        let moment = Moment {
            catalog: &self.catalog,
            popularity: &popularity,
            now: self.now,
            query_vector,
            words_best: candidates.words_best,
        };
        let mut out = Vec::with_capacity(candidates.list.len() * FEATURE_COUNT);
        for candidate in &candidates.list {
            features::append(&mut out, &moment, &self.person, candidate.row, candidate.evidence);
        }
        drop(popularity);
        self.stage("features");
        out
    }

    /// Stage two. Where the model fails, the order of retrieval stays and is declared.
    pub fn rank(
        stories: &mut [Self],
        models: &mut Models,
        candidates: Vec<Candidates>,
        query_vectors: &[Option<Vec<f32>>],
    ) -> Vec<Ranked> {
        let mut features = Vec::with_capacity(stories.len());
        for (story, (candidates, query)) in stories.iter_mut().zip(candidates.iter().zip(query_vectors)) {
            story.resume();
            features.push(story.features(candidates, query.as_deref()));
        }
        let begun = Instant::now();
        let heads = match &features[..] {
            [alone] => score(models, alone),
            several => score(models, &several.concat()),
        };
        let heads = heads.unwrap_or_else(|error| {
            tracing::warn!(%error, "the ranking model failed");
            for story in stories.iter_mut() {
                story.degrade(DegradationCode::RankerSkipped, "ranker");
            }
            Vec::new()
        });
        let mut rest = &heads[..];
        let ranked = candidates.into_iter().zip(features).map(|(candidates, features)| {
            let own =
                rest.split_off(..(candidates.list.len() * models.heads.len()).min(rest.len())).unwrap_or_default();
            let scores = match own.is_empty() {
                true => candidates.list.iter().map(|candidate| candidate.evidence.fused).collect(),
                false => own.chunks_exact(models.heads.len()).map(|heads| utility(models, heads)).collect(),
            };
            Ranked { candidates, features, heads: own.to_vec(), scores }
        });
        let ranked = ranked.collect();
        Self::shared_stage(stories, "rank", begun);
        ranked
    }
}

impl Models {
    /// What orders candidates, from their features `[rows × FEATURE_COUNT]`. Empty without a ranker.
    pub fn scores(&mut self, features: &[f32]) -> Result<Vec<f32>, crate::ranking::RankingError> {
        let heads = score(self, features)?;
        Ok(heads.chunks_exact(self.heads.len().max(1)).map(|heads| utility(self, heads)).collect())
    }
}

/// Probabilities `[rows × heads]`; none without a ranker or without rows.
fn score(models: &mut Models, features: &[f32]) -> Result<Vec<f32>, crate::ranking::RankingError> {
    let row_count = features.len() / FEATURE_COUNT;
    let Some(ranker) = models.ranker.as_mut().filter(|_| row_count > 0) else {
        return Ok(Vec::new());
    };
    let mut heads = ranker.score(features, row_count)?;
    for row in heads.chunks_exact_mut(models.heads.len()) {
        for (logit, head) in row.iter_mut().zip(&models.heads) {
            *logit = 1.0 / (1.0 + (-(head.scale * *logit + head.offset)).exp());
        }
    }
    Ok(heads)
}

/// The weighted sum over heads.
fn utility(models: &Models, probabilities: &[f32]) -> f32 {
    models.heads.iter().zip(probabilities).map(|(head, probability)| head.weight * probability).sum()
}

/// How far down diversity looks for a row that is less alike.
const DIVERSITY_LOOK_AHEAD: usize = 50;

impl Story<'_> {
    /// Policy: boosts, order, diversity, pins. Gives the whole slate.
    pub fn slate(
        &mut self,
        ranked: Ranked,
        options: &Options,
        models: &Models,
        pins_ok: &dyn Fn(Row) -> bool,
    ) -> Slate {
        let candidates = &ranked.candidates.list;
        let mut scored: Vec<(Row, f32)> =
            candidates.iter().zip(&ranked.scores).map(|(candidate, score)| (candidate.row, *score)).collect();
        policy::apply_boosts(&mut scored, &options.boosts, |row| &self.catalog.get(row).item);
        scored.sort_unstable_by(|a, b| self.compare(options.order_by, *a, *b));
        let diversity = options.diversity.unwrap_or(0.0);
        if diversity > 0.0 && options.order_by == OrderBy::Score {
            let vector = |row: Row| self.catalog.get(row).vectors.query_space();
            scored = policy::diversify(&scored, diversity, DIVERSITY_LOOK_AHEAD, vector);
        }
        let (rows, dropped_pins) = self.pin(scored, options, pins_ok);
        let mut by_row: Vec<(Row, u32)> =
            candidates.iter().enumerate().map(|(at, candidate)| (candidate.row, at as u32)).collect();
        by_row.sort_unstable();
        let index = |row: Row| {
            let found = by_row.binary_search_by_key(&row, |(row, _)| *row).ok()?;
            Some(by_row[found].1 as usize)
        };
        let places = rows
            .iter()
            .map(|&(row, score)| {
                let why = index(row).map_or(Why::Pinned, |at| Why::Sources(candidates[at].best_sources()));
                Place { row, score, why }
            })
            .collect();
        let debug = match options.debug >= DebugLevel::Scores {
            true => rows
                .iter()
                .map(|(row, _)| index(*row).map(|at| result_debug(at, &ranked, models, options.debug)))
                .collect(),
            false => Vec::new(),
        };
        self.stage("policy");
        let way = |source: usize| {
            let has_ways = [retrieve::PERSON_VECTOR, retrieve::QUERY_VECTOR, retrieve::SIMILAR].contains(&source);
            ranked.candidates.way.filter(|_| has_ways)
        };
        let lists = ranked.candidates.lists.iter();
        let sources = lists
            .map(|(source, list)| SourceCount { source: SOURCES[*source], count: list.len(), way: way(*source) })
            .collect();
        Slate {
            places,
            debug,
            recent: self.person.recent.clone(),
            reason: None,
            include_items: options.include_items,
            dropped_pins,
            sources,
        }
    }

    fn compare(&self, order: OrderBy, a: (Row, f32), b: (Row, f32)) -> Ordering {
        let item = |row: Row| &self.catalog.get(row).item;
        let price = |row: Row| item(row).price.map(|price| price.micros());
        let by_field = match order {
            OrderBy::Score => Ordering::Equal,
            // Items without a price come last in both directions.
            OrderBy::Price => price(a.0).unwrap_or(i64::MAX).cmp(&price(b.0).unwrap_or(i64::MAX)),
            OrderBy::PriceDescending => price(b.0).cmp(&price(a.0)),
            OrderBy::CreateTimeDescending => item(b.0).created_at.cmp(&item(a.0).created_at),
            OrderBy::Title => item(a.0).title.cmp(&item(b.0).title),
        };
        by_field.then(b.1.total_cmp(&a.1)).then(a.0.cmp(&b.0))
    }

    fn pin(
        &self,
        scored: Vec<(Row, f32)>,
        options: &Options,
        ok: &dyn Fn(Row) -> bool,
    ) -> (Vec<(Row, f32)>, Vec<ItemId>) {
        if options.pins.is_empty() {
            return (scored, Vec::new());
        }
        let pins: Vec<policy::PinSlot> = options
            .pins
            .iter()
            .map(|pin| policy::PinSlot {
                row: self.catalog.row_of(&self.generation.live.keys, &pin.item).filter(|row| ok(*row)),
                rank: pin.rank,
            })
            .collect();
        let rows: Vec<Row> = scored.iter().map(|(row, _)| *row).collect();
        let placed = policy::place_pins(&rows, &pins);
        let scores: AHashMap<Row, f32> = scored.into_iter().collect();
        let order = placed.order.iter().map(|(row, _)| (*row, scores.get(row).copied().unwrap_or(0.0))).collect();
        (order, placed.dropped.iter().map(|index| options.pins[*index].item.clone()).collect())
    }

    /// The tail of an answer, without what only the engine knows (tokens, position, generation).
    pub fn tail(&self, sources: Vec<SourceCount>, level: DebugLevel) -> AnswerTail {
        AnswerTail {
            degradations: self.degradations.clone(),
            person_known: self.person_known,
            debug: (level >= DebugLevel::Timings).then(|| AnswerDebug {
                stages: self.stages.clone(),
                sources,
                feature_names: if level >= DebugLevel::Features { FEATURES } else { &[] },
            }),
            ..AnswerTail::default()
        }
    }
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
    /// The person's recent items, which reasons name as evidence.
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
    /// The results of a range of places. Rows outlive their items, so a later page shows what the first one froze.
    pub fn results(&self, generation: &Generation, range: std::ops::Range<usize>) -> Vec<RankedItem> {
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
