//! What a new training learns from: the imported history, and what was logged since.
use super::{replay::choices, train::TrainError};
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::Item;
use lodestone_core::ids::ItemId;
use lodestone_dataset::{self as dataset, DatasetEvent};
use lodestone_events::{Attribution, Change, Event};
use std::{fs, io, path::Path};

const ITEMS: &str = "items.parquet";
const EVENTS: &str = "events.parquet";
/// What `lodestone events export` wrote into the data directory, if it did.
const EXPORTED: &str = "events";

/// What was gathered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Gathered {
    pub item_count: usize,
    /// Of the imported history, and of what was exported beside it.
    pub imported_event_count: usize,
    /// Of the log, without those that are not learned from.
    pub logged_event_count: usize,
    /// Events of the log whose attribution token was not this shop's: kept in the log, not learned from.
    pub foreign_event_count: usize,
    /// Events by which somebody chose something.
    pub choice_count: usize,
}

/// Collects changes of the log, in its order.
#[derive(Default)]
pub struct Gathering {
    items: Vec<Option<Item>>,
    place_of: AHashMap<ItemId, usize>,
    rows: Vec<DatasetEvent>,
    known: AHashSet<String>,
    gathered: Gathered,
}

impl Gathering {
    /// Begins with what was imported into `data`, and exported there from its log; any of it may be missing.
    pub fn begin(data: &Path) -> Result<Self, TrainError> {
        let mut gathering = Self::default();
        if data.join(ITEMS).exists() {
            dataset::read_items(&data.join(ITEMS))?.into_iter().for_each(|item| gathering.put(item));
        }
        if data.join(EVENTS).exists() || data.join(EXPORTED).is_dir() {
            gathering.rows = dataset::read_history(data)?;
            gathering.gathered.imported_event_count = event_count(&gathering.rows);
        }
        if data.join(EXPORTED).is_dir() {
            // What was exported is in the log too, until it is compacted.
            gathering.known = gathering.rows.iter().map(|row| row.event_id.clone()).collect();
        }
        Ok(gathering)
    }

    /// Takes the next change of the log.
    pub fn take(&mut self, change: Change) {
        match change {
            Change::Upsert(item) => self.put(*item),
            Change::Delete(id) => {
                if let Some(place) = self.place_of.remove(&id) {
                    self.items[place] = None;
                }
            }
            Change::Event(event) if self.known.contains(event.id.as_str()) => {}
            Change::Event(event) if matches!(event.attribution, Attribution::Foreign(_)) => {
                self.gathered.foreign_event_count += 1;
            }
            Change::Event(event) => {
                self.gathered.logged_event_count += 1;
                self.rows.extend(rows_of(event));
            }
        }
    }

    /// Writes all of it to `out`, which is there either whole or not at all.
    pub fn write(self, out: &Path) -> Result<Gathered, TrainError> {
        let io = |source: io::Error| TrainError::Io { path: out.to_owned(), source };
        let items: Vec<Item> = self.items.into_iter().flatten().collect();
        let row_of = items.iter().enumerate().map(|(row, item)| (item.id.clone(), row as u32)).collect();
        let mut rows = self.rows;
        // Rows of one event have one time, so they stay together.
        rows.sort_by_key(|row| row.at);
        let choice_count = choices(&rows, &row_of).len();
        let partial = out.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(io)?;
        }
        fs::create_dir_all(&partial).map_err(io)?;
        dataset::write_items(&partial.join(ITEMS), &items)?;
        dataset::write_events(&partial.join(EVENTS), &rows)?;
        fs::rename(&partial, out).map_err(io)?;
        Ok(Gathered { item_count: items.len(), choice_count, ..self.gathered })
    }

    /// A replaced item keeps its place.
    fn put(&mut self, item: Item) {
        match self.place_of.get(&item.id) {
            Some(place) => self.items[*place] = Some(item),
            None => {
                self.place_of.insert(item.id.clone(), self.items.len());
                self.items.push(Some(item));
            }
        }
    }
}

/// Events among rows; those of one event follow each other.
fn event_count(rows: &[DatasetEvent]) -> usize {
    rows.chunk_by(|one, next| one.event_id == next.event_id).count()
}

/// A row for each item, or one without.
fn rows_of(event: Event) -> Vec<DatasetEvent> {
    let row = |item, quantity, price| DatasetEvent {
        event_id: event.id.to_string(),
        user: Some(event.user.clone()),
        session: event.session.clone(),
        kind: event.kind,
        at: event.at,
        item,
        quantity,
        price,
        currency: event.currency.clone(),
        order: event.order.clone(),
        query: event.query.clone(),
    };
    match event.lines.is_empty() {
        true => vec![row(None, 0, None)],
        false => event.lines.iter().map(|line| row(Some(line.item.clone()), line.quantity, line.price)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::{
        ids::{EventId, UserId},
        units::UnixMillis,
    };
    use lodestone_events::{EventKind, EventLine};

    fn purchase(id: &str, at: i64, items: &[&str], attribution: Attribution) -> Change {
        let line = |item: &&str| EventLine { item: ItemId::parse(item).unwrap(), quantity: 2, price: None, rank: 1 };
        Change::Event(Event {
            id: EventId::parse(id).unwrap(),
            kind: EventKind::Purchase,
            user: UserId::signed_in("p").unwrap(),
            session: String::new(),
            at: UnixMillis(at),
            lines: items.iter().map(line).collect(),
            query: String::new(),
            order: id.to_owned(),
            stars: 0,
            coupon: String::new(),
            categories: Vec::new(),
            currency: String::new(),
            attribution,
        })
    }

    fn item(id: &str, title: &str) -> Item {
        Item::titled(ItemId::parse(id).unwrap(), title)
    }

    #[test]
    fn the_log_goes_on_from_what_was_imported() {
        let directory = tempfile::tempdir().unwrap();
        let (data, out, again) =
            (directory.path().join("data"), directory.path().join("out"), directory.path().join("again"));
        let mut first = Gathering::begin(&data).unwrap();
        first.take(Change::Upsert(Box::new(item("a", "one"))));
        first.take(Change::Upsert(Box::new(item("b", "two"))));
        first.take(purchase("e1", 10, &["a", "b"], Attribution::None));
        let gathered = first.write(&data).unwrap();
        assert_eq!((gathered.item_count, gathered.logged_event_count, gathered.choice_count), (2, 1, 1));

        let mut second = Gathering::begin(&data).unwrap();
        second.take(Change::Delete(ItemId::parse("a").unwrap()));
        second.take(Change::Upsert(Box::new(item("b", "two, better"))));
        second.take(Change::Upsert(Box::new(item("c", "three"))));
        // Late: it belongs before what was imported.
        second.take(purchase("e2", 5, &["c"], Attribution::Answer("ours".to_owned())));
        second.take(purchase("e3", 20, &["c"], Attribution::Foreign("theirs".to_owned())));
        let gathered = second.write(&out).unwrap();
        let due = Gathered {
            item_count: 2,
            imported_event_count: 1,
            logged_event_count: 1,
            foreign_event_count: 1,
            choice_count: 2,
        };
        assert_eq!(gathered, due);
        let titles: Vec<String> =
            dataset::read_items(&out.join(ITEMS)).unwrap().into_iter().map(|item| item.title).collect();
        assert_eq!(titles, ["two, better", "three"]);
        let ids: Vec<String> =
            dataset::read_events(&out.join(EVENTS)).unwrap().into_iter().map(|row| row.event_id).collect();
        assert_eq!(ids, ["e2", "e1", "e1"]);
        // What was gathered can be gathered from.
        let same = Gathering::begin(&out).unwrap().write(&again).unwrap();
        assert_eq!((same.item_count, same.imported_event_count, same.choice_count), (2, 2, gathered.choice_count));
    }
}
