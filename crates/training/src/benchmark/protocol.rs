//! Public data sets as a shop's items and events, with the times and the test queries of their protocols.
use super::{
    BasketFiles, NextItemFiles, SessionFiles,
    files::{Catalogue, read_baskets, read_catalogue, read_clusters, read_prefixes, read_sequences, read_sessions},
    report::QueryGroups,
};
use crate::{
    error::TrainError,
    options::{Outcome, TrainTimes},
    sequence::{HISTORY_MAX, SequenceError},
};
use ahash::AHashMap;
use lodestone_catalog::Item;
use lodestone_core::{
    ids::{IdError, UserId},
    units::UnixMillis,
};
use lodestone_dataset::DatasetEvent;
use lodestone_events::EventKind;
use std::path::Path;

/// A data set and its evaluation.
pub(super) struct Protocol {
    pub items: Vec<Item>,
    /// Known events, in time order.
    pub events: Vec<DatasetEvent>,
    pub times: TrainTimes,
    pub outcome: Outcome,
    /// The kind of all events.
    pub kind: EventKind,
    pub queries: Vec<Query>,
    /// The time of all queries.
    pub at: UnixMillis,
    pub steps: Steps,
    /// The time between two events of a user, if it only stands for their order.
    pub step: Option<i64>,
}

/// What a sequence of events belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Steps {
    OfUsers,
    /// Sessions of visitors whose other events are unknown.
    OfSessions,
}

/// A user, and the items that the user chose next.
pub(super) struct Query {
    pub user: UserId,
    /// Rows of events that the request contains, in time order. The state does not know them.
    pub context: Vec<u32>,
    /// Rows that the answer must not contain.
    pub excluded: Vec<u32>,
    /// Distinct rows in ascending order, at least one.
    pub targets: Vec<u32>,
}

const SECOND: i64 = 1000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const WEEK: i64 = 7 * UnixMillis::DAY;

/// The time of the queries. Files without times get times before it that keep their order.
const NOW: UnixMillis = UnixMillis(20_000 * UnixMillis::DAY);

fn before(steps: usize, step: i64) -> UnixMillis {
    UnixMillis(NOW.0 - steps as i64 * step)
}

/// Share of the sessions, the latest, that stop the encoder and are the labels of the ranking model.
const HELD_OUT_SESSIONS: f64 = 0.04;
/// Baskets of a user that are used, the latest ones.
const BASKETS_MAX: usize = 1000;

fn too_little(problem: &str) -> TrainError {
    TrainError::TooLittle(problem.to_owned())
}

fn event(id: String, kind: EventKind, user: &UserId, at: UnixMillis, item: &Item) -> DatasetEvent {
    DatasetEvent::of_item(id, kind, Some(user.clone()), at, item.id.clone())
}

fn user_id(id: Result<UserId, IdError>, path: &Path, name: &str) -> Result<UserId, TrainError> {
    let problem = |error| SequenceError::File { path: path.to_owned(), problem: format!("user `{name}`: {error}") };
    Ok(id.map_err(problem)?)
}

/// Leave-one-out: the last item of each history is the test target; the one before it stops the encoder and is the
/// label of the ranking model, and no other part of the bundle contains it. It is a part of the test request. The n-th
/// item from the end gets the time of n hours before the test, so that the times of all users agree.
pub(super) fn leave_one_out(files: &NextItemFiles) -> Result<(Protocol, QueryGroups), TrainError> {
    let mut catalogue = read_catalogue(&files.items)?;
    let (names, histories) = read_sequences(&files.sequences, &mut catalogue.items)?;
    catalogue.complete()?;
    let items = &catalogue.described;
    let (mut events, mut queries, mut tested) = (Vec::new(), Vec::new(), Vec::new());
    for (name, history) in names.iter().zip(&histories) {
        let user = user_id(UserId::signed_in(name), &files.sequences, name)?;
        let (known, last_at) = match history.as_slice() {
            [known @ .., target] if known.len() >= 2 => {
                let [.., context] = known else { continue };
                let excluded = known[known.len().saturating_sub(HISTORY_MAX)..].to_vec();
                let query = Query { user: user.clone(), context: vec![*context], excluded, targets: vec![*target] };
                queries.push(query);
                tested.push(name.as_str());
                (known, 1)
            }
            // Too short for a target; it is only trained on.
            short => (short, 2),
        };
        for (index, item) in known.iter().rev().take(HISTORY_MAX).enumerate() {
            let id = format!("{name}/{index}");
            let at = before(last_at + index, HOUR);
            events.push(event(id, EventKind::Purchase, &user, at, &items[*item as usize]));
        }
    }
    if queries.is_empty() {
        return Err(too_little("no user has three items, one each for training, validation and test"));
    }
    events.sort_by_key(|event| event.at);
    let clusters = match &files.clusters {
        Some(path) => cluster_numbers(&tested, path)?,
        None => (0..queries.len()).collect(),
    };
    let descending = queries.iter().map(|query| is_descending(query, &catalogue)).collect();
    let held_out = before(1, HOUR)..NOW;
    // The state of the test is that of the labels, so that all counts are as old as in the training.
    let at = held_out.start;
    let times = TrainTimes { counted_until: at, validation: held_out.clone(), labels: held_out };
    let protocol = Protocol {
        items: catalogue.described,
        events,
        times,
        outcome: Outcome::Day,
        kind: EventKind::Purchase,
        queries,
        at,
        steps: Steps::OfUsers,
        step: Some(HOUR),
    };
    Ok((protocol, QueryGroups { descending: Some(descending), clusters }))
}

/// Returns whether the target comes before the latest item of the history in the items' order.
fn is_descending(query: &Query, catalogue: &Catalogue) -> bool {
    let order = |item: &u32| &catalogue.order[*item as usize];
    query.context.last().is_some_and(|latest| order(&query.targets[0]) < order(latest))
}

/// Returns consecutive numbers of the users' clusters.
fn cluster_numbers(users: &[&str], path: &Path) -> Result<Vec<usize>, TrainError> {
    let clusters = read_clusters(path)?;
    let mut numbers: AHashMap<&str, usize> = AHashMap::new();
    let numbered = users.iter().map(|user| {
        let cluster = clusters.get(*user).ok_or_else(|| SequenceError::File {
            path: path.to_owned(),
            problem: format!("has no cluster for user `{user}` of the sequences"),
        })?;
        let next = numbers.len();
        Ok(*numbers.entry(cluster.as_str()).or_insert(next))
    });
    numbered.collect()
}

/// The next click of later sessions. Each session is a visitor of its own; the clicks before the target are a part of
/// the test request. Sessions begin a minute after each other, and their clicks are a second apart.
pub(super) fn next_clicks(files: &SessionFiles) -> Result<Protocol, TrainError> {
    let mut catalogue = Catalogue::default();
    let sessions = read_sessions(&files.train, &mut catalogue.items)?;
    let test = read_prefixes(&files.test, &mut catalogue.items)?;
    catalogue.complete()?;
    if test.is_empty() {
        return Err(too_little("the test file has no lines"));
    }
    let items = catalogue.described;
    let held_out = ((sessions.len() as f64 * HELD_OUT_SESSIONS) as usize).max(1);
    let mut events = Vec::new();
    for (index, session) in sessions.iter().enumerate() {
        let visitor = user_id(UserId::visitor(&format!("session-{index}")), &files.train, "session")?;
        let begin = before(sessions.len() - index, MINUTE);
        for (click, item) in session.iter().rev().take(HISTORY_MAX).rev().enumerate() {
            let at = UnixMillis(begin.0 + click as i64 * SECOND);
            let id = format!("{index}/{click}");
            events.push(event(id, EventKind::View, &visitor, at, &items[*item as usize]));
        }
    }
    // Clicks of a long session may be later than the begin of the next one.
    events.sort_by_key(|event| event.at);
    let user = user_id(UserId::visitor("test-session"), &files.test, "test-session")?;
    let query = |(clicks, next): (Vec<u32>, u32)| Query {
        user: user.clone(),
        context: clicks,
        excluded: Vec::new(),
        targets: vec![next],
    };
    let held_out = before(held_out, MINUTE)..NOW;
    Ok(Protocol {
        items,
        events,
        times: TrainTimes { validation: held_out.clone(), labels: held_out, counted_until: NOW },
        outcome: Outcome::NextEvent,
        kind: EventKind::View,
        queries: test.into_iter().map(query).collect(),
        at: NOW,
        steps: Steps::OfSessions,
        step: None,
    })
}

/// The next basket of each user. The last known one stops the encoder and is the label of the ranking model; the final
/// counts contain it. Baskets are a week apart.
pub(super) fn next_baskets(files: &BasketFiles) -> Result<Protocol, TrainError> {
    let mut catalogue = Catalogue::default();
    let known = read_baskets(&files.history, &mut catalogue.items)?;
    let future = read_baskets(&files.future, &mut catalogue.items)?;
    catalogue.complete()?;
    let items = catalogue.described;
    if known.iter().all(|(_, baskets)| baskets.len() < 2) {
        return Err(too_little(
            "no user has two baskets; the ranking model needs at least one next basket to learn from",
        ));
    }
    let mut events = Vec::new();
    for (name, baskets) in &known {
        let user = user_id(UserId::signed_in(name), &files.history, name)?;
        for (index, basket) in baskets.iter().rev().take(BASKETS_MAX).enumerate() {
            let at = before(index + 1, WEEK);
            let line =
                |item: &u32| event(format!("{name}/{index}"), EventKind::Purchase, &user, at, &items[*item as usize]);
            events.extend(basket.iter().map(line));
        }
    }
    events.sort_by_key(|event| event.at);
    let mut queries = Vec::new();
    for (name, baskets) in future {
        let Some(targets) = baskets.into_iter().next() else { continue };
        let user = user_id(UserId::signed_in(&name), &files.future, &name)?;
        queries.push(Query { user, context: Vec::new(), excluded: Vec::new(), targets });
    }
    if queries.is_empty() {
        return Err(too_little("no user has a next basket"));
    }
    let held_out = before(1, WEEK)..NOW;
    Ok(Protocol {
        items,
        events,
        times: TrainTimes { validation: held_out.clone(), labels: held_out, counted_until: NOW },
        outcome: Outcome::Day,
        kind: EventKind::Purchase,
        queries,
        at: NOW,
        steps: Steps::OfUsers,
        step: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::PathBuf};

    /// Temporary files of a test.
    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, content: &str) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, content).unwrap();
            path
        }
    }

    /// User, milliseconds before the test and item of each event.
    fn events(protocol: &Protocol) -> Vec<(&str, i64, &str)> {
        let named = protocol.events.iter().map(|event| {
            let item = event.item.as_ref().map_or("", |item| item.as_str());
            (event.user.as_ref().map_or("", UserId::as_str), event.at.0 - NOW.0, item)
        });
        named.collect()
    }

    #[test]
    fn the_last_item_is_unknown_and_the_one_before_it_is_no_training_data() {
        let files = Files::new();
        let files = NextItemFiles {
            sequences: files.write("sequences.txt", "u a b c d\nv b c\nw a a c\n"),
            items: files.write("items.tsv", "item\tasin\na\tz\n"),
            clusters: None,
        };
        let (protocol, groups) = leave_one_out(&files).unwrap();
        let user = |name: &str| UserId::signed_in(name).unwrap();
        let (u, v, w) = (user("u"), user("v"), user("w"));
        let expected = [
            (u.as_str(), -3 * HOUR, "a"),
            (v.as_str(), -3 * HOUR, "b"),
            (u.as_str(), -2 * HOUR, "b"),
            (v.as_str(), -2 * HOUR, "c"),
            (w.as_str(), -2 * HOUR, "a"),
            (u.as_str(), -HOUR, "c"),
            (w.as_str(), -HOUR, "a"),
        ];
        assert_eq!(events(&protocol), expected);
        assert_eq!(protocol.times.counted_until, UnixMillis(NOW.0 - HOUR));
        assert_eq!(protocol.times.labels, protocol.times.counted_until..NOW);
        let queries: Vec<_> =
            protocol.queries.iter().map(|of| (&of.context[..], &of.excluded[..], &of.targets[..])).collect();
        // The items in the order of the files: a, b, c, d.
        assert_eq!(queries, [(&[2][..], &[0, 1, 2][..], &[3][..]), (&[0], &[0, 0], &[2])]);
        assert_eq!(groups.descending, Some(vec![false, true]), "c precedes z");
    }

    #[test]
    fn clicks_before_the_target_are_in_the_request() {
        let files = Files::new();
        let files = SessionFiles {
            train: files.write("train.txt", "a b\nb c a\n"),
            test: files.write("test.tsv", "a c\tb\na\tc\n"),
        };
        let protocol = next_clicks(&files).unwrap();
        let visitor = |index: usize| UserId::visitor(&format!("session-{index}")).unwrap();
        let (first, second) = (visitor(0), visitor(1));
        let expected = [
            (first.as_str(), -2 * MINUTE, "a"),
            (first.as_str(), -2 * MINUTE + SECOND, "b"),
            (second.as_str(), -MINUTE, "b"),
            (second.as_str(), -MINUTE + SECOND, "c"),
            (second.as_str(), -MINUTE + 2 * SECOND, "a"),
        ];
        assert_eq!(events(&protocol), expected);
        let queries: Vec<_> = protocol.queries.iter().map(|of| (&of.context[..], &of.targets[..])).collect();
        assert_eq!(queries, [(&[0, 2][..], &[1][..]), (&[0], &[2])]);
    }

    #[test]
    fn items_of_a_basket_are_one_event() {
        let files = Files::new();
        let files = BasketFiles {
            history: files.write("history.txt", "u\ta b;c\nv\tb\n"),
            future: files.write("future.txt", "u\tc a\nx\tb\n"),
        };
        let protocol = next_baskets(&files).unwrap();
        let ids: Vec<(&str, i64)> =
            protocol.events.iter().map(|event| (event.event_id.as_str(), event.at.0 - NOW.0)).collect();
        assert_eq!(ids, [("u/1", -2 * WEEK), ("u/1", -2 * WEEK), ("u/0", -WEEK), ("v/0", -WEEK)]);
        let targets: Vec<&[u32]> = protocol.queries.iter().map(|query| &query.targets[..]).collect();
        assert_eq!(targets, [&[0, 2][..], &[1]]);
    }
}
