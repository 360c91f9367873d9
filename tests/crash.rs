//! kill -9 while events are written: what was acknowledged is in the log, once.
mod support;

use lodestone::events::{Change, Deduper, EventKind, EventLog, Writer};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};
use support::{START, event};

const DIRECTORY: &str = "LODESTONE_CRASH_TEST_DIRECTORY";
const ROUNDS: usize = 6;

/// Ids of all events in the log, in its order.
fn stored(log: &EventLog) -> Vec<String> {
    let mut ids = Vec::new();
    log.replay(0, |_, change| {
        if let Change::Event(event) = change {
            ids.push(event.id.as_str().to_owned());
        }
    })
    .unwrap();
    ids
}

/// The process that is killed, which the test below starts: four tasks write, each acknowledged id is printed. Among the
/// other tests it has nothing to do.
#[test]
fn write_until_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let log = EventLog::open(Path::new(&directory)).unwrap();
    let mut recent = Deduper::default();
    log.replay(0, |_, change| {
        if let Change::Event(event) = change {
            recent.note(&event.id);
        }
    })
    .unwrap();
    let first = log.last_position();
    let writer: Writer<()> = Writer::start(log, recent, Box::new(|_| ())).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let task = async |task: u64| {
        for batch in 0.. {
            let ids: Vec<String> = (0..7).map(|n| format!("ack {first}-{task}-{batch}-{n}")).collect();
            let change = |id: &String| (Change::Event(event(id, EventKind::Purchase, "p", "i", START)), None);
            // Sent twice, as a client does that heard no answer.
            for _ in 0..2 {
                writer.write(ids.iter().map(change).collect()).await.unwrap();
            }
            println!("{}", ids.join("\n"));
        }
    };
    runtime.block_on(async { tokio::join!(task(0), task(1), task(2), task(3)) });
}

#[test]
fn acknowledged_events_are_there_once_after_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["write_until_killed", "--exact", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = 200 + round * 137;
        let seen = acknowledged.len();
        // A killed process may leave half a line: an id counts if its line is whole, which the last one need not be.
        for line in lines.by_ref().map_while(Result::ok).filter(|line| line.starts_with("ack ")) {
            acknowledged.push(line);
            if acknowledged.len() - seen == wanted {
                child.kill().unwrap();
                break;
            }
        }
        let mut rest: Vec<String> = lines.map_while(Result::ok).filter(|line| line.starts_with("ack ")).collect();
        rest.pop();
        acknowledged.extend(rest);
        child.wait().unwrap();
        assert!(acknowledged.len() - seen >= wanted, "the writer ended by itself");
    }
    let mut counts: HashMap<String, usize> = HashMap::new();
    for id in stored(&EventLog::open(directory.path()).unwrap()) {
        *counts.entry(id).or_default() += 1;
    }
    assert!(counts.values().all(|count| *count == 1));
    for id in &acknowledged {
        assert!(counts.contains_key(id), "{id} was acknowledged and is lost");
    }
    println!("{} acknowledged, {} stored, {ROUNDS} kills", acknowledged.len(), counts.len());
}
