//! The retrieval stage of the serving pipeline, for replays.
use lodestone_pipeline::{Models, RequestContext, context, retrieve};

/// Runs retrieval as serving does, with the default limits and without a filter, and stores the candidates in the
/// context.
pub(super) fn retrieve_candidates<'a>(context: &mut RequestContext<'a>, models: &mut Models, query: Option<&'a str>) {
    context.sent_query = query;
    let contexts = std::slice::from_mut(context);
    context::encode_queries(contexts, models);
    context::encode_users(contexts, models);
    let input = context.retrieval_input();
    context.candidates = match query {
        Some(_) => retrieve::for_query(&input).unwrap_or_default(),
        None => retrieve::for_user(&input),
    };
}
