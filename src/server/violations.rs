//! What is wrong with a request: all of it, each with its field.
use lodestone_pipeline::PAGE_SIZE_MAX;
use std::fmt::Display;

/// A field whose value cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    /// Path of the field, such as `options.pins[2].rank`.
    pub field: String,
    /// The value's problem and the limit.
    pub description: String,
}

/// Collects violations, and notices about values that are read differently from what was sent. A field is written out only where
/// something is wrong with it.
#[derive(Debug, Default)]
pub(super) struct Violations {
    pub found: Vec<Violation>,
    pub notices: Vec<Violation>,
}

impl Violations {
    pub(super) fn add(&mut self, field: impl Display, description: impl Into<String>) {
        self.found.push(Violation { field: field.to_string(), description: description.into() });
    }

    /// Keeps the value of a parse that worked; otherwise notes why not.
    pub(super) fn keep<T, E: Display>(&mut self, field: impl Display, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|error| self.add(field, error.to_string())).ok()
    }

    /// At most `limit` entries.
    pub(super) fn count(&mut self, field: impl Display, count: usize, limit: usize) {
        if count > limit {
            self.add(field, format!("has {count} entries; the limit is {limit}"));
        }
    }

    /// At most `limit` characters.
    pub(super) fn characters(&mut self, field: impl Display, text: &str, limit: usize) {
        // Counting is bounded too: bytes are never fewer than characters.
        if text.len() > limit {
            let count = text.chars().count();
            if count > limit {
                self.add(field, format!("has {count} characters; the limit is {limit}"));
            }
        }
    }

    /// A size within 0 and `limit`: 0 is the default, more than the limit is the limit, with a notice.
    pub(super) fn size(&mut self, field: impl Display, size: i32, default: usize, limit: usize) -> usize {
        match usize::try_from(size) {
            Err(_) => {
                self.add(field, format!("is {size}; it must be 0 (for {default}) to {limit}"));
                default
            }
            Ok(0) => default,
            Ok(size) if size > limit => {
                let description = format!("{size} is above the limit; {limit} was used");
                self.notices.push(Violation { field: field.to_string(), description });
                limit
            }
            Ok(size) => size,
        }
    }

    pub(super) fn page_size(&mut self, size: i32) -> usize {
        self.size("page_size", size, lodestone_pipeline::PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}
