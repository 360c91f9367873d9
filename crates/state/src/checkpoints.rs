//! Periodic checkpoints of the state folded from the log; startup replays only the tail.
//!
//! A checkpoint belongs to one log position. The small parts (searches, deduplication ids, written items, rules, and of
//! decisions about incentives a pointer each) are copied while no write is folded. There are too many users for that: they are written one by one during writes, each
//! with the position of its own last event, and the replay skips the events that a history includes. The popularity
//! follows the users with a position of its own, because a refund changes it by the user's history at that moment. Item
//! keys are stored by their order and assigned again on startup, so a checkpoint remains valid after a change of the
//! bundle.
//!
//! Evictions follow from the users and items at each position, so that a replay from a checkpoint must start with
//! exactly those of its position: users that were created later are left out, and those that were evicted while the
//! checkpoint was written are included.
use crate::{
    LiveState, Search,
    event_items::EventItems,
    users::{self, History},
};
use lodestone_catalog::ItemState;
use lodestone_core::ids::{ItemId, ItemKey, UserId};
use lodestone_events::{
    Change, Chunk, Deduper, IncentiveDecision, LogDirectory,
    checkpoint::{Checkpoint, CheckpointError, CheckpointWriter},
};
use lodestone_rules::RuleChange;
use parking_lot::Mutex;
use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Number of changes after which a new checkpoint is due.
const CHANGES_MIN: u64 = 500_000;
/// Number of changes after which a checkpoint is due on shutdown.
const CHANGES_MIN_ON_SHUTDOWN: u64 = 20_000;
/// Minimum pause between two checkpoints, because a checkpoint of many users has several hundred megabytes.
const PAUSE_MIN: Duration = Duration::from_secs(30);
/// Maximum number of keys in one part.
const PART_COUNT: usize = 8192;

/// Kinds of parts. The numbers are stored.
mod part {
    /// See [`super::Origin`].
    pub(super) const ORIGIN: u8 = 1;
    /// Item ids in the order of their keys, each followed by a line feed. An empty line is a key without an item.
    pub(super) const KEYS: u8 = 2;
    pub(super) const USER: u8 = 3;
    /// Log position u64 up to which the popularity counts events; precedes its records.
    pub(super) const POPULARITY_POSITION: u8 = 9;
    pub(super) const POPULARITY: u8 = 4;
    /// A change of an item, as in the log.
    pub(super) const ITEM: u8 = 6;
    /// Time of the last id in seconds u32, then hashes u64.
    pub(super) const EVENT_IDS: u8 = 7;
    /// Count f32, number of users u8, hash of each user u64, then the text.
    pub(super) const SEARCH: u8 = 8;
    /// How many events of each user counted for popularity within the hour.
    pub(super) const USER_RATES: u8 = 10;
    /// Keys u32 of the items that events name, each with the time of its last event in seconds u32.
    pub(super) const EVENT_ITEMS: u8 = 11;
    /// A change of a rule, a set of synonyms, a serving configuration or a campaign, as in the log.
    pub(super) const RULE: u8 = 12;
    /// Whether the incentive was redeemed u8, then the decision, as in the log.
    pub(super) const DECISION: u8 = 13;
}

/// Identifies the imported history that was folded before the log. A checkpoint of another history is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    pub bytes: u64,
    pub crc32c: u32,
}

impl Origin {
    fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[8..].copy_from_slice(&self.crc32c.to_le_bytes());
        bytes
    }
}

/// Writes checkpoints when enough has changed.
pub struct Checkpoints {
    state: Arc<LiveState>,
    /// The log's writer locks it while it folds.
    deduper: Arc<Mutex<Deduper>>,
    directory: LogDirectory,
    origin: Origin,
    /// Log position of the last checkpoint.
    position: AtomicU64,
    last: Mutex<Option<Instant>>,
    /// The state lacks changes of the log.
    is_state_incomplete: AtomicBool,
}

/// The popularity with its log position.
struct PopularityParts {
    position: u64,
    records: Vec<Vec<u8>>,
    user_rates: Vec<u8>,
}

/// The small parts of the state, copied while no write is folded.
struct SmallParts {
    position: u64,
    event_items: Vec<u8>,
    searches: Vec<Search>,
    items: Vec<(ItemId, ItemState)>,
    rules: Vec<RuleChange>,
    decisions: Vec<(Arc<IncentiveDecision>, bool)>,
    chunks: Vec<Arc<Chunk>>,
}

impl Checkpoints {
    /// `directory` is that of the open log, and stays locked as long as this value. `position` is that of the restored
    /// checkpoint, or 0.
    pub fn new(
        state: Arc<LiveState>,
        deduper: Arc<Mutex<Deduper>>,
        directory: &LogDirectory,
        origin: Origin,
        position: u64,
    ) -> Self {
        let (position, last) = (AtomicU64::new(position), Mutex::default());
        let is_state_incomplete = AtomicBool::new(false);
        Self { state, deduper, directory: directory.clone(), origin, position, last, is_state_incomplete }
    }

    /// Returns the log position of the last checkpoint, or 0 if there is none.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Returns whether enough has changed for [`Checkpoints::write`].
    pub fn is_due(&self) -> bool {
        self.state.applied_position() >= self.position() + CHANGES_MIN
            // Locked while a checkpoint is written. The log's writer calls this function and must not wait for that.
            && self.last.try_lock().is_some_and(|last| last.is_none_or(|last| last.elapsed() >= PAUSE_MIN))
    }

    /// Writes no more checkpoints, because the state lacks changes of the log up to its position. Must be called while
    /// the log's writer holds the lock of the deduper.
    pub fn end(&self) {
        self.is_state_incomplete.store(true, Ordering::Release);
    }

    /// Writes a checkpoint if the next startup would take long without it.
    pub fn write_on_shutdown(&self) {
        if !self.is_state_incomplete.load(Ordering::Acquire)
            && self.state.applied_position() >= self.position() + CHANGES_MIN_ON_SHUTDOWN
        {
            self.write_and_log();
        }
    }

    /// Calls [`Checkpoints::write`]. A failure is only logged, because its only effect is a slower startup.
    pub fn write_and_log(&self) {
        let begun = Instant::now();
        match self.write() {
            Ok(position) => {
                tracing::info!(position, seconds = begun.elapsed().as_secs_f64(), "wrote a checkpoint");
            }
            Err(error) => tracing::warn!(%error, "cannot write a checkpoint; the next startup takes longer"),
        }
    }

    /// Writes a checkpoint and returns its log position. Writes to the log wait while the small parts are copied.
    pub fn write(&self) -> io::Result<u64> {
        let mut last = self.last.lock();
        *last = Some(Instant::now());
        let small = self.copy_small()?;
        let keeping = KeepEvicted(&self.state);
        let mut file = CheckpointWriter::create(&self.directory, small.position)?;
        file.put(part::ORIGIN, &self.origin.to_bytes())?;
        let mut until = small.position;
        let mut put_user = |file: &mut CheckpointWriter, user: &UserId, history: &History| {
            if history.created > small.position {
                return Ok(());
            }
            until = until.max(history.position);
            file.put(part::USER, &users::encode(user, history))
        };
        for user in self.state.users.ids() {
            if let Some(history) = self.state.users.history(&user) {
                put_user(&mut file, &user, &history)?;
            }
        }
        for (user, history) in self.state.users.evicted_since_checkpoint() {
            put_user(&mut file, &user, &history)?;
        }
        // After the users, so that no history has an event that it does not count.
        let popularity = self.copy_popularity()?;
        // After both, so that it includes all of their keys.
        put_keys(&mut file, &self.state)?;
        file.put(part::POPULARITY_POSITION, &popularity.position.to_le_bytes())?;
        for record in &popularity.records {
            file.put(part::POPULARITY, record)?;
        }
        file.put(part::USER_RATES, &popularity.user_rates)?;
        for records in small.event_items.chunks(PART_COUNT * EventItems::RECORD_BYTES) {
            file.put(part::EVENT_ITEMS, records)?;
        }
        drop(keeping);
        for search in &small.searches {
            file.put(part::SEARCH, &encode_search(search))?;
        }
        for (id, item) in small.items {
            for change in item.changes(&id) {
                file.put(part::ITEM, &Change::Item(change).encode())?;
            }
        }
        for change in small.rules {
            file.put(part::RULE, &Change::Rule(change).encode())?;
        }
        for (decision, is_redeemed) in small.decisions {
            let decision = Change::Decision(IncentiveDecision::clone(&decision)).encode();
            file.put(part::DECISION, &[&[u8::from(is_redeemed)][..], &decision].concat())?;
        }
        for chunk in &small.chunks {
            let hashes: Vec<u8> = chunk.hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
            file.put(part::EVENT_IDS, &[&chunk.last_s.to_le_bytes()[..], &hashes].concat())?;
        }
        file.finish(until.max(popularity.position))?;
        self.position.store(small.position, Ordering::Relaxed);
        *last = Some(Instant::now());
        Ok(small.position)
    }

    /// Copies the popularity and the users' rates while no write is folded, with their log position.
    fn copy_popularity(&self) -> io::Result<PopularityParts> {
        let _deduper = self.deduper.lock();
        self.check_state()?;
        let popularity = self.state.popularity.lock();
        Ok(PopularityParts {
            position: self.state.applied_position(),
            records: popularity.records(),
            user_rates: popularity.rates_record(),
        })
    }

    fn check_state(&self) -> io::Result<()> {
        match self.is_state_incomplete.load(Ordering::Acquire) {
            true => Err(io::Error::other("the state lacks changes that could not be applied")),
            false => Ok(()),
        }
    }

    fn copy_small(&self) -> io::Result<SmallParts> {
        let deduper = self.deduper.lock();
        self.check_state()?;
        self.state.users.begin_checkpoint();
        Ok(SmallParts {
            position: self.state.applied_position(),
            event_items: self.state.event_items.lock().records(),
            searches: self.state.searches.all(),
            items: self.state.catalogue.lock().after(0, usize::MAX).0,
            rules: self.state.rules.lock().changes(),
            decisions: self.state.incentives.lock().all(),
            chunks: deduper.chunks(),
        })
    }
}

/// Ends the keeping of evicted histories when it is dropped, also after an error.
struct KeepEvicted<'a>(&'a LiveState);

impl Drop for KeepEvicted<'_> {
    fn drop(&mut self) {
        self.0.users.end_checkpoint();
    }
}

fn put_keys(file: &mut CheckpointWriter, state: &LiveState) -> io::Result<()> {
    let count = state.keys.key_count();
    for begin in (0..count).step_by(PART_COUNT) {
        let mut ids = String::new();
        for key in begin..count.min(begin + PART_COUNT) {
            // A line feed separates ids, because an id has no control characters.
            if let Some(id) = state.keys.id(ItemKey(key as u32)) {
                ids.push_str(id.as_str());
            }
            ids.push('\n');
        }
        file.put(part::KEYS, ids.as_bytes())?;
    }
    Ok(())
}

/// Restores the newest checkpoint of the log into an empty state. Returns its log position, or none if there is no
/// checkpoint. After an error the state may contain a part of it.
pub fn restore(
    directory: &Path,
    origin: Origin,
    last_position: u64,
    state: &LiveState,
    deduper: &mut Deduper,
) -> Result<Option<u64>, CheckpointError> {
    let Some(checkpoint) = Checkpoint::newest(directory)? else { return Ok(None) };
    if checkpoint.until > last_position {
        let path = checkpoint.path().to_owned();
        return Err(CheckpointError::Ahead { path, until: checkpoint.until, last: last_position });
    }
    // The keys are stored after the users, which need them.
    let mut keys: Vec<Option<ItemKey>> = Vec::new();
    checkpoint.each_part(|kind, content| match kind {
        part::ORIGIN if content != origin.to_bytes() => Err(CheckpointError::OtherHistory),
        part::KEYS => read_keys(content, state, &mut keys),
        _ => Ok(()),
    })?;
    let key = |stored: ItemKey| keys.get(stored.0 as usize).copied().flatten();
    checkpoint.each_part(|kind, content| {
        restore_part(kind, content, state, deduper, key)
            .map_err(|reason| CheckpointError::Content { kind, reason: reason.to_string() })
    })?;
    state.advance_position(checkpoint.position);
    Ok(Some(checkpoint.position))
}

fn encode_search(search: &Search) -> Vec<u8> {
    let mut bytes = search.count.to_le_bytes().to_vec();
    bytes.push(search.users.len() as u8);
    bytes.extend(search.users.iter().flat_map(|user| user.to_le_bytes()));
    bytes.extend(search.text.as_bytes());
    bytes
}

fn decode_search(content: &[u8]) -> Result<Search, Box<dyn std::error::Error>> {
    const TRUNCATED: &str = "a search is truncated";
    let (count, rest) = content.split_first_chunk().ok_or(TRUNCATED)?;
    let (users, rest) = rest.split_first().ok_or(TRUNCATED)?;
    let (users, text) = rest.split_at_checked(usize::from(*users) * 8).ok_or(TRUNCATED)?;
    let user = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    Ok(Search {
        text: std::str::from_utf8(text)?.to_owned(),
        count: f32::from_le_bytes(*count),
        users: users.chunks_exact(8).map(user).collect(),
    })
}

fn read_keys(content: &[u8], state: &LiveState, keys: &mut Vec<Option<ItemKey>>) -> Result<(), CheckpointError> {
    let bad = |reason: String| CheckpointError::Content { kind: part::KEYS, reason };
    let text = std::str::from_utf8(content).map_err(|error| bad(error.to_string()))?;
    for id in text.split_terminator('\n') {
        keys.push(match id {
            "" => None,
            id => {
                let id = ItemId::parse(id).map_err(|error| bad(error.to_string()))?;
                Some(state.keys.intern_for_event(&id))
            }
        });
    }
    Ok(())
}

fn restore_part(
    kind: u8,
    content: &[u8],
    state: &LiveState,
    deduper: &mut Deduper,
    key: impl Fn(ItemKey) -> Option<ItemKey>,
) -> Result<(), Box<dyn std::error::Error>> {
    match kind {
        part::ORIGIN | part::KEYS => {}
        part::USER => {
            let (user, history) = users::decode(content, key)?;
            state.users.insert(user, history);
        }
        part::EVENT_ITEMS => state.event_items.lock().restore(content, key)?,
        part::POPULARITY_POSITION => {
            let position = content.try_into().map_err(|_| "the position of the popularity has not eight bytes")?;
            state.set_popularity_position(u64::from_le_bytes(position));
        }
        part::POPULARITY => state.popularity.lock().restore(content, key)?,
        part::USER_RATES => state.popularity.lock().restore_rates(content)?,
        part::SEARCH => state.searches.restore(decode_search(content)?),
        part::ITEM => match Change::decode(0, content)? {
            Change::Item(change) => _ = state.catalogue.lock().apply(&change),
            Change::Event(_) | Change::Rule(_) | Change::Decision(_) => {
                return Err("an item change is of another kind".into());
            }
        },
        part::RULE => match Change::decode(0, content)? {
            // The log, which is replayed without the checkpoint, quarantines an entry that is not valid.
            Change::Rule(change) => state.apply_rule(change)?,
            Change::Event(_) | Change::Item(_) | Change::Decision(_) => {
                return Err("a rule change is of another kind".into());
            }
        },
        part::DECISION => {
            let (is_redeemed, content) = content.split_first().ok_or("a decision is truncated")?;
            let Change::Decision(decision) = Change::decode(0, content)? else {
                return Err("a decision is of another kind".into());
            };
            let mut incentives = state.incentives.lock();
            let (id, user) = (decision.decision_id.clone(), decision.user.clone());
            incentives.add(decision);
            if *is_redeemed == 1 {
                incentives.redeem(&id, &user);
            }
        }
        part::EVENT_IDS => {
            let (last_s, hashes) = content.split_first_chunk().ok_or("event ids are truncated")?;
            let hash = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
            let hashes = hashes.chunks_exact(8).map(hash).collect();
            deduper.insert_chunk(&Chunk { last_s: u32::from_le_bytes(*last_s), hashes });
        }
        _ => return Err("the kind of the part is unknown".into()),
    }
    Ok(())
}
