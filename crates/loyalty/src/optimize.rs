//! Minimisation of smooth functions by L-BFGS (Liu and Nocedal 1989; Nocedal and Wright 2006, algorithm 7.4).
use std::collections::VecDeque;

/// Pairs of steps and gradient changes that approximate the Hessian.
const MEMORY: usize = 12;
/// Largest number of trials of one line search.
const TRIALS_MAX: usize = 40;

/// When [`minimize`] stops.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stop {
    pub(crate) iterations_max: usize,
    /// Largest absolute component of the gradient at a minimum. The caller scales its function so that this is
    /// sensible.
    pub(crate) gradient_max: f64,
}

/// The result of [`minimize`].
#[derive(Debug, Clone)]
pub(crate) struct Minimum {
    pub(crate) at: Vec<f64>,
    pub(crate) value: f64,
    pub(crate) iterations: usize,
    /// Whether the gradient is below the limit, or no step improves the value any more.
    pub(crate) converged: bool,
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(l, r)| l * r).sum()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| value.abs().max(most))
}

/// Minimises a function from `start`. `evaluate` writes the gradient at its first argument to its second and returns
/// the value; a value or a gradient that is not finite rejects the step.
pub(crate) fn minimize(start: Vec<f64>, stop: Stop, mut evaluate: impl FnMut(&[f64], &mut [f64]) -> f64) -> Minimum {
    let mut evaluate = |at: &[f64], gradient: &mut [f64]| {
        let value = evaluate(at, gradient);
        if gradient.iter().all(|component| component.is_finite()) { value } else { f64::NAN }
    };
    let count = start.len();
    let (mut at, mut gradient) = (start, vec![0.0; count]);
    let mut value = evaluate(&at, &mut gradient);
    let mut memory: VecDeque<(Vec<f64>, Vec<f64>, f64)> = VecDeque::with_capacity(MEMORY);
    let (mut trial, mut trial_gradient) = (at.clone(), vec![0.0; count]);
    let mut iterations = 0;
    while iterations < stop.iterations_max && value.is_finite() {
        if largest(&gradient) <= stop.gradient_max {
            return Minimum { at, value, iterations, converged: true };
        }
        iterations += 1;
        let mut direction = descent_direction(&gradient, &memory);
        let mut slope = dot(&direction, &gradient);
        if slope.is_nan() || slope >= 0.0 {
            memory.clear();
            direction = gradient.iter().map(|component| -component).collect();
            slope = -dot(&gradient, &gradient);
        }
        // The first direction has the gradient's length, which may be far from that of a good step.
        let mut step = if memory.is_empty() { (1.0 / largest(&direction)).min(1.0) } else { 1.0 };
        let (mut low, mut high) = (0.0, f64::INFINITY);
        let mut trial_value = value;
        for _ in 0..TRIALS_MAX {
            for index in 0..count {
                trial[index] = at[index] + step * direction[index];
            }
            trial_value = evaluate(&trial, &mut trial_gradient);
            // Weak Wolfe conditions by bisection (Lewis and Overton 2013).
            if !trial_value.is_finite() || trial_value > value + 1e-4 * step * slope {
                high = step;
            } else if dot(&trial_gradient, &direction) < 0.9 * slope {
                low = step;
            } else {
                break;
            }
            step = if high.is_finite() { 0.5 * (low + high) } else { 2.0 * step };
        }
        if !trial_value.is_finite() || trial_value >= value {
            if memory.is_empty() {
                // Not even a step down the gradient improves the value: the limit of the arithmetic, unless there is
                // no value.
                return Minimum { at, value, iterations, converged: trial_value.is_finite() };
            }
            memory.clear();
            continue;
        }
        let moved: Vec<f64> = trial.iter().zip(&at).map(|(new, old)| new - old).collect();
        let changed: Vec<f64> = trial_gradient.iter().zip(&gradient).map(|(new, old)| new - old).collect();
        let curvature = dot(&moved, &changed);
        if curvature > 1e-12 * dot(&changed, &changed) {
            if memory.len() == MEMORY {
                memory.pop_front();
            }
            memory.push_back((moved, changed, 1.0 / curvature));
        }
        std::mem::swap(&mut at, &mut trial);
        std::mem::swap(&mut gradient, &mut trial_gradient);
        value = trial_value;
    }
    let converged = value.is_finite() && largest(&gradient) <= stop.gradient_max;
    Minimum { at, value, iterations, converged }
}

/// The two-loop recursion: minus the inverse Hessian times the gradient.
fn descent_direction(gradient: &[f64], memory: &VecDeque<(Vec<f64>, Vec<f64>, f64)>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|component| -component).collect();
    let mut weights = vec![0.0; memory.len()];
    for (index, (moved, changed, scale)) in memory.iter().enumerate().rev() {
        weights[index] = scale * dot(moved, &direction);
        direction.iter_mut().zip(changed).for_each(|(component, change)| *component -= weights[index] * change);
    }
    if let Some((_, changed, scale)) = memory.back() {
        let scale = 1.0 / (scale * dot(changed, changed));
        direction.iter_mut().for_each(|component| *component *= scale);
    }
    for (index, (moved, changed, scale)) in memory.iter().enumerate() {
        let correction = weights[index] - scale * dot(changed, &direction);
        direction.iter_mut().zip(moved).for_each(|(component, step)| *component += correction * step);
    }
    direction
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: Stop = Stop { iterations_max: 500, gradient_max: 1e-8 };

    #[test]
    fn the_minimum_of_the_rosenbrock_function_is_found() {
        let minimum = minimize(vec![-1.2, 1.0], STOP, |x, gradient| {
            gradient[0] = -400.0 * x[0] * (x[1] - x[0] * x[0]) - 2.0 * (1.0 - x[0]);
            gradient[1] = 200.0 * (x[1] - x[0] * x[0]);
            100.0 * (x[1] - x[0] * x[0]).powi(2) + (1.0 - x[0]).powi(2)
        });
        assert!(minimum.converged && minimum.value < 1e-14, "{minimum:?}");
        assert!(minimum.at.iter().all(|x| (x - 1.0).abs() < 1e-7));
    }

    #[test]
    fn a_function_without_a_finite_value_does_not_converge() {
        assert!(!minimize(vec![1.0], STOP, |_, _| f64::NAN).converged);
        let unbounded = minimize(vec![0.0], STOP, |x, gradient| {
            gradient[0] = -1.0;
            -x[0]
        });
        assert!(!unbounded.converged);
    }

    #[test]
    fn a_gradient_that_is_not_finite_does_not_converge() {
        for slope in [f64::NAN, f64::INFINITY] {
            let start = minimize(vec![1.0, 2.0], STOP, |x, gradient| {
                gradient.copy_from_slice(&[slope, 0.0]);
                x[0] * x[0]
            });
            assert!(!start.converged, "{start:?}");
            // The gradient exists at the start only.
            let later = minimize(vec![1.0], STOP, |x, gradient| {
                gradient[0] = if x[0] == 1.0 { 2.0 } else { slope };
                x[0] * x[0]
            });
            assert!(!later.converged, "{later:?}");
        }
    }
}
