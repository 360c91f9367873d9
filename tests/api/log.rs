//! Check, repair, compaction and export of the event log through its public interface.
use crate::support::{
    events::{START, event},
    items::{random_item_change, upsert},
};
use lodestone_catalog::{
    AttributeValue, Item, ItemChange, ItemField, ItemKeys, ItemState, ItemWrite, WriteTime, WrittenFields,
};
use lodestone_core::{
    ids::{ItemId, UserId},
    units::UnixMillis,
    viewer::{Locale, Platform, Region, ViewerContext},
};
use lodestone_dataset as dataset;
use lodestone_events::{
    Applied, Attribution, Change, Event, EventKind, EventLog, LogError, Quarantined, Writer,
    checkpoint::CheckpointWriter,
    log::{self, CompactMode, Retention},
};
use lodestone_state::{CatalogChanges, users::Users};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Writes each group of changes in one write. The ingestion time of all is `START`.
fn write(directory: &Path, groups: &[Vec<Change>]) {
    let log = EventLog::open(directory).unwrap();
    let writer: Writer<()> =
        Writer::start(log, Arc::default(), || UnixMillis(START), Box::new(|_| Applied::default())).unwrap();
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

    /// A short overwritten range, also in the last record: the log does not open, `check` reports the range, the repair
    /// drops the records in it and no other, and the log continues at its old position.
    #[test]
    fn a_repair_keeps_all_undamaged_records(count in 3usize..30, share in 0.0f64..1.0, length in 1usize..200, value in 1u8..) {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &views(count));
        let before = stored(directory.path());
        let path = segment(directory.path());
        let mut bytes = fs::read(&path).unwrap();
        let at = 32 + ((bytes.len() - 32) as f64 * share) as usize;
        let end = (at + length).min(bytes.len());
        prop_assume!(bytes[at..end].iter().any(|byte| *byte != value));
        bytes[at..end].fill(value);
        fs::write(&path, bytes).unwrap();

        let refused = EventLog::open(directory.path()).err();
        let is_reported = matches!(&refused, Some(LogError::Damaged { offset, .. }) if *offset <= at as u64 && *offset + 200 > at as u64);
        prop_assert!(is_reported, "{:?} for byte {}", refused, at);
        let check = log::check(directory.path()).unwrap();
        let lost: Vec<u64> = check.damaged.iter().flat_map(|part| part.positions.clone()).collect();
        prop_assert!(!lost.is_empty() && lost.len() <= 3 + (end - at) / 26, "{:?}", check.damaged);

        log::repair(directory.path()).unwrap();
        let again = log::check(directory.path()).unwrap();
        prop_assert!(again.damaged.is_empty() && again.absent == lost.len() as u64);
        let kept: Vec<_> = before.into_iter().filter(|(position, _)| !lost.contains(position)).collect();
        prop_assert_eq!(stored(directory.path()), kept);
        // A lost last record may have been several, so the log continues after the positions of all that fit.
        let last = EventLog::open(directory.path()).unwrap().last_position();
        prop_assert_eq!(last, lost.into_iter().max().unwrap_or(0).max(count as u64));
        write(directory.path(), &[vec![view(1000)]]);
        prop_assert_eq!(stored(directory.path()).pop().unwrap(), (last + 1, "e1000".to_owned()));
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
    let hat = |title: &str| upsert(Item::titled(ItemId::parse("hat").unwrap(), title));
    write(directory.path(), &[vec![hat("Hat"), hat("Red hat"), view(3)]]);
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
        groups.push(vec![upsert(Item::titled(hat.clone(), title))]);
    }
    write(directory.path(), &groups);
    let mut retention = Retention::default();
    retention.add("impression=30d").unwrap();
    retention.add("view=365d").unwrap();
    let after = |days: i64| UnixMillis(START + days * UnixMillis::DAY);

    let planned = log::compact(directory.path(), &retention, after(31), CompactMode::DryRun).unwrap();
    assert_eq!(
        (planned.events[&EventKind::Impression], planned.events[&EventKind::View], planned.item_changes),
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
fn compaction_keeps_the_state_of_every_item() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(3);
    let id = |random: &mut StdRng| ItemId::parse(&format!("i{}", random.random_range(0..30))).unwrap();
    for round in 0..5 {
        let groups: Vec<Vec<Change>> = (0..100)
            .map(|group| {
                (0..4).map(|n| random_item_change(id(&mut random), round * 400 + group * 4 + n, &mut random)).collect()
            })
            .collect();
        write(directory.path(), &groups);
        let states = || {
            let (mut changes, mut records) = (CatalogChanges::default(), 0);
            log::read(directory.path(), 1, |_, _, change| {
                if let Change::Item(change) = change {
                    changes.apply(&change);
                    records += 1;
                }
            })
            .unwrap();
            let states: Vec<(ItemId, ItemState)> = changes.after(0, usize::MAX).0;
            (states.into_iter().map(|(id, state)| (id.to_string(), state)).collect::<BTreeMap<_, _>>(), records)
        };
        let (before, records) = states();
        let compacted =
            log::compact(directory.path(), &Retention::default(), UnixMillis(START), CompactMode::Apply).unwrap();
        let (after, left) = states();
        assert_eq!(after, before, "round {round}");
        assert_eq!(compacted.item_changes, records - left);
        // All fields, or each of the four alone.
        assert!(left <= 5 * before.len() as u64, "{left} changes of {} items", before.len());
        assert_eq!(left, compacted.kept);
        assert!(left > 0);
    }
}

/// A redemption counts for the budget of its campaign for good.
#[test]
fn compaction_keeps_redemptions_of_decided_incentives() {
    let directory = tempfile::tempdir().unwrap();
    let redeemed = |id: &str, coupon: &str| {
        let event = event(id, EventKind::IncentiveRedeemed, "p0", "i0", START);
        Change::Event(Event { coupon: coupon.to_owned(), ..event })
    };
    write(directory.path(), &[vec![redeemed("e1", "d-1"), redeemed("e2", "")]]);
    let mut retention = Retention::default();
    retention.add("incentive_redeemed=30d").unwrap();
    let later = UnixMillis(UnixMillis::now().0 + 400 * UnixMillis::DAY);
    let done = log::compact(directory.path(), &retention, later, CompactMode::Apply).unwrap();
    assert_eq!((done.kept, done.events[&EventKind::IncentiveRedeemed]), (1, 1));
}

/// Many writes of one item whose values do not fit into one record are kept as they are.
#[test]
fn compaction_writes_no_record_that_is_too_long() {
    let directory = tempfile::tempdir().unwrap();
    let long = AttributeValue::Text("😀".repeat(1000));
    let write_of = |number: usize| {
        let names: Vec<String> = (0..100).map(|n| format!("a{number}_{n}")).collect();
        let fields = names.iter().map(|name| ItemField::Attribute(name.clone())).collect();
        let item = Item {
            attributes: names.into_iter().map(|name| (name, long.clone())).collect(),
            ..Item::titled(ItemId::parse("hat").unwrap(), "")
        };
        let time = WriteTime::Stated(UnixMillis(START));
        Change::Item(ItemChange::Write(Box::new(ItemWrite { item, fields: WrittenFields::Some(fields), time })))
    };
    let writes: Vec<Vec<Change>> = (0..45).map(|number| vec![write_of(number)]).collect();
    write(directory.path(), &writes);
    let compacted =
        log::compact(directory.path(), &Retention::default(), UnixMillis(START), CompactMode::Apply).unwrap();
    assert_eq!((compacted.item_changes, compacted.kept), (0, 45));
    let mut read = Vec::new();
    log::read(directory.path(), 1, |_, _, change| read.push(change)).unwrap();
    assert_eq!(read, writes.concat());
}

#[test]
fn readers_and_compaction_skip_quarantined_changes() {
    let directory = tempfile::tempdir().unwrap();
    let hat = |title: &str| upsert(Item::titled(ItemId::parse("hat").unwrap(), title));
    write(directory.path(), &[vec![hat("Good"), hat("Better"), view(3), view(4), hat("Poison")]]);
    let quarantined = |position, kind: &str, id: &str| Quarantined {
        position,
        kind: kind.to_owned(),
        id: id.to_owned(),
        reason: "a panic:\tof\ntwo lines".to_owned(),
    };
    let changes = [quarantined(5, "upsert_item", "hat"), quarantined(3, "view", "e3")];
    for change in &changes {
        EventLog::open(directory.path()).unwrap().quarantine(std::slice::from_ref(change)).unwrap();
    }
    let named = lodestone_events::quarantined(directory.path()).unwrap();
    assert_eq!(named.iter().map(|change| change.position).collect::<Vec<_>>(), [3, 5]);
    assert_eq!(named[0].reason, "a panic: of two lines");
    let read = |directory: &Path| {
        let mut positions = Vec::new();
        log::read(directory, 1, |position, _, _| positions.push(position)).unwrap();
        positions
    };
    assert_eq!(read(directory.path()), [1, 2, 4]);
    // The poisoned state does not replace the last good one.
    log::compact(directory.path(), &Retention::default(), UnixMillis(START), CompactMode::Apply).unwrap();
    assert_eq!(read(directory.path()), [2, 4]);
    fs::write(directory.path().join("quarantine"), "damaged").unwrap();
    assert!(matches!(log::read(directory.path(), 1, |_, _, _| ()), Err(LogError::Damaged { .. })));
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
    events[0].session = "s1".into();
    events[0].context =
        ViewerContext { platform: Some(Platform::Store), region: Region::parse("GB"), locale: Locale::parse("en-GB") };
    let first = events[0].clone();
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
    assert_eq!(back[0], first, "with the session and the context of the viewer");
    // A second export replaces the files of its days and adds new days.
    let all = dataset::export(directory.path(), day..i64::MAX, &data.join("events")).unwrap();
    assert_eq!(all.files.len(), 3);
    assert_eq!(dataset::into_events(dataset::read_history(&data).unwrap()).len(), 6);
}

/// Starts a writer that applies nothing.
fn writer(directory: &Path) -> Writer<()> {
    let log = EventLog::open(directory).unwrap();
    Writer::start(log, Arc::default(), || UnixMillis(START), Box::new(|_| Applied::default())).unwrap()
}

/// A write with one event.
fn write_one(runtime: &tokio::runtime::Runtime, writer: &Writer<()>, number: usize) -> Result<u64, LogError> {
    runtime.block_on(writer.write(vec![(view(number), None)])).map(|written| written.log_position)
}

fn is_displaced<T>(result: &Result<T, LogError>) -> bool {
    matches!(result, Err(LogError::Displaced { .. }))
}

#[test]
fn nothing_is_acknowledged_after_the_files_of_the_log_were_removed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for removed in ["00000000000000000001.log", "lock", ""] {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let writer = writer(&log);
        assert_eq!(write_one(&runtime, &writer, 0).unwrap(), 1);
        match removed {
            "" => fs::remove_dir_all(&log).unwrap(),
            name => fs::remove_file(log.join(name)).unwrap(),
        }
        // Also without a write, within a second.
        let mut displaced = writer.displaced();
        let noticed = displaced.wait_for(Option::is_some);
        let noticed = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), noticed).await.is_ok() });
        assert!(noticed, "{removed}");
        let refused = write_one(&runtime, &writer, 1);
        assert!(is_displaced(&refused), "{removed}: {refused:?}");
        // A duplicate is acknowledged as stored, and is not.
        assert!(is_displaced(&write_one(&runtime, &writer, 0)), "{removed}");
    }
}

#[test]
fn a_moved_log_takes_no_writes_and_continues_when_it_is_back() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (log, moved) = (directory.path().join("log"), directory.path().join("moved"));
    let first = writer(&log);
    write_one(&runtime, &first, 0).unwrap();
    fs::rename(&log, &moved).unwrap();
    assert!(is_displaced(&write_one(&runtime, &first, 1)));
    // The moved log is still locked.
    assert!(matches!(EventLog::open(&moved), Err(LogError::InUse { .. })));
    // Another process has its own log in the old place, which the first one neither writes nor truncates.
    let second = writer(&log);
    write_one(&runtime, &second, 2).unwrap();
    assert!(is_displaced(&write_one(&runtime, &first, 1)));
    write_one(&runtime, &second, 3).unwrap();
    drop(second);
    assert_eq!(stored(&log), [(1, "e2".to_owned()), (2, "e3".to_owned())]);
    fs::remove_dir_all(&log).unwrap();
    fs::rename(&moved, &log).unwrap();
    let mut displaced = first.displaced();
    let is_back = displaced.wait_for(Option::is_none);
    assert!(runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), is_back).await.is_ok() }));
    assert_eq!(write_one(&runtime, &first, 4).unwrap(), 2);
    drop(first);
    assert_eq!(stored(&log), [(1, "e0".to_owned()), (2, "e4".to_owned())]);
}

#[test]
fn a_checkpoint_is_not_written_into_the_directory_of_another_log() {
    let directory = tempfile::tempdir().unwrap();
    let (log, moved) = (directory.path().join("log"), directory.path().join("moved"));
    let first = EventLog::open(&log).unwrap();
    fs::rename(&log, &moved).unwrap();
    let _second = EventLog::open(&log).unwrap();
    assert!(CheckpointWriter::create(first.directory(), 0).is_err());
    assert_eq!(fs::read_dir(&log).unwrap().count(), 2);
}
