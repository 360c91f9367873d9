//! ONNX files whose weights are in other files next to them, as PyTorch writes them by default. A bundle has one file
//! for each model, so reading moves the weights into the model.
use ahash::AHashMap;
use prost::{Message, decode_length_delimiter, encode_length_delimiter};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

/// The greatest size of a protobuf message, and so of a model in one file.
const BYTES_MAX: u64 = i32::MAX as u64;
/// The greatest depth of messages, which is that of subgraphs within nodes.
const DEPTH_MAX: usize = 100;

/// The reason why a model file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ModelFileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: the weights of tensor `{tensor}` are in the file `{location}`, {problem}; copy it next to the model, or \
         save the model as one file (in Python: onnx.save(onnx.load(\"model.onnx\"), \"one-file.onnx\"))"
    )]
    External { path: PathBuf, tensor: String, location: String, problem: String },
    #[error("{path}: the model has more than 2 GiB with the weights from other files, the limit of an ONNX file")]
    TooLarge { path: PathBuf },
}

/// Reads a model, with the weights that it keeps in other files of its directory. A file that is no ONNX model is
/// returned as it is; opening it then fails.
pub fn read_model(path: &Path) -> Result<Vec<u8>, ModelFileError> {
    let model = fs::read(path).map_err(|source| ModelFileError::Io { path: path.to_owned(), source })?;
    let mut directory = Directory { path, files: AHashMap::new(), bytes: model.len() as u64 };
    let inlined = rewrite(Part::Model, &model, 0, &mut |tensor| directory.read(tensor))?;
    Ok(inlined.unwrap_or(model))
}

/// Returns the files with the weights that the model does not contain, each once.
pub(super) fn external_files(model: &[u8]) -> Vec<String> {
    let mut locations = Vec::new();
    let mut collect = |tensor: &TensorProto| {
        let location = tensor.entry("location").to_owned();
        if !locations.contains(&location) {
            locations.push(location);
        }
        Ok::<_, std::convert::Infallible>(Vec::new())
    };
    match rewrite(Part::Model, model, 0, &mut collect) {
        Ok(_) => locations,
        Err(never) => match never {},
    }
}

/// The fields of ONNX's `TensorProto` that describe external data.
#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntryProto>,
    #[prost(int32, tag = "14")]
    data_location: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StringStringEntryProto {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

const RAW_DATA: u64 = 9;
const EXTERNAL_DATA: u64 = 13;
const DATA_LOCATION: u64 = 14;
/// The value of `data_location` for external data.
const EXTERNAL: i32 = 1;

impl TensorProto {
    fn entry(&self, key: &str) -> &str {
        self.external_data.iter().find(|entry| entry.key == key).map_or("", |entry| &entry.value)
    }

    /// Returns a number of the description; none if it is absent.
    fn number(&self, key: &str) -> Result<Option<u64>, String> {
        match self.entry(key) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| format!("whose {key} `{text}` is not a number")),
        }
    }
}

/// The directory of a model, with the open files of its weights.
struct Directory<'a> {
    path: &'a Path,
    files: AHashMap<String, File>,
    /// Size of the model with the weights read so far.
    bytes: u64,
}

impl Directory<'_> {
    fn read(&mut self, tensor: &TensorProto) -> Result<Vec<u8>, ModelFileError> {
        let location = tensor.entry("location").to_owned();
        let failed = |problem: String| ModelFileError::External {
            path: self.path.to_owned(),
            tensor: tensor.name.clone(),
            location: location.clone(),
            problem,
        };
        let is_inside =
            |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !is_inside(Path::new(&location)) {
            return Err(failed("which is not in the model's directory".to_owned()));
        }
        let unreadable = |error: io::Error| failed(format!("which cannot be read: {error}"));
        let (offset, length) =
            (tensor.number("offset").map_err(failed)?.unwrap_or(0), tensor.number("length").map_err(failed)?);
        if !self.files.contains_key(&location) {
            let file = File::open(self.path.with_file_name(&location)).map_err(unreadable)?;
            self.files.insert(location.clone(), file);
        }
        let Some(mut file) = self.files.get(&location) else { return Ok(Vec::new()) };
        let size = file.metadata().map_err(unreadable)?.len();
        let length = length.unwrap_or(size.saturating_sub(offset));
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(failed(format!("which has {size} bytes, but the tensor has {length} bytes at {offset}")));
        }
        self.bytes += length;
        if self.bytes > BYTES_MAX {
            return Err(ModelFileError::TooLarge { path: self.path.to_owned() });
        }
        let mut data = vec![0; length as usize];
        file.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        file.read_exact(&mut data).map_err(unreadable)?;
        Ok(data)
    }
}

/// The messages of ONNX that lead to tensors.
#[derive(Clone, Copy)]
enum Part {
    Model,
    Function,
    Graph,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
}

impl Part {
    /// Returns the message of a field; none if it leads to no tensor.
    fn child(self, field: u64) -> Option<Self> {
        match (self, field) {
            (Self::Model, 7) => Some(Self::Graph),
            (Self::Model, 25) => Some(Self::Function),
            (Self::Function, 7) | (Self::Graph, 1) => Some(Self::Node),
            (Self::Function, 11) | (Self::Node, 5) => Some(Self::Attribute),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::SparseTensor, 1 | 2) => Some(Self::Tensor),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Some(Self::SparseTensor),
            (Self::Attribute, 6 | 11) => Some(Self::Graph),
            _ => None,
        }
    }
}

/// Returns the message with the data of its external tensors, which `read` returns; none if it has no such tensor.
/// Other fields stay as they are, also those that this program does not know.
fn rewrite<E>(
    part: Part,
    message: &[u8],
    depth: usize,
    read: &mut dyn FnMut(&TensorProto) -> Result<Vec<u8>, E>,
) -> Result<Option<Vec<u8>>, E> {
    if let Part::Tensor = part {
        return inline(message, read);
    }
    let (mut rest, mut copied, mut out) = (message, 0, Vec::new());
    while let Some(field) = Field::next(&mut rest).filter(|_| depth < DEPTH_MAX) {
        let Some(child) = field.content.and_then(|content| Some((part.child(field.number)?, content))) else {
            continue;
        };
        if let Some(new) = rewrite(child.0, child.1, depth + 1, read)? {
            let end = message.len() - rest.len();
            out.extend_from_slice(&message[copied..end - field.bytes]);
            push_field(&mut out, field.number, &new);
            copied = end;
        }
    }
    if copied == 0 {
        return Ok(None);
    }
    out.extend_from_slice(&message[copied..]);
    Ok(Some(out))
}

/// Returns the tensor with its data; none if they are not external.
fn inline<E>(message: &[u8], read: &mut dyn FnMut(&TensorProto) -> Result<Vec<u8>, E>) -> Result<Option<Vec<u8>>, E> {
    let Some(tensor) = TensorProto::decode(message).ok().filter(|tensor| tensor.data_location == EXTERNAL) else {
        return Ok(None);
    };
    let data = read(&tensor)?;
    let mut out = Vec::with_capacity(message.len() + data.len());
    let mut rest = message;
    let mut start = rest;
    while let Some(field) = Field::next(&mut rest) {
        if !matches!(field.number, RAW_DATA | EXTERNAL_DATA | DATA_LOCATION) {
            out.extend_from_slice(&start[..field.bytes]);
        }
        start = rest;
    }
    push_field(&mut out, RAW_DATA, &data);
    Ok(Some(out))
}

fn push_field(out: &mut Vec<u8>, number: u64, content: &[u8]) {
    // Field numbers are below 2^29 and a Vec accepts every length, so neither call fails.
    let _ = encode_length_delimiter((number << 3 | 2) as usize, out);
    let _ = encode_length_delimiter(content.len(), out);
    out.extend_from_slice(content);
}

/// One field of a protobuf message.
struct Field<'a> {
    number: u64,
    /// Size with its key.
    bytes: usize,
    /// Of a field with a length; none for numbers.
    content: Option<&'a [u8]>,
}

impl<'a> Field<'a> {
    /// Takes the next field; none at the end, or if the bytes are not a message.
    fn next(rest: &mut &'a [u8]) -> Option<Self> {
        let before = rest.len();
        let mut after = *rest;
        let key = varint(&mut after)?;
        let content = match key & 7 {
            0 => {
                varint(&mut after)?;
                None
            }
            1 => {
                after = after.get(8..)?;
                None
            }
            2 => {
                let length = usize::try_from(varint(&mut after)?).ok()?;
                let (content, next) = after.split_at_checked(length)?;
                after = next;
                Some(content)
            }
            5 => {
                after = after.get(4..)?;
                None
            }
            _ => return None,
        };
        *rest = after;
        Some(Self { number: key >> 3, bytes: before - after.len(), content })
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    decode_length_delimiter(bytes).ok().map(|number| number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u64, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_field(&mut out, number, content);
        out
    }

    fn tensor(location: &str, range: &[(&str, &str)]) -> Vec<u8> {
        let entry = |(key, value): (&str, &str)| StringStringEntryProto { key: key.into(), value: value.into() };
        let entries = std::iter::once(("location", location)).chain(range.iter().copied()).map(entry).collect();
        let described = TensorProto { name: "w".into(), external_data: entries, data_location: EXTERNAL };
        // An unknown field, a number and a fixed-width number, which must stay.
        [field(99, b"x"), vec![0x10, 0x01], vec![0x25, 1, 2, 3, 4], described.encode_to_vec()].concat()
    }

    /// A model with the tensor as an initializer and within a subgraph.
    fn model(tensor: &[u8]) -> Vec<u8> {
        let graph = [field(2, b"name"), field(5, tensor), field(12, b"")].concat();
        let node = field(5, &field(6, &graph));
        [field(2, b"producer"), field(7, &[field(1, &node), graph].concat()), field(8, b"opset")].concat()
    }

    fn read(tensor: &[u8], data: Option<&[u8]>) -> Result<Vec<u8>, ModelFileError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.onnx");
        fs::write(&path, model(tensor)).unwrap();
        if let Some(data) = data {
            fs::write(directory.path().join("model.onnx.data"), data).unwrap();
        }
        read_model(&path)
    }

    #[test]
    fn weights_in_another_file_become_part_of_the_model() {
        let external = tensor("model.onnx.data", &[("offset", "2"), ("length", "3")]);
        assert_eq!(external_files(&model(&external)), ["model.onnx.data"]);
        let inlined =
            [field(99, b"x"), vec![0x10, 0x01], vec![0x25, 1, 2, 3, 4], field(8, b"w"), field(9, b"cde")].concat();
        let found = read(&external, Some(b"abcdefg")).unwrap();
        assert_eq!(found, model(&inlined));
        assert!(external_files(&found).is_empty());
        let to_the_end = read(&tensor("./model.onnx.data", &[]), Some(b"abc")).unwrap();
        assert!(to_the_end.windows(5).any(|bytes| bytes == field(9, b"abc")), "without a range it is the whole file");
        assert_eq!(read(&inlined, None).unwrap(), model(&inlined), "a model in one file stays as it is");
    }

    #[test]
    fn missing_short_and_outside_files_are_named() {
        for (location, range, data, problem) in [
            ("model.onnx.data", &[][..], None, "cannot be read"),
            ("model.onnx.data", &[("offset", "5"), ("length", "9")], Some(&b"abc"[..]), "3 bytes"),
            ("model.onnx.data", &[("offset", "-1")], Some(b"abc"), "-1"),
            ("model.onnx.data", &[("offset", "18446744073709551615"), ("length", "2")], Some(b"abc"), "3 bytes"),
            ("../secret", &[], None, "not in the model's directory"),
            ("/etc/passwd", &[], None, "not in the model's directory"),
        ] {
            let text = read(&tensor(location, range), data).unwrap_err().to_string();
            assert!(text.contains(problem) && text.contains(location) && text.contains("one file"), "{text}");
        }
    }

    #[test]
    fn bytes_that_are_no_model_stay_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.onnx");
        for bytes in [&b"no model"[..], b"", &[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f], &[0x3a; 300]] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(read_model(&path).unwrap(), bytes);
        }
        let deep = (0..2000).fold(Vec::new(), |inner, _| field(1, &field(5, &field(6, &inner))));
        let deep = field(7, &deep);
        fs::write(&path, &deep).unwrap();
        assert_eq!(read_model(&path).unwrap(), deep);
    }
}
