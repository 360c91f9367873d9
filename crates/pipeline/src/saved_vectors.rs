//! Vectors of written items in a file of the data directory, so that a restart need not encode their texts again.
//!
//! The file is a cache: it can always be computed from the log and the bundle. Therefore a damaged file and one of
//! another encoder are ignored, and written again.
use crate::bundle::{Bundle, Manifest, QUERY_ENCODER, TOKENIZER, read_regular_up_to};
use ahash::AHashMap;
use lodestone_events::storage;
use lodestone_index::check_vector;
use sha2::{Digest, Sha256};
use std::{fs, io, path::Path};

/// Identifies the format. A change of the format, or of how texts become the input of an encoder, changes it.
const MAGIC: [u8; 8] = *b"LDSTVEC1";
/// Maximum size of the file. Vectors beyond it are left out, and encoded again by a restart.
const BYTES_MAX: usize = 256 << 20;
const HEADER_BYTES: usize = MAGIC.len() + 32 + 4 + 4;
const CRC_BYTES: usize = 4;

/// The first half of the SHA-256 of a text.
type TextKey = [u8; 16];

/// Vectors of texts in the query space of one encoder.
#[derive(Debug, Default)]
pub struct SavedVectors {
    dimensions: usize,
    /// `[texts × dimensions]`.
    values: Vec<f32>,
    /// By text: its position in `values`, in vectors.
    positions: AHashMap<TextKey, usize>,
}

/// The reason why a file of vectors is not used.
#[derive(Debug, thiserror::Error)]
enum SavedVectorsError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the file has another format, or its header is damaged")]
    Format,
    #[error("the vectors are of another encoder than that of the bundle")]
    OtherEncoder,
    #[error("the file has {found} bytes, expected {expected}")]
    Length { found: usize, expected: usize },
    #[error("the checksum is wrong")]
    Checksum,
    #[error("vector {0} is not a finite vector of length 1")]
    Vector(usize),
}

impl SavedVectors {
    /// Reads the vectors of a bundle's encoder. Returns none, and logs the reason, if the file cannot be used.
    pub fn open(path: &Path, bundle: &Bundle) -> Self {
        match Self::read(path, &bundle.manifest, bundle.title_vectors.dimensions()) {
            Ok(saved) => saved,
            Err(SavedVectorsError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "cannot use the saved vectors; the texts of items are encoded again");
                Self::default()
            }
        }
    }

    fn read(path: &Path, manifest: &Manifest, dimensions: usize) -> Result<Self, SavedVectorsError> {
        let bytes = read_regular_up_to(path, BYTES_MAX as u64)?;
        let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Err(SavedVectorsError::Format) };
        let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (magic, encoder) = (&header[..MAGIC.len()], &header[MAGIC.len()..HEADER_BYTES - 8]);
        if magic != MAGIC {
            return Err(SavedVectorsError::Format);
        }
        if encoder != encoder_fingerprint(manifest) || number(HEADER_BYTES - 8) as usize != dimensions {
            return Err(SavedVectorsError::OtherEncoder);
        }
        let count = number(HEADER_BYTES - 4) as usize;
        let (found, expected) = (bytes.len(), HEADER_BYTES + count * bytes_per_vector(dimensions) + CRC_BYTES);
        if found != expected {
            return Err(SavedVectorsError::Length { found, expected });
        }
        let (content, crc) = bytes.split_at(expected - CRC_BYTES);
        if crc != crc32c::crc32c(content).to_le_bytes() {
            return Err(SavedVectorsError::Checksum);
        }
        let (keys, values) = rest[..rest.len() - CRC_BYTES].split_at(count * size_of::<TextKey>());
        let values: Vec<f32> = values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let is_valid = |vector: &[f32]| check_vector(vector, dimensions).is_ok();
        if let Some(at) = values.chunks_exact(dimensions).position(|vector| !is_valid(vector)) {
            return Err(SavedVectorsError::Vector(at));
        }
        let key = |key: &[u8]| TextKey::try_from(key).expect("chunks of its size");
        let positions =
            keys.chunks_exact(size_of::<TextKey>()).enumerate().map(|(at, bytes)| (key(bytes), at)).collect();
        Ok(Self { dimensions, values, positions })
    }

    /// Returns the number of items whose vectors were saved.
    pub fn item_count(&self) -> usize {
        self.values.len() / self.dimensions.max(1)
    }

    /// Returns the vectors of texts: saved ones, and for the other texts, in their order, those that `encode` returns.
    pub(crate) fn or_encode<E>(
        &self,
        texts: &[String],
        encode: impl FnOnce(&[&str]) -> Result<Vec<Option<Vec<f32>>>, E>,
    ) -> Result<Vec<Option<Vec<f32>>>, E> {
        let vector = |at: usize| self.values[at * self.dimensions..][..self.dimensions].to_vec();
        let saved = |text: &String| self.positions.get(&text_key(text)).map(|at| vector(*at));
        let saved: Vec<Option<Vec<f32>>> = match self.positions.is_empty() {
            true => vec![None; texts.len()],
            false => texts.iter().map(saved).collect(),
        };
        let missing = texts.iter().zip(&saved).filter(|(_, saved)| saved.is_none());
        let missing: Vec<&str> = missing.map(|(text, _)| text.as_str()).collect();
        let mut encoded = if missing.is_empty() { Vec::new() } else { encode(&missing)? }.into_iter();
        Ok(saved.into_iter().map(|saved| saved.or_else(|| encoded.next().flatten())).collect())
    }
}

/// Writes the vectors of texts, `[dimensions]` each, atomically. Removes the file if there are none. Returns the number
/// of vectors in the file.
pub(crate) fn write<'v>(
    path: &Path,
    manifest: &Manifest,
    dimensions: usize,
    vectors: impl Iterator<Item = (String, &'v [f32])>,
) -> io::Result<usize> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for (text, vector) in vectors.take((BYTES_MAX - HEADER_BYTES - CRC_BYTES) / bytes_per_vector(dimensions)) {
        keys.extend(text_key(&text));
        values.extend(vector.iter().flat_map(|value| value.to_le_bytes()));
    }
    let count = keys.len() / size_of::<TextKey>();
    if count == 0 {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(0),
        };
    }
    let numbers = [dimensions as u32, count as u32].map(u32::to_le_bytes);
    let mut bytes = [&MAGIC[..], &encoder_fingerprint(manifest), numbers.as_flattened(), &keys, &values].concat();
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    storage::replace(path, &bytes)?;
    Ok(count)
}

fn bytes_per_vector(dimensions: usize) -> usize {
    size_of::<TextKey>() + dimensions * size_of::<f32>()
}

fn text_key(text: &str) -> TextKey {
    let sum: [u8; 32] = Sha256::digest(text).into();
    let mut key = TextKey::default();
    key.copy_from_slice(&sum[..size_of::<TextKey>()]);
    key
}

/// Returns a hash of everything that the vectors of texts depend on: the kind and the files of the query encoder.
fn encoder_fingerprint(manifest: &Manifest) -> [u8; 32] {
    let files = [QUERY_ENCODER, TOKENIZER].map(|name| manifest.files.get(name).map(|sum| &sum.sha256));
    let parts = serde_json::to_vec(&(manifest.format, &manifest.query_encoder, files));
    Sha256::digest(parts.expect("strings and numbers serialize to JSON")).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranking::QueryEncoderKind;
    use std::{convert::Infallible, os::unix::fs::PermissionsExt};

    const DIMENSIONS: usize = 2;

    fn manifest(model: &[u8]) -> Manifest {
        let kind = QueryEncoderKind::HashedTerms { bucket_count: 8 };
        let mut manifest = Manifest::new("a".to_owned(), 0, 0, 50, kind);
        manifest.add_file(QUERY_ENCODER, model);
        manifest
    }

    fn write_texts(path: &Path, texts: &[(&str, [f32; DIMENSIONS])]) -> usize {
        let vectors = texts.iter().map(|(text, vector)| ((*text).to_owned(), &vector[..]));
        write(path, &manifest(b"model"), DIMENSIONS, vectors).unwrap()
    }

    #[test]
    fn saved_texts_are_not_encoded_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vectors");
        assert_eq!(write_texts(&path, &[("mug", [1.0, 0.0]), ("lamp", [0.0, 1.0]), ("mug", [1.0, 0.0])]), 3);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let saved = SavedVectors::read(&path, &manifest(b"model"), DIMENSIONS).unwrap();
        assert_eq!(saved.item_count(), 3);
        let vectors = |texts: &[&str]| {
            let mut encoded = Vec::new();
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            let vectors = saved.or_encode(&texts, |missing| {
                encoded.extend(missing.iter().map(|text| (*text).to_owned()));
                Ok::<_, Infallible>(missing.iter().map(|text| (!text.is_empty()).then(|| vec![0.6, 0.8])).collect())
            });
            (vectors.unwrap(), encoded)
        };
        assert_eq!(vectors(&["lamp", "mug"]), (vec![Some(vec![0.0, 1.0]), Some(vec![1.0, 0.0])], vec![]));
        let expected = vec![Some(vec![0.6, 0.8]), Some(vec![1.0, 0.0]), None];
        assert_eq!(vectors(&["cup", "mug", ""]), (expected, vec!["cup".to_owned(), String::new()]));
    }

    #[test]
    fn the_file_has_only_the_vectors_of_the_last_write() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vectors");
        write_texts(&path, &[("mug", [1.0, 0.0]), ("lamp", [0.0, 1.0])]);
        let before = fs::metadata(&path).unwrap().len();
        write_texts(&path, &[("mug", [1.0, 0.0])]);
        assert_eq!(before - fs::metadata(&path).unwrap().len(), bytes_per_vector(DIMENSIONS) as u64);
        assert_eq!(write_texts(&path, &[]), 0);
        assert!(!path.exists());
        assert_eq!(write_texts(&path, &[]), 0);
    }

    #[test]
    fn a_damaged_file_and_one_of_another_encoder_are_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vectors");
        write_texts(&path, &[("mug", [1.0, 0.0]), ("lamp", [0.0, 1.0])]);
        let read = |model: &[u8], dimensions| SavedVectors::read(&path, &manifest(model), dimensions);
        assert!(matches!(read(b"other model", DIMENSIONS), Err(SavedVectorsError::OtherEncoder)));
        assert!(matches!(read(b"model", DIMENSIONS + 1), Err(SavedVectorsError::OtherEncoder)));
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(&path, &damaged).unwrap();
            assert!(read(b"model", DIMENSIONS).is_err(), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(read(b"model", DIMENSIONS).is_err(), "{at} bytes");
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(read(b"model", DIMENSIONS).unwrap().item_count(), 2);
        // Too large, and no file.
        fs::File::options().write(true).open(&path).unwrap().set_len(BYTES_MAX as u64 + 1).unwrap();
        let error = read(b"model", DIMENSIONS).unwrap_err();
        assert!(matches!(&error, SavedVectorsError::Io(_)) && error.to_string().contains("268435456"), "{error}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = read(b"model", DIMENSIONS).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        fs::remove_dir(&path).unwrap();
        // A vector that the index would reject.
        write_texts(&path, &[("mug", [1.0, 0.0]), ("lamp", [f32::NAN, 1.0])]);
        assert!(matches!(read(b"model", DIMENSIONS), Err(SavedVectorsError::Vector(1))));
    }
}
