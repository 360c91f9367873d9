//! The lifetime summary of one user: a fold of the user's events in a fixed number of bytes.
//!
//! Training folds the events of files with the same code as the server folds its log, so that a model is served the
//! inputs that it was trained on. A day is a UTC day, counted from 1970-01-01.
use lodestone_core::units::UnixMillis;
use lodestone_events::{Attribution, Event, EventKind};

/// Half-lives of the decayed counts and values, in days.
pub const HALF_LIVES_DAYS: [f64; 3] = [14.0, 60.0, 240.0];
/// Number of the latest purchase days that a summary lists.
pub const RECENT_DAYS: usize = 16;
/// Number of currencies whose values a summary sums; events of others are only counted.
pub const CURRENCIES: usize = 3;
/// Days before the last visit for which a summary knows whether the user visited.
pub const VISIT_DAYS: u32 = u128::BITS;
/// Time without an event after which the next one begins a session, in seconds.
const SESSION_GAP_S: u32 = 30 * 60;
/// Number of the latest session ids that are recognised when their events mix.
const SESSIONS: usize = 4;
/// Latest intervals between purchase days that describe the recent cadence.
const RECENT_INTERVALS: usize = 3;

/// What a user spent in one currency.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spend {
    /// ISO 4217 code; zeros: the events named none.
    pub currency: [u8; 3],
    is_used: bool,
    /// Number of PURCHASE events with a price.
    pub purchases: u32,
    /// Sum of price × quantity of purchased items, in micros.
    pub bought_micros: i64,
    /// The same of refunded items.
    pub refunded_micros: i64,
    /// The value of purchases in units, decayed to the last purchase day with [`HALF_LIVES_DAYS`].
    decayed: [f64; 3],
}

impl Spend {
    /// Returns the code; empty if the events named none.
    pub fn currency(&self) -> &str {
        std::str::from_utf8(&self.currency).unwrap_or_default().trim_end_matches('\0')
    }

    /// Returns what was bought and not refunded, in units of the currency, at least 0.
    pub fn net(&self) -> f64 {
        self.bought_micros.saturating_sub(self.refunded_micros).max(0) as f64 / 1e6
    }
}

/// The lifetime of one user as counts, days and values. A fold of the user's events in the order of their arrival.
///
/// Late events are placed by their time. Purchase days are exact as long as an event is later than the earliest of the
/// [`RECENT_DAYS`] latest purchase days; an older late purchase adds its value, and a purchase day only if it is before
/// the first one. Visit days are exact up to [`VISIT_DAYS`] days before the last visit; older late visits are not
/// counted as days.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UserSummary {
    /// Number of events by type, in the order of [`EventKind::ALL`].
    counts: [u32; EventKind::ALL.len()],
    /// Times of the first and the last event of any type, in seconds.
    first_s: u32,
    last_s: u32,
    /// Time of the last event that is a visit, in seconds.
    last_visit_s: u32,
    /// Times of the first and the last purchase, in seconds; 0 without one.
    first_purchase_s: u32,
    last_purchase_s: u32,
    /// Number of different days with a purchase.
    purchase_days: u32,
    /// The latest purchase days, ascending; `min(purchase_days, RECENT_DAYS)` of them.
    recent: [u16; RECENT_DAYS],
    first_purchase_day: u16,
    first_visit_day: u16,
    last_visit_day: u16,
    /// Number of different days with a visit.
    visit_days: u32,
    /// Bit i: a visit on the day i days before the last.
    visits: u128,
    /// Sum of the squared intervals between consecutive purchase days, in days².
    interval_squares: u64,
    /// Number of purchase days, decayed to the last one with [`HALF_LIVES_DAYS`].
    decayed: [f64; 3],
    spend: [Spend; CURRENCIES],
    /// Purchases and refunds in further currencies.
    other_currency_events: u32,
    sessions: u32,
    session_hashes: [u32; SESSIONS],
    /// Purchases with a coupon.
    coupons: u32,
    /// Clicks, views and purchases that followed from an answer.
    attributed_clicks: u32,
    attributed_purchases: u32,
    /// Sum of the stars of reviews.
    stars: u32,
    /// Number of items of purchases: an item counts once per PURCHASE event, whatever its quantity.
    purchased_items: u32,
    /// Sessions before the present one that ended with items in the cart.
    abandoned_carts: u32,
    /// Additions to the cart in the present session, less removals. Sums and a flag, because the order in which the events
    /// of a session arrive must not matter.
    cart_items: i32,
    /// Whether the present session has a purchase.
    has_purchased: bool,
}

const _: () = assert!(size_of::<UserSummary>() <= 400);

impl Default for UserSummary {
    fn default() -> Self {
        Self {
            counts: [0; EventKind::ALL.len()],
            first_s: 0,
            last_s: 0,
            last_visit_s: 0,
            first_purchase_s: 0,
            last_purchase_s: 0,
            purchase_days: 0,
            recent: [0; RECENT_DAYS],
            first_purchase_day: 0,
            first_visit_day: 0,
            last_visit_day: 0,
            visit_days: 0,
            visits: 0,
            interval_squares: 0,
            decayed: [0.0; 3],
            spend: [Spend::default(); CURRENCIES],
            other_currency_events: 0,
            sessions: 0,
            session_hashes: [0; SESSIONS],
            coupons: 0,
            attributed_clicks: 0,
            attributed_purchases: 0,
            stars: 0,
            purchased_items: 0,
            abandoned_carts: 0,
            cart_items: 0,
            has_purchased: false,
        }
    }
}

/// Returns the UTC day of a time, from 0 to 65,535.
pub fn day_of(at: UnixMillis) -> u16 {
    (at.seconds_u32() / 86_400) as u16
}

pub(crate) fn is_visit(kind: EventKind) -> bool {
    kind.is_visit()
}

/// Returns the factors by which decayed values lose weight in some days.
fn decay(days: u16) -> [f64; 3] {
    HALF_LIVES_DAYS.map(|half_life| (-f64::from(days) / half_life).exp2())
}

fn squared(days: u16) -> u64 {
    u64::from(days) * u64::from(days)
}

/// FNV-1a of a session id; 0 is reserved for "none".
fn session_hash(session: &str) -> u32 {
    let hash = session.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.max(1)
}

impl UserSummary {
    /// Folds an event of the user.
    pub fn add(&mut self, event: &Event) {
        let at_s = event.at.seconds_u32();
        let is_first = self.event_count() == 0;
        let count = &mut self.counts[event.kind as usize - 1];
        *count = count.saturating_add(1);
        self.add_session(event, at_s);
        self.first_s = if is_first { at_s } else { self.first_s.min(at_s) };
        self.last_s = self.last_s.max(at_s);
        if is_visit(event.kind) {
            self.add_visit_day(day_of(event.at));
        }
        self.stars = self.stars.saturating_add(event.stars.into());
        let is_attributed = matches!(event.attribution, Attribution::Answer(_));
        match event.kind {
            EventKind::Purchase => {
                self.add_purchase(event, at_s);
                self.has_purchased = true;
                self.purchased_items = self.purchased_items.saturating_add(event.lines.len() as u32);
                self.coupons = self.coupons.saturating_add(u32::from(!event.coupon.is_empty()));
                self.attributed_purchases = self.attributed_purchases.saturating_add(u32::from(is_attributed));
            }
            EventKind::Refund => self.add_value(event),
            EventKind::AddToCart => self.cart_items = self.cart_items.saturating_add(1),
            EventKind::RemoveFromCart => self.cart_items = self.cart_items.saturating_sub(1),
            EventKind::Click | EventKind::View => {
                self.attributed_clicks = self.attributed_clicks.saturating_add(u32::from(is_attributed));
            }
            _ => {}
        }
    }

    /// Counts a session: an id that is none of the latest ones, or without an id an event after a pause. A late event
    /// without an id belongs to a session before.
    fn add_session(&mut self, event: &Event, at_s: u32) {
        if !is_visit(event.kind) {
            return;
        }
        let begins = if event.session.is_empty() {
            self.sessions == 0 || at_s.saturating_sub(self.last_visit_s) > SESSION_GAP_S
        } else {
            let hash = session_hash(&event.session);
            let begins = !self.session_hashes.contains(&hash);
            if begins {
                self.session_hashes.rotate_right(1);
                self.session_hashes[0] = hash;
            }
            begins
        };
        self.sessions = self.sessions.saturating_add(u32::from(begins));
        if begins {
            let (items, has_purchased) =
                (std::mem::take(&mut self.cart_items), std::mem::take(&mut self.has_purchased));
            let is_abandoned = items > 0 && !has_purchased;
            self.abandoned_carts = self.abandoned_carts.saturating_add(u32::from(is_abandoned));
        }
        self.last_visit_s = self.last_visit_s.max(at_s);
    }

    fn add_visit_day(&mut self, day: u16) {
        if self.visit_days == 0 {
            (self.first_visit_day, self.last_visit_day, self.visits, self.visit_days) = (day, day, 1, 1);
            return;
        }
        self.first_visit_day = self.first_visit_day.min(day);
        if day > self.last_visit_day {
            let days = u32::from(day - self.last_visit_day);
            self.visits = self.visits.checked_shl(days).unwrap_or(0) | 1;
            self.last_visit_day = day;
            self.visit_days = self.visit_days.saturating_add(1);
        } else if let Some(bit) = 1u128.checked_shl(u32::from(self.last_visit_day - day)) {
            self.visit_days = self.visit_days.saturating_add(u32::from(self.visits & bit == 0));
            self.visits |= bit;
        }
    }

    fn add_purchase(&mut self, event: &Event, at_s: u32) {
        let is_first = self.counts[EventKind::Purchase as usize - 1] == 1;
        self.first_purchase_s = if is_first { at_s } else { self.first_purchase_s.min(at_s) };
        self.last_purchase_s = self.last_purchase_s.max(at_s);
        self.add_purchase_day(day_of(event.at));
        self.add_value(event);
    }

    fn add_purchase_day(&mut self, day: u16) {
        if self.purchase_days == 0 {
            (self.first_purchase_day, self.recent[0], self.purchase_days) = (day, day, 1);
            self.decayed = [1.0; 3];
            return;
        }
        let length = self.recent_purchase_days().len();
        let (recent, are_older_dropped) = (&self.recent[..length], self.purchase_days as usize > length);
        let (oldest, last) = (recent[0], recent[length - 1]);
        let Err(index) = recent.binary_search(&day) else { return };
        if index == 0 && are_older_dropped {
            // Whether a day between the first and the oldest of the list was counted is not known.
            if day >= self.first_purchase_day {
                return;
            }
            self.interval_squares += squared(self.first_purchase_day - day);
        } else {
            let before = index.checked_sub(1).map(|before| recent[before]);
            let after = recent.get(index).copied();
            self.interval_squares += before.map_or(0, |before| squared(day - before));
            self.interval_squares += after.map_or(0, |after| squared(after - day));
            self.interval_squares -= before.zip(after).map_or(0, |(before, after)| squared(after - before));
        }
        self.first_purchase_day = self.first_purchase_day.min(day);
        self.purchase_days = self.purchase_days.saturating_add(1);
        if day > last {
            let factors = decay(day - last);
            self.decayed.iter_mut().zip(factors).for_each(|(sum, factor)| *sum = *sum * factor + 1.0);
            let spend = self.spend.iter_mut().flat_map(|spend| spend.decayed.iter_mut().zip(factors));
            spend.for_each(|(sum, factor)| *sum *= factor);
        } else {
            self.decayed.iter_mut().zip(decay(last - day)).for_each(|(sum, factor)| *sum += factor);
        }
        if length < RECENT_DAYS {
            self.recent.copy_within(index..length, index + 1);
            self.recent[index] = day;
        } else if day > oldest {
            self.recent.copy_within(1..index, 0);
            self.recent[index - 1] = day;
        }
    }

    /// Adds the value of a purchase or a refund to its currency.
    fn add_value(&mut self, event: &Event) {
        let priced = event.lines.iter().filter_map(|line| {
            let micros = i128::from(line.price?.micros()) * i128::from(line.quantity.thousandths()) / 1000;
            Some(i64::try_from(micros).unwrap_or(i64::MAX))
        });
        let (mut micros, mut is_priced) = (0i64, false);
        priced.for_each(|of_line| (micros, is_priced) = (micros.saturating_add(of_line), true));
        if !is_priced {
            return;
        }
        let mut currency = [0; 3];
        currency.iter_mut().zip(event.currency.bytes()).for_each(|(to, byte)| *to = byte);
        let last = self.last_purchase_day();
        let of = self.spend.iter_mut().find(|spend| !spend.is_used || spend.currency == currency);
        let Some(spend) = of else {
            self.other_currency_events = self.other_currency_events.saturating_add(1);
            return;
        };
        (spend.is_used, spend.currency) = (true, currency);
        if event.kind == EventKind::Refund {
            spend.refunded_micros = spend.refunded_micros.saturating_add(micros);
            return;
        }
        spend.purchases = spend.purchases.saturating_add(1);
        spend.bought_micros = spend.bought_micros.saturating_add(micros);
        let factors = decay(last.unwrap_or_default().saturating_sub(day_of(event.at)));
        let value = micros as f64 / 1e6;
        spend.decayed.iter_mut().zip(factors).for_each(|(sum, factor)| *sum += value * factor);
    }

    /// Returns the summary as of the end of an earlier `day`, as far as it determines that: purchase days and visit
    /// days are those of that day; counts of other events, sessions and values stay as they are. Returns `None` if more
    /// than [`RECENT_DAYS`] purchase days or [`VISIT_DAYS`] visit days followed, or if the user had no event yet.
    pub fn as_of(&self, day: u16) -> Option<Self> {
        let mut earlier = *self;
        if self.first_s / 86_400 > u32::from(day) {
            return None;
        }
        while let Some(last) = earlier.last_purchase_day().filter(|last| *last > day) {
            earlier.remove_last_purchase_day(last)?;
        }
        if earlier.visit_days > 0 && earlier.last_visit_day > day {
            let after = u32::from(earlier.last_visit_day - day);
            if after >= VISIT_DAYS {
                return None;
            }
            let later = (earlier.visits & ((1 << after) - 1)).count_ones();
            let visits = earlier.visits >> after;
            earlier.visit_days -= later.min(earlier.visit_days);
            // Without a known visit the last one was before the known days.
            let gap = if visits == 0 { VISIT_DAYS - after } else { visits.trailing_zeros() };
            earlier.visits = visits >> gap.min(VISIT_DAYS - 1);
            earlier.last_visit_day = day.saturating_sub(gap as u16).max(self.first_visit_day);
            if earlier.visit_days == 0 {
                (earlier.visits, earlier.last_visit_day, earlier.first_visit_day) = (0, 0, 0);
            }
        }
        Some(earlier)
    }

    fn remove_last_purchase_day(&mut self, last: u16) -> Option<()> {
        let length = self.recent_purchase_days().len();
        if self.purchase_days == 1 {
            (self.purchase_days, self.first_purchase_day, self.interval_squares) = (0, 0, 0);
            self.decayed = [0.0; 3];
        } else {
            let before = *self.recent[..length].get(length.checked_sub(2)?)?;
            self.interval_squares -= squared(last - before).min(self.interval_squares);
            let factors = decay(last - before);
            self.decayed.iter_mut().zip(factors).for_each(|(sum, factor)| *sum = ((*sum - 1.0) / factor).max(1.0));
            self.purchase_days -= 1;
        }
        // The list stays as short as it is now, also if `purchase_days` exceeds its length.
        self.recent[length - 1] = 0;
        Some(())
    }

    /// The latest purchase days, ascending.
    pub fn recent_purchase_days(&self) -> &[u16] {
        let length = (self.purchase_days as usize).min(RECENT_DAYS);
        // After `as_of` the list may be shorter; day 0 is not a day of any shop.
        let filled =
            self.recent[..length].iter().rposition(|day| *day != 0).map_or(usize::from(length > 0), |last| last + 1);
        &self.recent[..filled]
    }

    /// Number of events of any type.
    pub fn event_count(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// Number of events of a type.
    pub fn count(&self, kind: EventKind) -> u32 {
        self.counts[kind as usize - 1]
    }

    /// Time of the first event, in seconds since 1970.
    pub fn first_s(&self) -> u32 {
        self.first_s
    }

    /// Time of the latest event, in seconds since 1970.
    pub fn last_s(&self) -> u32 {
        self.last_s
    }

    /// Times of the first and the last purchase, in seconds since 1970. None without a purchase.
    pub fn purchase_times_s(&self) -> Option<(u32, u32)> {
        (self.count(EventKind::Purchase) > 0).then_some((self.first_purchase_s, self.last_purchase_s))
    }

    /// Number of different days with a purchase.
    pub fn purchase_days(&self) -> u32 {
        self.purchase_days
    }

    pub fn first_purchase_day(&self) -> Option<u16> {
        (self.purchase_days > 0).then_some(self.first_purchase_day)
    }

    pub fn last_purchase_day(&self) -> Option<u16> {
        self.recent_purchase_days().last().copied()
    }

    /// Number of different days with a visit.
    pub fn visit_days(&self) -> u32 {
        self.visit_days
    }

    pub fn first_visit_day(&self) -> Option<u16> {
        (self.visit_days > 0).then_some(self.first_visit_day)
    }

    pub fn last_visit_day(&self) -> Option<u16> {
        (self.visit_days > 0).then_some(self.last_visit_day)
    }

    /// Number of days with a visit among the `days` days that end with `day`, which is not before the last visit.
    pub fn visit_days_within(&self, day: u16, days: u32) -> u32 {
        let gap = u32::from(day.saturating_sub(self.last_visit_day));
        let known = days.saturating_sub(gap).min(VISIT_DAYS);
        let mask = if known >= VISIT_DAYS { u128::MAX } else { (1 << known) - 1 };
        if self.visit_days == 0 { 0 } else { (self.visits & mask).count_ones() }
    }

    /// Number of purchase days, decayed to the end of `day` with [`HALF_LIVES_DAYS`].
    pub fn decayed_purchases(&self, day: u16) -> [f64; 3] {
        let factors = decay(day.saturating_sub(self.last_purchase_day().unwrap_or(day)));
        std::array::from_fn(|index| self.decayed[index] * factors[index])
    }

    /// Mean interval between purchase days, in days. None with fewer than two purchase days.
    pub fn interval_mean(&self) -> Option<f64> {
        let intervals = self.purchase_days.checked_sub(1).filter(|intervals| *intervals > 0)?;
        Some(f64::from(self.last_purchase_day()?.saturating_sub(self.first_purchase_day)) / f64::from(intervals))
    }

    /// Standard deviation of the intervals between purchase days divided by their mean. None with fewer than two
    /// intervals.
    pub fn interval_variation(&self) -> Option<f64> {
        let intervals = self.purchase_days.checked_sub(1).filter(|intervals| *intervals >= 2)?;
        let mean = self.interval_mean()?;
        let variance = self.interval_squares as f64 / f64::from(intervals) - mean * mean;
        Some(variance.max(0.0).sqrt() / mean)
    }

    /// Mean of the latest three intervals between purchase days divided by that of all: above 1 if the user has slowed
    /// down. None with fewer than four intervals.
    pub fn cadence_drift(&self) -> Option<f64> {
        let recent = self.recent_purchase_days();
        let begin = recent.len().checked_sub(RECENT_INTERVALS + 1)?;
        if self.purchase_days as usize <= RECENT_INTERVALS + 1 {
            return None;
        }
        let mean = f64::from(*recent.last()? - recent[begin]) / RECENT_INTERVALS as f64;
        Some(mean / self.interval_mean()?)
    }

    /// What the user spent, by currency.
    pub fn spend(&self) -> impl Iterator<Item = &Spend> {
        self.spend.iter().filter(|spend| spend.is_used)
    }

    /// What the user spent in the currency with the most purchases.
    pub fn main_spend(&self) -> Option<&Spend> {
        // The first of equal ones, which `max_by_key` would not return.
        self.spend()
            .filter(|spend| spend.purchases > 0)
            .reduce(|best, of| if of.purchases > best.purchases { of } else { best })
    }

    /// Returns whether all purchases with prices are in other currencies than `currency`, with whose amounts their values
    /// cannot be compared. Purchases that name no currency are in the shop's own.
    pub fn spends_only_in_others(&self, currency: &str) -> bool {
        let mut currencies = self.spend().filter(|of| of.purchases > 0).map(|of| of.currency()).peekable();
        currencies.peek().is_some() && currencies.all(|of| !of.is_empty() && of != currency)
    }

    /// The value of purchases in a currency, in units, decayed to the end of `day` with [`HALF_LIVES_DAYS`].
    pub fn decayed_value(&self, spend: &Spend, day: u16) -> [f64; 3] {
        let factors = decay(day.saturating_sub(self.last_purchase_day().unwrap_or(day)));
        std::array::from_fn(|index| spend.decayed[index] * factors[index])
    }

    /// Number of purchases and refunds in currencies beyond the first [`CURRENCIES`].
    pub fn other_currency_events(&self) -> u32 {
        self.other_currency_events
    }

    pub fn sessions(&self) -> u32 {
        self.sessions
    }

    /// Number of purchases with a coupon.
    pub fn coupons(&self) -> u32 {
        self.coupons
    }

    /// Number of items of purchases: an item counts once per PURCHASE event, whatever its quantity.
    pub fn purchased_items(&self) -> u32 {
        self.purchased_items
    }

    /// Number of sessions without a purchase in which more items were added to the cart than removed. The present session
    /// has not ended.
    pub fn abandoned_carts(&self) -> u32 {
        self.abandoned_carts
    }

    /// Number of clicks and views, and of purchases, that followed from an answer of the server.
    pub fn attributed(&self) -> (u32, u32) {
        (self.attributed_clicks, self.attributed_purchases)
    }

    /// Mean stars of the user's reviews. None without a review.
    pub fn mean_stars(&self) -> Option<f64> {
        let reviews = self.count(EventKind::Review);
        (reviews > 0).then(|| f64::from(self.stars) / f64::from(reviews))
    }

    /// Encodes the summary for checkpoints.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        let u32s = self.counts.iter().chain([
            &self.first_s,
            &self.last_s,
            &self.last_visit_s,
            &self.first_purchase_s,
            &self.last_purchase_s,
            &self.purchase_days,
            &self.visit_days,
            &self.other_currency_events,
            &self.sessions,
            &self.coupons,
            &self.attributed_clicks,
            &self.attributed_purchases,
            &self.stars,
            &self.purchased_items,
            &self.abandoned_carts,
        ]);
        u32s.chain(&self.session_hashes).for_each(|number| bytes.extend(number.to_le_bytes()));
        let days = [self.first_purchase_day, self.first_visit_day, self.last_visit_day];
        self.recent.iter().chain(&days).for_each(|day| bytes.extend(day.to_le_bytes()));
        bytes.extend(self.visits.to_le_bytes());
        bytes.extend(self.interval_squares.to_le_bytes());
        self.decayed.iter().for_each(|sum| bytes.extend(sum.to_le_bytes()));
        for spend in &self.spend {
            bytes.extend(spend.currency);
            bytes.push(spend.is_used.into());
            bytes.extend(spend.purchases.to_le_bytes());
            bytes.extend(spend.bought_micros.to_le_bytes());
            bytes.extend(spend.refunded_micros.to_le_bytes());
            spend.decayed.iter().for_each(|sum| bytes.extend(sum.to_le_bytes()));
        }
        bytes.extend(self.cart_items.to_le_bytes());
        bytes.push(self.has_purchased.into());
        bytes
    }

    /// Length of [`UserSummary::to_bytes`].
    const BYTES: usize = 4 * (EventKind::ALL.len() + 15 + SESSIONS)
        + 2 * (RECENT_DAYS + 3)
        + 16
        + 8
        + 24
        + CURRENCIES * (4 + 4 + 16 + 24)
        + 5;

    /// Decodes the output of [`UserSummary::to_bytes`]. Returns `None` for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let mut reader = Reader(bytes);
        let mut summary = Self::default();
        for count in &mut summary.counts {
            *count = reader.u32()?;
        }
        for number in [
            &mut summary.first_s,
            &mut summary.last_s,
            &mut summary.last_visit_s,
            &mut summary.first_purchase_s,
            &mut summary.last_purchase_s,
            &mut summary.purchase_days,
            &mut summary.visit_days,
            &mut summary.other_currency_events,
            &mut summary.sessions,
            &mut summary.coupons,
            &mut summary.attributed_clicks,
            &mut summary.attributed_purchases,
            &mut summary.stars,
            &mut summary.purchased_items,
            &mut summary.abandoned_carts,
        ] {
            *number = reader.u32()?;
        }
        for hash in &mut summary.session_hashes {
            *hash = reader.u32()?;
        }
        for day in &mut summary.recent {
            *day = u16::from_le_bytes(reader.take()?);
        }
        summary.first_purchase_day = u16::from_le_bytes(reader.take()?);
        summary.first_visit_day = u16::from_le_bytes(reader.take()?);
        summary.last_visit_day = u16::from_le_bytes(reader.take()?);
        summary.visits = u128::from_le_bytes(reader.take()?);
        summary.interval_squares = u64::from_le_bytes(reader.take()?);
        for sum in &mut summary.decayed {
            *sum = reader.f64()?;
        }
        for spend in &mut summary.spend {
            spend.currency = reader.take()?;
            spend.is_used = reader.take::<1>()? == [1];
            spend.purchases = reader.u32()?;
            spend.bought_micros = i64::from_le_bytes(reader.take()?);
            spend.refunded_micros = i64::from_le_bytes(reader.take()?);
            for sum in &mut spend.decayed {
                *sum = reader.f64()?;
            }
        }
        summary.cart_items = i32::from_le_bytes(reader.take()?);
        let [has_purchased] = reader.take()?;
        summary.has_purchased = has_purchased != 0;
        Some(summary)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn f64(&mut self) -> Option<f64> {
        self.take().map(f64::from_le_bytes).filter(|sum| sum.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::{
        ids::{EventId, ItemId, UserId},
        units::{PriceMicros, Quantity},
    };
    use lodestone_events::EventLine;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn event(kind: EventKind, at_s: i64, price: i64, currency: &str) -> Event {
        let id = EventId::parse("e").unwrap();
        let item = ItemId::parse("i").unwrap();
        let line = EventLine { item, quantity: Quantity::ONE, price: PriceMicros::new(price * 1_000_000), rank: 0 };
        Event {
            lines: vec![line],
            currency: currency.to_owned(),
            ..Event::new(id, kind, UserId::signed_in("u").unwrap(), UnixMillis(at_s * 1000))
        }
    }

    fn folded<'a>(events: impl IntoIterator<Item = &'a Event>) -> UserSummary {
        let mut summary = UserSummary::default();
        events.into_iter().for_each(|event| summary.add(event));
        summary
    }

    fn purchase(day: i64) -> Event {
        event(EventKind::Purchase, day * 86_400 + 7, 10, "EUR")
    }

    #[test]
    fn purchases_of_one_day_are_one_purchase_day_also_if_they_arrive_late() {
        let summary = folded(&[purchase(100), purchase(110), purchase(100), purchase(104), purchase(110)]);
        assert_eq!(summary.recent_purchase_days(), [100, 104, 110]);
        assert_eq!((summary.purchase_days(), summary.count(EventKind::Purchase)), (3, 5));
        assert_eq!(summary.interval_mean(), Some(5.0));
        assert!((summary.interval_variation().unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(summary.spend().map(Spend::net).collect::<Vec<_>>(), [50.0]);
    }

    #[test]
    fn currencies_are_kept_apart_and_those_beyond_three_are_counted() {
        let bought = |currency: &str| event(EventKind::Purchase, 86_400, 5, currency);
        let refund = event(EventKind::Refund, 90_000, 2, "USD");
        let summary = folded(&[bought("EUR"), bought("USD"), bought(""), bought("GBP"), bought("USD"), refund]);
        let net: Vec<_> = summary.spend().map(|spend| (spend.currency(), spend.net())).collect();
        assert_eq!(net, [("EUR", 5.0), ("USD", 8.0), ("", 5.0)]);
        assert_eq!(summary.other_currency_events(), 1);
        assert_eq!(summary.main_spend().unwrap().currency(), "USD");
        let others = |events: &[Event]| folded(events).spends_only_in_others("EUR");
        assert!(others(&[bought("USD"), bought("GBP")]) && !others(&[bought("USD"), bought("EUR")]));
        assert!(!others(&[bought("")]) && !others(&[event(EventKind::Refund, 90_000, 2, "USD")]) && !others(&[]));
    }

    #[test]
    fn sessions_follow_ids_or_pauses() {
        let view =
            |at_s: i64, session: &str| Event { session: session.to_owned(), ..event(EventKind::View, at_s, 1, "EUR") };
        let by_pause = folded(&[view(1000, ""), view(2000, ""), view(3801, ""), view(500, "")]);
        assert_eq!(by_pause.sessions(), 2);
        let by_id = folded(&[view(1000, "a"), view(90_000, "b"), view(90_001, "a"), view(90_002, "c")]);
        assert_eq!(by_id.sessions(), 3);
    }

    #[test]
    fn a_cart_is_abandoned_if_the_session_ends_with_items_in_it() {
        use EventKind::{AddToCart, Purchase, Refund, RemoveFromCart, View};
        let of = |events: &[(EventKind, i64)]| {
            let events: Vec<Event> = events.iter().map(|(kind, at_s)| event(*kind, *at_s, 1, "EUR")).collect();
            folded(&events).abandoned_carts()
        };
        let later = 100_000;
        assert_eq!(of(&[(AddToCart, 1000), (AddToCart, 1100)]), 0, "the session may go on");
        assert_eq!(of(&[(AddToCart, 1000), (View, later)]), 1);
        assert_eq!(of(&[(AddToCart, 1000), (Refund, later)]), 0, "a refund is no visit");
        assert_eq!(of(&[(AddToCart, 1000), (Purchase, 1100), (View, later), (View, 2 * later)]), 0);
        assert_eq!(of(&[(AddToCart, 1000), (RemoveFromCart, 1100), (RemoveFromCart, 1200), (View, later)]), 0);
        assert_eq!(of(&[(RemoveFromCart, 1000), (AddToCart, 1000), (View, later)]), 0, "in any order of arrival");
        assert_eq!(of(&[(Purchase, 1000), (AddToCart, 1100), (View, later)]), 0, "a session with a purchase");
        assert_eq!(of(&[(Purchase, 1000), (AddToCart, later), (View, 2 * later)]), 1);
        let two = [(AddToCart, 1000), (AddToCart, 1050), (RemoveFromCart, 1100), (AddToCart, later), (View, 2 * later)];
        assert_eq!(of(&two), 2);
    }

    #[test]
    fn a_steady_user_who_slows_down_drifts_upwards() {
        let steady = folded((0..6).map(|n| purchase(100 + 10 * n)).collect::<Vec<_>>().iter());
        assert!((steady.cadence_drift().unwrap() - 1.0).abs() < 1e-12);
        let days = [100, 110, 120, 130, 160, 190, 220];
        let slower = folded(days.map(purchase).iter());
        assert_eq!(slower.cadence_drift(), Some(1.5));
    }

    fn events(days: i64) -> impl Strategy<Value = Vec<Event>> {
        let one = (0..days * 86_400, 0usize..14, 0i64..50, 0usize..5).prop_map(|(at, kind, price, currency)| {
            event(EventKind::ALL[kind], 86_400 * 30 + at, price, ["EUR", "USD", "GBP", "CNY", ""][currency])
        });
        prop::collection::vec(one, 1..120)
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_does_not_matter_within_the_recent_days(events in events(16), swaps: u64) {
            let mut shuffled = events.clone();
            let count = shuffled.len();
            (0..count).for_each(|index| shuffled.swap(index, (swaps as usize).wrapping_mul(index + 7) % count));
            let mut sorted = events;
            sorted.sort_by_key(|event| event.at);
            let (a, b) = (folded(&sorted), folded(&shuffled));
            prop_assert_eq!(a.counts, b.counts);
            prop_assert_eq!((a.first_s, a.last_s, a.visits, a.visit_days), (b.first_s, b.last_s, b.visits, b.visit_days));
            prop_assert_eq!((a.recent, a.purchase_days), (b.recent, b.purchase_days));
            prop_assert_eq!((a.interval_squares, a.purchase_times_s()), (b.interval_squares, b.purchase_times_s()));
            let close = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9 * a.max(1.0));
            prop_assert!(close(a.decayed, b.decayed));
        }

        #[test]
        fn purchase_and_visit_days_in_order_are_exact(events in events(300)) {
            let mut sorted = events;
            sorted.sort_by_key(|event| event.at);
            let summary = folded(&sorted);
            let days = |is_counted: &dyn Fn(EventKind) -> bool| -> BTreeSet<u16> {
                sorted.iter().filter(|event| is_counted(event.kind)).map(|event| day_of(event.at)).collect()
            };
            let purchases: Vec<u16> = days(&|kind| kind == EventKind::Purchase).into_iter().collect();
            prop_assert_eq!(summary.purchase_days() as usize, purchases.len());
            prop_assert_eq!(summary.recent_purchase_days(), &purchases[purchases.len().saturating_sub(RECENT_DAYS)..]);
            let squares: u64 = purchases.windows(2).map(|pair| squared(pair[1] - pair[0])).sum();
            prop_assert_eq!(summary.interval_squares, squares);
            prop_assert_eq!(summary.visit_days() as usize, days(&is_visit).len());
        }

        /// The summary as of an earlier day is that of the events until then, in what it states to know.
        #[test]
        fn an_earlier_summary_is_that_of_the_earlier_events(events in events(90), day in 30u16..120) {
            let mut sorted = events;
            sorted.sort_by_key(|event| event.at);
            let until: Vec<&Event> = sorted.iter().filter(|event| day_of(event.at) <= day).collect();
            let (all, known) = (folded(&sorted), folded(until.iter().copied()));
            match all.as_of(day) {
                None => prop_assert!(until.is_empty() || all.purchase_days() > known.purchase_days()),
                Some(earlier) => {
                    prop_assert_eq!(earlier.purchase_days(), known.purchase_days());
                    prop_assert_eq!(earlier.last_purchase_day(), known.last_purchase_day());
                    prop_assert_eq!(earlier.first_purchase_day(), known.first_purchase_day());
                    prop_assert_eq!(earlier.interval_mean(), known.interval_mean());
                    prop_assert_eq!(earlier.interval_squares, known.interval_squares);
                    prop_assert_eq!(earlier.visit_days(), known.visit_days());
                    prop_assert_eq!(earlier.last_visit_day(), known.last_visit_day());
                    prop_assert_eq!(earlier.visit_days_within(day, 28), known.visit_days_within(day, 28));
                    let (a, b) = (earlier.decayed_purchases(day), known.decayed_purchases(day));
                    prop_assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6), "{a:?} {b:?}");
                }
            }
        }

        #[test]
        fn decoding_an_encoded_summary_returns_it(events in events(300)) {
            let summary = folded(&events);
            prop_assert_eq!(UserSummary::from_bytes(&summary.to_bytes()), Some(summary));
        }

        #[test]
        fn decoding_other_bytes_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = UserSummary::from_bytes(&bytes);
        }
    }
}
