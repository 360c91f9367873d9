//! Segment files of the answer log: append-only sequences of blocks. A file starts with [`MAGIC`]. A block is a header
//! of 48 bytes and zstd-compressed records; a record is its length (4 bytes, little-endian) and a protobuf message.
//!
//! A torn block at the end of a file is an interrupted write. Readers skip and count damaged blocks, because no state
//! depends on the answer log.
use super::record::{AnswerId, AnswerRecord};
use prost::Message;
use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// The first bytes of every file: the format and its version.
const MAGIC: &[u8; 8] = b"LDANSW\0\x01";
/// Payload length, checksum, raw length, record count (4 bytes each), the smallest and the largest id of the block.
pub(super) const HEADER_BYTES: usize = 48;
/// Maximum length of a payload; a greater length in a header is damage.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;
/// The compression level. Levels below 0 are the fast ones. They suffice, because half of a record is the low bits of
/// features, which no level compresses, and because fast levels find the repetitions between answers too.
const LEVEL: i32 = -3;
const EXTENSION: &str = "answers";

/// The reason why the answer log cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AnswerLogError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: not an answer log file of this version")]
    Format { path: PathBuf },
    #[error("cannot start the thread that writes answers: {0}")]
    Thread(io::Error),
}

/// A block under construction.
#[derive(Default)]
pub(super) struct Block {
    raw: Vec<u8>,
    count: u32,
    first: AnswerId,
    last: AnswerId,
}

impl Block {
    pub(super) fn push(&mut self, id: AnswerId, record: &AnswerRecord) {
        let length = record.encoded_len();
        self.raw.extend_from_slice(&(length as u32).to_le_bytes());
        self.raw.reserve(length);
        record.encode_raw(&mut self.raw);
        self.first = if self.count == 0 { id } else { self.first.min(id) };
        self.last = self.last.max(id);
        self.count += 1;
    }

    pub(super) fn raw_len(&self) -> usize {
        self.raw.len()
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Finds a record that is not written yet.
    pub(super) fn find(&self, id: &AnswerId) -> Option<AnswerRecord> {
        records(&self.raw).find(|record| record.id == id)
    }

    /// Encodes the block and clears it.
    pub(super) fn seal(&mut self, compressor: &mut zstd::bulk::Compressor) -> io::Result<Vec<u8>> {
        let payload = compressor.compress(&self.raw)?;
        let mut header = [0u8; HEADER_BYTES];
        header[0..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[8..12].copy_from_slice(&(self.raw.len() as u32).to_le_bytes());
        header[12..16].copy_from_slice(&self.count.to_le_bytes());
        header[16..32].copy_from_slice(&self.first);
        header[32..48].copy_from_slice(&self.last);
        let checksum = checksum(&header, &payload);
        header[4..8].copy_from_slice(&checksum.to_le_bytes());
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(&payload);
        self.raw.clear();
        *self = Self { raw: std::mem::take(&mut self.raw), ..Self::default() };
        Ok(bytes)
    }
}

/// Creates a compressor for [`Block::seal`].
pub(super) fn compressor() -> io::Result<zstd::bulk::Compressor<'static>> {
    zstd::bulk::Compressor::new(LEVEL)
}

/// CRC32C of a block without the checksum itself.
fn checksum(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u32 {
    let first = crc32c::crc32c(&header[0..4]);
    crc32c::crc32c_append(crc32c::crc32c_append(first, &header[8..]), payload)
}

/// Iterates over the records in a block's raw bytes. Ends at an undecodable record.
fn records(mut raw: &[u8]) -> impl Iterator<Item = AnswerRecord> {
    std::iter::from_fn(move || {
        let (length, rest) = raw.split_at_checked(4)?;
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let (message, rest) = rest.split_at_checked(length)?;
        raw = rest;
        AnswerRecord::decode(message).ok()
    })
}

/// A segment file that is open for appending.
pub(super) struct Segment {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Segment {
    /// Creates the next file of a day, such as `2026-11-25`.
    pub(super) fn create(directory: &Path, day: &str) -> Result<Self, AnswerLogError> {
        let number = list(directory)?
            .iter()
            .filter_map(|path| path.file_stem()?.to_str()?.strip_prefix(day)?.strip_prefix('.')?.parse::<u32>().ok())
            .max()
            .map_or(0, |last| last + 1);
        let path = directory.join(format!("{day}.{number:05}.{EXTENSION}"));
        let failed = |source| AnswerLogError::Io { path: path.clone(), source };
        let mut file = File::options().write(true).create_new(true).open(&path).map_err(failed)?;
        file.write_all(MAGIC).map_err(failed)?;
        Ok(Self { file, path, bytes: MAGIC.len() as u64 })
    }

    pub(super) fn append(&mut self, block: &[u8]) -> Result<(), AnswerLogError> {
        let failed = |source| AnswerLogError::Io { path: self.path.clone(), source };
        self.file.write_all(block).map_err(failed)?;
        self.bytes += block.len() as u64;
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the day in the file name.
    pub(super) fn day(&self) -> &str {
        day_of(&self.path)
    }
}

/// Returns the day in a file name; empty for other files.
pub(super) fn day_of(path: &Path) -> &str {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.split_once('.').map_or("", |(day, _)| day)
}

/// Lists the files of a directory, oldest first. A missing directory has no files.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, AnswerLogError> {
    let failed = |source| AnswerLogError::Io { path: directory.to_owned(), source };
    let entries = match directory.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<PathBuf>, _>>();
    let mut paths = paths.map_err(failed)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    paths.sort_unstable();
    Ok(paths)
}

/// The unreadable parts of the answer log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Damage {
    /// Blocks with a wrong checksum.
    pub damaged_blocks: usize,
    /// Bytes of an incomplete block at the end of a file.
    pub torn_bytes: u64,
}

/// Reads the blocks of a file in order.
pub(super) struct SegmentReader {
    file: BufReader<File>,
    path: PathBuf,
    left: u64,
    pub damage: Damage,
}

/// A block's header. Its checksum is verified when the payload is read.
struct Header {
    bytes: [u8; HEADER_BYTES],
    payload_len: usize,
    raw_len: usize,
}

impl SegmentReader {
    pub(super) fn open(path: &Path) -> Result<Self, AnswerLogError> {
        let failed = |source| AnswerLogError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut reader =
            Self { file: BufReader::new(file), path: path.to_owned(), left: length, damage: Damage::default() };
        let mut magic = [0; MAGIC.len()];
        if length < MAGIC.len() as u64 {
            // The process died while it created the file.
            reader.damage.torn_bytes = length;
            reader.left = 0;
            return Ok(reader);
        }
        reader.file.read_exact(&mut magic).map_err(failed)?;
        reader.left -= MAGIC.len() as u64;
        match &magic == MAGIC {
            true => Ok(reader),
            false => Err(AnswerLogError::Format { path: path.to_owned() }),
        }
    }

    /// Reads the header of the next block; none at the end.
    fn header(&mut self) -> Result<Option<Header>, AnswerLogError> {
        let mut bytes = [0; HEADER_BYTES];
        if self.left < HEADER_BYTES as u64 {
            self.damage.torn_bytes += self.left;
            self.left = 0;
            return Ok(None);
        }
        self.file.read_exact(&mut bytes).map_err(|source| AnswerLogError::Io { path: self.path.clone(), source })?;
        self.left -= HEADER_BYTES as u64;
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let (payload_len, raw_len) = (number(0), number(8));
        if payload_len as u64 > self.left || payload_len.max(raw_len) > PAYLOAD_BYTES_MAX {
            self.damage.torn_bytes += self.left + HEADER_BYTES as u64;
            self.left = 0;
            return Ok(None);
        }
        Ok(Some(Header { bytes, payload_len, raw_len }))
    }

    /// Reads the records of the next block; none at the end of the file.
    pub(super) fn next_block(&mut self) -> Result<Option<Vec<AnswerRecord>>, AnswerLogError> {
        while let Some(header) = self.header()? {
            if let Some(raw) = self.raw(&header)? {
                return Ok(Some(records(&raw).collect()));
            }
        }
        Ok(None)
    }

    /// Reads and decompresses the payload of a block; none if the block is damaged.
    fn raw(&mut self, header: &Header) -> Result<Option<Vec<u8>>, AnswerLogError> {
        let mut payload = vec![0; header.payload_len];
        self.file.read_exact(&mut payload).map_err(|source| AnswerLogError::Io { path: self.path.clone(), source })?;
        self.left -= header.payload_len as u64;
        let stored = u32::from_le_bytes([header.bytes[4], header.bytes[5], header.bytes[6], header.bytes[7]]);
        let raw = (stored == checksum(&header.bytes, &payload))
            .then(|| zstd::bulk::decompress(&payload, header.raw_len).ok())
            .flatten();
        self.damage.damaged_blocks += usize::from(raw.is_none());
        Ok(raw)
    }

    /// Finds the record with an id. Skips blocks whose range of ids excludes it.
    pub(super) fn find(&mut self, id: &AnswerId) -> Result<Option<AnswerRecord>, AnswerLogError> {
        while let Some(header) = self.header()? {
            let bound = |at: usize| &header.bytes[at..at + 16];
            if bound(16) <= id.as_slice() && id.as_slice() <= bound(32) {
                let Some(raw) = self.raw(&header)? else { continue };
                if let Some(record) = records(&raw).find(|record| record.id == id) {
                    return Ok(Some(record));
                }
                continue;
            }
            self.file
                .seek(SeekFrom::Current(header.payload_len as i64))
                .map_err(|source| AnswerLogError::Io { path: self.path.clone(), source })?;
            self.left -= header.payload_len as u64;
        }
        Ok(None)
    }
}
