//! The format of a segment, one file of the log: a header followed by frames. CRC-32C checksums cover every byte of
//! both.
//!
//! ```text
//! header  28 bytes  "LDSTLOG1", first position u64, end position u64 (0: after the last frame), CRC-32C of these
//! frame   20 bytes  length of the payload u32 (highest bit: first frame of a write), CRC-32C of the other fields and the
//!                   payload u32, position u64, ingestion time in seconds since 1970 u32
//!                   then the payload
//! ```
//!
//! All numbers are little-endian. Positions are consecutive, except in segments with an end position: `compact` and
//! `repair` write those, and positions may be absent.
use std::{fs, io, path::Path};

pub(super) const HEADER_BYTES: usize = 28;
pub(super) const FRAME_BYTES: usize = 20;
/// The size limit of a payload, far above the largest message that the server accepts.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16 << 20;
const MAGIC: &[u8; 8] = b"LDSTLOG1";
const FIRST_OF_WRITE: u32 = 1 << 31;
/// The size of a disk sector. A part of a file that a crash left unwritten reads as at least one sector of zeros.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The first position of the segment, even if its frame no longer exists.
    pub first: u64,
    /// The first position of the next segment; `None` if it is the position after the last frame.
    pub end: Option<u64>,
}

impl Header {
    pub(super) fn bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.end.unwrap_or(0).to_le_bytes());
        let sum = crc32c::crc32c(&bytes[..24]);
        bytes[24..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let header = bytes.get(..HEADER_BYTES).ok_or("the header is truncated")?;
        if &header[..8] != MAGIC {
            return Err("the file is not a segment of an event log");
        }
        if u32_at(header, 24) != crc32c::crc32c(&header[..24]) {
            return Err("the checksum of the header does not match");
        }
        let (first, end) = (u64_at(header, 8), u64_at(header, 16));
        if first == 0 || (end != 0 && end < first) {
            return Err("the positions in the header are out of range");
        }
        Ok(Self { first, end: (end != 0).then_some(end) })
    }
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

/// A corrupt byte range between valid frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    pub offset: usize,
    /// The offset of the next valid frame, or the length of the file.
    pub end: usize,
    /// The position that the next frame should have had.
    pub position: u64,
    pub reason: &'static str,
    /// Valid frames follow.
    pub is_followed: bool,
    /// One of the following frames is the first of a write.
    pub is_followed_by_a_write: bool,
    /// The range contains a sector of zeros, as parts that never reached the disk do.
    pub has_unwritten_sector: bool,
}

impl Damage {
    /// Returns true if a crash during the last write explains the damage. No acknowledged write is affected then.
    pub(super) fn is_torn_tail(&self) -> bool {
        !self.is_followed || (!self.is_followed_by_a_write && self.has_unwritten_sector)
    }
}

/// Appends a frame to `buffer`.
pub(super) fn put_frame(buffer: &mut Vec<u8>, position: u64, at_s: u32, is_first_of_write: bool, payload: &[u8]) {
    let mark = if is_first_of_write { FIRST_OF_WRITE } else { 0 };
    let length = (payload.len() as u32 | mark).to_le_bytes();
    let (position, at_s) = (position.to_le_bytes(), at_s.to_le_bytes());
    let parts = [&length[..], &position, &at_s, payload];
    let sum = parts.into_iter().fold(0, crc32c::crc32c_append);
    for part in [&length[..], &sum.to_le_bytes(), &position, &at_s, payload] {
        buffer.extend_from_slice(part);
    }
}

/// The content of a segment.
pub(super) struct Segment {
    pub header: Header,
    bytes: Vec<u8>,
}

impl Segment {
    /// Reads a file. Returns `Err(Ok(reason))` if the header is damaged.
    pub(super) fn read(path: &Path) -> Result<Self, Result<&'static str, io::Error>> {
        let bytes = fs::read(path).map_err(Err)?;
        let header = Header::read(&bytes).map_err(Ok)?;
        Ok(Self { header, bytes })
    }

    /// Reads a file with a damaged header, and assumes that its first position is `first`.
    pub(super) fn salvage(path: &Path, first: u64) -> io::Result<Self> {
        Ok(Self { header: Header { first, end: None }, bytes: fs::read(path)? })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn frames(&self) -> Frames<'_> {
        Frames { bytes: &self.bytes, offset: HEADER_BYTES, expected: self.header.first, header: self.header }
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
}

impl<'a> Frames<'a> {
    /// Returns the position after that of the last frame returned.
    pub(super) fn next_position(&self) -> u64 {
        self.expected
    }

    fn frame_at(&self, offset: usize) -> Result<Frame<'a>, &'static str> {
        let head = self.bytes.get(offset..offset + FRAME_BYTES).ok_or("a record is truncated")?;
        let length = u32_at(head, 0);
        let (is_first_of_write, length) = (length & FIRST_OF_WRITE != 0, (length & !FIRST_OF_WRITE) as usize);
        if length == 0 || length > PAYLOAD_BYTES_MAX {
            return Err("the length of a record is out of range");
        }
        let position = u64_at(head, 8);
        // Checked before the checksum, because the search for the next frame calls this function at every byte.
        let is_in_range = position >= self.expected && position - self.expected <= self.bytes.len() as u64
            || self.header.end.is_some_and(|end| (self.expected..end).contains(&position));
        if !is_in_range {
            return Err("the position of a record is out of range");
        }
        let end = offset + FRAME_BYTES + length;
        let payload = self.bytes.get(offset + FRAME_BYTES..end).ok_or("a record is truncated")?;
        let sum = [&head[..4], &head[8..], payload].into_iter().fold(0, crc32c::crc32c_append);
        if sum != u32_at(head, 4) {
            return Err("the checksum of a record does not match");
        }
        Ok(Frame { position, at_s: u32_at(head, 16), is_first_of_write, payload, offset, end })
    }

    /// Returns the corrupt range at `offset`, which ends at the next valid frame, and moves to that frame.
    fn damage(&mut self, offset: usize, reason: &'static str) -> Damage {
        let next = (offset + 1..self.bytes.len()).find_map(|offset| self.frame_at(offset).ok());
        let end = next.map_or(self.bytes.len(), |frame| frame.offset);
        let damaged = &self.bytes[offset..end];
        let mut damage = Damage {
            offset,
            end,
            position: self.expected,
            reason,
            is_followed: next.is_some(),
            is_followed_by_a_write: false,
            has_unwritten_sector: damaged.split(|byte| *byte != 0).any(|zeros| zeros.len() >= SECTOR_BYTES),
        };
        self.offset = end;
        if let Some(frame) = next {
            self.expected = frame.position;
            damage.is_followed_by_a_write = self.clone().flatten().any(|frame| frame.is_first_of_write);
        }
        damage
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.bytes.len() {
            return None;
        }
        match self.frame_at(self.offset) {
            Ok(frame) if frame.position == self.expected || self.header.end.is_some() => {
                (self.offset, self.expected) = (frame.end, frame.position + 1);
                Some(Ok(frame))
            }
            Ok(frame) => {
                // Complete frames are missing between two others, so there are no bytes to skip.
                let damage = Damage {
                    offset: self.offset,
                    end: self.offset,
                    position: self.expected,
                    reason: "records are missing",
                    is_followed: true,
                    is_followed_by_a_write: true,
                    has_unwritten_sector: false,
                };
                self.expected = frame.position;
                Some(Err(damage))
            }
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

    fn segment(payloads: &[Vec<u8>]) -> Segment {
        let header = Header { first: 5, end: None };
        let mut bytes = header.bytes().to_vec();
        for (index, payload) in payloads.iter().enumerate() {
            put_frame(&mut bytes, 5 + index as u64, 1_750_000_000, index % 3 == 0, payload);
        }
        Segment { header, bytes }
    }

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..90), 1..30)
    }

    proptest! {
        #[test]
        fn written_frames_are_read_unchanged(payloads in payloads()) {
            let segment = segment(&payloads);
            let read: Vec<Vec<u8>> = segment.frames().map(|frame| frame.unwrap().payload.to_vec()).collect();
            prop_assert_eq!(read, payloads);
            prop_assert_eq!(Header::read(&segment.bytes), Ok(segment.header));
        }

        #[test]
        fn a_flipped_bit_is_detected_and_costs_one_frame(
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
            prop_assert_eq!(damage.is_torn_tail(), damage.end == segment.bytes.len());
        }

        #[test]
        fn a_truncated_file_keeps_the_frames_before_the_cut(payloads in payloads(), cut: prop::sample::Index) {
            let mut segment = segment(&payloads);
            let ends: Vec<usize> = segment.frames().map(|frame| frame.unwrap().end).collect();
            let cut = HEADER_BYTES + cut.index(segment.bytes.len() - HEADER_BYTES);
            segment.bytes.truncate(cut);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            prop_assert_eq!(segment.frames().flatten().count(), whole);
            prop_assert!(segment.frames().filter_map(Result::err).all(|damage| damage.is_torn_tail()));
        }

        #[test]
        fn reading_any_bytes_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::read(&bytes);
            let segment = Segment { header: Header { first: 1, end: None }, bytes };
            segment.frames().for_each(drop);
        }
    }
}
