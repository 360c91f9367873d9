//! Which arm of an experiment a user has: always the same one.
use super::{Arms, Experiment};
use crate::serving::arm_at;
use lodestone_core::ids::UserId;
use sha2::{Digest, Sha256};

/// The number of the user's arm, or none where the user is outside of the experiment. It follows from the salt and the
/// user alone, so that it holds on every replica and after every restart;
/// [`arm_at`] tells who moves when shares change.
pub fn assign(experiment: &Experiment, user: &UserId) -> Option<usize> {
    let shares: Vec<f64> = match &experiment.arms {
        Arms::Split(arms) => arms.iter().map(|arm| arm.share).collect(),
        Arms::Interleaved { share, .. } => vec![*share],
    };
    arm_at(place(&experiment.salt, user), &shares)
}

/// Where a user stands between 0 and 1.
fn place(salt: &str, user: &UserId) -> f64 {
    let digest = Sha256::new().chain_update(salt).chain_update([0]).chain_update(user.as_str()).finalize();
    let first = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    (first >> 11) as f64 / (1u64 << 53) as f64
}
