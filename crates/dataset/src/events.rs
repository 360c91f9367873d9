//! Reads and writes `events.parquet`, which has one row for each item of an event.
use super::{
    DatasetError,
    columns::{self, Columns, optional},
};
use ahash::AHashMap;
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, StringArray};
use arrow_schema::{Field, Schema};
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::{PriceMicros, Quantity, UnixMillis},
    viewer::{Locale, Platform, Region, ViewerContext},
};
use lodestone_events::{Event, EventKind, EventLine};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One item of an event. Consecutive rows with the same `event_id` belong to one event.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetEvent {
    pub event_id: String,
    /// `None` for an anonymous event. Training derives co-purchases from such events, but no preferences of users.
    pub user: Option<UserId>,
    pub session: String,
    pub context: ViewerContext,
    pub kind: EventKind,
    pub at: UnixMillis,
    pub item: Option<ItemId>,
    /// `None` for an event without an item.
    pub quantity: Option<Quantity>,
    pub price: Option<PriceMicros>,
    pub currency: String,
    pub order: String,
    pub query: String,
}

impl DatasetEvent {
    /// A row with one piece of an item, and nothing else.
    pub fn of_item(event_id: String, kind: EventKind, user: Option<UserId>, at: UnixMillis, item: ItemId) -> Self {
        Self {
            event_id,
            user,
            session: String::new(),
            context: ViewerContext::default(),
            kind,
            at,
            item: Some(item),
            quantity: Some(Quantity::ONE),
            price: None,
            currency: String::new(),
            order: String::new(),
            query: String::new(),
        }
    }
}

/// The attribution tokens that a server signed, by the id of the event that sent the token.
pub type AnswerTokens = AHashMap<String, String>;

/// The value of the column `attribution` of an event whose token a server of this shop signed.
pub(super) const SIGNED: &str = "answer";

/// Writes the events in their order.
pub fn write_events(path: &Path, events: &[DatasetEvent]) -> Result<(), DatasetError> {
    write_columns(path, event_columns(events))
}

/// Writes the events in their order, with the columns of their attribution.
pub fn write_attributed_events(
    path: &Path,
    events: &[DatasetEvent],
    tokens: &AnswerTokens,
) -> Result<(), DatasetError> {
    let of_event = |event: &DatasetEvent| tokens.get(&event.event_id).map(String::as_str);
    let kinds: StringArray = events.iter().map(|event| of_event(event).map(|_| SIGNED)).collect();
    let texts: StringArray = events.iter().map(of_event).collect();
    let mut columns = event_columns(events);
    columns.push((ATTRIBUTION, Arc::new(kinds)));
    columns.push((ATTRIBUTION_TOKEN, Arc::new(texts)));
    write_columns(path, columns)
}

/// The columns of an event's attribution; only exported events and those of `lodestone retrain` have them.
const ATTRIBUTION: &str = "attribution";
const ATTRIBUTION_TOKEN: &str = "attribution_token";

fn write_columns(path: &Path, columns: Vec<(&'static str, ArrayRef)>) -> Result<(), DatasetError> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    columns::write(path, Schema::new(fields), columns.into_iter().map(|(_, array)| array).collect())
}

fn event_columns(events: &[DatasetEvent]) -> Vec<(&'static str, ArrayRef)> {
    fn texts<'a>(events: &'a [DatasetEvent], of: impl Fn(&'a DatasetEvent) -> Option<&'a str>) -> ArrayRef {
        Arc::new(events.iter().map(of).collect::<StringArray>())
    }
    let integers = |of: &dyn Fn(&DatasetEvent) -> Option<i64>| -> ArrayRef {
        Arc::new(events.iter().map(of).collect::<Int64Array>())
    };
    let quantities: Float64Array = events.iter().map(|event| event.quantity.map(Quantity::units)).collect();
    vec![
        ("event_id", texts(events, |event| Some(&event.event_id))),
        ("user", texts(events, |event| event.user.as_ref().map(UserId::as_str))),
        ("session", texts(events, |event| Some(&event.session))),
        ("type", texts(events, |event| Some(event.kind.name()))),
        ("time_ms", integers(&|event| Some(event.at.0))),
        ("item_id", texts(events, |event| event.item.as_ref().map(ItemId::as_str))),
        ("quantity", Arc::new(quantities)),
        ("price_micros", integers(&|event| event.price.map(PriceMicros::micros))),
        ("currency", texts(events, |event| Some(&event.currency))),
        ("order_id", texts(events, |event| Some(&event.order))),
        ("query", texts(events, |event| Some(&event.query))),
        ("platform", texts(events, |event| Some(event.context.texts()[0]))),
        ("region", texts(events, |event| Some(event.context.texts()[1]))),
        ("locale", texts(events, |event| Some(event.context.texts()[2]))),
    ]
}

/// Reads the signed attribution tokens of the history of a data directory, see [`read_history`]. Files without them
/// have none.
pub fn read_answer_tokens(data: &Path) -> Result<AnswerTokens, DatasetError> {
    let mut tokens = AnswerTokens::new();
    for path in history_files(data)? {
        read_rows(&path, |columns| {
            if !columns.has(ATTRIBUTION) || !columns.has(ATTRIBUTION_TOKEN) {
                return Ok(());
            }
            let (ids, kinds) = (columns.texts("event_id")?, columns.texts(ATTRIBUTION)?);
            let texts = columns.texts(ATTRIBUTION_TOKEN)?;
            for row in (0..columns.len()).filter(|row| optional(kinds, *row) == Some(SIGNED)) {
                if let (Some(id), Some(token)) = (optional(ids, row), optional(texts, row)) {
                    tokens.insert(id.to_owned(), token.to_owned());
                }
            }
            Ok(())
        })?;
    }
    Ok(tokens)
}

/// Reads the events in file order.
pub fn read_events(path: &Path) -> Result<Vec<DatasetEvent>, DatasetError> {
    let mut events = Vec::new();
    read_rows(path, |columns| read_batch(columns, &mut events))?;
    Ok(events)
}

/// Reads a file that may have no rows, as that of a new shop.
fn read_rows(path: &Path, visit: impl FnMut(&Columns) -> Result<(), DatasetError>) -> Result<(), DatasetError> {
    match columns::read(path, visit) {
        Err(DatasetError::Empty { .. }) => Ok(()),
        result => result,
    }
}

/// Reads the history of a data directory: the imported `events.parquet`, then the files that `lodestone events export`
/// wrote to `events/`, by day. At least one of them must exist.
pub fn read_history(data: &Path) -> Result<Vec<DatasetEvent>, DatasetError> {
    let files = history_files(data)?;
    if !files.iter().any(|file| file.exists()) {
        return Err(DatasetError::NoEvents { data: data.to_owned() });
    }
    let mut events = Vec::new();
    for path in files {
        events.extend(read_events(&path)?);
    }
    Ok(events)
}

/// Reads all events of a data directory, as [`read_history`] does; none if it has neither imported nor exported ones.
pub fn read_history_if_any(data: &Path) -> Result<Vec<DatasetEvent>, DatasetError> {
    let mut events = Vec::new();
    for path in history_files(data)?.into_iter().filter(|path| path.exists()) {
        events.extend(read_events(&path)?);
    }
    Ok(events)
}

/// Returns the files of events of a data directory, also of the imported ones if there are no others.
pub fn history_files(data: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let (imported, exported) = (data.join("events.parquet"), data.join("events"));
    let mut days = Vec::new();
    if exported.is_dir() {
        let io = |source| DatasetError::Io { path: exported.clone(), source };
        for entry in fs::read_dir(&exported).map_err(io)? {
            let day = entry.map_err(io)?;
            if day.file_name().to_string_lossy().starts_with("date=") {
                days.push(day.path().join("events.parquet"));
            }
        }
        days.sort();
    }
    if imported.exists() || days.is_empty() {
        days.insert(0, imported);
    }
    Ok(days)
}

fn read_batch(columns: &Columns, events: &mut Vec<DatasetEvent>) -> Result<(), DatasetError> {
    let (event_ids, users, sessions) = (columns.texts("event_id")?, columns.texts("user")?, columns.texts("session")?);
    let (kinds, times, items) = (columns.texts("type")?, columns.integers("time_ms")?, columns.texts("item_id")?);
    let (quantities, prices) = (columns.amounts("quantity")?, columns.integers("price_micros")?);
    let (currencies, orders, queries) =
        (columns.texts("currency")?, columns.texts("order_id")?, columns.texts("query")?);
    let mut contexts = Contexts::of(columns)?;
    let text = |texts: &StringArray, row| optional(texts, row).unwrap_or_default().to_owned();
    for (row, quantity) in quantities.into_iter().enumerate() {
        if times.is_null(row) {
            return Err(columns.bad(row, "time_ms", "there is no time".to_owned()));
        }
        let kind = text(kinds, row);
        let user = match optional(users, row) {
            None => None,
            Some(key) => Some(UserId::from_key(key).ok_or_else(|| {
                columns.bad(row, "user", format!("`{key}` has neither the prefix `u:` (user) nor `v:` (visitor)"))
            })?),
        };
        let item = match optional(items, row) {
            None => None,
            Some(id) => Some(ItemId::parse(id).map_err(|error| columns.bad(row, "item_id", error.to_string()))?),
        };
        let price = (!prices.is_null(row)).then(|| prices.value(row));
        events.push(DatasetEvent {
            event_id: text(event_ids, row),
            user,
            session: text(sessions, row),
            context: contexts.read(columns, row)?,
            kind: EventKind::from_name(&kind)
                .ok_or_else(|| columns.bad(row, "type", format!("`{kind}` is not an event type")))?,
            at: UnixMillis(times.value(row)),
            quantity: match quantity.filter(|quantity| *quantity != 0.0) {
                None => item.is_some().then_some(Quantity::ONE),
                Some(units) => Some(Quantity::from_units(units).ok_or_else(|| {
                    let max = Quantity::UNITS_MAX;
                    columns.bad(row, "quantity", format!("{units} is not within 0.001 and {max}"))
                })?),
            },
            item,
            price: match price {
                None => None,
                Some(micros) => Some(PriceMicros::new(micros).ok_or_else(|| {
                    columns.bad(row, "price_micros", format!("{micros} is not within 0 and {}", PriceMicros::MAX))
                })?),
            },
            currency: text(currencies, row),
            order: text(orders, row),
            query: text(queries, row),
        });
    }
    Ok(())
}

/// The columns of the viewer's context, which a file may lack.
struct Contexts<'a> {
    platforms: Option<&'a StringArray>,
    regions: Option<&'a StringArray>,
    locales: Option<&'a StringArray>,
    /// Those of the rows so far: rows with the same locale share its text.
    known_locales: AHashMap<&'a str, Locale>,
}

impl<'a> Contexts<'a> {
    fn of(columns: &'a Columns) -> Result<Self, DatasetError> {
        let texts = |name: &'static str| columns.has(name).then(|| columns.texts(name)).transpose();
        let (platforms, regions, locales) = (texts("platform")?, texts("region")?, texts("locale")?);
        Ok(Self { platforms, regions, locales, known_locales: AHashMap::new() })
    }

    fn read(&mut self, columns: &Columns, row: usize) -> Result<ViewerContext, DatasetError> {
        fn text(texts: Option<&StringArray>, row: usize) -> Option<&str> {
            texts.and_then(|texts| optional(texts, row)).filter(|text| !text.is_empty())
        }
        let bad = |name, text: &str, meaning: &str| columns.bad(row, name, format!("`{text}` is not {meaning}"));
        let mut context = ViewerContext::default();
        if let Some(name) = text(self.platforms, row) {
            context.platform = Platform::from_name(name);
            if context.platform.is_none() {
                let names = Platform::ALL.map(Platform::name).join(", ");
                return Err(bad("platform", name, &format!("one of {names}")));
            }
        }
        if let Some(code) = text(self.regions, row) {
            let region = Region::parse(code);
            context.region = Some(region.ok_or_else(|| bad("region", code, "an ISO 3166-1 code of 2 letters"))?);
        }
        if let Some(tag) = text(self.locales, row) {
            let locale = match self.known_locales.get(tag) {
                Some(known) => known.clone(),
                None => {
                    let new = Locale::parse(tag).ok_or_else(|| bad("locale", tag, "a BCP 47 language tag"))?;
                    self.known_locales.entry(tag).or_insert(new).clone()
                }
            };
            context.locale = Some(locale);
        }
        Ok(context)
    }
}

/// The longest time from the first to the last line of an order: what is bought later with the same order id is another
/// basket, as in a shop that counts its orders from 1 each year.
const ORDER_SPAN_MS: i64 = UnixMillis::DAY;

/// Joins the purchases of one order to one event: rows with the same user, order id and currency within a day get the
/// event id and time of the order's earliest row, and follow each other. Exports and trackers often have one event for
/// each product of an order. All other rows keep their order.
pub fn join_orders(rows: Vec<DatasetEvent>) -> Vec<DatasetEvent> {
    let is_of_order = |row: &DatasetEvent| row.kind == EventKind::Purchase && !row.order.is_empty();
    let mut by_time: Vec<usize> = (0..rows.len()).filter(|index| is_of_order(&rows[*index])).collect();
    by_time.sort_by_key(|index| rows[*index].at);
    let mut first_of: Vec<usize> = (0..rows.len()).collect();
    let mut first_of_order: AHashMap<(Option<&UserId>, &str, &str), usize> = AHashMap::new();
    for index in by_time {
        let row = &rows[index];
        let first = first_of_order.entry((row.user.as_ref(), &row.order, &row.currency)).or_insert(index);
        if row.at.0 - rows[*first].at.0 > ORDER_SPAN_MS {
            *first = index;
        }
        first_of[index] = *first;
    }
    let event_of = |first: usize| (rows[first].event_id.clone(), rows[first].at);
    let is_later = |(index, first): &(usize, usize)| index != first;
    let changes: Vec<(usize, (String, UnixMillis))> = (first_of.iter().copied().enumerate().filter(is_later))
        .map(|(index, first)| (index, event_of(first)))
        .collect();
    let mut rows: Vec<(usize, DatasetEvent)> = first_of.into_iter().zip(rows).collect();
    for (index, (event_id, at)) in changes {
        let row = &mut rows[index].1;
        (row.event_id, row.at) = (event_id, at);
    }
    // The sort is stable. An order is where its earliest row is.
    rows.sort_by_key(|(first, _)| *first);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Joins rows to events in time order. An event without a user has one of its own, see [`UserId::anonymous`]. An event
/// has the currency of its first row, and prices in other ones are unknown. Skips rows with an invalid event id.
pub fn into_events(rows: Vec<DatasetEvent>) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for row in rows {
        let line = row.item.map(|item| EventLine {
            item,
            quantity: row.quantity.unwrap_or(Quantity::ONE),
            price: row.price,
            rank: 0,
        });
        match events.last_mut() {
            Some(event) if event.id.as_str() == row.event_id => {
                // An event has one currency.
                let is_known = event.currency == row.currency;
                event.lines.extend(line.map(|line| EventLine { price: line.price.filter(|_| is_known), ..line }));
            }
            _ => {
                let Ok(id) = EventId::parse(&row.event_id) else { continue };
                let user = row.user.unwrap_or_else(|| UserId::anonymous(&id));
                events.push(Event {
                    session: row.session,
                    context: row.context,
                    lines: line.into_iter().collect(),
                    query: row.query,
                    order: row.order,
                    currency: row.currency,
                    ..Event::new(id, row.kind, user, row.at)
                });
            }
        }
    }
    events.sort_by_key(|event| event.at);
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(event_id: &str, user: Option<&str>, at: i64, item: &str) -> DatasetEvent {
        let user = user.map(|id| UserId::signed_in(id).unwrap());
        let item = ItemId::parse(item).unwrap();
        DatasetEvent {
            quantity: Quantity::from_units(0.345),
            price: PriceMicros::new(100),
            currency: "GBP".into(),
            order: event_id.into(),
            context: ViewerContext {
                platform: Platform::from_name("ios"),
                region: Region::parse("GB"),
                locale: Locale::parse("en-GB"),
            },
            ..DatasetEvent::of_item(event_id.into(), EventKind::Purchase, user, UnixMillis(at), item)
        }
    }

    #[test]
    fn a_shop_without_events_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("events")).unwrap();
        let error = read_history(directory.path()).unwrap_err();
        assert!(matches!(&error, DatasetError::NoEvents { data } if data == directory.path()), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&*directory.path().to_string_lossy()) && text.contains("has no events"), "{text}");
        assert!(read_history_if_any(directory.path()).unwrap().is_empty());
        write_events(&directory.path().join("events.parquet"), &[row("1", Some("p"), 1, "a")]).unwrap();
        assert_eq!(read_history(directory.path()).unwrap().len(), 1);
    }

    #[test]
    fn rows_are_read_as_written_and_joined_to_events_in_time_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.parquet");
        let rows = vec![
            row("2", Some("p"), 20, "a"),
            row("2", Some("p"), 20, "b"),
            row("3", None, 5, "a"),
            row("1", Some("q"), 10, "a"),
        ];
        write_events(&path, &rows).unwrap();
        let read = read_events(&path).unwrap();
        assert_eq!(read, rows);
        let events = into_events(read);
        assert_eq!(events.iter().map(|event| event.id.as_str()).collect::<Vec<_>>(), ["3", "1", "2"]);
        assert_eq!(events.iter().map(|event| event.user.is_anonymous()).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(events[2].lines.len(), 2);
        assert_eq!(events[2].context.texts(), ["ios", "GB", "en-GB"]);
    }

    #[test]
    fn rows_of_one_order_are_one_event_even_with_event_ids_of_their_own() {
        let of_order = |event_id: &str, user: Option<&str>, at: i64, item: &str, order: &str| DatasetEvent {
            order: order.into(),
            ..row(event_id, user, at, item)
        };
        let rows = vec![
            of_order("2", Some("p"), 20, "b", "o1"),
            of_order("3", Some("p"), 30, "c", ""),
            of_order("1", Some("p"), 10, "a", "o1"),
            of_order("4", Some("q"), 10, "a", "o1"),
            of_order("5", None, 10, "a", "o2"),
            of_order("6", None, 10, "b", "o2"),
            DatasetEvent { kind: EventKind::Refund, ..of_order("7", Some("p"), 40, "a", "o1") },
            of_order("8", Some("p"), 10 + ORDER_SPAN_MS, "d", "o1"),
            of_order("9", Some("p"), 21 + ORDER_SPAN_MS, "e", "o1"),
        ];
        let events = into_events(join_orders(rows));
        let found: Vec<(&str, i64, String)> = (events.iter())
            .map(|event| {
                let items: Vec<&str> = event.lines.iter().map(|line| line.item.as_str()).collect();
                (event.id.as_str(), event.at.0, items.join(" "))
            })
            .collect();
        let late = 21 + ORDER_SPAN_MS;
        let expected =
            [("1", 10, "b a d"), ("4", 10, "a"), ("5", 10, "a b"), ("3", 30, "c"), ("7", 40, "a"), ("9", late, "e")];
        assert_eq!(found, expected.map(|(id, at, items)| (id, at, items.to_owned())));
        assert!(events[2].user.is_anonymous());
    }
}
