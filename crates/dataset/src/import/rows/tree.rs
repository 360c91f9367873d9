//! Columns of rows that are trees: JSON objects and XML elements. A path names a value within the row: `a.b`, and in
//! lists `a[0]`, `a[key=name]` or all entries, `a[]`.
use super::{Buffers, Selection, ValueKind, cells::LIST_SEPARATOR};
use serde_json::{Map, Value};

/// Names of a row that an error lists.
const EXISTING_MAX: usize = 200;
/// The member with the text of an XML element that also has attributes.
pub(super) const TEXT: &str = "#text";

/// The paths of the mapped columns, and which of them were found.
pub(super) struct Paths {
    /// Of each mapped column, in the order of its names.
    paths: Vec<Vec<String>>,
    /// Whether a row so far has each column, and then whether one has a value of each pattern.
    found: Vec<bool>,
    /// The names of the first row, for the error of a missing column.
    existing: Vec<String>,
    /// The member whose array has a row in each entry.
    rows: String,
    /// Rows of the current tree that are still to be returned, with the tree.
    pending: Option<(Map<String, Value>, std::vec::IntoIter<Value>)>,
}

impl Paths {
    /// `rows`: the member whose entries are rows, or empty.
    pub(super) fn new(selection: &Selection<'_>, rows: &str) -> Self {
        Self {
            paths: selection.columns.iter().map(|column| column.names.to_vec()).collect(),
            found: vec![false; selection.columns.len() + selection.wildcards.len()],
            existing: Vec::new(),
            rows: rows.to_owned(),
            pending: None,
        }
    }

    /// Returns whether a member of a row is part of a mapped column.
    pub(super) fn needs(&self, selection: &Selection<'_>, member: &str) -> bool {
        let begins =
            |path: &str| path.strip_prefix(member).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        let is_of_pattern = |prefix: &str| member.starts_with(prefix) || prefix.starts_with(&format!("{member}."));
        self.existing.is_empty()
            || self.rows == member
            || self.paths.iter().flatten().any(|path| begins(path))
            || selection.wildcards.iter().any(|wildcard| is_of_pattern(wildcard.prefix))
    }

    pub(super) fn columns(&self) -> (&[bool], &[String]) {
        (&self.found, &self.existing)
    }

    /// Sets the next pending row of the last tree; false if there is none.
    pub(super) fn next_pending(&mut self, selection: &Selection<'_>, out: &mut Buffers) -> Result<bool, String> {
        let Some((tree, mut entries)) = self.pending.take() else { return Ok(false) };
        let Some(entry) = entries.next() else { return Ok(false) };
        let mut row = tree;
        row.insert(self.rows.clone(), entry);
        self.set(&row, selection, out)?;
        self.pending = Some((row, entries));
        Ok(true)
    }

    /// Sets the first row of a tree. Others are pending.
    pub(super) fn set_first(
        &mut self,
        mut tree: Map<String, Value>,
        selection: &Selection<'_>,
        out: &mut Buffers,
    ) -> Result<(), String> {
        if self.existing.is_empty() {
            self.existing = tree.keys().take(EXISTING_MAX).cloned().collect();
        }
        match tree.remove(&self.rows) {
            Some(Value::Array(entries)) if !entries.is_empty() => {
                self.pending = Some((tree, entries.into_iter()));
                self.next_pending(selection, out).map(drop)
            }
            Some(Value::Array(_)) | None => self.set(&tree, selection, out),
            Some(other) => {
                tree.insert(self.rows.clone(), other);
                self.set(&tree, selection, out)
            }
        }
    }

    fn set(&mut self, row: &Map<String, Value>, selection: &Selection<'_>, out: &mut Buffers) -> Result<(), String> {
        let mut values = Vec::new();
        for (column, paths) in self.paths.iter().enumerate() {
            for path in paths {
                values.clear();
                select(row, path, &mut values);
                if values.is_empty() {
                    continue;
                }
                self.found[column] = true;
                let kind = if let [value] = values[..] { kind_of(value) } else { ValueKind::Text };
                out.set(column, &text_of(path, &values)?, kind);
            }
        }
        for (index, wildcard) in selection.wildcards.iter().enumerate() {
            let found = &mut self.found[selection.columns.len() + index];
            match wildcard.prefix.rsplit_once('.') {
                None => {
                    for (column, value) in row {
                        if let Some(name) = wildcard.name_of(column) {
                            *found = true;
                            out.push_attribute(column, &name, &text_of(column, &[value])?, kind_of(value));
                        }
                    }
                }
                // `attributes.*`: the members of an object.
                Some((parent, prefix)) => {
                    values.clear();
                    select(row, parent, &mut values);
                    let wildcard = super::Wildcard { prefix, ..*wildcard };
                    for object in values.iter().filter_map(|value| value.as_object()) {
                        // An object without members has lost its values.
                        *found |= prefix.is_empty();
                        for (member, value) in object {
                            if let Some(name) = wildcard.name_of(member) {
                                *found = true;
                                let column = format!("{parent}.{member}");
                                out.push_attribute(&column, &name, &text_of(&column, &[value])?, kind_of(value));
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Adds the values at a path of an object.
fn select<'v>(object: &'v Map<String, Value>, path: &str, out: &mut Vec<&'v Value>) {
    // A name may contain a point.
    if let Some(value) = object.get(path) {
        out.push(value);
        return;
    }
    for (at, _) in path.match_indices(['.', '[']) {
        if let Some(value) = object.get(&path[..at]) {
            return select_in(value, &path[at..], out);
        }
    }
}

fn kind_of(value: &Value) -> ValueKind {
    if value.is_number() { ValueKind::Number } else { ValueKind::Text }
}

/// Adds the values at the rest of a path, which is empty or begins with `.` or `[`. A value that is no list is one of
/// itself, because an XML element that occurs once is no list.
fn select_in<'v>(value: &'v Value, rest: &str, out: &mut Vec<&'v Value>) {
    match (value, rest.strip_prefix('[')) {
        (_, None) if rest.is_empty() => out.push(value),
        (Value::Object(object), None) => {
            // Behind a `]` there may be anything.
            if let Some(rest) = rest.strip_prefix('.') {
                select(object, rest, out);
            }
        }
        (Value::Array(entries), None) => entries.iter().for_each(|entry| select_in(entry, rest, out)),
        (value, Some(selector)) => {
            let entries = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let Some((selector, rest)) = selector.split_once(']') else { return };
            match (selector.split_once('='), selector.parse::<usize>()) {
                (Some((key, wanted)), _) => {
                    let is_wanted = |entry: &&Value| entry.get(key).and_then(Value::as_str) == Some(wanted);
                    if let Some(entry) = entries.iter().find(is_wanted) {
                        select_in(entry, rest, out);
                    }
                }
                (None, Ok(index)) => {
                    if let Some(entry) = entries.get(index) {
                        select_in(entry, rest, out);
                    }
                }
                (None, Err(_)) => entries.iter().for_each(|entry| select_in(entry, rest, out)),
            }
        }
        _ => {}
    }
}

/// Returns the text of values: several of them, and those of lists, with [`LIST_SEPARATOR`] and without empty ones.
fn text_of(name: &str, values: &[&Value]) -> Result<String, String> {
    let mut texts = Vec::with_capacity(values.len());
    for value in values {
        match value {
            Value::Array(entries) => {
                for entry in entries {
                    texts.push(scalar(name, entry)?);
                }
            }
            value => texts.push(scalar(name, value)?),
        }
    }
    texts.retain(|text| !text.is_empty());
    Ok(match texts.len() {
        1 => texts.remove(0),
        _ => texts.join(&LIST_SEPARATOR.to_string()),
    })
}

fn scalar(name: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Null => Ok(String::new()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        Value::Object(members) => match (members.get(TEXT), members.keys().next()) {
            (Some(Value::String(text)), _) => Ok(text.clone()),
            (_, Some(member)) => Err(not_a_text(name, &format!("; name a value within it, such as `{name}.{member}`"))),
            (_, None) => Ok(String::new()),
        },
        Value::Array(_) => Err(not_a_text(name, "")),
    }
}

fn not_a_text(name: &str, advice: &str) -> String {
    format!("`{name}` is not a text, a number, a flag or a list of these{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn selected(path: &str) -> String {
        let row = serde_json::json!({
            "a": {"b": {"c": 1}, "b.d": "dotted"},
            "params": [
                {"key": "session", "value": {"int_value": "7"}},
                {"key": "term", "value": {"string_value": "mug"}}
            ],
            "tags": ["x", "y"],
            "images": [{"src": "1.png"}, {"src": "2.png"}]
        });
        let mut out = Vec::new();
        select(row.as_object().unwrap(), path, &mut out);
        text_of(path, &out).unwrap_or_else(|problem| problem)
    }

    #[test]
    fn paths_name_values_within_a_row() {
        for (path, value) in [
            ("a.b.c", "1"),
            ("a.b.d", "dotted"),
            ("params[key=term].value.string_value", "mug"),
            ("params[key=session].value.int_value", "7"),
            ("params[key=other].value", ""),
            ("tags", "x\u{1f}y"),
            ("tags[1]", "y"),
            ("images[].src", "1.png\u{1f}2.png"),
            ("images.src", "1.png\u{1f}2.png"),
            ("images[0].src", "1.png"),
            ("images[9].src", ""),
            ("tags[", ""),
            ("none.of.these", ""),
        ] {
            assert_eq!(selected(path), value, "{path}");
        }
        assert!(selected("a.b").contains("`a.b` is not a text"));
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "[a-c.\\[\\]=0-9é]{0,12}") {
            selected(&path);
        }
    }
}
