//! Between the wire and the domain. From the wire: everything is checked, and everything wrong is told at once.
mod answers;
mod events;
mod items;
mod models;
mod requests;

pub(super) use answers::{
    Envelope, item_to_proto, rank_response, recommend_response, search_response, suggest_response,
};
pub(super) use events::event;
pub(super) use items::item;
pub(super) use models::{bundle_name, bundle_share, bundle_to_proto, reason};
pub(super) use requests::{rank, recommend, search, suggest};

use super::violations::Violations;
use std::fmt::Display;

/// Characters of a query or another short text at most.
const TEXT_CHARS_MAX: usize = 1000;

/// An ISO 4217 code or nothing.
fn currency(violations: &mut Violations, field: impl Display, code: &str) -> String {
    if !code.is_empty() && (code.len() != 3 || !code.bytes().all(|byte| byte.is_ascii_uppercase())) {
        violations.add(field, format!("`{}` is no ISO 4217 code of 3 capital letters", shortened(code)));
    }
    code.to_owned()
}

/// Enough of a value to be recognised.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
