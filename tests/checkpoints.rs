//! Checkpoints, and what readers may rely on: a checkpoint with the log's rest gives the state that the whole log gives, also
//! where it was written while events came; whoever names a position that was acknowledged sees all up to it, over restarts.
#[path = "support/shop.rs"]
mod shop;
mod support;

use lodestone_catalog::Item;
use lodestone_core::{ids::ItemId, units::UnixMillis};
use lodestone_events::{Change, Deduper, EventKind, EventLog, Outcome, checkpoint};
use lodestone_state::{
    LiveState,
    checkpoints::{Origin, restore},
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use shop::{Shop, USERS, folded, user_id, view};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use support::{START, event};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

/// A change of the shop's day. Times come out of order.
fn some_change(number: usize, random: &mut StdRng) -> Change {
    let item = format!("i{}", random.random_range(0..40));
    if number % 50 == 49 {
        let id = ItemId::parse(&item).unwrap();
        return match random.random_bool(0.3) {
            true => Change::Delete(id),
            false => Change::Upsert(Box::new(Item::titled(id, &format!("title {number}")))),
        };
    }
    let kind = EventKind::ALL[random.random_range(0..EventKind::ALL.len())];
    let user = format!("p{}", random.random_range(0..USERS));
    Change::Event(event(&format!("e{number}"), kind, &user, &item, START + random.random_range(0..UnixMillis::DAY)))
}

#[test]
fn a_checkpoint_and_the_rest_of_the_log_give_the_state_of_the_whole_log() {
    const CHANGES: usize = 6000;
    let (directory, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let mut random = StdRng::seed_from_u64(7);
    let mut next = 0;
    for round in 0..4 {
        let shop = Shop::open(directory.path());
        let until = CHANGES * (round + 1) / 4;
        let is_writing = AtomicBool::new(true);
        std::thread::scope(|scope| {
            // Takes the state down again and again while it changes.
            let taking = scope.spawn(|| {
                let mut taken = 0;
                while is_writing.load(Ordering::Relaxed) && round < 3 {
                    shop.checkpoints.write().unwrap();
                    taken += 1;
                }
                taken
            });
            while next < until {
                let changes = (next..next + 10).map(|number| (some_change(number, &mut random), None)).collect();
                runtime.block_on(shop.writer.write(changes)).unwrap();
                next += 10;
            }
            is_writing.store(false, Ordering::Relaxed);
            assert!(taking.join().unwrap() > 0 || round == 3);
        });
        let state = view(&shop.state, &shop.recent.lock(), CHANGES);
        let last = shop.writer.position();
        assert!((shop.began_at > 0) == (round > 0), "round {round} began at {}", shop.began_at);
        assert_eq!(last as usize, until);
        drop(shop);
        let log = EventLog::open(directory.path()).unwrap();
        let quick = folded(&log, directory.path());
        assert!(quick.checkpoint > 0);
        assert_eq!(view(&quick.state, &quick.recent, CHANGES), state, "with the checkpoint, round {round}");
        if round == 3 {
            checkpoint::remove(directory.path()).unwrap();
            let whole = folded(&log, directory.path());
            assert_eq!(whole.checkpoint, 0);
            assert_eq!(view(&whole.state, &whole.recent, CHANGES), state, "without it");
        }
    }
}

#[test]
fn a_damaged_or_foreign_checkpoint_is_not_used() {
    let (directory, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let shop = Shop::open(directory.path());
    let mut random = StdRng::seed_from_u64(8);
    let changes = (0..300).map(|number| (some_change(number, &mut random), None)).collect();
    runtime.block_on(shop.writer.write(changes)).unwrap();
    shop.checkpoints.write().unwrap();
    let state = view(&shop.state, &shop.recent.lock(), 300);
    drop(shop);
    let file = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|e| e == "checkpoint")).unwrap();
    let whole = std::fs::read(&file).unwrap();
    let log = EventLog::open(directory.path()).unwrap();
    assert_eq!(folded(&log, directory.path()).checkpoint, 300);
    let mut other_version = whole.clone();
    other_version[7] = b'9';
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for bad in [other_version, flipped, whole[..whole.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(&file, bad).unwrap();
        let recovered = folded(&log, directory.path());
        assert_eq!(recovered.checkpoint, 0);
        assert_eq!(view(&recovered.state, &recovered.recent, 300), state);
    }
    // Another imported history makes another state.
    std::fs::write(&file, &whole).unwrap();
    let (state, mut recent) = (LiveState::default(), Deduper::default());
    let other = Origin { bytes: 1, crc32c: 2 };
    assert!(restore(directory.path(), other, 300, &state, &mut recent).is_err());
    assert!(restore(directory.path(), Origin::default(), 299, &state, &mut recent).is_err());
}

/// Writers note each acknowledgement; readers pick one, wait for its position as a request does, and must then see its
/// event, and never less of a user than before. Every round ends with a restart; some begin with a checkpoint.
#[test]
fn readers_see_all_that_was_acknowledged_up_to_their_position_and_users_never_go_back() {
    const ROUNDS: usize = 5;
    const WRITES: usize = 30;
    let (directory, runtime) = (tempfile::tempdir().unwrap(), runtime());
    // Position and user of each acknowledged event, and its place among the user's.
    let acknowledged: Arc<Mutex<Vec<(u64, usize, usize)>>> = Arc::default();
    let reads = AtomicU64::new(0);
    for round in 0..ROUNDS {
        let shop = Shop::open(directory.path());
        let is_writing = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let (shop, acknowledged, runtime) = (&shop, &acknowledged, &runtime);
                    scope.spawn(move || {
                        for write in 0..WRITES {
                            // Each user has one writer, so that the order of the user's events is known.
                            let user = writer + 4 * (write % (USERS / 4));
                            let place = round * WRITES + write;
                            let id = format!("w{writer}-{place}");
                            let at = START + place as i64 * 1000;
                            let view = event(&id, EventKind::View, &format!("p{user}"), &format!("i{place}"), at);
                            let written =
                                runtime.block_on(shop.writer.write(vec![(Change::Event(view.clone()), None)]));
                            let version = written.unwrap().session_version;
                            acknowledged.lock().push((version, user, place));
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
                        // Sometimes one that is not reached yet.
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
                        let places: Vec<u32> = history.events.iter().map(|e| e.at_s - (START / 1000) as u32).collect();
                        for (at, of, place) in &all {
                            assert!(*at > version || *of != user || places.contains(&(*place as u32)));
                        }
                        let now = (history.position, history.events.len());
                        assert!(now >= seen[user], "user {user} went back from {:?} to {now:?}", seen[user]);
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
        // What was acknowledged before a restart is there after it, once.
        drop(shop);
        let log = EventLog::open(directory.path()).unwrap();
        let state = folded(&log, directory.path());
        let events: usize =
            (0..USERS).map(|p| state.state.users.history(&user_id(p)).map_or(0, |history| history.events.len())).sum();
        assert_eq!(events, acknowledged.lock().len());
    }
    assert!(reads.load(Ordering::Relaxed) > 100);
}
