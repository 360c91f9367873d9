//! One result for each product: of the variants of a group, the candidate that fits best remains.
use crate::{fusion::Candidates, slate::query_tiers};
use ahash::AHashMap;
use lodestone_catalog::{Catalog, Group};
use lodestone_core::ids::Row;

/// Keeps one candidate of each group, and the first `count` candidates: the one that matches the query best, of these
/// the first. Pinned variants remain, and the others of their groups do not.
pub(crate) fn keep_one_per_group(candidates: &mut Candidates, catalog: &Catalog, pinned: &[Row], count: usize) {
    let tiers = query_tiers(candidates);
    let is_pinned = |row: Row| pinned.contains(&row);
    let mut best: AHashMap<Group, (bool, u8, usize)> = AHashMap::new();
    pinned
        .iter()
        .filter_map(|row| catalog.group_of(*row))
        .for_each(|group| _ = best.insert(group, (true, 0, usize::MAX)));
    for (at, (candidate, tier)) in candidates.list.iter().zip(&tiers).enumerate() {
        let Some(group) = catalog.group_of(candidate.row) else { continue };
        best.entry(group)
            .and_modify(|(has_pin, best_tier, best_at)| {
                if !*has_pin && *tier > *best_tier {
                    (*best_tier, *best_at) = (*tier, at);
                }
            })
            .or_insert((false, *tier, at));
    }
    let mut at = 0;
    candidates.list.retain(|candidate| {
        at += 1;
        let of_group = catalog.group_of(candidate.row).and_then(|group| best.get(&group));
        is_pinned(candidate.row) || of_group.is_none_or(|(_, _, best_at)| *best_at == at - 1)
    });
    candidates.list.truncate(count);
}
