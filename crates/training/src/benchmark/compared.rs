//! Comparison of the answers with the baselines of the evaluation, on a sample of the queries.
use super::{
    protocol::{Protocol, Steps},
    served::ServedLists,
};
use crate::{
    Progress,
    baselines::{Case, Shop, StateUntil, Subtask, SubtaskScores, TUNED, ranking_scores, tuned_baselines},
    comparison::{Comparison, Scored, Settings, Task},
    evaluate::EvaluateOptions,
    replay::{Interaction, Session, interactions, sampled},
};
use ahash::AHashMap;
use lodestone_core::{
    ids::{Row, UserId},
    units::UnixMillis,
};

/// Most queries that are compared.
const CASES_MAX: usize = 2000;
/// Time of a step for the baselines, whose half-lives are days: the shortest one, 14 days, is about three steps.
const STEP: i64 = 5 * UnixMillis::DAY;

/// Compares the answers of one run with all baselines, each tuned on the last part of the known events.
pub(super) fn compare(
    protocol: &Protocol,
    served: &ServedLists,
    progress: &mut dyn FnMut(Progress),
) -> Option<Comparison> {
    let row_of = protocol.items.iter().enumerate().map(|(row, item)| (item.id.clone(), row as u32)).collect();
    let mut known = with_step_times(interactions(&protocol.events, &row_of), protocol);
    let queries: Vec<_> = sampled(protocol.queries.iter().zip(&served.of_queries).collect(), CASES_MAX);
    // After the events of the requests.
    let at = if protocol.step.is_some() { UnixMillis(protocol.at.0 + STEP) } else { protocol.at };
    let mut cases = Vec::with_capacity(queries.len());
    for (number, (query, _)) in queries.iter().enumerate() {
        // Requests of one visitor are cases of different users, whose events the state does not know.
        let user = match protocol.steps {
            Steps::OfUsers => query.user.clone(),
            Steps::OfSessions => UserId::visitor(&format!("case-{number}")).expect("a valid constant"),
        };
        if protocol.steps == Steps::OfSessions {
            known.extend(query.context.iter().rev().enumerate().map(|(age, row)| Interaction {
                user: Some(user.clone()),
                session: Session::UNKNOWN,
                at: UnixMillis(protocol.at.0 - (age as i64 + 1) * STEP),
                kind: protocol.kind,
                rows: vec![*row],
            }));
        }
        cases.push(Case { user, at, targets: query.targets.iter().map(|row| Row(*row)).collect() });
    }
    known.sort_by_key(|interaction| interaction.at);
    let shop = Shop::new(&known, vec![None; protocol.items.len()]);
    let subtask =
        if protocol.queries.iter().any(|query| !query.excluded.is_empty()) { Subtask::Discovery } else { Subtask::All };
    let task = if subtask == Subtask::All { Task::All } else { Task::Discovery };
    let of_served = queries.iter().zip(&cases).map(|((_, lists), case)| {
        let ranked: Vec<Row> = lists.lists.last().into_iter().flatten().map(|row| Row(*row)).collect();
        ranking_scores(&shop, case, &ranked)
    });
    let of_served: Vec<SubtaskScores> = of_served.collect();
    let states = [(StateUntil::Training, cases)];
    let index = TUNED.iter().position(|tuned| *tuned == subtask)?;
    let baselines = tuned_baselines(&shop, step_time(protocol.times.counted_until, protocol), &states, progress)
        .pop()
        .and_then(|by_subtask| by_subtask.into_iter().nth(index))?;
    let scored = Scored::new(subtask, &of_served, &baselines, &|_| true);
    let settings: Vec<Settings> =
        baselines.iter().map(|of| Settings { name: of.name, settings: of.settings.clone() }).collect();
    Comparison::new(StateUntil::Training, task, &scored, &settings, Vec::new(), &EvaluateOptions::default())
}

/// Returns the interactions at times that make each step of a user as long for the baselines. The last interaction of
/// a session keeps its time.
fn with_step_times(interactions: Vec<Interaction>, protocol: &Protocol) -> Vec<Interaction> {
    if protocol.steps == Steps::OfUsers {
        let at = |of: Interaction| Interaction { at: step_time(of.at, protocol), ..of };
        return interactions.into_iter().map(at).collect();
    }
    let mut later: AHashMap<UserId, (UnixMillis, i64)> = AHashMap::new();
    let mut moved: Vec<Interaction> = Vec::with_capacity(interactions.len());
    for interaction in interactions.into_iter().rev() {
        let at = match &interaction.user {
            Some(user) => {
                let (last, steps) = later.entry(user.clone()).or_insert((interaction.at, -1));
                *steps += 1;
                UnixMillis(last.0 - *steps * STEP)
            }
            None => interaction.at,
        };
        moved.push(Interaction { at, ..interaction });
    }
    moved
}

/// Returns the time for the baselines of a time of the protocol.
fn step_time(at: UnixMillis, protocol: &Protocol) -> UnixMillis {
    match protocol.step {
        Some(step) => UnixMillis(protocol.at.0 - (protocol.at.0 - at.0) / step * STEP),
        None => at,
    }
}
