//! A shop's state over a log, as a server keeps it.
use crate::support::START;
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::UnixMillis,
};
use lodestone_events::{Change, Deduper, EventLog, Writer};
use lodestone_state::{LiveState, RecoveredState, RecoveryOptions, checkpoints::Checkpoints, recover, state_of_items};
use parking_lot::Mutex;
use std::{collections::BTreeMap, path::Path, sync::Arc};

pub(crate) const USERS: usize = 20;
const IDS_MAX: usize = 1_000_000;

/// A server's state and log, without the server.
pub(crate) struct Shop {
    pub state: Arc<LiveState>,
    pub recent: Arc<Mutex<Deduper>>,
    pub checkpoints: Arc<Checkpoints>,
    pub writer: Writer<()>,
    /// Of the checkpoint that it began with.
    #[allow(dead_code)] // not every test asks
    pub began_at: u64,
}

impl Shop {
    pub(crate) fn open(directory: &Path) -> Self {
        let log = EventLog::open(directory).unwrap();
        let RecoveredState { state, recent, origin, checkpoint } = folded(&log, directory);
        let recent = Arc::new(Mutex::new(recent));
        let checkpoints = Arc::new(Checkpoints::new(state.clone(), recent.clone(), directory, origin, checkpoint));
        let folded = state.clone();
        let apply = move |changes: Vec<(u64, Change, Option<()>)>| {
            for (position, change, _) in changes {
                match change {
                    Change::Event(event) => folded.apply_event(position, &event),
                    Change::Upsert(item) => folded.catalogue.lock().note((item.id.clone(), Some(Arc::new(*item)))),
                    Change::Delete(id) => folded.catalogue.lock().note((id, None)),
                    #[allow(unreachable_patterns)] // other kinds of records are written elsewhere
                    _ => {}
                }
                folded.note_position(position);
            }
        };
        let writer = Writer::start(log, recent.clone(), UnixMillis::now, Box::new(apply)).unwrap();
        Self { state, recent, checkpoints, writer, began_at: checkpoint }
    }
}

pub(crate) fn folded(log: &EventLog, directory: &Path) -> RecoveredState {
    // As if a bundle had two items.
    let items = ["b0", "b1"].map(|id| ItemId::parse(id).unwrap());
    let options = RecoveryOptions {
        directory,
        history: &directory.join("no-history.parquet"),
        history_end: None,
        dedupe_ids_max: IDS_MAX,
    };
    recover(log, &options, &|| state_of_items(items.iter())).unwrap()
}

/// Everything that a state says, by ids and not by this process's keys.
pub(crate) fn view(state: &LiveState, recent: &Deduper, ids: usize) -> String {
    let now = UnixMillis(START + 90 * UnixMillis::DAY);
    let histories: Vec<String> = (0..USERS)
        .map(|user| {
            let Some(history) = state.users.history(&user_id(user)) else { return "unknown".into() };
            let events: Vec<_> = history
                .events
                .iter()
                .map(|e| (state.keys.id(e.item), e.at_s, e.fraction, e.kind, e.quantity))
                .collect();
            format!("{events:?} {:?} {}", history.queries, history.position)
        })
        .collect();
    let top: BTreeMap<_, _> = state
        .popularity
        .read()
        .top(1000, now)
        .into_iter()
        .map(|(key, score)| (state.keys.id(key), format!("{score:.4}")))
        .collect();
    let mut queries: Vec<_> =
        state.queries.queries().into_iter().map(|(text, weight)| format!("{text} {weight}")).collect();
    queries.sort();
    let items: Vec<_> = state.catalogue.lock().after(0, usize::MAX).0;
    let known = (0..ids).filter(|id| recent.contains(&EventId::parse(&format!("e{id}")).unwrap())).count();
    format!("{histories:#?} {top:?} {queries:?} {items:?} {known} {}", state.applied_position())
}

pub(crate) fn user_id(user: usize) -> UserId {
    UserId::signed_in(&format!("p{user}")).unwrap()
}
