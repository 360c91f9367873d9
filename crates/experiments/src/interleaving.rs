//! Preference between two interleaved rankings. `lodestone-pipeline` interleaves the lists.
use crate::observations::{Draft, Outcome, Team};
use ahash::AHashMap;
use lodestone_core::statistics::{Moments, sign_test};
use serde::Serialize;

/// Sequential intervals contain the true value at all times with probability `1 - ALPHA`.
pub(crate) const ALPHA: f64 = 0.05;
/// Number of users at which the interval of the balance is narrowest; interleaving needs far fewer than an A/B test.
const PLANNED: f64 = 1000.0;

/// Outcomes with the picks of two rankings (team draft: Radlinski, Kurup and Joachims 2008).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InterleavingReport {
    /// The counted kind of outcome.
    pub kind: String,
    pub answers: usize,
    pub users: usize,
    /// Outcomes with picks of each team.
    pub credits_a: u64,
    pub credits_b: u64,
    /// Users with more outcomes on picks of A, of B, and with the same number (above 0) on both.
    pub prefer_a: u64,
    pub prefer_b: u64,
    pub ties: u64,
    /// p-value of a sign test over users without ties; valid for a single look at the end.
    pub p: f64,
    /// Mean over all users of +1 for B, -1 for A, 0 for no preference. Its 95 % interval is valid at every look.
    pub balance: f64,
    pub balance_low: Option<f64>,
    pub balance_high: Option<f64>,
}

/// Credits each outcome of `kind` to the team that picked the item, and counts each user once, because the sessions of
/// a user are dependent. An outcome belongs to the answer that it names, otherwise to the user's latest earlier answer
/// that shows its item, at most `window_ms` before. Outcomes with other items are not credited.
pub fn credit(drafts: &[Draft], outcomes: &[Outcome], kind: &str, window_ms: i64) -> InterleavingReport {
    let mut by_answer: AHashMap<&str, &Draft> = AHashMap::new();
    let mut by_user: AHashMap<&str, Vec<&Draft>> = AHashMap::new();
    for draft in drafts {
        if !draft.answer.is_empty() {
            by_answer.insert(&draft.answer, draft);
        }
        by_user.entry(&draft.user).or_default().push(draft);
    }
    by_user.values_mut().for_each(|drafts| drafts.sort_by_key(|draft| draft.at));
    let team_of = |draft: &Draft, item: &str| draft.picks.iter().find(|pick| pick.0 == item).map(|pick| pick.1);
    let mut credits: AHashMap<&str, (u64, u64)> = by_user.keys().map(|user| (*user, (0, 0))).collect();
    for outcome in outcomes.iter().filter(|outcome| outcome.kind == kind && !outcome.item.is_empty()) {
        let is_before = |draft: &&&Draft| draft.at <= outcome.at && outcome.at.0 - draft.at.0 <= window_ms;
        let team = match by_answer.get(outcome.answer.as_str()) {
            Some(draft) => team_of(draft, &outcome.item).map(|team| (draft.user.as_str(), team)),
            None if !outcome.answer.is_empty() => None,
            None => by_user
                .get(outcome.user.as_str())
                .into_iter()
                .flatten()
                .rev()
                .filter(is_before)
                .find_map(|draft| team_of(draft, &outcome.item).map(|team| (draft.user.as_str(), team))),
        };
        let Some((user, team)) = team else { continue };
        let credit = credits.entry(user).or_default();
        match team {
            Team::A => credit.0 += 1,
            Team::B => credit.1 += 1,
        }
    }
    summary(kind, drafts.len(), credits.into_values())
}

fn summary(kind: &str, answers: usize, credits: impl Iterator<Item = (u64, u64)>) -> InterleavingReport {
    let mut report = InterleavingReport {
        kind: kind.to_owned(),
        answers,
        users: 0,
        credits_a: 0,
        credits_b: 0,
        prefer_a: 0,
        prefer_b: 0,
        ties: 0,
        p: 1.0,
        balance: 0.0,
        balance_low: None,
        balance_high: None,
    };
    let mut balance = Moments::default();
    for (a, b) in credits {
        report.users += 1;
        report.credits_a += a;
        report.credits_b += b;
        report.prefer_a += u64::from(a > b);
        report.prefer_b += u64::from(b > a);
        report.ties += u64::from(a == b && a > 0);
        balance.add(f64::from(i8::from(b > a) - i8::from(a > b)));
    }
    report.p = sign_test(report.prefer_a, report.prefer_b);
    report.balance = balance.mean;
    if let Some(half) = balance.sequential_half_width(PLANNED, ALPHA) {
        (report.balance_low, report.balance_high) = (Some(balance.mean - half), Some(balance.mean + half));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::units::UnixMillis;

    fn draft(answer: &str, user: &str, at: i64, picks: &[(&str, Team)]) -> Draft {
        Draft {
            answer: answer.to_owned(),
            user: user.to_owned(),
            at: UnixMillis(at),
            experiment: "e".to_owned(),
            picks: picks.iter().map(|(item, team)| ((*item).to_owned(), *team)).collect(),
        }
    }

    fn click(user: &str, at: i64, item: &str, answer: &str) -> Outcome {
        Outcome {
            user: user.to_owned(),
            at: UnixMillis(at),
            kind: "click".to_owned(),
            value: 0.0,
            currency: String::new(),
            item: item.to_owned(),
            answer: answer.to_owned(),
        }
    }

    #[test]
    fn a_click_is_credited_to_the_team_that_picked_the_item() {
        let drafts = [
            draft("1", "p", 0, &[("x", Team::A), ("y", Team::B)]),
            draft("2", "p", 50, &[("x", Team::B), ("z", Team::A)]),
            draft("3", "q", 0, &[("x", Team::B)]),
            draft("4", "r", 0, &[("x", Team::A)]),
        ];
        let outcomes = [
            click("p", 60, "x", "1"),     // names the first answer: A
            click("p", 60, "x", ""),      // the latest answer with the item: B
            click("p", 40, "x", ""),      // before the second: A
            click("p", 60, "y", "2"),     // the second answer does not show the item
            click("p", 60, "x", "other"), // an unknown answer
            click("q", 2000, "x", ""),    // too late
            click("q", 100, "x", ""),     // B
            click("unknown", 10, "x", ""),
            Outcome { kind: "view".to_owned(), ..click("q", 100, "x", "") },
        ];
        let report = credit(&drafts, &outcomes, "click", 1000);
        assert_eq!((report.credits_a, report.credits_b), (2, 2));
        assert_eq!((report.users, report.prefer_a, report.prefer_b, report.ties), (3, 1, 1, 0));
        assert_eq!((report.p, report.balance), (1.0, 0.0));
    }

    #[test]
    fn a_better_ranking_wins() {
        let drafts: Vec<Draft> = (0..200)
            .map(|user| draft(&user.to_string(), &format!("p{user}"), 0, &[("good", Team::B), ("bad", Team::A)]))
            .collect();
        let outcomes: Vec<Outcome> =
            (0..200).map(|user| click("", 1, if user % 4 == 0 { "bad" } else { "good" }, &user.to_string())).collect();
        let report = credit(&drafts, &outcomes, "click", 1000);
        assert_eq!((report.prefer_a, report.prefer_b), (50, 150));
        assert!((report.balance - 0.5).abs() < 1e-9);
        assert!(report.p < 1e-6 && report.balance_low.unwrap() > 0.0 && report.balance_high.unwrap() < 1.0);
        let none = credit(&[], &[], "click", 1000);
        assert_eq!((none.users, none.p, none.balance_low), (0, 1.0, None));
    }
}
