//! Features of (user, item, query, time). Training and serving run the same code, so that there is no training-serving
//! skew.
mod user;

use crate::popularity::PopularityView;
use lodestone_catalog::Catalog;
use lodestone_core::{ids::Row, units::UnixMillis};
use lodestone_index::dot;
use sha2::{Digest, Sha256};
pub use user::{ItemStats, RecentItem, UserContext};

/// The features, in the order of the ranking model's input `features [N, F]`. Logarithms are `ln(1 + x)`.
pub const FEATURES: &[&str] = &[
    "user_similarity",
    "user_known",
    "query_similarity",
    "lexical_score",
    "lexical_score_relative",
    "transition_weight",
    "transition_weight_last",
    "co_purchase_weight",
    "similar_last",
    "similar_max",
    "title_similar_max",
    "popularity",
    "trend",
    "bought_count",
    "bought_days_since",
    "bought_share",
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
];

/// Columns of the feature matrix.
pub const FEATURE_COUNT: usize = FEATURES.len();

/// Identifies the feature definitions. A bundle that was trained with other ones is refused. Raise the version if the
/// meaning of a feature changes under the same name.
pub fn schema_hash() -> String {
    const VERSION: u32 = 5;
    let mut hash = Sha256::new();
    hash.update(VERSION.to_le_bytes());
    hash.update(FEATURES.join(","));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The scores of one candidate by source; 0 from sources that did not return it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SourceEvidence {
    /// BM25 with a bonus for query words in the title and for their order.
    pub lexical: f32,
    /// Sum of decay × transition weight over the recent items.
    pub transitions: f32,
    /// Sum of decay × co-purchase weight over the recent items.
    pub co_purchases: f32,
    /// The fused score of retrieval.
    pub fused: f32,
}

/// The inputs of features that all candidates of a request share.
pub struct FeatureContext<'a> {
    pub catalog: &'a Catalog,
    pub popularity: &'a PopularityView,
    pub now: UnixMillis,
    /// The vector of the query; none without a query.
    pub query_vector: Option<&'a [f32]>,
    /// The best BM25 score among the candidates.
    pub lexical_best: f32,
}

/// Appends the features of one candidate: [`FEATURE_COUNT`] finite numbers. O(recent items × dimensions).
pub fn append(out: &mut Vec<f32>, context: &FeatureContext, user: &UserContext, row: Row, evidence: SourceEvidence) {
    let entry = context.catalog.get(row);
    let stats = user.stats(entry.key);
    let (similar_last, similar_max, title_similar_max) = similarity_to_recent(context, user, row);
    let price = entry.log_price;
    let (popularity, trend) = context.popularity.counts(entry.key).score_and_trend(context.now);
    let user_dot = user.vector.as_deref().map_or(0.0, |vector| dot(vector, entry.vectors.user_space()));
    let query_dot = context.query_vector.map_or(0.0, |vector| dot(vector, entry.vectors.query_space()));
    let age_days = entry.created_at.map_or(0.0, |at| context.now.days_since(at));
    out.extend_from_slice(&[
        user_dot,
        flag(user.vector.is_some()),
        query_dot,
        evidence.lexical,
        if context.lexical_best > 0.0 { evidence.lexical / context.lexical_best } else { 0.0 },
        log(evidence.transitions),
        log(user.transition_weight_of_last(entry.key)),
        log(evidence.co_purchases),
        similar_last,
        similar_max,
        title_similar_max,
        log(popularity),
        log(trend),
        log(stats.bought_count as f32),
        stats.days_since(stats.bought_at, context.now),
        stats.bought_count as f32 / user.basket_count.max(1) as f32,
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
    ]);
}

/// Returns the cosine to the last item and the greatest cosine to any recent item in the user space, and the greatest
/// in the query space.
fn similarity_to_recent(context: &FeatureContext, user: &UserContext, row: Row) -> (f32, f32, f32) {
    let vectors = &context.catalog.get(row).vectors;
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

/// Computes ln(1 + x), with a shortcut for 0, because most counts are 0.
fn log(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.ln_1p() }
}

fn flag(value: bool) -> f32 {
    f32::from(u8::from(value))
}
