//! Popularity as bytes: in checkpoints with the remembered users, in bundles without.
use super::{
    Counts, ItemCounts, Popularity, USERS_MAX, UserTimes,
    counts::{BUYER_COUNTS, Decayed, Others, USER_COUNTS},
};
use lodestone_core::ids::ItemKey;

/// Bytes of counts: time u32, time u32 of the users but the strongest, the counts of users and of buyers and the slow
/// count of the users but the strongest, f64 each.
const COUNTS_BYTES: usize = 16 + 8 * (USER_COUNTS + BUYER_COUNTS);
/// Bytes of a remembered user: checksum u32, three times u32.
const USER_BYTES: usize = 16;
/// Items in one record.
const RECORD_ITEMS: usize = 4096;

impl Popularity {
    /// Returns the state for checkpoints in records of some thousand items. For each item: key u32, counts, number of
    /// remembered users u32, and those users.
    pub fn records(&self) -> Vec<Vec<u8>> {
        let items: Vec<(ItemKey, Counts)> = self.counts.iter().collect();
        let record = |items: &[(ItemKey, Counts)]| {
            let mut bytes = Vec::new();
            for (key, counts) in items {
                bytes.extend_from_slice(&key.0.to_le_bytes());
                bytes.extend_from_slice(&counts.to_bytes());
                let users = self.users.get(key.0 as usize).map_or(&[][..], Vec::as_slice);
                bytes.extend_from_slice(&(users.len() as u32).to_le_bytes());
                for user in users {
                    let numbers = std::iter::once(user.user).chain(user.latest_s);
                    numbers.for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
                }
            }
            bytes
        };
        items.chunks(RECORD_ITEMS).map(record).collect()
    }

    /// Restores the items of a record that [`Popularity::records`] returned. `key` maps a key of the writing process to
    /// one of this process.
    pub fn restore(&mut self, record: &[u8], key: impl Fn(ItemKey) -> Option<ItemKey>) -> Result<(), &'static str> {
        let mut rest = record;
        while !rest.is_empty() {
            let key = key(ItemKey(read_u32(&mut rest)?)).ok_or("an item is unknown")?;
            let counts = Counts::from_bytes(take::<COUNTS_BYTES>(&mut rest)?)?;
            let user_count = read_u32(&mut rest)? as usize;
            if user_count > USERS_MAX {
                return Err("an item has more users than the limit");
            }
            let mut users = Vec::with_capacity(user_count);
            for _ in 0..user_count {
                let mut bytes: &[u8] = take::<USER_BYTES>(&mut rest)?;
                let user = read_u32(&mut bytes)?;
                let times = [read_u32(&mut bytes)?, read_u32(&mut bytes)?, read_u32(&mut bytes)?];
                if times.iter().any(|latest_s| *latest_s > counts.at_s) {
                    return Err("a user's event is later than the item's latest one");
                }
                users.push(UserTimes { user, latest_s: times });
            }
            *self.counts.entry(key) = counts;
            let index = key.0 as usize;
            if index >= self.users.len() {
                self.users.resize_with(index + 1, Vec::new);
            }
            self.users[index] = users;
        }
        Ok(())
    }

    /// Returns the users' rates for checkpoints.
    pub fn rates_record(&self) -> Vec<u8> {
        self.rates.record()
    }

    /// Restores the rates that [`Popularity::rates_record`] returned.
    pub fn restore_rates(&mut self, record: &[u8]) -> Result<(), &'static str> {
        self.rates.restore(record)
    }
}

impl ItemCounts {
    /// Returns the counts of the keys 0 to `count` - 1, for bundles.
    pub fn to_bytes(&self, count: usize) -> Vec<u8> {
        (0..count).flat_map(|key| self.get(ItemKey(key as u32)).to_bytes()).collect()
    }

    /// Reads what [`ItemCounts::to_bytes`] returned.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        if !bytes.len().is_multiple_of(COUNTS_BYTES) {
            return Err("the counts are truncated");
        }
        let mut all = Self::default();
        for (index, bytes) in bytes.as_chunks::<COUNTS_BYTES>().0.iter().enumerate() {
            let counts = Counts::from_bytes(bytes)?;
            if !counts.is_zero() {
                *all.entry(ItemKey(index as u32)) = counts;
            }
        }
        Ok(all)
    }
}

impl Counts {
    /// The length of [`Counts::to_bytes`].
    pub const BYTES: usize = COUNTS_BYTES;

    fn to_bytes(self) -> [u8; COUNTS_BYTES] {
        let mut bytes = [0; COUNTS_BYTES];
        bytes[..4].copy_from_slice(&self.at_s.to_le_bytes());
        let (times, counts) = bytes.split_at_mut(8);
        times[4..].copy_from_slice(&self.others.at_s.to_le_bytes());
        let numbers = self.users.0.into_iter().chain(self.buyers.0).chain([self.others.slow]);
        for (bytes, number) in counts.chunks_exact_mut(8).zip(numbers) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; COUNTS_BYTES]) -> Result<Self, &'static str> {
        let mut rest: &[u8] = bytes;
        let (at_s, others_at_s) = (read_u32(&mut rest)?, read_u32(&mut rest)?);
        let (users, buyers) = (decayed(&mut rest)?, decayed(&mut rest)?);
        let others = Others { at_s: others_at_s, slow: read_f64(&mut rest)? };
        let counts = Self { at_s, users, buyers, others };
        match counts.is_valid() {
            true => Ok(counts),
            false => Err("the popularity of an item is not a finite number of at least 0"),
        }
    }
}

fn read_u32(rest: &mut &[u8]) -> Result<u32, &'static str> {
    take::<4>(rest).map(|bytes| u32::from_le_bytes(*bytes))
}

fn read_f64(rest: &mut &[u8]) -> Result<f64, &'static str> {
    take::<8>(rest).map(|bytes| f64::from_le_bytes(*bytes))
}

fn decayed<const N: usize>(rest: &mut &[u8]) -> Result<Decayed<N>, &'static str> {
    let mut counts = Decayed::default();
    counts.0.iter_mut().try_for_each(|count| {
        *count = read_f64(rest)?;
        Ok::<(), &'static str>(())
    })?;
    Ok(counts)
}

/// Splits bytes off.
fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Result<&'a [u8; N], &'static str> {
    let (bytes, after) = rest.split_first_chunk().ok_or("the popularity of an item is truncated")?;
    *rest = after;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_restored_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Popularity::default().restore(&bytes, |key| (key.0 < 1000).then_some(key));
            let _ = ItemCounts::from_bytes(&bytes);
        }
    }
}
