//! Reads a file of items.
use super::{
    Formats, ImportError, currency,
    mapping::{CategoryLists, Condition, ItemColumns, Mapping, attribute_name_of, availability_of},
    numbers::Cell,
    report::{ImportReport, Reason, RowError},
    rows::{LIST_SEPARATOR, NamedValue, Row, Rows, Selection, ValueKind},
    text::visible_text,
};
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::{
    AttributeKind, AttributeValue, Availability, FieldSet, GeoPoint, Item, ItemField, category_levels, category_path,
    is_url, limits,
};
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use std::{borrow::Cow, ops::Range, path::Path};

/// The columns in the order of [`ItemColumns::fields`]; the attributes and the auxiliary columns follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Title,
    Description,
    Brand,
    Categories,
    Tags,
    Price,
    SalePrice,
    SalePeriod,
    Cost,
    OriginalPrice,
    Currency,
    Stock,
    Availability,
    Rating,
    RatingCount,
    Url,
    ImageUrl,
    Created,
    GroupId,
    FirstAttribute,
}

/// Any value except an empty one, in a condition of the mapping.
const ANY: &str = "*";

/// The positions of the columns after the fields, see [`ItemColumns::auxiliary`].
struct Layout {
    pairs: Range<usize>,
    id_parts: Range<usize>,
    keep: Range<usize>,
    stock_not_counted: Range<usize>,
    backorder: Range<usize>,
    /// The positions of the patterns of attributes in [`Rows::found`].
    patterns: Range<usize>,
    /// The column by which rows of one product are recognised, and the columns that are filled down.
    fill: Option<(usize, Vec<usize>)>,
}

impl Layout {
    fn new(columns: &ItemColumns, selection: &Selection<'_>) -> Self {
        let mut end = Field::FirstAttribute as usize + columns.named_attributes().count();
        let mut next = |count: usize| {
            end += count;
            end - count..end
        };
        let pairs = next(2 * columns.attribute_pairs.len());
        let id_parts = next(columns.id_parts.len());
        let keep = next(columns.keep.len());
        let stock_not_counted = next(columns.stock_not_counted.len());
        let backorder = next(columns.backorder.len());
        let fill = columns.fill_down.as_ref().map(|fill| {
            let is_filled = |(_, column): &(usize, &super::mapping::Column<'_>)| {
                column.names.iter().any(|name| fill.columns.contains(name))
            };
            let filled = selection.columns.iter().enumerate().filter(is_filled).map(|(index, _)| index).collect();
            (next(1).start, filled)
        });
        let columns = selection.columns.len();
        let patterns = columns..columns + selection.wildcards.len();
        Self { pairs, id_parts, keep, stock_not_counted, backorder, patterns, fill }
    }
}

/// The value of an attribute whose type is not known yet.
struct AttributeCell {
    /// Index in [`Attributes::names`].
    attribute: usize,
    text: String,
    number: Option<f64>,
    /// The value, if the mapping declares the kind of the attribute.
    declared: Option<AttributeValue>,
}

/// An item whose attributes have no types yet.
struct ReadItem {
    item: Item,
    line: u64,
    attributes: Vec<AttributeCell>,
}

/// The names of all attributes: those that the mapping names, and then others in the order of their first occurrence.
#[derive(Default)]
struct Attributes {
    names: Vec<String>,
    /// The same.
    taken: AHashSet<String>,
    /// By the names in the file.
    indices: AHashMap<String, Result<usize, Reason>>,
}

impl Attributes {
    fn new<'a>(names: impl Iterator<Item = &'a String>) -> Self {
        let mut attributes = Self::default();
        names.for_each(|name| _ = attributes.index(name));
        attributes
    }

    /// Returns the index of the attribute with a name of the file. An error if the name has no character of a name, or
    /// if another name of the file is already the same.
    fn index(&mut self, of_file: &str) -> Result<usize, Reason> {
        let of_file = of_file.trim();
        if let Some(index) = self.indices.get(of_file) {
            return *index;
        }
        let index = match attribute_name_of(of_file) {
            None => Err(Reason::AttributeName),
            Some(name) if !self.taken.insert(name.clone()) => Err(Reason::AttributeNameTwice),
            Some(name) => {
                self.names.push(name);
                Ok(self.names.len() - 1)
            }
        };
        self.indices.insert(of_file.to_owned(), index);
        index
    }
}

/// Reads the items, with the cells of their attributes.
struct ItemReader<'a> {
    mapping: &'a Mapping,
    columns: &'a ItemColumns,
    layout: Layout,
    /// The time of the values.
    time: UnixMillis,
    formats: Formats,
    attributes: Attributes,
    /// The columns of attributes that are named one by one, which do not belong to patterns.
    named_columns: AHashSet<&'a str>,
    seen: AHashSet<ItemId>,
    items: Vec<ReadItem>,
    /// The values of the row before, if columns are filled down.
    above: Vec<String>,
}

/// Reads the file. Returns the items in the order of the file.
pub(super) fn read(
    mapping: &Mapping,
    path: &Path,
    time: UnixMillis,
    report: &mut ImportReport,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Item>, ImportError> {
    let Some(columns) = &mapping.items else {
        return Err(ImportError::MissingTable { path: path.to_owned(), table: "items" });
    };
    let attributes = columns.named_attributes().map(|(_, column)| column);
    let selection = Selection {
        columns: columns.fields().into_iter().chain(attributes).chain(columns.auxiliary()).collect(),
        wildcards: columns.wildcards(),
        format: &mapping.file,
    };
    let layout = Layout::new(columns, &selection);
    let mut rows = Rows::open(path, selection)?;
    let mut reader = ItemReader {
        mapping,
        columns,
        layout,
        time,
        formats: Formats::new(mapping)?,
        attributes: Attributes::new(columns.named_attributes().map(|(name, _)| name)),
        named_columns: columns.named_attributes().flat_map(|(_, column)| column.names).map(String::as_str).collect(),
        seen: AHashSet::new(),
        items: Vec::new(),
        above: Vec::new(),
    };
    while let Some(row) = rows.next()? {
        report.item_row_count += 1;
        let line = row.line;
        if let Err(error) = reader.take(&row, report) {
            report.drop_item(error, &row).map_err(|value| value.at(path, line))?;
        }
        if report.item_row_count.is_multiple_of(1024) {
            let (done, total) = rows.position();
            progress(done, total);
        }
    }
    if report.item_row_count == 0 {
        return Err(ImportError::Empty { path: path.to_owned() });
    }
    report.missing_columns.extend(rows.missing_columns()?);
    if reader.items.is_empty() {
        let rows = report.item_row_count;
        return Err(ImportError::NothingLeft { path: path.to_owned(), rows, report: Box::new(report.clone()) });
    }
    reader.formats.finish(path)?;
    check_groups(&reader.items, columns, path)?;
    let absent = absent_fields(columns, &reader.layout, rows.found());
    reader.items.iter_mut().for_each(|read| read.item.absent_fields = absent);
    let named_count = columns.named_attributes().count();
    Ok(with_attributes(&reader.attributes.names, named_count, reader.items, report))
}

/// Refuses a file with a group of more variants than a product has: its column of groups is one of something else, and a
/// search would show one item for all of them.
fn check_groups(items: &[ReadItem], columns: &ItemColumns, path: &Path) -> Result<(), ImportError> {
    let mut counts: AHashMap<&str, usize> = AHashMap::new();
    for ReadItem { item, .. } in items.iter().filter(|read| !read.item.group_id.is_empty()) {
        *counts.entry(&item.group_id).or_default() += 1;
    }
    let limit = limits::VARIANTS;
    let largest = counts.into_iter().max_by_key(|(group, count)| (*count, *group)).filter(|(_, count)| *count > limit);
    match largest {
        None => Ok(()),
        Some((group, count)) => {
            let (column, group) = (columns.group_id.text(), group.to_owned());
            Err(ImportError::LargeGroup { path: path.to_owned(), column, group, count, limit })
        }
    }
}

/// Returns the fields of items for which the file has no column.
fn absent_fields(columns: &ItemColumns, layout: &Layout, found: &[bool]) -> FieldSet {
    let has = |fields: &[Field]| fields.iter().any(|field| found[*field as usize]);
    let first = Field::FirstAttribute as usize;
    let named = first..first + columns.named_attributes().count();
    let has_attributes =
        [named, layout.pairs.clone(), layout.patterns.clone()].into_iter().any(|of| found[of].contains(&true));
    let mut absent = FieldSet::default();
    for (field, is_found) in [
        (ItemField::GroupId, has(&[Field::GroupId])),
        (ItemField::Description, has(&[Field::Description])),
        (ItemField::Categories, has(&[Field::Categories])),
        (ItemField::Brand, has(&[Field::Brand])),
        (ItemField::Price, has(&[Field::Price, Field::SalePrice])),
        (ItemField::OriginalPrice, has(&[Field::OriginalPrice, Field::SalePrice])),
        (ItemField::SalePrice, has(&[Field::SalePeriod])),
        (ItemField::SaleStart, has(&[Field::SalePeriod])),
        (ItemField::SaleEnd, has(&[Field::SalePeriod])),
        (ItemField::Cost, has(&[Field::Cost])),
        (
            ItemField::Currency,
            has(&[Field::Price, Field::SalePrice, Field::OriginalPrice, Field::Cost, Field::Currency]),
        ),
        (ItemField::StockQuantity, has(&[Field::Stock])),
        (ItemField::Availability, has(&[Field::Availability]) || found[layout.backorder.clone()].contains(&true)),
        (ItemField::Tags, has(&[Field::Tags])),
        (ItemField::Rating, has(&[Field::Rating])),
        (ItemField::RatingCount, has(&[Field::RatingCount])),
        (ItemField::Url, has(&[Field::Url])),
        (ItemField::ImageUrl, has(&[Field::ImageUrl])),
        (ItemField::Attributes, has_attributes),
        (ItemField::CreateTime, has(&[Field::Created])),
        (ItemField::Offers, false),
    ] {
        if !is_found {
            absent.insert(&field);
        }
    }
    absent
}

impl ItemReader<'_> {
    fn take(&mut self, row: &Row, report: &mut ImportReport) -> Result<(), RowError> {
        let Some((key, filled)) = &self.layout.fill else { return self.take_row(row, report) };
        let mut values = row.values.to_vec();
        if self.above.get(*key).is_some_and(|above| !above.is_empty() && *above == values[*key]) {
            for index in filled.iter().filter(|index| row.values[**index].is_empty()) {
                values[*index].clone_from(&self.above[*index]);
            }
        }
        self.above = values.clone();
        self.take_row(&Row { values: &values, ..*row }, report)
    }

    /// Keeps a row or returns the reason for not importing it.
    fn take_row(&mut self, row: &Row, report: &mut ImportReport) -> Result<(), RowError> {
        let text = |field: Field| text(row, field);
        let columns = self.columns;
        let mut keep = columns.keep.iter().zip(&row.values[self.layout.keep.clone()]);
        if keep.any(|(condition, value)| !holds(condition, value)) {
            return Err(Reason::NotKept.into());
        }
        let id = self.id(row)?;
        if self.seen.contains(&id) {
            return Err(Reason::SameItem.into());
        }
        let title = words(&columns.title.text(), text(Field::Title), limits::TITLE_CHARS)?;
        if title.is_empty() {
            return Err(Reason::NoTitle.into());
        }
        let tag_separator = &columns.tag_separator;
        let Prices { price, original_price, sale, cost, currency } = self.prices(row)?;
        let stock_quantity = self.stock(row)?;
        let item = Item {
            group_id: self.group_id(text(Field::GroupId))?,
            description: shown(&columns.description.text(), text(Field::Description), limits::DESCRIPTION_CHARS)?,
            brand: words(&columns.brand.text(), text(Field::Brand), limits::NAME_CHARS)?,
            categories: self.categories(&row.values[Field::Categories as usize])?,
            tags: List {
                column: &columns.tags.text(),
                separator: if tag_separator.is_empty() { "," } else { tag_separator },
                count_max: limits::TAGS,
                chars_max: limits::TAG_CHARS,
            }
            .parse(&row.values[Field::Tags as usize])?,
            price,
            original_price,
            sale_price: sale.map(|(sale, _)| sale),
            sale_start: sale.map(|(_, (start, _))| start),
            sale_end: sale.map(|(_, (_, end))| end),
            cost,
            rating: self.rating(row)?,
            rating_count: self.number(row, Field::RatingCount, &columns.rating_count.text())?.map(rating_count),
            url: url(&columns.url.text(), text(Field::Url))?,
            image_url: url(&columns.image_url.text(), text(Field::ImageUrl))?,
            currency,
            stock_quantity,
            stated_availability: self.availability(row)?,
            created_at: self.created(row)?,
            values_at: Some(self.time),
            ..Item::titled(id, &title)
        };
        let attributes = self.attributes(row, report)?;
        self.seen.insert(item.id.clone());
        self.items.push(ReadItem { item, line: row.line, attributes });
        Ok(())
    }

    fn id(&self, row: &Row) -> Result<ItemId, RowError> {
        let whole = text(row, Field::Id);
        super::check_id(&self.columns.id, whole)?;
        let parts = &row.values[self.layout.id_parts.clone()];
        let id = match (whole, parts.first()) {
            ("", Some(first)) if !first.is_empty() => {
                for (column, part) in self.columns.id_parts.iter().zip(parts) {
                    super::check_id(column, part)?;
                }
                let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
                ItemId::parse(&parts.join("/"))
            }
            _ => ItemId::parse(super::id_text(whole, &self.mapping.clean)),
        };
        id.map_err(|_| Reason::NoItem.into())
    }

    /// Returns the product of a variant.
    fn group_id(&self, text: &str) -> Result<String, RowError> {
        super::check_id(&self.columns.group_id, text)?;
        let text = super::id_text(text, &self.mapping.clean);
        match ItemId::parse(text) {
            _ if text.is_empty() => Ok(String::new()),
            Ok(_) => Ok(text.to_owned()),
            Err(error) => {
                let column = self.columns.group_id.text();
                Err(RowError::dropped(Reason::GroupId, &column, text, &format!("no id: it {error}")))
            }
        }
    }

    fn number(&mut self, row: &Row, field: Field, column: &str) -> Result<Option<f64>, RowError> {
        let (text, is_number) = (text(row, field), row.kinds[field as usize] == ValueKind::Number);
        self.formats.numbers.parse(Cell { column, text, line: row.line, is_number })
    }

    /// Returns a price, and the currency that its text names.
    fn price(
        &mut self,
        row: &Row,
        field: Field,
        column: &str,
    ) -> Result<(Option<PriceMicros>, Option<String>), RowError> {
        let is_number = row.kinds[field as usize] == ValueKind::Number;
        let cell = Cell { column, text: text(row, field), line: row.line, is_number };
        self.formats.price(cell, &self.mapping.clean)
    }

    /// Returns the paths of categories of a cell.
    fn categories(&self, text: &str) -> Result<Vec<String>, RowError> {
        let (columns, column) = (self.columns, self.columns.categories.text());
        let separator = if columns.category_separator.is_empty() { ">" } else { &columns.category_separator };
        let list = |separator, count_max| List { column: &column, separator, count_max, chars_max: limits::NAME_CHARS };
        let is_list = text.contains(LIST_SEPARATOR);
        let cells: Vec<&str> = match columns.category_lists {
            CategoryLists::Paths if is_list => text.split(LIST_SEPARATOR).collect(),
            _ => vec![text],
        };
        let mut paths: Vec<String> = Vec::new();
        for cell in cells {
            let levels = list(separator, limits::CATEGORY_LEVELS).parse(cell)?;
            let path = category_path(&levels.join(">"));
            if !path.is_empty() && !paths.contains(&path) {
                paths.push(path);
            }
        }
        let (count, deepest) = (paths.len(), paths.iter().map(|path| category_levels(path).count()).max());
        let (count_max, levels_max) = (limits::CATEGORY_PATHS, limits::CATEGORY_LEVELS);
        if count > count_max || deepest > Some(levels_max) {
            let problem = format!("too long: the limits are {count_max} paths and {levels_max} levels of each");
            return Err(RowError::dropped(Reason::TooLong, &column, text, &problem));
        }
        Ok(paths)
    }

    fn prices(&mut self, row: &Row) -> Result<Prices, RowError> {
        let columns = self.columns;
        let (price_column, text) = (columns.price.text(), |field: Field| text(row, field));
        let (regular, of_regular) = self.price(row, Field::Price, &price_column)?;
        let (sale, of_sale) = self.price(row, Field::SalePrice, &columns.sale_price.text())?;
        let (original, of_original) = self.price(row, Field::OriginalPrice, &columns.original_price.text())?;
        let (cost, of_cost) = self.price(row, Field::Cost, &columns.cost.text())?;
        let period = self.formats.sale_period(&columns.sale_period.text(), text(Field::SalePeriod))?;
        // A sale without a period is what a user pays.
        let undated = sale.filter(|_| period.is_none());
        let is_priced = regular.or(sale).or(original).or(cost).is_some();
        let stated = currency::stated(&columns.currency.text(), text(Field::Currency), is_priced)?;
        let named = [of_regular, of_sale, of_original, of_cost, stated].into_iter().flatten();
        let code = currency::only(named, &price_column, text(Field::Price))?;
        let code = code.unwrap_or_else(|| self.mapping.constants.currency.clone());
        let price = undated.or(regular);
        if let (Some(_), "") = (price.or(sale).or(original).or(cost), code.as_str()) {
            let sent = [Field::Price, Field::SalePrice, Field::OriginalPrice, Field::Cost].map(text);
            let sent = sent.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
            let problem = "a price without a currency; set constants.currency in the mapping, such as \"EUR\", or name \
                           the column with the currency as items.currency";
            return Err(match columns.currency.is_empty() {
                // No row can have a currency.
                true => RowError::Mapping(super::ValueError::new(&price_column, sent, problem)),
                false => RowError::dropped(Reason::NoCurrency, &price_column, sent, problem),
            });
        }
        let original = original.or(regular.filter(|_| undated.is_some()));
        Ok(Prices {
            price,
            original_price: original.filter(|original| price.is_some_and(|price| *original > price)),
            sale: sale.zip(period),
            cost,
            currency: code,
        })
    }

    fn stock(&mut self, row: &Row) -> Result<Option<u32>, RowError> {
        let columns = self.columns;
        let stock = self.number(row, Field::Stock, &columns.stock.text())?.map(pieces);
        let conditions = &row.values[self.layout.stock_not_counted.clone()];
        let is_counted = columns.stock_not_counted.iter().zip(conditions).all(|(any, value)| !holds(any, value));
        Ok(stock.filter(|_| is_counted))
    }

    fn availability(&self, row: &Row) -> Result<Option<Availability>, RowError> {
        let columns = self.columns;
        let text = text(row, Field::Availability);
        if !text.is_empty() {
            let unknown = || {
                let problem = "not an availability that is known";
                RowError::dropped(Reason::Availability, &columns.availability.text(), text, problem)
            };
            return availability_of(&columns.availability_values, text).map(Some).ok_or_else(unknown);
        }
        let mut conditions = columns.backorder.iter().zip(&row.values[self.layout.backorder.clone()]);
        Ok(conditions.any(|(condition, value)| holds(condition, value)).then_some(Availability::Backorder))
    }

    /// Returns a value of a declared kind; none for a text that is no such value.
    fn declared(&self, kind: AttributeKind, text: &str, number: Option<f64>) -> Option<AttributeValue> {
        match kind {
            AttributeKind::Text => Some(words_of(text)),
            AttributeKind::Number => number.map(AttributeValue::Number),
            AttributeKind::Flag => flag(text),
            AttributeKind::Time => self.formats.times.iso(text).map(AttributeValue::time),
            AttributeKind::GeoPoint => geo_point(text),
        }
    }

    fn rating(&mut self, row: &Row) -> Result<Option<f64>, RowError> {
        let column = self.columns.rating.text();
        match self.number(row, Field::Rating, &column)? {
            Some(rating) if !(0.0..=limits::RATING).contains(&rating) => {
                let problem = format!("not within 0 and {}", limits::RATING);
                Err(RowError::dropped(Reason::Rating, &column, text(row, Field::Rating), &problem))
            }
            rating => Ok(rating),
        }
    }

    fn created(&mut self, row: &Row) -> Result<Option<UnixMillis>, RowError> {
        let (text, kind) = (text(row, Field::Created), row.kinds[Field::Created as usize]);
        match text.is_empty() {
            true => Ok(None),
            false => self.formats.times.read(&self.columns.created.text(), text, kind).map(Some),
        }
    }

    /// Returns the attributes of a row: of one column each, of pairs of columns, and of patterns. Those that are too
    /// long are left out.
    fn attributes(&mut self, row: &Row, report: &mut ImportReport) -> Result<Vec<AttributeCell>, RowError> {
        let columns = self.columns;
        let first = Field::FirstAttribute as usize;
        let mut found: Vec<FoundAttribute<'_>> = Vec::new();
        for (index, (name, column)) in columns.named_attributes().enumerate() {
            let (text, kind) = (&row.values[first + index], row.kinds[first + index]);
            let column = column.names.join("` or `");
            found.push(FoundAttribute { column, name_column: None, name: name.into(), text, kind });
        }
        for (pair, values) in columns.attribute_pairs.iter().zip(row.values[self.layout.pairs.clone()].chunks(2)) {
            let (column, name_column) = (pair.value.text(), Some(pair.name.text()));
            let (name, text) = (values[0].to_lowercase().into(), values[1].as_str());
            found.push(FoundAttribute { column, name_column, name, text, kind: ValueKind::Text });
        }
        let of_patterns = row.attributes.iter().filter(|of| !self.named_columns.contains(of.column.as_str()));
        for NamedValue { column, name, text, kind } in of_patterns {
            let (column, name) = (column.clone(), name.into());
            found.push(FoundAttribute { column, name_column: None, name, text, kind: *kind });
        }
        let mut cells: Vec<AttributeCell> = Vec::with_capacity(found.len());
        // The cells of the row by their attributes.
        let mut of_row: AHashMap<usize, usize> = AHashMap::with_capacity(found.len());
        for FoundAttribute { column, name_column, name, text, kind } in found {
            if text.is_empty() {
                continue;
            }
            let is_number = kind == ValueKind::Number;
            let number = self.formats.numbers.attribute(text, is_number);
            let separator = attribute_name_of(&name).and_then(|name| columns.attribute_separators.get(&name));
            let list = List {
                column: &column,
                separator: separator.map_or("", String::as_str),
                count_max: limits::ATTRIBUTE_TEXTS,
                chars_max: limits::TEXT_CHARS,
            };
            let is_list = text.contains(LIST_SEPARATOR) || separator.is_some_and(|separator| text.contains(separator));
            let text = match is_list {
                true => list.parse(text).map(|texts| texts.join(&LIST_SEPARATOR.to_string())),
                false => shown(&column, text, limits::TEXT_CHARS),
            };
            let text = match text {
                Ok(text) if text.is_empty() => continue,
                Ok(text) => text,
                Err(RowError::Dropped { value, .. }) => {
                    let error = RowError::Dropped { reason: Reason::AttributeTooLong, value };
                    report.drop_attribute(error, row).map_err(RowError::Mapping)?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let named = match self.attributes.index(&name) {
                Ok(attribute) => match of_row.get(&attribute) {
                    Some(cell) if cells[*cell].text == text => continue,
                    Some(_) => Err(Reason::AttributeNameTwice),
                    None => Ok(attribute),
                },
                Err(reason) => Err(reason),
            };
            let attribute = match named {
                Ok(attribute) => attribute,
                Err(reason) => {
                    let problem = match attribute_name_of(&name) {
                        Some(name) => format!("the attribute `{name}`, which another one of the file already is"),
                        None => "no name of an attribute: it has none of A-Z a-z 0-9".to_owned(),
                    };
                    let error = RowError::dropped(reason, name_column.as_ref().unwrap_or(&column), &name, &problem);
                    report.drop_attribute(error, row).map_err(RowError::Mapping)?;
                    continue;
                }
            };
            let declared = match columns.attribute_kinds.get(&self.attributes.names[attribute]) {
                None => None,
                Some(kind) => match self.declared(*kind, &text, number) {
                    Some(value) => Some(value),
                    None => {
                        let problem = format!("not a {}, which items.attribute_kinds declares", kind.name());
                        let error = RowError::dropped(Reason::AttributeKind, &column, &text, &problem);
                        report.drop_attribute(error, row).map_err(RowError::Mapping)?;
                        continue;
                    }
                },
            };
            of_row.insert(attribute, cells.len());
            cells.push(AttributeCell { attribute, text, number, declared });
        }
        Ok(cells)
    }
}

/// An attribute of a row.
struct FoundAttribute<'r> {
    /// Of its value.
    column: String,
    /// Of its name, if that is a value of the file.
    name_column: Option<String>,
    /// As in the file.
    name: Cow<'r, str>,
    text: &'r str,
    kind: ValueKind,
}

/// Returns the value of a column; of a list, the first one.
fn text<'r>(row: &Row<'r>, field: Field) -> &'r str {
    first_of_list(&row.values[field as usize])
}

/// The prices of a row.
struct Prices {
    price: Option<PriceMicros>,
    original_price: Option<PriceMicros>,
    /// With its first moment and the first one after it.
    sale: Option<(PriceMicros, (UnixMillis, UnixMillis))>,
    cost: Option<PriceMicros>,
    /// Of all of them.
    currency: String,
}

/// Returns the location of a text such as `52.5, 13.4` or `POINT(13.4 52.5)`, whose longitude is first.
fn geo_point(text: &str) -> Option<AttributeValue> {
    let upper = text.trim().to_ascii_uppercase();
    let well_known = upper.strip_prefix("POINT").and_then(|rest| rest.trim().strip_prefix('(')?.strip_suffix(')'));
    let numbers = well_known.unwrap_or(&upper).replace(',', " ");
    let mut numbers = numbers.split_whitespace().map(str::parse::<f64>);
    let (first, second) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let (latitude, longitude) = if well_known.is_some() { (second, first) } else { (first, second) };
    let point = GeoPoint::new(latitude, longitude).filter(|_| numbers.next().is_none())?;
    Some(AttributeValue::GeoPoint(point))
}

fn holds(condition: &Condition, value: &str) -> bool {
    condition.values.iter().any(|wanted| match wanted.as_str() {
        ANY => !value.is_empty(),
        wanted => wanted.to_lowercase() == value.to_lowercase(),
    })
}

/// Returns the visible text of a cell, unless it is too long.
fn shown(column: &str, text: &str, max: usize) -> Result<String, RowError> {
    let shown = visible_text(text);
    match shown.chars().count() {
        count if count > max => {
            let problem = format!("too long: it has {count} characters; the limit is {max}");
            Err(RowError::dropped(Reason::TooLong, column, text, &problem))
        }
        _ => Ok(shown.trim().to_owned()),
    }
}

/// The same in one line.
fn words(column: &str, text: &str, max: usize) -> Result<String, RowError> {
    Ok(shown(column, text, max)?.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A cell with several texts.
struct List<'a> {
    column: &'a str,
    /// Of a cell without [`LIST_SEPARATOR`].
    separator: &'a str,
    count_max: usize,
    chars_max: usize,
}

impl List<'_> {
    fn parse(&self, text: &str) -> Result<Vec<String>, RowError> {
        // `Home &gt; Mugs`
        let text = visible_text(text);
        let entries: Vec<&str> = match text.contains(LIST_SEPARATOR) {
            true => text.split(LIST_SEPARATOR).collect(),
            false => text.split(self.separator).collect(),
        };
        let entries = entries.into_iter().map(str::trim).filter(|entry| !entry.is_empty());
        let entries: Vec<String> =
            entries.map(|entry| words(self.column, entry, self.chars_max)).collect::<Result<_, _>>()?;
        if entries.len() > self.count_max {
            let problem = format!("too long: it has {} entries; the limit is {}", entries.len(), self.count_max);
            return Err(RowError::dropped(Reason::TooLong, self.column, &text, &problem));
        }
        Ok(entries)
    }
}

pub(super) fn first_of_list(text: &str) -> &str {
    text.split(LIST_SEPARATOR).next().unwrap_or_default()
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
pub(super) fn pieces(stock: f64) -> u32 {
    stock.ceil().clamp(0.0, limits::STOCK as f64) as u32
}

/// Sets the attributes. All values of one attribute have the same type: numbers or flags if all its texts are such. Of
/// an item with too many, the first `named_count`, which the mapping names, and those that the most items have are kept.
fn with_attributes(names: &[String], named_count: usize, items: Vec<ReadItem>, report: &mut ImportReport) -> Vec<Item> {
    type Parse = fn(&AttributeCell) -> Option<AttributeValue>;
    let mut counts = vec![0_u32; names.len()];
    let (mut are_flags, mut are_numbers) = (vec![true; names.len()], vec![true; names.len()]);
    for cell in items.iter().flat_map(|read| &read.attributes) {
        counts[cell.attribute] += 1;
        are_flags[cell.attribute] &= flag(&cell.text).is_some();
        are_numbers[cell.attribute] &= number(cell).is_some();
    }
    let parser = |attribute: usize| -> Parse {
        match (are_flags[attribute], are_numbers[attribute]) {
            (true, _) => |cell| flag(&cell.text),
            (_, true) => number,
            _ => |cell| Some(words_of(&cell.text)),
        }
    };
    let finish = |ReadItem { mut item, line, mut attributes }: ReadItem| {
        if attributes.len() > limits::ATTRIBUTES {
            let is_of_pattern = |cell: &AttributeCell| cell.attribute >= named_count;
            attributes.sort_by_key(|cell| (is_of_pattern(cell), u32::MAX - counts[cell.attribute], cell.attribute));
            let dropped = attributes.split_off(limits::ATTRIBUTES);
            report.drop_attributes(dropped.len() as u64, line, item.id.as_str(), &names[dropped[0].attribute]);
        }
        for cell in &attributes {
            let value = cell.declared.clone().or_else(|| parser(cell.attribute)(cell));
            item.attributes.extend(value.map(|value| (names[cell.attribute].clone(), value)));
        }
        item
    };
    items.into_iter().map(finish).collect()
}

fn flag(text: &str) -> Option<AttributeValue> {
    match text.to_ascii_lowercase().as_str() {
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

/// Several texts if the file has a list of them.
fn words_of(text: &str) -> AttributeValue {
    match text.contains(LIST_SEPARATOR) {
        true => AttributeValue::Texts(text.split(LIST_SEPARATOR).map(str::to_owned).collect()),
        false => AttributeValue::Text(text.to_owned()),
    }
}
