//! The catalogue: items, their rows and interned keys, and the filter language.
#![forbid(unsafe_code)]
mod counts;
mod filter;
mod groups;
mod item;
mod keys;
mod offers;
mod order;
mod prepared;
mod snapshot;
mod views;
mod write;

pub use counts::{AttributeKindCount, ValueCounts};
pub use filter::{
    AttributeCondition, Distance, Field, Filter, FilterError, FilterValue, Operator, attribute_name, has_word_prefix,
    is_word_boundary, path_normal,
};
pub use groups::{Group, SeenGroups};
pub use item::{
    AttributeKind, AttributeTime, AttributeValue, Availability, GeoPoint, Item, Pricing, category_levels,
    category_path, is_url, limits,
};
pub use keys::ItemKeys;
pub use offers::{Offer, OfferField, OfferKey};
pub use order::{
    ORDER_KEYS_MAX, OrderBy, OrderByError, Part, Position, Selected, SortText, SortValue, StoredValue, TextValue,
    select,
};
pub use prepared::{PreparedField, PreparedValue};
pub use snapshot::{Catalog, ItemList, ItemVectors};
pub use write::{
    FieldSet, ItemChange, ItemField, ItemState, ItemWrite, ReadMask, UnknownItemField, WriteEffect, WriteTime,
    WrittenFields,
};
