//! Collects all invalid fields of a request.
use lodestone_pipeline::{PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX};
use std::fmt::Display;

/// A field with an invalid value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Path of the field, such as `options.pins[2].rank`.
    pub field: String,
    /// The value, what is wrong with it, and the limit.
    pub description: String,
    /// The limit that the value exceeds, if it is a number.
    pub limit: Option<usize>,
    /// The name of a field of items that does not exist, if this is the problem.
    pub unknown_field: Option<String>,
}

impl Violation {
    pub(crate) fn new(field: impl Display, description: impl Into<String>) -> Self {
        Self { field: field.to_string(), description: description.into(), limit: None, unknown_field: None }
    }
}

/// Violations, and notices about values that were replaced. Fields are formatted only if they are invalid.
#[derive(Debug, Default)]
pub(crate) struct Violations {
    pub found: Vec<Violation>,
    pub notices: Vec<Violation>,
}

impl Violations {
    pub(crate) fn add(&mut self, field: impl Display, description: impl Into<String>) {
        self.found.push(Violation::new(field, description));
    }

    /// Adds a violation of a limit.
    pub(crate) fn add_beyond(&mut self, field: impl Display, description: impl Into<String>, limit: usize) {
        self.found.push(Violation { limit: Some(limit), ..Violation::new(field, description) });
    }

    /// Adds a violation that names a field of items that does not exist.
    pub(crate) fn add_unknown_field(&mut self, field: impl Display, description: impl Into<String>, name: &str) {
        let unknown_field = Some(name.to_owned());
        self.found.push(Violation { unknown_field, ..Violation::new(field, description) });
    }

    /// Returns the parsed value, or adds a violation with the parse error.
    pub(crate) fn keep<T, E: Display>(&mut self, field: impl Display, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|error| self.add(field, error.to_string())).ok()
    }

    /// Adds a violation if there are more than `limit` entries.
    pub(crate) fn count(&mut self, field: impl Display, count: usize, limit: usize) {
        if count > limit {
            self.add_beyond(field, format!("has {count} entries; the limit is {limit}"), limit);
        }
    }

    /// Adds a violation if the text has more than `limit` characters.
    pub(crate) fn characters(&mut self, field: impl Display, text: &str, limit: usize) {
        // A text has at least as many bytes as characters, which avoids counting most texts.
        if text.len() > limit {
            let count = text.chars().count();
            if count > limit {
                self.add_beyond(field, format!("has {count} characters; the limit is {limit}"), limit);
            }
        }
    }

    /// Validates a size. 0 is the default; a size above `limit` is replaced by it, with a notice.
    pub(crate) fn size(&mut self, field: impl Display, size: i32, default: usize, limit: usize) -> usize {
        match usize::try_from(size) {
            Err(_) => {
                let description = format!("is {size}; it must be within 0 (the default, {default}) and {limit}");
                self.add_beyond(field, description, limit);
                default
            }
            Ok(0) => default,
            Ok(size) if size > limit => {
                let description = format!("{size} is above the limit; {limit} was used");
                self.notices.push(Violation::new(field, description));
                limit
            }
            Ok(size) => size,
        }
    }

    pub(crate) fn page_size(&mut self, size: i32) -> usize {
        self.size("page_size", size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }
}
