//! The audit log: who called which method of administration or privacy. Lines of JSON, each with the hash of the line
//! before, so that a changed, inserted or removed line is found. docs/security.md describes the format.
mod entry;
mod reader;
mod writer;

pub use entry::{Entry, EntryKind, FIRST_HASH};
pub use reader::{AuditError, Verification, Violation, read, verify};
pub use writer::{AuditLog, AuditSettings, Call};

/// The directory of the audit log in a data directory.
pub const DIRECTORY: &str = "audit";
