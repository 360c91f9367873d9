//! Segment files of the answer log: append-only sequences of blocks. A file starts with [`MAGIC`]. A block is a header
//! of 56 bytes and zstd-compressed records; a record is its length (4 bytes, little-endian) and a protobuf message.
//!
//! A torn block at the end of a file is an interrupted write. Readers skip and count damaged blocks, because no state
//! depends on the answer log. The header has a checksum of its own, so that a damaged length costs one block: the
//! reader searches for the next header.
use super::record::{AnswerId, AnswerRecord};
use lodestone_core::format::OtherVersion;
use lodestone_events::storage;
use prost::Message;
use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// The first bytes of every file: the format and its version.
const MAGIC: &[u8; 8] = b"LDANSW\0\x02";
/// The first bytes of every header.
const BLOCK_MAGIC: &[u8; 4] = b"BLK\xA7";
/// [`BLOCK_MAGIC`], payload length, checksum of the payload, raw length, record count (4 bytes each), the smallest and
/// the largest id of the block, checksum of the header (4 bytes).
pub(super) const HEADER_BYTES: usize = 56;
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
    #[error("{path}: not an answer log file")]
    Format { path: PathBuf },
    #[error("{path} {version}; read it with the version of lodestone that wrote it, or move it to another directory")]
    Version { path: PathBuf, version: OtherVersion },
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
        header[0..4].copy_from_slice(BLOCK_MAGIC);
        header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[8..12].copy_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
        header[12..16].copy_from_slice(&(self.raw.len() as u32).to_le_bytes());
        header[16..20].copy_from_slice(&self.count.to_le_bytes());
        header[20..36].copy_from_slice(&self.first);
        header[36..52].copy_from_slice(&self.last);
        let checksum = crc32c::crc32c(&header[..52]);
        header[52..].copy_from_slice(&checksum.to_le_bytes());
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
    /// Creates the next file of a day, such as `2026-11-25`, and the directory if it does not exist.
    pub(super) fn create(directory: &Path, day: &str) -> Result<Self, AnswerLogError> {
        let unusable = |source| AnswerLogError::Io { path: directory.to_owned(), source };
        storage::create_private_directory(directory).map_err(unusable)?;
        let number = list(directory)?
            .iter()
            .filter_map(|path| path.file_stem()?.to_str()?.strip_prefix(day)?.strip_prefix('.')?.parse::<u32>().ok())
            .max()
            .map_or(0, |last| last + 1);
        let path = directory.join(format!("{day}.{number:05}.{EXTENSION}"));
        let failed = |source| AnswerLogError::Io { path: path.clone(), source };
        // Its number is new, and one process writes a log.
        let mut file = storage::create_private(&path).map_err(failed)?;
        if let Err(source) = file.write_all(MAGIC) {
            // Otherwise a full disk would collect empty files.
            let _ = fs::remove_file(&path);
            return Err(failed(source));
        }
        Ok(Self { file, path, bytes: MAGIC.len() as u64 })
    }

    /// Appends a block, or nothing of it after an error: the next block overwrites the part that was written.
    pub(super) fn append(&mut self, block: &[u8]) -> Result<(), AnswerLogError> {
        let failed = |source| AnswerLogError::Io { path: self.path.clone(), source };
        if let Err(source) = self.file.write_all_at(block, self.bytes) {
            // Frees the space. If this fails, readers skip the part.
            let _ = self.file.set_len(self.bytes);
            return Err(failed(source));
        }
        self.bytes += block.len() as u64;
        Ok(())
    }

    /// Returns false if the file was removed, moved or replaced, so that blocks would be lost.
    pub(super) fn is_in_place(&self) -> bool {
        let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        match (fs::metadata(&self.path).map(id), self.file.metadata().map(id)) {
            (Ok(named), Ok(open)) => named == open,
            _ => false,
        }
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
pub fn list(directory: &Path) -> Result<Vec<PathBuf>, AnswerLogError> {
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
    /// The length of the file when it was opened, and the bytes of it that are not read.
    length: u64,
    left: u64,
    pub damage: Damage,
}

/// A block's header, whose checksum matches.
struct Header {
    payload_len: usize,
    payload_sum: u32,
    raw_len: usize,
    first: AnswerId,
    last: AnswerId,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (payload_len, raw_len) = (number(4) as usize, number(12) as usize);
        let is_valid = bytes.len() == HEADER_BYTES
            && &bytes[..4] == BLOCK_MAGIC
            && number(52) == crc32c::crc32c(&bytes[..52])
            && payload_len.max(raw_len) <= PAYLOAD_BYTES_MAX;
        is_valid.then(|| Self {
            payload_len,
            payload_sum: number(8),
            raw_len,
            first: bytes[20..36].try_into().expect("an id has 16 bytes"),
            last: bytes[36..52].try_into().expect("an id has 16 bytes"),
        })
    }
}

impl SegmentReader {
    pub(super) fn open(path: &Path) -> Result<Self, AnswerLogError> {
        let failed = |source| AnswerLogError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut reader =
            Self { file: BufReader::new(file), path: path.to_owned(), length, left: length, damage: Damage::default() };
        let mut magic = [0; MAGIC.len()];
        if length < MAGIC.len() as u64 {
            // The process died while it created the file.
            reader.damage.torn_bytes = length;
            reader.left = 0;
            return Ok(reader);
        }
        reader.file.read_exact(&mut magic).map_err(failed)?;
        reader.left -= MAGIC.len() as u64;
        match OtherVersion::of(MAGIC, &magic) {
            Some(version) => Err(AnswerLogError::Version { path: path.to_owned(), version }),
            None if &magic == MAGIC => Ok(reader),
            None => Err(AnswerLogError::Format { path: path.to_owned() }),
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
        let begin = self.length - self.left;
        self.read(&mut bytes)?;
        match Header::parse(&bytes) {
            Some(header) if header.payload_len as u64 <= self.left => Ok(Some(header)),
            // The block is cut off.
            Some(_) => {
                self.damage.torn_bytes += self.length - begin;
                self.left = 0;
                Ok(None)
            }
            None => self.header_after(begin),
        }
    }

    /// Searches for the next header after a damaged one at the byte `begin`.
    fn header_after(&mut self, begin: u64) -> Result<Option<Header>, AnswerLogError> {
        let mut rest = vec![0; (self.length - begin) as usize];
        self.seek(begin)?;
        self.read(&mut rest)?;
        let next = (1..rest.len().saturating_sub(HEADER_BYTES - 1))
            .find(|at| Header::parse(&rest[*at..*at + HEADER_BYTES]).is_some());
        match next {
            Some(offset) => {
                self.damage.damaged_blocks += 1;
                self.seek(begin + offset as u64)?;
                self.header()
            }
            None => {
                self.damage.torn_bytes += rest.len() as u64;
                self.left = 0;
                Ok(None)
            }
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), AnswerLogError> {
        self.file.read_exact(bytes).map_err(|source| AnswerLogError::Io { path: self.path.clone(), source })?;
        self.left -= bytes.len() as u64;
        Ok(())
    }

    fn seek(&mut self, offset: u64) -> Result<(), AnswerLogError> {
        self.file
            .seek(SeekFrom::Start(offset))
            .map_err(|source| AnswerLogError::Io { path: self.path.clone(), source })?;
        self.left = self.length - offset;
        Ok(())
    }

    /// Returns the positions of the blocks, ascending.
    pub(super) fn block_positions(&mut self) -> Result<Vec<u64>, AnswerLogError> {
        let mut blocks = Vec::new();
        while let Some(header) = self.header()? {
            let payload = self.length - self.left;
            blocks.push(payload - HEADER_BYTES as u64);
            self.seek(payload + header.payload_len as u64)?;
        }
        Ok(blocks)
    }

    /// Reads the records of the block at a position; none if it is damaged.
    pub(super) fn block_at(&mut self, position: u64) -> Result<Vec<AnswerRecord>, AnswerLogError> {
        self.seek(position)?;
        let Some(header) = self.header()? else { return Ok(Vec::new()) };
        Ok(self.raw(&header)?.map_or(Vec::new(), |raw| records(&raw).collect()))
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
        self.read(&mut payload)?;
        let raw = (header.payload_sum == crc32c::crc32c(&payload))
            .then(|| zstd::bulk::decompress(&payload, header.raw_len).ok())
            .flatten();
        self.damage.damaged_blocks += usize::from(raw.is_none());
        Ok(raw)
    }

    /// Finds the record with an id. Skips blocks whose range of ids excludes it.
    pub(super) fn find(&mut self, id: &AnswerId) -> Result<Option<AnswerRecord>, AnswerLogError> {
        while let Some(header) = self.header()? {
            if (header.first..=header.last).contains(id) {
                let Some(raw) = self.raw(&header)? else { continue };
                if let Some(record) = records(&raw).find(|record| record.id == id) {
                    return Ok(Some(record));
                }
                continue;
            }
            self.seek(self.length - self.left + header.payload_len as u64)?;
        }
        Ok(None)
    }
}
