//! One file of the log: a header, then frames. Every byte of both is under a CRC-32C.
//!
//! ```text
//! header  28 bytes  "LDSTLOG1", first position u64, end position u64 (0: as the frames say), CRC-32C of these
//! frame   20 bytes  length of the payload u32 (its highest bit: the first frame of a write), CRC-32C of all else,
//!                   position u64, seconds since 1970 u32
//!                   then the payload
//! ```
//!
//! All numbers are little-endian. Positions rise by one, but for segments with an end position: `compact` and `repair`
//! wrote them, and positions may be absent there.
use std::{fs, io, path::Path};

pub(super) const HEADER_BYTES: usize = 28;
pub(super) const FRAME_BYTES: usize = 20;
/// Far above the largest message that the server takes.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16 << 20;
const MAGIC: &[u8; 8] = b"LDSTLOG1";
const FIRST_OF_WRITE: u32 = 1 << 31;
/// A part of a file that a crash left unwritten reads as zeros, at least a disk's sector of them.
const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The segment's first position, also where no frame has it any more.
    pub first: u64,
    /// The first position of the next segment. None: the last frame's and one.
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
        let header = bytes.get(..HEADER_BYTES).ok_or("the header is cut off")?;
        if &header[..8] != MAGIC {
            return Err("this is no segment of an event log");
        }
        if u32_at(header, 24) != crc32c::crc32c(&header[..24]) {
            return Err("the header's checksum is wrong");
        }
        let (first, end) = (u64_at(header, 8), u64_at(header, 16));
        if first == 0 || (end != 0 && end < first) {
            return Err("the header's positions are impossible");
        }
        Ok(Self { first, end: (end != 0).then_some(end) })
    }
}

/// A whole record where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub position: u64,
    /// When it was stored, in seconds since 1970.
    pub at_s: u32,
    pub is_first_of_write: bool,
    pub payload: &'a [u8],
    /// Bytes of the file before it and up to its end.
    pub offset: usize,
    pub end: usize,
}

/// Bytes between frames that are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    pub offset: usize,
    /// Where the next whole frame begins, or the file ends.
    pub end: usize,
    /// The position that should be here.
    pub position: u64,
    pub reason: &'static str,
    /// Whether frames follow, and whether one of them begins a write.
    pub is_followed: bool,
    pub is_followed_by_a_write: bool,
    /// Holds a sector of zeros, as parts that never reached the disk read.
    pub has_unwritten_sector: bool,
}

impl Damage {
    /// Whether a crash in the middle of the last write explains it: nothing that was acknowledged is affected then.
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

/// A segment's bytes.
pub(super) struct Segment {
    pub header: Header,
    bytes: Vec<u8>,
}

impl Segment {
    /// Reads a file. `Err(Ok(reason))`: its header is damaged.
    pub(super) fn read(path: &Path) -> Result<Self, Result<&'static str, io::Error>> {
        let bytes = fs::read(path).map_err(Err)?;
        let header = Header::read(&bytes).map_err(Ok)?;
        Ok(Self { header, bytes })
    }

    /// Reads a file with a damaged header, as if it were that of position `first`.
    pub(super) fn salvage(path: &Path, first: u64) -> io::Result<Self> {
        Ok(Self { header: Header { first, end: None }, bytes: fs::read(path)? })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn frames(&self) -> Frames<'_> {
        Frames { bytes: &self.bytes, offset: HEADER_BYTES, expected: self.header.first, header: self.header }
    }

    /// Bytes that a torn tail would lose.
    pub(super) fn bytes_from(&self, offset: usize) -> usize {
        self.bytes.len() - offset
    }
}

/// Frames and damages of a segment, in order. After a damage it goes on with the next whole frame.
#[derive(Clone)]
pub(super) struct Frames<'a> {
    bytes: &'a [u8],
    offset: usize,
    expected: u64,
    header: Header,
}

impl<'a> Frames<'a> {
    /// The position after the last frame that was given.
    pub(super) fn next_position(&self) -> u64 {
        self.expected
    }

    fn frame_at(&self, offset: usize) -> Result<Frame<'a>, &'static str> {
        let head = self.bytes.get(offset..offset + FRAME_BYTES).ok_or("a record is cut off")?;
        let length = u32_at(head, 0);
        let (is_first_of_write, length) = (length & FIRST_OF_WRITE != 0, (length & !FIRST_OF_WRITE) as usize);
        if length == 0 || length > PAYLOAD_BYTES_MAX {
            return Err("a record's length is impossible");
        }
        let position = u64_at(head, 8);
        // Before the sum, since this is also how the next frame is looked for, byte by byte.
        let is_possible = position >= self.expected && position - self.expected <= self.bytes.len() as u64
            || self.header.end.is_some_and(|end| (self.expected..end).contains(&position));
        if !is_possible {
            return Err("a record's position is impossible");
        }
        let end = offset + FRAME_BYTES + length;
        let payload = self.bytes.get(offset + FRAME_BYTES..end).ok_or("a record is cut off")?;
        let sum = [&head[..4], &head[8..], payload].into_iter().fold(0, crc32c::crc32c_append);
        if sum != u32_at(head, 4) {
            return Err("a record's checksum is wrong");
        }
        Ok(Frame { position, at_s: u32_at(head, 16), is_first_of_write, payload, offset, end })
    }

    /// Looks for the next whole frame behind a damage.
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
                // Whole frames that are missing from between two others: nothing to skip.
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
        fn frames_come_back(payloads in payloads()) {
            let segment = segment(&payloads);
            let read: Vec<Vec<u8>> = segment.frames().map(|frame| frame.unwrap().payload.to_vec()).collect();
            prop_assert_eq!(read, payloads);
            prop_assert_eq!(Header::read(&segment.bytes), Ok(segment.header));
        }

        /// What one flipped bit may cost is one frame, and it never goes unnoticed.
        #[test]
        fn a_flipped_bit_costs_its_frame_alone(payloads in payloads(), place: prop::sample::Index, bit in 0u8..8) {
            let mut segment = segment(&payloads);
            let body = segment.bytes.len() - HEADER_BYTES;
            segment.bytes[HEADER_BYTES + place.index(body)] ^= 1 << bit;
            let found: Vec<_> = segment.frames().collect();
            let whole = found.iter().flatten().count();
            prop_assert_eq!((whole, found.len()), (payloads.len() - 1, payloads.len()));
            let damage = found.into_iter().find_map(Result::err).unwrap();
            prop_assert_eq!(damage.is_torn_tail(), damage.end == segment.bytes.len());
        }

        #[test]
        fn a_cut_file_keeps_the_frames_before_the_cut(payloads in payloads(), cut: prop::sample::Index) {
            let mut segment = segment(&payloads);
            let ends: Vec<usize> = segment.frames().map(|frame| frame.unwrap().end).collect();
            let cut = HEADER_BYTES + cut.index(segment.bytes.len() - HEADER_BYTES);
            segment.bytes.truncate(cut);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            prop_assert_eq!(segment.frames().flatten().count(), whole);
            prop_assert!(segment.frames().filter_map(Result::err).all(|damage| damage.is_torn_tail()));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::read(&bytes);
            let segment = Segment { header: Header { first: 1, end: None }, bytes };
            segment.frames().for_each(drop);
        }
    }
}
