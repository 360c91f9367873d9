//! The candidate sources of the first stage.

/// Rows with scores, best first.
pub type ScoredRows = Vec<(lodestone_core::ids::Row, f32)>;

/// A source of candidates. The order is that of [`crate::fusion::Candidate::ranks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CandidateSource {
    /// Vector search by the user's vector.
    UserVector,
    /// Vector search by the query's vector.
    QueryVector,
    /// BM25 over the items' texts.
    Lexical,
    /// Items that users interacted with next.
    Transitions,
    /// Items bought in one basket.
    CoPurchases,
    /// Items that users with the same items chose, by the item-to-item model.
    ItemToItem,
    /// Items whose texts are similar to those of the recent items.
    SimilarTexts,
    /// Items of earlier histories that share items with the user's.
    SimilarHistories,
    /// Vector search by the vectors of anchor items.
    Similar,
    /// Popular items.
    Popular,
    /// Items of the user's history.
    History,
    /// Items that sell more than usual.
    Trending,
    /// Items of the catalogue in no other list, the latest first, if the other sources do not fill the list.
    Catalogue,
    /// The candidates of a Rank, by the caller's scores.
    Caller,
}

impl CandidateSource {
    pub const COUNT: usize = 14;
    pub const ALL: [Self; Self::COUNT] = [
        Self::UserVector,
        Self::QueryVector,
        Self::Lexical,
        Self::Transitions,
        Self::CoPurchases,
        Self::ItemToItem,
        Self::SimilarTexts,
        Self::SimilarHistories,
        Self::Similar,
        Self::Popular,
        Self::History,
        Self::Trending,
        Self::Catalogue,
        Self::Caller,
    ];

    /// The name in responses, metrics and records of answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::UserVector => "user_vector",
            Self::QueryVector => "query_vector",
            Self::Lexical => "lexical",
            Self::Transitions => "transitions",
            Self::CoPurchases => "co_purchases",
            Self::ItemToItem => "item_to_item",
            Self::SimilarTexts => "similar_texts",
            Self::SimilarHistories => "similar_histories",
            Self::Similar => "similar",
            Self::Popular => "popular",
            Self::History => "history",
            Self::Trending => "trending",
            Self::Catalogue => "catalogue",
            Self::Caller => "caller",
        }
    }

    /// The position in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether the source searches vectors.
    pub fn is_vector_search(self) -> bool {
        match self {
            Self::UserVector | Self::QueryVector | Self::Similar => true,
            Self::Lexical
            | Self::Transitions
            | Self::CoPurchases
            | Self::ItemToItem
            | Self::SimilarTexts
            | Self::SimilarHistories
            | Self::Popular
            | Self::History
            | Self::Trending
            | Self::Catalogue
            | Self::Caller => false,
        }
    }

    /// The weight of a list of this source in the fused score.
    pub(crate) fn fusion_weight(self) -> f32 {
        match self {
            Self::UserVector
            | Self::QueryVector
            | Self::Transitions
            | Self::ItemToItem
            | Self::SimilarTexts
            | Self::SimilarHistories
            | Self::Caller => 1.0,
            Self::Lexical => 2.0,
            Self::CoPurchases => 0.7,
            Self::Similar | Self::Popular | Self::Trending | Self::Catalogue => 0.5,
            Self::History => 1.2,
        }
    }

    /// The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009). It is small for queries because
    /// their first ranks are much more relevant than the next ones; the next interaction of a user is less certain.
    pub(crate) fn fusion_constant(self) -> f32 {
        match self {
            Self::QueryVector | Self::Lexical => 10.0,
            Self::UserVector
            | Self::Transitions
            | Self::CoPurchases
            | Self::ItemToItem
            | Self::SimilarTexts
            | Self::SimilarHistories
            | Self::Similar
            | Self::Popular
            | Self::History
            | Self::Trending
            | Self::Catalogue
            | Self::Caller => 60.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_positions_in_the_list_of_all() {
        assert!(CandidateSource::ALL.iter().enumerate().all(|(index, source)| source.index() == index));
    }
}
