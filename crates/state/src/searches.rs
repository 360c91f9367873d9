//! The searches of users, and which of them other users may see as completions.
use ahash::AHashMap;
use lodestone_core::{ids::UserId, text};
use lodestone_events::stable_hash;
use lodestone_index::Suggester;
use parking_lot::Mutex;

/// Default number of different users that must have searched for a text before others see it.
pub const COMPLETION_USERS_MIN: usize = 5;
/// Maximum for [`COMPLETION_USERS_MIN`], because each search stores that many users.
pub const COMPLETION_USERS_MIN_MAX: usize = 100;
/// Maximum searches that are kept; beyond it, those of the fewest users are dropped.
const SEARCHES_MAX: usize = 100_000;
/// Maximum characters of a search that is kept. Longer texts are pasted, not typed.
const CHARS_MAX: usize = 100;

/// The weight of a completion that a user accepted; that of a search is 1. Accepted texts are more certain to be what users
/// look for.
const ACCEPTED_WEIGHT: f32 = 2.0;

/// Texts of past searches. A text becomes a completion for everybody when enough different users have searched for it.
/// Texts that look like personal data are not kept.
pub struct Searches {
    users_min: usize,
    /// By normal form.
    known: Mutex<AHashMap<Box<str>, Search>>,
    shared: Suggester,
}

/// A search with the users that it is counted for.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// The spelling of the first user.
    pub text: String,
    /// The number of searches, without those of a user among the last [`Search::users`]. One counts as two if it accepts a
    /// completion.
    pub count: f32,
    /// Hashes of the last different users, at most the required number, the latest last.
    pub users: Vec<u64>,
}

impl Default for Searches {
    fn default() -> Self {
        Self::new(COMPLETION_USERS_MIN)
    }
}

impl Searches {
    /// `users_min` is the number of different users after which others see a text; at least 1.
    pub fn new(users_min: usize) -> Self {
        Self { users_min: users_min.max(1), known: Mutex::default(), shared: Suggester::build([]) }
    }

    /// Counts a search of a user.
    pub fn add(&self, query: &str, user: &UserId) {
        self.count(query, user, 1.0);
    }

    /// Counts a completion that a user accepted.
    pub fn accept(&self, completion: &str, user: &UserId) {
        self.count(completion, user, ACCEPTED_WEIGHT);
    }

    fn count(&self, query: &str, user: &UserId, weight: f32) {
        let normal = text::normalize(query);
        if normal.is_empty() || normal.chars().count() > CHARS_MAX || text::has_personal_data(&normal) {
            return;
        }
        let user = stable_hash(user.as_str().as_bytes());
        let mut known = self.known.lock();
        if known.len() >= SEARCHES_MAX && !known.contains_key(normal.as_str()) {
            drop_rarest(&mut known);
        }
        let new = || Search { text: query.to_owned(), count: 0.0, users: Vec::new() };
        let search = known.entry(normal.into()).or_insert_with(new);
        if search.users.contains(&user) {
            return;
        }
        let was_shared = search.users.len() >= self.users_min;
        if was_shared {
            search.users.remove(0);
        }
        search.users.push(user);
        search.count += weight;
        if was_shared {
            self.shared.add_query(&search.text, weight);
        } else if search.users.len() >= self.users_min {
            self.shared.add_query(&search.text, search.count);
        }
    }

    /// Restores a search of a checkpoint.
    pub fn restore(&self, search: Search) {
        if search.users.len() >= self.users_min {
            self.shared.add_query(&search.text, search.count);
        }
        self.known.lock().insert(text::normalize(&search.text).into(), search);
    }

    /// Returns all searches, for a checkpoint.
    pub fn all(&self) -> Vec<Search> {
        self.known.lock().values().cloned().collect()
    }

    /// Returns the completions that every user may see.
    pub fn shared(&self) -> &Suggester {
        &self.shared
    }
}

/// Drops the half of the searches of the fewest users; of equal ones, those later in the alphabet, so that a replay
/// drops the same.
fn drop_rarest(known: &mut AHashMap<Box<str>, Search>) {
    let mut counts: Vec<(f32, Box<str>)> =
        known.iter().map(|(normal, search)| (search.count, normal.clone())).collect();
    counts.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    for (_, normal) in counts.drain(SEARCHES_MAX / 2..) {
        known.remove(&normal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: usize) -> UserId {
        UserId::visitor(&format!("v{number}")).unwrap()
    }

    fn completions(searches: &Searches, typed: &str) -> Vec<String> {
        searches.shared().complete(typed, 10, &|_| 0.0).into_iter().map(|completion| completion.text).collect()
    }

    #[test]
    fn others_see_a_search_of_enough_different_users() {
        let searches = Searches::default();
        for number in 0..COMPLETION_USERS_MIN {
            assert!(completions(&searches, "red").is_empty(), "{number} users");
            for repetition in 0..100 {
                searches.add(["Red Mug", "red  mug"][(number + repetition) % 2], &user(number));
            }
        }
        assert_eq!(completions(&searches, "red"), ["Red Mug"]);
        assert_eq!(searches.all()[0].count, COMPLETION_USERS_MIN as f32, "a user's repetitions do not count");
    }

    #[test]
    fn accepted_completions_precede_texts_that_as_many_users_searched_for() {
        let searches = Searches::default();
        for number in 0..COMPLETION_USERS_MIN {
            searches.add("red bowl", &user(number));
            searches.accept("red mug", &user(number));
        }
        assert_eq!(completions(&searches, "red"), ["red mug", "red bowl"]);
    }

    #[test]
    fn personal_data_is_not_kept_however_many_users_search_for_it() {
        let searches = Searches::default();
        for number in 0..20 {
            searches.add("zzjane.roe@shop.test 0155 0199", &user(number));
            searches.add("zzjane 4111 1111 1111 1111", &user(number));
            searches.add(&"zzjane ".repeat(20), &user(number));
            searches.add(" ", &user(number));
        }
        assert!(completions(&searches, "zzjane").is_empty() && searches.all().is_empty());
    }

    #[test]
    fn a_restored_search_needs_the_users_that_are_configured_now() {
        let searches = Searches::new(2);
        (0..3).for_each(|number| searches.add("red mug", &user(number)));
        for (users_min, is_shared) in [(1, true), (2, true), (3, false)] {
            let restored = Searches::new(users_min);
            searches.all().into_iter().for_each(|search| restored.restore(search));
            assert_eq!(!completions(&restored, "red").is_empty(), is_shared, "{users_min}");
            restored.add("red mug", &user(9));
            assert_eq!(completions(&restored, "red"), ["red mug"], "{users_min}");
            assert_eq!(restored.all()[0].count, 4.0);
        }
    }

    #[test]
    fn searches_of_few_users_are_dropped() {
        let searches = Searches::new(2);
        for number in 0..SEARCHES_MAX + 10 {
            let query = format!("query {}", letters(number + 1));
            searches.add(&query, &user(0));
            if number % 100 == 0 {
                searches.add(&query, &user(1));
            }
        }
        let all = searches.all();
        assert!(all.len() <= SEARCHES_MAX / 2 + 11, "{}", all.len());
        assert_eq!(all.iter().filter(|search| search.users.len() == 2).count(), SEARCHES_MAX / 100 + 1);
    }

    /// Writes a number with letters, because long numbers are personal data.
    fn letters(mut number: usize) -> String {
        let mut text = String::new();
        while number > 0 {
            text.push((b'a' + (number % 26) as u8) as char);
            number /= 26;
        }
        text
    }
}
