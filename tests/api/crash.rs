//! SIGKILL during writes: every acknowledged event is in the log, once, and the state after the replay equals the state
//! before. `KILLS=200 cargo test --test api crash::` is the long form (`make test-crash`); the default is 6 kills.
use crate::support::{
    events::{START, event},
    live_state::{LoggedState, NO_EVICTION, USERS, initial_state, recovered, view},
    number_setting, setting,
};
use lodestone_events::{Change, Deduper, EventKind, EventLog, checkpoint, log};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Makes a run of this binary the process that is killed, and names the directory of its log.
const DIRECTORY: &str = "LODESTONE_CRASH_TEST_DIRECTORY";
/// The test that this process is.
const WRITER_TEST: &str = "crash::write_until_killed";

/// Returns the ids of all events in the log, in its order.
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

/// Returns the hash of the state that the events up to a log position fold to, without checkpoints and recovery.
fn state_at(directory: &Path, position: u64) -> u64 {
    let state = initial_state(NO_EVICTION);
    log::read(directory, 1, |at, _, change| {
        if let (Change::Event(event), true) = (change, at <= position) {
            state.apply_event(at, &event);
        }
    })
    .unwrap();
    hash(&view(&state, &Deduper::default(), 0))
}

/// The process that is killed. Four tasks write and print each acknowledged id; a thread prints the state with its log
/// position and writes checkpoints. In an ordinary run of the tests it does nothing.
#[test]
fn write_until_killed() {
    let Some(directory) = setting(DIRECTORY) else { return };
    let shop = LoggedState::open(Path::new(&directory));
    let first = shop.writer.position();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let task = async |task: u64| {
        for batch in 0..u64::MAX {
            let ids: Vec<String> = (0..7).map(|n| format!("ack {first}-{task}-{batch}-{n}")).collect();
            let change = |id: &String| {
                let user = format!("p{}", (task + batch) as usize % USERS);
                let item = format!("i{batch}");
                (Change::Event(event(id, EventKind::Purchase, &user, &item, START + batch as i64)), None)
            };
            // Written twice, as by a client that retries because it received no response.
            for _ in 0..2 {
                shop.writer.write(ids.iter().map(change).collect()).await.unwrap();
            }
            println!("{}", ids.join("\n"));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in crossbeam_channel::tick(Duration::from_millis(3)) {
                let (position, state) = {
                    // No change is applied while this lock is held.
                    let _recent = shop.recent.lock();
                    (shop.state.applied_position(), hash(&view(&shop.state, &Deduper::default(), 0)))
                };
                shop.checkpoints.write().unwrap();
                // Printed last and never for an empty log, so that a reader of the line knows that a checkpoint exists.
                if position > 0 {
                    println!("state {position} {state}");
                }
            }
        });
        runtime.block_on(async { tokio::join!(task(0), task(1), task(2), task(3)) });
    });
}

#[test]
fn acknowledged_events_are_stored_once_after_sigkill_and_the_state_is_recovered() {
    let kills = number_setting("KILLS", 6);
    let directory = tempfile::tempdir().unwrap();
    let (mut acknowledged, mut states_compared) = (Vec::new(), 0);
    for round in 0..kills {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([WRITER_TEST, "--exact", "--nocapture"])
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
                Some(printed) => state = Some(printed.to_owned()),
                None if line.starts_with("ack ") => acknowledged.push(line),
                None => {}
            }
            if acknowledged.len() - seen >= wanted && state.is_some() {
                child.kill().unwrap();
                break;
            }
        }
        // The last line of a killed process may be incomplete, so it does not count.
        let mut rest: Vec<String> = lines.map_while(Result::ok).filter(|line| line.starts_with("ack ")).collect();
        rest.pop();
        acknowledged.extend(rest);
        child.wait().unwrap();
        assert!(acknowledged.len() - seen >= wanted, "the writer ended before it was killed");
        let printed = state.unwrap();
        let (position, state) = printed.split_once(' ').unwrap();
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
    // The last recovery: with its checkpoint and without it.
    let log = EventLog::open(directory.path()).unwrap();
    let quick = recovered(&log, directory.path());
    assert!(quick.checkpoint > 0);
    checkpoint::remove(directory.path()).unwrap();
    let whole = recovered(&log, directory.path());
    assert_eq!(view(&quick.state, &quick.recent, 0), view(&whole.state, &whole.recent, 0));
    println!(
        "{} acknowledged, {} stored, {kills} kills, {states_compared} states compared",
        acknowledged.len(),
        counts.len()
    );
}
