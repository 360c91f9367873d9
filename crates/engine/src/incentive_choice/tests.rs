use super::*;
use lodestone_core::ids::UserId;
use lodestone_events::is_holdout;
use lodestone_rules::{Benefit, IncentiveAllocation, IncentiveCampaign};
use prost_types::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};

const DAYS: i64 = 30;
const DAY: f64 = UnixMillis::DAY as f64;
const COST: i64 = 5_000_000;

fn incentive(id: &str, cost_micros: i64, valid_days: i32) -> Incentive {
    Incentive {
        incentive_id: id.into(),
        benefit: Some(Benefit::PercentOff(10.0)),
        cost_micros: Some(cost_micros),
        valid_days,
        user_count_max: 0,
    }
}

/// A targeted campaign of 30 days.
fn campaign(budget_micros: i64, incentives: Vec<Incentive>) -> CompiledCampaign {
    let time = |days: i64| Some(Timestamp { seconds: days * 86_400, nanos: 0 });
    let campaign = IncentiveCampaign {
        campaign_id: "c".into(),
        currency_code: "EUR".into(),
        budget_micros,
        margin: 0.4,
        holdout_share: 0.1,
        allocation: IncentiveAllocation::Targeted as i32,
        user_limit: 1,
        user_limit_days: 30,
        start_time: time(0),
        end_time: time(DAYS),
        incentives,
        ..IncentiveCampaign::default()
    };
    CompiledCampaign::new(campaign).unwrap()
}

fn request(number: usize) -> DecideRequest {
    DecideRequest {
        decision_id: format!("d{number}"),
        campaign_id: "c".into(),
        user: UserId::signed_in(&format!("u{number}")).unwrap(),
        currency: String::new(),
        customer_groups: Vec::new(),
    }
}

/// An effect whose gain is certain.
fn effect(gain_micros: f64, cost_micros: f64) -> IncentiveEffect {
    let certain = |value: f64| Estimate { value, low: value, high: value };
    IncentiveEffect {
        purchase: certain(0.1),
        gain_micros: certain(gain_micros),
        gain_lower_micros: gain_micros,
        cost_micros,
        response: 0.5,
    }
}

fn decided(outcome: IncentiveOutcome) -> (IncentiveReason, IncentiveDecision) {
    match outcome {
        IncentiveOutcome::Decided(reason, decision) => (reason, *decision),
        IncentiveOutcome::NotDecided(reason, explanation, _) => panic!("{reason:?}: {explanation}"),
    }
}

/// What users gain, and with which probability they redeem.
#[derive(Clone, Copy, PartialEq)]
enum Demand {
    /// Gains and probabilities differ from user to user.
    Varied,
    /// All users are alike, so that no price tells them apart.
    Equal,
    /// Nobody redeems anything.
    NeverRedeemed,
}

/// The result of a simulated campaign.
#[derive(Debug)]
struct Spending {
    /// Users who asked and are not in the hold-out.
    asked: usize,
    /// Given incentives by fifth of the period.
    given: [usize; 5],
    refused_for_budget: usize,
    used_max: i64,
    used_at_end: i64,
}

/// Simulates a campaign: users ask at random, most of them around noon, and redeem within the valid days or never.
fn simulate(demand: Demand, budget_micros: i64, valid_days: i32, users_per_day: f64) -> Spending {
    let campaign = campaign(budget_micros, vec![incentive("ten", COST, valid_days)]);
    let mut ledger = IncentiveLedger::default();
    let mut random = StdRng::seed_from_u64(11);
    let mut redemptions: Vec<(i64, usize)> = Vec::new();
    let mut spending = Spending { asked: 0, given: [0; 5], refused_for_budget: 0, used_max: 0, used_at_end: 0 };
    let (mut at, mut number) = (0.0, 0);
    loop {
        let rate = users_per_day * (1.0 - 0.9 * (std::f64::consts::TAU * at).cos());
        at += -(1.0 - random.random::<f64>()).ln() / rate;
        if at >= DAYS as f64 {
            break;
        }
        number += 1;
        let now = UnixMillis((at * DAY) as i64);
        redemptions.retain(|(time, of)| {
            if *time <= now.0 {
                ledger.redeem(&format!("d{of}"), &format!("u:u{of}"));
            }
            *time > now.0
        });
        let (gain, probability) = match demand {
            // From 0 to 5 units, and from 0.1 to 0.6.
            Demand::Varied => (5e6 * random.random::<f64>(), 0.1 + 0.5 * random.random::<f64>()),
            Demand::Equal => (2e6, 0.3),
            Demand::NeverRedeemed => (5e6 * random.random::<f64>(), 0.0),
        };
        let effects = BTreeMap::from([("ten", effect(gain.max(1.0), probability * COST as f64))]);
        let request = request(number);
        let used = ledger.campaign_use("c", now);
        let is_holdout = is_holdout("c", campaign.campaign.holdout_share, &request.user);
        spending.asked += usize::from(!is_holdout);
        let price = budget_price(&mut ledger, &campaign, now);
        let draft = Draft { campaign: &campaign, request: &request, used: &used, now, is_holdout };
        match draft.targeted(&effects, price, random.random()) {
            IncentiveOutcome::NotDecided(reason, _, _) => {
                assert_eq!(reason, IncentiveReason::Budget);
                spending.refused_for_budget += 1;
            }
            IncentiveOutcome::Decided(_, decision) => {
                if decision.is_given() {
                    spending.given[(at * 5.0 / DAYS as f64) as usize] += 1;
                    if random.random::<f64>() < probability {
                        let days = f64::from(valid_days) * random.random::<f64>();
                        redemptions.push((((at + days) * DAY) as i64, number));
                    }
                }
                ledger.add(*decision);
            }
        }
        spending.used_at_end = ledger.campaign_use("c", now).used_micros;
        spending.used_max = spending.used_max.max(spending.used_at_end);
    }
    spending
}

/// Demand of about four times the budget: each fifth of the period has about a fifth of the incentives, and at the end the
/// budget is used up.
#[test]
fn a_budget_lasts_until_the_campaign_ends_and_is_never_exceeded() {
    for (demand, budget, valid_days, users_per_day) in [
        (Demand::Varied, 1_000_000_000, 14, 60.0),
        (Demand::Varied, 1_000_000_000, 2, 90.0),
        (Demand::Varied, 1_000_000_000, 60, 40.0),
        (Demand::Equal, 1_000_000_000, 14, 60.0),
        (Demand::NeverRedeemed, 1_000_000_000, 14, 60.0),
    ] {
        let found = simulate(demand, budget, valid_days, users_per_day);
        let given: usize = found.given.iter().sum();
        assert!(found.used_max <= budget, "{found:?}");
        assert!(found.used_at_end as f64 > 0.88 * budget as f64, "{valid_days} days: {found:?}");
        for of_fifth in found.given {
            let share = of_fifth as f64 / given as f64;
            assert!((0.1..0.32).contains(&share), "{valid_days} days: {found:?}");
        }
        assert!(found.refused_for_budget * 10 < given, "{valid_days} days: {found:?}");
    }
}

#[test]
fn a_budget_that_suffices_for_all_has_no_price() {
    let found = simulate(Demand::Varied, 1_000_000_000_000, 14, 20.0);
    let given: usize = found.given.iter().sum();
    assert!(given == found.asked && given > 300 && found.refused_for_budget == 0, "{found:?}");
}

/// Propensities are those over the draws of the price and the hold-out.
#[test]
fn a_drawn_price_has_its_probability_in_the_propensity() {
    let campaign = campaign(1_000_000_000, vec![incentive("ten", COST, 14), incentive("badge", 0, 14)]);
    let (request, used) = (request(1), CampaignUse::default());
    let draft = |is_holdout: bool| Draft {
        campaign: &campaign,
        request: &request,
        used: &used,
        now: UnixMillis(0),
        is_holdout,
    };
    let price = BudgetPrice { low: 1.0, high: f64::INFINITY, low_share: 0.25 };
    let ten = BTreeMap::from([("ten", effect(4e6, 2e6))]);
    let close = |left: f64, right: f64| assert!((left - right).abs() < 1e-12, "{left} {right}");

    let (reason, given) = decided(draft(false).targeted(&ten, price, 0.2));
    assert_eq!((reason, given.incentive_id.as_str(), given.budget_price), (IncentiveReason::Gain, "ten", Some(1.0)));
    close(given.propensity, 0.9 * 0.25);
    let demand = DecisionDemand { gain_micros: 4_000_000, expected_cost_micros: 2_000_000, cost_micros: COST };
    assert_eq!(given.demand, [demand]);

    let (reason, none) = decided(draft(false).targeted(&ten, price, 0.25));
    assert_eq!((reason, none.incentive_id.as_str()), (IncentiveReason::NoGain, ""));
    close(none.propensity, 0.1 + 0.9 * 0.75);
    assert_eq!(none.demand, [demand], "a user whom the price refuses is demand");
    assert!(none.explanation.contains("lasts until the campaign ends"), "{}", none.explanation);

    // Users of the hold-out are told apart by the same draws, and spend nothing.
    let (reason, kept) = decided(draft(true).targeted(&ten, price, 0.2));
    assert_eq!((reason, kept.demand.len(), kept.budget_price), (IncentiveReason::Holdout, 0, Some(1.0)));
    close(kept.propensity, 0.1 + 0.9 * 0.75);
    assert_eq!(decided(draft(true).targeted(&ten, price, 0.3)).0, IncentiveReason::NoGain);

    // At the infinite price the one without a cost remains.
    let both = BTreeMap::from([("ten", effect(4e6, 2e6)), ("badge", effect(1e6, 0.0))]);
    let (_, badge) = decided(draft(false).targeted(&both, price, 0.9));
    assert_eq!((badge.incentive_id.as_str(), badge.demand.len()), ("badge", 2));
    close(badge.propensity, 0.9 * 0.75);

    // A certain price, and no gain.
    let certain = BudgetPrice::fixed(0.0);
    close(decided(draft(false).targeted(&ten, certain, 0.9)).1.propensity, 0.9);
    close(decided(draft(true).targeted(&ten, certain, 0.9)).1.propensity, 0.1);
    let (reason, none) = decided(draft(false).targeted(&BTreeMap::new(), price, 0.2));
    assert_eq!((reason, none.propensity, none.demand.len()), (IncentiveReason::NoGain, 1.0, 0));
}

/// An incentive that has reached its limit is given to nobody, so it is no demand; one that the rest of the budget does not
/// suffice for is.
#[test]
fn what_cannot_be_given_is_refused_for_the_budget() {
    let limited = Incentive { user_count_max: 1, ..incentive("ten", COST, 14) };
    let campaign = campaign(12_000_000, vec![limited, incentive("large", 10_000_000, 14)]);
    let (request, effects) = (request(1), BTreeMap::from([("ten", effect(4e6, 2e6)), ("large", effect(9e6, 2e6))]));
    let used = |used_micros: i64, ten: u64| CampaignUse {
        used_micros,
        counts: BTreeMap::from([("ten".to_owned(), ten)]),
        ..CampaignUse::default()
    };
    let choose = |used: &CampaignUse, effects: &BTreeMap<&str, IncentiveEffect>| {
        let draft = Draft { campaign: &campaign, request: &request, used, now: UnixMillis(0), is_holdout: false };
        draft.targeted(effects, BudgetPrice::fixed(0.0), 0.0)
    };
    let (_, large) = decided(choose(&used(0, 1), &effects));
    assert_eq!((large.incentive_id.as_str(), large.demand.len()), ("large", 1));
    let (_, ten) = decided(choose(&used(5_000_000, 0), &effects));
    assert_eq!((ten.incentive_id.as_str(), ten.demand.len()), ("ten", 2));
    for (used, effects) in
        [(used(5_000_000, 1), effects.clone()), (used(0, 1), BTreeMap::from([("ten", effect(4e6, 2e6))]))]
    {
        let IncentiveOutcome::NotDecided(reason, text, _) = choose(&used, &effects) else { panic!("decided") };
        assert_eq!(reason, IncentiveReason::Budget, "{text}");
    }
}
