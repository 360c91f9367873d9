//! Files that the server writes and reads again: the event log, its checkpoints, and the log of answers. A crash or a
//! disk may have damaged them. Where checksums would refuse almost every input, the target sets them first.
use crate::files::{in_directory, select, selecting, with_file};
use lodestone_catalog::{Item, ItemChange, ItemState, ItemWrite, WriteTime};
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::{Quantity, UnixMillis},
    viewer::ViewerContext,
};
use lodestone_events::{
    Attribution, Change, Chunk, Deduper, Event, EventKind, EventLine, EventLog, IncentiveDecision, LogDirectory,
    checkpoint::{Checkpoint, CheckpointWriter},
    log::{check, read},
};
use lodestone_pipeline::{
    answers::{
        AnswerKind, AnswerLog, AnswerLogConfig, AnswerRecord, ExplorationRecord, PinRecord, RankingRecord, SlotRecord,
        encode_columns, list_files, read_backwards, read_file,
    },
    policy::CandidateIndex,
};
use lodestone_rules::{RuleBook, RuleChange, RuleSnapshot, SynonymSet, SynonymTerms};
use lodestone_state::{
    LiveState, ReplayBase,
    checkpoints::{self, Checkpoints, Origin},
};
use lodestone_telemetry::Metrics;
use parking_lot::Mutex;
use prost::Message;
use std::{fs, ops::ControlFlow, sync::Arc};

fn item_id(text: &str) -> ItemId {
    ItemId::parse(text).expect("a valid id")
}

fn event() -> Event {
    Event {
        id: EventId::parse("e-1").expect("a valid id"),
        kind: EventKind::Purchase,
        user: UserId::signed_in("u-1").expect("a valid id"),
        session: "s-1".to_owned(),
        context: ViewerContext::default(),
        at: UnixMillis(1_767_000_000_000),
        lines: vec![EventLine { item: item_id("a"), quantity: Quantity::ONE, price: None, rank: 1 }],
        query: "red mug".to_owned(),
        order: "o-1".to_owned(),
        stars: 0,
        coupon: String::new(),
        categories: vec!["Home > Mugs".to_owned()],
        currency: "EUR".to_owned(),
        attribution: Attribution::Answer("token".to_owned()),
        completion: String::new(),
    }
}

/// One change of each kind.
fn changes() -> Vec<Change> {
    let time = WriteTime::Stated(UnixMillis(1_767_000_000_000));
    let set = SynonymSet {
        synonym_set_id: "s-1".to_owned(),
        synonyms: Some(SynonymTerms { terms: vec!["mug".to_owned(), "cup".to_owned()], replacements: Vec::new() }),
        ..SynonymSet::default()
    };
    let decision = IncentiveDecision {
        decision_id: "d-1".to_owned(),
        user: "u:u-1".to_owned(),
        campaign_id: "spring".to_owned(),
        incentive_id: "ten".to_owned(),
        propensity: 0.5,
        ..IncentiveDecision::default()
    };
    let item = Item::titled(item_id("a"), "Red mug");
    vec![
        Change::Event(event()),
        Change::Item(ItemChange::Write(Box::new(ItemWrite::of_all(item, time)))),
        Change::Item(ItemChange::Delete { id: item_id("a"), time }),
        Change::Rule(RuleChange::PutSynonyms(set)),
        Change::Rule(RuleChange::DeleteRule("r-1".to_owned())),
        Change::Decision(decision),
    ]
}

pub(crate) fn event_record_seeds() -> Vec<Vec<u8>> {
    changes().iter().map(Change::encode).collect()
}

/// Decodes a record and folds its change.
pub(crate) fn accepts_event_record(input: &[u8]) -> bool {
    let Ok(change) = Change::decode(1, input) else { return false };
    let encoded = change.encode();
    let decoded = Change::decode(1, &encoded).expect("a change that was read can be written and read again");
    // As bytes, because a NaN does not equal itself.
    assert_eq!(decoded.encode(), encoded);
    match change {
        Change::Event(event) => LiveState::default().replay_event(1, &event, ReplayBase::Empty),
        Change::Item(change) => {
            let mut state = None;
            ItemState::apply(&mut state, &change);
            ItemState::apply(&mut state, &change);
        }
        Change::Rule(change) => {
            let mut book = RuleBook::default();
            if book.apply(change).is_ok() {
                // Fails if the regular expressions exceed the limit of all of them.
                let _ = book.snapshot(&RuleSnapshot::default());
            }
        }
        Change::Decision(decision) => _ = decision.user_id(),
    }
    true
}

/// The name of the first segment.
const SEGMENT: &str = "00000000000000000001.log";

pub(crate) fn event_log_seeds() -> Vec<Vec<u8>> {
    let mut segment = b"LDSTLOG2\x01\x00\x00\x00\x00\x00\x00\x00".to_vec();
    segment.extend_from_slice(&[0; 16]);
    for (position, change) in (1u64..).zip(changes()) {
        let payload = change.encode();
        segment.push(0xB1);
        segment.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        segment.extend_from_slice(&position.to_le_bytes());
        segment.extend_from_slice(&1_767_000_000u32.to_le_bytes());
        segment.extend_from_slice(&[0; 4]);
        segment.extend_from_slice(&payload);
        segment.extend_from_slice(&[0, 0, 0, 0, 0xB4]);
    }
    vec![selecting(0, &segment), selecting(1, with_checksums(&segment))]
}

/// Sets the checksums of a segment: those of the header, and of each frame as far as its lengths lead.
fn with_checksums(segment: &[u8]) -> Vec<u8> {
    const HEADER_BYTES: usize = 32;
    const HEAD_BYTES: usize = 21;
    let mut segment = segment.to_vec();
    set_checksum(&mut segment, 0, HEADER_BYTES - 4);
    let mut begin = HEADER_BYTES;
    while let Some(length) = segment.get(begin + 1..begin + 5) {
        let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
        let tail = begin + HEAD_BYTES + length as usize;
        set_checksum(&mut segment, begin, begin + HEAD_BYTES - 4);
        set_checksum(&mut segment, begin, tail);
        begin = tail + 5;
    }
    segment
}

/// Writes the checksum of the bytes from `begin` to `at`, if they are in the segment, at `at`.
fn set_checksum(segment: &mut [u8], begin: usize, at: usize) {
    if at + 4 <= segment.len() {
        let sum = crc32c::crc32c(&segment[begin..at]);
        segment[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Reads a log of one segment, opens it for writing, and reads what the open left. After an odd first byte the
/// checksums are those of the input, otherwise they are set.
pub(crate) fn accepts_event_log(input: &[u8]) -> bool {
    let Some((is_unchanged, segment)) = select(input, 2) else { return false };
    let segment = if is_unchanged == 1 { segment.to_vec() } else { with_checksums(segment) };
    in_directory(|directory| {
        fs::write(directory.join(SEGMENT), segment).expect("the directory is writable");
        let mut count = 0;
        let last = read(directory, 1, |_, _, _| count += 1);
        let checked = check(directory);
        let is_open = EventLog::open(directory).is_ok();
        if let (Ok(last), true) = (&last, is_open) {
            let mut count_after = 0;
            assert_eq!(read(directory, 1, |_, _, _| count_after += 1).ok(), Some(*last), "the open changed the log");
            assert_eq!(count_after, count);
        }
        checked.is_ok() && last.is_ok() && is_open
    })
}

/// A part of a checkpoint: its kind, its length and its content.
fn part(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("the parts of the seeds are small");
    [&[kind][..], &length.to_le_bytes(), content].concat()
}

/// The parts of a checkpoint with something of every kind.
pub(crate) fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let state = LiveState::default();
    let search = Event {
        id: EventId::parse("e-2").expect("a valid id"),
        kind: EventKind::Search,
        lines: Vec::new(),
        order: String::new(),
        ..event()
    };
    state.apply_event(1, &event());
    state.apply_event(2, &search);
    for change in changes() {
        match change {
            Change::Event(_) => {}
            Change::Item(change) => _ = state.catalogue.lock().apply(&change),
            Change::Rule(change) => state.apply_rule(change).expect("a valid entry"),
            Change::Decision(decision) => state.incentives.lock().add(decision),
        }
    }
    let mut deduper = Deduper::with_capacity(100);
    deduper.insert_chunk(&Chunk { last_s: 1_767_000_000, hashes: vec![5, 7] });
    in_directory(|directory| {
        let (state, deduper) = (Arc::new(state), Arc::new(Mutex::new(deduper)));
        let log = LogDirectory::from(directory);
        Checkpoints::new(state, deduper, &log, Origin::default(), 0).write().expect("the directory is writable");
        let checkpoint = Checkpoint::newest(directory).expect("a complete file").expect("it was written");
        let mut parts = Vec::new();
        let read = checkpoint.each_part(|kind, content| {
            parts.extend(part(kind, content));
            Ok(())
        });
        read.expect("a complete file");
        vec![parts]
    })
}

/// Writes the parts as a checkpoint, whose checksums are right, and restores it.
pub(crate) fn accepts_checkpoint(input: &[u8]) -> bool {
    in_directory(|directory| {
        let mut writer = CheckpointWriter::create(directory, 1).expect("the directory is writable");
        let mut rest = input;
        while let Some(([kind, low, high], after)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            let (content, next) = after.split_at(length.min(after.len()));
            writer.put((*kind).max(1), content).expect("the directory is writable");
            rest = next;
        }
        writer.finish(1).expect("the directory is writable");
        let (state, mut deduper) = (LiveState::default(), Deduper::with_capacity(100));
        let restored = checkpoints::restore(directory, Origin::default(), 1, &state, &mut deduper);
        restored.is_ok_and(|position| {
            // What the restored state computes from is in it.
            state.replay_event(2, &event(), ReplayBase::Checkpoint);
            position == Some(1)
        })
    })
}

fn answer_record() -> AnswerRecord {
    let features: Vec<f32> = (0..6).map(|n| n as f32 / 4.0).collect();
    AnswerRecord {
        id: vec![7; 16],
        at_ms: 1_764_072_000_000,
        user: "u:p".to_owned(),
        kind: AnswerKind::Search.into(),
        items: ["a", "b", "c", "pin"].map(str::to_owned).to_vec(),
        candidate_count: 3,
        features: encode_columns(&features, 2),
        feature_count: 2,
        heads: vec!["purchase".to_owned()],
        head_values: vec![0.3, 0.2, 0.1],
        rankings: vec![RankingRecord {
            serving_config: "default".to_owned(),
            weights: vec![1.0],
            candidate_count: 3,
            ..RankingRecord::default()
        }],
        pins: vec![PinRecord { item: Some(3), rank: 2 }],
        exploration: Some(ExplorationRecord {
            temperature: 1.0,
            first_slot: 1,
            top: 3,
            epsilon_slots: vec![3],
            epsilon: 0.1,
            epsilon_candidates: 3,
            share: 0.5,
        }),
        organic_items: vec![0, 1, 2],
        organic_scores: vec![0.3, 0.2, 0.1],
        pinned_slots: vec![2],
        slots: vec![
            SlotRecord { item: 1, score: 0.2, conditional: 0.3, ..SlotRecord::default() },
            SlotRecord { item: 3, is_pinned: true, conditional: 1.0, ..SlotRecord::default() },
            SlotRecord { item: 0, score: 0.3, conditional: 0.6, ..SlotRecord::default() },
        ],
        ..AnswerRecord::default()
    }
}

pub(crate) fn answer_record_seeds() -> Vec<Vec<u8>> {
    let ranking = |order: &[u32]| RankingRecord { order: order.to_vec(), ..RankingRecord::default() };
    let interleaved =
        AnswerRecord { rankings: vec![ranking(&[0, 1, 2]), ranking(&[2, 1, 0])], exploration: None, ..answer_record() };
    [answer_record(), interleaved].iter().map(Message::encode_to_vec).collect()
}

/// Decodes a record, and computes its propensities and the parts of its scores.
pub(crate) fn accepts_answer_record(input: &[u8]) -> bool {
    let Ok(record) = AnswerRecord::decode(input) else { return false };
    record.viewer();
    record.requested_list();
    let rows = record.rows(3);
    if let Ok(rows) = &rows {
        assert_eq!(rows.len(), record.slots.len());
    }
    if let Ok(of_slots) = record.slot_probabilities(3) {
        assert_eq!(of_slots.len(), record.slots.len());
    }
    for slot in record.slots.iter().take(20) {
        record.score_parts(CandidateIndex(slot.item), None);
        record.explain_slot(slot);
    }
    rows.is_ok()
}

pub(crate) fn answer_log_seeds() -> Vec<Vec<u8>> {
    in_directory(|directory| {
        let config = AnswerLogConfig { share: 1.0, ..AnswerLogConfig::default() };
        let log = AnswerLog::open(directory, &config, Metrics::default()).expect("the directory is writable");
        for number in 0..2 {
            log.log([number; 16], Box::new(answer_record));
        }
        // Writes what is queued.
        drop(log);
        let files = list_files(directory).expect("the directory can be listed");
        files.iter().map(|path| fs::read(path).expect("the file was written")).collect()
    })
}

pub(crate) fn accepts_answer_log(input: &[u8]) -> bool {
    with_file("2026-01-01.00000.answers", input, |path| {
        let mut count = 0;
        let damage = read_file(path, |_| count += 1);
        let mut backwards = 0;
        let read = read_backwards(path, |_| {
            backwards += 1;
            ControlFlow::Continue(())
        });
        damage.is_ok_and(|damage| damage.damaged_blocks == 0) && read.is_ok() && count == backwards && count > 0
    })
}
