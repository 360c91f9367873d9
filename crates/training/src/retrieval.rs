//! The retrieval stage of the serving pipeline, for replays.
use lodestone_core::ids::Row;
use lodestone_pipeline::{
    Models, RequestContext, context,
    features::{AnchoredList, Anchors, RecentItem},
    retrieve,
    source::CandidateSource,
};

/// What a replayed request asks for.
#[derive(Debug, Clone)]
pub(super) enum ListRequest<'a> {
    ForYou,
    Search(&'a str),
    /// A list that starts from an item.
    Anchored(AnchoredList, RecentItem),
    /// Candidates of the caller, in their order.
    Candidates {
        query: Option<&'a str>,
        rows: &'a [Row],
    },
}

/// Runs retrieval as serving does, with the default limits and without a filter, and stores the candidates in the
/// context.
pub(super) fn retrieve_candidates<'a>(
    context: &mut RequestContext<'a>,
    models: &mut Models,
    request: &ListRequest<'a>,
) {
    match request {
        ListRequest::ForYou => {}
        ListRequest::Search(query) => context.sent_query = Some(query),
        ListRequest::Candidates { query, .. } => context.sent_query = *query,
        ListRequest::Anchored(list, anchor) => {
            context.anchors = Some(Anchors::new(*list, vec![*anchor], context.catalog));
        }
    }
    let contexts = std::slice::from_mut(context);
    context::encode_queries(contexts, models);
    context::encode_users(contexts, models);
    let input = context.retrieval_input();
    context.candidates = match request {
        ListRequest::ForYou => retrieve::for_user(&input),
        ListRequest::Search(_) => retrieve::for_query(&input).unwrap_or_default(),
        ListRequest::Anchored(AnchoredList::Similar, _) => retrieve::similar(&input),
        ListRequest::Anchored(AnchoredList::BoughtTogether, _) => retrieve::bought_together(&input),
        ListRequest::Candidates { rows, .. } => {
            let found = rows.iter().map(|row| (*row, 0.0)).collect();
            retrieve::ordered_rows(context.catalog, CandidateSource::Caller, found, rows.len())
        }
    };
}
