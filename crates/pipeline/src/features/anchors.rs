//! The items that a request starts from, prepared once for all candidates.
use super::RecentItem;
use lodestone_catalog::{Catalog, ItemVectors, VECTOR_DIM};
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
        let vectors = |item: &RecentItem| &catalog.get(item.row).vectors;
        let query_dimension = items.first().map_or(0, |item| vectors(item).query_space().len());
        Self {
            list,
            user_space: LaneVectors::new(VECTOR_DIM, items.iter().map(|item| vectors(item).user_space())),
            query_space: LaneVectors::new(query_dimension, items.iter().map(|item| vectors(item).query_space())),
            items,
        }
    }

    /// Returns the greatest cosine to an anchor in the user space and in the query space; 0 if all are negative.
    pub(super) fn similarity(&self, vectors: &ItemVectors) -> [f32; 2] {
        let greatest = |cosines: [f32; lodestone_index::LANES]| cosines.into_iter().fold(0.0, f32::max);
        [greatest(self.user_space.dots(vectors.user_space())), greatest(self.query_space.dots(vectors.query_space()))]
    }
}
