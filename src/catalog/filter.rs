//! The filter language. (being written)
#[derive(Debug, Clone)]
pub struct Filter;
