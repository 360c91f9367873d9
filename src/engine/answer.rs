//! From candidates to a slate: features, ranking model, policy, reasons.
use super::{
    models::Models,
    request::*,
    retrieve::{self, Candidates, SOURCES},
    world::World,
};
use crate::{
    catalog::Catalog,
    features::{self, FEATURE_COUNT, FEATURES, Moment, PersonContext},
    ids::{ItemKey, Row},
    people::History,
    policy,
    units::UnixMillis,
};
use std::{
    cmp::Ordering,
    sync::Arc,
    time::{Duration, Instant},
};

/// One request's view of the world, and what it has to tell about itself.
pub struct Story<'a> {
    pub world: &'a World,
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
    /// Takes one snapshot of the catalogue and of the person, with the request's context events.
    pub fn begin(world: &'a World, viewer: &Viewer, options: &Options, now: UnixMillis) -> Self {
        let mark = Instant::now();
        let known = world.people.history(&viewer.person);
        let person_known = known.is_some();
        let mut history = known.unwrap_or_default();
        if !options.context_events.is_empty() {
            history = history.with_context(&options.context_events, &world.keys);
        }
        let catalog = world.catalog.load_full();
        let mut story = Self {
            person: PersonContext::new(&history, &catalog, &world.next),
            world,
            catalog,
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

    /// Ends a stage and names it.
    pub fn stage(&mut self, name: &'static str) {
        let now = Instant::now();
        self.stages.push((name, now - self.mark));
        self.mark = now;
    }

    pub fn degrade(&mut self, code: DegradationCode, subject: &str) {
        self.degradations.push(Degradation { code, subject: subject.to_owned() });
    }

    /// Makes the person's vector. A failure costs the sources that need it and is declared.
    pub fn encode_person(&mut self, models: &mut Models) {
        match models.encode_person(&self.history, &self.catalog, self.now) {
            Ok(vector) => self.person.vector = vector,
            Err(error) => {
                tracing::warn!(%error, "the person encoder failed");
                self.degrade(DegradationCode::EncoderSkipped, "person_encoder");
            }
        }
        self.stage("encode");
    }

    /// Makes the query's vector.
    pub fn encode_query(&mut self, models: &mut Models, query: &str) -> Option<Vec<f32>> {
        let vector = models.encode_query(query).unwrap_or_else(|error| {
            tracing::warn!(%error, "the query encoder failed");
            self.degrade(DegradationCode::EncoderSkipped, "query_encoder");
            None
        });
        self.stage("encode_query");
        vector
    }

    /// Features `[n × FEATURE_COUNT]` of the candidates.
    pub fn features(&mut self, candidates: &Candidates, query_vector: Option<&[f32]>) -> Vec<f32> {
        let popularity = self.world.popularity.read();
        let moment = Moment {
            catalog: &self.catalog,
            popularity: &popularity,
            now: self.now,
            query_vector,
            words_best: candidates.words_best,
        };
        let mut out = Vec::with_capacity(candidates.rows.len() * FEATURE_COUNT);
        for (row, evidence) in candidates.rows.iter().zip(&candidates.evidence) {
            features::append(&mut out, &moment, &self.person, *row, *evidence);
        }
        drop(popularity);
        self.stage("features");
        out
    }

    /// Stage two. Where the model fails, the order of retrieval stays and is declared.
    pub fn rank(&mut self, models: &mut Models, candidates: Candidates, query_vector: Option<&[f32]>) -> Ranked {
        let features = self.features(&candidates, query_vector);
        let (heads, scores) = match score(models, &features, candidates.rows.len()) {
            Ok(scored) => scored,
            Err(error) => {
                tracing::warn!(%error, "the ranking model failed");
                self.degrade(DegradationCode::RankerSkipped, "ranker");
                (Vec::new(), candidates.evidence.iter().map(|evidence| evidence.fused).collect())
            }
        };
        self.stage("rank");
        Ranked { candidates, features, heads, scores }
    }
}

/// Probabilities of the heads, and the utility: the weighted sum over heads. Without a ranker: the fused scores.
fn score(
    models: &mut Models,
    features: &[f32],
    row_count: usize,
) -> Result<(Vec<f32>, Vec<f32>), crate::ranking::RankingError> {
    let Some(ranker) = models.ranker.as_mut() else {
        return Ok((Vec::new(), features.chunks_exact(FEATURE_COUNT).map(|row| row[FUSED_FEATURE]).collect()));
    };
    if row_count == 0 {
        return Ok((Vec::new(), Vec::new()));
    }
    let mut heads = ranker.score(features, row_count)?;
    let mut scores = Vec::with_capacity(row_count);
    for row in heads.chunks_exact_mut(models.heads.len()) {
        let mut utility = 0.0;
        for (logit, head) in row.iter_mut().zip(&models.heads) {
            *logit = 1.0 / (1.0 + (-(head.scale * *logit + head.offset)).exp());
            utility += head.weight * *logit;
        }
        scores.push(utility);
    }
    Ok((heads, scores))
}

/// How far down diversity looks for a row that is less alike.
const DIVERSITY_LOOK_AHEAD: usize = 50;

/// The place of `retrieval_score` among the features.
const FUSED_FEATURE: usize = 24;

impl Story<'_> {
    /// Policy: boosts, order, diversity, pins. Gives the whole slate.
    pub fn slate(
        &mut self,
        ranked: Ranked,
        options: &Options,
        models: &Models,
        pins_ok: &dyn Fn(Row) -> bool,
    ) -> Slate {
        let mut scored: Vec<(Row, f32)> =
            ranked.candidates.rows.iter().copied().zip(ranked.scores.iter().copied()).collect();
        if !options.boosts.is_empty() {
            policy::apply_boosts(&mut scored, &options.boosts, |row| &self.catalog.get(row).item);
        }
        scored.sort_by(|a, b| self.compare(options.order_by, *a, *b));
        let diversity = options.diversity.unwrap_or(0.0);
        if diversity > 0.0 && options.order_by == OrderBy::Score {
            let vector = |row: Row| &self.catalog.get(row).vectors.query_space[..];
            scored = policy::diversify(&scored, diversity, DIVERSITY_LOOK_AHEAD, vector);
        }
        let (rows, dropped_pins) = self.pin(scored, options, pins_ok);
        let index: ahash::AHashMap<Row, usize> =
            ranked.candidates.rows.iter().enumerate().map(|(index, row)| (*row, index)).collect();
        let places = Places::of(&ranked.candidates);
        let results = rows
            .into_iter()
            .enumerate()
            .map(|(place, (row, score))| {
                let at = index.get(&row).copied();
                RankedItem {
                    id: self.catalog.get(row).item.id.clone(),
                    rank: place + 1,
                    score: f64::from(score),
                    reasons: self.reasons(row, at, &places),
                    item: options.include_items.then(|| self.catalog.get(row).item.clone()),
                    debug: at
                        .filter(|_| options.debug >= DebugLevel::Scores)
                        .map(|at| self.result_debug(at, &ranked, &places, models, options.debug)),
                }
            })
            .collect();
        self.stage("policy");
        let sources = ranked.candidates.lists.iter().map(|(source, list)| (SOURCES[*source], list.len())).collect();
        Slate { results, dropped_pins, sources }
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
    ) -> (Vec<(Row, f32)>, Vec<crate::ids::ItemId>) {
        if options.pins.is_empty() {
            return (scored, Vec::new());
        }
        let pins: Vec<policy::PinSlot> = options
            .pins
            .iter()
            .map(|pin| policy::PinSlot {
                row: self.catalog.row_of(&self.world.keys, &pin.item).filter(|row| ok(*row)),
                rank: pin.rank,
            })
            .collect();
        let rows: Vec<Row> = scored.iter().map(|(row, _)| *row).collect();
        let placed = policy::place_pins(&rows, &pins);
        let scores: ahash::AHashMap<Row, f32> = scored.into_iter().collect();
        let order = placed.order.iter().map(|(row, _)| (*row, scores.get(row).copied().unwrap_or(0.0))).collect();
        (order, placed.dropped.iter().map(|index| options.pins[*index].item.clone()).collect())
    }

    fn reasons(&self, row: Row, at: Option<usize>, places: &Places) -> Vec<Reason> {
        if at.is_none() {
            return vec![Reason { code: ReasonCode::Pinned, evidence: Vec::new() }];
        }
        let ids = |keys: Vec<ItemKey>| keys.into_iter().map(|key| self.world.keys.id(key)).collect();
        let recent = &self.person.recent;
        let mut reasons: Vec<(usize, Reason)> = Vec::new();
        for (source, place) in places.of_row(row) {
            let (code, evidence) = match source {
                retrieve::WORDS => (ReasonCode::MatchesWords, Vec::new()),
                retrieve::QUERY_VECTOR => (ReasonCode::MatchesMeaning, Vec::new()),
                retrieve::NEXT => {
                    (ReasonCode::ChosenNext, retrieve::evidence_for(recent, &self.catalog, Some(&self.world.next), row))
                }
                retrieve::TOGETHER => (
                    ReasonCode::BoughtTogether,
                    retrieve::evidence_for(recent, &self.catalog, Some(&self.world.together), row),
                ),
                retrieve::SIMILAR => (ReasonCode::Similar, Vec::new()),
                retrieve::POPULAR => (ReasonCode::Popular, Vec::new()),
                retrieve::HISTORY => (ReasonCode::BoughtBefore, vec![self.catalog.get(row).key]),
                _ => (ReasonCode::FitsHistory, retrieve::evidence_for(recent, &self.catalog, None, row)),
            };
            reasons.push((place, Reason { code, evidence: ids(evidence) }));
        }
        reasons.sort_by_key(|(place, reason)| (*place, reason.code as i32));
        reasons.truncate(2);
        reasons.into_iter().map(|(_, reason)| reason).collect()
    }

    fn result_debug(
        &self,
        at: usize,
        ranked: &Ranked,
        places: &Places,
        models: &Models,
        level: DebugLevel,
    ) -> ResultDebug {
        let row = ranked.candidates.rows[at];
        let heads = models.heads.len();
        ResultDebug {
            source_scores: ranked
                .candidates
                .lists
                .iter()
                .zip(&places.by_list)
                .filter_map(|((source, list), by_row)| Some((SOURCES[*source], f64::from(list[*by_row.get(&row)?].1))))
                .collect(),
            retrieval_score: f64::from(ranked.candidates.evidence[at].fused),
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

    /// The tail of an answer, without what only the engine knows (tokens, position, generation).
    pub fn tail(&self, sources: Vec<(&'static str, usize)>, level: DebugLevel) -> AnswerTail {
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

/// An ordered answer, whole.
#[derive(Default)]
pub struct Slate {
    pub results: Vec<RankedItem>,
    pub dropped_pins: Vec<crate::ids::ItemId>,
    pub sources: Vec<(&'static str, usize)>,
}

/// The place of each row in each source's list.
struct Places {
    sources: Vec<usize>,
    by_list: Vec<ahash::AHashMap<Row, usize>>,
}

impl Places {
    fn of(candidates: &Candidates) -> Self {
        Self {
            sources: candidates.lists.iter().map(|(source, _)| *source).collect(),
            by_list: candidates
                .lists
                .iter()
                .map(|(_, list)| list.iter().enumerate().map(|(place, (row, _))| (*row, place)).collect())
                .collect(),
        }
    }

    /// The sources that found a row, each once, with its best place.
    fn of_row(&self, row: Row) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = Vec::new();
        for (source, by_row) in self.sources.iter().zip(&self.by_list) {
            let Some(&place) = by_row.get(&row) else { continue };
            match found.iter_mut().find(|(known, _)| known == source) {
                Some((_, best)) => *best = (*best).min(place),
                None => found.push((*source, place)),
            }
        }
        found
    }
}
