//! The canonical Parquet files of items, events and answers, and the import of a shop's files. `docs/events.md` has the
//! schema.
#![forbid(unsafe_code)]
mod answers;
mod columns;
mod decisions;
mod decompress;
mod events;
mod export;
pub mod import;
mod incentive_assignment;
mod incentive_decisions;
mod items;
mod purchases;

pub use answers::{DatasetSlot, read_slots};
pub use columns::{Cells, write_csv, write_table};
pub use decisions::{DecisionFileError, DecisionRow, Decisions, read_decisions};
pub use decompress::decompress;
pub use events::{
    AnswerTokens, DatasetEvent, history_files, into_events, join_orders, read_answer_tokens, read_events, read_history,
    read_history_if_any, write_attributed_events, write_events,
};
pub use export::{ExportError, Exported, export};
pub use incentive_assignment::{AssignedIncentive, read_incentive_assignment};
pub use incentive_decisions::LoggedDecisions;
pub use items::{parse_items, read_items, write_items};
pub use purchases::{CustomerPurchases, DatasetPurchase, PurchaseFileError, format_day, parse_day, read_purchases};
use std::{io, path::PathBuf};

/// The reason why a canonical file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: not a readable Parquet file: {message}")]
    Parquet { path: PathBuf, message: String },
    #[error("{path}: column `{column}` is missing; found: {found}")]
    MissingColumn { path: PathBuf, column: &'static str, found: String },
    #[error("{path}: column `{column}` has the type {found}, expected {expected}")]
    WrongType { path: PathBuf, column: &'static str, found: String, expected: &'static str },
    #[error("{path}: row {row}, column `{column}`: {problem}")]
    Value { path: PathBuf, row: usize, column: &'static str, problem: String },
    #[error("{path}: the file has no rows")]
    Empty { path: PathBuf },
    #[error(
        "{data} has no events: there is no events.parquet, which `lodestone import --events` writes, and no file of \
         `lodestone events export` in events/"
    )]
    NoEvents { data: PathBuf },
}
