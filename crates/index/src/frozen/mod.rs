//! The frozen graph: nearest vectors by inner product, in flat arrays that nothing changes any more.
//!
//! A query walks codes (one byte for each dimension) along a graph and scores what it found exactly. No lock is taken and
//! nothing is allocated but the answer. A filter that leaves few rows is answered by a scan of their codes.
mod build;
mod codes;
mod file;
mod ids;
mod values;
mod walk;

pub use build::BuildConfig;
pub use file::FileError;
pub use values::Precision;
pub use walk::SearchStrategy;

use crate::kernels::Instructions;
use ahash::AHashMap;
use build::{Built, NONE, UpperLayer};
use codes::{Quantizer, ZERO};
use file::Slice;
use ids::Ids;
use lodestone_core::ids::Row;
use rayon::prelude::*;
use values::Values;

/// Why vectors are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrozenError {
    #[error("the number of values {values} is no multiple of the {dimensions} dimensions")]
    Shape { values: usize, dimensions: usize },
    #[error("dimensions are {0}; 1 to 4096 are taken")]
    Dimensions(usize),
    #[error("{0} vectors are more than 2^31")]
    Count(usize),
    #[error("vector {vector} is not a finite number at {position}")]
    NotFinite { vector: usize, position: usize },
    #[error("m is {0}; 2 to 64 are taken")]
    M(usize),
}

/// Vectors with a graph over them. Points are the distinct vectors, in an order in which neighbours are near each other in
/// memory; each has one or more rows.
pub struct FrozenGraph {
    quantizer: Quantizer,
    m: usize,
    instructions: Instructions,
    /// `[points × code length]`.
    codes: Slice<u8>,
    /// For the exact score.
    values: Values,
    /// `[points × 2m]`, then [`NONE`].
    links: Ids,
    upper: Vec<UpperLayer>,
    /// The rows of point `p` are `rows[first_row[p]..first_row[p + 1]]`; where no two vectors are equal `first_row` is
    /// empty and the row of `p` is `rows[p]`.
    rows: Ids,
    first_row: Slice<u32>,
    /// By row: its point; [`NONE`] for a row that is not here.
    point_of_row: Ids,
}

impl FrozenGraph {
    /// Builds the index of vectors `[rows × dimensions]`; the row of a vector is its place. With one thread in the rayon
    /// pool the same vectors and seed give the same index. `progress` gets the points that are done.
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
        let quantizer = Quantizer::of(vectors, dimensions, config.precision == Precision::Int12);
        let length = quantizer.length();
        let vector_of = |point: usize| &vectors[groups.leaders[point] as usize * dimensions..][..dimensions];
        let mut codes = vec![ZERO; groups.leaders.len() * length];
        codes.par_chunks_mut(length).enumerate().for_each(|(point, code)| quantizer.encode(vector_of(point), code));
        let extras = extras(groups.leaders.len(), vector_of, quantizer.step);
        let built = build::build(&quantizer, &codes, extras, config, progress);
        Ok(Self::ordered(quantizer, config, &codes, vector_of, built, &groups))
    }

    /// Puts the points into the order of a walk over the graph: neighbours come near each other in memory.
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
        let mut place_of = vec![0u32; count];
        for (place, &point) in order.iter().enumerate() {
            place_of[point as usize] = place as u32;
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
            links.extend(own.iter().map(|link| if *link == NONE { NONE } else { place_of[*link as usize] }));
            rows.push(groups.leaders[point]);
            rows.extend(groups.followers.get(&groups.leaders[point]).into_iter().flatten());
            first_row.push(rows.len() as u32);
        }
        for layer in &mut built.upper {
            layer.points.iter_mut().for_each(|point| *point = place_of[*point as usize]);
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
            instructions: Instructions::of_this_machine(),
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

    /// The same vectors under other rows: `rows[i]`, ascending and below `row_count`, instead of `i`. Rows that are not among
    /// them are never found. Such an index is not written.
    pub fn renamed(mut self, rows: &[Row], row_count: usize) -> Self {
        debug_assert!(rows.len() == self.rows.len() && rows.iter().all(|row| row.index() < row_count));
        let renamed: Vec<u32> = self.rows.iter().map(|row| rows[row as usize].0).collect();
        self.rows = Ids::pack(&renamed, row_count);
        self.index_rows(row_count);
        self
    }

    fn index_rows(&mut self, row_count: usize) {
        let mut point_of_row = vec![NONE; row_count];
        for point in 0..self.point_count() as u32 {
            for row in self.rows_of(point) {
                point_of_row[row as usize] = point;
            }
        }
        self.point_of_row = Ids::pack(&point_of_row, self.point_count());
    }

    /// Distinct vectors.
    pub fn point_count(&self) -> usize {
        self.codes.len() / self.quantizer.length()
    }

    /// One more than the highest row, whether each is here or not.
    pub fn row_count(&self) -> usize {
        self.point_of_row.len()
    }

    /// Rows that are here.
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

    /// Bytes that are held for each row: what a walk reads, and the vectors for the exact score.
    pub fn bytes_per_row(&self) -> (f64, f64) {
        let upper: usize = self.upper.iter().map(|layer| (2 * layer.points.len() + layer.links.len()) * 4).sum();
        let walked =
            self.codes.len() + self.links.bytes().len() + self.rows.bytes().len() + 4 * self.first_row.len() + upper;
        let rows = self.len().max(1) as f64;
        (walked as f64 / rows, (self.values.bytes.len() + self.point_of_row.bytes().len()) as f64 / rows)
    }

    /// The vector of a row as it is kept, `[dimensions]`; none for a row that is not here.
    pub fn vector(&self, row: Row) -> Option<Vec<f32>> {
        let point = (row.index() < self.row_count()).then(|| self.point_of_row.get(row.index()))?;
        (point != NONE).then(|| self.values.decode(point as usize, &self.codes, &self.quantizer))
    }

    #[inline(always)]
    fn rows_of(&self, point: u32) -> impl Iterator<Item = u32> + '_ {
        let point = point as usize;
        let places = match self.first_row.is_empty() {
            true => point..point + 1,
            false => self.first_row[point] as usize..self.first_row[point + 1] as usize,
        };
        places.map(|place| self.rows.get(place))
    }
}

/// Rows with equal vectors share a point: many equal points would link only to each other, and a walk that meets them
/// could not leave.
struct Groups {
    /// By point: its first row.
    leaders: Vec<u32>,
    /// By first row: the others.
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

/// By point: the component in one more dimension that makes all vectors equally long, in steps; so the nearest by distance
/// are the best by inner product, and the graph may be built by distance (Bachrach et al. 2014). Empty where all vectors
/// have one length already.
fn extras<'v>(count: usize, vector_of: impl Fn(usize) -> &'v [f32] + Sync, step: f32) -> Vec<f32> {
    let squares: Vec<f32> =
        (0..count).into_par_iter().map(|point| vector_of(point).iter().map(|x| x * x).sum()).collect();
    let (least, most) = squares.iter().fold((f32::MAX, 0.0f32), |(low, high), x| (low.min(*x), high.max(*x)));
    if count == 0 || most - least <= 1e-3 * most {
        return Vec::new();
    }
    squares.into_iter().map(|square| (most - square).max(0.0).sqrt() / step).collect()
}

/// All points, each after one that links to it where there is one.
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
