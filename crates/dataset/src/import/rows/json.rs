//! Rows of a file with a JSON object in each line.
use super::{Buffers, RowProblem, Selection, tree::Paths};
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::{
    fmt,
    io::{BufRead, BufReader, Read},
};

pub(super) struct JsonLines {
    reader: BufReader<Box<dyn Read>>,
    paths: Paths,
    text: String,
}

impl JsonLines {
    pub(super) fn new(reader: Box<dyn Read>, selection: &Selection<'_>) -> Self {
        let paths = Paths::new(selection, &selection.format.rows);
        Self { reader: BufReader::with_capacity(1 << 16, reader), paths, text: String::new() }
    }

    /// Reads the next row: an entry of the current line, or the next line that is not blank.
    pub(super) fn next(
        &mut self,
        selection: &Selection<'_>,
        line: &mut u64,
        buffers: &mut Buffers,
    ) -> Result<bool, RowProblem> {
        if self.paths.next_pending(selection, buffers).map_err(RowProblem::Broken)? {
            return Ok(true);
        }
        loop {
            *line += 1;
            if self.read_line()? == 0 {
                return Ok(false);
            }
            if !self.text.trim().is_empty() {
                break;
            }
        }
        if self.text.trim_start().starts_with('[') {
            return Err(RowProblem::Broken(
                "it is an array; the file needs one object in each line, as `jq -c '.[]'` writes".to_owned(),
            ));
        }
        let mut deserializer = serde_json::Deserializer::from_str(&self.text);
        let object = Members { paths: &self.paths, selection }.deserialize(&mut deserializer);
        let object = object.and_then(|object| deserializer.end().map(|()| object));
        match object {
            Ok(object) => {
                self.paths.set_first(object, selection, buffers).map_err(RowProblem::Broken)?;
                Ok(true)
            }
            Err(error) => {
                let message = error.to_string();
                let is_last = error.is_eof() && self.read_line()? == 0;
                Err(if is_last { RowProblem::Truncated(message) } else { RowProblem::Broken(message) })
            }
        }
    }

    fn read_line(&mut self) -> Result<usize, RowProblem> {
        self.text.clear();
        self.reader.read_line(&mut self.text).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => RowProblem::Broken(format!(
                "{error}; set file.encoding in the mapping to the encoding of the file, such as `windows-1252`"
            )),
            _ => RowProblem::of_io(&error),
        })
    }

    pub(super) fn columns(&self) -> (&[bool], &[String]) {
        self.paths.columns()
    }
}

/// Takes the members of a JSON object that mapped columns need.
struct Members<'a> {
    paths: &'a Paths,
    selection: &'a Selection<'a>,
}

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = Map<String, Value>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if !self.paths.needs(self.selection, &name) {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if members.contains_key(&name) {
                return Err(A::Error::custom(format!("`{name}` occurs twice")));
            }
            members.insert(name, map.next_value()?);
        }
        Ok(members)
    }
}
