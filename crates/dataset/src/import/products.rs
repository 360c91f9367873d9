//! Reads a file of products.
use super::{
    ImportError, ValueError,
    cells::LIST_SEPARATOR,
    mapping::{Mapping, ProductColumns},
    report::{ImportReport, Reason},
    rows::{Row, Rows},
    times::{TimeError, Times},
};
use ahash::AHashSet;
use lodestone_catalog::{AttributeValue, Item, limits};
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use std::path::Path;

/// The columns in the order of [`ProductColumns::all`]; the attributes follow.
#[derive(Debug, Clone, Copy)]
enum Field {
    Id,
    Title,
    Description,
    Brand,
    Categories,
    Tags,
    Price,
    Stock,
    Created,
    FirstAttribute,
}

/// Reads the products, with the texts of their attributes.
struct ProductReader<'a> {
    mapping: &'a Mapping,
    columns: &'a ProductColumns,
    times: &'a Times,
    has_typed_times: bool,
    seen: AHashSet<ItemId>,
    products: Vec<(Item, Vec<String>)>,
}

/// Reads the file. Returns the products in the order of the file.
pub(super) fn read(
    mapping: &Mapping,
    columns: &ProductColumns,
    times: &Times,
    path: &Path,
    report: &mut ImportReport,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Item>, ImportError> {
    let mut rows = Rows::open(path, &columns.all())?;
    let has_typed_times = rows.is_time(Field::Created as usize);
    let mut reader =
        ProductReader { mapping, columns, times, has_typed_times, seen: AHashSet::new(), products: Vec::new() };
    while let Some(row) = rows.next()? {
        report.product_row_count += 1;
        let line = row.line;
        if let Err(reason) = reader.take(&row).map_err(|error| error.at(path, line))? {
            report.drop_product(reason, line, &row.values.join(" | "));
        }
        if line % 4096 == 0 {
            let (done, total) = rows.position();
            progress(done, total);
        }
    }
    if report.product_row_count == 0 {
        return Err(ImportError::Empty { path: path.to_owned() });
    }
    if reader.products.is_empty() {
        let rows = report.product_row_count;
        return Err(ImportError::NothingLeft { path: path.to_owned(), rows, report: Box::new(report.clone()) });
    }
    Ok(with_attributes(columns, reader.products))
}

impl ProductReader<'_> {
    fn take(&mut self, row: &Row) -> Result<Result<(), Reason>, ValueError> {
        let text = |field: Field| row.values[field as usize].as_str();
        let Ok(id) = ItemId::parse(super::id_text(text(Field::Id), &self.mapping.clean)) else {
            return Ok(Err(Reason::NoItem));
        };
        if self.seen.contains(&id) {
            return Ok(Err(Reason::SameProduct));
        }
        let columns = self.columns;
        let limited = |column: &str, text: &str, max: usize| match text.chars().count() {
            count if count > max => {
                let problem = format!("too long: it has {count} characters; the limit is {max}");
                Err(ValueError::new(column, text, &problem))
            }
            _ => Ok(text.split_whitespace().collect::<Vec<_>>().join(" ")),
        };
        let title = limited(&columns.title, text(Field::Title), limits::TITLE_CHARS)?;
        if title.is_empty() {
            return Ok(Err(Reason::NoTitle));
        }
        self.seen.insert(id.clone());
        limited(&columns.description, text(Field::Description), limits::DESCRIPTION_CHARS)?;
        let list = |column: &str, field: Field, separator: &str, default: &str, count_max, chars_max| {
            let separator = if separator.is_empty() { default } else { separator };
            let entries = match text(field).contains(LIST_SEPARATOR) {
                true => text(field).split(LIST_SEPARATOR).collect::<Vec<_>>(),
                false => text(field).split(separator).collect(),
            };
            let entries = entries.into_iter().map(str::trim).filter(|entry| !entry.is_empty());
            let entries: Vec<String> =
                entries.map(|entry| limited(column, entry, chars_max)).collect::<Result<_, _>>()?;
            if entries.len() > count_max {
                let problem = format!("too long: it has {} entries; the limit is {count_max}", entries.len());
                return Err(ValueError::new(column, text(field), &problem));
            }
            Ok(entries)
        };
        let item = Item {
            description: text(Field::Description).to_owned(),
            brand: limited(&columns.brand, text(Field::Brand), limits::NAME_CHARS)?,
            categories: list(
                &columns.categories,
                Field::Categories,
                &columns.category_separator,
                ">",
                limits::CATEGORY_LEVELS,
                limits::NAME_CHARS,
            )?,
            tags: list(&columns.tags, Field::Tags, &columns.tag_separator, ",", limits::TAGS, limits::TAG_CHARS)?,
            price: price(&columns.price, text(Field::Price))?,
            currency: self.mapping.constants.currency.clone(),
            stock_quantity: super::number(&columns.stock, text(Field::Stock))?.map(pieces),
            created_at: self.created(text(Field::Created))?,
            ..Item::titled(id, &title)
        };
        let attributes = &row.values[Field::FirstAttribute as usize..];
        for ((_, column), value) in columns.attributes.iter().zip(attributes) {
            limited(column, value, limits::TEXT_CHARS)?;
        }
        self.products.push((item, attributes.to_vec()));
        Ok(Ok(()))
    }

    fn created(&self, text: &str) -> Result<Option<UnixMillis>, ValueError> {
        if text.is_empty() {
            return Ok(None);
        }
        let parsed = if self.has_typed_times { self.times.parse_iso(text) } else { self.times.parse(text) };
        parsed.map(Some).map_err(|error| {
            let problem = match &error {
                TimeError::Format(problem) => problem,
                TimeError::Range => "outside the range of the calendar",
            };
            ValueError::new(&self.columns.created, text, problem)
        })
    }
}

fn price(column: &str, text: &str) -> Result<Option<PriceMicros>, ValueError> {
    let Some(price) = super::number(column, text)? else { return Ok(None) };
    // The conversion saturates outside the range of prices.
    match PriceMicros::new((price * 1e6).round() as i64) {
        Some(price) => Ok(Some(price)),
        None => Err(ValueError::new(column, text, "not a price from 0 to 10^9")),
    }
}

/// A part of a piece, such as half a kilogram, is in stock; less than nothing is sold out.
fn pieces(stock: f64) -> u32 {
    stock.ceil().clamp(0.0, limits::STOCK as f64) as u32
}

/// Sets the attributes. All values of one attribute have the same type: numbers or flags if all its texts are such.
fn with_attributes(columns: &ProductColumns, products: Vec<(Item, Vec<String>)>) -> Vec<Item> {
    let names: Vec<&String> = columns.attributes.keys().collect();
    let parsers: Vec<fn(&str) -> Option<AttributeValue>> = (0..names.len())
        .map(|index| {
            let texts = || products.iter().map(|(_, texts)| texts[index].as_str()).filter(|text| !text.is_empty());
            let all = |parse: fn(&str) -> Option<AttributeValue>| texts().all(|text| parse(text).is_some());
            [flag as fn(&str) -> Option<AttributeValue>, number].into_iter().find(|parse| all(*parse)).unwrap_or(words)
        })
        .collect();
    let finish = |(mut item, texts): (Item, Vec<String>)| {
        for ((name, parse), text) in names.iter().zip(&parsers).zip(&texts).filter(|(_, text)| !text.is_empty()) {
            item.attributes.extend(parse(text).map(|value| ((*name).clone(), value)));
        }
        item
    };
    products.into_iter().map(finish).collect()
}

fn flag(text: &str) -> Option<AttributeValue> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(AttributeValue::Flag(true)),
        "false" => Some(AttributeValue::Flag(false)),
        _ => None,
    }
}

/// A number without leading zeros, which codes have.
fn number(text: &str) -> Option<AttributeValue> {
    let digits = text.trim_start_matches('-');
    let is_code = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && !is_code)?;
    Some(AttributeValue::Number(number))
}

fn words(text: &str) -> Option<AttributeValue> {
    Some(AttributeValue::Text(text.replace(LIST_SEPARATOR, ", ")))
}
