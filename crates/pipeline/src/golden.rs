//! Golden requests: requests with the answers of the machine that built the bundle. The self-test repeats them after
//! loading. They do not depend on the live state.
use super::{
    generation::Generation,
    models::Models,
    retrieve::{self, EligibleRows, Query, RetrievalInput, RetrievalLimits},
};
use crate::{
    bundle::Bundle,
    features::{self, AnchoredList, Anchors, FeatureContext, UserContext},
    popularity::PopularityView,
    ranking::{Device, RankingError, Runtime},
};
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::{Quantity, UnixMillis},
    viewer::ViewerContext,
};
use lodestone_events::{Event, EventKind, EventLine};
use lodestone_state::users::History;
use serde::{Deserialize, Serialize};

/// Number of golden requests.
const REQUEST_COUNT: usize = 16;
/// Number of stored items of an answer.
const TOP: usize = 10;
/// Number of candidates of each source, and of ranked candidates.
const CANDIDATES: usize = 50;
/// Maximum relative difference of a score. Scores differ slightly, because CPUs with other instruction sets round
/// differently.
const TOLERANCE: f32 = 0.01;
/// Maximum absolute difference of a score, in addition to the relative one.
const TOLERANCE_LEAST: f32 = 1e-6;
/// Minimum share of stored items that must appear again. Below 1, because items with equal scores at the end of a list
/// may replace each other.
const FOUND_SHARE_MIN: f64 = 0.9;

/// `golden.json` of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    pub requests: Vec<GoldenRequest>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRequest {
    /// Empty: similar items to those of the history.
    pub query: String,
    /// Items that the user viewed, one a day, the latest last.
    pub history: Vec<String>,
    /// The expected items with their scores, best first.
    pub expected: Vec<(String, f32)>,
}

/// The reason why a bundle fails its self-test.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    #[error("golden.json cannot be read: {0}")]
    Read(#[from] serde_json::Error),
    #[error("golden.json: `{0}` is not an item id")]
    Item(String),
    #[error(transparent)]
    Generation(#[from] super::GenerationError),
    #[error(transparent)]
    Ranking(#[from] RankingError),
    #[error("golden request {number}: item {item} has score {found}, expected {expected}")]
    Score { number: usize, item: String, found: f32, expected: f32 },
    #[error("golden requests: {found} of {expected} expected items appear; the minimum share is {FOUND_SHARE_MIN}")]
    Missing { found: usize, expected: usize },
}

/// Builds the golden requests of a bundle as JSON, from items of its catalogue, words of their titles and its answers.
pub fn golden_requests(bundle: &Bundle, runtime: &Runtime) -> Result<Vec<u8>, GoldenError> {
    let mut models = Models::open(runtime, bundle, Device::Cpu)?;
    let item_count = bundle.items.len();
    let mut requests: Vec<GoldenRequest> = (0..REQUEST_COUNT.min(item_count))
        .map(|n| {
            let index = |step: usize| (n * item_count / REQUEST_COUNT.min(item_count) + step * 7) % item_count;
            let history = (0..=n % 4).map(|step| bundle.items[index(step)].id.to_string()).collect();
            let words = bundle.items[index(1)].title.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            let query = if n % 2 == 0 { words } else { String::new() };
            GoldenRequest { query, history, expected: Vec::new() }
        })
        .collect();
    let generation = Generation::standalone(bundle.clone(), 1)?;
    for request in &mut requests {
        let mut scored = answer(&generation, &mut models, request)?;
        scored.truncate(TOP);
        request.expected = scored.into_iter().map(|(item, score)| (item.to_string(), score)).collect();
    }
    Ok(serde_json::to_vec_pretty(&Golden { requests })?)
}

/// Repeats a bundle's golden requests on its generation, before the generation applies catalogue changes. Returns the
/// number of requests.
pub fn self_test(generation: &Generation, models: &mut Models, golden: &[u8]) -> Result<usize, GoldenError> {
    let golden: Golden = serde_json::from_slice(golden)?;
    let (mut found, mut expected_count) = (0, 0);
    for (index, request) in golden.requests.iter().enumerate() {
        let scored = answer(generation, models, request)?;
        for (item, expected) in &request.expected {
            expected_count += 1;
            let Some((_, score)) = scored.iter().find(|(id, _)| id.as_str() == item) else { continue };
            found += 1;
            let difference = (score - expected).abs();
            if difference.is_nan() || difference > TOLERANCE_LEAST + TOLERANCE * expected.abs() {
                let (number, item) = (index + 1, item.clone());
                return Err(GoldenError::Score { number, item, found: *score, expected: *expected });
            }
        }
    }
    match (found as f64) < FOUND_SHARE_MIN * expected_count as f64 {
        true => Err(GoldenError::Missing { found, expected: expected_count }),
        false => Ok(golden.requests.len()),
    }
}

/// Answers a golden request with scored items, best first. Runs retrieval without popular and bought items, then the
/// ranking model.
fn answer(
    generation: &Generation,
    models: &mut Models,
    request: &GoldenRequest,
) -> Result<Vec<(ItemId, f32)>, GoldenError> {
    let now = UnixMillis(generation.manifest.trained_until_ms);
    let catalog = generation.catalog.load_full();
    let history = History::default().with_context(&views(request, now)?, &generation.state.keys);
    let mut user = UserContext::new(&history, generation.schema(), &catalog, &generation.transitions, now);
    let query = Some(request.query.as_str()).filter(|query| !query.is_empty());
    let query_vector = models.encode_queries(&[query])?.remove(0);
    user.vector = models.encode_users(&[(&history, &catalog)], now)?.remove(0);
    let eligible = EligibleRows::offered(&catalog);
    let popularity = PopularityView::default();
    let anchors = query.is_none().then(|| Anchors::new(AnchoredList::Similar, user.recent.clone(), &catalog));
    let input = RetrievalInput {
        generation,
        catalog: &catalog,
        user: &user,
        popularity: &popularity,
        query: query.map(|text| Query { text, vector: query_vector.as_deref(), synonyms: &[] }),
        anchors: anchors.as_ref().map_or(&[], |anchors| &anchors.items),
        eligible: &eligible,
        boosted: None,
        now,
        limits: RetrievalLimits { per_source: CANDIDATES, fused: CANDIDATES, query_cosine_min: None },
        one_per_group: false,
    };
    let candidates = match query {
        Some(_) => retrieve::for_query(&input).map_err(super::GenerationError::from)?,
        None => retrieve::similar(&input),
    };
    let context = FeatureContext {
        schema: generation.schema(),
        catalog: &catalog,
        popularity: &popularity,
        now,
        viewer: &ViewerContext::default(),
        context_counts: &generation.context_counts,
        query_vector: query_vector.as_deref(),
        lexical_best: candidates.lexical_best,
        anchors: anchors.as_ref(),
        of_request: None,
    };
    let mut rows = Vec::with_capacity(candidates.list.len() * generation.schema().column_count());
    for candidate in &candidates.list {
        features::append(&mut rows, &context, &user, candidate.row, candidate.evidence);
    }
    let mut scores = models.utilities(&rows)?;
    if scores.is_empty() {
        scores = candidates.list.iter().map(|candidate| candidate.evidence.fused).collect();
    }
    let mut scored: Vec<(ItemId, f32)> =
        candidates.list.iter().zip(scores).map(|(of, score)| (catalog.get(of.row).item.id.clone(), score)).collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Ok(scored)
}

fn views(request: &GoldenRequest, now: UnixMillis) -> Result<Vec<Event>, GoldenError> {
    let days_ago = (1..=request.history.len() as i64).rev();
    let view = |(item, days): (&String, i64)| {
        let item = ItemId::parse(item).map_err(|_| GoldenError::Item(item.clone()))?;
        let id = EventId::parse("golden").expect("a valid constant");
        let user = UserId::visitor("golden request").expect("a valid constant");
        let at = UnixMillis(now.0 - days * UnixMillis::DAY);
        let lines = vec![EventLine { item, quantity: Quantity::ONE, price: None, rank: 0 }];
        Ok(Event { lines, ..Event::new(id, EventKind::View, user, at) })
    };
    request.history.iter().zip(days_ago).map(view).collect()
}
