//! One request's view of a generation, from candidates to scores: features and ranking model.
use super::{fusion::Candidates, generation::Generation, models::Models, request::*};
use lodestone_catalog::Catalog;
use crate::{features::{self, FEATURE_COUNT, FEATURES, Moment, UserContext}, policy, ranking::RankingError};
use lodestone_state::users::History;
use lodestone_core::units::UnixMillis;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// One request's view of a generation, and what it has to tell about itself.
pub struct RequestContext<'a> {
    pub generation: &'a Generation,
    pub catalog: Arc<Catalog>,
    pub history: History,
    pub user: UserContext,
    pub user_known: bool,
    /// The log position that the user's history surely has.
    pub position: u64,
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

impl<'a> RequestContext<'a> {
    /// Takes one snapshot of the user, with the request's context events.
    pub fn begin(
        generation: &'a Generation,
        catalog: &Arc<Catalog>,
        viewer: &Viewer,
        options: &Options,
        now: UnixMillis,
    ) -> Self {
        let mark = Instant::now();
        let position = generation.live.applied_position();
        let known = generation.live.users.history(&viewer.user);
        let user_known = known.is_some();
        let mut history = known.unwrap_or_default();
        if !options.context_events.is_empty() {
            history = history.with_context(&options.context_events, &generation.live.keys);
        }
        let mut story = Self {
            user: UserContext::new(&history, catalog, &generation.next),
            generation,
            catalog: catalog.clone(),
            history,
            user_known,
            position,
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

    /// The tail of an answer, without what only the engine knows (tokens, position, generation).
    pub fn tail(&self, sources: Vec<SourceCount>, level: DebugLevel) -> AnswerTail {
        AnswerTail {
            degradations: self.degradations.clone(),
            user_known: self.user_known,
            debug: (level >= DebugLevel::Timings).then(|| AnswerDebug {
                stages: self.stages.clone(),
                sources,
                feature_names: if level >= DebugLevel::Features { FEATURES } else { &[] },
            }),
            ..AnswerTail::default()
        }
    }

    pub fn degrade(&mut self, code: DegradationCode, subject: &str) {
        self.degradations.push(Degradation { code, subject: subject.to_owned() });
    }

    /// Makes the users's vectors; the stories are of one catalogue and one moment. A failure costs the sources that need them and is declared.
    pub fn encode_users(stories: &mut [Self], models: &mut Models) {
        let begun = Instant::now();
        let Some(first) = stories.first() else { return };
        let histories: Vec<&History> = stories.iter().map(|story| &story.history).collect();
        match models.encode_users(&histories, &first.catalog, first.now) {
            Ok(vectors) => {
                for (story, vector) in stories.iter_mut().zip(vectors) {
                    story.user.vector = vector;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the user encoder failed");
                for story in stories.iter_mut() {
                    story.degrade(DegradationCode::EncoderSkipped, "user_encoder");
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
            features::append(&mut out, &moment, &self.user, candidate.row, candidate.evidence);
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
        let all = vec![true; stories.len()];
        Self::rank_those(stories, models, candidates, query_vectors, &all)
    }

    /// Stage two, where `runs` says for each story whether the model is asked.
    pub fn rank_those(
        stories: &mut [Self],
        models: &mut Models,
        candidates: Vec<Candidates>,
        query_vectors: &[Option<Vec<f32>>],
        runs: &[bool],
    ) -> Vec<Ranked> {
        let mut features = Vec::with_capacity(stories.len());
        for (story, (candidates, query)) in stories.iter_mut().zip(candidates.iter().zip(query_vectors)) {
            story.resume();
            features.push(story.features(candidates, query.as_deref()));
        }
        let begun = Instant::now();
        let asked: Vec<&Vec<f32>> = features.iter().zip(runs).filter(|(_, runs)| **runs).map(|(own, _)| own).collect();
        let heads = match &asked[..] {
            [] => Ok(Vec::new()),
            [alone] => score(models, alone),
            several => score(models, &several.iter().flat_map(|own| own.iter().copied()).collect::<Vec<f32>>()),
        };
        let heads = heads.unwrap_or_else(|error| {
            tracing::warn!(%error, "the ranking model failed");
            for (story, _) in stories.iter_mut().zip(runs).filter(|(_, runs)| **runs) {
                story.degrade(DegradationCode::RankerSkipped, "ranker");
            }
            Vec::new()
        });
        let weights: Vec<f32> = models.heads.iter().map(|head| head.weight).collect();
        let mut rest = &heads[..];
        let ranked = candidates.into_iter().zip(features).zip(runs).map(|((candidates, features), runs)| {
            let count = if *runs { candidates.list.len() * weights.len() } else { 0 };
            let own = rest.split_off(..count.min(rest.len())).unwrap_or_default();
            let scores = match own.is_empty() {
                true => candidates.list.iter().map(|candidate| candidate.evidence.fused).collect(),
                false => own.chunks_exact(weights.len()).map(|heads| policy::utility(&weights, heads)).collect(),
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
    pub fn scores(&mut self, features: &[f32]) -> Result<Vec<f32>, RankingError> {
        let heads = score(self, features)?;
        let weights: Vec<f32> = self.heads.iter().map(|head| head.weight).collect();
        Ok(heads.chunks_exact(weights.len().max(1)).map(|heads| policy::utility(&weights, heads)).collect())
    }

    /// Probabilities `[rows × heads]` of features `[rows × FEATURE_COUNT]`.
    pub fn probabilities(&mut self, features: &[f32]) -> Result<Vec<f32>, RankingError> {
        score(self, features)
    }
}

/// Probabilities `[rows × heads]`; none without a ranker or without rows.
fn score(models: &mut Models, features: &[f32]) -> Result<Vec<f32>, RankingError> {
    let row_count = features.len() / FEATURE_COUNT;
    let Some(ranker) = models.ranker.as_mut().filter(|_| row_count > 0) else {
        return Ok(Vec::new());
    };
    // One row alone goes through another kernel than several, which adds in another order; two give each row the same
    // probabilities whatever it is scored with, so that a replay has them to the bit.
    let mut heads = match row_count {
        1 => ranker.score(&[features, features].concat(), 2)?,
        _ => ranker.score(features, row_count)?,
    };
    heads.truncate(row_count * models.heads.len());
    for row in heads.chunks_exact_mut(models.heads.len()) {
        for (logit, head) in row.iter_mut().zip(&models.heads) {
            *logit = 1.0 / (1.0 + (-(head.scale * *logit + head.offset)).exp());
        }
    }
    Ok(heads)
}
