//! Reads a local inventory feed: stock and prices of items at the shop's places.
use super::{
    Formats, ImportError, currency,
    items::{first_of_list, pieces},
    mapping::{InventoryColumns, Mapping, availability_of},
    numbers::Cell,
    report::{InventoryReport, Reason, RowError},
    rows::{Row, Rows, Selection, ValueKind},
};
use ahash::AHashSet;
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use std::path::Path;

/// Stock and prices of an item at a place, as of the time of the file. Absent values stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalInventory {
    pub item: ItemId,
    /// In the form of an [`ItemId`].
    pub place_id: String,
    pub stock_quantity: Option<u32>,
    /// An ISO 4217 code; empty for the currency of the item.
    pub currency: String,
    pub price: Option<PriceMicros>,
    /// What a user pays from `sale_start`, inclusive, to `sale_end`, exclusive.
    pub sale_price: Option<PriceMicros>,
    pub sale_start: Option<UnixMillis>,
    /// Without a sale price: the end of an earlier sale.
    pub sale_end: Option<UnixMillis>,
}

/// The columns in the order of [`InventoryColumns::all`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Place,
    Stock,
    Availability,
    Price,
    SalePrice,
    SalePeriod,
    Currency,
}

/// The end of a sale that the file does not end: 9999-12-30.
const NEVER: UnixMillis = UnixMillis(253_402_128_000_000);

struct InventoryReader<'a> {
    mapping: &'a Mapping,
    columns: &'a InventoryColumns,
    time: UnixMillis,
    formats: Formats,
    seen: AHashSet<(ItemId, String)>,
}

/// Reads the file. Returns the rows in the order of the file, each place of an item once.
pub(super) fn read(
    mapping: &Mapping,
    path: &Path,
    time: UnixMillis,
    report: &mut InventoryReport,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<LocalInventory>, ImportError> {
    let Some(columns) = &mapping.inventory else {
        return Err(ImportError::MissingTable { path: path.to_owned(), table: "inventory" });
    };
    let selection = Selection { columns: columns.all(), wildcards: Vec::new(), format: &mapping.file };
    let mut rows = Rows::open(path, selection)?;
    let mut reader = InventoryReader { mapping, columns, time, formats: Formats::new(mapping)?, seen: AHashSet::new() };
    let mut read = Vec::new();
    while let Some(row) = rows.next()? {
        report.row_count += 1;
        let line = row.line;
        match reader.take(&row) {
            Ok(inventory) => read.push(inventory),
            Err(error) => report.drop(error, &row).map_err(|value| value.at(path, line))?,
        }
        if report.row_count.is_multiple_of(1024) {
            let (done, total) = rows.position();
            progress(done, total);
        }
    }
    if report.row_count == 0 {
        return Err(ImportError::Empty { path: path.to_owned() });
    }
    report.missing_columns = rows.missing_columns()?;
    if read.is_empty() {
        return Err(ImportError::NoInventory { path: path.to_owned(), report: Box::new(report.clone()) });
    }
    reader.formats.finish(path)?;
    if rows.found()[Field::SalePrice as usize] {
        // A row without a sale price ends the sale of an earlier file.
        for inventory in read.iter_mut().filter(|inventory| inventory.price.is_some() && inventory.sale_price.is_none())
        {
            inventory.sale_end = Some(time);
        }
    }
    let places: AHashSet<&str> = read.iter().map(|inventory| inventory.place_id.as_str()).collect();
    (report.kept_count, report.place_count) = (read.len() as u64, places.len() as u64);
    Ok(read)
}

impl InventoryReader<'_> {
    /// Reads a row or returns the reason for leaving it out.
    fn take(&mut self, row: &Row) -> Result<LocalInventory, RowError> {
        let columns = self.columns;
        let id = |reason: Reason, field: Field, names| {
            let text = text(row, field);
            super::check_id(names, text)?;
            ItemId::parse(super::id_text(text, &self.mapping.clean)).map_err(|_| RowError::from(reason))
        };
        let item = id(Reason::NoItem, Field::Id, &columns.id)?;
        let place_id = id(Reason::NoPlace, Field::Place, &columns.place)?.as_str().to_owned();
        let key = (item, place_id);
        if self.seen.contains(&key) {
            return Err(Reason::SamePlace.into());
        }
        let stock_quantity = self.stock(row)?;
        let (price, of_price) = self.price(row, Field::Price, &columns.price.text())?;
        let (sale_price, of_sale) = self.price(row, Field::SalePrice, &columns.sale_price.text())?;
        if sale_price.is_some() && price.is_none() {
            let (column, text) = (columns.sale_price.text(), text(row, Field::SalePrice));
            return Err(RowError::dropped(
                Reason::SaleWithoutPrice,
                &column,
                text,
                "without a price, which it reduces",
            ));
        }
        let sale = sale_price.map(|_| self.sale_period(row)).transpose()?;
        let currency = self.currency(row, [of_price, of_sale], price.is_some())?;
        if stock_quantity.is_none() && price.is_none() {
            return Err(Reason::NoValue.into());
        }
        self.seen.insert(key.clone());
        let (item, place_id) = key;
        let (sale_start, sale_end) = sale.unzip();
        Ok(LocalInventory { item, place_id, stock_quantity, currency, price, sale_price, sale_start, sale_end })
    }

    /// Returns the pieces at the place. An offer has no availability: what can be bought without a quantity has one piece,
    /// and what cannot has none.
    fn stock(&mut self, row: &Row) -> Result<Option<u32>, RowError> {
        let column = self.columns.stock.text();
        let is_number = row.kinds[Field::Stock as usize] == ValueKind::Number;
        let cell = Cell { column: &column, text: text(row, Field::Stock), line: row.line, is_number };
        let quantity = self.formats.numbers.parse(cell)?.map(pieces);
        let stated = match text(row, Field::Availability) {
            "" => return Ok(quantity),
            text => availability_of(&self.columns.availability_values, text).ok_or_else(|| {
                let problem = "not an availability that is known";
                RowError::dropped(Reason::LocalAvailability, &self.columns.availability.text(), text, problem)
            })?,
        };
        Ok(Some(if stated.is_in_stock() { quantity.unwrap_or(1) } else { 0 }))
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

    /// Returns when a sale begins and ends; without a period, from the time of the file on.
    fn sale_period(&self, row: &Row) -> Result<(UnixMillis, UnixMillis), RowError> {
        let period = self.formats.sale_period(&self.columns.sale_period.text(), text(row, Field::SalePeriod))?;
        Ok(period.unwrap_or((self.time, NEVER)))
    }

    /// Returns the currency of the prices of a row; empty if it is `constants.currency` or not named.
    fn currency(&self, row: &Row, of_prices: [Option<String>; 2], is_priced: bool) -> Result<String, RowError> {
        let stated = currency::stated(&self.columns.currency.text(), text(row, Field::Currency), is_priced)?;
        let named = of_prices.into_iter().flatten().chain(stated);
        let code = currency::only(named, &self.columns.price.text(), text(row, Field::Price))?.unwrap_or_default();
        Ok(if code == self.mapping.constants.currency { String::new() } else { code })
    }
}

/// Returns the value of a column; of a list, the first one.
fn text<'r>(row: &Row<'r>, field: Field) -> &'r str {
    first_of_list(&row.values[field as usize])
}
