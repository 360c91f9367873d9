//! Stage one: finds candidates by vectors, words and neighbours.
mod forward;
mod frozen;
mod hnsw;
mod index;
mod kernels;
mod lexical;
mod neighbours;
mod spelling;
mod suggest;
mod synonyms;

pub use frozen::{BuildConfig, FileError, FrozenError, FrozenGraph, Precision, SearchStrategy};
pub use hnsw::{BadVector, Graph, GraphConfig, VectorError, best_first, check_vector, exact_search};
pub use index::VectorIndex;
pub use kernels::{LANES, LaneVectors, dot};
pub use lexical::{Lexical, LexicalError, Match, Matches};
pub use neighbours::{KeyedNeighbours, Neighbours, NeighboursError};
pub use suggest::{Completion, CompletionSource, Suggester, Suggestible};
pub use synonyms::{ParseError as SynonymsParseError, Synonyms, SynonymsError, SynonymsProblem};
