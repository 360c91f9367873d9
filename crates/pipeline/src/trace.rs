//! What an answer was made from, on its way into the log of answers. Gathering it costs the answer next to nothing: it takes
//! over what would be dropped, and becomes a record on the log's own thread.
use crate::context::RankedCandidates;
use crate::{
    answers::{self, AnswerId, AnswerKind, AnswerRecord},
    bundle::Manifest,
    features::FEATURE_COUNT,
    policy::{Arranged, Exploration, PinSlot},
    serving::ChosenArm,
};
use crate::{
    request::{Degradation, OrderBy},
    source::{CandidateSource, ScoredRows},
};
use ahash::AHashMap;
use lodestone_catalog::Catalog;
use lodestone_core::{
    ids::{Row, UserId},
    units::UnixMillis,
};
use std::sync::Arc;

/// Everything that decided an answer.
pub struct Trace {
    pub id: AnswerId,
    pub at: UnixMillis,
    pub kind: AnswerKind,
    pub user: UserId,
    /// The request on the wire.
    pub message: Vec<u8>,
    pub arm: Option<ChosenArm>,
    /// The log position that the answer knew.
    pub session_version: u64,
    pub degradations: Vec<Degradation>,
    pub corrected_query: String,
    pub catalog: Arc<Catalog>,
    /// Rows below are the bundle's own, in its order.
    pub bundle_row_count: usize,
    pub ranked: RankedCandidates,
    pub rules: PolicyRules,
    pub arranged: Arranged,
}

/// What the policy was given, by candidate in retrieval's order; as in [`crate::policy::Given`].
#[derive(Default)]
pub struct PolicyRules {
    pub rankings: Vec<ConfiguredRanking>,
    pub tiers: Vec<u8>,
    pub boost_factors: Vec<f32>,
    pub boost_masks: Vec<u32>,
    pub field_ranks: Vec<u32>,
    pub pins: Vec<PinSlot>,
    /// Pinned rows that are no candidates; their numbers follow those of the candidates.
    pub pinned_rows: Vec<Row>,
    pub exploration: Option<Exploration>,
    pub seed: u64,
}

/// One ranking with the configuration that it comes from.
pub struct ConfiguredRanking {
    pub serving_config: String,
    /// By head; empty: retrieval's order.
    pub weights: Vec<f32>,
    pub diversity: f32,
    pub scores: Vec<f32>,
}

impl PolicyRules {
    /// Whether vectors decided.
    fn is_diverse(&self) -> bool {
        self.field_ranks.is_empty() && self.rankings.iter().any(|ranking| ranking.diversity > 0.0)
    }
}

/// Whether an order is by a field of the item.
pub fn is_by_field(order: OrderBy) -> bool {
    order != OrderBy::Score
}

impl Trace {
    /// The record, with what only the generation knows. `page_size`: slots that were shown.
    pub fn record(self, manifest: &Manifest, page_size: usize) -> AnswerRecord {
        let rows = self.rows();
        let item = |row: &Row| self.catalog.get(*row).item.id.as_str();
        let names: Vec<&str> = rows.iter().map(item).collect();
        let place = |place: &crate::policy::Placed| (names[place.candidate.index()], place.score, place.conditional);
        let slate_sum = answers::slate_sum(self.arranged.placed.iter().map(place));
        let (vector_rows, live_vectors, vector_dimensions) = self.vectors(&rows);
        let (experiment, arm) =
            self.arm.clone().map_or_else(Default::default, |chosen| (chosen.experiment, chosen.arm));
        let pinned_slots = self.arranged.placed.iter().enumerate().filter(|(_, place)| place.is_pinned);
        let organic = &self.arranged.organic;
        let record = AnswerRecord {
            id: self.id.to_vec(),
            at_ms: self.at.0,
            user: self.user.as_str().to_owned(),
            kind: self.kind.into(),
            request_digest: answers::digest(&self.message),
            corrected_query: self.corrected_query.clone(),
            experiment,
            arm,
            generation: manifest.name.clone(),
            models: models(manifest),
            feature_schema: manifest.feature_schema.clone(),
            session_version: self.session_version,
            degradations: self.degradations.iter().map(degradation).collect(),
            items: names.iter().map(|name| (*name).to_owned()).collect(),
            candidate_count: self.ranked.candidates.list.len() as u32,
            sources: self.sources(),
            features: answers::encode_columns(&self.ranked.features, FEATURE_COUNT),
            feature_count: FEATURE_COUNT as u32,
            heads: manifest.heads.iter().map(|head| head.name.clone()).collect(),
            rankings: self.rankings(),
            pins: self.rules.pins.iter().map(pin).collect(),
            exploration: self.rules.exploration.as_ref().map(Into::into),
            seed: self.rules.seed,
            explored: self.arranged.explored,
            slots: self.arranged.placed.iter().take(page_size).map(slot).collect(),
            slate_size: self.arranged.placed.len() as u32,
            slate_sum,
            vector_rows,
            live_vectors,
            vector_dimensions,
            organic_items: organic.iter().map(|place| place.candidate.0).collect(),
            organic_scores: organic.iter().map(|place| place.score).collect(),
            pinned_slots: pinned_slots.map(|(at, _)| at as u32 + 1).collect(),
            ..AnswerRecord::default()
        };
        AnswerRecord {
            request: self.message,
            head_values: self.ranked.heads,
            tiers: self.rules.tiers,
            boost_factors: self.rules.boost_factors,
            boost_masks: self.rules.boost_masks,
            field_ranks: self.rules.field_ranks,
            ..record
        }
    }

    /// Rows by the numbers that the policy has for them.
    fn rows(&self) -> Vec<Row> {
        let candidates = self.ranked.candidates.list.iter().map(|candidate| candidate.row);
        candidates.chain(self.rules.pinned_rows.iter().copied()).collect()
    }

    fn rankings(&self) -> Vec<answers::RankingRecord> {
        let order = |at: usize| self.arranged.orders.get(at).cloned().unwrap_or_default();
        let record = |(at, ranking): (usize, &ConfiguredRanking)| answers::RankingRecord {
            serving_config: ranking.serving_config.clone(),
            weights: ranking.weights.clone(),
            candidate_count: ranking.scores.len() as u32,
            diversity: ranking.diversity,
            order: order(at),
        };
        self.rules.rankings.iter().enumerate().map(record).collect()
    }

    /// What each source said of the candidates.
    fn sources(&self) -> Vec<answers::SourceRecord> {
        let list = self.ranked.candidates.list.iter().enumerate();
        let numbers: AHashMap<Row, u32> = list.map(|(at, candidate)| (candidate.row, at as u32)).collect();
        let source = |(source, found): &(CandidateSource, ScoredRows)| {
            let kept = found.iter().filter_map(|(row, score)| Some((*numbers.get(row)?, *score)));
            let (candidates, scores) = kept.unzip();
            let strategy = self.ranked.candidates.strategy_of(*source).map_or("", |strategy| strategy.name());
            answers::SourceRecord {
                name: source.name().to_owned(),
                found_count: found.len() as u32,
                strategy: strategy.to_owned(),
                candidates,
                scores,
            }
        };
        self.ranked.candidates.lists.iter().map(source).collect()
    }

    /// Where the vectors that decided are, and those that no bundle has.
    fn vectors(&self, rows: &[Row]) -> (Vec<u32>, Vec<u8>, u32) {
        if !self.rules.is_diverse() {
            return (Vec::new(), Vec::new(), 0);
        }
        let vector = |row: &Row| self.catalog.get(*row).vectors.query_space();
        let candidates = &rows[..self.ranked.candidates.list.len()];
        let (mut places, mut live) = (Vec::with_capacity(candidates.len()), Vec::new());
        for row in candidates {
            let is_of_bundle = row.index() < self.bundle_row_count;
            places.push(if is_of_bundle { row.0 + 1 } else { 0 });
            if !is_of_bundle {
                live.extend_from_slice(vector(row));
            }
        }
        let dimensions = candidates.first().map_or(0, |row| vector(row).len());
        (places, answers::encode_columns(&live, dimensions), dimensions as u32)
    }
}

/// The models that decide an order, by the sums of their files.
pub fn models(manifest: &Manifest) -> Vec<answers::ModelSum> {
    let onnx = manifest.files.iter().filter(|(name, _)| name.ends_with(".onnx"));
    onnx.map(|(name, sum)| answers::ModelSum { name: name.clone(), sha256: sum.sha256.clone() }).collect()
}

fn degradation(degradation: &Degradation) -> answers::DegradationRecord {
    answers::DegradationRecord { code: degradation.code.name().to_owned(), subject: degradation.subject.clone() }
}

fn pin(pin: &PinSlot) -> answers::PinRecord {
    answers::PinRecord { item: pin.candidate.map(|candidate| candidate.0), rank: pin.rank as u32 }
}

fn slot(place: &crate::policy::Placed) -> answers::SlotRecord {
    answers::SlotRecord {
        item: place.candidate.0,
        score: place.score,
        conditional: place.conditional,
        is_pinned: place.is_pinned,
        team: answers::team_number(place.team),
    }
}
