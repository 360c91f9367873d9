//! A line of the audit log, and the names of its files.
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The `previous` of the first line of a log.
pub const FIRST_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Before the hash, which is the last field of a line. After it: a quote and a brace.
const HASH_FIELD: &str = ",\"hash\":\"";
const HASH_DIGITS: usize = FIRST_HASH.len();
const FILE_PREFIX: &str = "audit-";
const FILE_SUFFIX: &str = ".jsonl";

/// What a line records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A call that changes nothing, after it.
    Call,
    /// A call that changes something, before it.
    Begin,
    /// Such a call, after it.
    End,
}

/// A line of the audit log, without its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// 1, 2, 3, … in the whole log.
    pub sequence: u64,
    /// RFC 3339, in UTC.
    pub time: String,
    pub kind: EntryKind,
    /// The name of the API key or the subject of the token. Empty: the server does not authenticate.
    pub client: String,
    /// `api_key`, `token` or `none`.
    pub client_kind: String,
    /// The service and the method, such as `RuleService/CreateRule`.
    pub method: String,
    pub catalog: String,
    /// What the call is about, such as the id of a rule. May be empty.
    pub resource: String,
    /// The name of the gRPC status code. Empty in a line with the kind `begin`.
    pub status: String,
    /// The metadata `x-request-id` of the response.
    pub request_id: String,
    /// In a line with the kind `end`: the sequence of the line with the kind `begin`. Otherwise 0.
    pub begin: u64,
    /// The call asked to change nothing, such as PurgeItems without `force`. Absent in the line if false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// The hash of the line before.
    pub previous: String,
}

fn hash_of(content: &str) -> String {
    format!("{:x}", Sha256::digest(content))
}

impl Entry {
    /// Returns the line, without its end, and its hash.
    pub(super) fn line(&self) -> io::Result<(String, String)> {
        let content = serde_json::to_string(self)?;
        let hash = hash_of(&content);
        let open = content.strip_suffix('}').unwrap_or(&content);
        Ok((format!("{open}{HASH_FIELD}{hash}\"}}"), hash))
    }

    /// Parses a line. Returns the entry and its hash, which fits its content, or the problem.
    pub(super) fn parse(line: &str) -> Result<(Self, String), String> {
        let malformed = || "is no line of an audit log with a hash at its end".to_owned();
        let without_end = line.strip_suffix("\"}").ok_or_else(malformed)?;
        let at = without_end.len().checked_sub(HASH_DIGITS).ok_or_else(malformed)?;
        let (before, hash) = without_end.split_at_checked(at).ok_or_else(malformed)?;
        let content = format!("{}}}", before.strip_suffix(HASH_FIELD).ok_or_else(malformed)?);
        if hash_of(&content) != hash {
            return Err("has a hash that does not fit its content".to_owned());
        }
        let entry = serde_json::from_str(&content).map_err(|error| format!("cannot be parsed: {error}"))?;
        Ok((entry, hash.to_owned()))
    }
}

/// Returns the name of the file whose first line has this sequence. The order of names is the order of lines.
pub(super) fn file_name(sequence: u64) -> String {
    format!("{FILE_PREFIX}{sequence:020}{FILE_SUFFIX}")
}

/// Returns the sequence of the first line of a file by its name. None: it is no name of [`file_name`].
pub(super) fn first_sequence(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let sequence = name.strip_prefix(FILE_PREFIX)?.strip_suffix(FILE_SUFFIX)?.parse().ok()?;
    (name == file_name(sequence)).then_some(sequence)
}

/// Returns the files of a log in their order.
pub(super) fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(FILE_PREFIX) && name.ends_with(FILE_SUFFIX) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn entry() -> Entry {
        Entry {
            sequence: 7,
            time: "2026-12-01T00:00:00Z".to_owned(),
            kind: EntryKind::Begin,
            client: "merchandiser \"1\"".to_owned(),
            client_kind: "api_key".to_owned(),
            method: "RuleService/CreateRule".to_owned(),
            catalog: "default".to_owned(),
            resource: "summer-é}".to_owned(),
            status: String::new(),
            request_id: String::new(),
            begin: 0,
            dry_run: false,
            previous: FIRST_HASH.to_owned(),
        }
    }

    #[test]
    fn the_name_of_a_file_has_the_sequence_of_its_first_line() {
        let directory = Path::new("audit");
        assert_eq!(first_sequence(&directory.join(file_name(9))), Some(9));
        assert_eq!(first_sequence(&directory.join(file_name(u64::MAX))), Some(u64::MAX));
        for name in ["audit-9.jsonl", "audit-.jsonl", "audit-0000000000000000000x.jsonl", "other.jsonl"] {
            assert_eq!(first_sequence(&directory.join(name)), None, "{name}");
        }
    }

    #[test]
    fn a_line_has_the_field_of_a_dry_run_only_if_it_is_one() {
        let (line, hash) = entry().line().unwrap();
        assert!(!line.contains("dry_run"), "{line}");
        let dry_run = Entry { dry_run: true, ..entry() };
        let (line, other) = dry_run.line().unwrap();
        assert!(line.contains(",\"dry_run\":true,") && hash != other, "{line}");
        assert_eq!(Entry::parse(&line), Ok((dry_run, other)));
    }

    #[test]
    fn a_line_is_parsed_and_every_changed_byte_is_found() {
        let (line, hash) = entry().line().unwrap();
        assert_eq!(Entry::parse(&line), Ok((entry(), hash.clone())));
        // The hash is that of the line without it: what `sha256sum` computes.
        let content = line.replace(&format!(",\"hash\":\"{hash}\""), "");
        assert_eq!(hash_of(&content), hash);
        let bytes = line.as_bytes();
        for index in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[index] ^= 1;
            let is_found = std::str::from_utf8(&changed).map_or(true, |text| Entry::parse(text).is_err());
            assert!(is_found, "byte {index}");
        }
        for part in ["", "{", "\"}", "é\"}", &line[..line.len() - 1]] {
            assert!(Entry::parse(part).is_err(), "{part}");
        }
    }
}
