//! The file format of a frozen graph, which is read into memory without conversion.
//!
//! A file is a header, then arrays, each at a multiple of 64 bytes; all numbers are little endian. The header is the
//! magic, [`HEADER_NUMBERS`] numbers of 8 bytes, and the number of nodes of each upper layer. The arrays are codes,
//! vectors, links of the lowest layer, rows, first rows, and for each upper layer points, nodes below and links.
use super::{
    FrozenGraph,
    build::UpperLayer,
    codes::Quantizer,
    ids::{self, Ids, NONE},
    storage::Slice,
    values::{Precision, Values},
};
use crate::kernels::InstructionSet;
use lodestone_core::format::OtherVersion;
use memmap2::{Mmap, MmapMut};
use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::Arc,
};

const MAGIC: &[u8; 8] = b"LODEIDX2";
/// Every array begins at a multiple of this, in bytes.
const ALIGNMENT: usize = 64;
const HEADER_NUMBERS: usize = 8;

/// The reason why an index cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: is not a valid vector index: {problem}")]
    Format { path: PathBuf, problem: String },
}

impl FrozenGraph {
    /// Writes the index. It must have every row below its row count, so it is not a result of
    /// [`FrozenGraph::with_rows`].
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

    /// Reads an index. Checks all offsets and ids, so that a corrupt file is an error here and never an invalid read
    /// later. The file may change afterwards: a mapped file that shrinks would end the process by SIGBUS, and one whose
    /// content changes would have ids that were not checked.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::open_verified(path, |_| Ok(()))
    }

    /// Does the same after `verify` has accepted the content of the file, which is read once.
    pub fn open_verified<E: From<FileError>>(
        path: &Path,
        verify: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let map = read_file(path)?;
        verify(&map)?;
        Ok(Self::read(map).map_err(|problem| FileError::Format { path: path.to_owned(), problem })?)
    }

    fn read(map: Arc<Mmap>) -> Result<Self, String> {
        let mut reader = Reader { map: &map, at: 0 };
        let header = Header::read(&mut reader)?;
        let mut frozen = Self::read_arrays(&mut reader, &header)?;
        if reader.at != map.len() {
            return Err(format!("it has {} bytes more than its header specifies", map.len() - reader.at));
        }
        frozen.check(header.rows)?;
        frozen.index_rows(header.rows);
        Ok(frozen)
    }

    fn read_arrays(reader: &mut Reader, header: &Header) -> Result<Self, String> {
        let Header { quantizer, m, points, rows, precision, .. } = *header;
        let codes = reader.array(points * quantizer.length())?;
        let values =
            Values { precision, bytes: reader.array(points * precision.bytes_per_point(quantizer.dimensions))? };
        let mut list = |length: usize, count: usize| {
            let width = ids::width(count);
            Ok::<Ids, String>(Ids::from_bytes(reader.array(Ids::byte_count(length, width))?, width))
        };
        let (links, row_list) = (list(points * 2 * m, points)?, list(rows, rows)?);
        let first_row: Slice<u32> = reader.array(header.first_rows)?;
        let mut upper: Vec<UpperLayer> = Vec::with_capacity(header.layer_sizes.len());
        for &size in &header.layer_sizes {
            let size = usize::try_from(size).ok().filter(|size| *size <= points).ok_or("a layer is too large")?;
            let mut numbers = |count| reader.array::<u32>(count).map(|numbers| numbers.to_vec());
            upper.push(UpperLayer { points: numbers(size)?, below: numbers(size)?, links: numbers(size * m)? });
        }
        Ok(Self {
            quantizer,
            m,
            instructions: InstructionSet::detect(),
            codes,
            values,
            links,
            upper,
            rows: row_list,
            first_row,
            point_of_row: Ids::pack(&[], 0),
        })
    }

    /// Checks all ids and values of an index that was read. `rows` is the row count of its header.
    fn check(&self, rows: usize) -> Result<(), String> {
        let points = self.point_count();
        check_ids(self.links.iter(), points, "link")?;
        if self.rows.iter().any(|row| row as usize >= rows) {
            return Err("a row is out of range".to_owned());
        }
        if !self.values.are_finite() {
            return Err("a vector has a number that is not finite".to_owned());
        }
        let first_row = &self.first_row;
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
            return Err("the first rows of the points do not match the row count".to_owned());
        }
        let mut below = points;
        for layer in &self.upper {
            let wrong = layer.points.is_empty() || layer.points.iter().any(|point| *point as usize >= points);
            if wrong || layer.below.iter().any(|node| *node as usize >= below) {
                return Err("an upper layer is empty or has an id out of range".to_owned());
            }
            check_ids(layer.links.iter().copied(), layer.points.len(), "link of an upper layer")?;
            below = layer.points.len();
        }
        Ok(())
    }
}

/// Reads a file into anonymous memory, because the arrays need the alignment of pages.
fn read_file(path: &Path) -> Result<Arc<Mmap>, FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let length = usize::try_from(length).map_err(|_| io(io::ErrorKind::FileTooLarge.into()))?;
    let mut memory = MmapMut::map_anon(length).map_err(io)?;
    file.read_exact(&mut memory).map_err(io)?;
    Ok(Arc::new(memory.make_read_only().map_err(io)?))
}

/// The header of a file, with each number within its limits.
struct Header {
    quantizer: Quantizer,
    m: usize,
    points: usize,
    rows: usize,
    /// Length of the array of first rows.
    first_rows: usize,
    precision: Precision,
    /// Nodes of each upper layer; not checked.
    layer_sizes: Vec<u64>,
}

impl Header {
    fn read(reader: &mut Reader) -> Result<Self, String> {
        let magic = reader.bytes(8)?;
        if let Some(version) = OtherVersion::of(MAGIC, magic) {
            return Err(format!("it {version}"));
        }
        if magic != MAGIC {
            return Err("it does not begin with LODEIDX2".to_owned());
        }
        let header: Vec<u64> = (0..HEADER_NUMBERS).map(|_| reader.number()).collect::<Result<_, _>>()?;
        let limited = |at: usize, low: u64, high: u64, name: &str| match header[at] {
            number if (low..=high).contains(&number) => Ok(number as usize),
            number => Err(format!("{name} is {number}; it must be within {low} and {high}")),
        };
        let dimensions = limited(0, 1, 4096, "dimensions")?;
        let step = f32::from_bits(limited(1, 0, u64::from(u32::MAX), "step")? as u32);
        if !(step.is_finite() && step > 0.0) {
            return Err(format!("step is {step}; it must be finite and positive"));
        }
        let m = limited(2, 2, 64, "m")?;
        let points = limited(3, 0, 1 << 31, "points")?;
        let rows = limited(4, points as u64, 1 << 32, "rows")?;
        let first_rows = limited(5, 0, points as u64 + 1, "first rows")?;
        let layers = limited(6, 0, 16, "layers")?;
        let precision = Precision::ALL[limited(7, 0, Precision::ALL.len() as u64 - 1, "precision")?];
        let layer_sizes = (0..layers).map(|_| reader.number()).collect::<Result<_, _>>()?;
        let quantizer = Quantizer { dimensions, step };
        Ok(Self { quantizer, m, points, rows, first_rows, precision, layer_sizes })
    }
}

fn check_ids(ids: impl Iterator<Item = u32>, count: usize, name: &str) -> Result<(), String> {
    // Counting without a branch is fast, and almost always no id is out of range.
    let wrong = ids.filter(|id| *id as usize >= count && *id != NONE).count();
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} {name}s are out of range")) }
}

/// A file and the number of bytes that are written.
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

/// A file in memory and the number of bytes that are read.
struct Reader<'m> {
    map: &'m Arc<Mmap>,
    at: usize,
}

impl Reader<'_> {
    fn bytes(&mut self, count: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.map.len());
        let end = end.ok_or_else(|| format!("it is truncated at byte {}", self.map.len()))?;
        let bytes = &self.map[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, String> {
        let bytes = self.bytes(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| "a number is truncated".to_owned())?))
    }

    /// Returns an array of the file, checked to be within the map. It is aligned because a map begins at a page.
    fn array<T: bytemuck::Pod>(&mut self, length: usize) -> Result<Slice<T>, String> {
        const { assert!(align_of::<T>() <= ALIGNMENT && cfg!(target_endian = "little")) };
        let padding = self.at.next_multiple_of(ALIGNMENT) - self.at;
        self.bytes(padding)?;
        let offset = self.at;
        self.bytes(length * size_of::<T>())?;
        Ok(Slice::Mapped { map: self.map.clone(), offset, length, of: PhantomData })
    }
}
