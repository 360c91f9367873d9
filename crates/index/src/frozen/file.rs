//! The index on disk, mapped into memory as it is.
use super::{
    FrozenGraph,
    build::{NONE, UpperLayer},
    codes::Quantizer,
    ids::{self, Ids},
    values::{Precision, Values},
};
use memmap2::Mmap;
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    marker::PhantomData,
    ops::Deref,
    path::{Path, PathBuf},
    sync::Arc,
};

const MAGIC: &[u8; 8] = b"LODEIDX2";
/// Every array begins at a multiple of this.
const ALIGNMENT: usize = 64;
const HEADER_NUMBERS: usize = 8;

/// Why an index cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: is no index of this version: {problem}")]
    Format { path: PathBuf, problem: String },
}

/// Numbers that are owned or lie in a mapped file.
pub(super) enum Slice<T> {
    Owned(Vec<T>),
    Mapped { map: Arc<Mmap>, offset: usize, length: usize, of: PhantomData<T> },
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
                // SAFETY: `Reader::array` checked that the bytes are within the map and aligned for T, of which every
                // pattern is a value; the map outlives this borrow.
                unsafe { std::slice::from_raw_parts(map.as_ptr().add(*offset).cast(), *length) }
            }
        }
    }
}

impl FrozenGraph {
    /// Writes the index, whose rows are all here: a header, then each array at a multiple of 64 bytes; little endian.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let io = |source| FileError::Io { path: path.to_owned(), source };
        let mut out = Writer { out: BufWriter::with_capacity(1 << 20, File::create(path).map_err(io)?), at: 0 };
        self.write_to(&mut out).map_err(io)?;
        out.out.into_inner().map_err(|error| io(error.into_error()))?.sync_all().map_err(io)
    }

    fn write_to(&self, out: &mut Writer) -> io::Result<()> {
        let header: [u64; HEADER_NUMBERS] = [
            self.quantizer.dimensions as u64,
            u64::from(self.quantizer.step.to_bits()),
            self.m as u64,
            self.point_count() as u64,
            self.row_count() as u64,
            self.first_row.len() as u64,
            self.upper.len() as u64,
            Precision::ALL.iter().position(|known| *known == self.values.precision).unwrap_or_default() as u64,
        ];
        out.bytes(MAGIC)?;
        header.iter().try_for_each(|number| out.bytes(&number.to_le_bytes()))?;
        for layer in &self.upper {
            out.bytes(&(layer.points.len() as u64).to_le_bytes())?;
        }
        out.array(&self.codes)?;
        out.array(&self.values.bytes)?;
        out.array(self.links.bytes())?;
        out.array(self.rows.bytes())?;
        out.array(bytemuck::cast_slice(&self.first_row))?;
        for layer in &self.upper {
            for numbers in [&layer.points, &layer.below, &layer.links] {
                out.array(bytemuck::cast_slice(numbers))?;
            }
        }
        Ok(())
    }

    /// Maps an index. Nothing is copied but the upper layers; every number that leads somewhere is checked, so that a
    /// damaged file is an error here and never a wrong read later. The file must not change while it is mapped.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let io = |source| FileError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the caller promises that the file does not change.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        Self::read(map).map_err(|problem| FileError::Format { path: path.to_owned(), problem })
    }

    fn read(map: Arc<Mmap>) -> Result<Self, String> {
        let mut reader = Reader { map: &map, at: 0 };
        if reader.bytes(8)? != MAGIC {
            return Err("it does not begin as one".to_owned());
        }
        let header: Vec<u64> = (0..HEADER_NUMBERS).map(|_| reader.number()).collect::<Result<_, _>>()?;
        let small = |at: usize, low: u64, high: u64, name: &str| match header[at] {
            number if (low..=high).contains(&number) => Ok(number as usize),
            number => Err(format!("{name} is {number}, not within {low} and {high}")),
        };
        let dimensions = small(0, 1, 4096, "dimensions")?;
        let step = f32::from_bits(small(1, 0, u64::from(u32::MAX), "step")? as u32);
        if !(step.is_finite() && step > 0.0) {
            return Err(format!("step is {step}"));
        }
        let m = small(2, 2, 64, "m")?;
        let points = small(3, 0, 1 << 31, "points")?;
        let rows = small(4, points as u64, 1 << 32, "rows")?;
        let first_row = small(5, 0, points as u64 + 1, "first rows")?;
        let layers = small(6, 0, 16, "layers")?;
        let precision = Precision::ALL[small(7, 0, Precision::ALL.len() as u64 - 1, "precision")?];
        let sizes: Vec<u64> = (0..layers).map(|_| reader.number()).collect::<Result<_, _>>()?;
        let quantizer = Quantizer { dimensions, step };
        let codes = reader.array(points * quantizer.length())?;
        let values = Values { precision, bytes: reader.array(points * precision.bytes_per_point(dimensions))? };
        let mut list = |length: usize, count: usize| {
            let width = ids::width(count);
            Ok::<Ids, String>(Ids::from_bytes(reader.array(Ids::byte_count(length, width))?, width))
        };
        let (links, row_list) = (list(points * 2 * m, points)?, list(rows, rows)?);
        let first_row: Slice<u32> = reader.array(first_row)?;
        let mut upper: Vec<UpperLayer> = Vec::with_capacity(layers);
        for size in sizes {
            let size = usize::try_from(size).ok().filter(|size| *size <= points).ok_or("a layer is too large")?;
            let mut numbers = |count| reader.array::<u32>(count).map(|numbers| numbers.to_vec());
            upper.push(UpperLayer { points: numbers(size)?, below: numbers(size)?, links: numbers(size * m)? });
        }
        if reader.at != map.len() {
            return Err(format!("it has {} bytes more than its header says", map.len() - reader.at));
        }
        check_ids(links.iter(), points, "link")?;
        if row_list.iter().any(|row| row as usize >= rows) {
            return Err("a row is out of range".to_owned());
        }
        if !values.are_finite() {
            return Err("a vector has a number that is not finite".to_owned());
        }
        let counts_rows = match first_row.len() {
            0 => points == rows,
            length => {
                length == points + 1
                    && first_row[0] == 0
                    && first_row[points] as usize == rows
                    && first_row.windows(2).all(|pair| pair[0] < pair[1])
            }
        };
        if !counts_rows {
            return Err("rows and points do not fit".to_owned());
        }
        let mut below = points;
        for layer in &upper {
            let wrong = layer.points.is_empty() || layer.points.iter().any(|point| *point as usize >= points);
            if wrong || layer.below.iter().any(|place| *place as usize >= below) {
                return Err("an upper layer leads nowhere".to_owned());
            }
            check_ids(layer.links.iter().copied(), layer.points.len(), "link of an upper layer")?;
            below = layer.points.len();
        }
        let mut frozen = Self {
            quantizer,
            m,
            instructions: crate::kernels::Instructions::of_this_machine(),
            codes,
            values,
            links,
            upper,
            rows: row_list,
            first_row,
            point_of_row: Ids::pack(&[], 0),
        };
        frozen.index_rows(rows);
        Ok(frozen)
    }
}

fn check_ids(ids: impl Iterator<Item = u32>, count: usize, name: &str) -> Result<(), String> {
    // Most are in range, so a sum of comparisons without a branch is fast.
    let wrong = ids.filter(|id| *id as usize >= count && *id != NONE).count();
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} {name}s are out of range")) }
}

struct Writer {
    out: BufWriter<File>,
    at: usize,
}

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len();
        self.out.write_all(bytes)
    }

    fn array(&mut self, bytes: &[u8]) -> io::Result<()> {
        let padding = self.at.next_multiple_of(ALIGNMENT) - self.at;
        self.bytes(&[0; ALIGNMENT][..padding])?;
        self.bytes(bytes)
    }
}

struct Reader<'m> {
    map: &'m Arc<Mmap>,
    at: usize,
}

impl Reader<'_> {
    fn bytes(&mut self, count: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.map.len());
        let end = end.ok_or_else(|| format!("it ends at byte {}, too early", self.map.len()))?;
        let bytes = &self.map[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, String> {
        let bytes = self.bytes(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| "a number is cut".to_owned())?))
    }

    fn array<T: bytemuck::Pod>(&mut self, length: usize) -> Result<Slice<T>, String> {
        const { assert!(align_of::<T>() <= ALIGNMENT && cfg!(target_endian = "little")) };
        let padding = self.at.next_multiple_of(ALIGNMENT) - self.at;
        self.bytes(padding)?;
        let offset = self.at;
        self.bytes(length * size_of::<T>())?;
        Ok(Slice::Mapped { map: self.map.clone(), offset, length, of: PhantomData })
    }
}
