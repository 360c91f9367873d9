//! The items that a request starts from, prepared once for all candidates.
use super::{RecentItem, user::lane_vectors};
use lodestone_catalog::{Catalog, ItemVectors};
use lodestone_index::LaneVectors;

/// A list that starts from items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnchoredList {
    Similar,
    BoughtTogether,
}

/// The anchors of a list. For those after the first [`lodestone_index::LANES`], similarity is not computed.
#[derive(Debug)]
pub struct Anchors {
    pub list: AnchoredList,
    pub items: Vec<RecentItem>,
    user_space: LaneVectors,
    query_space: LaneVectors,
}

impl Anchors {
    pub fn new(list: AnchoredList, items: Vec<RecentItem>, catalog: &Catalog) -> Self {
        let [user_space, query_space] = lane_vectors(&items, catalog);
        Self { list, user_space, query_space, items }
    }

    /// Returns the greatest cosine to an anchor in the user space and in the query space; 0 if all are negative.
    pub(super) fn similarity(&self, vectors: &ItemVectors) -> [f32; 2] {
        let greatest = |cosines: [f32; lodestone_index::LANES]| cosines.into_iter().fold(0.0, f32::max);
        [greatest(self.user_space.dots(vectors.user_space())), greatest(self.query_space.dots(vectors.query_space()))]
    }
}
