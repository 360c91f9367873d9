//! The stable assignment of users to the arms of an experiment.
use super::{Arms, Experiment, arms::arm_at};
use lodestone_core::ids::UserId;
use sha2::{Digest, Sha256};

/// Returns the number of the user's arm, or none if the user is outside of the experiment. It depends only on the salt,
/// the user and the shares, so that it is the same on every replica and after every restart. [`arm_at`] describes the
/// effect of changed shares.
pub fn assign(experiment: &Experiment, user: &UserId) -> Option<usize> {
    let shares: Vec<f64> = match &experiment.arms {
        Arms::Split(arms) => arms.iter().map(|arm| arm.share).collect(),
        Arms::Interleaved { share, .. } => vec![*share],
    };
    arm_at(user_fraction(&experiment.salt, user), &shares)
}

/// Hashes a user into [0, 1).
fn user_fraction(salt: &str, user: &UserId) -> f64 {
    let digest = Sha256::new().chain_update(salt).chain_update([0]).chain_update(user.as_str()).finalize();
    let first = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    (first >> 11) as f64 / (1u64 << 53) as f64
}
