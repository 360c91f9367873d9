//! Decayed counts of the users of one item.
use super::super::EventKind;
use lodestone_core::units::UnixMillis;
use std::cmp::Ordering;

/// Half-lives of the counts in days. The first one is behind [`Counts::score`], the first two are behind trends; the
/// last counts do not decay.
const HALF_LIVES: [f64; BUYER_COUNTS] = [SLOW_HALF_LIFE, FAST_HALF_LIFE, 2.0, 20.0, f64::INFINITY];
const SLOW_HALF_LIFE: f64 = 60.0;
const FAST_HALF_LIFE: f64 = 7.0;
/// Counts of an item's users, with the first of the half-lives.
pub(super) const USER_COUNTS: usize = 2;
/// Counts of an item's buyers, one for each half-life.
pub(super) const BUYER_COUNTS: usize = 5;
/// Users per day that are added to both rates of a trend, so that a few users are not a trend.
const TREND_DAMPING: f64 = 1.0;
/// Buyers per day that are added to both rates of [`Counts::sales_trend`].
const SALES_DAMPING: f64 = 0.25;
/// The decayed number of buyers in the last days that [`Counts::sales_trend`] must exceed. One buyer alone, however
/// often, counts at most once.
const RECENT_BUYERS_MIN: f64 = 1.0;

/// What remains of a sum without its last contribution is at most this share of the contribution.
const ROUNDING: f64 = 1e-9;

const DAY_S: f64 = 86_400.0;

/// The strength of a user's interest. A user counts once per item, with the strongest of the decayed levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Level {
    View,
    Cart,
    Purchase,
}

impl Level {
    const WEIGHTS: [f64; 3] = [1.0, 2.0, 4.0];

    /// Returns the level of an event, or none if events of this kind do not count.
    pub(super) fn of(kind: EventKind) -> Option<Self> {
        match kind {
            EventKind::Purchase => Some(Self::Purchase),
            EventKind::AddToCart | EventKind::Favorite => Some(Self::Cart),
            EventKind::View | EventKind::Click | EventKind::Review => Some(Self::View),
            EventKind::Search
            | EventKind::Impression
            | EventKind::RemoveFromCart
            | EventKind::Unfavorite
            | EventKind::Refund
            | EventKind::CategoryView
            | EventKind::IncentiveShown
            | EventKind::IncentiveRedeemed => None,
        }
    }
}

/// A count with several decays, in the order of [`HALF_LIVES`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Decayed<const N: usize>(pub [f64; N]);

impl<const N: usize> Default for Decayed<N> {
    fn default() -> Self {
        Self([0.0; N])
    }
}

impl<const N: usize> Decayed<N> {
    /// Returns the count after a further time.
    fn after(self, days: f64) -> Self {
        Self(std::array::from_fn(|index| self.0[index] * decay(days, HALF_LIVES[index])))
    }

    fn max(self, other: Self) -> Self {
        Self(std::array::from_fn(|index| self.0[index].max(other.0[index])))
    }

    /// Replaces one contribution by another.
    fn replace(&mut self, before: Self, after: Self) {
        *self = Self(std::array::from_fn(|index| replaced(self.0[index], before.0[index], after.0[index])));
    }

    pub(super) fn slow(self) -> f64 {
        self.0[0]
    }

    fn fast(self) -> f64 {
        self.0[1]
    }

    /// Returns the ratio of the rate of the last days to that of the last months, both with `damping` per day.
    fn trend(self, damping: f64) -> f64 {
        // A steady rate per day converges to a count of that rate times half-life / ln 2.
        let per_day = |count: f64, half_life: f64| count * std::f64::consts::LN_2 / half_life;
        (per_day(self.fast(), FAST_HALF_LIFE) + damping) / (per_day(self.slow(), SLOW_HALF_LIFE) + damping)
    }
}

/// The counts of one item's users. Zero for an item without events.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// The time of the item's latest event in seconds since 1970, to which the counts refer; 0 without events.
    pub(super) at_s: u32,
    /// Users, by the weight of their strongest interest.
    pub(super) users: Decayed<USER_COUNTS>,
    pub(super) buyers: Decayed<BUYER_COUNTS>,
    /// The slow count of all users but the one with the strongest interest.
    pub(super) others: Others,
}

/// A slow count with a time of its own, so that one new user does not round away many old ones.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Others {
    pub at_s: u32,
    pub slow: f64,
}

impl Others {
    fn at(self, at_s: u32) -> f64 {
        self.slow * decay(f64::from(at_s - self.at_s) / DAY_S, SLOW_HALF_LIFE)
    }

    fn rank(self) -> f64 {
        rank(self.slow, self.at_s)
    }

    fn max(self, other: Self) -> Self {
        if self.rank() >= other.rank() { self } else { other }
    }

    /// Replaces the contribution of one user by that of another or the same one.
    fn replace(&mut self, before: &UserTimes, after: &UserTimes) {
        let at_s = self.at_s.max(before.latest()).max(after.latest());
        let weight = after.weight(at_s);
        *self = Self { at_s, slow: replaced(self.at(at_s), before.weight(at_s), weight) };
    }
}

/// The order of items by popularity, the same at any later time.
///
/// It is the order of the score without the user with the strongest interest, so that no single user moves an item up;
/// then that of the score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rank {
    others: f64,
    all: f64,
}

impl Rank {
    /// The rank of items without events.
    pub const NONE: Self = Self { others: f64::NEG_INFINITY, all: f64::NEG_INFINITY };

    #[cfg(test)]
    pub(super) fn others(&self) -> f64 {
        self.others
    }

    /// The numbers that determine the order, the first one first; the greater is the more popular.
    pub fn parts(&self) -> [f64; 2] {
        [self.others, self.all]
    }

    /// Compares so that the most popular item comes first.
    pub fn cmp_popular_first(&self, other: &Self) -> Ordering {
        other.others.total_cmp(&self.others).then(other.all.total_cmp(&self.all))
    }
}

/// Returns the logarithm of a slow count with respect to 1970, which does not underflow for old counts.
fn rank(slow: f64, at_s: u32) -> f64 {
    if slow == 0.0 {
        return f64::NEG_INFINITY;
    }
    slow.log2() + f64::from(at_s) / DAY_S / SLOW_HALF_LIFE
}

/// [`Counts`] at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CountsAt {
    /// [`Counts::score`].
    pub score: f32,
    /// The ratio of the users per day of the last days to those of the last months: above 1 is rising, below 1
    /// falling, 1 steady or unknown. Damping keeps the ratio near 1 for items with few users.
    pub trend: f32,
    /// Decayed numbers of buyers with half-lives of 60, 7, 2 and 20 days, and without decay.
    pub buyers: [f32; BUYER_COUNTS],
    /// Days since the latest event; none without events.
    pub days_since_event: Option<f32>,
}

impl Counts {
    pub fn is_zero(&self) -> bool {
        self.users.slow() == 0.0
    }

    /// Returns the decayed number of users, each with the weight of the strongest interest: 4 for a purchase, 2 for a
    /// cart or a favourite, 1 for a view. The half-life is 60 days.
    pub fn score(&self, now: UnixMillis) -> f32 {
        (self.users.slow() * decay(self.days_until(now), SLOW_HALF_LIFE)) as f32
    }

    pub fn at_time(&self, now: UnixMillis) -> CountsAt {
        if self.is_zero() {
            return CountsAt { score: 0.0, trend: 1.0, buyers: [0.0; BUYER_COUNTS], days_since_event: None };
        }
        let days = self.days_until(now).max(0.0);
        let users = self.users.after(days);
        CountsAt {
            score: users.slow() as f32,
            trend: users.trend(TREND_DAMPING) as f32,
            buyers: self.buyers.after(days).0.map(|count| count as f32),
            days_since_event: Some(days as f32),
        }
    }

    /// Returns how much more the item sells than usual: the ratio of the buyers per day of the last days to those of
    /// the last months. None if it sells no more than usual, or if it was not bought by several users recently.
    pub fn sales_trend(&self, now: UnixMillis) -> Option<f32> {
        if self.buyers.fast() <= RECENT_BUYERS_MIN {
            return None;
        }
        let buyers = self.buyers.after(self.days_until(now));
        let trend = buyers.trend(SALES_DAMPING);
        (buyers.fast() > RECENT_BUYERS_MIN && trend > 1.0).then_some(trend as f32)
    }

    pub fn rank(&self) -> Rank {
        Rank { others: self.others.rank(), all: rank(self.users.slow(), self.at_s) }
    }

    /// Returns the greater of both counts, which include the same events or parts of them.
    pub fn max(self, other: Self) -> Self {
        if self.at_s == 0 || other.at_s == 0 {
            return if self.at_s == 0 { other } else { self };
        }
        let at_s = self.at_s.max(other.at_s);
        let (a, b) = (self.at(at_s), other.at(at_s));
        let others = a.others.max(b.others);
        Self { at_s, users: a.users.max(b.users), buyers: a.buyers.max(b.buyers), others }
    }

    /// Replaces the contribution of one user. `strongest` is the other user with the strongest interest.
    pub(super) fn replace(&mut self, before: &UserTimes, after: &UserTimes, strongest: Option<&UserTimes>) {
        *self = self.at(self.at_s.max(after.latest()));
        let [old, new] = [before, after].map(|times| times.contribution(self.at_s));
        self.users.replace(old.users, new.users);
        self.buyers.replace(old.buyers, new.buyers);
        if let Some(strongest) = strongest {
            let is_strongest = |times: &UserTimes| times.strength() > strongest.strength();
            match (is_strongest(before), is_strongest(after)) {
                (false, false) => self.others.replace(before, after),
                (false, true) => self.others.replace(before, strongest),
                (true, false) => self.others.replace(strongest, after),
                (true, true) => {}
            }
        }
    }

    /// Returns the counts with respect to a time that is not before `at_s`.
    fn at(self, at_s: u32) -> Self {
        let days = f64::from(at_s - self.at_s) / DAY_S;
        Self { at_s, users: self.users.after(days), buyers: self.buyers.after(days), ..self }
    }

    fn days_until(&self, now: UnixMillis) -> f64 {
        (now.0 as f64 / 1000.0 - f64::from(self.at_s)) / DAY_S
    }

    /// Returns whether all counts are finite and at least 0.
    pub(super) fn is_valid(&self) -> bool {
        let counts = self.users.0.into_iter().chain(self.buyers.0).chain([self.others.slow]);
        counts.into_iter().all(|count| count.is_finite() && count >= 0.0)
    }
}

/// The latest events of one user on one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UserTimes {
    /// A checksum of the user's id.
    pub user: u32,
    /// By level: the time of the latest event in seconds since 1970; 0 for none.
    pub latest_s: [u32; 3],
}

impl UserTimes {
    pub(super) fn new(user: u32) -> Self {
        Self { user, latest_s: [0; 3] }
    }

    /// Returns the user's contribution to [`Counts`] at a time that is not before the user's events.
    fn contribution(&self, at_s: u32) -> Counts {
        let mut counts = Counts { at_s, ..Counts::default() };
        for (latest_s, weight) in self.latest_s.into_iter().zip(Level::WEIGHTS).filter(|(latest_s, _)| *latest_s > 0) {
            let days = f64::from(at_s - latest_s) / DAY_S;
            counts.users = counts.users.max(Decayed([weight; USER_COUNTS]).after(days));
        }
        let bought_s = self.latest_s[Level::Purchase as usize];
        if bought_s > 0 {
            counts.buyers = Decayed([1.0; BUYER_COUNTS]).after(f64::from(at_s - bought_s) / DAY_S);
        }
        counts
    }

    /// Returns the times after a further event.
    pub(super) fn with(mut self, level: Level, at_s: u32) -> Self {
        let latest_s = &mut self.latest_s[level as usize];
        *latest_s = at_s.max(*latest_s);
        self
    }

    /// Returns the times without the latest purchase, if it was at this time.
    pub(super) fn without_purchase(mut self, at_s: u32) -> Self {
        let latest_s = &mut self.latest_s[Level::Purchase as usize];
        if *latest_s == at_s {
            *latest_s = 0;
        }
        self
    }

    /// Returns a number that orders users by their weight at any later time; negative infinity without events.
    pub(super) fn strength(&self) -> f64 {
        let levels = self.latest_s.into_iter().zip(Level::WEIGHTS).filter(|(latest_s, _)| *latest_s > 0);
        levels.map(|(latest_s, weight)| rank(weight, latest_s)).fold(f64::NEG_INFINITY, f64::max)
    }

    pub(super) fn latest(&self) -> u32 {
        self.latest_s.into_iter().max().unwrap_or(0)
    }

    /// Returns the weight of the strongest interest with the slow decay, at a time that is not before the events.
    fn weight(&self, at_s: u32) -> f64 {
        self.contribution(at_s).users.slow()
    }
}

/// Returns a sum in which `after` replaces `before`. Remainders of rounding are 0.
fn replaced(sum: f64, before: f64, after: f64) -> f64 {
    let rest = sum - before;
    after + if rest > before * ROUNDING { rest } else { 0.0 }
}

/// Returns the decay factor after `days`; 1 for negative days.
fn decay(days: f64, half_life: f64) -> f64 {
    (-days.max(0.0) / half_life).exp2()
}
