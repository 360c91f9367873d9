//! Which arm of an experiment a person has: always the same one.
use super::{Arms, Experiment};
use crate::serving::arm_at;
use lodestone_core::ids::PersonId;
use sha2::{Digest, Sha256};

/// The number of the person's arm, or none where the person is outside of the experiment. It follows from the salt and the
/// person alone, so that it holds on every replica and after every restart;
/// [`arm_at`] tells who moves when shares change.
pub fn assign(experiment: &Experiment, person: &PersonId) -> Option<usize> {
    let shares: Vec<f64> = match &experiment.arms {
        Arms::Split(arms) => arms.iter().map(|arm| arm.share).collect(),
        Arms::Interleaved { share, .. } => vec![*share],
    };
    arm_at(place(&experiment.salt, person), &shares)
}

/// Where a person stands between 0 and 1.
fn place(salt: &str, person: &PersonId) -> f64 {
    let digest = Sha256::new().chain_update(salt).chain_update([0]).chain_update(person.as_str()).finalize();
    let first = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    (first >> 11) as f64 / (1u64 << 53) as f64
}
