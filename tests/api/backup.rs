//! Copies of a log that is being written: every change that was acknowledged before a copy is in it, once, whatever the
//! writer does meanwhile, and the copy opens with the state of its changes.
use crate::support::{
    events::{START, event},
    live_state::{LoggedState, USERS, recovered, view},
};
use lodestone_core::units::UnixMillis;
use lodestone_events::{
    Applied, Change, Deduper, EventKind, EventLog, LogDirectory, LogError, Quarantined, Writer,
    checkpoint::{Checkpoint, CheckpointWriter},
    log, quarantined,
    storage::FileSystem,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

/// Small segments, so that the writer begins new ones while the log is copied.
const SEGMENT_BYTES: u64 = 4096;
const COPIES: usize = 12;

fn small_segments(directory: &Path) -> LogDirectory {
    LogDirectory::with_storage(directory, Arc::new(FileSystem), SEGMENT_BYTES)
}

fn purchase(number: u64) -> Change {
    let user = format!("p{}", number as usize % USERS);
    let item = format!("i{}", number % 100);
    Change::Event(event(&format!("e{number}"), EventKind::Purchase, &user, &item, START + number as i64))
}

/// Writes changes to an idle log, each in its own write.
fn write(directory: &LogDirectory, numbers: std::ops::Range<u64>) {
    let log = EventLog::open(directory).unwrap();
    let writer: Writer<()> =
        Writer::start(log, Arc::default(), || UnixMillis(START), Box::new(|_| Applied::default())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for number in numbers {
        runtime.block_on(writer.write(vec![(purchase(number), None)])).unwrap();
    }
}

/// Returns the numbers of the events in a log.
fn stored(directory: &Path) -> Vec<u64> {
    let mut numbers = Vec::new();
    log::read(directory, 1, |_, _, change| {
        if let Change::Event(event) = change {
            numbers.push(event.id.as_str()[1..].parse().unwrap());
        }
    })
    .unwrap();
    numbers
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

/// Ends the threads of a test, also if it fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_copy_under_writes_and_checkpoints_has_every_acknowledged_change() {
    let directory = tempfile::tempdir().unwrap();
    let (source, copies) = (directory.path().join("log"), directory.path().join("copies"));
    let shop = LoggedState::of(EventLog::open(small_segments(&source)).unwrap());
    let (acknowledged, is_done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let stop = Stop(&is_done);
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut next = 0;
            while !is_done.load(Ordering::Relaxed) {
                let batch = (next..next + 3).map(|number| (purchase(number), None)).collect();
                runtime.block_on(shop.writer.write(batch)).unwrap();
                next += 3;
                acknowledged.store(next, Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                shop.checkpoints.write().unwrap();
            }
        });
        while files(&source, "checkpoint").is_empty() {
            thread::yield_now();
        }
        for copy in 0..COPIES {
            // The writer has gone on since the last copy.
            let wanted = acknowledged.load(Ordering::SeqCst) + 30;
            while acknowledged.load(Ordering::SeqCst) < wanted {
                thread::yield_now();
            }
            let before = acknowledged.load(Ordering::SeqCst);
            let target = copies.join(copy.to_string());
            let position = log::copy(&source, &target).unwrap();
            let check = log::check(&target).unwrap();
            assert!(check.damaged.is_empty() && check.torn.is_none(), "{check:?}");
            assert_eq!(check.last_position, position);
            assert!(position >= before, "{before} changes were acknowledged, the copy has {position}");
            assert_eq!(stored(&target), (0..position).collect::<Vec<_>>());
        }
        drop(stop);
    });
    // The last copy has several segments and a checkpoint, and opens with the state that its changes fold to.
    let last = copies.join((COPIES - 1).to_string());
    assert!(files(&last, "log").len() > 2);
    assert!(Checkpoint::newest(&last).unwrap().is_some());
    let log = EventLog::open(&last).unwrap();
    let with_checkpoint = recovered(&log, &last);
    let shown = view(&with_checkpoint.state, &Deduper::default(), 0);
    lodestone_events::checkpoint::remove(&last).unwrap();
    assert_eq!(view(&recovered(&log, &last).state, &Deduper::default(), 0), shown);
    for path in files(&last, "log") {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_copy_ends_after_the_last_whole_record_and_takes_further_writes() {
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("log"), directory.path().join("copy"));
    write(&small_segments(&source), 0..5);
    let path = files(&source, "log").remove(0);
    let whole = fs::read(&path).unwrap();
    // A write that is in progress: its last byte is missing.
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(log::copy(&source, &target).unwrap(), 4);
    assert!(log::check(&target).unwrap().torn.is_none());
    write(&small_segments(&target), 7..9);
    assert_eq!(stored(&target), [0, 1, 2, 3, 7, 8]);
    assert_eq!(fs::read(&path).unwrap(), &whole[..whole.len() - 1], "the source is only read");
}

#[test]
fn an_empty_log_and_one_with_a_segment_of_which_only_a_part_exists_are_copied() {
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("log"), directory.path().join("copy"));
    write(&small_segments(&source), 0..0);
    assert_eq!(log::copy(&source, &directory.path().join("empty")).unwrap(), 0);
    assert!(EventLog::exists(&directory.path().join("empty")));
    write(&small_segments(&source), 0..3);
    // A crash interrupted its creation.
    fs::write(source.join("00000000000000000004.log"), b"LDST").unwrap();
    assert_eq!(log::copy(&source, &target).unwrap(), 3);
    assert_eq!(EventLog::open(&target).unwrap().last_position(), 3);
}

#[test]
fn a_damaged_log_and_a_missing_file_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("log");
    write(&small_segments(&source), 0..300);
    let segments = files(&source, "log");
    assert!(segments.len() > 3, "{segments:?}");
    let copied = |name: &str| log::copy(&source, &directory.path().join(name));
    for (name, path) in [("first", &segments[0]), ("middle", &segments[1])] {
        let whole = fs::read(path).unwrap();
        let mut changed = whole.clone();
        changed[100] ^= 1;
        fs::write(path, changed).unwrap();
        let error = copied(name).unwrap_err();
        assert!(matches!(&error, LogError::Damaged { path: found, .. } if found == path), "{error}");
        fs::remove_file(path).unwrap();
        let error = copied(&format!("without {name}")).unwrap_err();
        assert!(matches!(error, LogError::Damaged { .. }), "{error}");
        fs::write(path, whole).unwrap();
    }
    let last = segments.last().unwrap();
    let whole = fs::read(last).unwrap();
    fs::remove_file(last).unwrap();
    let error = copied("without last").unwrap_err().to_string();
    assert!(error.contains("does not exist"), "{error}");
    fs::write(last, whole).unwrap();
    assert_eq!(copied("whole").unwrap(), 300);
    for path in files(&source, "log") {
        fs::remove_file(path).unwrap();
    }
    assert!(copied("without any").unwrap_err().to_string().contains("none of them exists"));
}

#[test]
fn quarantined_changes_of_the_copy_stay_quarantined() {
    let directory = tempfile::tempdir().unwrap();
    let (source, target) = (directory.path().join("log"), directory.path().join("copy"));
    write(&small_segments(&source), 0..6);
    let log = EventLog::open(&source).unwrap();
    let change =
        |position| Quarantined { position, kind: "event".into(), id: format!("e{position}"), reason: "a test".into() };
    log.quarantine(&[change(2), change(6)]).unwrap();
    CheckpointWriter::create(log.directory(), 3).unwrap().finish(3).unwrap();
    // The last change is being written, so it is not in the copy, which issues its position again.
    let path = files(&source, "log").pop().unwrap();
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(log::copy(&source, &target).unwrap(), 5);
    let positions: Vec<u64> = quarantined(&target).unwrap().iter().map(|change| change.position).collect();
    assert_eq!(positions, [2]);
    assert_eq!(stored(&target), [0, 2, 3, 4]);
    assert_eq!(Checkpoint::newest(&target).unwrap().unwrap().position, 3);
}
