//! Generalised linear models with a ridge penalty, fitted by Newton's method (iteratively reweighted least squares,
//! McCullagh and Nelder 1989).
use rayon::prelude::*;

/// Distribution of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// 0 or 1; the output is the logit of the probability.
    Bernoulli,
    /// A count; the output is the logarithm of the mean.
    Poisson,
    /// Any number; the output is the mean (least squares).
    Gaussian,
}

/// Outputs of count models are kept below this before the exponential.
const LOG_MEAN_MAX: f64 = 30.0;
const ITERATIONS_MAX: usize = 60;
/// Rows whose terms one task sums. The sum does not depend on the number of threads.
const CHUNK: usize = 4096;

impl Family {
    /// Returns the negative log-likelihood of a target, its derivative and its second derivative by the output.
    fn loss(self, output: f64, target: f64) -> (f64, f64, f64) {
        match self {
            Self::Bernoulli => {
                let mean = 1.0 / (1.0 + (-output).exp());
                (output.max(0.0) + (-output.abs()).exp().ln_1p() - target * output, mean - target, mean * (1.0 - mean))
            }
            Self::Poisson => {
                let mean = output.min(LOG_MEAN_MAX).exp();
                (mean - target * output, mean - target, mean)
            }
            Self::Gaussian => {
                let error = output - target;
                (0.5 * error * error, error, 1.0)
            }
        }
    }
}

/// Sums over rows: the loss, its gradient and its Hessian.
struct Sums {
    loss: f64,
    gradient: Vec<f64>,
    hessian: Vec<f64>,
}

/// Fits the weights of `columns` (numbers per row, row-major; the first is the constant 1) to `targets`. `penalty`: of
/// the squared weights, in rows; the constant is not penalised. Stops when the loss no longer falls.
pub(crate) fn fit(inputs: &[f64], columns: usize, targets: &[f64], family: Family, penalty: f64) -> Vec<f64> {
    let mut weights = vec![0.0; columns];
    let mut sums = evaluate(inputs, columns, targets, family, penalty, &weights);
    for _ in 0..ITERATIONS_MAX {
        let Some(step) = solve(&mut sums.hessian.clone(), &sums.gradient) else { break };
        let mut share = 1.0;
        let (tried, next) = loop {
            let tried: Vec<f64> = weights.iter().zip(&step).map(|(weight, step)| weight - share * step).collect();
            let next = evaluate(inputs, columns, targets, family, penalty, &tried);
            if next.loss <= sums.loss || share < 1e-4 {
                break (tried, next);
            }
            share *= 0.5;
        };
        let gain = sums.loss - next.loss;
        if gain.is_nan() || gain < 0.0 {
            break;
        }
        (weights, sums) = (tried, next);
        if gain <= 1e-10 * sums.loss.abs() {
            break;
        }
    }
    weights
}

fn evaluate(inputs: &[f64], columns: usize, targets: &[f64], family: Family, penalty: f64, weights: &[f64]) -> Sums {
    let zero = || Sums { loss: 0.0, gradient: vec![0.0; columns], hessian: vec![0.0; columns * columns] };
    let chunk_sums = |(rows, targets): (&[f64], &[f64])| {
        let mut sums = zero();
        for (row, target) in rows.chunks_exact(columns).zip(targets) {
            let (loss, slope, curvature) = family.loss(dot(row, weights), *target);
            sums.loss += loss;
            for (index, value) in row.iter().enumerate() {
                sums.gradient[index] += slope * value;
                let scaled = curvature * value;
                // The lower triangle; the Cholesky decomposition reads no other part.
                let of_row = &mut sums.hessian[index * columns..=index * columns + index];
                of_row.iter_mut().zip(row).for_each(|(sum, other)| *sum += scaled * other);
            }
        }
        sums
    };
    let chunks: Vec<Sums> = inputs.par_chunks(CHUNK * columns).zip(targets.par_chunks(CHUNK)).map(chunk_sums).collect();
    let mut total = zero();
    for sums in chunks {
        total.loss += sums.loss;
        total.gradient.iter_mut().zip(&sums.gradient).for_each(|(sum, value)| *sum += value);
        total.hessian.iter_mut().zip(&sums.hessian).for_each(|(sum, value)| *sum += value);
    }
    for (index, weight) in weights.iter().enumerate() {
        // Without a small penalty, the constant of targets that are all equal has no finite optimum.
        let penalty = if index == 0 { 1e-3 } else { penalty };
        total.loss += 0.5 * penalty * weight * weight;
        total.gradient[index] += penalty * weight;
        total.hessian[index * columns + index] += penalty;
    }
    total
}

/// Returns the covariance of fitted weights as the rows of its lower triangle: the sandwich estimator, clustered, so that
/// the rows of one user count as one observation (Liang and Zeger 1986). `clusters`: that of each row; the rows of a
/// cluster are consecutive. Zeros if the Hessian is not positive definite.
pub(crate) fn robust_covariance(
    inputs: &[f64],
    columns: usize,
    targets: &[f64],
    clusters: &[u32],
    family: Family,
    penalty: f64,
    weights: &[f64],
) -> Vec<f64> {
    let mut meat = vec![0.0; columns * columns];
    let mut gradient = vec![0.0; columns];
    let mut end = |gradient: &mut Vec<f64>| {
        for row in 0..columns {
            for column in 0..=row {
                meat[row * columns + column] += gradient[row] * gradient[column];
            }
        }
        gradient.fill(0.0);
    };
    for (index, (row, target)) in inputs.chunks_exact(columns).zip(targets).enumerate() {
        let slope = family.loss(dot(row, weights), *target).1;
        gradient.iter_mut().zip(row).for_each(|(sum, value)| *sum += slope * value);
        if clusters.get(index + 1) != Some(&clusters[index]) {
            end(&mut gradient);
        }
    }
    let hessian = evaluate(inputs, columns, targets, family, penalty, weights).hessian;
    let unit = |index: usize| -> Vec<f64> { (0..columns).map(|of| f64::from(u8::from(of == index))).collect() };
    let inverse: Option<Vec<Vec<f64>>> = (0..columns).map(|index| solve(&mut hessian.clone(), &unit(index))).collect();
    let Some(inverse) = inverse else { return vec![0.0; columns * (columns + 1) / 2] };
    let of_meat = |row: usize, column: usize| meat[row.max(column) * columns + row.min(column)];
    let product: Vec<Vec<f64>> = inverse
        .iter()
        .map(|row| (0..columns).map(|column| (0..columns).map(|of| row[of] * of_meat(of, column)).sum()).collect())
        .collect();
    (0..columns)
        .flat_map(|row| (0..=row).map(move |column| (row, column)))
        .map(|(row, column)| dot(&product[row], &inverse[column]))
        .collect()
}

pub(crate) fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

/// Solves a symmetric positive definite system by the Cholesky decomposition, in place. Reads the lower triangle.
/// Returns `None` if the matrix is not positive definite.
fn solve(matrix: &mut [f64], right: &[f64]) -> Option<Vec<f64>> {
    let count = right.len();
    for row in 0..count {
        for column in 0..=row {
            let before =
                dot(&matrix[row * count..row * count + column], &matrix[column * count..column * count + column]);
            let rest = matrix[row * count + column] - before;
            if row == column {
                if rest.is_nan() || rest <= 0.0 {
                    return None;
                }
                matrix[row * count + row] = rest.sqrt();
            } else {
                matrix[row * count + column] = rest / matrix[column * count + column];
            }
        }
    }
    let mut solution = right.to_vec();
    for row in 0..count {
        let before = dot(&matrix[row * count..row * count + row], &solution[..row]);
        solution[row] = (solution[row] - before) / matrix[row * count + row];
    }
    for row in (0..count).rev() {
        let after: f64 = (row + 1..count).map(|below| matrix[below * count + row] * solution[below]).sum();
        solution[row] = (solution[row] - after) / matrix[row * count + row];
    }
    Some(solution)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::normal;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn check(family: Family, target: impl Fn(f64, &mut StdRng) -> f64, tolerance: f64) {
        let mut rng = StdRng::seed_from_u64(4);
        let known = [-0.5, 0.8, -0.3];
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..40_000 {
            let row = [1.0, normal(&mut rng), normal(&mut rng)];
            targets.push(target(dot(&row, &known), &mut rng));
            inputs.extend(row);
        }
        let found = fit(&inputs, 3, &targets, family, 0.0);
        for (found, known) in found.iter().zip(known) {
            assert!((found - known).abs() < tolerance, "{family:?}: {found} {known}");
        }
    }

    #[test]
    fn known_weights_are_recovered_for_each_family() {
        check(
            Family::Bernoulli,
            |output, rng| f64::from(u8::from(rng.random::<f64>() < 1.0 / (1.0 + (-output).exp()))),
            0.05,
        );
        let poisson = |output: f64, rng: &mut StdRng| {
            let (limit, mut product, mut count) = ((-output.exp()).exp(), rng.random::<f64>(), 0.0);
            while product > limit {
                product *= rng.random::<f64>();
                count += 1.0;
            }
            count
        };
        check(Family::Poisson, poisson, 0.03);
        check(Family::Gaussian, |output, rng| output + normal(rng), 0.03);
    }

    /// A row that is repeated is no new observation: the standard errors are those of the rows without repetition.
    #[test]
    fn standard_errors_are_those_of_clusters() {
        let mut rng = StdRng::seed_from_u64(5);
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for _ in 0..4000 {
            let row = [1.0, normal(&mut rng)];
            targets.push(f64::from(u8::from(rng.random::<f64>() < 1.0 / (1.0 + (0.5 - 0.8 * row[1]).exp()))));
            inputs.extend(row);
        }
        let twice = |values: &[f64], width: usize| -> Vec<f64> {
            values.chunks(width).flat_map(|row| [row, row].concat()).collect()
        };
        let covariance = |inputs: &[f64], targets: &[f64], clusters: Vec<u32>| {
            let weights = fit(inputs, 2, targets, Family::Bernoulli, 0.0);
            robust_covariance(inputs, 2, targets, &clusters, Family::Bernoulli, 0.0, &weights)
        };
        let once = covariance(&inputs, &targets, (0..4000).collect());
        let repeated = covariance(&twice(&inputs, 2), &twice(&targets, 1), (0..8000).map(|row| row / 2).collect());
        for (once, repeated) in once.iter().zip(&repeated) {
            assert!((once / repeated - 1.0).abs() < 1e-2, "{once} {repeated}");
        }
        // The inverse of the information: about 1 / (4000 × 0.22).
        assert!((once[0].sqrt() / 0.034 - 1.0).abs() < 0.15, "{}", once[0].sqrt());
    }

    #[test]
    fn equal_targets_and_no_rows_have_finite_weights() {
        for targets in [vec![1.0; 50], vec![0.0; 50], Vec::new()] {
            let inputs: Vec<f64> = targets.iter().enumerate().flat_map(|(index, _)| [1.0, index as f64]).collect();
            let weights = fit(&inputs, 2, &targets, Family::Bernoulli, 1.0);
            assert!(weights.iter().all(|weight| weight.is_finite()), "{weights:?}");
        }
    }
}
