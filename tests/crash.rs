//! kill -9 while events are written: what was acknowledged is in the log, once, and the state after the replay is the state
//! before. `KILLS=200 cargo test --test crash` is the long form.
#[path = "support/shop.rs"]
mod shop;
mod support;

use lodestone_core::ids::ItemId;
use lodestone_events::{Change, Deduper, EventKind, EventLog, checkpoint, log};
use lodestone_state::state_of_items;
use shop::{Shop, USERS, folded, view};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use support::{START, event};

const DIRECTORY: &str = "LODESTONE_CRASH_TEST_DIRECTORY";

fn kills() -> usize {
    std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(6)
}

/// Ids of all events in the log, in its order.
fn stored(directory: &Path) -> Vec<String> {
    let mut ids = Vec::new();
    log::read(directory, 1, |_, _, change| {
        if let Change::Event(event) = change {
            ids.push(event.id.as_str().to_owned());
        }
    })
    .unwrap();
    ids
}

fn hash(view: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    view.hash(&mut hasher);
    hasher.finish()
}

/// The state of the log's events up to a position, by the fold alone.
fn state_at(directory: &Path, position: u64) -> u64 {
    let items = ["b0", "b1"].map(|id| ItemId::parse(id).unwrap());
    let state = state_of_items(items.iter());
    log::read(directory, 1, |at, _, change| {
        if let (Change::Event(event), true) = (change, at <= position) {
            state.apply_event(at, &event);
        }
    })
    .unwrap();
    hash(&view(&state, &Deduper::default(), 0))
}

/// The process that is killed, which the test below starts: four tasks write, each acknowledged id is printed, and now and
/// then the state with its position. Among the other tests it has nothing to do.
#[test]
fn write_until_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let shop = Shop::open(Path::new(&directory));
    let first = shop.writer.position();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let task = async |task: u64| {
        for batch in 0..u64::MAX {
            let ids: Vec<String> = (0..7).map(|n| format!("ack {first}-{task}-{batch}-{n}")).collect();
            let change = |id: &String| {
                let user = format!("p{}", (task + batch) as usize % USERS);
                (Change::Event(event(id, EventKind::Purchase, &user, &format!("i{batch}"), START + batch as i64)), None)
            };
            // Sent twice, as a client does that heard no answer.
            for _ in 0..2 {
                shop.writer.write(ids.iter().map(change).collect()).await.unwrap();
            }
            println!("{}", ids.join("\n"));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let (position, state) = {
                    let recent = shop.recent.lock();
                    let seen = (shop.state.applied_position(), hash(&view(&shop.state, &Deduper::default(), 0)));
                    drop(recent);
                    seen
                };
                println!("state {position} {state}");
                std::thread::sleep(Duration::from_millis(3));
                shop.checkpoints.write().unwrap();
            }
        });
        runtime.block_on(async { tokio::join!(task(0), task(1), task(2), task(3)) });
    });
}

#[test]
fn acknowledged_events_are_there_once_after_kill_9_and_the_state_is_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let (mut acknowledged, mut states_compared) = (Vec::new(), 0);
    for round in 0..kills() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["write_until_killed", "--exact", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = 100 + round * 37 % 400;
        let seen = acknowledged.len();
        let mut state = None;
        for line in lines.by_ref().map_while(Result::ok) {
            match line.strip_prefix("state ") {
                Some(told) => state = Some(told.to_owned()),
                None if line.starts_with("ack ") => acknowledged.push(line),
                None => {}
            }
            if acknowledged.len() - seen >= wanted && state.is_some() {
                child.kill().unwrap();
                break;
            }
        }
        // A killed process may leave half a line: an id counts if its line is whole, which the last one need not be.
        let mut rest: Vec<String> = lines.map_while(Result::ok).filter(|line| line.starts_with("ack ")).collect();
        rest.pop();
        acknowledged.extend(rest);
        child.wait().unwrap();
        assert!(acknowledged.len() - seen >= wanted, "the writer ended by itself");
        let told = state.unwrap();
        let (position, state) = told.split_once(' ').unwrap();
        assert_eq!(state_at(directory.path(), position.parse().unwrap()).to_string(), state, "round {round}");
        states_compared += 1;
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    for id in stored(directory.path()) {
        *counts.entry(id).or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 1));
    for id in &acknowledged {
        assert!(counts.contains_key(id), "{id} was acknowledged and is lost");
    }
    // The last start: with its checkpoint as without.
    let log = EventLog::open(directory.path()).unwrap();
    let quick = folded(&log, directory.path());
    assert!(quick.checkpoint > 0);
    checkpoint::remove(directory.path()).unwrap();
    let whole = folded(&log, directory.path());
    assert_eq!(view(&quick.state, &quick.recent, 0), view(&whole.state, &whole.recent, 0));
    println!(
        "{} acknowledged, {} stored, {} kills, {states_compared} states compared",
        acknowledged.len(),
        counts.len(),
        kills()
    );
}
