//! Arrays of their own or within the memory of a file.
use memmap2::Mmap;
use std::{marker::PhantomData, ops::Deref, sync::Arc};

/// An array that is owned or part of a file, which was read into one map of anonymous memory.
pub(super) enum Slice<T> {
    Owned(Vec<T>),
    /// `length` values at byte `offset`. They must be within the map and aligned for T; `Reader::array` checks both.
    Mapped {
        map: Arc<Mmap>,
        offset: usize,
        length: usize,
        of: PhantomData<T>,
    },
}

impl<T> From<Vec<T>> for Slice<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Owned(values)
    }
}

impl<T: bytemuck::Pod> Deref for Slice<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            Self::Mapped { map, offset, length, .. } => {
                // SAFETY: `Reader::array` checked that the bytes are within the map and aligned for T. T is `Pod`, so
                // every bit pattern is a value. The map outlives this borrow.
                unsafe { std::slice::from_raw_parts(map.as_ptr().add(*offset).cast(), *length) }
            }
        }
    }
}
