//! Matrices of vectors: read from files, written as .npy, or synthetic.
use anyhow::{Context, bail, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use std::{fs, path::Path};

/// Row vectors, stored one after the other.
pub(crate) struct Matrix {
    pub values: Vec<f32>,
    pub dimensions: usize,
}

impl Matrix {
    pub(crate) fn rows(&self) -> usize {
        self.values.len() / self.dimensions
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.dimensions..][..self.dimensions]
    }

    /// Splits off the last `rows` rows.
    pub(crate) fn split_last(mut self, rows: usize) -> (Self, Self) {
        let at = (self.rows() - rows) * self.dimensions;
        let last = Self { values: self.values.split_off(at), dimensions: self.dimensions };
        self.values.shrink_to_fit();
        (self, last)
    }

    /// Reads `.npy` (two dimensions, little-endian f32) or `.fvecs`.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let matrix = match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => npy(&bytes),
            Some("fvecs") => fvecs(&bytes),
            _ => bail!("{}: the format is not supported; use .npy or .fvecs", path.display()),
        };
        matrix.with_context(|| path.display().to_string())
    }

    /// Writes `.npy`.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let shape = format!("({}, {})", self.rows(), self.dimensions);
        let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
        // The format aligns the data to 64 bytes.
        header.push_str(&" ".repeat(63 - (10 + header.len()) % 64));
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend(self.values.iter().flat_map(|value| value.to_le_bytes()));
        fs::write(path, bytes).with_context(|| path.display().to_string())
    }

    /// Generates unit vectors that resemble those of a shop: clusters of very different sizes, each with its own
    /// centre, and dimensions of decreasing variance.
    pub(crate) fn synthetic(rows: usize, dimensions: usize, seed: u64) -> Self {
        let clusters = ((rows as f64).sqrt() as usize).clamp(1, 4000);
        let weight: Vec<f32> = (0..dimensions).map(|d| 1.0 / (1.0 + d as f32 / 24.0)).collect();
        let mut random = StdRng::seed_from_u64(seed);
        let centres: Vec<f32> =
            (0..clusters * dimensions).map(|at| normal(&mut random) * weight[at % dimensions]).collect();
        let mut values = vec![0.0f32; rows * dimensions];
        values.par_chunks_mut(dimensions * 1000).enumerate().for_each(|(chunk, values)| {
            let mut random = StdRng::seed_from_u64(seed ^ ((chunk as u64 + 1) << 20));
            for vector in values.chunks_mut(dimensions) {
                // Squaring makes the first clusters much larger than the last ones.
                let cluster = (random.random::<f32>().powi(2) * clusters as f32) as usize % clusters;
                let centre = &centres[cluster * dimensions..][..dimensions];
                for ((value, centre), weight) in vector.iter_mut().zip(centre).zip(&weight) {
                    *value = centre + 0.7 * normal(&mut random) * weight;
                }
                let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
                vector.iter_mut().for_each(|x| *x /= length);
            }
        });
        Self { values, dimensions }
    }
}

/// Draws from the standard normal distribution (Box-Muller transform).
fn normal(random: &mut StdRng) -> f32 {
    let (a, b): (f32, f32) = (random.random(), random.random());
    (-2.0 * a.max(1e-12).ln()).sqrt() * (2.0 * std::f32::consts::PI * b).cos()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect()
}

fn npy(bytes: &[u8]) -> anyhow::Result<Matrix> {
    ensure!(bytes.len() > 12 && bytes.starts_with(b"\x93NUMPY"), "is not an .npy file");
    let (begin, length) = match bytes[6] {
        1 => (10, u16::from_le_bytes([bytes[8], bytes[9]]) as usize),
        _ => (12, u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize),
    };
    let header = bytes.get(begin..begin + length).context("has a truncated header")?;
    let header = std::str::from_utf8(header).context("has a header that is not UTF-8")?;
    ensure!(header.contains("'<f4'"), "is not of little-endian f32 values: {header}");
    ensure!(header.contains("'fortran_order': False"), "is in Fortran order; only C order is supported: {header}");
    let shape = header
        .split("'shape': (")
        .nth(1)
        .and_then(|rest| rest.split(')').next())
        .context("has a header without a shape")?;
    let shape: Vec<usize> = shape.split(',').filter_map(|size| size.trim().parse().ok()).collect();
    let [rows, dimensions] = shape[..] else { bail!("has the shape {shape:?}, expected two dimensions") };
    let values = floats(&bytes[begin + length..]);
    ensure!(
        dimensions > 0 && rows.checked_mul(dimensions) == Some(values.len()),
        "is truncated or too long for {rows} × {dimensions} values"
    );
    Ok(Matrix { values, dimensions })
}

fn fvecs(bytes: &[u8]) -> anyhow::Result<Matrix> {
    ensure!(bytes.len() >= 4, "is empty");
    let dimensions = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let width = dimensions
        .checked_mul(4)
        .and_then(|width| width.checked_add(4))
        .context("has an invalid number of dimensions")?;
    ensure!(
        dimensions > 0 && bytes.len().is_multiple_of(width),
        "is not a sequence of vectors of {dimensions} dimensions"
    );
    let values = bytes.chunks_exact(width).flat_map(|vector| floats(&vector[4..])).collect();
    Ok(Matrix { values, dimensions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_whose_product_overflows_is_refused() {
        let read = |shape: &str| {
            let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}\n");
            let length = (header.len() as u16).to_le_bytes();
            npy(&[b"\x93NUMPY\x01\x00", &length[..], header.as_bytes()].concat())
        };
        let Err(error) = read("9223372036854775808, 2") else { panic!("the file has no values") };
        assert!(error.to_string().contains("9223372036854775808 × 2"), "{error}");
        assert!(read("0, 2").is_ok_and(|matrix| matrix.rows() == 0));
    }
}
