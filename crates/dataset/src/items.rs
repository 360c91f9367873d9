//! Reads and writes `items.parquet`, which has one row for each item.
use super::{
    DatasetError,
    columns::{self, Columns, list_texts, optional},
};
use arrow_array::{
    Array, ArrayRef, Float64Array, Int64Array, ListArray, StringArray,
    builder::{ListBuilder, StringBuilder},
};
use arrow_schema::{DataType, Field, Schema};
use lodestone_catalog::{Availability, FieldSet, Item, ItemField, limits};
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use std::{
    fs::{self, File},
    path::Path,
    sync::Arc,
};

/// Writes the items in their order.
pub fn write_items(path: &Path, items: &[Item]) -> Result<(), DatasetError> {
    let texts = |of: &dyn Fn(&Item) -> String| -> ArrayRef {
        Arc::new(items.iter().map(|item| Some(of(item))).collect::<StringArray>())
    };
    let integers =
        |of: &dyn Fn(&Item) -> Option<i64>| -> ArrayRef { Arc::new(items.iter().map(of).collect::<Int64Array>()) };
    let numbers =
        |of: &dyn Fn(&Item) -> Option<f64>| -> ArrayRef { Arc::new(items.iter().map(of).collect::<Float64Array>()) };
    let names_of = |fields: FieldSet| fields.iter().map(|field| field.name().into_owned()).collect::<Vec<String>>();
    let lists = |of: &dyn Fn(&Item) -> Vec<String>| -> ArrayRef {
        let mut builder = ListBuilder::new(StringBuilder::new());
        for item in items {
            for text in of(item) {
                builder.values().append_value(text);
            }
            builder.append(true);
        }
        Arc::new(builder.finish())
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("item_id", texts(&|item| item.id.to_string())),
        ("group_id", texts(&|item| item.group_id.clone())),
        ("title", texts(&|item| item.title.clone())),
        ("description", texts(&|item| item.description.clone())),
        ("categories", lists(&|item| item.categories.clone())),
        ("brand", texts(&|item| item.brand.clone())),
        ("price_micros", integers(&|item| item.price.map(PriceMicros::micros))),
        ("original_price_micros", integers(&|item| item.original_price.map(PriceMicros::micros))),
        ("sale_price_micros", integers(&|item| item.sale_price.map(PriceMicros::micros))),
        ("sale_start_ms", integers(&|item| item.sale_start.map(|at| at.0))),
        ("sale_end_ms", integers(&|item| item.sale_end.map(|at| at.0))),
        ("cost_micros", integers(&|item| item.cost.map(PriceMicros::micros))),
        ("currency", texts(&|item| item.currency.clone())),
        ("stock_quantity", integers(&|item| item.stock_quantity.map(i64::from))),
        ("availability", texts(&|item| item.stated_availability.map_or("", Availability::name).to_owned())),
        ("tags", lists(&|item| item.tags.clone())),
        ("rating", numbers(&|item| item.rating)),
        ("rating_count", integers(&|item| item.rating_count.map(i64::from))),
        ("url", texts(&|item| item.url.clone())),
        ("image_url", texts(&|item| item.image_url.clone())),
        ("attributes", texts(&|item| serde_json::to_string(&item.attributes).unwrap_or_default())),
        ("created_ms", integers(&|item| item.created_at.map(|at| at.0))),
        ("values_ms", integers(&|item| item.values_at.map(|at| at.0))),
        ("absent_fields", lists(&|item| names_of(item.absent_fields))),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), array.data_type() != &DataType::Utf8))
        .collect();
    // Bundles have this file too, which another account may read than the one that trained them.
    let columns = columns.into_iter().map(|(_, array)| array).collect();
    columns::write_to(path, |path| File::create(path), Schema::new(fields), columns)
}

/// Returns the number of items without reading them.
pub(super) fn count_items(path: &Path) -> Result<u64, DatasetError> {
    columns::count(path)
}

/// Reads the items in file order, on all threads of the current rayon pool.
pub fn read_items(path: &Path) -> Result<Vec<Item>, DatasetError> {
    let content = fs::read(path).map_err(|source| DatasetError::Io { path: path.to_owned(), source })?;
    parse_items(path, content)
}

/// Does the same with the content of a file that was read. `path` is that of errors.
pub fn parse_items(path: &Path, content: Vec<u8>) -> Result<Vec<Item>, DatasetError> {
    columns::read_in_parallel(path, content.into(), read_batch)
}

fn read_batch(columns: &Columns, items: &mut Vec<Item>) -> Result<(), DatasetError> {
    let (ids, titles, descriptions) =
        (columns.texts("item_id")?, columns.texts("title")?, columns.texts("description")?);
    let groups = columns.texts("group_id")?;
    let (categories, brands, tags) = (columns.lists("categories")?, columns.texts("brand")?, columns.lists("tags")?);
    let (prices, currencies) = (columns.integers("price_micros")?, columns.texts("currency")?);
    let originals = columns.integers("original_price_micros")?;
    let (ratings, rating_counts) = (columns.numbers("rating")?, columns.integers("rating_count")?);
    let (urls, images) = (columns.texts("url")?, columns.texts("image_url")?);
    let (sale_prices, costs) = (columns.integers("sale_price_micros")?, columns.integers("cost_micros")?);
    let (sale_starts, sale_ends) = (columns.integers("sale_start_ms")?, columns.integers("sale_end_ms")?);
    let (stocks, availabilities) = (columns.integers("stock_quantity")?, columns.texts("availability")?);
    let (created, values) = (columns.integers("created_ms")?, columns.integers("values_ms")?);
    let mut absent = AbsentFields::of(columns.lists("absent_fields")?);
    let attributes = columns.texts("attributes")?;
    for row in 0..columns.len() {
        let id = ItemId::parse(optional(ids, row).unwrap_or_default())
            .map_err(|error| columns.bad(row, "item_id", error.to_string()))?;
        let price = |column: &'static str, prices: &Int64Array| match (!prices.is_null(row)).then(|| prices.value(row))
        {
            None => Ok(None),
            Some(micros) => match PriceMicros::new(micros) {
                None => Err(columns.bad(row, column, format!("{micros} is not between 0 and {}", PriceMicros::MAX))),
                price => Ok(price),
            },
        };
        let stock = (!stocks.is_null(row)).then(|| stocks.value(row));
        items.push(Item {
            id,
            group_id: group_id(columns, row, optional(groups, row).unwrap_or_default())?,
            title: optional(titles, row).unwrap_or_default().to_owned(),
            description: optional(descriptions, row).unwrap_or_default().to_owned(),
            categories: list_texts(categories, row).map(str::to_owned).collect(),
            brand: optional(brands, row).unwrap_or_default().to_owned(),
            price: price("price_micros", prices)?,
            original_price: price("original_price_micros", originals)?,
            sale_price: price("sale_price_micros", sale_prices)?,
            sale_start: (!sale_starts.is_null(row)).then(|| UnixMillis(sale_starts.value(row))),
            sale_end: (!sale_ends.is_null(row)).then(|| UnixMillis(sale_ends.value(row))),
            cost: price("cost_micros", costs)?,
            stated_availability: availability(columns, row, optional(availabilities, row).unwrap_or_default())?,
            rating: rating(columns, row, (!ratings.is_null(row)).then(|| ratings.value(row)))?,
            rating_count: match (!rating_counts.is_null(row)).then(|| rating_counts.value(row)) {
                None => None,
                Some(count) => Some(u32::try_from(count).map_err(|_| {
                    columns.bad(row, "rating_count", format!("{count} is not between 0 and {}", u32::MAX))
                })?),
            },
            url: optional(urls, row).unwrap_or_default().to_owned(),
            image_url: optional(images, row).unwrap_or_default().to_owned(),
            currency: optional(currencies, row).unwrap_or_default().to_owned(),
            stock_quantity: match stock {
                None => None,
                // A shop that sells more than it has counts below 0.
                Some(pieces) => Some(
                    u32::try_from(pieces.max(0))
                        .map_err(|_| columns.bad(row, "stock_quantity", format!("{pieces} is above {}", u32::MAX)))?,
                ),
            },
            tags: list_texts(tags, row).map(str::to_owned).collect(),
            attributes: serde_json::from_str(optional(attributes, row).unwrap_or("{}"))
                .map_err(|error| columns.bad(row, "attributes", error.to_string()))?,
            created_at: (!created.is_null(row)).then(|| UnixMillis(created.value(row))),
            values_at: (!values.is_null(row)).then(|| UnixMillis(values.value(row))),
            offers: Vec::new(),
            absent_fields: absent.row(columns, row)?,
        });
    }
    Ok(())
}

/// Returns the id of a group, which is empty or like that of an item.
fn group_id(columns: &Columns, row: usize, id: &str) -> Result<String, DatasetError> {
    if !id.is_empty() {
        ItemId::parse(id).map_err(|error| columns.bad(row, "group_id", error.to_string()))?;
    }
    Ok(id.to_owned())
}

fn availability(columns: &Columns, row: usize, name: &str) -> Result<Option<Availability>, DatasetError> {
    if name.is_empty() {
        return Ok(None);
    }
    let unknown = || columns.bad(row, "availability", format!("`{name}` is unknown"));
    Availability::parse(name).map(Some).ok_or_else(unknown)
}

/// The column of the fields that a file does not have. Most rows have those of the row before.
struct AbsentFields<'c> {
    lists: &'c ListArray,
    names: Vec<&'c str>,
    fields: FieldSet,
}

impl<'c> AbsentFields<'c> {
    fn of(lists: &'c ListArray) -> Self {
        Self { lists, names: Vec::new(), fields: FieldSet::default() }
    }

    fn row(&mut self, columns: &Columns, row: usize) -> Result<FieldSet, DatasetError> {
        if !list_texts(self.lists, row).eq(self.names.iter().copied()) {
            self.names = list_texts(self.lists, row).collect();
            self.fields = FieldSet::default();
            for name in &self.names {
                let field = ItemField::parse(name)
                    .map_err(|error| columns.bad(row, "absent_fields", format!("`{name}` {error}")))?;
                self.fields.insert(&field);
            }
        }
        Ok(self.fields)
    }
}

fn rating(columns: &Columns, row: usize, rating: Option<f64>) -> Result<Option<f64>, DatasetError> {
    match rating {
        Some(rating) if !(0.0..=limits::RATING).contains(&rating) => {
            Err(columns.bad(row, "rating", format!("{rating} is not between 0 and {}", limits::RATING)))
        }
        rating => Ok(rating),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_catalog::{AttributeValue, GeoPoint};

    #[test]
    fn items_are_read_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("items.parquet");
        let mut item = Item::titled(ItemId::parse("a").unwrap(), "陶瓷杯 mug");
        item.group_id = "mugs".into();
        item.categories = vec!["Home > Mugs".into(), "Gifts".into()];
        item.price = PriceMicros::new(2_950_000);
        item.stock_quantity = Some(0);
        item.original_price = PriceMicros::new(3_950_000);
        (item.sale_price, item.cost) = (PriceMicros::new(1), PriceMicros::new(0));
        (item.sale_start, item.sale_end) = (Some(UnixMillis(7)), Some(UnixMillis(8)));
        item.stated_availability = Some(Availability::Backorder);
        (item.rating, item.rating_count) = (Some(4.7), Some(12));
        (item.url, item.image_url) = ("https://shop.test/mug".into(), "/mug.webp".into());
        item.attributes.insert("size".into(), AttributeValue::Text("M".into()));
        item.attributes.insert("vegan".into(), AttributeValue::Flag(true));
        item.attributes.insert("released".into(), AttributeValue::time(UnixMillis(-9)));
        item.attributes
            .insert("location".into(), AttributeValue::GeoPoint(GeoPoint { latitude: 52.5, longitude: 13.4 }));
        item.attributes.insert("watts".into(), AttributeValue::Number(-7.5));
        item.attributes.insert("colours".into(), AttributeValue::Texts(vec!["red".into(), "blue".into()]));
        item.created_at = Some(UnixMillis(5));
        item.values_at = Some(UnixMillis(6));
        item.absent_fields.insert(&ItemField::StockQuantity);
        let mut other = Item::titled(ItemId::parse("c").unwrap(), "of another file");
        other.absent_fields.insert(&ItemField::StockQuantity);
        let again = Item { id: ItemId::parse("d").unwrap(), ..other.clone() };
        other.absent_fields.insert(&ItemField::Tags);
        let items = vec![item, Item::titled(ItemId::parse("b").unwrap(), "plain"), other, again];
        write_items(&path, &items).unwrap();
        assert_eq!(read_items(&path).unwrap(), items);
        assert_eq!(count_items(&path).unwrap(), 4);
    }

    #[test]
    fn the_items_of_several_row_groups_are_read_in_their_order_and_errors_name_the_row() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("items.parquet");
        let mut items: Vec<Item> = (0..70_000)
            .map(|n| Item {
                tags: vec![format!("t{n}"); n % 3],
                ..Item::titled(ItemId::parse(&format!("i{n}")).unwrap(), "title")
            })
            .collect();
        write_items(&path, &items).unwrap();
        assert_eq!(read_items(&path).unwrap(), items);
        items[69_000].rating = Some(limits::RATING + 1.0);
        write_items(&path, &items).unwrap();
        let error = read_items(&path).unwrap_err();
        assert!(matches!(&error, DatasetError::Value { row: 69_001, column: "rating", .. }), "{error}");
    }

    #[test]
    fn attributes_are_of_one_kind() {
        let value = |json: &str| serde_json::from_str::<AttributeValue>(json).map_err(|error| error.to_string());
        assert_eq!(value("7"), Ok(AttributeValue::Number(7.0)));
        assert_eq!(value("-7"), Ok(AttributeValue::Number(-7.0)));
        for json in ["null", "[1]", "{}", r#"{"time_ms": 1, "latitude": 1}"#, r#"{"latitude": 1}"#, r#"{"x": 1}"#] {
            assert!(value(json).is_err(), "{json}");
        }
    }

    #[test]
    fn unreadable_missing_and_empty_files_have_different_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("items.parquet");
        std::fs::write(&path, b"item_id,title\n").unwrap();
        assert!(matches!(read_items(&path), Err(DatasetError::Parquet { .. })));
        assert!(matches!(read_items(&directory.path().join("none")), Err(DatasetError::Io { .. })));
        write_items(&path, &[]).unwrap();
        assert!(matches!(read_items(&path), Err(DatasetError::Empty { .. })));
    }
}
