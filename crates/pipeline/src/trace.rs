//! Traces of answers for the answer log. A trace is cheap, because it takes ownership of data that the request would
//! drop. The thread of the answer log turns it into a record.
use crate::{
    answers::{self, AnswerId, AnswerKind, AnswerRecord},
    bundle::Manifest,
    context::RankedCandidates,
    policy::{Arranged, Blend, Exploration, ObjectiveFacts, ObjectiveMix, PinSlot, Placed},
    request::{AppliedRule, Degradation},
    serving::ExperimentArm,
    source::{CandidateSource, ScoredRows},
};
use ahash::AHashMap;
use lodestone_catalog::Catalog;
use lodestone_core::{
    ids::{Row, UserId},
    units::UnixMillis,
};
use std::sync::Arc;

/// Everything that determined an answer.
pub struct Trace {
    pub id: AnswerId,
    pub at: UnixMillis,
    pub kind: AnswerKind,
    pub user: UserId,
    /// The request's protobuf message.
    pub message: Vec<u8>,
    pub arm: Option<ExperimentArm>,
    /// The log position that the answer's state included.
    pub log_position: u64,
    pub degradations: Vec<Degradation>,
    pub corrected_query: String,
    pub applied_rules: Vec<AppliedRule>,
    pub catalog: Arc<Catalog>,
    pub ranked: RankedCandidates,
    pub rules: PolicyRules,
    pub arranged: Arranged,
    /// Of a Suggest.
    pub completions: Vec<String>,
}

/// The owned input of the policy, by candidate in the order of retrieval; see [`crate::policy::PolicyInput`].
#[derive(Default)]
pub struct PolicyRules {
    pub rankings: Vec<ConfiguredRanking>,
    pub tiers: Vec<u8>,
    pub boost_factors: Vec<f32>,
    pub boost_masks: Vec<u64>,
    pub field_ranks: Vec<u32>,
    pub repeats: Vec<bool>,
    pub pins: Vec<PinSlot>,
    /// Pinned rows that are not candidates; they have the indices after the candidates.
    pub pinned_rows: Vec<Row>,
    pub exploration: Option<Exploration>,
    /// Empty unless a ranking has objectives.
    pub objective_facts: ObjectiveFacts,
    pub seed: u64,
}

/// A ranking of one serving configuration.
pub struct ConfiguredRanking {
    pub serving_config: String,
    pub serving_config_etag: String,
    /// By head. Empty: the order of retrieval.
    pub weights: Vec<f32>,
    pub diversity: f32,
    pub repeat_fraction: Option<f32>,
    /// None: relevance alone makes the scores.
    pub objectives: Option<BlendedObjectives>,
    pub scores: Vec<f32>,
}

/// The objectives of a ranking and their effect.
pub struct BlendedObjectives {
    pub mix: ObjectiveMix,
    /// Slots whose NDCG is bounded.
    pub slots: usize,
    pub blend: Blend,
}

impl ConfiguredRanking {
    /// Returns whether the ranking model's heads make the scores.
    pub fn uses_model(&self) -> bool {
        !self.weights.is_empty()
    }
}

impl PolicyRules {
    /// Returns whether diversity, which depends on vectors, applied.
    fn is_diverse(&self) -> bool {
        self.field_ranks.is_empty() && self.rankings.iter().any(|ranking| ranking.diversity > 0.0)
    }
}

impl Trace {
    /// Builds the record. `reasons` has the reason codes of each shown slot.
    pub fn record(self, manifest: &Manifest, reasons: Vec<Vec<i32>>) -> AnswerRecord {
        let rows = self.rows();
        let item = |row: &Row| self.catalog.get(*row).item.id.as_str();
        let names: Vec<&str> = rows.iter().map(item).collect();
        let checked = |placed: &Placed| (names[placed.candidate.index()], placed.score, placed.conditional);
        let slate_checksum = answers::slate_checksum(self.arranged.placed.iter().map(checked));
        let (vector_rows, live_vectors, vector_dimensions) = self.vectors(&rows);
        let (experiment, arm) =
            self.arm.clone().map_or_else(Default::default, |chosen| (chosen.experiment, chosen.arm));
        let pinned_slots = self.arranged.placed.iter().enumerate().filter(|(_, placed)| placed.is_pinned);
        let organic = &self.arranged.organic;
        let record = AnswerRecord {
            id: self.id.to_vec(),
            at_ms: self.at.0,
            user: self.user.as_str().to_owned(),
            kind: self.kind.into(),
            request_digest: answers::digest(&self.message),
            corrected_query: self.corrected_query.clone(),
            applied_rules: self.applied_rules.iter().map(applied_rule).collect(),
            experiment,
            arm,
            generation: manifest.name.clone(),
            models: models(manifest),
            feature_schema: manifest.feature_schema.clone(),
            log_position: self.log_position,
            degradations: self.degradations.iter().map(degradation).collect(),
            items: names.iter().map(|name| (*name).to_owned()).collect(),
            candidate_count: self.ranked.candidates.list.len() as u32,
            sources: self.sources(),
            features: answers::encode_columns(&self.ranked.features, manifest.features.column_count()),
            feature_count: manifest.features.column_count() as u32,
            heads: manifest.heads.iter().map(|head| head.name.clone()).collect(),
            rankings: self.rankings(),
            pins: self.rules.pins.iter().map(pin).collect(),
            exploration: self.rules.exploration.as_ref().map(Into::into),
            seed: self.rules.seed,
            explored: self.arranged.explored,
            slots: self.arranged.placed.iter().zip(reasons).map(slot).collect(),
            slate_size: self.arranged.placed.len() as u32,
            slate_checksum,
            vector_rows,
            live_vectors,
            vector_dimensions,
            organic_items: organic.iter().map(|slot| slot.candidate.0).collect(),
            organic_scores: organic.iter().map(|slot| slot.score).collect(),
            pinned_slots: pinned_slots.map(|(at, _)| at as u32 + 1).collect(),
            ..AnswerRecord::default()
        };
        AnswerRecord {
            request: self.message,
            completions: self.completions,
            head_values: self.ranked.heads,
            tiers: self.rules.tiers,
            boost_factors: self.rules.boost_factors,
            boost_masks: self.rules.boost_masks,
            field_ranks: self.rules.field_ranks,
            repeats: self.rules.repeats,
            prices: self.rules.objective_facts.prices,
            margins: self.rules.objective_facts.margins,
            return_risk: self.rules.objective_facts.return_risk,
            ..record
        }
    }

    /// Returns rows by candidate index.
    fn rows(&self) -> Vec<Row> {
        let candidates = self.ranked.candidates.list.iter().map(|candidate| candidate.row);
        candidates.chain(self.rules.pinned_rows.iter().copied()).collect()
    }

    fn rankings(&self) -> Vec<answers::RankingRecord> {
        let order = |at: usize| self.arranged.orders.get(at).cloned().unwrap_or_default();
        let record = |(at, ranking): (usize, &ConfiguredRanking)| answers::RankingRecord {
            serving_config: ranking.serving_config.clone(),
            serving_config_etag: ranking.serving_config_etag.clone(),
            weights: ranking.weights.clone(),
            candidate_count: ranking.scores.len() as u32,
            diversity: ranking.diversity,
            repeat_fraction: ranking.repeat_fraction,
            order: order(at),
            objectives: ranking.objectives.as_ref().map(|of| answers::ObjectivesRecord {
                weights: (of.mix.weights.iter())
                    .map(|(objective, weight)| answers::ObjectiveRecord {
                        objective: (*objective).into(),
                        weight: *weight,
                    })
                    .collect(),
                ndcg_loss_max: of.mix.ndcg_loss_max,
                slots: of.slots as u32,
                share: of.blend.share,
                ndcg_loss: of.blend.ndcg_loss,
            }),
        };
        self.rules.rankings.iter().enumerate().map(record).collect()
    }

    /// Returns the candidates and scores of each source.
    fn sources(&self) -> Vec<answers::SourceRecord> {
        let list = self.ranked.candidates.list.iter().enumerate();
        let numbers: AHashMap<Row, u32> = list.map(|(at, candidate)| (candidate.row, at as u32)).collect();
        let source = |(source, results): &(CandidateSource, ScoredRows)| {
            let kept = results.iter().filter_map(|(row, score)| Some((*numbers.get(row)?, *score)));
            let (candidates, scores) = kept.unzip();
            let strategy = self.ranked.candidates.strategy_of(*source).map_or("", |strategy| strategy.name());
            answers::SourceRecord {
                name: source.name().to_owned(),
                found_count: results.len() as u32,
                strategy: strategy.to_owned(),
                candidates,
                scores,
            }
        };
        self.ranked.candidates.lists.iter().map(source).collect()
    }

    /// Returns the bundle rows of the candidates' vectors, the vectors that are not in the bundle, and the dimensions.
    /// Empty without diversity.
    fn vectors(&self, rows: &[Row]) -> (Vec<u32>, Vec<u8>, u32) {
        if !self.rules.is_diverse() {
            return (Vec::new(), Vec::new(), 0);
        }
        let vector = |row: &Row| self.catalog.get(*row).vectors.query_space();
        let candidates = &rows[..self.ranked.candidates.list.len()];
        let (mut bundle_rows, mut live) = (Vec::with_capacity(candidates.len()), Vec::new());
        for row in candidates {
            let is_of_bundle = self.catalog.get(*row).vectors.is_of_bundle();
            bundle_rows.push(if is_of_bundle { row.0 + 1 } else { 0 });
            if !is_of_bundle {
                live.extend_from_slice(vector(row));
            }
        }
        let dimensions = candidates.first().map_or(0, |row| vector(row).len());
        (bundle_rows, answers::encode_columns(&live, dimensions), dimensions as u32)
    }
}

/// Returns the names and checksums of the model files.
pub fn models(manifest: &Manifest) -> Vec<answers::ModelSum> {
    let onnx = manifest.files.iter().filter(|(name, _)| name.ends_with(".onnx"));
    onnx.map(|(name, sum)| answers::ModelSum { name: name.clone(), sha256: sum.sha256.clone() }).collect()
}

fn degradation(degradation: &Degradation) -> answers::DegradationRecord {
    answers::DegradationRecord { code: degradation.code.name().to_owned(), subject: degradation.subject.clone() }
}

fn applied_rule(applied: &AppliedRule) -> answers::AppliedRuleRecord {
    answers::AppliedRuleRecord {
        rule_id: applied.rule.id().to_owned(),
        etag: applied.rule.rule.etag.clone(),
        unused_actions: applied.unused_actions.clone(),
    }
}

fn pin(pin: &PinSlot) -> answers::PinRecord {
    answers::PinRecord { item: pin.candidate.map(|candidate| candidate.0), rank: pin.rank as u32 }
}

fn slot((placed, reasons): (&Placed, Vec<i32>)) -> answers::SlotRecord {
    answers::SlotRecord {
        item: placed.candidate.0,
        score: placed.score,
        conditional: placed.conditional,
        is_pinned: placed.is_pinned,
        team: answers::team_number(placed.team),
        reasons,
    }
}
