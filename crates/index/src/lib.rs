//! Indexes of candidate retrieval: vectors, text, completions and item-to-item weights; and all SIMD of the project.
//!
//! # Mental model
//!
//! Every index maps a query to [`Row`](lodestone_core::ids::Row)s, the dense numbers of the items of one generation,
//! with scores. An item that is replaced gets a new row. Indexes only grow; a deleted or replaced row is *dead*, and
//! each search takes the eligible rows as a bit set or a predicate, which excludes dead rows and applies the filters of
//! the request.
//!
//! - [`FrozenGraph`]: the vectors of a bundle in an immutable HNSW graph that is read from a file. A search
//!   traverses quantized vectors (one byte for each dimension), then scores its candidates with the stored vectors in a
//!   [`Precision`]. If a filter leaves few rows, it scans their codes instead; [`SearchStrategy`] reports which.
//! - [`LiveGraph`]: vectors of items that were written after the bundle was built, in an HNSW graph in memory that
//!   accepts inserts during searches.
//! - [`VectorIndex`]: both graphs as one index. A merge ([`VectorIndex::freeze`], then [`VectorIndex::replace`])
//!   rebuilds the frozen graph with the live rows and without the dead ones while searches continue.
//! - [`Lexical`]: BM25 over titles, brands, categories, tags and descriptions, with [`Synonyms`], inflected forms in
//!   the shop's [`Languages`], prefix search and spelling correction. The first results are rescored by coverage and
//!   order of the query's words.
//! - [`Suggester`]: completions of a typed prefix from titles, their frequent [`phrases`], categories, brands and queries
//!   of users.
//! - [`Neighbours`] and [`KeyedNeighbours`]: a sparse matrix of item-to-item weights, such as transitions and
//!   co-purchases.
//!
//! Files: [`FrozenGraph`], [`Neighbours`], [`Histories`], [`Lexical`] and [`Suggester`] are parts of a bundle and have a
//! file format, because building them takes longer than a startup may; parsers check every offset and id, so that a
//! corrupt file is an error. Only the files of tantivy in that of [`Lexical`] are left to the checksums of the bundle.
//! What was written since is in memory only.
//!
//! SIMD is in `kernels`, which chooses the instruction set at run time. `unsafe` code is denied except in `kernels` and
//! in those modules of `frozen` that call kernels or read arrays of files.
//!
//! # Not useful for
//!
//! - Ranking: scores of different indexes are not comparable. The pipeline fuses the lists and ranks candidates with a
//!   model.
//! - Durability: live rows survive a restart only because the event log has the writes.
//! - Other metrics than the inner product. The live graph accepts unit vectors only.
//! - Query languages: [`Lexical`] has no operators, phrases or fields. Filters are expressions over columns of the
//!   catalogue.
#![deny(unsafe_code)]

mod arrays;
mod forms;
mod forward;
mod frozen;
mod function_words;
mod histories;
mod hnsw;
mod index;
#[allow(unsafe_code, reason = "SIMD intrinsics, and loops without bounds checks")]
mod kernels;
mod lexical;
mod neighbours;
mod spelling;
mod suggest;

pub use arrays::ArraysError;
pub use forms::{Languages, UnknownLanguage};
pub use frozen::{BuildConfig, FileError, FrozenError, FrozenGraph, Precision, SearchStrategy, UnknownPrecision};
pub use histories::{Histories, HistoriesError, SimilarHistories};
pub use hnsw::{InvalidVector, LiveGraph, LiveGraphConfig, VectorError, best_first, check_vector, exact_search};
pub use index::VectorIndex;
pub use kernels::{LANES, LaneVectors, dot};
pub use lexical::{
    Lexical, LexicalError, LexicalFileError, MatchMode, MatchScope, Matches, MatchingRows, QueryText, RowChange,
};
pub use neighbours::{KeyedNeighbours, Neighbours, NeighboursError};
pub use suggest::{Completion, CompletionCandidate, CompletionSource, Suggester, has_prefix, phrases};
