//! Writes of items.
use crate::support::events::START;
use lodestone_catalog::{
    AttributeValue, Item, ItemChange, ItemField, ItemWrite, Offer, OfferField, OfferKey, WriteTime, WrittenFields,
};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_engine::{Engine, EngineError, WriteReport};
use lodestone_events::Change;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

/// Returns the read mask of all fields of an item.
pub(crate) fn all_fields() -> prost_types::FieldMask {
    prost_types::FieldMask { paths: vec!["*".to_owned()] }
}

/// Returns a write of all fields of an item, received now.
pub(crate) fn write(item: Item) -> ItemWrite {
    ItemWrite::of_all(item, WriteTime::Received(UnixMillis::now()))
}

/// Returns the change of the log that writes all fields of an item.
pub(crate) fn upsert(item: Item) -> Change {
    Change::Item(ItemChange::Write(Box::new(write(item))))
}

/// Returns a random change of an item: of all fields, of some, or its deletion, with times in any order. `number` tells
/// the changes apart.
pub(crate) fn random_item_change(id: ItemId, number: usize, random: &mut StdRng) -> Change {
    let at = UnixMillis(START + random.random_range(0..UnixMillis::DAY));
    let time = if random.random_bool(0.7) { WriteTime::Stated(at) } else { WriteTime::Received(at) };
    let size = random.random_bool(0.7).then(|| ("size".to_owned(), AttributeValue::Number(number as f64)));
    let key = OfferKey { place_id: "zurich".into(), ..OfferKey::default() };
    let offer = Offer { stock_quantity: Some(number as u32), ..Offer::new(key.clone()) };
    let item = Item {
        stock_quantity: Some(number as u32),
        offers: if random.random_bool(0.7) { vec![offer] } else { Vec::new() },
        attributes: size.into_iter().collect(),
        ..Item::titled(id.clone(), &format!("title {number}"))
    };
    Change::Item(match random.random_range(0..6) {
        0 => ItemChange::Delete { id, time },
        1 => ItemChange::Write(Box::new(ItemWrite::of_all(item, time))),
        _ => {
            let names = ["title", "stock_quantity", "attributes", "attributes.size", "offers"];
            let mut fields: Vec<ItemField> = names.iter().map(|name| ItemField::parse(name).unwrap()).collect();
            fields.push(ItemField::Offer(key, OfferField::StockQuantity));
            let written = fields.choose_multiple(random, 2).cloned().collect();
            ItemChange::Write(Box::new(ItemWrite { item, fields: WrittenFields::Some(written), time }))
        }
    })
}

/// Writes all fields of items.
pub(crate) async fn upsert_items(engine: &Engine, items: Vec<Item>) -> Result<WriteReport, EngineError> {
    engine.write_items(items.into_iter().map(write).collect()).await
}
