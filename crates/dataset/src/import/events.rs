//! Cleans the rows of files of events.
use super::{
    Formats, ImportError,
    catalogue::Catalogue,
    context::locale_of,
    currency,
    mapping::{EventColumns, MappedType, Mapping, Names},
    numbers::{self, Cell},
    report::{ImportReport, Reason, RowError},
    rows::{Row, Rows, Selection, ValueKind},
};
use crate::DatasetEvent;
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::limits;
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::{PriceMicros, Quantity, UnixMillis},
    viewer::{Locale, ViewerContext},
};
use lodestone_events::EventKind;
use std::path::Path;

/// The columns in the order of [`EventColumns::all`].
#[derive(Debug, Clone, Copy)]
enum Field {
    Item,
    Time,
    EventId,
    Order,
    User,
    Visitor,
    Session,
    Platform,
    Region,
    Locale,
    Title,
    Quantity,
    Price,
    Currency,
    EventType,
    Query,
    QueryId,
}

/// Begin the keys of users and visitors.
const USER_PREFIXES: [&str; 2] = ["u:", "v:"];

/// Times outside this range are no times of a shop's events: placeholders, or a wrong unit.
const EARLIEST: UnixMillis = UnixMillis(631_152_000_000);
const AHEAD_MAX: i64 = UnixMillis::DAY;

/// The identity of an event without an id: rows that agree in it are one basket.
type EventKey = (EventKind, String, Option<UserId>, UnixMillis);

/// The position of a row: the index of its file, its line, and its index among the rows of the line.
type Position = (usize, u64, u64);

/// An event that a row began.
struct FirstRow {
    kind: EventKind,
    user: Option<UserId>,
    at: UnixMillis,
    position: Position,
}

struct KeptRow {
    /// Of the first row of the event.
    position: Position,
    event: DatasetEvent,
    query_id: String,
}

pub(super) struct EventCleaning<'a> {
    mapping: &'a Mapping,
    columns: &'a EventColumns,
    formats: Formats,
    /// Index of the current file.
    file: usize,
    now: UnixMillis,
    /// The event types by their names so far; `None` for an unknown one.
    types: AHashMap<String, Option<MappedType>>,
    /// The locales by their texts so far; `None` for one that is no language tag.
    locales: AHashMap<String, Option<Locale>>,
    seen: AHashSet<u64>,
    hasher: ahash::RandomState,
    /// The first row of each event with an order.
    first_of_order: AHashMap<EventKey, Position>,
    /// The first row of each event of the last JSON object with several rows; orders are empty.
    first_of_object: AHashMap<EventKey, Position>,
    /// The first row of each event with an id.
    first_of_id: AHashMap<String, FirstRow>,
    /// Queries by their ids.
    queries: AHashMap<String, String>,
    rows: Vec<KeptRow>,
}

impl<'a> EventCleaning<'a> {
    pub(super) fn new(mapping: &'a Mapping, now: UnixMillis) -> Result<Self, ImportError> {
        let columns = mapping.events.as_ref();
        let columns =
            columns.ok_or_else(|| ImportError::MissingTable { path: mapping.path.clone(), table: "events" })?;
        Ok(Self {
            mapping,
            columns,
            formats: Formats::new(mapping)?,
            file: 0,
            now,
            types: AHashMap::new(),
            locales: AHashMap::new(),
            seen: AHashSet::new(),
            hasher: ahash::RandomState::with_seeds(1, 2, 3, 4),
            first_of_order: AHashMap::new(),
            first_of_object: AHashMap::new(),
            first_of_id: AHashMap::new(),
            queries: AHashMap::new(),
            rows: Vec::new(),
        })
    }

    /// Reads and cleans the next file.
    pub(super) fn read(
        &mut self,
        path: &Path,
        catalogue: &mut Catalogue,
        report: &mut ImportReport,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ImportError> {
        let selection = Selection { columns: self.columns.all(), wildcards: Vec::new(), format: &self.mapping.file };
        let mut rows = Rows::open(path, selection)?;
        let rows_before = report.row_count;
        while let Some(row) = rows.next()? {
            report.row_count += 1;
            let line = row.line;
            if let Err(error) = self.take(&row, catalogue, report) {
                report.drop(error, &row).map_err(|value| value.at(path, line))?;
            }
            if report.row_count.is_multiple_of(4096) {
                let (done, total) = rows.position();
                progress(done, total);
            }
        }
        if report.row_count == rows_before {
            return Err(ImportError::Empty { path: path.to_owned() });
        }
        report.missing_columns.extend(rows.missing_columns()?);
        std::mem::replace(&mut self.formats, Formats::new(self.mapping)?).finish(path)?;
        self.file += 1;
        Ok(())
    }

    /// Returns the events in the order of their times; events of the same time stay in the order of the files.
    pub(super) fn finish(mut self) -> Vec<DatasetEvent> {
        self.rows.sort_by_key(|row| (row.event.at, row.position));
        let with_query = |mut row: KeptRow| {
            if row.event.query.is_empty()
                && let Some(query) = self.queries.get(&row.query_id)
            {
                row.event.query.clone_from(query);
            }
            row.event
        };
        self.rows.into_iter().map(with_query).collect()
    }

    /// Keeps a row or returns the reason for not importing it.
    fn take(&mut self, row: &Row, catalogue: &mut Catalogue, report: &mut ImportReport) -> Result<(), RowError> {
        if row.index_in_line == 0 {
            self.first_of_object.clear();
        }
        if self.mapping.clean.drop_duplicates && !self.seen.insert(self.hasher.hash_one(row.values)) {
            return Err(Reason::Duplicate.into());
        }
        let order = self.id(row, Field::Order);
        let (kind, named_refund) = self.kind(row, order, report)?;
        self.check_ids(row)?;
        let (query, query_id) = (self.text(row, Field::Query), self.text(row, Field::QueryId));
        if !query.is_empty() && !query_id.is_empty() && !self.queries.contains_key(query_id) {
            self.queries.insert(query_id.to_owned(), query.to_owned());
        }
        let item = self.item(row, kind)?;
        let mut at = self.time(row)?;
        let (price, currency) = self.price(row)?;
        let quantity = self.quantity(row, kind, named_refund)?;
        let user = self.user(row)?;
        let id = self.id(row, Field::EventId);
        let here = (self.file, row.line, row.index_in_line);
        let position = match (id, order) {
            ("", "") if row.is_entry => {
                *self.first_of_object.entry((kind, String::new(), user.clone(), at)).or_insert(here)
            }
            ("", "") => here,
            ("", _) => *self.first_of_order.entry((kind, order.to_owned(), user.clone(), at)).or_insert(here),
            (id, _) => {
                let first = self.first_row(id, kind, user.as_ref(), at, here)?;
                at = first.at;
                first.position
            }
        };
        if let Some(item) = &item {
            let price = price.map(|price| (price, currency.as_str()));
            catalogue.add(item, self.text(row, Field::Title), price, at, kind);
        }
        let event_id = match (id, position) {
            ("", (0, line, 0)) => format!("import-{line}"),
            ("", (0, line, index)) => format!("import-{line}.{index}"),
            ("", (file, line, 0)) => format!("import-{file}-{line}"),
            ("", (file, line, index)) => format!("import-{file}-{line}.{index}"),
            (id, _) => id.to_owned(),
        };
        let event = DatasetEvent {
            event_id,
            user,
            session: self.id(row, Field::Session).to_owned(),
            context: self.context(row, report),
            kind,
            at,
            quantity: item.is_some().then_some(quantity),
            price: price.filter(|_| item.is_some()),
            item,
            currency,
            order: order.to_owned(),
            query: query.to_owned(),
        };
        self.rows.push(KeptRow { position, event, query_id: query_id.to_owned() });
        Ok(())
    }

    /// Returns the first row of the event with an id.
    fn first_row(
        &mut self,
        id: &str,
        kind: EventKind,
        user: Option<&UserId>,
        at: UnixMillis,
        position: Position,
    ) -> Result<&FirstRow, RowError> {
        if let Err(error) = EventId::parse(id) {
            return Err(RowError::dropped(Reason::EventId, &self.columns.event_id.text(), id, &error.to_string()));
        }
        let first = || FirstRow { kind, user: user.cloned(), at, position };
        let first = self.first_of_id.entry(id.to_owned()).or_insert_with(first);
        match first.kind == kind && first.user.as_ref() == user {
            true => Ok(first),
            false => Err(Reason::EventIdReused.into()),
        }
    }

    fn check_ids(&self, row: &Row) -> Result<(), RowError> {
        let EventColumns { item, event_id, order, user, visitor, session, query_id, .. } = self.columns;
        for (field, column) in [
            (Field::Item, item),
            (Field::EventId, event_id),
            (Field::Order, order),
            (Field::User, user),
            (Field::Visitor, visitor),
            (Field::Session, session),
            (Field::QueryId, query_id),
        ] {
            let text = self.text(row, field);
            let key = matches!(field, Field::User | Field::Visitor).then(|| text.split_at_checked(2)).flatten();
            let id = key.filter(|(prefix, _)| USER_PREFIXES.contains(prefix)).map_or(text, |(_, id)| id);
            super::check_id(column, id)?;
        }
        Ok(())
    }

    fn text<'r>(&self, row: &Row<'r>, field: Field) -> &'r str {
        &row.values[field as usize]
    }

    /// The text of an id, without the fraction that a spreadsheet or data frame added.
    fn id<'r>(&self, row: &Row<'r>, field: Field) -> &'r str {
        super::id_text(self.text(row, field), &self.mapping.clean)
    }

    /// Returns the event type, and whether the column of the types named it a refund.
    fn kind(&mut self, row: &Row, order: &str, report: &mut ImportReport) -> Result<(EventKind, bool), Reason> {
        let prefix = &self.mapping.clean.refund_order_prefix;
        let kind = if self.columns.event_type.is_empty() {
            self.mapping.constants.event_kind.unwrap_or(EventKind::Purchase)
        } else {
            let name = self.text(row, Field::EventType);
            let mapped = match self.types.get(name) {
                Some(mapped) => *mapped,
                None => *self.types.entry(name.to_owned()).or_insert(self.mapping.type_of(name)),
            };
            match mapped {
                Some(MappedType::Kind(kind)) => kind,
                Some(MappedType::Ignored) => return Err(Reason::IgnoredType),
                None if name.is_empty() => self.mapping.constants.event_kind.ok_or(Reason::NoType)?,
                None => {
                    report.unknown_type(name);
                    return Err(Reason::UnknownType);
                }
            }
        };
        if matches!(kind, EventKind::IncentiveShown | EventKind::IncentiveRedeemed) {
            return Err(Reason::NoCoupon);
        }
        let named_refund = kind == EventKind::Refund;
        let is_refund = named_refund || (!prefix.is_empty() && order.starts_with(prefix.as_str()));
        Ok((if is_refund { EventKind::Refund } else { kind }, named_refund))
    }

    /// A value that is not known is left out, and the report names it.
    fn context(&mut self, row: &Row, report: &mut ImportReport) -> ViewerContext {
        let mut context = ViewerContext::default();
        match self.text(row, Field::Platform) {
            "" => {}
            name => match self.mapping.platform_of(name) {
                Ok(platform) => context.platform = platform,
                Err(()) => report.unknown_context_value("platform", name),
            },
        }
        match self.text(row, Field::Region) {
            "" => {}
            name => match self.mapping.region_of(name) {
                Ok(region) => context.region = region,
                Err(()) => report.unknown_context_value("region", name),
            },
        }
        match self.text(row, Field::Locale) {
            "" => {}
            tag => {
                context.locale = match self.locales.get(tag) {
                    Some(known) => known.clone(),
                    None => self.locales.entry(tag.to_owned()).or_insert(locale_of(tag)).clone(),
                };
                if context.locale.is_none() {
                    report.unknown_context_value("locale", tag);
                }
            }
        }
        context
    }

    /// Only a search needs no item, but it needs its query.
    fn item(&self, row: &Row, kind: EventKind) -> Result<Option<ItemId>, Reason> {
        let text = self.id(row, Field::Item);
        if kind == EventKind::Search {
            let has_query = (1..=limits::TEXT_CHARS).contains(&self.text(row, Field::Query).chars().count());
            return if has_query { Ok(ItemId::parse(text).ok()) } else { Err(Reason::NoQuery) };
        }
        let item = ItemId::parse(text).map_err(|_| Reason::NoItem)?;
        match text.chars().take_while(char::is_ascii_digit).count() < self.mapping.clean.item_digits_min {
            true => Err(Reason::NotAProduct),
            false => Ok(Some(item)),
        }
    }

    fn time(&mut self, row: &Row) -> Result<UnixMillis, RowError> {
        let (column, text) = (&self.columns.time.text(), self.text(row, Field::Time));
        if text.is_empty() {
            return Err(Reason::NoTime.into());
        }
        let at = self.formats.times.read(column, text, row.kinds[Field::Time as usize])?;
        match at {
            _ if at < EARLIEST => Err(RowError::dropped(Reason::Time, column, text, "before 1990")),
            _ if at.0 > self.now.0.saturating_add(AHEAD_MAX) => {
                Err(RowError::dropped(Reason::Time, column, text, "more than a day ahead"))
            }
            _ => Ok(at),
        }
    }

    /// Returns the price and its currency, which may be empty without a price.
    fn price(&mut self, row: &Row) -> Result<(Option<PriceMicros>, String), RowError> {
        let (column, text) = (self.columns.price.text(), self.text(row, Field::Price));
        let currency::PriceText { number, currency } = currency::split(text)
            .map_err(|error| RowError::dropped(Reason::Currency, &column, text, &error.problem()))?;
        let is_number = row.kinds[Field::Price as usize] == ValueKind::Number;
        let cell = Cell { column: &column, text: number, line: row.line, is_number };
        let price = self.formats.numbers.parse(cell)?;
        let code = match (self.text(row, Field::Currency), currency) {
            ("", Some(code)) => code,
            (stated, None) => {
                // Without a price, nothing depends on the currency.
                let code = currency::stated(&self.columns.currency.text(), stated, price.is_some())?;
                code.unwrap_or_else(|| self.mapping.constants.currency.clone())
            }
            (stated, Some(code)) if code.eq_ignore_ascii_case(stated) => code,
            (stated, Some(code)) => {
                let problem = format!("in {code}, and the row's currency is {stated}");
                return Err(RowError::dropped(Reason::Currency, &column, text, &problem));
            }
        };
        let price = price.map(|price| numbers::price(price, &column, text, &self.mapping.clean)).transpose()?;
        Ok((price, code))
    }

    /// A refund that the column of the types names may have either sign; one that only its order's prefix names has a
    /// quantity below 0.
    fn quantity(&mut self, row: &Row, kind: EventKind, named_refund: bool) -> Result<Quantity, RowError> {
        let (column, text) = (&self.columns.quantity.text(), self.text(row, Field::Quantity));
        let is_prefixed_refund = kind == EventKind::Refund && !named_refund;
        let cell =
            Cell { column, text, line: row.line, is_number: row.kinds[Field::Quantity as usize] == ValueKind::Number };
        let Some(quantity) = self.formats.numbers.parse(cell)? else {
            return if is_prefixed_refund { Err(Reason::Quantity.into()) } else { Ok(Quantity::ONE) };
        };
        let amount = match kind {
            EventKind::Refund if named_refund => quantity.abs(),
            EventKind::Refund => -quantity,
            _ => quantity,
        };
        Quantity::from_units(amount).ok_or_else(|| {
            let problem = match amount {
                _ if amount > f64::from(Quantity::UNITS_MAX) => format!("above {}", Quantity::UNITS_MAX),
                _ if is_prefixed_refund => "not below 0, as in a refund of clean.refund_order_prefix".to_owned(),
                _ => "below 0.001".to_owned(),
            };
            RowError::dropped(Reason::Quantity, column, text, &problem)
        })
    }

    /// The key of the user, or else of the visitor. An id with the prefix of a key, as exported files have it, is that
    /// key.
    fn user(&self, row: &Row) -> Result<Option<UserId>, RowError> {
        let parse = |field: Field, column: &Names| {
            let text = self.id(row, field);
            let parsed = match text.split_at_checked(2) {
                _ if text.is_empty() => return Ok(None),
                Some(("u:", id)) => UserId::signed_in(super::id_text(id.trim(), &self.mapping.clean)),
                Some(("v:", id)) => UserId::visitor(super::id_text(id.trim(), &self.mapping.clean)),
                _ if matches!(field, Field::Visitor) => UserId::visitor(text),
                _ => UserId::signed_in(text),
            };
            parsed.map(Some).map_err(|error| RowError::dropped(Reason::User, &column.text(), text, &error.to_string()))
        };
        match parse(Field::User, &self.columns.user)? {
            Some(user) => Ok(Some(user)),
            None => parse(Field::Visitor, &self.columns.visitor),
        }
    }
}
