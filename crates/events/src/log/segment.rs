//! The format of a segment, one file of the log: a header followed by frames. CRC-32C checksums cover every byte of
//! both.
//!
//! ```text
//! header  32 bytes  "LDSTLOG2", first position u64, end position u64 (0: this is the last segment), 1 if positions may be
//!                   absent u32, CRC-32C of these u32
//! frame   21 bytes  0xB1 (first frame of a write) or 0xB2, length of the payload u32, position u64, ingestion time in
//!                   seconds since 1970 u32, CRC-32C of these u32
//!                   then the payload
//!          5 bytes  CRC-32C of all the above u32, 0xB4
//! ```
//!
//! All numbers are little-endian. The end position is written once the next segment exists, so a missing last segment
//! is noticed. Positions are consecutive, except in segments that `compact` or `repair` wrote.
//!
//! A frame begins and ends with a byte that is not 0. So a part of a write that a crash kept from the disk, which reads
//! as zeros or is not there at all, differs from a part that was damaged later.
use lodestone_core::format::OtherVersion;
use std::{
    fs,
    io::{self, Read},
    ops::Range,
    path::Path,
};

pub(super) const HEADER_BYTES: usize = 32;
const HEAD_BYTES: usize = 21;
const TAIL_BYTES: usize = 5;
/// The size of a frame without its payload.
pub(super) const FRAME_BYTES: usize = HEAD_BYTES + TAIL_BYTES;
/// The size limit of a payload, far above the largest message that the server accepts.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16 << 20;
const MAGIC: &[u8; 8] = b"LDSTLOG2";
const FIRST_OF_WRITE: u8 = 0xB1;
const CONTINUES_WRITE: u8 = 0xB2;
const END_OF_FRAME: u8 = 0xB4;
/// The size of a disk sector, which is written as a whole or not at all.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The first position of the segment, even if its frame no longer exists.
    pub first: u64,
    /// The first position of the next segment; `None` if there is no next segment, or if a crash prevented the write.
    pub end: Option<u64>,
    /// Positions may be absent, also at the end.
    pub is_sparse: bool,
}

impl Header {
    pub(super) fn bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.end.unwrap_or(0).to_le_bytes());
        bytes[24] = self.is_sparse.into();
        let sum = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = bytes.get(..HEADER_BYTES).ok_or(HeaderError::Damaged("the header is truncated"))?;
        if let Some(version) = other_version(header) {
            return Err(HeaderError::Version(version));
        }
        if &header[..8] != MAGIC {
            return Err(HeaderError::Damaged("the file is not a segment of an event log"));
        }
        if u32_at(header, 28) != crc32c::crc32c(&header[..28]) {
            return Err(HeaderError::Damaged("the checksum of the header does not match"));
        }
        let (first, end) = (u64_at(header, 8), u64_at(header, 16));
        if first == 0 || (end != 0 && end < first) {
            return Err(HeaderError::Damaged("the positions in the header are out of range"));
        }
        Ok(Self { first, end: (end != 0).then_some(end), is_sparse: header[24] != 0 })
    }

    /// Reads the header of a file.
    pub(super) fn read(path: &Path) -> Result<Self, HeaderError> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        let file = fs::File::open(path)?;
        file.take(HEADER_BYTES as u64).read_to_end(&mut bytes)?;
        Self::parse(&bytes)
    }
}

/// The reason why a header cannot be read.
#[derive(Debug)]
pub(super) enum HeaderError {
    /// The segment may be complete, but this program cannot read it.
    Version(OtherVersion),
    Damaged(&'static str),
    Io(io::Error),
}

impl From<io::Error> for HeaderError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Returns the version of a header that another version of this program wrote. A damaged byte of this version's header
/// is no other version: with the right byte, its checksum matches.
fn other_version(header: &[u8]) -> Option<OtherVersion> {
    let version = OtherVersion::of(MAGIC, header)?;
    let restored = crc32c::crc32c_append(crc32c::crc32c(MAGIC), &header[8..28]);
    (restored != u32_at(header, 28)).then_some(version)
}

/// A complete frame and its location in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub position: u64,
    /// The ingestion time in seconds since 1970.
    pub at_s: u32,
    pub is_first_of_write: bool,
    pub payload: &'a [u8],
    /// The byte offsets of the frame's first byte and after its last one.
    pub offset: usize,
    pub end: usize,
}

/// A corrupt byte range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    pub offset: usize,
    /// The offset of the next frame, or the length of the file.
    pub end: usize,
    /// The position that the next frame should have had.
    pub position: u64,
    /// The position after the last lost one, if the range or the next frame shows it.
    pub next_position: Option<u64>,
    pub reason: &'static str,
    /// The file ends before the frame does.
    is_truncated: bool,
    /// The range contains the part of a sector that reads as zeros, as parts that never reached the disk do.
    has_unwritten_sector: bool,
    /// One of the following frames is the first of a write.
    is_followed_by_a_write: bool,
}

impl Damage {
    /// Returns true if a crash during the last write explains the damage. No acknowledged write is affected then,
    /// because a write begins after the one before it is durable.
    pub(super) fn is_torn_write(&self) -> bool {
        !self.is_followed_by_a_write && (self.is_truncated || self.has_unwritten_sector)
    }

    /// Returns the greatest number of positions that the range can have held.
    pub(super) fn positions_max(&self) -> u64 {
        ((self.end - self.offset) / (FRAME_BYTES + 1)).max(1) as u64
    }
}

/// Appends a frame to `buffer`.
pub(super) fn put_frame(buffer: &mut Vec<u8>, position: u64, at_s: u32, is_first_of_write: bool, payload: &[u8]) {
    let mut head = [0; HEAD_BYTES];
    head[0] = if is_first_of_write { FIRST_OF_WRITE } else { CONTINUES_WRITE };
    head[1..5].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    head[5..13].copy_from_slice(&position.to_le_bytes());
    head[13..17].copy_from_slice(&at_s.to_le_bytes());
    let sum = crc32c::crc32c(&head[..17]);
    head[17..].copy_from_slice(&sum.to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&head), payload);
    for part in [&head[..], payload, &sum.to_le_bytes(), &[END_OF_FRAME]] {
        buffer.extend_from_slice(part);
    }
}

/// The content of a segment.
pub(super) struct Segment {
    pub header: Header,
    bytes: Vec<u8>,
}

impl Segment {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self, HeaderError> {
        let bytes = fs::read(path)?;
        let header = Header::parse(&bytes)?;
        Ok(Self { header, bytes })
    }

    /// Reads a file with a damaged header, and assumes that its first position is `first`.
    pub(super) fn salvage(path: &Path, first: u64) -> io::Result<Self> {
        Ok(Self { header: Header { first, end: None, is_sparse: false }, bytes: fs::read(path)? })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn frames(&self) -> Frames<'_> {
        Frames {
            bytes: &self.bytes,
            offset: HEADER_BYTES,
            expected: self.header.first,
            header: self.header,
            is_search: false,
        }
    }

    /// Returns the first `length` bytes of the file.
    pub(super) fn first_bytes(&self, length: usize) -> &[u8] {
        &self.bytes[..length]
    }

    /// Returns the number of bytes from `offset` to the end of the file.
    pub(super) fn bytes_from(&self, offset: usize) -> usize {
        self.bytes.len() - offset
    }
}

/// Iterates over the frames and corrupt ranges of a segment in order. After a corrupt range, it continues with the next
/// valid frame.
#[derive(Clone)]
pub(super) struct Frames<'a> {
    bytes: &'a [u8],
    offset: usize,
    expected: u64,
    header: Header,
    /// Only searches for the next write, and need not know whether one follows a corrupt range.
    is_search: bool,
}

/// The first part of a frame, whose checksum matches.
struct FrameHead {
    is_first_of_write: bool,
    payload_len: usize,
    position: u64,
    at_s: u32,
}

impl<'a> Frames<'a> {
    /// Returns the position after that of the last frame returned, or after those of the last corrupt range.
    pub(super) fn next_position(&self) -> u64 {
        self.expected
    }

    fn head_at(&self, offset: usize) -> Result<FrameHead, &'static str> {
        let head = self.bytes.get(offset..offset + HEAD_BYTES).ok_or("a record is truncated")?;
        let is_first_of_write = match head[0] {
            FIRST_OF_WRITE => true,
            CONTINUES_WRITE => false,
            _ => return Err("the beginning of a record is damaged"),
        };
        if u32_at(head, 17) != crc32c::crc32c(&head[..17]) {
            return Err("the checksum of a record's beginning does not match");
        }
        let payload_len = u32_at(head, 1) as usize;
        if payload_len == 0 || payload_len > PAYLOAD_BYTES_MAX {
            return Err("the length of a record is out of range");
        }
        let position = u64_at(head, 5);
        let is_in_range = position >= self.expected && position - self.expected <= self.bytes.len() as u64
            || self.header.is_sparse && self.header.end.is_some_and(|end| (self.expected..end).contains(&position));
        if !is_in_range {
            return Err("the position of a record is out of range");
        }
        Ok(FrameHead { is_first_of_write, payload_len, position, at_s: u32_at(head, 13) })
    }

    fn frame_at(&self, offset: usize) -> Result<Frame<'a>, &'static str> {
        let FrameHead { is_first_of_write, payload_len, position, at_s } = self.head_at(offset)?;
        let end = offset + FRAME_BYTES + payload_len;
        let frame = self.bytes.get(offset..end).ok_or("a record is truncated")?;
        let (content, tail) = frame.split_at(HEAD_BYTES + payload_len);
        if u32_at(tail, 0) != crc32c::crc32c(content) || tail[4] != END_OF_FRAME {
            return Err("the checksum of a record does not match");
        }
        Ok(Frame { position, at_s, is_first_of_write, payload: &content[HEAD_BYTES..], offset, end })
    }

    /// Returns the corrupt range at `offset` and moves to the frame after it.
    fn damage(&mut self, offset: usize, reason: &'static str) -> Damage {
        let position = self.expected;
        let (end, next_position) = match self.head_at(offset) {
            // The beginning of the frame shows its end.
            Ok(head) => (offset + FRAME_BYTES + head.payload_len, Some(head.position + 1)),
            Err(_) if self.bytes.len() - offset < HEAD_BYTES => (self.bytes.len() + 1, None),
            Err(_) => {
                let next = (offset + 1..self.bytes.len()).find_map(|offset| self.frame_at(offset).ok());
                next.map_or((self.bytes.len(), None), |frame| (frame.offset, Some(frame.position)))
            }
        };
        let is_truncated = end > self.bytes.len();
        self.offset = end.min(self.bytes.len());
        let range = offset..self.offset;
        let mut damage = Damage {
            offset,
            end: self.offset,
            position,
            next_position: next_position.filter(|_| !is_truncated).or(self.header.end),
            reason,
            is_truncated,
            has_unwritten_sector: self.has_unwritten_sector(range),
            is_followed_by_a_write: false,
        };
        self.expected = damage.next_position.unwrap_or(position + damage.positions_max());
        if !self.is_search {
            let mut rest = Frames { is_search: true, ..self.clone() }.flatten();
            damage.is_followed_by_a_write = rest.any(|frame| frame.is_first_of_write);
        }
        damage
    }

    /// Returns the damage of complete frames that are missing before position `next`, so that there are no bytes to
    /// skip.
    fn missing(&mut self, next: u64) -> Damage {
        let position = std::mem::replace(&mut self.expected, next);
        Damage {
            offset: self.offset,
            end: self.offset,
            position,
            next_position: Some(next),
            reason: "records are missing",
            is_truncated: false,
            has_unwritten_sector: false,
            is_followed_by_a_write: true,
        }
    }

    fn has_unwritten_sector(&self, range: Range<usize>) -> bool {
        let mut offset = range.start;
        while offset < range.end {
            let end = ((offset / SECTOR_BYTES + 1) * SECTOR_BYTES).min(range.end);
            if self.bytes[offset..end].iter().all(|byte| *byte == 0) {
                return true;
            }
            offset = end;
        }
        false
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.bytes.len() {
            let end = self.header.end.filter(|end| !self.header.is_sparse && self.expected < *end)?;
            return Some(Err(self.missing(end)));
        }
        match self.frame_at(self.offset) {
            Ok(frame) if frame.position == self.expected || self.header.is_sparse => {
                (self.offset, self.expected) = (frame.end, frame.position + 1);
                Some(Ok(frame))
            }
            Ok(frame) => Some(Err(self.missing(frame.position))),
            Err(reason) => Some(Err(self.damage(self.offset, reason))),
        }
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every third frame is the first of a write.
    fn segment(payloads: &[Vec<u8>]) -> Segment {
        let header = Header { first: 5, end: None, is_sparse: false };
        let mut bytes = header.bytes().to_vec();
        for (index, payload) in payloads.iter().enumerate() {
            put_frame(&mut bytes, 5 + index as u64, 1_750_000_000, index % 3 == 0, payload);
        }
        Segment { header, bytes }
    }

    /// Payloads that are zeros with a high probability, as no record of the log is.
    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![Just(0u8), any::<u8>()];
        proptest::collection::vec(proptest::collection::vec(byte, 1..90), 1..30)
    }

    proptest! {
        #[test]
        fn written_frames_are_read_unchanged(payloads in payloads()) {
            let segment = segment(&payloads);
            let read: Vec<Vec<u8>> = segment.frames().map(|frame| frame.unwrap().payload.to_vec()).collect();
            prop_assert_eq!(read, payloads);
            prop_assert_eq!(Header::parse(&segment.bytes).ok(), Some(segment.header));
        }

        /// Also in the last frame of the last write, which no other write follows.
        #[test]
        fn a_flipped_bit_costs_one_frame_and_is_not_a_torn_write(
            payloads in payloads(),
            index: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let mut segment = segment(&payloads);
            let body = segment.bytes.len() - HEADER_BYTES;
            segment.bytes[HEADER_BYTES + index.index(body)] ^= 1 << bit;
            let found: Vec<_> = segment.frames().collect();
            let whole = found.iter().flatten().count();
            prop_assert_eq!((whole, found.len()), (payloads.len() - 1, payloads.len()));
            let damage = found.into_iter().find_map(Result::err).unwrap();
            prop_assert!(!damage.is_torn_write());
            prop_assert_eq!(damage.next_position.unwrap_or(damage.position + 1), damage.position + 1);
        }

        #[test]
        fn a_truncated_file_keeps_the_frames_before_the_cut(payloads in payloads(), cut: prop::sample::Index) {
            let mut segment = segment(&payloads);
            let ends: Vec<usize> = segment.frames().map(|frame| frame.unwrap().end).collect();
            let cut = HEADER_BYTES + cut.index(segment.bytes.len() - HEADER_BYTES);
            segment.bytes.truncate(cut);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            prop_assert_eq!(segment.frames().flatten().count(), whole);
            prop_assert!(segment.frames().filter_map(Result::err).all(|damage| damage.is_torn_write()));
        }

        /// The sectors of the last write reach the disk in any order, and a crash drops some of them.
        #[test]
        fn a_write_without_some_of_its_sectors_is_torn(
            before in proptest::collection::vec(any::<u8>(), 1..900),
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..900), 1..6),
            written in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let header = Header { first: 1, end: None, is_sparse: false };
            let mut bytes = header.bytes().to_vec();
            put_frame(&mut bytes, 1, 0, true, &before);
            let durable = bytes.len();
            for (index, payload) in payloads.iter().enumerate() {
                put_frame(&mut bytes, 2 + index as u64, 0, index == 0, payload);
            }
            let whole = Segment { header, bytes: bytes.clone() };
            let mut first_unwritten = None;
            for at in durable..bytes.len() {
                if !written[at / SECTOR_BYTES % written.len()] {
                    first_unwritten.get_or_insert(at);
                    bytes[at] = 0;
                }
            }
            let kept = whole.frames().flatten().filter(|frame| frame.end <= first_unwritten.unwrap_or(bytes.len())).count();
            let segment = Segment { header, bytes };
            let found: Vec<_> = segment.frames().collect();
            prop_assert_eq!(found.iter().take_while(|frame| frame.is_ok()).count(), kept);
            let torn = found.into_iter().find_map(Result::err);
            prop_assert_eq!(torn.as_ref().is_some_and(Damage::is_torn_write), first_unwritten.is_some());
        }

        #[test]
        fn reading_any_bytes_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::parse(&bytes);
            let segment = Segment { header: Header { first: 1, end: None, is_sparse: false }, bytes };
            segment.frames().for_each(drop);
        }
    }

    /// The time to read a write is not exponential in the number of its missing sectors.
    #[test]
    fn a_large_write_without_many_of_its_sectors_is_torn() {
        let header = Header { first: 1, end: None, is_sparse: false };
        let mut bytes = header.bytes().to_vec();
        for position in 1..=20_000 {
            put_frame(&mut bytes, position, 0, position == 1, &[7; 100]);
        }
        for sector in bytes.chunks_mut(SECTOR_BYTES).skip(1).step_by(2) {
            sector.fill(0);
        }
        let segment = Segment { header, bytes };
        let found: Vec<_> = segment.frames().take(20).collect();
        assert!(found.iter().filter_map(|frame| frame.as_ref().err()).all(Damage::is_torn_write));
        assert!(found.iter().filter(|frame| frame.is_err()).count() > 3);
    }

    #[test]
    fn records_missing_at_the_end_are_detected_unless_positions_may_be_absent() {
        let whole = segment(&[vec![1], vec![2], vec![3]]);
        let header = Header { end: Some(8), ..whole.header };
        let last = whole.frames().last().unwrap().unwrap().offset;
        let bytes = whole.bytes[..last].to_vec();
        assert_eq!(Segment { header, bytes: whole.bytes }.frames().filter(Result::is_err).count(), 0);
        let damage = Segment { header, bytes: bytes.clone() }.frames().find_map(Result::err).unwrap();
        assert_eq!((damage.position, damage.next_position, damage.is_torn_write()), (7, Some(8), false));
        let header = Header { is_sparse: true, ..header };
        assert_eq!(Segment { header, bytes }.frames().filter(Result::is_err).count(), 0);
    }
}
