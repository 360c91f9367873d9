//! State over an event log, as a server keeps it, without the server.
use super::events::START;
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::UnixMillis,
};
use lodestone_events::{Applied, Change, Deduper, EventLog, Writer};
use lodestone_state::{
    BudgetPeriod, LiveState, RecoveredState, RecoveryOptions, Searches, StateLimits, checkpoints::Checkpoints, recover,
    state_with_items,
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, path::Path, sync::Arc};

/// Users of the tests: `p0` to `p19`.
pub(crate) const USERS: usize = 20;

/// No user or item of the tests is evicted.
pub(crate) const NO_EVICTION: StateLimits = StateLimits { users_max: 1000, event_items_max: 100_000 };

/// Items of the bundle that the state starts from.
const BUNDLE_ITEMS: [&str; 2] = ["b0", "b1"];
const DEDUPE_IDS_MAX: usize = 1_000_000;

/// A log with its writer, and the state folded from it.
pub(crate) struct LoggedState {
    pub(crate) state: Arc<LiveState>,
    pub(crate) recent: Arc<Mutex<Deduper>>,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) writer: Writer<()>,
    /// Log position of the checkpoint that it was opened from. 0: there was none.
    pub(crate) opened_at: u64,
}

impl LoggedState {
    /// Recovers the state of a directory and starts a writer that applies each change to it.
    pub(crate) fn open(directory: &Path) -> Self {
        Self::open_with(directory, NO_EVICTION)
    }

    /// [`LoggedState::open`] with limits.
    pub(crate) fn open_with(directory: &Path, limits: StateLimits) -> Self {
        Self::of_with(EventLog::open(directory).unwrap(), limits)
    }

    /// Recovers the state of an open log and starts a writer that applies each change to it.
    pub(crate) fn of(log: EventLog) -> Self {
        Self::of_with(log, NO_EVICTION)
    }

    fn of_with(log: EventLog, limits: StateLimits) -> Self {
        let RecoveredState { state, recent, origin, checkpoint } = recovered_with(&log, log.directory().path(), limits);
        let recent = Arc::new(Mutex::new(recent));
        let checkpoints =
            Arc::new(Checkpoints::new(state.clone(), recent.clone(), log.directory(), origin, checkpoint));
        let folded = state.clone();
        let apply = move |changes: Vec<(u64, Change, Option<()>)>| {
            for (position, change, _) in changes {
                match change {
                    Change::Event(event) => folded.apply_event(position, &event),
                    Change::Item(change) => _ = folded.catalogue.lock().apply(&change),
                    Change::Rule(change) => folded.apply_rule(change).unwrap(),
                    Change::Decision(decision) => folded.apply_decision(decision),
                }
                folded.advance_position(position);
            }
            Applied::default()
        };
        let writer = Writer::start(log, recent.clone(), UnixMillis::now, Box::new(apply)).unwrap();
        Self { state, recent, checkpoints, writer, opened_at: checkpoint }
    }
}

/// Returns the state before the first event: that of the bundle's items.
pub(crate) fn initial_state(limits: StateLimits) -> Arc<LiveState> {
    let items = BUNDLE_ITEMS.map(|id| ItemId::parse(id).unwrap());
    state_with_items(items.iter(), Searches::default(), limits)
}

/// Recovers the state from the newest checkpoint, if there is one, and the log after it.
pub(crate) fn recovered(log: &EventLog, directory: &Path) -> RecoveredState {
    recovered_with(log, directory, NO_EVICTION)
}

/// [`recovered`] with limits.
pub(crate) fn recovered_with(log: &EventLog, directory: &Path, limits: StateLimits) -> RecoveredState {
    let options = RecoveryOptions {
        directory,
        history: &directory.join("no-history.parquet"),
        history_end: None,
        dedupe_ids_max: DEDUPE_IDS_MAX,
    };
    recover(log, &options, &|| initial_state(limits)).unwrap()
}

/// Formats a state so that equal states of two processes are equal texts: item ids replace the process's item keys.
/// Counts how many of the event ids `e0`, `e1`, … below `e{ids}` the deduplication knows.
pub(crate) fn view(state: &LiveState, recent: &Deduper, ids: usize) -> String {
    // The events and decisions are of the 30 days from `START`.
    let now = UnixMillis(START + 31 * UnixMillis::DAY);
    let histories: Vec<String> = (0..USERS)
        .map(|user| {
            let Some(history) = state.users.history(&user_id(user)) else { return "unknown".into() };
            let events: Vec<_> = (history.events.iter())
                .map(|e| (state.keys.id(e.item), e.at_s, e.fraction, e.kind, e.quantity))
                .collect();
            format!("{events:?} {:?} {} {:?}", history.queries, history.position, history.summary)
        })
        .collect();
    state.publish_popularity(now);
    let popularity = state.popularity();
    let top: BTreeMap<_, _> = (popularity.popular().iter())
        .map(|key| (state.keys.id(*key), format!("{:.4?}", popularity.counts(*key).at_time(now))))
        .collect();
    let mut queries: Vec<_> = state.searches.all().iter().map(|search| format!("{search:?}")).collect();
    queries.sort();
    let items: Vec<_> = state.catalogue.lock().after(0, usize::MAX).0;
    state.publish_rules().unwrap();
    let rules = state.rules();
    let rules: Vec<_> = (rules.rules.values().map(|rule| format!("{:?}", rule.rule)))
        .chain(rules.synonym_sets.values().map(|set| format!("{:?}", set.set)))
        .chain(rules.serving_configs.values().map(|config| format!("{:?}", config.config)))
        .chain(rules.attributes.values().map(|attribute| format!("{:?}", attribute.declaration)))
        .chain(rules.campaigns.values().map(|campaign| format!("{:?}", campaign.campaign)))
        .collect();
    let mut incentives = state.incentives.lock();
    let campaigns: Vec<_> = ["c0", "c1"].map(|campaign| incentives.campaign_use(campaign, now)).into();
    let end = UnixMillis(START + 60 * UnixMillis::DAY);
    let period = BudgetPeriod { budget_micros: 300, end, valid_ms: 14 * UnixMillis::DAY };
    let prices: Vec<_> = ["c0", "c1"].map(|campaign| incentives.budget_price(campaign, &period, now)).into();
    let allowances: Vec<usize> = (0..USERS)
        .map(|user| incentives.user_decisions_since("c0", user_id(user).as_str(), UnixMillis(START)))
        .collect();
    let known = (0..ids).filter(|id| recent.contains(&EventId::parse(&format!("e{id}")).unwrap())).count();
    format!(
        "{histories:#?} {top:?} {queries:?} {items:?} {rules:?} {campaigns:?} {prices:?} {allowances:?} {known} {}",
        state.applied_position()
    )
}

/// Returns the id of a user of the tests.
pub(crate) fn user_id(user: usize) -> UserId {
    UserId::signed_in(&format!("p{user}")).unwrap()
}
