//! The warning about prices without a currency.
use super::violations::{Violation, Violations};
use lodestone_catalog::{ItemField, ItemWrite, WrittenFields};
use lodestone_engine::Engine;
use std::{cell::OnceCell, fmt::Display};

/// The currencies of the catalogue's prices, for the writes of one request.
#[derive(Default)]
pub(super) struct PriceCurrencies(OnceCell<Vec<String>>);

impl PriceCurrencies {
    /// Adds a notice if a write, which the request has at `path`, leaves its item with a price and without a currency,
    /// although other prices have one: the item then has no price for requests that choose a currency.
    pub(super) fn check(&self, violations: &mut Violations, path: &dyn Display, write: &ItemWrite, engine: &Engine) {
        let sets = |field: &ItemField| match &write.fields {
            WrittenFields::All => true,
            WrittenFields::Some(fields) => fields.contains(field),
        };
        let has_price = sets(&ItemField::Price) && write.item.price.is_some() && write.item.currency.is_empty();
        let is_known = || {
            let known = engine.get_item(&write.item.id);
            !sets(&ItemField::Currency) && known.is_some_and(|item| !item.currency.is_empty())
        };
        if !has_price || is_known() {
            return;
        }
        let currencies = self.0.get_or_init(|| engine.price_currencies());
        if !currencies.is_empty() {
            let problem = format!(
                "is empty, and other prices are in {}; requests that choose a currency find no price of this item",
                currencies.join(" and ")
            );
            violations.notices.push(Violation::new(format_args!("{path}.currency_code"), problem));
        }
    }
}
