//! Power loss: what was not synced is dropped or torn, sector by sector, and created, renamed and removed files come
//! back or disappear. After each restart the log opens, holds every acknowledged change once, and its checkpoint
//! recovers the state of the whole log.
//!
//! The power fails after a random number of operations of appends, rotations, checkpoints, compactions and repairs.
//! `POWER_LOSSES=2000 cargo test --test api power_loss::` is a long form.
use crate::support::{
    events::{START, event},
    items::upsert,
    live_state::{LoggedState, USERS, recovered, view},
    number_setting,
};
use lodestone_catalog::{Item, ItemChange};
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_events::{
    Change, EventKind, EventLog, LogDirectory, checkpoint,
    log::{self, CompactMode, Retention},
    storage::{FileId, FileSystem, Storage, StorageFile},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

const SECTOR_BYTES: usize = 512;
/// The size of a segment's header.
const HEADER_BYTES: usize = 32;
/// Small, so that a run has several segments.
const SEGMENT_BYTES: u64 = 6000;

/// A disk whose power fails. Files are changed in a real directory, too, so that they can be read; what survives is
/// kept here.
#[derive(Default)]
struct Disk {
    /// Operations until the power fails.
    left: usize,
    operations: usize,
    files: Vec<Content>,
    entries: BTreeMap<PathBuf, usize>,
    durable_entries: BTreeMap<PathBuf, usize>,
    /// Changes of entries since the last sync of the directory.
    unsynced: Vec<EntryChange>,
    syncs: Syncs,
}

/// The syncs that have an effect, to test that the test notices the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Syncs {
    #[default]
    All,
    OnlyFiles,
    OnlyDirectories,
}

/// The content of a file at its last sync, and now.
#[derive(Default)]
struct Content {
    durable: Vec<u8>,
    now: Vec<u8>,
    /// Sectors that were written since the last sync.
    unsynced: BTreeSet<usize>,
}

enum EntryChange {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf, usize),
    Remove(PathBuf, usize),
}

impl Disk {
    /// Returns a disk with the files of a directory, which are durable.
    fn of(directory: &Path, left: usize, syncs: Syncs) -> Self {
        let mut disk = Self { left, syncs, ..Self::default() };
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().is_some_and(|name| name != "lock") {
                let bytes = fs::read(&path).unwrap();
                disk.entries.insert(path, disk.files.len());
                disk.files.push(Content { durable: bytes.clone(), now: bytes, unsynced: BTreeSet::new() });
            }
        }
        disk.durable_entries = disk.entries.clone();
        disk
    }

    /// Fails after the power failed: the operation has no effect.
    fn check_power(&self) -> io::Result<()> {
        if self.operations > self.left { Err(io::Error::other("no power")) } else { Ok(()) }
    }

    /// Counts an operation. Fails if the power fails during it: then it is unknown whether it took effect.
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        self.check_power()
    }

    fn change_entry(&mut self, change: EntryChange) -> io::Result<()> {
        self.check_power()?;
        apply(&mut self.entries, &change);
        self.unsynced.push(change);
        self.step()
    }

    /// Writes the files that survive into another directory.
    fn survivors(&self, random: &mut StdRng, directory: &Path) {
        let mut entries = self.durable_entries.clone();
        for change in &self.unsynced {
            if random.random_bool(0.5) {
                apply(&mut entries, change);
            }
        }
        for (path, id) in entries {
            fs::write(directory.join(path.file_name().unwrap()), self.files[id].survivor(random)).unwrap();
        }
    }
}

fn apply(entries: &mut BTreeMap<PathBuf, usize>, change: &EntryChange) {
    match change {
        EntryChange::Create(path, id) => _ = entries.insert(path.clone(), *id),
        EntryChange::Rename(from, to, id) => {
            if entries.get(from) == Some(id) {
                entries.remove(from);
            }
            entries.insert(to.clone(), *id);
        }
        EntryChange::Remove(path, id) => {
            if entries.get(path) == Some(id) {
                entries.remove(path);
            }
        }
    }
}

impl Content {
    fn survivor(&self, random: &mut StdRng) -> Vec<u8> {
        let (old, new) = (self.durable.len(), self.now.len());
        let length = match random.random_range(0..3) {
            0 => old,
            1 => new,
            _ => random.random_range(old.min(new)..=old.max(new)),
        };
        let mut bytes = vec![0; length];
        for (sector, part) in bytes.chunks_mut(SECTOR_BYTES).enumerate() {
            let is_new = self.unsynced.contains(&sector) && random.random_bool(0.5);
            let content = if is_new { &self.now } else { &self.durable };
            let at = (sector * SECTOR_BYTES).min(content.len());
            let count = part.len().min(content.len() - at);
            part[..count].copy_from_slice(&content[at..at + count]);
        }
        bytes
    }
}

/// Storage on a [`Disk`].
#[derive(Clone)]
struct PowerLoss(Arc<Mutex<Disk>>);

struct DiskFile {
    disk: PowerLoss,
    id: usize,
    file: Box<dyn StorageFile>,
}

impl PowerLoss {
    fn file(&self, path: &Path, file: Box<dyn StorageFile>) -> Box<dyn StorageFile> {
        let id = self.0.lock().entries[path];
        Box::new(DiskFile { disk: self.clone(), id, file })
    }
}

impl Storage for PowerLoss {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let mut disk = self.0.lock();
        disk.check_power()?;
        match disk.entries.get(path).copied() {
            Some(id) => {
                disk.files[id].now.clear();
                disk.step()?;
            }
            None => {
                let id = disk.files.len();
                disk.files.push(Content::default());
                disk.change_entry(EntryChange::Create(path.to_owned(), id))?;
            }
        }
        drop(disk);
        Ok(self.file(path, FileSystem.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        self.0.lock().step()?;
        Ok(self.file(path, FileSystem.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        let id = disk.entries[from];
        disk.change_entry(EntryChange::Rename(from.to_owned(), to.to_owned(), id))?;
        FileSystem.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        let id = disk.entries.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        disk.change_entry(EntryChange::Remove(path.to_owned(), id))?;
        FileSystem.remove(path)
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.step()?;
        if disk.syncs != Syncs::OnlyFiles {
            disk.durable_entries = disk.entries.clone();
            disk.unsynced.clear();
        }
        Ok(())
    }
}

impl DiskFile {
    /// Changes the content and counts the operation.
    fn change(&self, change: impl FnOnce(&mut Content)) -> io::Result<()> {
        let mut disk = self.disk.0.lock();
        disk.check_power()?;
        change(&mut disk.files[self.id]);
        disk.step()
    }
}

impl StorageFile for DiskFile {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (begin, end) = (offset as usize, offset as usize + bytes.len());
        self.change(|content| {
            content.now.resize(content.now.len().max(end), 0);
            content.now[begin..end].copy_from_slice(bytes);
            content.unsynced.extend(begin / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES);
        })?;
        self.file.write_at(bytes, offset)
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.change(|content| {
            let before = content.now.len();
            content.now.resize(length as usize, 0);
            content.unsynced.extend(length as usize / SECTOR_BYTES..=before / SECTOR_BYTES);
        })?;
        self.file.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.disk.0.lock();
        disk.step()?;
        if disk.syncs != Syncs::OnlyDirectories {
            let content = &mut disk.files[self.id];
            content.durable = content.now.clone();
            content.unsynced.clear();
        }
        Ok(())
    }

    fn id(&self) -> io::Result<FileId> {
        self.file.id()
    }
}

/// The changes that were acknowledged, by position.
#[derive(Default)]
struct Acknowledged {
    changes: BTreeMap<u64, Change>,
    /// The last acknowledged log position.
    position: u64,
    /// The number of the last event.
    number: usize,
    /// A record was damaged, and no repair has ended since.
    is_damaged: bool,
}

impl Acknowledged {
    /// Returns some purchases and a new title of an item. Sessions of random length vary the sizes of frames.
    fn next_changes(&mut self, random: &mut StdRng) -> Vec<Change> {
        let count = random.random_range(1..12);
        let mut changes = Vec::with_capacity(count + 1);
        for _ in 0..count {
            self.number += 1;
            let mut purchase = event(
                &format!("e{}", self.number),
                EventKind::Purchase,
                &format!("p{}", self.number % USERS),
                &format!("i{}", self.number % 30),
                START + self.number as i64 * 1000,
            );
            purchase.session = "s".repeat(random.random_range(0..300));
            changes.push(Change::Event(purchase));
        }
        let id = ItemId::parse(&format!("b{}", random.random_range(0..2))).unwrap();
        changes.push(upsert(Item::titled(id, &format!("title {}", self.number))));
        changes
    }

    fn add(&mut self, changes: Vec<Change>, position: u64) {
        let first = position + 1 - changes.len() as u64;
        self.changes.extend((first..).zip(changes));
        self.position = position;
    }

    /// Forgets a change that was damaged, and all changes of its item, because a compaction drops replaced ones.
    fn forget(&mut self, position: u64) {
        let item = self.changes.remove(&position).and_then(|change| change.item_id().cloned());
        self.changes.retain(|_, change| item.is_none() || change.item_id() != item.as_ref());
    }

    /// Checks that a log holds everything that was acknowledged, and each event once.
    fn check(&self, directory: &Path, name: &str) {
        let (mut counts, mut items) = (HashMap::<String, usize>::new(), HashMap::<String, usize>::new());
        let last = log::read(directory, 1, |_, _, change| match change {
            Change::Event(event) => *counts.entry(event.id.to_string()).or_default() += 1,
            Change::Item(change) => _ = items.insert(change.id().to_string(), number(title(&change))),
            Change::Rule(_) | Change::Decision(_) => {}
        });
        assert!(last.unwrap() >= self.position, "{name}: acknowledged positions are issued again");
        assert!(counts.values().all(|count| *count == 1), "{name}: an event is stored twice");
        for (position, change) in &self.changes {
            let is_stored = match change {
                Change::Event(event) => counts.contains_key(event.id.as_str()),
                Change::Item(change) => items.get(change.id().as_str()) >= Some(&number(title(change))),
                Change::Rule(_) | Change::Decision(_) => true,
            };
            assert!(is_stored, "{name}: the acknowledged change at position {position} is lost: {change:?}");
        }
    }
}

fn title(change: &ItemChange) -> &str {
    let ItemChange::Write(write) = change else { panic!("no item is deleted") };
    &write.item.title
}

fn number(title: &str) -> usize {
    title.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Runs until the power fails.
fn run(
    directory: &LogDirectory,
    disk: &PowerLoss,
    acknowledged: &mut Acknowledged,
    random: &mut StdRng,
) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    loop {
        let shop = LoggedState::of(EventLog::open(directory.clone())?);
        for _ in 0..random.random_range(1..25) {
            let changes = acknowledged.next_changes(random);
            let write = shop.writer.write(changes.iter().map(|change| (change.clone(), None)).collect());
            let written = runtime.block_on(write)?;
            acknowledged.add(changes, written.log_position);
            if random.random_bool(0.2) {
                shop.checkpoints.write()?;
            }
        }
        drop(shop);
        match random.random_range(0..3) {
            0 => drop(log::compact(directory.clone(), &Retention::default(), UnixMillis::now(), CompactMode::Apply)?),
            1 => {
                damage(directory.path(), disk, acknowledged, random);
                log::repair(directory.clone())?;
                acknowledged.is_damaged = false;
            }
            _ => {}
        }
    }
}

/// Flips a bit of a frame of a random segment, on the disk.
fn damage(directory: &Path, disk: &PowerLoss, acknowledged: &mut Acknowledged, random: &mut StdRng) {
    let mut disk = disk.0.lock();
    let segments: Vec<(PathBuf, usize)> = (disk.entries.iter())
        .filter(|(path, _)| path.extension().is_some_and(|extension| extension == "log"))
        .map(|(path, id)| (path.clone(), *id))
        .collect();
    let (path, id) = &segments[random.random_range(0..segments.len())];
    let content = &mut disk.files[*id];
    if content.now.len() <= HEADER_BYTES {
        return;
    }
    let at = random.random_range(HEADER_BYTES..content.now.len());
    content.now[at] ^= 1 << random.random_range(0..8);
    content.durable = content.now.clone();
    fs::write(path, &content.now).unwrap();
    acknowledged.is_damaged = true;
    for part in log::check(directory).unwrap().damaged {
        part.positions.for_each(|position| acknowledged.forget(position));
    }
}

#[test]
fn acknowledged_changes_survive_power_losses() {
    lose_power(number_setting("POWER_LOSSES", 150), Syncs::All);
}

#[test]
#[should_panic(expected = "seed ")]
fn without_syncs_of_files_changes_are_lost() {
    lose_power(150, Syncs::OnlyDirectories);
}

#[test]
#[should_panic(expected = "seed ")]
fn without_syncs_of_directories_changes_are_lost() {
    lose_power(150, Syncs::OnlyFiles);
}

/// Loses power in a number of runs, each after a random number of operations, and checks the log after each restart.
fn lose_power(losses: usize, syncs: Syncs) {
    let mut kinds = (0, 0, 0, 0);
    for seed in 0..losses.div_ceil(3) {
        let mut random = StdRng::seed_from_u64(seed as u64);
        let mut directory = tempfile::tempdir().unwrap();
        let mut acknowledged = Acknowledged::default();
        for loss in 0..3 {
            let name = format!("seed {seed}, loss {loss}");
            let disk = PowerLoss(Arc::new(Mutex::new(Disk::of(directory.path(), random.random_range(1..250), syncs))));
            let storage = Arc::new(disk.clone());
            let log_directory = LogDirectory::with_storage(directory.path(), storage, SEGMENT_BYTES);
            let error = run(&log_directory, &disk, &mut acknowledged, &mut random).unwrap_err().to_string();
            assert!(error.contains("no power"), "{name}: {error}");
            let restarted = tempfile::tempdir().unwrap();
            disk.0.lock().survivors(&mut random, restarted.path());
            directory = restarted;
            if acknowledged.is_damaged {
                log::repair(directory.path()).unwrap();
                acknowledged.is_damaged = false;
                kinds.3 += 1;
            }
            // The end of the log may be torn, and nothing else.
            let check = log::check(directory.path()).unwrap();
            assert!(check.damaged.is_empty(), "{name}: {check:?}");
            kinds.0 += usize::from(check.torn.is_some());
            (kinds.1, kinds.2) = (kinds.1.max(check.files), kinds.2 + check.absent);
            let log = EventLog::open(directory.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
            acknowledged.check(directory.path(), &name);
            let quick = recovered(&log, directory.path());
            let with_checkpoint = view(&quick.state, &quick.recent, acknowledged.number);
            drop(log);
            let aside = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(directory.path()).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, aside.path().join(path.file_name().unwrap())).unwrap();
            }
            checkpoint::remove(aside.path()).unwrap();
            let log = EventLog::open(aside.path()).unwrap();
            let whole = recovered(&log, aside.path());
            assert_eq!(with_checkpoint, view(&whole.state, &whole.recent, acknowledged.number), "{name}");
        }
    }
    let (torn, files, absent, repairs) = kinds;
    let counts = format!("{torn} torn writes, {files} files, {absent} absent positions, {repairs} interrupted repairs");
    assert!(torn > 0 && files > 2 && absent > 0 && repairs > 0, "{counts}");
}
