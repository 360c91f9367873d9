//! The dataset of the next training: the imported history and the events logged since.
use super::{error::TrainError, replay::interactions};
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::{Item, ItemChange, ItemState};
use lodestone_core::ids::ItemId;
use lodestone_dataset::{self as dataset, AnswerTokens, DatasetEvent, LoggedDecisions};
use lodestone_events::{Attribution, Change, Event, storage};
use lodestone_rules::{AttributeDeclaration, RuleChange};
use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc};

const ITEMS: &str = "items.parquet";
const EVENTS: &str = "events.parquet";
/// Directory in the data directory to which `lodestone events export` writes.
const EXPORTED: &str = "events";

/// Counts of a dataset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DatasetSummary {
    pub item_count: usize,
    /// Events of the imported history and of the exported files.
    pub imported_event_count: usize,
    /// Events of the log, without those with a foreign token.
    pub logged_event_count: usize,
    /// Events of the log with a foreign attribution token. They stay in the log and are excluded from the dataset.
    pub foreign_event_count: usize,
    /// Positive interactions with known items.
    #[serde(rename = "choice_count")]
    pub interaction_count: usize,
}

/// Builds a dataset from imported files and the changes of the log, applied in the log's order.
#[derive(Default)]
pub struct DatasetBuilder {
    /// None for a deleted item.
    items: Vec<Option<Item>>,
    /// Indices in `items`.
    index_of: AHashMap<ItemId, usize>,
    /// Of items that the log writes or deletes.
    item_states: AHashMap<ItemId, ItemState>,
    rows: Vec<DatasetEvent>,
    /// Of exported and logged events.
    tokens: AnswerTokens,
    /// Decisions about incentives, exported and logged.
    decisions: LoggedDecisions,
    /// Ids of exported events, which the log may contain as well.
    exported: AHashSet<String>,
    summary: DatasetSummary,
    /// By declared attribute: whether searches find its texts.
    searchable: BTreeMap<String, bool>,
}

impl DatasetBuilder {
    /// Reads the imported and the exported files of `data`. All of them are optional.
    pub fn open(data: &Path) -> Result<Self, TrainError> {
        let mut builder = Self::default();
        if data.join(ITEMS).exists() {
            dataset::read_items(&data.join(ITEMS))?.into_iter().for_each(|item| builder.upsert(item));
        }
        if data.join(EVENTS).exists() || data.join(EXPORTED).is_dir() {
            builder.rows = dataset::read_history(data)?;
            builder.summary.imported_event_count = event_count(&builder.rows);
            builder.tokens = dataset::read_answer_tokens(data)?;
        }
        if data.join(EXPORTED).is_dir() {
            // The log contains exported events until its compaction.
            builder.exported = builder.rows.iter().map(|row| row.event_id.clone()).collect();
        }
        builder.decisions = LoggedDecisions::read(data)?;
        Ok(builder)
    }

    /// Applies the next change of the log.
    pub fn apply(&mut self, change: Change) {
        if let Change::Event(event) = &change {
            self.decisions.redeem(event);
        }
        match change {
            Change::Item(change) => self.change_item(&change),
            Change::Rule(RuleChange::PutAttribute(AttributeDeclaration { name, searchable, .. })) => {
                self.searchable.insert(name, searchable);
            }
            Change::Rule(RuleChange::DeleteAttribute(name)) => _ = self.searchable.remove(&name),
            // Logged answers are those of the rules of their time.
            Change::Rule(_) => {}
            Change::Decision(decision) => self.decisions.add(decision),
            Change::Event(event) if self.exported.contains(event.id.as_str()) => {}
            Change::Event(event) if matches!(event.attribution, Attribution::Foreign(_)) => {
                self.summary.foreign_event_count += 1;
            }
            Change::Event(event) => {
                self.summary.logged_event_count += 1;
                if let Attribution::Answer(token) = &event.attribution {
                    self.tokens.insert(event.id.to_string(), token.clone());
                }
                self.rows.extend(rows_of(event));
            }
        }
    }

    /// Returns the declared attributes, and whether searches find the texts of each.
    pub fn declared_searchable(&self) -> &BTreeMap<String, bool> {
        &self.searchable
    }

    /// Writes the dataset to a temporary directory and renames it to `out`, so that `out` is complete or missing.
    pub fn write(self, out: &Path) -> Result<DatasetSummary, TrainError> {
        let io = |source: io::Error| TrainError::Io { path: out.to_owned(), source };
        let items: Vec<Item> = self.items.into_iter().flatten().collect();
        let row_of = items.iter().enumerate().map(|(row, item)| (item.id.clone(), row as u32)).collect();
        let mut rows = self.rows;
        // The sort is stable, and the rows of one event have the same time, so they stay together.
        rows.sort_by_key(|row| row.at);
        let interaction_count = interactions(&rows, &row_of).len();
        let partial = out.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(io)?;
        }
        storage::create_private_directory(&partial).map_err(io)?;
        dataset::write_items(&partial.join(ITEMS), &items)?;
        dataset::write_attributed_events(&partial.join(EVENTS), &rows, &self.tokens)?;
        self.decisions.write(&partial)?;
        storage::rename(&partial, out).map_err(io)?;
        Ok(DatasetSummary { item_count: items.len(), interaction_count, ..self.summary })
    }

    fn change_item(&mut self, change: &ItemChange) {
        let id = change.id();
        let mut state = self.item_states.remove(id);
        ItemState::apply(&mut state, change);
        let Some(state) = state else { return };
        let known = self.index_of.get(id).and_then(|index| self.items[*index].as_ref());
        match state.content(known) {
            Some(item) => self.upsert(Arc::unwrap_or_clone(item)),
            None => {
                if let Some(index) = self.index_of.remove(id) {
                    self.items[index] = None;
                }
            }
        }
        self.item_states.insert(id.clone(), state);
    }

    /// Adds an item, or replaces it at its index.
    fn upsert(&mut self, item: Item) {
        match self.index_of.get(&item.id) {
            Some(index) => self.items[*index] = Some(item),
            None => {
                self.index_of.insert(item.id.clone(), self.items.len());
                self.items.push(Some(item));
            }
        }
    }
}

/// Counts events. The rows of one event are adjacent.
fn event_count(rows: &[DatasetEvent]) -> usize {
    rows.chunk_by(|one, next| one.event_id == next.event_id).count()
}

/// Returns one row per item, or one row without an item.
fn rows_of(event: Event) -> Vec<DatasetEvent> {
    let row = |item, quantity, price| DatasetEvent {
        event_id: event.id.to_string(),
        user: Some(event.user.clone()),
        session: event.session.clone(),
        context: event.context.clone(),
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
        true => vec![row(None, None, None)],
        false => event.lines.iter().map(|line| row(Some(line.item.clone()), Some(line.quantity), line.price)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_catalog::{ItemWrite, WriteTime};
    use lodestone_core::{
        ids::{EventId, UserId},
        units::{Quantity, UnixMillis},
    };
    use lodestone_events::{EventKind, EventLine};

    fn purchase(id: &str, at: i64, items: &[&str], attribution: Attribution) -> Change {
        let line = |item: &&str| EventLine {
            item: ItemId::parse(item).unwrap(),
            quantity: Quantity::ONE,
            price: None,
            rank: 1,
        };
        let (id, at) = (EventId::parse(id).unwrap(), UnixMillis(at));
        Change::Event(Event {
            lines: items.iter().map(line).collect(),
            order: id.to_string(),
            attribution,
            ..Event::new(id, EventKind::Purchase, UserId::signed_in("p").unwrap(), at)
        })
    }

    fn id(id: &str) -> ItemId {
        ItemId::parse(id).unwrap()
    }

    fn item(id: &str, title: &str) -> Item {
        Item::titled(ItemId::parse(id).unwrap(), title)
    }

    fn written(id: &str, title: &str) -> Change {
        let time = WriteTime::Received(UnixMillis(1));
        Change::Item(ItemChange::Write(Box::new(ItemWrite::of_all(item(id, title), time))))
    }

    #[test]
    fn declarations_of_attributes_are_those_at_the_end_of_the_log() {
        let put = |name: &str, searchable| {
            let declaration = AttributeDeclaration { name: name.to_owned(), kind: 1, searchable, ..Default::default() };
            Change::Rule(RuleChange::PutAttribute(declaration))
        };
        let mut builder = DatasetBuilder::default();
        let deleted = Change::Rule(RuleChange::DeleteAttribute("style".to_owned()));
        [put("color", false), put("style", true), put("color", true), put("size", false), deleted]
            .into_iter()
            .for_each(|change| builder.apply(change));
        let expected = [("color".to_owned(), true), ("size".to_owned(), false)];
        assert_eq!(builder.declared_searchable(), &BTreeMap::from(expected));
    }

    #[test]
    fn a_later_file_wins_over_earlier_writes_of_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let (data, out) = (directory.path().join("data"), directory.path().join("out"));
        fs::create_dir(&data).unwrap();
        let of_file = |id: &str| Item { values_at: Some(UnixMillis(20)), ..item(id, "of the file") };
        dataset::write_items(&data.join(ITEMS), &["a", "b", "c", "d"].map(of_file)).unwrap();
        let write = |id: &str, at: i64| {
            let time = WriteTime::Stated(UnixMillis(at));
            Change::Item(ItemChange::Write(Box::new(ItemWrite::of_all(item(id, "written"), time))))
        };
        let mut builder = DatasetBuilder::open(&data).unwrap();
        builder.apply(write("a", 19));
        builder.apply(write("b", 20));
        builder.apply(Change::Item(ItemChange::Delete { id: id("c"), time: WriteTime::Received(UnixMillis(19)) }));
        builder.apply(Change::Item(ItemChange::Delete { id: id("d"), time: WriteTime::Received(UnixMillis(21)) }));
        builder.write(&out).unwrap();
        let items = dataset::read_items(&out.join(ITEMS)).unwrap();
        let shown: Vec<(&str, &str, Option<i64>)> =
            items.iter().map(|item| (item.id.as_str(), item.title.as_str(), item.values_at.map(|at| at.0))).collect();
        assert_eq!(shown, [("a", "of the file", Some(20)), ("b", "written", None), ("c", "of the file", Some(20))]);
    }

    #[test]
    fn the_log_continues_the_imported_history() {
        let directory = tempfile::tempdir().unwrap();
        let (data, out, again) =
            (directory.path().join("data"), directory.path().join("out"), directory.path().join("again"));
        let mut first = DatasetBuilder::open(&data).unwrap();
        first.apply(written("a", "one"));
        first.apply(written("b", "two"));
        first.apply(purchase("e1", 10, &["a", "b"], Attribution::None));
        let summary = first.write(&data).unwrap();
        assert_eq!((summary.item_count, summary.logged_event_count, summary.interaction_count), (2, 1, 1));

        let mut second = DatasetBuilder::open(&data).unwrap();
        second.apply(Change::Item(ItemChange::Delete { id: id("a"), time: WriteTime::Received(UnixMillis(2)) }));
        second.apply(written("b", "two, better"));
        second.apply(written("c", "three"));
        // A late event, earlier than the imported one.
        second.apply(purchase("e2", 5, &["c"], Attribution::Answer("ours".to_owned())));
        second.apply(purchase("e3", 20, &["c"], Attribution::Foreign("theirs".to_owned())));
        let summary = second.write(&out).unwrap();
        let expected = DatasetSummary {
            item_count: 2,
            imported_event_count: 1,
            logged_event_count: 1,
            foreign_event_count: 1,
            interaction_count: 2,
        };
        assert_eq!(summary, expected);
        let titles: Vec<String> =
            dataset::read_items(&out.join(ITEMS)).unwrap().into_iter().map(|item| item.title).collect();
        assert_eq!(titles, ["two, better", "three"]);
        let ids: Vec<String> =
            dataset::read_events(&out.join(EVENTS)).unwrap().into_iter().map(|row| row.event_id).collect();
        assert_eq!(ids, ["e2", "e1", "e1"]);
        let tokens: Vec<(String, String)> = dataset::read_answer_tokens(&out).unwrap().into_iter().collect();
        assert_eq!(tokens, [("e2".to_owned(), "ours".to_owned())], "foreign tokens are left out");
        // A written dataset is valid input of the next build.
        let same = DatasetBuilder::open(&out).unwrap().write(&again).unwrap();
        assert_eq!(
            (same.item_count, same.imported_event_count, same.interaction_count),
            (2, 2, summary.interaction_count)
        );
    }
}
