//! Rows of an XML file: its elements `item` and `entry`, as in RSS and Atom feeds, or those that the mapping names.
//! Elements are read one after the other, and entities are not expanded, so that a small file stays small.
use super::{
    Buffers, RowProblem, Selection,
    tree::{Paths, TEXT},
};
use quick_xml::{
    Reader,
    events::{BytesRef, BytesStart, Event},
};
use serde_json::{Map, Value};
use std::io::{self, BufReader, Read};

const ROWS: &str = "item|entry";
/// Begins the name of an attribute in a path. No element can have such a name.
const ATTRIBUTE: char = '@';
/// Greatest depth of the elements of a row.
const DEPTH_MAX: usize = 32;
/// Bytes at the beginning of a file within which it declares its encoding.
const DECLARATION_BYTES: u64 = 256;

pub(super) struct Xml {
    reader: Reader<BufReader<Box<dyn Read>>>,
    rows: Vec<String>,
    paths: Paths,
    buffer: Vec<u8>,
    /// Line breaks so far.
    lines: u64,
    /// Open elements outside rows.
    depth: u64,
}

/// An open element of a row.
struct Element {
    name: String,
    members: Map<String, Value>,
    text: String,
}

impl Element {
    /// Adds the element to its parent. Several of one name are a list.
    fn add_to(mut self, members: &mut Map<String, Value>) {
        let has_elements = self.members.keys().any(|name| !name.starts_with(ATTRIBUTE));
        let value = match self.members.is_empty() {
            true => Value::String(self.text),
            false => {
                if !has_elements {
                    self.members.insert(TEXT.to_owned(), Value::String(self.text));
                }
                Value::Object(self.members)
            }
        };
        match members.get_mut(&self.name) {
            None => _ = members.insert(self.name, value),
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
}

impl Xml {
    pub(super) fn new(reader: Box<dyn Read>, selection: &Selection<'_>) -> Self {
        let rows = if selection.format.rows.is_empty() { ROWS } else { &selection.format.rows };
        let mut reader = Reader::from_reader(BufReader::with_capacity(1 << 16, reader));
        reader.config_mut().allow_dangling_amp = true;
        Self {
            reader,
            rows: rows.split('|').map(str::to_owned).collect(),
            paths: Paths::new(selection, ""),
            buffer: Vec::new(),
            lines: 0,
            depth: 0,
        }
    }

    pub(super) fn columns(&self) -> (&[bool], &[String]) {
        self.paths.columns()
    }

    pub(super) fn next(
        &mut self,
        selection: &Selection<'_>,
        line: &mut u64,
        buffers: &mut Buffers,
    ) -> Result<bool, RowProblem> {
        let row = self.next_row(line);
        if row.is_err() {
            *line = self.lines + 1;
        }
        let Some(members) = row? else { return Ok(false) };
        self.paths.set_first(members, selection, buffers).map_err(RowProblem::Broken)?;
        Ok(true)
    }

    /// Returns the members of the next row: its attributes and elements by their names without namespaces.
    fn next_row(&mut self, line: &mut u64) -> Result<Option<Map<String, Value>>, RowProblem> {
        // The first is the row.
        let mut open: Vec<Element> = Vec::new();
        loop {
            self.buffer.clear();
            let event = self.reader.read_event_into(&mut self.buffer).map_err(|error| problem_of(&error))?;
            self.lines += event.iter().filter(|byte| **byte == b'\n').count() as u64;
            match event {
                Event::Start(start) if !open.is_empty() || is_row(&self.rows, &start) => {
                    if open.is_empty() {
                        *line = self.lines + 1;
                    }
                    if open.len() == DEPTH_MAX {
                        let message = format!("its elements are nested deeper than {DEPTH_MAX}, the limit");
                        return Err(RowProblem::Broken(message));
                    }
                    open.push(element(&start)?);
                }
                Event::Start(_) => self.depth += 1,
                Event::Empty(empty) if !open.is_empty() || is_row(&self.rows, &empty) => {
                    let element = element(&empty)?;
                    match open.last_mut() {
                        Some(parent) => element.add_to(&mut parent.members),
                        None => {
                            *line = self.lines + 1;
                            return Ok(Some(element.members));
                        }
                    }
                }
                Event::End(_) => match open.pop() {
                    None => self.depth = self.depth.saturating_sub(1),
                    Some(element) => match open.last_mut() {
                        Some(parent) => element.add_to(&mut parent.members),
                        None => return Ok(Some(element.members)),
                    },
                },
                Event::Text(text) => push_text(&mut open, &text.decode().map_err(|_| not_utf8())?),
                Event::CData(text) => push_text(&mut open, &text.decode().map_err(|_| not_utf8())?),
                Event::GeneralRef(entity) => push_text(&mut open, &entity_text(&entity)?),
                Event::Eof if open.is_empty() && self.depth == 0 => return Ok(None),
                Event::Eof => return Err(RowProblem::Truncated("an element does not end".to_owned())),
                Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            }
        }
    }
}

fn broken(error: &impl std::fmt::Display) -> RowProblem {
    RowProblem::Broken(error.to_string())
}

fn not_utf8() -> RowProblem {
    RowProblem::Broken(
        "its bytes are not UTF-8; set file.encoding in the mapping to the encoding of the file, such as `windows-1252`"
            .to_owned(),
    )
}

fn utf8(bytes: &[u8]) -> Result<&str, RowProblem> {
    str::from_utf8(bytes).map_err(|_| not_utf8())
}

fn problem_of(error: &quick_xml::Error) -> RowProblem {
    match error {
        quick_xml::Error::Io(error) => RowProblem::of_io(error),
        // A tag, a comment or an entity that does not end.
        quick_xml::Error::Syntax(error) => RowProblem::Truncated(error.to_string()),
        error => broken(error),
    }
}

fn is_row(rows: &[String], start: &BytesStart<'_>) -> bool {
    rows.iter().any(|row| row.as_bytes() == start.local_name().as_ref())
}

fn element(start: &BytesStart<'_>) -> Result<Element, RowProblem> {
    let name = utf8(start.local_name().as_ref())?.to_owned();
    let mut members = Map::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| broken(&error))?;
        let key = format!("{ATTRIBUTE}{}", utf8(attribute.key.local_name().as_ref())?);
        members.insert(key, Value::String(unescaped(utf8(&attribute.value)?)?));
    }
    Ok(Element { name, members, text: String::new() })
}

fn push_text(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

/// Returns the text of an attribute, whose references are those of [`entity_text`]. An ampersand that begins none stays.
fn unescaped(value: &str) -> Result<String, RowProblem> {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '#'));
        match end.filter(|end| *end > 0 && rest[*end..].starts_with(';')) {
            Some(end) => {
                out.push_str(&entity_text(&BytesRef::new(&rest[..end]))?);
                rest = &rest[end + 1..];
            }
            None => out.push('&'),
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Returns the character of a reference. Entities of HTML and of a DTD stay as they are written.
fn entity_text(entity: &BytesRef<'_>) -> Result<String, RowProblem> {
    if let Some(c) = entity.resolve_char_ref().map_err(|error| broken(&error))? {
        return Ok(c.to_string());
    }
    let name = entity.decode().map_err(|_| not_utf8())?;
    Ok(match quick_xml::escape::resolve_xml_entity(&name) {
        Some(text) => text.to_owned(),
        None => format!("&{name};"),
    })
}

/// Returns the encoding that an XML declaration names, or an empty text, and a reader of the whole content.
pub(super) fn declared_encoding(mut reader: Box<dyn Read>) -> io::Result<(String, Box<dyn Read>)> {
    let mut start = Vec::new();
    reader.by_ref().take(DECLARATION_BYTES).read_to_end(&mut start)?;
    let text = String::from_utf8_lossy(&start);
    let declaration = text.split_once("?>").map_or("", |(declaration, _)| declaration);
    let label = declaration.split_once("encoding=").and_then(|(_, rest)| rest.split(['"', '\'']).nth(1));
    let label = label.unwrap_or_default().to_owned();
    Ok((label, Box::new(io::Cursor::new(start).chain(reader))))
}
