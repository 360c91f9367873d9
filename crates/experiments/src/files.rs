//! Readers of exposures and outcomes: JSON lines, or the Parquet files of `lodestone answers export` and of canonical
//! events.
use crate::observations::{Draft, Exposure, Outcome, Team};
use lodestone_core::{
    ids::UserId,
    units::{Quantity, UnixMillis},
};
use lodestone_dataset::{self as dataset, DatasetError, DatasetSlot};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

const ANSWERS: &str = "answers.parquet";
const EVENTS: &str = "events.parquet";
/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentFileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: line {line}: {problem}")]
    Line { path: PathBuf, line: usize, problem: String },
    #[error("{path}: has no rows")]
    Empty { path: PathBuf },
    #[error("{path}: is neither .jsonl nor .parquet nor a directory")]
    Format { path: PathBuf },
    #[error("{path}: contains no {name}, and no directory of a day with one")]
    NoDays { path: PathBuf, name: &'static str },
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// The answers of experiments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExperimentLog {
    pub exposures: Vec<Exposure>,
    pub drafts: Vec<Draft>,
}

/// A line of a file of answers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerLine {
    user: String,
    #[serde(default)]
    session: String,
    time_ms: i64,
    experiment: String,
    #[serde(default)]
    arm: String,
    #[serde(default)]
    answer: String,
    #[serde(default)]
    picks: Vec<PickLine>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PickLine {
    item: String,
    /// `a` or `b`.
    team: String,
}

/// A line of a file of outcomes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutcomeLine {
    user: String,
    time_ms: i64,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    value: f64,
    #[serde(default)]
    currency: String,
    #[serde(default)]
    item: String,
    #[serde(default)]
    answer: String,
}

/// The format of a path.
enum Source {
    Lines,
    Parquet(Vec<PathBuf>),
}

/// Returns the format of a file by its extension. A directory has a file of this name, or one for each day (`day=…`,
/// `date=…`), which are returned in order.
fn source(path: &Path, name: &'static str) -> Result<Source, ExperimentFileError> {
    let io = |source| ExperimentFileError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(io)?.is_dir() {
        return match path.extension().and_then(|extension| extension.to_str()) {
            Some("parquet") => Ok(Source::Parquet(vec![path.to_owned()])),
            Some("jsonl") => Ok(Source::Lines),
            _ => Err(ExperimentFileError::Format { path: path.to_owned() }),
        };
    }
    if path.join(name).is_file() {
        return Ok(Source::Parquet(vec![path.join(name)]));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path().join(name);
        files.extend(file.is_file().then_some(file));
    }
    files.sort();
    if files.is_empty() {
        Err(ExperimentFileError::NoDays { path: path.to_owned(), name })
    } else {
        Ok(Source::Parquet(files))
    }
}

/// Reads the slots of exported answers: a file, or the directory that `lodestone answers export` wrote.
pub fn read_slots(path: &Path) -> Result<Vec<DatasetSlot>, ExperimentFileError> {
    let Source::Parquet(files) = source(path, ANSWERS)? else {
        return Err(ExperimentFileError::Format { path: path.to_owned() });
    };
    let mut slots = Vec::new();
    for file in files {
        slots.extend(dataset::read_slots(&file)?);
    }
    Ok(slots)
}

/// Reads exported answers ([`read_slots`]), or `.jsonl` with an object in each line: `user`, `time_ms`, `experiment`,
/// and `arm` with an optional `session`, or for an interleaved answer `picks` (`item` and `team`, `a` or `b`) and its id `answer`.
pub fn read_answers(path: &Path) -> Result<ExperimentLog, ExperimentFileError> {
    match source(path, ANSWERS)? {
        Source::Parquet(_) => Ok(experiment_log(&read_slots(path)?)),
        Source::Lines => read_answer_lines(path),
    }
}

/// Returns the answers that belong to experiments; the slots of an answer are consecutive.
fn experiment_log(slots: &[DatasetSlot]) -> ExperimentLog {
    let mut log = ExperimentLog::default();
    let in_experiments = slots.chunk_by(|a, b| a.answer == b.answer).filter(|answer| !answer[0].experiment.is_empty());
    for answer in in_experiments {
        let first = &answer[0];
        let (user, at, experiment) = (first.user.clone(), first.at, first.experiment.clone());
        let team = |team| match team {
            1 => Some(Team::A),
            2 => Some(Team::B),
            _ => None,
        };
        let picks: Vec<(String, Team)> =
            answer.iter().filter_map(|slot| Some((slot.item.clone(), team(slot.team)?))).collect();
        match picks.is_empty() {
            true => log.exposures.push(Exposure {
                user,
                session: first.session.clone(),
                at,
                experiment,
                arm: first.arm.clone(),
            }),
            // An interleaved answer has no arm: each slot has the configuration of its team.
            false => log.drafts.push(Draft { answer: first.answer.clone(), user, at, experiment, picks }),
        }
    }
    log
}

fn read_answer_lines(path: &Path) -> Result<ExperimentLog, ExperimentFileError> {
    let mut log = ExperimentLog::default();
    for_each_line(path, |line: AnswerLine| {
        let AnswerLine { user, session, time_ms, experiment, arm, answer, picks } = line;
        require(&[("user", &user), ("experiment", &experiment)])?;
        let at = UnixMillis(time_ms);
        if arm.is_empty() && picks.is_empty() {
            return Err("needs `arm`, or `picks` if rankings were interleaved".to_owned());
        }
        if !picks.is_empty() {
            let picks = picks.into_iter().map(pick).collect::<Result<_, _>>()?;
            let (user, experiment) = (user.clone(), experiment.clone());
            log.drafts.push(Draft { answer, user, at, experiment, picks });
        }
        if !arm.is_empty() {
            log.exposures.push(Exposure { user, session, at, experiment, arm });
        }
        Ok(())
    })?;
    Ok(log)
}

fn pick(line: PickLine) -> Result<(String, Team), String> {
    let team = match line.team.as_str() {
        "a" => Team::A,
        "b" => Team::B,
        other => return Err(format!("`team` is `{other}`; it must be `a` or `b`")),
    };
    Ok((line.item, team))
}

/// Refuses empty fields.
fn require(fields: &[(&str, &str)]) -> Result<(), String> {
    match fields.iter().find(|(_, value)| value.is_empty()) {
        Some((name, _)) => Err(format!("`{name}` is empty")),
        None => Ok(()),
    }
}

/// Reads outcomes: `.jsonl` with an object in each line, `user`, `time_ms`, `type`, and optionally `value`, `currency`,
/// `item` and `answer`; or canonical events (docs/events.md), `.parquet` or a directory with `events.parquet` or with one for each
/// day. The value of an event is quantity times price.
pub fn read_outcomes(path: &Path) -> Result<Vec<Outcome>, ExperimentFileError> {
    let mut outcomes = Vec::new();
    match source(path, EVENTS)? {
        Source::Parquet(files) => {
            for file in files {
                outcomes.extend(dataset::read_events(&file)?.into_iter().filter_map(outcome));
            }
        }
        Source::Lines => for_each_line(path, |line: OutcomeLine| {
            let OutcomeLine { user, time_ms, kind, value, currency, item, answer } = line;
            require(&[("user", &user), ("type", &kind)])?;
            let currency = currency.to_uppercase();
            outcomes.push(Outcome { user, at: UnixMillis(time_ms), kind, value, currency, item, answer });
            Ok(())
        })?,
    }
    Ok(outcomes)
}

/// Returns the outcome of an event, or `None` if the event has no user.
fn outcome(event: dataset::DatasetEvent) -> Option<Outcome> {
    let price = event.price.map_or(0.0, |price| price.units());
    Some(Outcome {
        user: event.user.as_ref().map(UserId::as_str)?.to_owned(),
        at: event.at,
        kind: event.kind.name().to_owned(),
        value: price * event.quantity.map_or(1.0, Quantity::units),
        currency: event.currency.to_uppercase(),
        item: event.item.map_or_else(String::new, |item| item.as_str().to_owned()),
        answer: String::new(),
    })
}

/// Parses each line that is not empty and passes it to `take`. A file without such a line is an error.
fn for_each_line<T: for<'de> Deserialize<'de>>(
    path: &Path,
    mut take: impl FnMut(T) -> Result<(), String>,
) -> Result<(), ExperimentFileError> {
    let io = |source| ExperimentFileError::Io { path: path.to_owned(), source };
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path).map_err(io)?);
    let (mut number, mut taken, mut text) = (0, 0usize, String::new());
    loop {
        text.clear();
        number += 1;
        let at = |problem: String| ExperimentFileError::Line { path: path.to_owned(), line: number, problem };
        let limit = LINE_BYTES_MAX as u64 + 1;
        let read = io::Read::take(&mut reader, limit).read_line(&mut text).map_err(|error| at(error.to_string()))?;
        if read > LINE_BYTES_MAX {
            return Err(at(format!("has more than {LINE_BYTES_MAX} bytes")));
        }
        if read == 0 {
            break;
        }
        if !text.trim().is_empty() {
            let line = serde_json::from_str(&text).map_err(|error| at(error.to_string()))?;
            take(line).map_err(at)?;
            taken += 1;
        }
    }
    if taken == 0 { Err(ExperimentFileError::Empty { path: path.to_owned() }) } else { Ok(()) }
}
