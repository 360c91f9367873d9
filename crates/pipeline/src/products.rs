//! One result for each product: of the variants of a group, the candidate that fits best remains.
use crate::{
    fusion::{Candidate, Candidates},
    request::Boost,
    retrieve::EligibleRows,
    slate::query_tiers,
};
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::{Catalog, Group, OrderBy, Part};
use lodestone_core::{bits, ids::Row};

/// Returns the number of results that the rows of a bit set are.
pub(crate) fn count(catalog: &Catalog, rows: &[u64], one_per_group: bool) -> usize {
    match one_per_group {
        true => catalog.product_count(rows),
        false => bits::count(rows, rows.len() * 64),
    }
}

/// What decides which variant of a group is shown.
pub(crate) struct VariantPreference<'a> {
    pub catalog: &'a Catalog,
    pub eligible: &'a EligibleRows<'a>,
    /// Pinned variants remain, and the others of their groups do not.
    pub pinned: &'a [Row],
    pub boosts: &'a [Boost],
    /// None: a query chooses among the variants that it found; otherwise any eligible variant may be shown.
    pub any_variant: Option<AnyVariant<'a>>,
}

/// What chooses among all variants of a group, if no query does.
#[derive(Clone, Copy)]
pub(crate) enum AnyVariant<'a> {
    /// The one that retrieval prefers, unless boosts prefer another one.
    Boosted,
    /// The first in the order of fields.
    ByFields(&'a OrderBy),
}

/// Keeps one candidate of each group: the one that matches the query best, of these one in stock, of these the one with
/// the greatest boost, of these the first.
pub(crate) fn keep_one_per_group(candidates: &mut Candidates, preference: &VariantPreference) {
    let catalog = preference.catalog;
    let tiers = query_tiers(candidates);
    let pinned_groups: AHashSet<Group> = preference.pinned.iter().filter_map(|row| catalog.group_of(*row)).collect();
    let mut best: AHashMap<Group, (usize, (u8, bool, u32))> = AHashMap::new();
    for (at, (candidate, tier)) in candidates.list.iter().zip(&tiers).enumerate() {
        let Some(group) = catalog.group_of(candidate.row) else { continue };
        let rank = (*tier, catalog.is_offered(candidate.row), preference.boosted(candidate.row));
        best.entry(group)
            .and_modify(|known| {
                if rank > known.1 {
                    *known = (at, rank)
                }
            })
            .or_insert((at, rank));
    }
    let mut at = 0;
    candidates.list.retain_mut(|candidate| {
        at += 1;
        match catalog.group_of(candidate.row) {
            None => true,
            Some(group) if pinned_groups.contains(&group) => preference.pinned.contains(&candidate.row),
            Some(group) => {
                let is_best = best[&group].0 == at - 1;
                if is_best {
                    preference.choose_among_all(group, candidate);
                }
                is_best
            }
        }
    });
}

impl VariantPreference<'_> {
    /// The product of the factors of a row's boosts, as a number in the same order.
    fn boosted(&self, row: Row) -> u32 {
        let matching = self.boosts.iter().filter(|boost| self.catalog.matches(&boost.filter, row));
        // The bits of positive numbers are in the order of the numbers.
        matching.map(|boost| boost.factor).product::<f32>().to_bits()
    }

    fn choose_among_all(&self, group: Group, candidate: &mut Candidate) {
        let eligible = || self.catalog.rows_of_group(group).iter().copied().filter(|row| self.eligible.contains(*row));
        match self.any_variant {
            None => {}
            Some(AnyVariant::Boosted) if self.boosts.is_empty() => {}
            Some(AnyVariant::Boosted) => {
                let rank = |row: Row| (self.catalog.is_offered(row), self.boosted(row));
                let chosen =
                    eligible().fold(candidate.row, |best, row| if rank(row) > rank(best) { row } else { best });
                candidate.row = chosen;
            }
            Some(AnyVariant::ByFields(order)) => {
                let mut rows: Vec<Row> = eligible().collect();
                rows.sort_unstable();
                let first = self.catalog.select_by(order, rows.into_iter(), Part { count: 1, ..Part::default() }).rows;
                candidate.row = first.first().map_or(candidate.row, |(row, _)| *row);
            }
        }
    }
}
