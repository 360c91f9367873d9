//! Offers: prices and stock of an item at a place, in a region, for a group of customers, or in a currency.
use crate::{Item, PreparedField, Pricing, item::Sale, snapshot::CatalogRow};
use lodestone_core::units::{PriceMicros, UnixMillis};
use std::{borrow::Cow, cmp::Reverse, sync::Arc};

/// Whom an offer is for, or which offers apply to a viewer. An empty field of an offer applies to every viewer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OfferKey {
    /// A store or warehouse.
    pub place_id: Box<str>,
    /// An ISO 3166-1 code of 2 capital letters.
    pub region_code: Box<str>,
    pub customer_group: Box<str>,
    /// An ISO 4217 code. Of an offer: that of its prices; empty for the currency of the item.
    pub currency: Box<str>,
}

/// Values of an item that apply to some viewers instead of the item's own. At least one is present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Not empty.
    pub key: OfferKey,
    pub price: Option<PriceMicros>,
    /// Applies with the price of the same offer.
    pub original_price: Option<PriceMicros>,
    /// None if the key has a currency.
    pub stock_quantity: Option<u32>,
    /// What a user pays from `sale_start`, inclusive, to `sale_end`, exclusive, instead of the price of the same offer.
    pub sale_price: Option<PriceMicros>,
    /// None: since ever.
    pub sale_start: Option<UnixMillis>,
    /// None: forever.
    pub sale_end: Option<UnixMillis>,
}

/// A value of an offer, which a write sets on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OfferField {
    Price,
    OriginalPrice,
    StockQuantity,
    SalePrice,
    SaleStart,
    SaleEnd,
}

impl OfferField {
    pub const ALL: [Self; 6] =
        [Self::Price, Self::OriginalPrice, Self::StockQuantity, Self::SalePrice, Self::SaleStart, Self::SaleEnd];

    /// Returns the name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Price => "price_micros",
            Self::OriginalPrice => "original_price_micros",
            Self::StockQuantity => "stock_quantity",
            Self::SalePrice => "sale_price_micros",
            Self::SaleStart => "sale_start_time",
            Self::SaleEnd => "sale_end_time",
        }
    }
}

impl OfferKey {
    /// Returns true if no field is set: of a viewer, to whom no offer applies.
    pub fn is_empty(&self) -> bool {
        [&self.place_id, &self.region_code, &self.customer_group, &self.currency].iter().all(|text| text.is_empty())
    }

    /// Returns true if an offer with this key may apply to a viewer, whatever the currency of the item.
    pub(crate) fn applies_to(&self, viewer: &Self) -> bool {
        let is_for = |of: &str, wanted: &str| of.is_empty() || of == wanted;
        is_for(&self.place_id, &viewer.place_id)
            && is_for(&self.region_code, &viewer.region_code)
            && is_for(&self.customer_group, &viewer.customer_group)
            && match (&*self.currency, &*viewer.currency) {
                ("", _) => true,
                // What is only another currency is for those who choose it.
                (_, "") => self.specificity() > 0,
                (of, wanted) => of == wanted,
            }
    }

    /// Returns a number that orders the offers that apply to a viewer, except those that differ in the currency: those
    /// for a place precede those for a group of customers, and these those for a region.
    fn specificity(&self) -> u8 {
        u8::from(!self.place_id.is_empty()) << 2
            | u8::from(!self.customer_group.is_empty()) << 1
            | u8::from(!self.region_code.is_empty())
    }

    /// Returns the rank of the prices of an offer among those that apply to a viewer; the greatest rank applies. With a
    /// chosen currency, an offer that names it wins; without one, an offer without a currency, then the first code in
    /// alphabetical order.
    pub(crate) fn price_rank(&self, viewer: &Self) -> (u8, bool, Reverse<&str>) {
        let is_named = !self.currency.is_empty();
        (self.specificity(), is_named != viewer.currency.is_empty(), Reverse(&*self.currency))
    }

    /// Returns the rank of the stock of an offer.
    pub(crate) fn stock_rank(&self) -> u8 {
        self.specificity()
    }
}

impl Offer {
    /// Returns an offer without values.
    pub fn new(key: OfferKey) -> Self {
        Self {
            key,
            price: None,
            original_price: None,
            stock_quantity: None,
            sale_price: None,
            sale_start: None,
            sale_end: None,
        }
    }

    pub fn has(&self, field: OfferField) -> bool {
        match field {
            OfferField::Price => self.price.is_some(),
            OfferField::OriginalPrice => self.original_price.is_some(),
            OfferField::StockQuantity => self.stock_quantity.is_some(),
            OfferField::SalePrice => self.sale_price.is_some(),
            OfferField::SaleStart => self.sale_start.is_some(),
            OfferField::SaleEnd => self.sale_end.is_some(),
        }
    }

    fn copy(&self, field: OfferField, to: &mut Self) {
        match field {
            OfferField::Price => to.price = self.price,
            OfferField::OriginalPrice => to.original_price = self.original_price,
            OfferField::StockQuantity => to.stock_quantity = self.stock_quantity,
            OfferField::SalePrice => to.sale_price = self.sale_price,
            OfferField::SaleStart => to.sale_start = self.sale_start,
            OfferField::SaleEnd => to.sale_end = self.sale_end,
        }
    }

    pub(crate) fn sale(&self) -> Sale {
        Sale { price: self.sale_price, start: self.sale_start, end: self.sale_end }
    }
}

impl Item {
    /// Copies a value of an offer to another item, or removes it there.
    pub(crate) fn copy_offer_value(&self, key: &OfferKey, field: OfferField, to: &mut Self) {
        let position = |offers: &[Offer]| offers.binary_search_by(|offer| offer.key.cmp(key));
        let from = position(&self.offers).ok().map(|at| &self.offers[at]).filter(|offer| offer.has(field));
        match (from, position(&to.offers)) {
            (Some(from), Ok(at)) => from.copy(field, &mut to.offers[at]),
            (Some(from), Err(at)) => {
                let mut offer = Offer::new(key.clone());
                from.copy(field, &mut offer);
                to.offers.insert(at, offer);
            }
            (None, Ok(at)) => {
                Offer::new(key.clone()).copy(field, &mut to.offers[at]);
                if !OfferField::ALL.iter().any(|field| to.offers[at].has(*field)) {
                    to.offers.remove(at);
                }
            }
            (None, Err(_)) => {}
        }
    }

    /// Returns the item as a viewer sees it: with the prices and the stock that apply, and without offers. A price that
    /// comes from an offer has the sale of that offer, and no cost unless both are in one currency. The item's stated
    /// availability and the stock that applies mean together what they mean in an item without offers.
    pub fn for_viewer(&self, viewer: &OfferKey) -> Self {
        let applicable = || self.offers.iter().filter(|offer| offer.key.applies_to(viewer));
        let is_wanted = |currency: &str| viewer.currency.is_empty() || *viewer.currency == *currency;
        let currency_of = |offer: &Offer| match &*offer.key.currency {
            "" => self.currency.clone(),
            code => code.to_owned(),
        };
        let priced = applicable()
            .filter(|offer| offer.price.is_some() && is_wanted(&currency_of(offer)))
            .max_by_key(|offer| offer.key.price_rank(viewer));
        let stocked = applicable()
            .filter(|offer| offer.stock_quantity.is_some() && offer.key.currency.is_empty())
            .max_by_key(|offer| offer.key.stock_rank());
        let mut seen = Self {
            stock_quantity: stocked.map_or(self.stock_quantity, |offer| offer.stock_quantity),
            offers: Vec::new(),
            ..self.clone()
        };
        if priced.is_some() || !is_wanted(&self.currency) {
            seen.price = priced.and_then(|offer| offer.price);
            seen.original_price = priced.and_then(|offer| offer.original_price);
            let sale = priced.map(Offer::sale).unwrap_or_default();
            (seen.sale_price, seen.sale_start, seen.sale_end) = (sale.price, sale.start, sale.end);
            seen.currency = priced.map(currency_of).unwrap_or_default();
            seen.cost = self.cost.filter(|_| seen.price.is_some() && seen.currency == self.currency);
        }
        seen
    }
}

impl CatalogRow {
    /// Returns the row as a viewer sees it at a time.
    pub(crate) fn for_viewer(&self, viewer: &OfferKey, prepared: &[PreparedField], at: UnixMillis) -> Self {
        let item = Arc::new(self.item.for_viewer(viewer));
        let values = prepared.iter().zip(&*self.prepared).map(|(field, known)| match field.reads_offers() {
            true => field.of(&item, at),
            false => known.clone(),
        });
        Self { log_price: item.log_price_at(at), prepared: values.collect(), item, ..self.clone() }
    }
}

/// The values of the offers of one key in a block of items, ascending by item.
#[derive(Debug, Clone, Default)]
pub(crate) struct OfferRows(Vec<OfferRow>);

/// An offer of an item of a block, in few bytes.
#[derive(Debug, Clone)]
pub(crate) struct OfferRow {
    pub(crate) at: u16,
    stock_quantity: u32,
    price: i64,
    original_price: i64,
    /// Boxed, because few offers have one.
    sale: Option<Box<Sale>>,
}

/// No price.
const NO_PRICE: i64 = -1;
/// No stock.
const NO_STOCK: u32 = u32::MAX;

impl OfferRow {
    fn new(at: usize, offer: &Offer) -> Self {
        let micros = |price: Option<PriceMicros>| price.map_or(NO_PRICE, PriceMicros::micros);
        Self {
            at: at as u16,
            stock_quantity: offer.stock_quantity.unwrap_or(NO_STOCK),
            price: micros(offer.price),
            original_price: micros(offer.original_price),
            sale: offer.sale_price.map(|_| Box::new(offer.sale())),
        }
    }

    pub(crate) fn price(&self) -> Option<PriceMicros> {
        PriceMicros::new(self.price)
    }

    /// Returns what a user pays at a time.
    pub(crate) fn pricing_at(&self, at: UnixMillis) -> Pricing {
        let regular = Pricing { price: self.price(), original_price: PriceMicros::new(self.original_price) };
        self.sale.as_ref().map_or(regular, |sale| sale.pricing_at(at, regular))
    }

    pub(crate) fn stock_quantity(&self) -> Option<u32> {
        (self.stock_quantity != NO_STOCK).then_some(self.stock_quantity)
    }
}

impl OfferRows {
    pub(crate) fn set(&mut self, at: usize, offer: &Offer) {
        let row = OfferRow::new(at, offer);
        match self.position(at) {
            Ok(index) => self.0[index] = row,
            Err(index) => self.0.insert(index, row),
        }
    }

    pub(crate) fn remove(&mut self, at: usize) {
        if let Ok(index) = self.position(at) {
            self.0.remove(index);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &OfferRow> {
        self.0.iter()
    }

    fn position(&self, at: usize) -> Result<usize, usize> {
        self.0.binary_search_by_key(&at, |row| usize::from(row.at))
    }
}

/// Returns the text of a key in names of fields, such as `place_id=zurich,currency_code=CHF`.
pub(crate) fn key_text(key: &OfferKey) -> String {
    let parts: [(&str, &str); 4] = [
        ("place_id", &key.place_id),
        ("region_code", &key.region_code),
        ("customer_group", &key.customer_group),
        ("currency_code", &key.currency),
    ];
    let set = parts.into_iter().filter(|(_, value)| !value.is_empty());
    set.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Returns the name of a value of an offer, such as `offers[place_id=zurich].stock_quantity`.
pub(crate) fn field_name(key: &OfferKey, field: OfferField) -> Cow<'static, str> {
    format!("offers[{}].{}", key_text(key), field.name()).into()
}
