//! Errors with their causes on one line.
use std::error::Error;

/// Formats an error and its causes, skipping causes that the text already contains.
pub fn format_error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn a_cause_that_its_parent_contains_is_not_repeated() {
        for (text, expected) in
            [("shop.csv: no such file", "shop.csv: no such file"), ("import", "import: no such file")]
        {
            let error = Outer { text, source: io::Error::other("no such file") };
            assert_eq!(format_error_chain(&error), expected);
        }
    }
}
