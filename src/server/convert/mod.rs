//! Converts between the messages of the API and the types of the engine. Requests are validated completely, and all
//! violations are returned at once.
mod answers;
mod consistency;
mod events;
mod filters;
mod items;
mod models;
mod requests;
mod rules;
mod viewer;

use super::violations::Violations;
pub(crate) use answers::{
    Envelope, item_to_proto, notice, rank_response, recommend_response, score_parts, search_response, suggest_response,
};
pub(crate) use consistency::{LogPosition, consistency_token};
pub(crate) use events::event;
pub(crate) use filters::{FilterForms, filter};
pub(crate) use items::{
    Clock, ItemsRequest, attribute_kinds, check_attribute_kinds, inventory, item, item_update, item_with_only,
    list_items, list_size, merged_prices, update_mask,
};
use lodestone_core::units::UnixMillis;
pub(crate) use models::{bundle_name, bundle_share, bundle_to_proto, reason};
use prost_types::Timestamp;
pub(crate) use requests::{check_features, rank, recommend, search, suggest};
pub(crate) use rules::{
    add_problems, attribute_declaration, attribute_declaration_to_proto, incentive_campaign,
    incentive_campaign_to_proto, ranking_request, rule, rule_to_proto, serving_config, serving_config_to_proto,
    stored_serving_config, synonym_set, synonym_set_to_proto,
};
use std::fmt::Display;

/// Greatest number of characters of a query or another short text.
const TEXT_CHARS_MAX: usize = 1000;

/// Validates an ISO 4217 code, which may be empty.
pub(crate) fn currency(violations: &mut Violations, field: impl Display, code: &str) -> String {
    if !code.is_empty() {
        violations.keep(field, lodestone_core::currency::check(code));
    }
    code.to_owned()
}

pub(crate) fn timestamp(at: UnixMillis) -> Timestamp {
    Timestamp { seconds: at.0.div_euclid(1000), nanos: (at.0.rem_euclid(1000) * 1_000_000) as i32 }
}

/// Truncates a value for an error message to 40 characters.
pub(crate) fn shortened(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
