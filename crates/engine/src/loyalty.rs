//! Loyalty of users: scores from the state of now, and snapshots of the users at risk.
use crate::{
    engine::Engine,
    error::{EngineError, PageTokenError},
    token::PageToken,
};
use lodestone_core::{ids::UserId, units::UnixMillis};
use lodestone_loyalty::{LoyaltyModel, LoyaltyScore, RiskScore, Segment, TrainedLoyalty, UserSummary, day_of};
use lodestone_pipeline::request::Priority;
use lodestone_rollout::{LoadedGeneration, Routes};
use lodestone_state::LiveState;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Age at which a snapshot of the users at risk is made again.
const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(60);
/// Snapshots that are kept, for later pages.
const SNAPSHOTS_MAX: usize = 4;
/// Users that a worker scores before it looks for other work.
const SCORED_AT_ONCE: usize = 32;
/// Users of a snapshot: those with the highest value at risk.
pub const AT_RISK_MAX: usize = 100_000;

/// The scores of a user.
pub struct UserLoyalty {
    /// None if the user has no events.
    pub summary: Option<UserSummary>,
    /// The day of the scores.
    pub day: u16,
    pub score: LoyaltyScore,
    /// Name of the bundle.
    pub generation: Arc<str>,
}

/// A request of users at risk.
#[derive(Debug, Clone)]
pub struct AtRiskRequest {
    /// Empty: all.
    pub segments: Vec<Segment>,
    /// Empty: that of the model.
    pub currency: String,
    pub page_size: usize,
    /// Empty: the first page.
    pub page_token: String,
}

/// A page of users at risk.
pub struct AtRiskPage {
    pub users: Vec<(UserId, RiskScore)>,
    pub next_page_token: String,
    /// Users of the snapshot in the segments.
    pub total_size: usize,
    pub currency: String,
    pub horizon_days: u32,
    pub at: UnixMillis,
}

/// The users at risk at one moment, by descending value at risk.
pub(crate) struct AtRiskSnapshot {
    id: u64,
    generation: Arc<str>,
    currency: String,
    horizon_days: u32,
    at: UnixMillis,
    made: Instant,
    users: Vec<(UserId, RiskScore)>,
}

/// The latest snapshots.
#[derive(Default)]
pub(crate) struct AtRiskSnapshots {
    kept: Mutex<VecDeque<Arc<AtRiskSnapshot>>>,
    /// Held while one is made, so that it is made once. Pages of the kept ones do not wait for it.
    making: Arc<tokio::sync::Mutex<()>>,
}

impl AtRiskSnapshots {
    fn find(&self, is_wanted: impl Fn(&AtRiskSnapshot) -> bool) -> Option<Arc<AtRiskSnapshot>> {
        self.kept.lock().iter().find(|snapshot| is_wanted(snapshot)).cloned()
    }

    fn keep(&self, snapshot: Arc<AtRiskSnapshot>) {
        let mut kept = self.kept.lock();
        kept.truncate(SNAPSHOTS_MAX - 1);
        kept.push_front(snapshot);
    }
}

pub(crate) fn model_of(loaded: &LoadedGeneration) -> Result<&LoyaltyModel, EngineError> {
    match &*loaded.generation.loyalty {
        TrainedLoyalty::Model(model) => Ok(model),
        TrainedLoyalty::Missing { reason } => {
            Err(EngineError::LoyaltyMissing { generation: loaded.name().to_owned(), reason: reason.clone() })
        }
    }
}

fn scores(routes: &Routes, state: &LiveState, users: &[UserId]) -> Result<Vec<UserLoyalty>, EngineError> {
    let day = day_of(UnixMillis::now());
    let score = |user: &UserId| {
        let loaded = routes.of(user);
        let model = model_of(loaded)?;
        let summary = state.users.summary(user);
        let score = model.score(summary.as_ref(), day);
        Ok(UserLoyalty { summary, day, score, generation: Arc::from(loaded.name()) })
    };
    users.iter().map(score).collect()
}

impl AtRiskSnapshot {
    /// Scores all users. Reads one user at a time, so that writes do not wait.
    fn new(state: &LiveState, model: &LoyaltyModel, generation: Arc<str>, currency: String, at: UnixMillis) -> Self {
        let day = day_of(at);
        let mut users: Vec<(UserId, RiskScore)> = Vec::new();
        let order = |left: &(UserId, RiskScore), right: &(UserId, RiskScore)| {
            right.1.value_at_risk().total_cmp(&left.1.value_at_risk()).then_with(|| left.0.cmp(&right.0))
        };
        for user in state.users.ids() {
            let score = state.users.summary(&user).and_then(|summary| model.risk(&summary, day, &currency));
            users.extend(score.map(|score| (user, score)));
            if users.len() >= 2 * AT_RISK_MAX {
                users.select_nth_unstable_by(AT_RISK_MAX, order);
                users.truncate(AT_RISK_MAX);
            }
        }
        users.sort_unstable_by(order);
        users.truncate(AT_RISK_MAX);
        let horizon_days = model.horizons.last().map_or(0, |horizon| horizon.days);
        let id = Uuid::now_v7().as_u128() as u64;
        Self { id, generation, currency, horizon_days, at, made: Instant::now(), users }
    }

    /// Returns the page after the first `offset` users.
    fn page(&self, request: &AtRiskRequest, offset: usize, token: impl Fn(usize) -> String) -> AtRiskPage {
        let is_wanted = |score: &RiskScore| request.segments.is_empty() || request.segments.contains(&score.segment);
        let mut wanted = self.users.iter().enumerate().skip(offset).filter(|(_, (_, score))| is_wanted(score));
        let mut end = offset;
        let users = wanted
            .by_ref()
            .take(request.page_size)
            .map(|(index, user)| {
                end = index + 1;
                user.clone()
            })
            .collect();
        let has_more = wanted.next().is_some();
        AtRiskPage {
            users,
            next_page_token: if has_more { token(end) } else { String::new() },
            total_size: self.users.iter().filter(|(_, score)| is_wanted(score)).count(),
            currency: self.currency.clone(),
            horizon_days: self.horizon_days,
            at: self.at,
        }
    }
}

impl AtRiskRequest {
    /// Identifies the request without its page, in every process of this build.
    fn fingerprint(&self) -> u64 {
        let mut segments = self.segments.clone();
        segments.sort_unstable();
        segments.dedup();
        let digest = Sha256::digest(format!("{} {segments:?}", self.currency));
        u64::from_le_bytes(std::array::from_fn(|index| digest[index]))
    }
}

impl Engine {
    /// Returns the scores of signed-in users, each by the bundle that answers the user's requests.
    pub fn loyalty(&self, users: &[UserId]) -> Result<Vec<UserLoyalty>, EngineError> {
        scores(&self.generations.routes(), &self.generations.state, users)
    }

    /// The same by the workers, after interactive requests.
    pub async fn batch_loyalty(&self, users: &[UserId], deadline: Instant) -> Result<Vec<UserLoyalty>, EngineError> {
        let routes = self.generations.routes();
        let mut all = Vec::with_capacity(users.len());
        for part in users.chunks(SCORED_AT_ONCE) {
            let (routes, state, part) = (routes.clone(), self.generations.state.clone(), part.to_vec());
            let work = move |_: &mut usize| scores(&routes, &state, &part);
            all.extend(self.workers.run(Priority::Batch, deadline, work).await?);
        }
        Ok(all)
    }

    /// Lists users by the value at risk. A snapshot serves all pages of a list.
    pub async fn list_at_risk(&self, request: &AtRiskRequest, deadline: Instant) -> Result<AtRiskPage, EngineError> {
        let fingerprint = request.fingerprint();
        let page = |snapshot: &AtRiskSnapshot, offset: usize| {
            let mut slate = [0; 16];
            slate[..8].copy_from_slice(&snapshot.id.to_le_bytes());
            slate[8..].copy_from_slice(&fingerprint.to_le_bytes());
            snapshot
                .page(request, offset, |end| self.tokens.page(&PageToken { slate, offset: end as u32, after: None }))
        };
        if !request.page_token.is_empty() {
            let token = self.tokens.parse_page(&request.page_token);
            let token = token.ok_or(EngineError::PageToken(PageTokenError::Foreign))?;
            let (id, of_request) = token.slate.split_at(8);
            if of_request != fingerprint.to_le_bytes() {
                return Err(EngineError::PageToken(PageTokenError::OtherRequest));
            }
            let snapshot = self.at_risk.find(|snapshot| snapshot.id.to_le_bytes() == id);
            let snapshot = snapshot.ok_or(EngineError::PageToken(PageTokenError::Expired))?;
            return Ok(page(&snapshot, token.offset as usize));
        }
        Ok(page(&*self.at_risk_snapshot(&request.currency, deadline).await?, 0))
    }

    async fn at_risk_snapshot(&self, currency: &str, deadline: Instant) -> Result<Arc<AtRiskSnapshot>, EngineError> {
        let loaded = self.generations.current();
        let model = model_of(&loaded)?;
        let currency = if currency.is_empty() { model.currency.clone() } else { currency.to_owned() };
        let is_current = |snapshot: &AtRiskSnapshot| {
            snapshot.currency == currency
                && *snapshot.generation == *loaded.name()
                && snapshot.made.elapsed() < SNAPSHOT_AGE_MAX
        };
        if let Some(snapshot) = self.at_risk.find(is_current) {
            return Ok(snapshot);
        }
        let making = tokio::time::timeout_at(deadline.into(), self.at_risk.making.clone().lock_owned()).await;
        let making_lock = making.map_err(|_| EngineError::DeadlineExceeded)?;
        if let Some(snapshot) = self.at_risk.find(is_current) {
            return Ok(snapshot);
        }
        let (state, loaded, at_risk) = (self.generations.state.clone(), loaded.clone(), self.at_risk.clone());
        // Goes on if the caller's deadline passes, so that the next call finds it.
        let making = tokio::task::spawn_blocking(move || {
            let model = model_of(&loaded)?;
            let snapshot = AtRiskSnapshot::new(&state, model, Arc::from(loaded.name()), currency, UnixMillis::now());
            let snapshot = Arc::new(snapshot);
            at_risk.keep(snapshot.clone());
            drop(making_lock);
            Ok(snapshot)
        });
        match tokio::time::timeout_at(deadline.into(), making).await {
            Err(_) => Err(EngineError::DeadlineExceeded),
            Ok(made) => made.map_err(|error| EngineError::Internal(error.to_string()))?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_snapshots_are_found_while_another_one_is_made() {
        let snapshots = AtRiskSnapshots::default();
        let snapshot = |id: u64| AtRiskSnapshot {
            id,
            generation: Arc::from("a"),
            currency: String::new(),
            horizon_days: 0,
            at: UnixMillis(0),
            made: Instant::now(),
            users: Vec::new(),
        };
        (0..SNAPSHOTS_MAX as u64 + 2).for_each(|id| snapshots.keep(Arc::new(snapshot(id))));
        let _making = snapshots.making.clone().try_lock_owned().unwrap();
        let found = (0..SNAPSHOTS_MAX as u64 + 2).filter(|id| snapshots.find(|known| known.id == *id).is_some());
        assert_eq!(found.collect::<Vec<_>>(), [2, 3, 4, 5], "the latest ones");
    }
}
