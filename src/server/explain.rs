//! ExplainService: replays logged answers.
use super::{
    convert,
    guard::guarded,
    proto::{self, explain_service_server::ExplainService},
    services::Services,
    status,
};
use lodestone_core::units::UnixMillis;
use lodestone_engine::{Replay, ReplayedSlot};
use lodestone_pipeline::{
    DegradationCode,
    answers::{AnswerKind, AnswerRecord, AppliedRuleRecord, RankingRecord},
    policy::{Team, joint},
};
use lodestone_rules::Objective;
use prost::Message;
pub(crate) use proto::replay_answer_response::Request as LoggedRequest;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl ExplainService for Services {
    async fn replay_answer(
        &self,
        request: Request<proto::ReplayAnswerRequest>,
    ) -> Result<Response<proto::ReplayAnswerResponse>, Status> {
        let audited =
            self.audited(&request, "ExplainService/ReplayAnswer", self.answer_id(&request.get_ref().attribution_token));
        let response = async {
            let deadline = self.call_context(&request, None).deadline;
            let token = &request.get_ref().attribution_token;
            let replay = self.engine.replay(token, deadline).await.map_err(status::of)?;
            Ok(Response::new(to_response(replay)))
        };
        guarded(&self.metrics, "ReplayAnswer", audited.run(response)).await
    }
}

impl Services {
    /// Returns the id of a token's answer for the audit log. The token itself is valid for whoever has it.
    fn answer_id(&self, token: &str) -> String {
        let id = self.engine.attributed_answer(token).map(|id| uuid::Uuid::from_bytes(id).to_string());
        id.unwrap_or_else(|| "a token of another server".to_owned())
    }
}

fn to_response(replay: Replay) -> proto::ReplayAnswerResponse {
    let Replay { record, slots, difference } = replay;
    let source = |source: &lodestone_pipeline::answers::SourceRecord| proto::SourceCount {
        source: source.name.clone(),
        candidate_count: source.found_count as i32,
        strategy: source.strategy.clone(),
    };
    let degradation = |degradation: &lodestone_pipeline::answers::DegradationRecord| proto::Degradation {
        code: DegradationCode::ALL.iter().find(|code| code.name() == degradation.code).map_or(0, |code| *code as i32),
        subject: degradation.subject.clone(),
    };
    let model = |model: &lodestone_pipeline::answers::ModelSum| proto::ModelSum {
        name: model.name.clone(),
        sha256: model.sha256.clone(),
    };
    let conditionals: Vec<f64> = record.slots.iter().map(|slot| slot.conditional).collect();
    proto::ReplayAnswerResponse {
        identical: difference.is_none(),
        first_difference: difference.unwrap_or_default(),
        slots: slots.into_iter().enumerate().map(|(index, replayed)| slot(&record, index, replayed)).collect(),
        answer_id: uuid::Uuid::from_slice(&record.id).map(|id| id.to_string()).unwrap_or_default(),
        answer_time: Some(convert::timestamp(UnixMillis(record.at_ms))),
        request: logged_request(&record),
        corrected_query: record.corrected_query.clone(),
        serving_configs: record.rankings.iter().map(|ranking| ranking.serving_config.clone()).collect(),
        serving_config_etags: record.rankings.iter().map(|ranking| ranking.serving_config_etag.clone()).collect(),
        experiment_arm: (!record.experiment.is_empty())
            .then(|| proto::ExperimentArm { experiment: record.experiment.clone(), arm: record.arm.clone() }),
        generation: record.generation.clone(),
        models: record.models.iter().map(model).collect(),
        feature_schema: record.feature_schema.clone(),
        log_position: record.log_position,
        degradations: record.degradations.iter().map(degradation).collect(),
        sources: record.sources.iter().map(source).collect(),
        candidate_count: record.candidate_count as i32,
        total_size: record.slate_size as i32,
        explored: record.explored,
        seed: record.seed,
        page_probability: joint(&conditionals),
        completions: record.completions.clone(),
        objectives: applied_objectives(&record),
        applied_rules: record.applied_rules.iter().map(applied_rule).collect(),
    }
}

/// Returns the effect of objectives by ranking; empty without any.
fn applied_objectives(record: &AnswerRecord) -> Vec<proto::AppliedObjectives> {
    if record.rankings.iter().all(|ranking| ranking.objectives.is_none()) {
        return Vec::new();
    }
    let of = |ranking: &RankingRecord| {
        let objectives = ranking.objectives.clone().unwrap_or_default();
        let has_loyalty = objectives.weights.iter().any(|of| of.objective() == Objective::Loyalty);
        proto::AppliedObjectives {
            share: objectives.share.into(),
            ndcg_loss: objectives.ndcg_loss.into(),
            return_risk: record.return_risk.filter(|_| has_loyalty).map(f64::from),
        }
    };
    record.rankings.iter().map(of).collect()
}

fn applied_rule(applied: &AppliedRuleRecord) -> proto::AppliedRule {
    proto::AppliedRule {
        rule_id: applied.rule_id.clone(),
        etag: applied.etag.clone(),
        unused_actions: applied.unused_actions.iter().map(|index| *index as i32).collect(),
    }
}

/// Decodes the request message. Returns None if it cannot be decoded.
pub(crate) fn logged_request(record: &AnswerRecord) -> Option<LoggedRequest> {
    use LoggedRequest as Sent;
    let bytes = record.request.as_slice();
    match record.kind() {
        AnswerKind::Search => proto::SearchRequest::decode(bytes).ok().map(Sent::Search),
        AnswerKind::Recommend => proto::RecommendRequest::decode(bytes).ok().map(Sent::Recommend),
        AnswerKind::Rank => proto::RankRequest::decode(bytes).ok().map(Sent::Rank),
        AnswerKind::Suggest => proto::SuggestRequest::decode(bytes).ok().map(Sent::Suggest),
        AnswerKind::Unknown => None,
    }
}

fn slot(record: &AnswerRecord, index: usize, replayed: ReplayedSlot) -> proto::ReplayedSlot {
    let candidate = replayed.placed.candidate;
    let shown = record.slots.get(index).filter(|slot| slot.item != candidate.0);
    let shown = shown.and_then(|slot| record.items.get(slot.item as usize)).cloned();
    let named = |name: &str, score: f32| proto::NamedScore { name: name.to_owned(), score: f64::from(score) };
    let sources = record.sources.iter().filter_map(|source| {
        let position = source.candidates.iter().position(|number| *number == candidate.0)?;
        Some(named(&source.name, *source.scores.get(position)?))
    });
    let heads = record.heads.len();
    let values = record.head_values.chunks_exact(heads.max(1)).nth(candidate.index()).unwrap_or_default();
    let team = match replayed.placed.team {
        None => None,
        Some(Team::A) => record.rankings.first(),
        Some(Team::B) => record.rankings.get(1),
    };
    let weights = team.or(record.rankings.first()).map_or(&[][..], |ranking| &ranking.weights);
    let propensity = replayed.propensity;
    proto::ReplayedSlot {
        rank: index as i32 + 1,
        item_id: replayed.item,
        score: f64::from(replayed.placed.score),
        shown_item_id: shown.unwrap_or_default(),
        pinned: replayed.placed.is_pinned,
        conditional_probability: replayed.placed.conditional,
        probability: propensity.map_or(0.0, |propensity| propensity.marginal.probability),
        probability_standard_error: propensity.map_or(0.0, |propensity| propensity.marginal.standard_error),
        organic_rank: propensity.map_or(0, |propensity| propensity.organic_slot as i32),
        team_serving_config: team.map(|ranking| ranking.serving_config.clone()).unwrap_or_default(),
        source_scores: sources.collect(),
        heads: record.heads.iter().zip(values).map(|(name, value)| named(name, *value)).collect(),
        score_parts: record
            .score_parts(replayed.placed.candidate, replayed.placed.team)
            .as_ref()
            .map(convert::score_parts),
        head_weights: record.heads.iter().zip(weights).map(|(name, weight)| named(name, *weight)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_pipeline::answers::RequestedList;
    use std::collections::BTreeMap;

    #[test]
    fn a_record_names_the_list_that_its_request_asked_for() {
        let record =
            |kind: AnswerKind, request: Vec<u8>| AnswerRecord { kind: kind as i32, request, ..Default::default() };
        let search = proto::SearchRequest { query: "mug".into(), page_size: 7, ..Default::default() }.encode_to_vec();
        let recommend = |kind: proto::RecommendType| {
            let request = proto::RecommendRequest { r#type: kind as i32, page_size: 7, ..Default::default() };
            record(AnswerKind::Recommend, request.encode_to_vec()).requested_list()
        };
        assert_eq!(record(AnswerKind::Search, search).requested_list(), RequestedList::Query("mug".into()));
        assert_eq!(recommend(proto::RecommendType::ForYou), RequestedList::ForYou);
        assert_eq!(recommend(proto::RecommendType::Similar), RequestedList::Other);
        let candidate = |id: &str, value: f64| proto::RankCandidate {
            item_id: id.to_owned(),
            retrieval_score: Some(0.5),
            features: [("margin".to_owned(), value)].into(),
            ..Default::default()
        };
        let candidates = vec![candidate("a", 1.0), candidate("b", 2.0), candidate("a", 3.0)];
        let rank = proto::RankRequest { candidates, query: "mug".into(), ..Default::default() }.encode_to_vec();
        let values = |value: f64| BTreeMap::from([("margin".to_owned(), value)]);
        let features = BTreeMap::from([("a".to_owned(), values(1.0)), ("b".to_owned(), values(2.0))]);
        let expected = RequestedList::Candidates { query: Some("mug".into()), features };
        assert_eq!(record(AnswerKind::Rank, rank).requested_list(), expected);
    }
}
