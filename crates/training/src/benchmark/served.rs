//! The answers of a trained bundle to test queries, through the pipeline of requests.
use super::protocol::{Protocol, Query};
use crate::{
    Progress,
    error::TrainError,
    options::{EncoderSettings, TrainOptions},
    train::{train_in_memory, without_models},
};
use lodestone_core::{
    ids::{EventId, Row},
    units::{Quantity, UnixMillis},
};
use lodestone_dataset as dataset;
use lodestone_events::{Event, EventLine};
use lodestone_pipeline::{
    Generation, Models, Options, Page, RecommendKind, RecommendRequest, Viewer,
    ranking::{Device, Runtime},
    run::{AnswerLogging, PipelineAnswer, PlannedRequest, RankingRequest, run},
    serving::Plan,
    source::CandidateSource,
};
use rayon::prelude::*;

/// Most training lists of the ranking model.
const RANKING_LISTS_MAX: usize = 20_000;
/// Items of a list that the metrics read.
const LIST_MAX: usize = 20;
/// Requests that run together, as in a server under load.
const BATCH: usize = 8;
/// Queries between two progress reports.
const PART: usize = 1024;
const SECOND: i64 = 1000;

/// The lists of all queries.
pub(super) struct ServedLists {
    /// Sources that return candidates, then `retrieval`, the fused order, and `ranked`, the answer.
    pub methods: Vec<String>,
    pub of_queries: Vec<QueryLists>,
    /// Epochs until the encoder's least validation loss.
    pub epochs: usize,
}

/// The lists of one query.
pub(super) struct QueryLists {
    /// `[methods]`: the first [`LIST_MAX`] rows.
    pub lists: Vec<Vec<u32>>,
    pub candidate_count: usize,
    /// Targets among the candidates.
    pub found_count: usize,
}

/// Trains a bundle on the data of a protocol and answers its queries.
pub(super) fn lists(
    protocol: &Protocol,
    runtime: &Runtime,
    encoder: EncoderSettings,
    seed: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<ServedLists, TrainError> {
    let options = TrainOptions {
        seed,
        encoder,
        times: Some(protocol.times.clone()),
        outcome: protocol.outcome,
        with_queries: false,
        lists_max: RANKING_LISTS_MAX,
        name: "benchmark".to_owned(),
        ..TrainOptions::default()
    };
    let (items, events) = (protocol.items.clone(), protocol.events.clone());
    let (bundle, report) = train_in_memory(items, events, runtime, &options, progress)?;
    if let Some(reason) = report.missing_user_encoder {
        return Err(TrainError::TooLittle(reason));
    }
    let open = |_| Models::open(runtime, &bundle, Device::Cpu);
    let mut models = (0..rayon::current_num_threads()).map(open).collect::<Result<Vec<Models>, _>>()?;
    let generation = Generation::standalone(without_models(&bundle), 1)?;
    drop(bundle);
    let known = protocol.events.iter().filter(|event| event.at < protocol.times.counted_until).cloned().collect();
    dataset::into_events(known).iter().for_each(|event| generation.state.apply_event(0, event));
    generation.state.publish_popularity(protocol.at);

    let mut answers: Vec<AnswerLists> = Vec::with_capacity(protocol.queries.len());
    for part in protocol.queries.chunks(PART) {
        let of_thread = part.par_chunks(part.len().div_ceil(models.len()));
        let answered = models.par_iter_mut().zip(of_thread).flat_map_iter(|(models, queries)| {
            let answer = |queries: &[Query]| answers_to(queries, protocol, &generation, models);
            queries.chunks(BATCH).flat_map(answer).collect::<Vec<_>>()
        });
        answers.extend(answered.collect::<Vec<_>>());
        progress(Progress { stage: "answers", done: answers.len(), total: protocol.queries.len(), loss: f32::NAN });
    }
    Ok(ServedLists::new(answers, report.epoch_count))
}

/// The lists of one query by source, of retrieval and of the answer.
struct AnswerLists {
    of_sources: [Vec<u32>; CandidateSource::COUNT],
    retrieved: Vec<u32>,
    ranked: Vec<u32>,
    candidate_count: usize,
    found_count: usize,
}

fn answers_to(
    queries: &[Query],
    protocol: &Protocol,
    generation: &Generation,
    models: &mut Models,
) -> Vec<AnswerLists> {
    let requests: Vec<PlannedRequest> = queries.iter().map(|query| request(query, protocol)).collect();
    let answers = run(generation, models, &requests, protocol.at);
    queries.iter().zip(answers).map(|(query, answer)| AnswerLists::new(query, answer)).collect()
}

/// A request for recommendations, whose events happened in the last seconds.
fn request(query: &Query, protocol: &Protocol) -> PlannedRequest {
    let context = query.context.iter().enumerate().map(|(index, row)| {
        let id = EventId::parse(&format!("context-{index}")).expect("a valid constant");
        let at = UnixMillis(protocol.at.0 - (query.context.len() - index) as i64 * SECOND);
        let item = protocol.items[*row as usize].id.clone();
        let lines = vec![EventLine { item, quantity: Quantity::ONE, price: None, rank: 0 }];
        Event { lines, ..Event::new(id, protocol.kind, query.user.clone(), at) }
    });
    let options = Options {
        context_events: context.collect(),
        exclude: query.excluded.iter().map(|row| protocol.items[*row as usize].id.clone()).collect(),
        ..Options::default()
    };
    let viewer = Viewer::of_user(query.user.clone());
    let request = RankingRequest::Recommend(RecommendRequest {
        viewer,
        kind: RecommendKind::ForYou,
        page: Page { size: LIST_MAX, token: String::new(), number: 1, fingerprint: 0 },
        filter: None,
        anchors: Vec::new(),
        facets: Vec::new(),
        options,
        message: Vec::new(),
    });
    // Recorded, because the trace has the candidates of each source.
    PlannedRequest { request, answer_id: [0; 16], plan: Plan::default(), logging: AnswerLogging::Recorded }
}

impl AnswerLists {
    fn new(query: &Query, answer: PipelineAnswer) -> Self {
        let trace = answer.trace.expect("the request is recorded");
        let candidates = &trace.ranked.candidates;
        let first = |rows: &mut dyn Iterator<Item = Row>| rows.take(LIST_MAX).map(|row| row.0).collect::<Vec<u32>>();
        let mut of_sources: [Vec<u32>; CandidateSource::COUNT] = Default::default();
        for (source, list) in &candidates.lists {
            of_sources[source.index()] = first(&mut list.iter().map(|(row, _)| *row));
        }
        let retrieved = || candidates.list.iter().map(|candidate| candidate.row);
        let placed = trace.arranged.placed.iter().map(|placed| candidates.list[placed.candidate.index()].row);
        let is_target = |row: &Row| query.targets.binary_search(&row.0).is_ok();
        Self {
            of_sources,
            retrieved: first(&mut retrieved()),
            ranked: first(&mut placed.into_iter()),
            candidate_count: candidates.list.len(),
            found_count: retrieved().filter(is_target).count(),
        }
    }
}

impl ServedLists {
    fn new(answers: Vec<AnswerLists>, epochs: usize) -> Self {
        let has_list = |source: &CandidateSource| answers.iter().any(|of| !of.of_sources[source.index()].is_empty());
        let sources: Vec<CandidateSource> = CandidateSource::ALL.into_iter().filter(has_list).collect();
        let methods = sources.iter().map(|source| source.name()).chain(["retrieval", "ranked"]);
        let methods = methods.map(str::to_owned).collect();
        let of_query = |mut answer: AnswerLists| {
            let of_source = |source: &CandidateSource| std::mem::take(&mut answer.of_sources[source.index()]);
            let mut lists: Vec<Vec<u32>> = sources.iter().map(of_source).collect();
            lists.extend([answer.retrieved, answer.ranked]);
            QueryLists { lists, candidate_count: answer.candidate_count, found_count: answer.found_count }
        };
        Self { methods, of_queries: answers.into_iter().map(of_query).collect(), epochs }
    }
}
