//! Checkpoints and consistency tokens. A checkpoint with the rest of the log recovers the state of the whole log, also if
//! it was written while events arrived. A reader that waits for an acknowledged position sees every event up to it,
//! across restarts.
use crate::support::{
    events::{START, event},
    items::random_item_change,
    live_state::{LoggedState, NO_EVICTION, USERS, recovered, recovered_with, user_id, view},
    rules::random_rule_change,
};
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};
use lodestone_events::{
    Applied, Change, DecisionDemand, DecisionEffect, DecisionEstimate, Deduper, EventKind, EventLog, Fold,
    IncentiveDecision, LogError, Outcome, Quarantined, Writer, checkpoint,
};
use lodestone_state::{
    LiveState, RecoveredState, StateLimits,
    checkpoints::{Checkpoints, Origin, restore},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

/// Returns a random change: mostly events, whose times are within 30 days and out of order, every 50th a change of an
/// item, and every 50th one of a rule.
fn random_change(number: usize, random: &mut StdRng) -> Change {
    let item = format!("i{}", random.random_range(0..40));
    if number % 50 == 49 {
        let id = ItemId::parse(&item).unwrap();
        return random_item_change(id, number, random);
    }
    if number % 50 == 24 {
        return random_rule_change(number, random);
    }
    if number % 50 == 37 {
        return random_decision(number, random);
    }
    let kind = EventKind::ALL[random.random_range(0..EventKind::ALL.len())];
    let user = format!("p{}", random.random_range(0..USERS));
    let at = START + random.random_range(0..30 * UnixMillis::DAY);
    let mut event = event(&format!("e{number}"), kind, &user, &item, at);
    if kind == EventKind::IncentiveRedeemed {
        // Some of them redeem the incentive of a decision, and few that of their user.
        event.coupon = format!("d{}", random.random_range(0..number + 1) / 50 * 50 + 37);
    }
    event.currency = ["EUR", "USD", "GBP", "CNY", ""][random.random_range(0..5)].to_owned();
    event.session = ["", "", "a", "b", "c"][random.random_range(0..5)].to_owned();
    event.lines.iter_mut().for_each(|line| line.price = PriceMicros::new(random.random_range(0..90_000_000)));
    Change::Event(event)
}

/// Returns a decision about an incentive of one of two campaigns.
fn random_decision(number: usize, random: &mut StdRng) -> Change {
    let at_ms = START + random.random_range(0..30 * UnixMillis::DAY);
    let is_given = random.random_bool(0.7);
    let mut demand = || DecisionDemand {
        gain_micros: random.random_range(1..50),
        expected_cost_micros: random.random_range(0..9),
        cost_micros: random.random_range(0..9),
    };
    let demand = (0..number % 3).map(|_| demand()).collect();
    let estimate = DecisionEstimate { value: 1.0, low: 0.5, high: 1.5 };
    let effect = DecisionEffect { purchase_probability: estimate, gain: estimate, expected_cost: 2e-6 };
    Change::Decision(IncentiveDecision {
        decision_id: format!("d{number}"),
        user: user_id(random.random_range(0..USERS)).as_str().to_owned(),
        campaign_id: format!("c{}", random.random_range(0..2)),
        incentive_id: if is_given { "ten".to_owned() } else { String::new() },
        at_ms,
        propensity: 0.5,
        is_randomised: random.random_bool(0.5),
        cost_micros: if is_given { random.random_range(1..9) } else { 0 },
        expires_ms: at_ms + random.random_range(1..120) * UnixMillis::DAY,
        effect: random.random_bool(0.5).then_some(effect),
        demand,
        budget_price: random.random_bool(0.8).then_some(1.0),
        ..IncentiveDecision::default()
    })
}

#[test]
fn a_checkpoint_and_the_rest_of_the_log_recover_the_state_of_the_whole_log() {
    check_recovery(NO_EVICTION);
}

/// Users and items come and go all the time, also while checkpoints are written.
#[test]
fn evictions_are_the_same_after_a_replay_and_from_any_checkpoint() {
    check_recovery(StateLimits { users_max: 15, event_items_max: 30 });
}

fn check_recovery(limits: StateLimits) {
    const CHANGES: usize = 6000;
    let (directory, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let mut random = StdRng::seed_from_u64(7);
    let mut next = 0;
    for round in 0..4 {
        let shop = LoggedState::open_with(directory.path(), limits);
        let until = CHANGES * (round + 1) / 4;
        let is_writing = AtomicBool::new(true);
        std::thread::scope(|scope| {
            // Writes one checkpoint after the other while the state changes; in the last round none, so that the log
            // goes on after the last checkpoint.
            let checkpointing = scope.spawn(|| {
                let mut written = 0;
                while is_writing.load(Ordering::Relaxed) && round < 3 {
                    shop.checkpoints.write().unwrap();
                    written += 1;
                }
                written
            });
            while next < until {
                let changes = (next..next + 10).map(|number| (random_change(number, &mut random), None)).collect();
                runtime.block_on(shop.writer.write(changes)).unwrap();
                next += 10;
            }
            is_writing.store(false, Ordering::Relaxed);
            assert!(checkpointing.join().unwrap() > 0 || round == 3);
        });
        let state = view(&shop.state, &shop.recent.lock(), CHANGES);
        assert!(shop.state.users.len() <= limits.users_max);
        assert!(shop.state.event_items.lock().len() <= limits.event_items_max);
        let evictions = (shop.state.users.evicted_count(), shop.state.event_items.lock().evicted_count());
        assert_eq!(evictions.0 > 100 && evictions.1 > 100, limits != NO_EVICTION, "{evictions:?}");
        // Released keys are reused: the items of events, those that wait for reuse, and the two of the bundle.
        assert!(shop.state.keys.key_count() <= 40 + 40 + 2, "{}", shop.state.keys.key_count());
        let last = shop.writer.position();
        assert!((shop.opened_at > 0) == (round > 0), "round {round} was opened at {}", shop.opened_at);
        assert_eq!(last as usize, until);
        drop(shop);
        let log = EventLog::open(directory.path()).unwrap();
        let quick = recovered_with(&log, directory.path(), limits);
        assert!(quick.checkpoint > 0);
        assert_eq!(view(&quick.state, &quick.recent, CHANGES), state, "with the checkpoint, round {round}");
        if round == 3 {
            checkpoint::remove(directory.path()).unwrap();
            let whole = recovered_with(&log, directory.path(), limits);
            assert_eq!(whole.checkpoint, 0);
            assert_eq!(view(&whole.state, &whole.recent, CHANGES), state, "without the checkpoint");
        }
    }
}

#[test]
fn a_state_that_lacks_changes_is_not_written() {
    let (directory, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let shop = LoggedState::open(directory.path());
    let mut random = StdRng::seed_from_u64(9);
    let changes = (0..100).map(|number| (random_change(number, &mut random), None)).collect();
    runtime.block_on(shop.writer.write(changes)).unwrap();
    shop.checkpoints.end();
    assert!(shop.checkpoints.write().is_err());
    shop.checkpoints.write_on_shutdown();
    drop(shop);
    let log = EventLog::open(directory.path()).unwrap();
    assert_eq!(recovered(&log, directory.path()).checkpoint, 0);
}

/// A fold that fails for every event, and begins a checkpoint during each commit.
struct Failing {
    checkpoints: Arc<Checkpoints>,
    written: mpsc::Sender<thread::JoinHandle<std::io::Result<u64>>>,
}

impl Fold<()> for Failing {
    fn apply(&mut self, changes: Vec<(u64, Change, Option<()>)>) -> Applied {
        let checkpoints = self.checkpoints.clone();
        self.written.send(thread::Builder::new().spawn(move || checkpoints.write()).unwrap()).unwrap();
        let failure = |(position, change, _): (u64, Change, Option<()>)| Quarantined {
            position,
            kind: "view".to_owned(),
            id: change.id().to_owned(),
            reason: "a bug".to_owned(),
        };
        Applied { failures: changes.into_iter().map(failure).collect(), ..Applied::default() }
    }

    fn stop(&mut self, _: &str) {
        self.checkpoints.end();
    }
}

#[test]
fn a_checkpoint_that_begins_in_a_commit_whose_quarantine_fails_is_not_written() {
    let (directory, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let log = EventLog::open(directory.path()).unwrap();
    let RecoveredState { state, recent, origin, .. } = recovered(&log, directory.path());
    let recent = Arc::new(Mutex::new(recent));
    let checkpoints = Arc::new(Checkpoints::new(state, recent.clone(), log.directory(), origin, 0));
    let (written, started) = mpsc::channel();
    let fold = Failing { checkpoints, written };
    let writer = Writer::start(log, recent, UnixMillis::now, Box::new(fold)).unwrap();
    let view = |id: &str| vec![(Change::Event(event(id, EventKind::View, "p0", "i", START)), None)];
    // A failure that is quarantined: the checkpoint has the state without it.
    assert!(matches!(runtime.block_on(writer.write(view("e0"))), Err(LogError::Quarantined { .. })));
    assert!(started.recv().unwrap().join().unwrap().is_ok());
    // The file of the quarantine cannot be written.
    std::fs::create_dir(directory.path().join("quarantine.new")).unwrap();
    assert!(matches!(runtime.block_on(writer.write(view("e1"))), Err(LogError::Stopping { .. })));
    assert!(started.recv().unwrap().join().unwrap().is_err());
    assert!(*writer.is_stopped().borrow());
}

#[test]
fn a_damaged_or_foreign_checkpoint_is_not_used() {
    let (directory, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let shop = LoggedState::open(directory.path());
    let mut random = StdRng::seed_from_u64(8);
    let changes = (0..300).map(|number| (random_change(number, &mut random), None)).collect();
    runtime.block_on(shop.writer.write(changes)).unwrap();
    shop.checkpoints.write().unwrap();
    let state = view(&shop.state, &shop.recent.lock(), 300);
    drop(shop);
    let file = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|e| e == "checkpoint")).unwrap();
    let whole = std::fs::read(&file).unwrap();
    let log = EventLog::open(directory.path()).unwrap();
    assert_eq!(recovered(&log, directory.path()).checkpoint, 300);
    let mut other_version = whole.clone();
    other_version[7] = b'9';
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for bad in [other_version, flipped, whole[..whole.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(&file, bad).unwrap();
        let recovered = recovered(&log, directory.path());
        assert_eq!(recovered.checkpoint, 0);
        assert_eq!(view(&recovered.state, &recovered.recent, 300), state);
    }
    // A checkpoint belongs to one imported history.
    std::fs::write(&file, &whole).unwrap();
    let (state, mut recent) = (LiveState::default(), Deduper::default());
    let other = Origin { bytes: 1, crc32c: 2 };
    assert!(restore(directory.path(), other, 300, &state, &mut recent).is_err());
    assert!(restore(directory.path(), Origin::default(), 299, &state, &mut recent).is_err());
}

/// Writers note each acknowledgement. Readers wait for an acknowledged position, as a request with a consistency token
/// does, and must then see the event at that position and at least as many events of a user as before. Every round ends
/// with a restart; some start from a checkpoint.
#[test]
fn readers_see_every_event_up_to_an_acknowledged_position_and_histories_never_shrink() {
    const ROUNDS: usize = 5;
    const WRITES: usize = 30;
    let (directory, runtime) = (tempfile::tempdir().unwrap(), runtime());
    // Log position, user and sequence number of each acknowledged event.
    let acknowledged: Arc<Mutex<Vec<(u64, usize, usize)>>> = Arc::default();
    let reads = AtomicU64::new(0);
    for round in 0..ROUNDS {
        let shop = LoggedState::open(directory.path());
        let is_writing = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let (shop, acknowledged, runtime) = (&shop, &acknowledged, &runtime);
                    scope.spawn(move || {
                        for write in 0..WRITES {
                            // Each user has one writer, so that the order of the user's events is known.
                            let user = writer + 4 * (write % (USERS / 4));
                            let number = round * WRITES + write;
                            let id = format!("w{writer}-{number}");
                            let at = START + number as i64 * 1000;
                            let view = event(&id, EventKind::View, &format!("p{user}"), &format!("i{number}"), at);
                            let written =
                                runtime.block_on(shop.writer.write(vec![(Change::Event(view.clone()), None)]));
                            let version = written.unwrap().log_position;
                            acknowledged.lock().push((version, user, number));
                            let again = runtime.block_on(shop.writer.write(vec![(Change::Event(view), None)])).unwrap();
                            assert_eq!(again.outcomes, [Outcome::Duplicate]);
                        }
                    })
                })
                .collect();
            for reader in 0..3 {
                let (shop, acknowledged, runtime, reads) = (&shop, &acknowledged, &runtime, &reads);
                let is_writing = &is_writing;
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(reader);
                    let mut seen = vec![(0u64, 0usize); USERS];
                    while is_writing.load(Ordering::Relaxed) {
                        let all = acknowledged.lock().clone();
                        let Some(version) = all.last().map(|(version, ..)| *version) else { continue };
                        // Sometimes a position that is not reached yet.
                        let version = version + random.random_range(0..3);
                        let mut positions = shop.writer.positions();
                        let wait = positions.wait_for(|position| *position >= version);
                        if !runtime
                            .block_on(async { tokio::time::timeout(Duration::from_millis(20), wait).await.is_ok() })
                        {
                            continue;
                        }
                        let user = random.random_range(0..USERS);
                        let history = shop.state.users.history(&user_id(user)).unwrap_or_default();
                        let numbers: Vec<u32> = history.events.iter().map(|e| e.at_s - (START / 1000) as u32).collect();
                        for (at, of, number) in &all {
                            assert!(*at > version || *of != user || numbers.contains(&(*number as u32)));
                        }
                        let now = (history.position, history.events.len());
                        assert!(
                            now >= seen[user],
                            "the history of user {user} went back from {:?} to {now:?}",
                            seen[user]
                        );
                        seen[user] = now;
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            is_writing.store(false, Ordering::Relaxed);
        });
        if round % 2 == 1 {
            shop.checkpoints.write().unwrap();
        }
        // Every event that was acknowledged before a restart is there after it, once.
        drop(shop);
        let log = EventLog::open(directory.path()).unwrap();
        let state = recovered(&log, directory.path());
        let events: usize =
            (0..USERS).map(|p| state.state.users.history(&user_id(p)).map_or(0, |history| history.events.len())).sum();
        assert_eq!(events, acknowledged.lock().len());
    }
    assert!(reads.load(Ordering::Relaxed) > 100);
}
