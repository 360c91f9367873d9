//! Incentives with a gain of the users of `lodestone loyalty`, and the section of its report about budgets.
use super::loyalty::Base;
use lodestone_experiments::plots::{self, Line, Scales, section, wide};
use lodestone_loyalty::{AllocationLimits, CampaignUplift, Candidate, IncentiveEffect, allocate};
use rayon::prelude::*;
use std::fmt::Write;

const MICROS: f64 = 1e6;
const TITLE: &str = "Budget of incentives";
/// Budgets of the report, as shares of the one that suffices for all.
const BUDGET_SHARES: [f64; 9] = [0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0];

/// Returns the incentives of a campaign whose gain for a user is above 0 at the lower end of its interval, in units of the
/// currency. `user`: the position in [`Base::users`].
pub(super) fn gaining(base: &Base, campaign: &CampaignUplift, user: usize) -> Vec<(Candidate, IncentiveEffect)> {
    let summary = &base.users[user].summary;
    // The gain is in the campaign's currency, with which the value of purchases in another one cannot be compared.
    if summary.spends_only_in_others(&campaign.currency) {
        return Vec::new();
    }
    let effects = base.model.incentive_effects(&campaign.campaign_id, summary, base.day).unwrap_or_default();
    let gaining = effects.into_iter().enumerate().filter(|(_, (_, effect))| effect.gain_lower_micros > 0.0);
    let candidate = |(incentive, (_, effect)): (usize, (&str, IncentiveEffect))| {
        let (gain, cost) = (effect.gain_micros.value / MICROS, effect.cost_micros / MICROS);
        (Candidate { user, incentive, gain, cost }, effect)
    };
    gaining.map(candidate).collect()
}

/// Adds what the best assignment of each campaign gains at several budgets.
pub(super) fn budgets(html: &mut String, base: &Base) {
    if base.model.uplift.is_empty() {
        let note = "The training had no decisions about incentives, so their effect is not known. After a randomised pilot, \
                    this section has the expected gain at several budgets.";
        section(html, TITLE, note);
    }
    for campaign in &base.model.uplift {
        of_campaign(html, base, campaign);
    }
}

fn of_campaign(html: &mut String, base: &Base, campaign: &CampaignUplift) {
    let (id, currency) = (&campaign.campaign_id, &campaign.currency);
    if campaign.model.is_none() {
        section(html, TITLE, &format!("Campaign {id}: its effect is not known, because {}.", campaign.reason));
        return;
    }
    let users = 0..base.users.len();
    let of_users: Vec<_> = users.into_par_iter().map(|user| gaining(base, campaign, user)).collect();
    let candidates: Vec<Candidate> = of_users.into_iter().flatten().map(|(candidate, _)| candidate).collect();
    let unlimited = allocate(&candidates, &AllocationLimits::default());
    if unlimited.chosen.is_empty() {
        section(
            html,
            TITLE,
            &format!("Campaign {id}: no incentive has a gain above 0 at the lower end of its interval."),
        );
        return;
    }
    let note = format!(
        "Campaign {id}: expected gain within 30 days of the best assignment of incentives at several budgets, both in \
         {currency}, over all users without a hold-out. The budget limits the expected cost. {:.2} suffice for everyone \
         with a gain; more changes nothing. The price is the gain of the next unit of the budget.",
        unlimited.cost
    );
    section(html, TITLE, &note);
    let budget = |share: &f64| AllocationLimits { budget: Some(share * unlimited.cost), ..AllocationLimits::default() };
    let assigned: Vec<_> = BUDGET_SHARES.par_iter().map(|share| allocate(&candidates, &budget(share))).collect();
    let points = assigned.iter().map(|of| (of.cost, of.gain));
    let line = Line { name: "gain".to_owned(), points: std::iter::once((0.0, 0.0)).chain(points).collect() };
    wide(html, &plots::lines(&[line], "budget", "expected gain", Scales::Independent));
    let mut table = "<table><tr><th>budget</th><th>users</th><th>expected gain</th><th>price</th></tr>".to_owned();
    for (share, of) in BUDGET_SHARES.iter().zip(&assigned) {
        let _ = write!(
            table,
            "<tr><td>{:.2}</td><td>{}</td><td>{:.2}</td><td>{:.3}</td></tr>",
            share * unlimited.cost,
            of.chosen.len(),
            of.gain,
            of.budget_price
        );
    }
    table.push_str("</table>");
    wide(html, &table);
}
