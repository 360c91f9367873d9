//! Stage one: finds candidates by vectors, words and neighbours, and fuses them.
mod fuse;
mod hnsw;
mod lexical;
mod neighbours;
mod suggest;

pub use fuse::reciprocal_rank_fusion;
pub use hnsw::{Graph, GraphConfig, VectorError, check_vector, dot, exact_search};
pub use lexical::{Lexical, LexicalError, Match};
pub use neighbours::{Neighbours, NeighboursError};
pub use suggest::{Suggester, Suggestible};
