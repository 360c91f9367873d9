//! The event log, its writer, and the state folded from events, through their public interfaces.
use crate::support::{
    events::{START, event},
    wait::block_until,
};
use lodestone_catalog::ItemKeys;
use lodestone_core::{
    ids::{ItemKey, UserId},
    units::UnixMillis,
};
use lodestone_events::{Applied, Change, Deduper, Event, EventKind, EventLog, LogError, Outcome, Popularity, Writer};
use lodestone_state::users::{EVENTS_MAX, QUERIES_MAX, Users};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// A small state: users, popularity, and the positions that were applied.
#[derive(Default)]
struct State {
    keys: ItemKeys,
    users: Users,
    popularity: Popularity,
    positions: Vec<u64>,
}

impl State {
    fn apply(&mut self, position: u64, change: &Change) {
        self.positions.push(position);
        if let Change::Event(event) = change {
            self.users.apply(position, event, &self.keys);
            self.popularity.apply(event, &self.keys);
        }
    }

    /// Formats the state of the users `p0` to `p4` and of popularity, so that equal states are equal texts.
    fn view(&self) -> String {
        let now = UnixMillis(START + 90 * UnixMillis::DAY);
        let histories: Vec<_> = (0..5).map(|user| self.users.history(&id(user))).collect();
        let popularity: Vec<_> =
            self.popularity.counts().iter().map(|(key, counts)| (key, counts.at_time(now))).collect();
        format!("{:?} {histories:?} {popularity:?}", self.positions)
    }
}

fn id(user: u8) -> UserId {
    UserId::signed_in(&format!("p{user}")).unwrap()
}

/// Opens the log, folds it into a state, and starts a writer that applies further changes to that state.
fn open(directory: &Path) -> (Writer<()>, Arc<Mutex<State>>) {
    let log = EventLog::open(directory).unwrap();
    let (mut state, mut recent) = (State::default(), Deduper::default());
    log.replay(0, |position, at, change| {
        if let Change::Event(event) = &change {
            recent.insert_event(event, at);
        }
        state.apply(position, &change);
    })
    .unwrap();
    let state = Arc::new(Mutex::new(state));
    let shared = Arc::clone(&state);
    let apply = Box::new(move |changes: Vec<(u64, Change, Option<()>)>| {
        let mut state = shared.lock();
        changes.iter().for_each(|(position, change, _)| state.apply(*position, change));
        Applied::default()
    });
    (Writer::start(log, Arc::new(Mutex::new(recent)), UnixMillis::now, apply).unwrap(), state)
}

fn changes(events: &[Event]) -> Vec<(Change, Option<()>)> {
    events.iter().map(|event| (Change::Event(event.clone()), None)).collect()
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap())
}

fn write(writer: &Writer<()>, events: &[Event]) -> Vec<Outcome> {
    runtime().block_on(writer.write(changes(events))).unwrap().outcomes
}

/// Events of five users and six items within 60 days, in any order; ids may repeat.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let one = (0u16..150, 0usize..14, 0u8..5, 0u8..6, 0i64..60 * 86_400).prop_map(|(id, kind, user, item, at)| {
        let (user, item) = (format!("p{user}"), format!("i{item}"));
        event(&format!("e{id}"), EventKind::ALL[kind], &user, &item, START + at * 1000)
    });
    proptest::collection::vec(one, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_replay_restores_the_live_state(events in events(), batch in 1usize..9, restart_every in 1usize..6) {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, mut state) = open(directory.path());
        for (number, batch) in events.chunks(batch).enumerate() {
            write(&writer, batch);
            if number % restart_every == 0 {
                let before = state.lock().view();
                drop(writer);
                (writer, state) = open(directory.path());
                prop_assert_eq!(state.lock().view(), before);
            }
        }
        let before = state.lock().view();
        drop(writer);
        prop_assert_eq!(open(directory.path()).1.lock().view(), before);
    }

    #[test]
    fn duplicate_events_change_nothing(events in events(), restart: bool) {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, mut state) = open(directory.path());
        write(&writer, &events);
        let before = state.lock().view();
        if restart {
            drop(writer);
            (writer, state) = open(directory.path());
        }
        let outcomes = write(&writer, &events);
        prop_assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Duplicate));
        prop_assert_eq!(state.lock().view(), before);
    }

    #[test]
    fn the_order_of_two_users_events_does_not_matter(events in events()) {
        let keys = ItemKeys::default();
        let (mixed, sorted) = (Users::default(), Users::default());
        events.iter().for_each(|event| drop(mixed.apply(1, event, &keys)));
        let mut by_user = events.clone();
        by_user.sort_by(|a, b| a.user.cmp(&b.user));
        by_user.iter().for_each(|event| drop(sorted.apply(1, event, &keys)));
        for user in 0..5 {
            prop_assert_eq!(mixed.history(&id(user)), sorted.history(&id(user)));
        }
    }

    /// Events with different times that arrive late or out of order fold to the state of the ordered events.
    #[test]
    fn any_order_of_arrival_folds_to_the_same_state(
        order in proptest::collection::vec((0usize..14, 0u8..3, 0u8..6), 1..400)
            .prop_map(|list| list.into_iter().enumerate().collect::<Vec<_>>())
            .prop_shuffle()
    ) {
        // At least 4 ms apart, because that is the resolution of times in a history.
        let make = |(number, (kind, user, item)): &(usize, (usize, u8, u8))| {
            let (user, item) = (format!("p{user}"), format!("i{item}"));
            event(&format!("e{number}"), EventKind::ALL[*kind], &user, &item, START + *number as i64 * 5)
        };
        let shuffled: Vec<Event> = order.iter().map(make).collect();
        let mut sorted = shuffled.clone();
        sorted.sort_by_key(|event| event.at);
        let keys = ItemKeys::default();
        let (as_arrived, in_order) = (Users::default(), Users::default());
        let (mut arrived, mut ordered) = (Popularity::default(), Popularity::default());
        for event in &shuffled {
            as_arrived.apply(1, event, &keys);
            arrived.apply(event, &keys);
        }
        for event in &sorted {
            in_order.apply(1, event, &keys);
            ordered.apply(event, &keys);
        }
        for user in 0..3 {
            prop_assert_eq!(as_arrived.history(&id(user)), in_order.history(&id(user)));
        }
        let now = UnixMillis(START + 10 * UnixMillis::DAY);
        for item in 0..keys.len() {
            let [a, b] = [&arrived, &ordered].map(|popularity| popularity.counts().get(ItemKey(item as u32)).score(now));
            prop_assert!((a - b).abs() <= 1e-5 * a.max(1.0));
        }
    }

    #[test]
    fn a_history_holds_the_latest_events_in_order_of_time(times in proptest::collection::vec(0i64..5000, 1..450)) {
        let (keys, users) = (ItemKeys::default(), Users::default());
        for (number, at) in times.iter().enumerate() {
            users.apply(1, &event(&format!("e{number}"), EventKind::View, "p0", "i", at * 1000), &keys);
            users.apply(1, &event(&format!("s{number}"), EventKind::Search, "p0", "i", at * 1000), &keys);
        }
        let history = users.history(&id(0)).unwrap();
        let mut wanted: Vec<u32> = times.iter().map(|at| *at as u32).collect();
        wanted.sort_unstable();
        let last = |count: usize| wanted[wanted.len().saturating_sub(count)..].to_vec();
        prop_assert_eq!(history.events.iter().map(|event| event.at_s).collect::<Vec<_>>(), last(EVENTS_MAX));
        prop_assert_eq!(history.queries.iter().map(|query| query.at_s).collect::<Vec<_>>(), last(QUERIES_MAX));
    }
}

#[test]
fn a_duplicate_within_one_write_counts_once() {
    let directory = tempfile::tempdir().unwrap();
    let (writer, state) = open(directory.path());
    let purchase = event("e", EventKind::Purchase, "p0", "i", START);
    assert_eq!(write(&writer, &[purchase.clone(), purchase]), [Outcome::Accepted, Outcome::Duplicate]);
    assert_eq!(state.lock().popularity.counts().get(ItemKey(0)).score(UnixMillis(START)), 4.0);
    assert_eq!(writer.position(), 1);
}

#[test]
fn a_dropped_writer_has_written_all_queued_changes() {
    let directory = tempfile::tempdir().unwrap();
    let (writer, _) = open(directory.path());
    let writer = Arc::new(writer);
    let waiting: Vec<_> = (0..50)
        .map(|number| {
            let writer = Arc::clone(&writer);
            let events = [event(&format!("e{number}"), EventKind::View, "p0", "i", START)];
            runtime().spawn(async move { writer.write(changes(&events)).await.unwrap() })
        })
        .collect();
    drop(writer);
    for task in waiting {
        runtime().block_on(task).unwrap();
    }
    // The last task may still be dropping the writer.
    block_until("the log is released", Duration::from_secs(10), || {
        !matches!(EventLog::open(directory.path()), Err(LogError::InUse { .. }))
    });
    assert_eq!(EventLog::open(directory.path()).unwrap().last_position(), 50);
}

#[test]
fn a_full_queue_refuses_a_write_instead_of_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let (open_gate, gate) = crossbeam_channel::bounded::<()>(0);
    let log = EventLog::open(directory.path()).unwrap();
    let apply = Box::new(move |_: Vec<(u64, Change, Option<()>)>| {
        let _ = gate.recv();
        Applied::default()
    });
    let writer = Arc::new(Writer::start(log, Arc::default(), UnixMillis::now, apply).unwrap());
    let (refused, stored) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..3000)
        .map(|number| {
            let (writer, refused, stored) = (Arc::clone(&writer), Arc::clone(&refused), Arc::clone(&stored));
            let events = [event(&format!("e{number}"), EventKind::View, "p0", "i", START)];
            runtime().spawn(async move {
                match writer.write(changes(&events)).await {
                    Ok(_) => stored.fetch_add(1, Ordering::Relaxed),
                    Err(LogError::Overloaded) => refused.fetch_add(1, Ordering::Relaxed),
                    Err(error) => panic!("{error}"),
                };
            })
        })
        .collect();
    block_until("a write is refused", Duration::from_secs(20), || refused.load(Ordering::Relaxed) > 0);
    drop(open_gate);
    for task in tasks {
        runtime().block_on(task).unwrap();
    }
    assert_eq!(writer.position() as usize, stored.load(Ordering::Relaxed));
}

#[test]
fn a_panic_of_the_whole_apply_stops_the_writer_and_a_restart_applies_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = EventLog::open(directory.path()).unwrap();
    let apply = Box::new(|_: Vec<(u64, Change, Option<()>)>| panic!("a bug"));
    let writer = Writer::start(log, Arc::default(), UnixMillis::now, apply).unwrap();
    let write = |id: &str| runtime().block_on(writer.write(changes(&[event(id, EventKind::View, "p0", "i", START)])));
    assert!(matches!(write("e1"), Err(LogError::Stopping { .. })));
    assert!(matches!(write("e2"), Err(LogError::Stopped)));
    assert!(*writer.is_stopped().borrow());
    assert_eq!(writer.position(), 0);
    drop(writer);
    let (_writer, state) = open(directory.path());
    assert_eq!(state.lock().positions, [1]);
}

#[test]
fn a_write_that_waits_for_space_in_the_queue_is_not_refused() {
    let directory = tempfile::tempdir().unwrap();
    let log = EventLog::open(directory.path()).unwrap();
    let writer: Writer<()> =
        Writer::start(log, Arc::default(), UnixMillis::now, Box::new(|_| Applied::default())).unwrap();
    let writer = Arc::new(writer);
    let tasks: Vec<_> = (0..3000)
        .map(|number| {
            let writer = Arc::clone(&writer);
            let events = [event(&format!("e{number}"), EventKind::View, "p0", "i", START)];
            runtime().spawn(async move { writer.queue(changes(&events)).await.unwrap().written().await.unwrap() })
        })
        .collect();
    for task in tasks {
        runtime().block_on(task).unwrap();
    }
    assert_eq!(writer.position(), 3000);
}

/// The clock of the writer in the test below, in milliseconds.
static CLOCK_MS: AtomicI64 = AtomicI64::new(START);

#[test]
fn an_id_is_a_duplicate_for_seven_days_of_ingestion_time_across_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let open = || {
        let log = EventLog::open(directory.path()).unwrap();
        let mut recent = Deduper::with_capacity(64);
        log.replay(0, |_, at, change| {
            if let Change::Event(event) = &change {
                recent.insert_event(event, at);
            }
        })
        .unwrap();
        let clock = || UnixMillis(CLOCK_MS.load(Ordering::Relaxed));
        let writer: Writer<()> =
            Writer::start(log, Arc::new(Mutex::new(recent)), clock, Box::new(|_| Applied::default())).unwrap();
        writer
    };
    // Deduplication goes by ingestion time, so that event times in the past do not matter.
    let old = |id: &str| event(id, EventKind::Purchase, "p0", "i", START - 900 * UnixMillis::DAY);
    let mut writer = open();
    assert_eq!(write(&writer, &[old("first")]), [Outcome::Accepted]);
    for day in 1..=20 {
        CLOCK_MS.fetch_add(UnixMillis::DAY, Ordering::Relaxed);
        drop(writer);
        writer = open();
        if day <= 7 {
            assert_eq!(write(&writer, &[old("first")]), [Outcome::Duplicate], "day {day}");
        }
        let others: Vec<Event> = (0..3).map(|n| old(&format!("{day}-{n}"))).collect();
        write(&writer, &others);
    }
    // The id has expired, so that the event counts again.
    assert_eq!(write(&writer, &[old("first")]), [Outcome::Accepted]);
}

#[test]
fn a_cart_holds_items_that_were_added_and_neither_removed_nor_bought() {
    let (keys, users) = (ItemKeys::default(), Users::default());
    let mut number = 0;
    let mut add = |kind, item: &str| {
        number += 1;
        users.apply(number, &event(&format!("e{number}"), kind, "p0", item, START + number as i64 * 1000), &keys);
    };
    for item in ["a", "b", "c", "a"] {
        add(EventKind::AddToCart, item);
    }
    add(EventKind::Purchase, "b");
    add(EventKind::RemoveFromCart, "a");
    add(EventKind::Impression, "d");
    add(EventKind::Favorite, "a");
    add(EventKind::Favorite, "c");
    add(EventKind::Unfavorite, "a");
    let history = users.history(&id(0)).unwrap();
    assert_eq!(history.cart(), [(ItemKey(0), 1.0), (ItemKey(2), 1.0)]);
    assert_eq!(history.favorites(), [ItemKey(2)]);
    assert_eq!((history.events.len(), history.position), (9, 10));
}

#[test]
fn context_events_are_not_stored_and_intern_no_item_keys() {
    let (keys, users) = (ItemKeys::default(), Users::default());
    users.apply(1, &event("a", EventKind::View, "p0", "known", START), &keys);
    let context = ["known", "unknown"].map(|item| event(item, EventKind::AddToCart, "p0", item, START + 5000));
    let history = users.history(&id(0)).unwrap().with_context(&context, &keys);
    assert_eq!(history.cart(), [(ItemKey(0), 1.0)]);
    assert_eq!(users.history(&id(0)).unwrap().events.len(), 1);
    assert_eq!(keys.len(), 1);
}
