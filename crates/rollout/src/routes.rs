//! Which generation answers whom.
use crate::{canary::CanaryEvaluation, loaded::LoadedGeneration, shadow::Shadow};
use lodestone_core::{ids::UserId, units::UnixMillis};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Which generation answers whom.
#[derive(Clone)]
pub struct Routes {
    pub current: Arc<LoadedGeneration>,
    /// Answers a share of the users.
    pub canary: Option<Canary>,
    /// Is asked what others answer.
    pub shadow: Option<Arc<Shadow>>,
    /// ServedAnswer before, the latest first; for a way back, for later pages and for replays.
    pub kept: Vec<Arc<LoadedGeneration>>,
}

#[derive(Clone)]
pub struct Canary {
    pub loaded: Arc<LoadedGeneration>,
    /// Of the users, within 0 and 1.
    pub share: f64,
    /// What shoppers choose from its answers.
    pub evaluation: Arc<CanaryEvaluation>,
}

impl Canary {
    /// A canary that begins now.
    pub fn new(loaded: Arc<LoadedGeneration>, share: f64, now: UnixMillis) -> Self {
        Self { loaded, share, evaluation: Arc::new(CanaryEvaluation::new(now)) }
    }

    /// Whether a user is answered by it: the same user always is, and stays so when the share grows.
    pub(crate) fn takes(&self, user: &UserId) -> bool {
        user_share(self.loaded.name(), user) < self.share
    }

    /// Notes that a user chose something from an answer.
    pub fn record_conversion(&self, user: &UserId, answer: [u8; 16]) {
        self.evaluation.record_conversion(user, answer, self.takes(user));
    }
}

/// A user's place within 0 and 1 that depends on the bundle, so that not always the same users are the first.
fn user_share(bundle: &str, user: &UserId) -> f64 {
    let mut hash = Sha256::new();
    hash.update(bundle);
    hash.update([0]);
    hash.update(user.as_str());
    let sum = hash.finalize();
    let first = u64::from_le_bytes([sum[0], sum[1], sum[2], sum[3], sum[4], sum[5], sum[6], sum[7]]);
    first as f64 / (u64::MAX as f64 + 1.0)
}

impl Routes {
    /// Who answers a user.
    pub fn of(&self, user: &UserId) -> &Arc<LoadedGeneration> {
        match &self.canary {
            Some(canary) if canary.takes(user) => &canary.loaded,
            _ => &self.current,
        }
    }

    /// Those that answer somebody.
    pub(crate) fn answering(&self) -> impl Iterator<Item = &Arc<LoadedGeneration>> {
        std::iter::once(&self.current).chain(self.canary.iter().map(|canary| &canary.loaded))
    }

    /// Those that are loaded.
    pub fn loaded(&self) -> impl Iterator<Item = &Arc<LoadedGeneration>> {
        self.answering().chain(self.shadow.iter().map(|shadow| &shadow.loaded)).chain(&self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_shared_out_evenly_and_each_bundle_has_others_first() {
        let user = |n: u32| UserId::signed_in(&format!("p{n}")).unwrap();
        let share = |bundle: &str, share: f64| (0..10_000).filter(|n| user_share(bundle, &user(*n)) < share).count();
        for asked in [0.0, 0.05, 0.5, 1.0] {
            let found = share("a", asked) as f64 / 10_000.0;
            assert!((found - asked).abs() < 0.015, "{asked}: {found}");
        }
        let both = (0..10_000).filter(|n| user_share("a", &user(*n)) < 0.1 && user_share("b", &user(*n)) < 0.1);
        assert!(both.count() < 200, "a tenth of a tenth");
        assert_eq!(user_share("a", &user(1)), user_share("a", &user(1)));
    }
}
