//! Reads a file of products.
use super::{
    Formats, ImportError,
    cells::LIST_SEPARATOR,
    mapping::{Mapping, ProductColumns},
    numbers::{self, Cell},
    report::{ImportReport, Reason, RowError},
    rows::{Row, Rows},
};
use ahash::AHashSet;
use lodestone_catalog::{AttributeValue, Item, is_url, limits};
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
    OriginalPrice,
    Currency,
    Stock,
    Rating,
    RatingCount,
    Url,
    ImageUrl,
    Created,
    FirstAttribute,
}

/// Reads the products, with the cells of their attributes.
struct ProductReader<'a> {
    mapping: &'a Mapping,
    columns: &'a ProductColumns,
    formats: Formats,
    has_typed_times: bool,
    seen: AHashSet<ItemId>,
    products: Vec<(Item, Vec<AttributeCell>)>,
}

/// The value of an attribute whose type is not known yet.
struct AttributeCell {
    text: String,
    number: Option<f64>,
}

/// Reads the file. Returns the products in the order of the file.
pub(super) fn read(
    mapping: &Mapping,
    columns: &ProductColumns,
    path: &Path,
    report: &mut ImportReport,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Item>, ImportError> {
    let mut rows = Rows::open(path, &columns.all())?;
    let has_typed_times = rows.is_time(Field::Created as usize);
    let formats = Formats::new(mapping)?;
    let mut reader =
        ProductReader { mapping, columns, formats, has_typed_times, seen: AHashSet::new(), products: Vec::new() };
    while let Some(row) = rows.next()? {
        report.product_row_count += 1;
        let line = row.line;
        if let Err(error) = reader.take(&row) {
            report.drop_product(error, &row).map_err(|value| value.at(path, line))?;
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
    reader.formats.finish(path)?;
    Ok(with_attributes(columns, reader.products))
}

impl ProductReader<'_> {
    fn take(&mut self, row: &Row) -> Result<(), RowError> {
        let text = |field: Field| row.values[field as usize].as_str();
        let Ok(id) = ItemId::parse(super::id_text(text(Field::Id), &self.mapping.clean)) else {
            return Err(Reason::NoItem.into());
        };
        if self.seen.contains(&id) {
            return Err(Reason::SameProduct.into());
        }
        let columns = self.columns;
        let limited = |column: &str, text: &str, max: usize| match text.chars().count() {
            count if count > max => {
                let problem = format!("too long: it has {count} characters; the limit is {max}");
                Err(RowError::dropped(Reason::TooLong, column, text, &problem))
            }
            _ => Ok(text.split_whitespace().collect::<Vec<_>>().join(" ")),
        };
        let title = limited(&columns.title, text(Field::Title), limits::TITLE_CHARS)?;
        if title.is_empty() {
            return Err(Reason::NoTitle.into());
        }
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
                return Err(RowError::dropped(Reason::TooLong, column, text(field), &problem));
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
            price: self.price(row, Field::Price, &columns.price)?,
            original_price: self.price(row, Field::OriginalPrice, &columns.original_price)?,
            rating: self.rating(row)?,
            rating_count: self.number(row, Field::RatingCount, &columns.rating_count)?.map(rating_count),
            url: url(&columns.url, text(Field::Url))?,
            image_url: url(&columns.image_url, text(Field::ImageUrl))?,
            currency: match text(Field::Currency).trim() {
                "" => self.mapping.constants.currency.clone(),
                code => currency(&columns.currency, code)?,
            },
            stock_quantity: self.number(row, Field::Stock, &columns.stock)?.map(pieces),
            created_at: self.created(text(Field::Created))?,
            ..Item::titled(id, &title)
        };
        let first = Field::FirstAttribute as usize;
        let mut attributes = Vec::with_capacity(columns.attributes.len());
        for ((column, text), is_number) in
            columns.attributes.values().zip(&row.values[first..]).zip(&row.numbers[first..])
        {
            limited(column, text, limits::TEXT_CHARS)?;
            let number = self.formats.numbers.attribute(text, *is_number);
            attributes.push(AttributeCell { text: text.clone(), number });
        }
        self.seen.insert(item.id.clone());
        self.products.push((item, attributes));
        Ok(())
    }

    fn number(&mut self, row: &Row, field: Field, column: &str) -> Result<Option<f64>, RowError> {
        let (text, is_number) = (row.values[field as usize].as_str(), row.numbers[field as usize]);
        self.formats.numbers.parse(Cell { column, text, line: row.line, is_number })
    }

    fn price(&mut self, row: &Row, field: Field, column: &str) -> Result<Option<PriceMicros>, RowError> {
        let Some(price) = self.number(row, field, column)? else { return Ok(None) };
        numbers::price(price, column, &row.values[field as usize], &self.mapping.clean).map(Some)
    }

    fn rating(&mut self, row: &Row) -> Result<Option<f64>, RowError> {
        let column = &self.columns.rating;
        match self.number(row, Field::Rating, column)? {
            Some(rating) if !(0.0..=limits::RATING).contains(&rating) => {
                let problem = format!("not within 0 and {}", limits::RATING);
                Err(RowError::dropped(Reason::Rating, column, &row.values[Field::Rating as usize], &problem))
            }
            rating => Ok(rating),
        }
    }

    fn created(&mut self, text: &str) -> Result<Option<UnixMillis>, RowError> {
        match text.is_empty() {
            true => Ok(None),
            false => self.formats.times.read(&self.columns.created, text, self.has_typed_times).map(Some),
        }
    }
}

fn currency(column: &str, code: &str) -> Result<String, RowError> {
    match code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        true => Ok(code.to_ascii_uppercase()),
        false => Err(RowError::dropped(Reason::Currency, column, code, "not an ISO 4217 code of three letters")),
    }
}

fn rating_count(count: f64) -> u32 {
    count.round().clamp(0.0, limits::RATING_COUNT.into()) as u32
}

fn url(column: &str, text: &str) -> Result<String, RowError> {
    let text = text.trim();
    if text.chars().count() > limits::URL_CHARS {
        let problem = format!("too long: the limit is {} characters", limits::URL_CHARS);
        return Err(RowError::dropped(Reason::TooLong, column, text, &problem));
    }
    match text.is_empty() || is_url(text) {
        true => Ok(text.to_owned()),
        false => Err(RowError::dropped(Reason::Url, column, text, "neither a URL nor a path that begins with one /")),
    }
}

/// A part of a piece, such as half a kilogram, is in stock; less than nothing is sold out.
fn pieces(stock: f64) -> u32 {
    stock.ceil().clamp(0.0, limits::STOCK as f64) as u32
}

/// Sets the attributes. All values of one attribute have the same type: numbers or flags if all its texts are such.
fn with_attributes(columns: &ProductColumns, products: Vec<(Item, Vec<AttributeCell>)>) -> Vec<Item> {
    type Parse = fn(&AttributeCell) -> Option<AttributeValue>;
    let names: Vec<&String> = columns.attributes.keys().collect();
    let parsers: Vec<Parse> = (0..names.len())
        .map(|index| {
            let cells = || products.iter().map(|(_, cells)| &cells[index]).filter(|cell| !cell.text.is_empty());
            let all = |parse: Parse| cells().all(|cell| parse(cell).is_some());
            [flag as Parse, number].into_iter().find(|parse| all(*parse)).unwrap_or(words)
        })
        .collect();
    let finish = |(mut item, cells): (Item, Vec<AttributeCell>)| {
        for ((name, parse), cell) in names.iter().zip(&parsers).zip(&cells).filter(|(_, cell)| !cell.text.is_empty()) {
            item.attributes.extend(parse(cell).map(|value| ((*name).clone(), value)));
        }
        item
    };
    products.into_iter().map(finish).collect()
}

fn flag(cell: &AttributeCell) -> Option<AttributeValue> {
    match cell.text.to_ascii_lowercase().as_str() {
        "true" => Some(AttributeValue::Flag(true)),
        "false" => Some(AttributeValue::Flag(false)),
        _ => None,
    }
}

/// A number without leading zeros, which codes have.
fn number(cell: &AttributeCell) -> Option<AttributeValue> {
    let digits = cell.text.trim_start_matches('-');
    let is_code = digits.strip_prefix('0').is_some_and(|rest| rest.starts_with(|c: char| c != '.' && c != ','));
    cell.number.filter(|_| !is_code).map(AttributeValue::Number)
}

fn words(cell: &AttributeCell) -> Option<AttributeValue> {
    Some(AttributeValue::Text(cell.text.replace(LIST_SEPARATOR, ", ")))
}
