//! Purchase histories and the summaries that the models use.
use crate::error::LoyaltyError;

/// The purchases of one customer on one day, which count as one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Purchase {
    /// Days since an epoch that all histories share, such as 1970-01-01.
    pub day: i32,
    /// Total value in the shop's currency, at least 0.
    pub value: f64,
    /// Number of units or of rows, at least 0.
    pub units: f64,
}

/// All purchases of one customer in the order of time, at most one per day.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PurchaseHistory {
    purchases: Vec<Purchase>,
}

impl PurchaseHistory {
    /// Sorts the purchases and merges those of one day. Values and units that are negative or not finite count as 0.
    pub fn new(mut purchases: Vec<Purchase>) -> Self {
        let clean = |number: f64| if number.is_finite() { number.max(0.0) } else { 0.0 };
        purchases.sort_by_key(|purchase| purchase.day);
        let mut merged: Vec<Purchase> = Vec::with_capacity(purchases.len());
        for purchase in purchases {
            let (value, units) = (clean(purchase.value), clean(purchase.units));
            match merged.last_mut().filter(|last| last.day == purchase.day) {
                Some(last) => {
                    last.value += value;
                    last.units += units;
                }
                None => merged.push(Purchase { day: purchase.day, value, units }),
            }
        }
        Self { purchases: merged }
    }

    pub fn purchases(&self) -> &[Purchase] {
        &self.purchases
    }

    /// Returns the purchases until the end of `day`.
    pub fn until(&self, day: i32) -> &[Purchase] {
        &self.purchases[..self.purchases.partition_point(|purchase| purchase.day <= day)]
    }

    /// Returns the purchases after `day` and within `days` days of it.
    pub fn within(&self, day: i32, days: u32) -> &[Purchase] {
        let last = i64::from(day) + i64::from(days);
        let start = self.purchases.partition_point(|purchase| purchase.day <= day);
        let end = self.purchases.partition_point(|purchase| i64::from(purchase.day) <= last);
        &self.purchases[start..end]
    }
}

/// What BG/NBD and MBG/NBD know of a customer. All times have the same unit, here weeks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PurchaseSummary {
    /// Number of repeat purchases (x): all but the first.
    pub frequency: u32,
    /// Time from the first to the last purchase (t_x), from 0 to `age`.
    pub recency: f64,
    /// Time from the first purchase to the end of the observation (T).
    pub age: f64,
}

impl PurchaseSummary {
    pub const DAYS_PER_WEEK: f64 = 7.0;

    /// Summarizes the purchases until the end of `day`, in weeks. Returns `None` if there are none.
    pub fn at(history: &PurchaseHistory, day: i32) -> Option<Self> {
        let purchases = history.until(day);
        let (first, last) = (purchases.first()?, purchases.last()?);
        let weeks = |from: i32, to: i32| (f64::from(to) - f64::from(from)) / Self::DAYS_PER_WEEK;
        Some(Self {
            frequency: (purchases.len() - 1) as u32,
            recency: weeks(first.day, last.day),
            age: weeks(first.day, day),
        })
    }

    /// Checks that times are finite, that recency is from 0 to age, and that recency is 0 without repeat purchases.
    pub(crate) fn check(&self, index: usize) -> Result<(), LoyaltyError> {
        let error = |field, value, limit| Err(LoyaltyError::Summary { index, field, value, limit });
        if !(self.age.is_finite() && self.age >= 0.0) {
            return error("age", self.age, "finite and at least 0");
        }
        if !(self.recency >= 0.0 && self.recency <= self.age) {
            return error("recency", self.recency, "at least 0 and at most the age");
        }
        if self.frequency == 0 && self.recency != 0.0 {
            return error("recency", self.recency, "0 without repeat purchases");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purchase(day: i32, value: f64) -> Purchase {
        Purchase { day, value, units: 1.0 }
    }

    #[test]
    fn purchases_of_one_day_are_one_purchase() {
        let history =
            PurchaseHistory::new(vec![purchase(15, 1.0), purchase(1, 2.0), purchase(15, 3.0), purchase(8, f64::NAN)]);
        assert_eq!(
            history.purchases().iter().map(|of| (of.day, of.value)).collect::<Vec<_>>(),
            [(1, 2.0), (8, 0.0), (15, 4.0)]
        );
        let summary = PurchaseSummary::at(&history, 22).unwrap();
        assert_eq!(summary, PurchaseSummary { frequency: 2, recency: 2.0, age: 3.0 });
        assert_eq!(PurchaseSummary::at(&history, 0), None);
        assert_eq!(history.within(1, 7).len(), 1);
        assert_eq!(history.within(15, u32::MAX).len(), 0);
    }

    #[test]
    fn impossible_summaries_are_rejected_with_field_value_and_limit() {
        let check = |frequency, recency, age| PurchaseSummary { frequency, recency, age }.check(7);
        assert!(check(1, 2.0, 3.0).is_ok() && check(0, 0.0, 0.0).is_ok());
        let error = check(1, 4.0, 3.0).unwrap_err();
        assert_eq!(error.to_string(), "customer 7: recency is 4; it must be at least 0 and at most the age");
        for (frequency, recency, age) in
            [(0, 1.0, 3.0), (1, -1.0, 3.0), (1, f64::NAN, 3.0), (1, 1.0, f64::NAN), (1, 1.0, f64::INFINITY)]
        {
            assert!(check(frequency, recency, age).is_err(), "{frequency} {recency} {age}");
        }
    }
}
