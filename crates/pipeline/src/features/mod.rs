//! Features of (user, item, query, time). Training and serving run the same code, so that there is no training-serving
//! skew.
mod affinity;
mod anchors;
mod context_counts;
mod schema;
mod user;

use crate::popularity::PopularityView;
use ahash::AHashMap;
pub use anchors::{AnchoredList, Anchors};
pub use context_counts::{ContextCounts, KeyedContextCounts};
use lodestone_catalog::{Catalog, ItemVectors};
use lodestone_core::{ids::Row, units::UnixMillis, viewer::ViewerContext};
use lodestone_index::dot;
pub use schema::{ContextField, DeclaredFeature, FeatureError, FeatureFileError, FeatureSchema, NUMBER_MAX};
pub use user::{ItemStats, RecentItem, UserContext};

/// The built-in features, in the order of the ranking model's input `features [N, F]`. Those that the shop declares
/// follow ([`FeatureSchema`]). Logarithms are `ln(1 + x)`.
pub const FEATURES: &[&str] = &[
    "user_similarity",
    "user_known",
    "query_similarity",
    "lexical_score",
    "lexical_score_relative",
    "transition_weight",
    "transition_weight_last",
    "co_purchase_weight",
    "item_to_item_weight",
    "similar_last",
    "similar_max",
    "title_similar_max",
    "popularity",
    "trend",
    "buyers_60",
    "buyers_7",
    "buyers_2",
    "buyers_20",
    "buyers_ever",
    "event_days_since",
    "bought_count",
    "bought_days_since",
    "bought_share",
    "bought_decayed_14",
    "bought_decayed_60",
    "bought_decayed_180",
    "bought_interval",
    "bought_due",
    "seen_count",
    "seen_days_since",
    "is_in_cart",
    "is_favorite",
    "refunded_count",
    "price",
    "price_to_user",
    "item_age_days",
    "retrieval_score",
    "has_query",
    "history_length",
    "basket_count",
    "basket_days_since",
    "text_weight",
    "text_weight_last",
    "similar_history_weight",
    "is_similar_list",
    "is_together_list",
    "anchor_similar",
    "anchor_title_similar",
    "anchor_transition_weight",
    "anchor_co_purchase_weight",
    "anchor_item_to_item_weight",
];

/// The version of the built-in features. Raise it if the meaning of one changes under the same name.
const VERSION: u32 = 9;

/// The scores of one candidate by source; 0 from sources that did not return it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SourceEvidence {
    /// BM25 with a bonus for query words in the title and for their order.
    pub lexical: f32,
    /// From the user's items: from the recent ones with a decay or, in the item-to-item model, from all with the
    /// interest.
    pub of_user: TableScores,
    /// From the request's anchors.
    pub of_anchors: TableScores,
    /// Sum of decay × similarity of texts over the recent items, and that of the latest one.
    pub similar_texts: f32,
    pub similar_texts_of_last: f32,
    /// The score by the earlier histories that share items with the user's.
    pub similar_histories: f32,
    /// The fused score of retrieval.
    pub fused: f32,
}

/// Sums of item weight × neighbour weight of one candidate, by table.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TableScores {
    pub transitions: f32,
    pub co_purchases: f32,
    pub item_to_item: f32,
}

/// The inputs of features that all candidates of a request share.
pub struct FeatureContext<'a> {
    /// The generation's; the catalogue has its prepared fields.
    pub schema: &'a FeatureSchema,
    pub catalog: &'a Catalog,
    pub popularity: &'a PopularityView,
    pub now: UnixMillis,
    pub viewer: &'a ViewerContext,
    /// The generation's.
    pub context_counts: &'a KeyedContextCounts,
    /// The vector of the query; none without a query.
    pub query_vector: Option<&'a [f32]>,
    /// The best BM25 score among the candidates.
    pub lexical_best: f32,
    /// None for a list that starts from no items.
    pub anchors: Option<&'a Anchors>,
    /// None for a request without values of features.
    pub of_request: Option<&'a RequestFeatures>,
}

/// By row: the values of the features of kind `request`, in the order of [`FeatureSchema::of_request`].
pub type RequestFeatures = AHashMap<Row, Vec<Option<f32>>>;

/// Appends the features of one candidate: [`FeatureSchema::column_count`] finite numbers. O(recent items × dimensions).
pub fn append(out: &mut Vec<f32>, context: &FeatureContext, user: &UserContext, row: Row, evidence: SourceEvidence) {
    let entry = context.catalog.get(row);
    let stats = user.stats(entry.key);
    let (similar_last, similar_max, title_similar_max) = similarity_to_recent(context, user, row);
    let price = entry.log_price;
    let sales = context.popularity.counts(entry.key).at_time(context.now);
    let interval = stats.bought_interval();
    let user_dot = user.vector.as_deref().map_or(0.0, |vector| dot(vector, entry.vectors.user_space()));
    let query_dot = context.query_vector.map_or(0.0, |vector| dot(vector, entry.vectors.query_space()));
    let age_days = entry.created_at.map_or(0.0, |at| context.now.days_since(at));
    out.extend_from_slice(&[
        user_dot,
        flag(user.vector.is_some()),
        query_dot,
        evidence.lexical,
        if context.lexical_best > 0.0 { evidence.lexical / context.lexical_best } else { 0.0 },
        log(evidence.of_user.transitions),
        log(user.transition_weight_of_last(entry.key)),
        (evidence.of_user.co_purchases + CO_PURCHASE_FLOOR).ln(),
        (evidence.of_user.item_to_item + ITEM_TO_ITEM_FLOOR).ln(),
        similar_last,
        similar_max,
        title_similar_max,
        log(sales.score),
        log(sales.trend),
        log(sales.buyers[0]),
        log(sales.buyers[1]),
        log(sales.buyers[2]),
        log(sales.buyers[3]),
        log(sales.buyers[4]),
        sales.days_since_event.map_or(-1.0, log),
        log(stats.bought_count as f32),
        stats.days_since(stats.bought_at, context.now),
        stats.bought_count as f32 / user.basket_count.max(1) as f32,
        log(stats.bought_decayed[0]),
        log(stats.bought_decayed[1]),
        log(stats.bought_decayed[2]),
        interval.map_or(-1.0, f32::ln_1p),
        stats.due(context.now),
        log(stats.seen_count as f32),
        stats.days_since(stats.seen_at, context.now),
        flag(stats.is_in_cart),
        flag(stats.is_favorite),
        log(stats.refunded_count as f32),
        price,
        if price > 0.0 && user.mean_log_price > 0.0 { price - user.mean_log_price } else { 0.0 },
        log(age_days),
        evidence.fused,
        flag(context.query_vector.is_some()),
        user.log_history_length,
        log(user.basket_count as f32),
        user.days_since_basket(context.now),
        log_of_weight(evidence.similar_texts),
        log_of_weight(evidence.similar_texts_of_last),
        log_of_weight(evidence.similar_histories),
    ]);
    append_anchored(out, context.anchors, &entry.vectors, &evidence.of_anchors);
    let of_request = context.of_request.and_then(|values| values.get(&row)).map_or(&[][..], |values| values);
    context.schema.append_declared(out, context, &entry.prepared, &user.affinities, of_request, entry.key);
}

/// Appends the features that only lists with anchors have.
fn append_anchored(out: &mut Vec<f32>, anchors: Option<&Anchors>, vectors: &ItemVectors, scores: &TableScores) {
    let Some(anchors) = anchors else {
        out.extend_from_slice(&[0.0; 7]);
        return;
    };
    let [similar, title_similar] = anchors.similarity(vectors);
    out.extend_from_slice(&[
        flag(anchors.list == AnchoredList::Similar),
        flag(anchors.list == AnchoredList::BoughtTogether),
        similar,
        title_similar,
        log(scores.transitions),
        (scores.co_purchases + CO_PURCHASE_FLOOR).ln(),
        (scores.item_to_item + ITEM_TO_ITEM_FLOOR).ln(),
    ]);
}

/// Returns the cosine to the last item and the greatest cosine to any recent item in the user space, and the greatest
/// in the query space.
fn similarity_to_recent(context: &FeatureContext, user: &UserContext, row: Row) -> (f32, f32, f32) {
    let vectors = &context.catalog.own(row).vectors;
    let similar = user.recent_vectors[0].dots(vectors.user_space());
    let title_similar = user.recent_vectors[1].dots(vectors.query_space());
    let (mut last, mut best, mut best_title) = (0.0, 0.0f32, 0.0f32);
    for (index, recent) in user.recent.iter().enumerate() {
        // An item is not evidence for itself. The features `bought_count` and `seen_count` cover repetition.
        if recent.row == row {
            continue;
        }
        if index == 0 {
            last = similar[0];
        }
        best = best.max(similar[index]);
        best_title = best_title.max(title_similar[index]);
    }
    (last, best, best_title)
}

/// Added to the item-to-item weight before its logarithm: a tenth of a weight that speaks for an item.
const ITEM_TO_ITEM_FLOOR: f32 = 0.01;
/// The same for the co-purchase weight.
const CO_PURCHASE_FLOOR: f32 = 0.001;

/// Logarithm of a weight whose mean over the pairs of a table is 1. A tenth of that is added, so that no evidence is
/// distinct from weak evidence.
fn log_of_weight(weight: f32) -> f32 {
    const FLOOR: f32 = 0.1;
    (weight + FLOOR).ln()
}

/// Computes ln(1 + x), with a shortcut for 0, because most counts are 0.
fn log(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.ln_1p() }
}

fn flag(value: bool) -> f32 {
    f32::from(u8::from(value))
}
