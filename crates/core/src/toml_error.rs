//! Errors of TOML files on one line.

/// Returns the line of the text and the message of an error; for a value of a table without a text, the message and the key.
/// The library's own form has several lines, with that of the file in between, which may have a secret.
pub fn one_line(text: &str, error: &toml::de::Error) -> String {
    let Some(span) = error.span() else {
        return error.to_string().trim_end().replace('\n', " ");
    };
    let before = &text.as_bytes()[..span.start.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    format!("line {line}: {}", error.message().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct File {
        #[expect(dead_code, reason = "only errors are read")]
        table: Table,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        #[expect(dead_code, reason = "only errors are read")]
        count: u32,
    }

    #[test]
    fn an_error_has_the_line_of_the_text_or_the_key_of_the_table() {
        for (text, line, part) in [
            ("[table]\ncount = \"many\"\n", "line 2: ", "invalid type: string \"many\""),
            ("[table]\ncount = 1\nsecret = \"s3cret\"\n", "line 3: ", "unknown field `secret`"),
            ("[table]\n\n= 1", "line 3: ", ""),
            ("# é\ncount = é\n", "line 2: ", ""),
            ("[table]", "line 1: ", "missing field `count`"),
        ] {
            let shown = one_line(text, &toml::from_str::<File>(text).unwrap_err());
            assert!(shown.starts_with(line) && shown.contains(part) && !shown.contains('\n'), "{text}: {shown}");
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        let table: toml::Table = toml::from_str("[table]\ncount = \"many\"\n").unwrap();
        let shown = one_line("", &table.try_into::<File>().unwrap_err());
        assert!(shown.contains("\"many\"") && shown.contains("in `table.count`") && !shown.contains('\n'), "{shown}");
    }
}
