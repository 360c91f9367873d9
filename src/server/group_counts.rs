//! The limit of the variants of a group.
use super::violations::Violations;
use lodestone_catalog::{ItemField, ItemWrite, WrittenFields, limits};
use lodestone_core::ids::ItemId;
use lodestone_engine::Engine;
use std::{collections::HashMap, fmt::Display};

/// The variants of groups after the writes of a request.
#[derive(Default)]
pub(super) struct GroupCounts {
    /// By group: its number of variants.
    counts: HashMap<String, usize>,
    /// The group of each item that joined one. Empty: it has none.
    groups: HashMap<ItemId, String>,
}

impl GroupCounts {
    /// Adds a violation, and returns false, if the group that a write sets, which the request has at `path`, would have too
    /// many variants: products do not have so many, but a feed whose column of groups is wrong does.
    pub(super) fn check(
        &mut self,
        violations: &mut Violations,
        path: &dyn Display,
        write: &ItemWrite,
        engine: &Engine,
    ) -> bool {
        let (id, group) = (&write.item.id, &write.item.group_id);
        let sets_group = match &write.fields {
            WrittenFields::All => true,
            WrittenFields::Some(fields) => fields.contains(&ItemField::GroupId),
        };
        if !sets_group || group.is_empty() {
            return true;
        }
        let group_now = || engine.get_item(id).map(|item| item.group_id.clone()).unwrap_or_default();
        let known = self.groups.entry(id.clone()).or_insert_with(group_now);
        if known == group {
            return true;
        }
        let count = self.counts.entry(group.clone()).or_insert_with(|| engine.variant_count(group));
        if *count >= limits::VARIANTS {
            let limit = limits::VARIANTS;
            let group = super::convert::shortened(group);
            let problem = format!("is `{group}`, which would have {} variants; the limit is {limit}", *count + 1);
            violations.add_beyond(format_args!("{path}.group_id"), problem, limit);
            return false;
        }
        *count += 1;
        known.clone_from(group);
        true
    }
}
