//! The frozen graph: an immutable HNSW index for maximum inner product search, in flat arrays.
//!
//! A search traverses the graph over codes (one byte for each dimension) and scores its candidates with the stored
//! vectors. It takes no lock and allocates only its result. If a filter leaves few rows, the search scans their codes
//! instead.
#[allow(unsafe_code, reason = "calls kernels, whose ids it guarantees")]
mod build;
mod codes;
mod file;
#[allow(unsafe_code, reason = "calls kernels in functions that are compiled for one CPU")]
mod ids;
#[allow(unsafe_code, reason = "traverses the graph without bounds checks; ids are checked on open")]
mod search;
#[allow(unsafe_code, reason = "reads arrays of files in memory, which are checked on open")]
mod storage;
#[allow(unsafe_code, reason = "calls kernels in functions that are compiled for one CPU")]
mod values;

use crate::kernels::InstructionSet;
use ahash::AHashMap;
pub use build::BuildConfig;
use build::{Built, UpperLayer};
use codes::{Clipping, Quantizer, ZERO};
pub use file::FileError;
use ids::{Ids, NONE};
use lodestone_core::ids::Row;
use rayon::prelude::*;
pub use search::SearchStrategy;
use storage::Slice;
use values::Values;
pub use values::{Precision, UnknownPrecision};

/// The reason why vectors cannot be indexed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrozenError {
    #[error("{values} values are not a multiple of {dimensions} dimensions")]
    Shape { values: usize, dimensions: usize },
    #[error("vectors have {0} dimensions; the index supports 1 to 4096")]
    Dimensions(usize),
    #[error("there are {0} vectors; the index supports fewer than 2^31")]
    Count(usize),
    #[error("vector {vector} has a number that is not finite at position {position}")]
    NotFinite { vector: usize, position: usize },
    #[error("m is {0}; it must be within 2 and 64")]
    M(usize),
}

/// Vectors with a graph over them. A point is a distinct vector and has one or more rows. Points are ordered so that
/// neighbours in the graph are close in memory.
pub struct FrozenGraph {
    quantizer: Quantizer,
    /// Maximum neighbours of a node in an upper layer.
    m: usize,
    instructions: InstructionSet,
    /// `[points × code length]`.
    codes: Slice<u8>,
    /// Vectors of the points, for exact scores.
    values: Values,
    /// `[points × 2m]`: the neighbours of each point in the lowest layer, padded with [`NONE`].
    links: Ids,
    upper: Vec<UpperLayer>,
    /// The rows of point `p` are `rows[first_row[p]..first_row[p + 1]]`. If no two vectors are equal, `first_row` is
    /// empty and the row of `p` is `rows[p]`.
    rows: Ids,
    first_row: Slice<u32>,
    /// By row: its point; [`NONE`] for a row that is not in the index.
    point_of_row: Ids,
}

impl FrozenGraph {
    /// Builds the index of `vectors`, `[rows × dimensions]`. With one thread in the rayon pool, the same vectors and
    /// seed produce the same index. Calls `progress` with the number of points that are inserted.
    pub fn build(
        vectors: &[f32],
        dimensions: usize,
        config: BuildConfig,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, FrozenError> {
        if !(1..=4096).contains(&dimensions) {
            return Err(FrozenError::Dimensions(dimensions));
        }
        if !(2..=64).contains(&config.m) {
            return Err(FrozenError::M(config.m));
        }
        if !vectors.len().is_multiple_of(dimensions) {
            return Err(FrozenError::Shape { values: vectors.len(), dimensions });
        }
        let count = vectors.len() / dimensions;
        if count >= 1 << 31 {
            return Err(FrozenError::Count(count));
        }
        if let Some(at) = vectors.par_iter().position_first(|value| !value.is_finite()) {
            return Err(FrozenError::NotFinite { vector: at / dimensions, position: at % dimensions });
        }
        let groups = Groups::of(vectors, dimensions);
        let clipping = if config.precision == Precision::Int12 { Clipping::None } else { Clipping::Outliers };
        let quantizer = Quantizer::of(vectors, dimensions, clipping);
        let length = quantizer.length();
        let vector_of = |point: usize| &vectors[groups.leaders[point] as usize * dimensions..][..dimensions];
        let mut codes = vec![ZERO; groups.leaders.len() * length];
        codes.par_chunks_mut(length).enumerate().for_each(|(point, code)| quantizer.encode(vector_of(point), code));
        let extras = extras(groups.leaders.len(), vector_of, quantizer.step);
        let built = build::build(&quantizer, &codes, extras, config, progress);
        Ok(Self::ordered(quantizer, config, &codes, vector_of, built, &groups))
    }

    /// Assembles the index with the points in breadth-first order of the graph, so that neighbours are close in memory.
    fn ordered<'v>(
        quantizer: Quantizer,
        config: BuildConfig,
        codes: &[u8],
        vector_of: impl Fn(usize) -> &'v [f32],
        mut built: Built,
        groups: &Groups,
    ) -> Self {
        let count = groups.leaders.len();
        let BuildConfig { m, precision, .. } = config;
        let order = breadth_first(&built.links, m * 2, count);
        let mut new_point_of = vec![0u32; count];
        for (new_point, &point) in order.iter().enumerate() {
            new_point_of[point as usize] = new_point as u32;
        }
        let (length, width) = (quantizer.length(), m * 2);
        let (mut new_codes, mut values) = (Vec::with_capacity(codes.len()), Vec::new());
        values.reserve_exact(count * precision.bytes_per_point(quantizer.dimensions));
        let mut links = Vec::with_capacity(built.links.len());
        let (mut rows, mut first_row) = (Vec::with_capacity(groups.row_count), vec![0u32]);
        for &point in &order {
            let point = point as usize;
            let code = &codes[point * length..][..length];
            new_codes.extend_from_slice(code);
            precision.encode(vector_of(point), code, &quantizer, &mut values);
            let own = &built.links[point * width..][..width];
            links.extend(own.iter().map(|link| if *link == NONE { NONE } else { new_point_of[*link as usize] }));
            rows.push(groups.leaders[point]);
            rows.extend(groups.followers.get(&groups.leaders[point]).into_iter().flatten());
            first_row.push(rows.len() as u32);
        }
        for layer in &mut built.upper {
            layer.points.iter_mut().for_each(|point| *point = new_point_of[*point as usize]);
        }
        if let Some(lowest) = built.upper.first_mut() {
            lowest.below.clone_from(&lowest.points);
        }
        if rows.len() == count {
            first_row.clear();
        }
        let mut frozen = Self {
            quantizer,
            m,
            instructions: InstructionSet::detect(),
            codes: new_codes.into(),
            values: Values { precision, bytes: values.into() },
            links: Ids::pack(&links, count),
            upper: built.upper,
            rows: Ids::pack(&rows, groups.row_count),
            first_row: first_row.into(),
            point_of_row: Ids::pack(&[], 0),
        };
        frozen.index_rows(groups.row_count);
        frozen
    }

    /// Replaces row `i` by `rows[i]`. `rows` are ascending and below `row_count`. Searches never return other rows. The
    /// result cannot be written.
    pub fn with_rows(mut self, rows: &[Row], row_count: usize) -> Self {
        debug_assert!(rows.len() == self.rows.len() && rows.iter().all(|row| row.index() < row_count));
        let renamed: Vec<u32> = self.rows.iter().map(|row| rows[row as usize].0).collect();
        self.rows = Ids::pack(&renamed, row_count);
        self.index_rows(row_count);
        self
    }

    /// Computes `point_of_row`.
    fn index_rows(&mut self, row_count: usize) {
        let mut point_of_row = vec![NONE; row_count];
        for point in 0..self.point_count() as u32 {
            for row in self.rows_of(point) {
                point_of_row[row as usize] = point;
            }
        }
        self.point_of_row = Ids::pack(&point_of_row, self.point_count());
    }

    /// Returns the number of distinct vectors.
    pub fn point_count(&self) -> usize {
        self.codes.len() / self.quantizer.length()
    }

    /// Returns the upper bound of the rows; not every row below it is in the index.
    pub fn row_count(&self) -> usize {
        self.point_of_row.len()
    }

    /// Returns the number of rows in the index.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn precision(&self) -> Precision {
        self.values.precision
    }

    pub fn dimensions(&self) -> usize {
        self.quantizer.dimensions
    }

    /// Returns the mean bytes of a row: those that a graph search reads, and those for exact scores.
    pub fn bytes_per_row(&self) -> (f64, f64) {
        let upper: usize = self.upper.iter().map(|layer| (2 * layer.points.len() + layer.links.len()) * 4).sum();
        let walked =
            self.codes.len() + self.links.bytes().len() + self.rows.bytes().len() + 4 * self.first_row.len() + upper;
        let rows = self.len().max(1) as f64;
        (walked as f64 / rows, (self.values.bytes.len() + self.point_of_row.bytes().len()) as f64 / rows)
    }

    /// Returns whether the row is in the index.
    pub fn contains(&self, row: Row) -> bool {
        row.index() < self.row_count() && self.point_of_row.get(row.index()) != NONE
    }

    /// Returns the stored vector of a row, `[dimensions]`, in the index's precision; none for a row that is not in the
    /// index.
    pub fn vector(&self, row: Row) -> Option<Vec<f32>> {
        self.contains(row).then(|| {
            let point = self.point_of_row.get(row.index()) as usize;
            self.values.decode(point, &self.codes, &self.quantizer)
        })
    }

    #[inline(always)]
    fn rows_of(&self, point: u32) -> impl Iterator<Item = u32> + '_ {
        let point = point as usize;
        let range = match self.first_row.is_empty() {
            true => point..point + 1,
            false => self.first_row[point] as usize..self.first_row[point + 1] as usize,
        };
        range.map(|at| self.rows.get(at))
    }
}

/// Rows by distinct vector. Rows with equal vectors share a point, because many equal points would link only to each
/// other, and a search that reaches them could not leave.
struct Groups {
    /// By point: its first row.
    leaders: Vec<u32>,
    /// By first row: the other rows with the same vector.
    followers: AHashMap<u32, Vec<u32>>,
    row_count: usize,
}

impl Groups {
    fn of(vectors: &[f32], dimensions: usize) -> Self {
        let row_count = vectors.len() / dimensions;
        let mut first: AHashMap<&[u8], u32> = AHashMap::with_capacity(row_count);
        let mut groups = Self { leaders: Vec::with_capacity(row_count), followers: AHashMap::new(), row_count };
        for (row, vector) in vectors.chunks_exact(dimensions).enumerate() {
            let leader = *first.entry(bytemuck::cast_slice(vector)).or_insert(row as u32);
            match leader == row as u32 {
                true => groups.leaders.push(leader),
                false => groups.followers.entry(leader).or_default().push(row as u32),
            }
        }
        groups
    }
}

/// Returns, for each point, the component in an additional dimension that makes all vectors equally long, in steps. It
/// reduces maximum inner product search to nearest-neighbour search (Bachrach et al. 2014), for which HNSW is defined.
/// Empty if all vectors are equally long already.
fn extras<'v>(count: usize, vector_of: impl Fn(usize) -> &'v [f32] + Sync, step: f32) -> Vec<f32> {
    let squares: Vec<f32> =
        (0..count).into_par_iter().map(|point| vector_of(point).iter().map(|x| x * x).sum()).collect();
    let (least, most) = squares.iter().fold((f32::MAX, 0.0f32), |(low, high), x| (low.min(*x), high.max(*x)));
    if count == 0 || most - least <= 1e-3 * most {
        return Vec::new();
    }
    squares.into_iter().map(|square| (most - square).max(0.0).sqrt() / step).collect()
}

/// Returns all points in breadth-first order, from point 0 and then from each point that is not reached yet.
fn breadth_first(links: &[u32], width: usize, count: usize) -> Vec<u32> {
    let mut order = Vec::with_capacity(count);
    let mut seen = vec![false; count];
    for start in 0..count {
        if seen[start] {
            continue;
        }
        seen[start] = true;
        let mut next = order.len();
        order.push(start as u32);
        while next < order.len() {
            let point = order[next] as usize;
            for &link in links[point * width..][..width].iter().take_while(|link| **link != NONE) {
                if !std::mem::replace(&mut seen[link as usize], true) {
                    order.push(link);
                }
            }
            next += 1;
        }
    }
    order
}
