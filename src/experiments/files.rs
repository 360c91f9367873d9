//! Reads exposures and outcomes: one JSON object in a line, or canonical events as Parquet.
use super::{Draft, Exposure, Outcome, Team};
use crate::{
    dataset::{self, DatasetError},
    ids::PersonId,
    units::UnixMillis,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

/// The longest line that is taken, in bytes.
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
    #[error("{path}: is neither .jsonl nor .parquet")]
    Format { path: PathBuf },
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// What was shown in experiments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExperimentLog {
    pub exposures: Vec<Exposure>,
    pub drafts: Vec<Draft>,
}

/// A line of a file of answers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerLine {
    person: String,
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
    person: String,
    time_ms: i64,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    value: f64,
    #[serde(default)]
    item: String,
    #[serde(default)]
    answer: String,
}

/// Reads answers, a JSON object in each line: `person`, `time_ms`, `experiment`, and `arm`, or for interleaved answers
/// `picks` (`item` and `team`, `a` or `b`) and `answer`, its id.
pub fn read_answers(path: &Path) -> Result<ExperimentLog, ExperimentFileError> {
    let mut log = ExperimentLog::default();
    for_each_line(path, |line: AnswerLine| {
        let AnswerLine { person, time_ms, experiment, arm, answer, picks } = line;
        named(&[("person", &person), ("experiment", &experiment)])?;
        let at = UnixMillis(time_ms);
        if arm.is_empty() && picks.is_empty() {
            return Err("needs `arm`, or `picks` where rankings were interleaved".to_owned());
        }
        if !picks.is_empty() {
            let picks = picks.into_iter().map(pick).collect::<Result<_, _>>()?;
            let (person, experiment) = (person.clone(), experiment.clone());
            log.drafts.push(Draft { answer, person, at, experiment, picks });
        }
        if !arm.is_empty() {
            log.exposures.push(Exposure { person, at, experiment, arm });
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

fn named(fields: &[(&str, &str)]) -> Result<(), String> {
    match fields.iter().find(|(_, value)| value.is_empty()) {
        Some((name, _)) => Err(format!("`{name}` is empty")),
        None => Ok(()),
    }
}

/// Reads outcomes. `.jsonl`: an object in each line with `person`, `time_ms`, `type`, and where known `value`, `item`,
/// `answer`. `.parquet`: canonical events (docs/events.md); the value is quantity times price.
pub fn read_outcomes(path: &Path) -> Result<Vec<Outcome>, ExperimentFileError> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => Ok(dataset::read_events(path)?.into_iter().filter_map(outcome).collect()),
        Some("jsonl") => {
            let mut outcomes = Vec::new();
            for_each_line(path, |line: OutcomeLine| {
                let OutcomeLine { person, time_ms, kind, value, item, answer } = line;
                named(&[("person", &person), ("type", &kind)])?;
                outcomes.push(Outcome { person, at: UnixMillis(time_ms), kind, value, item, answer });
                Ok(())
            })?;
            Ok(outcomes)
        }
        _ => Err(ExperimentFileError::Format { path: path.to_owned() }),
    }
}

/// None for an event of nobody.
fn outcome(event: dataset::DatasetEvent) -> Option<Outcome> {
    let price = event.price.map_or(0.0, |price| price.units());
    Some(Outcome {
        person: event.person.as_ref().map(PersonId::as_str)?.to_owned(),
        at: event.at,
        kind: event.kind.name().to_owned(),
        value: price * f64::from(event.quantity),
        item: event.item.map_or_else(String::new, |item| item.as_str().to_owned()),
        answer: String::new(),
    })
}

/// Gives each line that is not empty. A file without one is an error.
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
