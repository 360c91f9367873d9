//! How often items are chosen by platform, region and language: the counts of the training behind declared features of
//! kind `context_affinity`.
use super::ContextField;
use ahash::AHashMap;
use lodestone_core::{
    ids::{ItemKey, Row},
    viewer::ViewerContext,
};
use prost::Message;

/// Added to the observed and to the expected number of users, so that few users are weak evidence.
const PRIOR_USERS: f64 = 2.0;

/// Counts of users by item and value of a field, as bundles keep them.
#[derive(Clone, PartialEq, Message)]
pub struct ContextCounts {
    #[prost(message, repeated, tag = "1")]
    fields: Vec<FieldCounts>,
}

#[derive(Clone, PartialEq, Message)]
struct FieldCounts {
    /// The name of the field in declarations.
    #[prost(string, tag = "1")]
    field: String,
    /// In the order of the values.
    #[prost(message, repeated, tag = "2")]
    values: Vec<ValueCounts>,
}

/// The users with one value.
#[derive(Clone, PartialEq, Message)]
struct ValueCounts {
    #[prost(string, tag = "1")]
    value: String,
    /// The items that they chose, in ascending order.
    #[prost(uint32, repeated, tag = "2")]
    rows: Vec<u32>,
    /// Number of users of each of `rows`, at least 1.
    #[prost(uint32, repeated, tag = "3")]
    user_counts: Vec<u32>,
}

impl ContextCounts {
    /// Adds the counts of a field: number of users by value and row.
    pub fn add(&mut self, field: ContextField, users: AHashMap<(String, Row), u32>) {
        let mut cells: Vec<((String, Row), u32)> = users.into_iter().collect();
        cells.sort_unstable();
        let values = cells.chunk_by(|((a, _), _), ((b, _), _)| a == b).map(|cells| ValueCounts {
            value: cells[0].0.0.clone(),
            rows: cells.iter().map(|((_, row), _)| row.0).collect(),
            user_counts: cells.iter().map(|(_, users)| *users).collect(),
        });
        self.fields.push(FieldCounts { field: field.name().to_owned(), values: values.collect() });
    }

    /// Decodes the output of [`Message::encode_to_vec`] of a bundle of `row_count` items whose features need `fields`.
    pub fn from_bytes(bytes: &[u8], row_count: usize, fields: &[ContextField]) -> Result<Self, String> {
        let counts = Self::decode(bytes).map_err(|error| error.to_string())?;
        let found: Vec<&str> = counts.fields.iter().map(|counts| counts.field.as_str()).collect();
        let expected: Vec<&str> = fields.iter().map(|field| field.name()).collect();
        if found != expected {
            return Err(format!("has counts of {found:?}, and the declared features need {expected:?}"));
        }
        for value in counts.fields.iter().flat_map(|counts| &counts.values) {
            let is_in_order = value.rows.is_sorted_by(|a, b| a < b);
            let is_within = value.rows.last().is_none_or(|row| (*row as usize) < row_count);
            let is_complete = value.rows.len() == value.user_counts.len() && !value.user_counts.contains(&0);
            if !(is_in_order && is_within && is_complete) {
                return Err(format!(
                    "the counts of {:?} are not those of distinct rows of {row_count} items in ascending order",
                    value.value
                ));
            }
        }
        Ok(counts)
    }

    /// Returns the counts with the key of each row.
    pub fn by_key(self, keys: &[ItemKey]) -> KeyedContextCounts {
        let field = |counts: FieldCounts| {
            let mut field = KeyedField { name: counts.field, ..KeyedField::default() };
            for value in counts.values {
                let mut cells: Vec<(ItemKey, u32)> = value
                    .rows
                    .iter()
                    .zip(&value.user_counts)
                    .map(|(row, users)| (keys[*row as usize], *users))
                    .collect();
                cells.sort_unstable();
                for (key, users) in &cells {
                    let index = key.0 as usize;
                    if index >= field.user_counts.len() {
                        field.user_counts.resize(index + 1, 0);
                    }
                    field.user_counts[index] = field.user_counts[index].saturating_add(*users);
                    field.total += u64::from(*users);
                }
                let total = cells.iter().map(|(_, users)| u64::from(*users)).sum();
                field.values.insert(value.value, KeyedValue { total, users_by_key: cells });
            }
            field
        };
        KeyedContextCounts { fields: self.fields.into_iter().map(field).collect() }
    }
}

/// [`ContextCounts`] of a loaded bundle.
#[derive(Debug, Default)]
pub struct KeyedContextCounts {
    fields: Vec<KeyedField>,
}

#[derive(Debug, Default)]
struct KeyedField {
    name: String,
    /// By key: the sum over the values.
    user_counts: Vec<u32>,
    /// The sum over the items.
    total: u64,
    values: AHashMap<String, KeyedValue>,
}

#[derive(Debug)]
struct KeyedValue {
    /// The sum over the items.
    total: u64,
    /// In the order of the keys.
    users_by_key: Vec<(ItemKey, u32)>,
}

impl KeyedContextCounts {
    /// Returns the affinity of a viewer to items by a field; none if the viewer's value is unknown, or unknown to the
    /// training.
    pub(super) fn affinity(&self, field: ContextField, viewer: &ViewerContext) -> Option<ContextAffinity<'_>> {
        let value = field.value_of(viewer)?;
        let counts = self.fields.iter().find(|counts| counts.name == field.name())?;
        let KeyedValue { total, users_by_key } = counts.values.get(value)?;
        let share = *total as f64 / counts.total as f64;
        Some(ContextAffinity { user_counts: &counts.user_counts, users_by_key, share })
    }
}

/// How much more the users with the viewer's value choose an item than other users do.
#[derive(Debug, Clone, Copy)]
pub(super) struct ContextAffinity<'a> {
    user_counts: &'a [u32],
    users_by_key: &'a [(ItemKey, u32)],
    /// The share of the value in the users of all items, above 0.
    share: f64,
}

impl ContextAffinity<'_> {
    /// Returns ln((observed + 2) / (expected + 2)): the number of the item's users with the value, and the number that
    /// the item would have if the value had its share of all items. 0 for an item without users.
    pub(super) fn of(&self, key: ItemKey) -> f32 {
        let expected = self.user_counts.get(key.0 as usize).map_or(0.0, |users| f64::from(*users) * self.share);
        let found = self.users_by_key.binary_search_by_key(&key, |(of, _)| *of);
        let observed = found.map_or(0.0, |index| f64::from(self.users_by_key[index].1));
        ((observed + PRIOR_USERS) / (expected + PRIOR_USERS)).ln() as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::viewer::Platform;

    fn counts() -> ContextCounts {
        let mut counts = ContextCounts::default();
        let cell = |value: &str, row: u32, users: u32| ((value.to_owned(), Row(row)), users);
        let users = [cell("ios", 0, 20), cell("web", 1, 20), cell("ios", 2, 1), cell("web", 2, 1)];
        counts.add(ContextField::Platform, users.into_iter().collect());
        counts
    }

    #[test]
    fn an_item_of_one_platform_has_a_high_affinity_on_it_and_a_low_one_elsewhere() {
        let fields = [ContextField::Platform];
        let read = ContextCounts::from_bytes(&counts().encode_to_vec(), 3, &fields).unwrap();
        assert_eq!(read, counts());
        let keyed = read.by_key(&[7, 3, 5].map(ItemKey));
        let viewer = |platform| ViewerContext { platform: Some(platform), ..ViewerContext::default() };
        let ios = keyed.affinity(ContextField::Platform, &viewer(Platform::Ios)).unwrap();
        let expected = [22.0f64 / 12.0, 2.0 / 12.0, 1.0, 1.0].map(|ratio| ratio.ln() as f32);
        assert_eq!([7, 3, 5, 99].map(|key| ios.of(ItemKey(key))), expected);
        assert!(keyed.affinity(ContextField::Platform, &viewer(Platform::Store)).is_none(), "no user had it");
        assert!(keyed.affinity(ContextField::Platform, &ViewerContext::default()).is_none());
        assert!(keyed.affinity(ContextField::Region, &viewer(Platform::Ios)).is_none());
    }

    #[test]
    fn wrong_counts_are_refused_with_the_reason() {
        let bytes = counts().encode_to_vec();
        let refused = |bytes: &[u8], rows, fields: &[ContextField]| {
            ContextCounts::from_bytes(bytes, rows, fields).unwrap_err().to_string()
        };
        assert!(refused(&bytes, 2, &[ContextField::Platform]).contains("distinct rows of 2 items"));
        assert!(refused(&bytes, 3, &[]).contains("has counts of [\"platform\"]"));
        assert!(refused(&bytes[..bytes.len() - 1], 3, &[ContextField::Platform]).contains("decode"));
        let mut unordered = counts();
        unordered.fields[0].values[0].rows.reverse();
        assert!(refused(&unordered.encode_to_vec(), 3, &[ContextField::Platform]).contains("ios"));
    }
}
