//! The state of the log's fold, taken down now and then, so that a start reads only what came after.
//!
//! A checkpoint belongs to one position of the log. What is small (popularity, searches, the remembered event ids, the
//! written items) is copied while no write is folded. Users are too many for that: they are taken down one by one while
//! writes go on, each with the position of its own last event, and the replay leaves out what a user has already.
//! Item keys are written by their order and given anew at the start, so a checkpoint outlives a change of the bundle.
use crate::LiveState;
use crate::catalog_changes::ItemChange;
use crate::users;
use lodestone_core::ids::{ItemId, ItemKey};
use lodestone_events::{
    Change, Chunk, Deduper,
    checkpoint::{Checkpoint, CheckpointError, CheckpointWriter},
};
use parking_lot::Mutex;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Changes after which a new checkpoint is worth its writing.
const CHANGES_MIN: u64 = 500_000;
/// The same when the server stops.
const CHANGES_MIN_AT_END: u64 = 20_000;
/// Between two checkpoints: with many users each is some hundred megabytes.
const PAUSE_MIN: Duration = Duration::from_secs(30);
/// Keys, popular items and ids of a part.
const PART_COUNT: usize = 8192;

/// Kinds of parts. The numbers are stored.
mod part {
    /// What the state began with: see [`super::Origin`].
    pub(super) const ORIGIN: u8 = 1;
    /// Item ids in the order of their keys, each with a line feed after it.
    pub(super) const KEYS: u8 = 2;
    pub(super) const USER: u8 = 3;
    pub(super) const POPULARITY: u8 = 4;
    /// The weight f32, then the text.
    pub(super) const QUERY: u8 = 5;
    /// A written or deleted item, as in the log.
    pub(super) const ITEM: u8 = 6;
    /// When the last was stored u32, then hashes u64.
    pub(super) const EVENT_IDS: u8 = 7;
}

/// The imported history that was folded before the log. Another one makes another state.
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

/// Takes the state down when enough has changed.
pub struct Checkpoints {
    state: Arc<LiveState>,
    /// The log's writer holds it while it folds.
    recent: Arc<Mutex<Deduper>>,
    directory: PathBuf,
    origin: Origin,
    /// Of the last one.
    position: AtomicU64,
    last: Mutex<Option<Instant>>,
}

/// What was copied while no write was folded.
struct Small {
    position: u64,
    popularity: Vec<u8>,
    queries: Vec<(String, f32)>,
    items: Vec<ItemChange>,
    chunks: Vec<Arc<Chunk>>,
}

impl Checkpoints {
    /// `position`: that of the checkpoint which the state began with, otherwise 0.
    pub fn new(
        state: Arc<LiveState>,
        recent: Arc<Mutex<Deduper>>,
        directory: &Path,
        origin: Origin,
        position: u64,
    ) -> Self {
        let (position, last) = (AtomicU64::new(position), Mutex::default());
        Self { state, recent, directory: directory.to_owned(), origin, position, last }
    }

    /// The position of the last checkpoint; 0: there is none.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Whether so much has changed that [`Checkpoints::write`] pays.
    pub fn is_due(&self) -> bool {
        self.state.applied_position() >= self.position() + CHANGES_MIN
            // Held while one is written: the log's writer, which asks, must not wait for that.
            && self.last.try_lock().is_some_and(|last| last.is_none_or(|last| last.elapsed() >= PAUSE_MIN))
    }

    /// Takes the state down, if the next start would take long without it.
    pub fn write_on_shutdown(&self) {
        if self.state.applied_position() >= self.position() + CHANGES_MIN_AT_END {
            self.write_and_log();
        }
    }

    /// [`Checkpoints::write`]; a failure costs time at the next start and nothing else, so it is only logged.
    pub fn write_and_log(&self) {
        let begun = Instant::now();
        match self.write() {
            Ok(position) => {
                tracing::info!(position, seconds = begun.elapsed().as_secs_f64(), "wrote a checkpoint");
            }
            Err(error) => tracing::warn!(%error, "a checkpoint could not be written; a start takes longer without it"),
        }
    }

    /// Takes the state down as of now and gives its position. Writes wait while the small parts are copied.
    pub fn write(&self) -> io::Result<u64> {
        let mut last = self.last.lock();
        *last = Some(Instant::now());
        let small = self.copy_small();
        let mut file = CheckpointWriter::create(&self.directory, small.position)?;
        file.put(part::ORIGIN, &self.origin.to_bytes())?;
        for user in self.state.users.ids() {
            if let Some(history) = self.state.users.history(&user) {
                file.put(part::USER, &users::encode(&user, &history))?;
            }
        }
        // After the users, so that it has every key that they have.
        put_keys(&mut file, &self.state)?;
        for records in small.popularity.chunks(PART_COUNT * lodestone_events::Popularity::RECORD_BYTES) {
            file.put(part::POPULARITY, records)?;
        }
        for (text, weight) in &small.queries {
            file.put(part::QUERY, &[&weight.to_le_bytes(), text.as_bytes()].concat())?;
        }
        for (id, item) in small.items {
            let change = item.map_or(Change::Delete(id), |item| Change::Upsert(Box::new((*item).clone())));
            file.put(part::ITEM, &change.encode())?;
        }
        for chunk in &small.chunks {
            let hashes: Vec<u8> = chunk.hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
            file.put(part::EVENT_IDS, &[&chunk.last_s.to_le_bytes()[..], &hashes].concat())?;
        }
        file.finish(self.state.applied_position())?;
        self.position.store(small.position, Ordering::Relaxed);
        *last = Some(Instant::now());
        Ok(small.position)
    }

    fn copy_small(&self) -> Small {
        let recent = self.recent.lock();
        Small {
            position: self.state.applied_position(),
            popularity: self.state.popularity.read().records(),
            queries: self.state.queries.queries(),
            items: self.state.catalogue.lock().after(0, usize::MAX).0,
            chunks: recent.chunks(),
        }
    }
}

fn put_keys(file: &mut CheckpointWriter, state: &LiveState) -> io::Result<()> {
    let count = state.keys.len();
    for begin in (0..count).step_by(PART_COUNT) {
        let mut ids = String::new();
        for key in begin..count.min(begin + PART_COUNT) {
            // An id has no control character.
            ids.push_str(state.keys.id(ItemKey(key as u32)).as_str());
            ids.push('\n');
        }
        file.put(part::KEYS, ids.as_bytes())?;
    }
    Ok(())
}

/// Puts the newest checkpoint of the log into a state in which nobody is known, and gives its position. None: there is no
/// checkpoint. After an error the state may hold a part of it.
pub fn restore(
    directory: &Path,
    origin: Origin,
    last_position: u64,
    state: &LiveState,
    recent: &mut Deduper,
) -> Result<Option<u64>, CheckpointError> {
    let Some(checkpoint) = Checkpoint::newest(directory)? else { return Ok(None) };
    if checkpoint.until > last_position {
        return Err(CheckpointError::Ahead { until: checkpoint.until, last: last_position });
    }
    // The keys come behind the users.
    let mut keys: Vec<ItemKey> = Vec::new();
    checkpoint.each_part(|kind, content| match kind {
        part::ORIGIN if content != origin.to_bytes() => Err(CheckpointError::OtherHistory),
        part::KEYS => read_keys(content, state, &mut keys),
        _ => Ok(()),
    })?;
    let key = |written: ItemKey| keys.get(written.0 as usize).copied();
    checkpoint.each_part(|kind, content| {
        restore_part(kind, content, state, recent, key)
            .map_err(|reason| CheckpointError::Content { kind, reason: reason.to_string() })
    })?;
    state.note_position(checkpoint.position);
    Ok(Some(checkpoint.position))
}

fn read_keys(content: &[u8], state: &LiveState, keys: &mut Vec<ItemKey>) -> Result<(), CheckpointError> {
    let bad = |reason: String| CheckpointError::Content { kind: part::KEYS, reason };
    for id in std::str::from_utf8(content).map_err(|error| bad(error.to_string()))?.lines() {
        keys.push(state.keys.intern(&ItemId::parse(id).map_err(|error| bad(error.to_string()))?));
    }
    Ok(())
}

fn restore_part(
    kind: u8,
    content: &[u8],
    state: &LiveState,
    recent: &mut Deduper,
    key: impl Fn(ItemKey) -> Option<ItemKey>,
) -> Result<(), Box<dyn std::error::Error>> {
    match kind {
        part::ORIGIN | part::KEYS => {}
        part::USER => {
            let (user, history) = users::decode(content, key)?;
            state.users.insert(user, history);
        }
        part::POPULARITY => state.popularity.write().restore(content, key)?,
        part::QUERY => {
            let (weight, text) = content.split_first_chunk().ok_or("a search is cut off")?;
            state.queries.add_query(std::str::from_utf8(text)?, f32::from_le_bytes(*weight));
        }
        part::ITEM => match Change::decode(0, content)? {
            Change::Upsert(item) => state.catalogue.lock().note((item.id.clone(), Some(Arc::new(*item)))),
            Change::Delete(id) => state.catalogue.lock().note((id, None)),
            _ => return Err("an item is none".into()),
        },
        part::EVENT_IDS => {
            let (last_s, hashes) = content.split_first_chunk().ok_or("event ids are cut off")?;
            let hash = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
            let hashes = hashes.chunks_exact(8).map(hash).collect();
            recent.insert_chunk(&Chunk { last_s: u32::from_le_bytes(*last_s), hashes });
        }
        _ => return Err("the kind is not known".into()),
    }
    Ok(())
}
