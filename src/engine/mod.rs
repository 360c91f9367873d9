//! The story of a request: search, recommend, rank, suggest, write.
mod request;

pub use request::*;
