//! Errors of TOML files on one line.

/// Returns the line and the message of an error. The message of the library itself has several lines, with the line of the
/// file in between.
pub(crate) fn one_line(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    format!("line {line}: {}", error.message().replace('\n', " "))
}
