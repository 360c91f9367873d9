//! Routing of users to generations.
use crate::{canary::CanaryEvaluation, loaded::LoadedGeneration, shadow::Shadow};
use lodestone_core::{ids::UserId, units::UnixMillis};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// The loaded generations by their role.
#[derive(Clone)]
pub struct Routes {
    pub current: Arc<LoadedGeneration>,
    /// The generation that answers a share of the users.
    pub canary: Option<Canary>,
    /// The generation that receives a copy of live requests; its answers are discarded.
    pub shadow: Option<Arc<Shadow>>,
    /// Earlier current generations, the latest first: for rollback, for later pages of their slates and for replays.
    pub previous: Vec<Arc<LoadedGeneration>>,
}

/// A canary generation and its share of users.
#[derive(Clone)]
pub struct Canary {
    pub loaded: Arc<LoadedGeneration>,
    /// Share of users, 0 to 1.
    pub share: f64,
    /// The comparison of its conversions with those of the current generation.
    pub evaluation: Arc<CanaryEvaluation>,
}

impl Canary {
    /// Starts a canary at `now`.
    pub fn new(loaded: Arc<LoadedGeneration>, share: f64, now: UnixMillis) -> Self {
        Self { loaded, share, evaluation: Arc::new(CanaryEvaluation::new(now)) }
    }

    /// Returns whether the canary answers this user. The decision is stable: a user of the canary remains one when the
    /// share grows.
    pub(crate) fn takes(&self, user: &UserId) -> bool {
        user_fraction(self.loaded.name(), user) < self.share
    }

    /// Records a conversion of a user on an answer.
    pub fn record_conversion(&self, user: &UserId, answer: [u8; 16]) {
        self.evaluation.record_conversion(user, answer, self.takes(user));
    }
}

/// Hashes a user into [0, 1). The hash includes the bundle, so that each canary starts with other users.
fn user_fraction(bundle: &str, user: &UserId) -> f64 {
    let mut hash = Sha256::new();
    hash.update(bundle);
    hash.update([0]);
    hash.update(user.as_str());
    let sum = hash.finalize();
    let first = u64::from_le_bytes([sum[0], sum[1], sum[2], sum[3], sum[4], sum[5], sum[6], sum[7]]);
    first as f64 / (u64::MAX as f64 + 1.0)
}

impl Routes {
    /// Returns the generation that answers a user.
    pub fn of(&self, user: &UserId) -> &Arc<LoadedGeneration> {
        match &self.canary {
            Some(canary) if canary.takes(user) => &canary.loaded,
            _ => &self.current,
        }
    }

    /// Returns the generations that answer users.
    pub(crate) fn answering(&self) -> impl Iterator<Item = &Arc<LoadedGeneration>> {
        std::iter::once(&self.current).chain(self.canary.iter().map(|canary| &canary.loaded))
    }

    /// Returns the generation whose catalogue is that of now for a slate of a generation: itself, if it answers users.
    /// Otherwise the current one, because catalogue changes reach the others late.
    pub fn up_to_date<'r>(&'r self, loaded: &'r Arc<LoadedGeneration>) -> &'r Arc<LoadedGeneration> {
        let answers = self.answering().any(|answering| answering.number == loaded.number);
        if answers { loaded } else { &self.current }
    }

    /// Returns all loaded generations.
    pub fn loaded(&self) -> impl Iterator<Item = &Arc<LoadedGeneration>> {
        self.answering().chain(self.shadow.iter().map(|shadow| &shadow.loaded)).chain(&self.previous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_users_hold_and_bundles_split_users_independently() {
        let user = |n: u32| UserId::signed_in(&format!("p{n}")).unwrap();
        let share = |bundle: &str, share: f64| (0..10_000).filter(|n| user_fraction(bundle, &user(*n)) < share).count();
        for expected in [0.0, 0.05, 0.5, 1.0] {
            let found = share("a", expected) as f64 / 10_000.0;
            assert!((found - expected).abs() < 0.015, "{expected}: {found}");
        }
        let both = (0..10_000).filter(|n| user_fraction("a", &user(*n)) < 0.1 && user_fraction("b", &user(*n)) < 0.1);
        assert!(both.count() < 200, "two independent shares of 0.1 overlap in 0.01");
        assert_eq!(user_fraction("a", &user(1)), user_fraction("a", &user(1)));
    }
}
