//! Files that consist of arrays: the lexical index and the completions of a bundle.
//!
//! A file is a magic, then arrays, each with its number of values as u64; all numbers are little endian. A list of texts
//! is an array of their lengths in bytes, then one of their bytes.
use lodestone_core::format::OtherVersion;

/// The reason why a file of arrays cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArraysError {
    #[error("does not begin with {}", String::from_utf8_lossy(*.0))]
    Magic(&'static [u8; 8]),
    #[error("{0}")]
    Version(OtherVersion),
    #[error("is truncated at byte {0}")]
    Truncated(usize),
    #[error("has {0} bytes more than its arrays")]
    Rest(usize),
    #[error("{0}")]
    Content(String),
}

/// Writes a file.
pub(crate) struct ArrayWriter {
    bytes: Vec<u8>,
}

impl ArrayWriter {
    pub(crate) fn new(magic: &[u8; 8]) -> Self {
        Self { bytes: magic.to_vec() }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn numbers(&mut self, numbers: impl ExactSizeIterator<Item = u32>) {
        self.bytes.extend_from_slice(&(numbers.len() as u64).to_le_bytes());
        numbers.for_each(|number| self.bytes.extend_from_slice(&number.to_le_bytes()));
    }

    pub(crate) fn hashes(&mut self, hashes: &[u64]) {
        self.bytes.extend_from_slice(&(hashes.len() as u64).to_le_bytes());
        hashes.iter().for_each(|hash| self.bytes.extend_from_slice(&hash.to_le_bytes()));
    }

    pub(crate) fn texts<'t>(&mut self, texts: impl ExactSizeIterator<Item = &'t str> + Clone) {
        self.numbers(texts.clone().map(|text| text.len() as u32));
        let length: usize = texts.clone().map(str::len).sum();
        self.bytes.extend_from_slice(&(length as u64).to_le_bytes());
        texts.for_each(|text| self.bytes.extend_from_slice(text.as_bytes()));
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads a file. Checks the bounds of each array.
pub(crate) struct ArrayReader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> ArrayReader<'b> {
    pub(crate) fn new(bytes: &'b [u8], magic: &'static [u8; 8]) -> Result<Self, ArraysError> {
        match OtherVersion::of(magic, bytes) {
            Some(version) => Err(ArraysError::Version(version)),
            None if !bytes.starts_with(magic) => Err(ArraysError::Magic(magic)),
            None => Ok(Self { bytes, at: magic.len() }),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], ArraysError> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(ArraysError::Truncated(self.bytes.len()))?;
        self.at += length;
        Ok(taken)
    }

    /// Returns the bytes of the next array, whose values have this size.
    fn array(&mut self, size: usize) -> Result<&'b [u8], ArraysError> {
        let count = u64::from_le_bytes(self.take(8)?.try_into().expect("eight bytes"));
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(size));
        self.take(length.ok_or(ArraysError::Truncated(self.bytes.len()))?)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'b [u8], ArraysError> {
        self.array(1)
    }

    pub(crate) fn numbers(&mut self) -> Result<Vec<u32>, ArraysError> {
        let (numbers, _) = self.array(4)?.as_chunks::<4>();
        Ok(numbers.iter().map(|number| u32::from_le_bytes(*number)).collect())
    }

    pub(crate) fn hashes(&mut self) -> Result<Vec<u64>, ArraysError> {
        let (hashes, _) = self.array(8)?.as_chunks::<8>();
        Ok(hashes.iter().map(|hash| u64::from_le_bytes(*hash)).collect())
    }

    pub(crate) fn texts(&mut self) -> Result<Vec<&'b str>, ArraysError> {
        let lengths = self.numbers()?;
        let content = |problem: &str| ArraysError::Content(problem.to_owned());
        let mut rest = std::str::from_utf8(self.bytes()?).map_err(|_| content("a text is not UTF-8"))?;
        let mut texts = Vec::with_capacity(lengths.len());
        for length in lengths {
            let split = rest.split_at_checked(length as usize);
            let (text, after) = split.ok_or_else(|| content("the lengths of the texts do not match their bytes"))?;
            texts.push(text);
            rest = after;
        }
        match rest.len() {
            0 => Ok(texts),
            _ => Err(content("the lengths of the texts do not match their bytes")),
        }
    }

    /// Checks that nothing follows.
    pub(crate) fn finish(self) -> Result<(), ArraysError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            rest => Err(ArraysError::Rest(rest)),
        }
    }
}

/// Returns an error with this text unless a condition is met.
pub(crate) fn check(is_met: bool, problem: &str) -> Result<(), ArraysError> {
    if is_met { Ok(()) } else { Err(ArraysError::Content(problem.to_owned())) }
}
