//! The checks of written items that depend on the catalogue and on the earlier writes of the request.
use super::{convert, violations::Violations};
use lodestone_catalog::{Item, ItemField, ItemWrite, WrittenFields, limits};
use lodestone_core::ids::ItemId;
use lodestone_engine::Engine;
use std::{collections::HashMap, fmt::Display, sync::Arc};

/// Maximum number of attributes of an item whose value or removal has a time of its own.
const ATTRIBUTE_TIMES_MAX: usize = 1000;

/// Checks the writes of one request in their order. Each is compared with the item that the writes before it lead to.
pub(super) struct ItemChecks<'e> {
    engine: &'e Engine,
    /// Items after the writes so far. Fields that no check reads may lack a write.
    items: HashMap<ItemId, CheckedItem>,
    /// By group: its number of variants after the writes so far.
    variant_counts: HashMap<String, usize>,
}

#[derive(Clone)]
struct CheckedItem {
    /// Whether the current catalogue has the item.
    exists: bool,
    /// Its content. If it does not exist, the values that changes set for other catalogues.
    item: Arc<Item>,
    /// Upper bound of the number of its attributes that have a value or a time in its changes.
    attribute_count: usize,
}

impl<'e> ItemChecks<'e> {
    pub(super) fn new(engine: &'e Engine) -> Self {
        Self { engine, items: HashMap::new(), variant_counts: HashMap::new() }
    }

    /// Returns true if the item exists after the writes so far.
    pub(super) fn exists(&self, id: &ItemId) -> bool {
        self.items.get(id).map_or_else(|| self.engine.get_item(id).is_some(), |known| known.exists)
    }

    /// Adds violations, and returns false, if a write, which the request has at `path`, leads to an item that is not valid
    /// or beyond a limit. Later writes are checked against the item that an admitted one leads to.
    pub(super) fn admit(&mut self, violations: &mut Violations, path: &dyn Display, write: &ItemWrite) -> bool {
        if !sets_checked_field(write) {
            return true;
        }
        let Some(write) = self.engine.without_stale(write) else { return true };
        let id = &write.item.id;
        let before = self.items.get(id).cloned().unwrap_or_else(|| CheckedItem::read(self.engine, id));
        let after = before.after(&write);
        let violation_count = violations.found.len();
        if after.exists {
            convert::merged_prices(violations, path, &write, &after.item);
        }
        if violations.found.len() > violation_count {
            return false;
        }
        if let Some((field, problem)) = self.exceeded_limit(&before, &after) {
            violations.add(format_args!("{path}.{field}"), problem);
            return false;
        }
        self.items.insert(id.clone(), after);
        true
    }

    /// Returns a field by which a write exceeds a limit, and the description of the violation. Counts the variants of groups
    /// otherwise.
    fn exceeded_limit(&mut self, before: &CheckedItem, after: &CheckedItem) -> Option<(&'static str, String)> {
        // A write that adds nothing is valid also beyond a limit.
        let (count, limit) = (after.item.attributes.len(), limits::ATTRIBUTES);
        if after.exists && count > limit.max(before.item.attributes.len()) {
            return Some(("attributes", format!("the item would have {count} entries; the limit is {limit}")));
        }
        let (count, limit) = (after.attribute_count, ATTRIBUTE_TIMES_MAX);
        if count > limit.max(before.attribute_count) {
            let problem = format!(
                "{count} attributes of the item would have a value or a time; the limit is {limit}; write `attributes` \
                 as a whole or the item by UpsertItems, which forgets those of removed attributes"
            );
            return Some(("attributes", problem));
        }
        let (count, limit) = (after.item.offers.len(), limits::OFFERS);
        if count > limit.max(before.item.offers.len()) {
            let problem = format!("is new, and the item would have {count} offers; the limit is {limit}");
            return Some(("offer_key", problem));
        }
        let (left, joined, limit) = (before.group(), after.group(), limits::VARIANTS);
        if left != joined && !joined.is_empty() {
            let count = self.variant_count(joined);
            // Products do not have so many variants, but a feed whose column of groups is wrong does.
            if *count >= limit {
                let (group, count) = (convert::shortened(joined), *count + 1);
                let problem = format!("is `{group}`, which would have {count} variants; the limit is {limit}");
                return Some(("group_id", problem));
            }
            *count += 1;
        }
        if left != joined && !left.is_empty() {
            let count = self.variant_count(left);
            *count = count.saturating_sub(1);
        }
        None
    }

    fn variant_count(&mut self, group: &str) -> &mut usize {
        self.variant_counts.entry(group.to_owned()).or_insert_with(|| self.engine.variant_count(group))
    }
}

impl CheckedItem {
    fn read(engine: &Engine, id: &ItemId) -> Self {
        let content = engine.get_item(id);
        let (recorded, attribute_count) = engine.recorded_values(id);
        let exists = content.is_some();
        let item = content.or(recorded).unwrap_or_else(|| Arc::new(Item::titled(id.clone(), "")));
        Self { exists, item, attribute_count }
    }

    /// Returns the item after a write.
    fn after(&self, write: &ItemWrite) -> Self {
        let item = write.content(Some(&*self.item)).map_or_else(|| self.item.clone(), Arc::new);
        let attribute_count = match &write.fields {
            WrittenFields::Some(fields) => {
                let named = fields.iter().filter(|field| matches!(field, ItemField::Attribute(_))).count();
                // All attributes as a whole have one time.
                let is_whole = fields.contains(&ItemField::Attributes);
                named + if is_whole { item.attributes.len() } else { self.attribute_count }
            }
            WrittenFields::All => item.attributes.len(),
        };
        Self { exists: self.exists || write.fields == WrittenFields::All, item, attribute_count }
    }

    /// Returns the group of which the item is a variant; empty: none.
    fn group(&self) -> &str {
        if self.exists { &self.item.group_id } else { "" }
    }
}

/// Returns true if a check reads a field that the write sets. Most writes set the stock and the price of an item alone, and
/// cost no copy of it.
fn sets_checked_field(write: &ItemWrite) -> bool {
    let is_checked = |field: &ItemField| {
        use ItemField::{Attribute, Attributes, GroupId, Offer, Offers, SaleEnd, SaleStart};
        matches!(field, GroupId | SaleStart | SaleEnd | Attributes | Attribute(_) | Offers | Offer(..))
    };
    match &write.fields {
        WrittenFields::All => true,
        WrittenFields::Some(fields) => fields.iter().any(is_checked),
    }
}
