//! Check, repair, compaction and export of the event log through its public interface.
use crate::support::events::{START, event};
use lodestone_catalog::{Item, ItemKeys};
use lodestone_core::{
    ids::{ItemId, UserId},
    units::UnixMillis,
};
use lodestone_dataset as dataset;
use lodestone_events::{
    Attribution, Change, EventKind, EventLog, LogError, Writer,
    log::{self, CompactMode, Retention},
};
use lodestone_state::users::Users;
use proptest::prelude::*;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Writes each group of changes in one write. The ingestion time of all is `START`.
fn write(directory: &Path, groups: &[Vec<Change>]) {
    let log = EventLog::open(directory).unwrap();
    let writer: Writer<()> = Writer::start(log, Arc::default(), || UnixMillis(START), Box::new(|_| ())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for group in groups {
        runtime.block_on(writer.write(group.iter().map(|change| (change.clone(), None)).collect())).unwrap();
    }
}

fn view(number: usize) -> Change {
    let at = START + number as i64 * 1000;
    Change::Event(event(&format!("e{number}"), EventKind::View, "p0", &format!("i{number}"), at))
}

fn views(count: usize) -> Vec<Vec<Change>> {
    (0..count).map(|number| vec![view(number)]).collect()
}

/// Returns the position and id of each event in the log.
fn stored(directory: &Path) -> Vec<(u64, String)> {
    let mut stored = Vec::new();
    log::read(directory, 1, |position, _, change| {
        if let Change::Event(event) = change {
            stored.push((position, event.id.to_string()));
        }
    })
    .unwrap();
    stored
}

/// Returns the path of the first segment.
fn segment(directory: &Path) -> PathBuf {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    paths.sort();
    paths.remove(0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A short overwritten range in the middle of a log: the log does not open, `check` reports the range, the repair drops the
    /// records in it and no other, and the log continues at its old position.
    #[test]
    fn a_repair_keeps_all_undamaged_records(count in 3usize..30, share in 0.0f64..1.0, length in 1usize..200, value: u8) {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &views(count));
        let before = stored(directory.path());
        let path = segment(directory.path());
        let mut bytes = fs::read(&path).unwrap();
        // A whole frame follows the range, because otherwise it would be a torn tail. The lengths of frames differ by a few bytes.
        let last_frame = bytes.len() - (bytes.len() - 28) / count - 8;
        let at = 28 + ((last_frame - 28) as f64 * share) as usize;
        let end = (at + length).min(last_frame);
        prop_assume!(bytes[at..end].iter().any(|byte| *byte != value));
        bytes[at..end].fill(value);
        fs::write(&path, bytes).unwrap();

        let refused = EventLog::open(directory.path()).err();
        let is_reported = matches!(&refused, Some(LogError::Damaged { offset, .. }) if *offset <= at as u64 && *offset + 200 > at as u64);
        prop_assert!(is_reported, "{:?} for byte {}", refused, at);
        let check = log::check(directory.path()).unwrap();
        prop_assert_eq!(check.damaged.len(), 1);
        let lost = check.damaged[0].positions.clone();
        prop_assert!(lost.clone().count() <= 1 + (end - at) / 20 + 1);

        log::repair(directory.path()).unwrap();
        let again = log::check(directory.path()).unwrap();
        prop_assert!(again.damaged.is_empty() && again.absent == lost.clone().count() as u64);
        let kept: Vec<_> = before.into_iter().filter(|(position, _)| !lost.contains(position)).collect();
        prop_assert_eq!(stored(directory.path()), kept);
        prop_assert_eq!(EventLog::open(directory.path()).unwrap().last_position(), count as u64);
        write(directory.path(), &[vec![view(1000)]]);
        prop_assert_eq!(stored(directory.path()).pop().unwrap(), (count as u64 + 1, "e1000".to_owned()));
    }

    /// Random damage: no reader panics, and every event that is read was written.
    #[test]
    fn damage_causes_no_panic_and_no_invented_event(count in 1usize..10, cuts in proptest::collection::vec((0.0f64..1.0, any::<u8>()), 1..6)) {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &views(count));
        let before = stored(directory.path());
        let path = segment(directory.path());
        let mut bytes = fs::read(&path).unwrap();
        for (share, value) in cuts {
            let at = (bytes.len() as f64 * share) as usize;
            match value % 3 {
                0 => bytes[at] = value,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, value),
            }
        }
        fs::write(&path, bytes).unwrap();
        let _ = log::check(directory.path()).unwrap();
        let _ = EventLog::open(directory.path());
        log::repair(directory.path()).unwrap();
        let log = EventLog::open(directory.path()).unwrap();
        log.replay(1, |position, _, change| {
            let Change::Event(event) = change else { panic!("only events were written") };
            assert!(before.contains(&(position, event.id.to_string())));
        }).unwrap();
    }
}

#[test]
fn a_repair_continues_after_a_missing_segment() {
    let directory = tempfile::tempdir().unwrap();
    let hat = || Change::Upsert(Box::new(Item::titled(ItemId::parse("hat").unwrap(), "Hat")));
    write(directory.path(), &[vec![hat(), hat(), view(3)]]);
    // Compacted files take no more writes, so the next one begins another.
    log::compact(directory.path(), &Retention::default(), UnixMillis(START), CompactMode::Apply).unwrap();
    let first = segment(directory.path());
    write(directory.path(), &[vec![view(4)], vec![view(5)]]);
    assert_eq!(stored(directory.path()).len(), 3);
    fs::remove_file(&first).unwrap();
    let error = EventLog::open(directory.path()).err().unwrap();
    assert!(error.to_string().contains("positions 1 to 3 are missing"), "{error}");
    assert_eq!(log::check(directory.path()).unwrap().damaged[0].positions, 1..=3);
    log::repair(directory.path()).unwrap();
    assert_eq!(stored(directory.path()), [(4, "e4".to_owned()), (5, "e5".to_owned())]);
    assert_eq!(EventLog::open(directory.path()).unwrap().last_position(), 5);
}

#[test]
fn compaction_drops_old_events_of_the_named_types_and_the_state_is_folded_from_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let kinds = [EventKind::Impression, EventKind::View, EventKind::Purchase];
    let mut groups: Vec<Vec<Change>> = Vec::new();
    for number in 0..30 {
        let (user, item) = (format!("p{}", number % 3), format!("i{number}"));
        let kind = kinds[number / 3 % 3];
        groups.push(vec![Change::Event(event(&format!("e{number}"), kind, &user, &item, START))]);
    }
    let hat = ItemId::parse("hat").unwrap();
    for title in ["Hat", "Red hat", "Blue hat"] {
        groups.push(vec![Change::Upsert(Box::new(Item::titled(hat.clone(), title)))]);
    }
    write(directory.path(), &groups);
    let mut retention = Retention::default();
    retention.add("impression=30d").unwrap();
    retention.add("view=365d").unwrap();
    let after = |days: i64| UnixMillis(START + days * UnixMillis::DAY);

    let planned = log::compact(directory.path(), &retention, after(31), CompactMode::DryRun).unwrap();
    assert_eq!(
        (planned.events[&EventKind::Impression], planned.events[&EventKind::View], planned.item_states),
        (12, 0, 2)
    );
    assert_eq!(stored(directory.path()).len(), 30);
    let done = log::compact(directory.path(), &retention, after(31), CompactMode::Apply).unwrap();
    assert_eq!(done, planned);
    assert_eq!(fs::metadata(segment(directory.path())).unwrap().len(), done.bytes_after);

    // The remaining records keep their positions, and the log continues after its old end.
    let rest: Vec<u64> = (1..=30).filter(|position| (position - 1) / 3 % 3 != 0).collect();
    assert_eq!(stored(directory.path()).iter().map(|(position, _)| *position).collect::<Vec<_>>(), rest);
    let check = log::check(directory.path()).unwrap();
    assert_eq!((check.absent, check.records, check.damaged.len(), check.last_position), (14, 19, 0, 33));
    write(directory.path(), &[vec![view(100)]]);
    assert_eq!(stored(directory.path()).last().unwrap().0, 34);

    // Histories hold views but no impressions, so that only a compaction of views changes them.
    let fold = |groups: &dyn Fn(EventKind) -> bool| {
        let (users, keys) = (Users::default(), ItemKeys::default());
        let log = EventLog::open(directory.path()).unwrap();
        log.replay(1, |position, _, change| {
            if let Change::Event(event) = change {
                assert!(groups(event.kind));
                users.apply(position, &event, &keys);
            }
        })
        .unwrap();
        (0..3)
            .map(|p| users.history(&UserId::signed_in(&format!("p{p}")).unwrap()).map_or(0, |h| h.events.len()))
            .collect()
    };
    let with_views: Vec<usize> = fold(&|kind| kind != EventKind::Impression);
    assert_eq!(with_views, [7, 6, 6]);
    log::compact(directory.path(), &retention, after(400), CompactMode::Apply).unwrap();
    let without: Vec<usize> = fold(&|kind| kind == EventKind::Purchase);
    assert_eq!(without, [3, 3, 3]);
}

#[test]
fn an_export_has_a_directory_for_each_day_and_marks_foreign_tokens() {
    let (directory, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let day = START / UnixMillis::DAY;
    let mut events: Vec<_> = (0..6)
        .map(|n| event(&format!("e{n}"), EventKind::Purchase, "p0", "i", (day + n / 2) * UnixMillis::DAY + n * 1000))
        .collect();
    let line = events[1].lines[0].clone();
    events[0].lines.push(line);
    events[1].attribution = Attribution::Foreign("forged".into());
    events[2].attribution = Attribution::Answer("token".into());
    write(directory.path(), &[events.into_iter().map(Change::Event).collect()]);
    let data = out.path().join("data");
    let exported = dataset::export(directory.path(), day..day + 2, &data.join("events")).unwrap();
    assert_eq!((exported.events, exported.foreign, exported.files.len(), exported.position), (4, 1, 2, 6));
    assert!(exported.files[0].ends_with("date=2025-06-15/events.parquet"), "{:?}", exported.files);
    // Training reads the files of all days.
    let rows = dataset::read_history(&data).unwrap();
    assert_eq!(rows.len(), 5);
    let back = dataset::into_events(rows);
    assert_eq!(back.iter().map(|event| event.id.as_str()).collect::<Vec<_>>(), ["e0", "e1", "e2", "e3"]);
    assert_eq!(back[0].lines.len(), 2);
    // A second export replaces the files of its days and adds new days.
    let all = dataset::export(directory.path(), day..i64::MAX, &data.join("events")).unwrap();
    assert_eq!(all.files.len(), 3);
    assert_eq!(dataset::into_events(dataset::read_history(&data).unwrap()).len(), 6);
}
