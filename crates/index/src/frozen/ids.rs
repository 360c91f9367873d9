//! Packed lists of points and rows: three bytes for each id if that suffices, otherwise four.
use super::storage::Slice;
use crate::kernels::Codes;

/// No id: pads lists of neighbours, and marks rows without a point.
pub(super) const NONE: u32 = u32::MAX;
/// [`NONE`] in three bytes.
const NONE_24: u32 = 0xFF_FFFF;

/// Returns the number of bytes of an id that is below `count` or [`NONE`].
pub(super) fn width(count: usize) -> usize {
    if count < NONE_24 as usize { 3 } else { 4 }
}

/// Ids in `width` bytes each, followed by one byte of padding, so that every id can be read as four bytes.
pub(super) struct Ids {
    bytes: Slice<u8>,
    width: usize,
}

impl Ids {
    /// Packs ids, each of which is below `count` or [`NONE`].
    pub(super) fn pack(ids: &[u32], count: usize) -> Self {
        let width = width(count);
        let mut bytes = Vec::new();
        bytes.reserve_exact(Self::byte_count(ids.len(), width));
        ids.iter().for_each(|id| bytes.extend_from_slice(&id.to_le_bytes()[..width]));
        bytes.push(0);
        Self { bytes: bytes.into(), width }
    }

    /// Wraps packed ids. The length of `bytes` is that of [`Ids::byte_count`].
    pub(super) fn from_bytes(bytes: Slice<u8>, width: usize) -> Self {
        Self { bytes, width }
    }

    pub(super) fn byte_count(ids: usize, width: usize) -> usize {
        ids * width + 1
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        (self.bytes.len() - 1) / self.width
    }

    #[inline(always)]
    pub(super) fn get(&self, at: usize) -> u32 {
        if self.width == 3 {
            let bytes = &self.bytes[3 * at..3 * at + 4];
            let id = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
            return if id == NONE_24 { NONE } else { id };
        }
        let bytes = &self.bytes[4 * at..4 * at + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len()).map(|at| self.get(at))
    }

    /// Writes the `count` ids from index `first` to `out`.
    ///
    /// # Safety
    /// The CPU supports the instructions of `C`; `first + count` is at most the length; `out` is at least `count` long.
    #[inline(always)]
    pub(super) unsafe fn unpack<C: Codes>(&self, first: usize, count: usize, out: &mut [u32]) {
        if self.width == 3 {
            let bytes = &self.bytes[3 * first..3 * (first + count)];
            // SAFETY: guaranteed by the caller.
            return unsafe { C::unpack_24(bytes, out) };
        }
        for (at, out) in out[..count].iter_mut().enumerate() {
            *out = self.get(first + at);
        }
    }

    /// Returns the address of the id at index `first`, for prefetching. It may be out of bounds.
    #[inline(always)]
    pub(super) fn address(&self, first: usize) -> *const u8 {
        self.bytes.as_ptr().wrapping_add(first * self.width)
    }
}
