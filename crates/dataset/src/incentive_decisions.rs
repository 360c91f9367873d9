//! Reads and writes `incentive_decisions.parquet`: the logged decisions about incentives, a row each.
use super::{
    Cells, DatasetError,
    columns::{self, optional, write_table},
};
use lodestone_core::ids::UserId;
use lodestone_events::{Event, EventKind, IncentiveDecision};
use std::{collections::BTreeMap, path::Path};

/// Name of the file in a data directory and in the directory of exported events.
const FILE: &str = "incentive_decisions.parquet";
const EXPORTED: &str = "events";

/// Decisions by their ids, each with whether its incentive was redeemed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoggedDecisions {
    decisions: BTreeMap<String, (IncentiveDecision, bool)>,
}

impl LoggedDecisions {
    /// Adds a decision. The first one with an id counts.
    pub fn add(&mut self, decision: IncentiveDecision) {
        self.decisions.entry(decision.decision_id.clone()).or_insert((decision, false));
    }

    /// Marks the decision whose incentive an event redeems.
    pub fn redeem(&mut self, event: &Event) {
        if event.kind == EventKind::IncentiveRedeemed
            && let Some((decision, is_redeemed)) = self.decisions.get_mut(&event.coupon)
        {
            *is_redeemed |= decision.is_given() && decision.user == event.user.as_str();
        }
    }

    /// Returns the decisions, each with whether its incentive was redeemed.
    pub fn iter(&self) -> impl Iterator<Item = (&IncentiveDecision, bool)> {
        self.decisions.values().map(|(decision, is_redeemed)| (decision, *is_redeemed))
    }

    /// Reads the decisions of a data directory and of its exported events. Both files are optional.
    pub fn read(data: &Path) -> Result<Self, DatasetError> {
        let mut read = Self::default();
        for path in [data.join(FILE), data.join(EXPORTED).join(FILE)] {
            if path.exists() {
                read.read_file(&path)?;
            }
        }
        Ok(read)
    }

    fn read_file(&mut self, path: &Path) -> Result<(), DatasetError> {
        columns::read(path, |columns| {
            let (ids, users) = (columns.texts("decision_id")?, columns.texts("user")?);
            let (campaigns, incentives) = (columns.texts("campaign_id")?, columns.texts("incentive_id")?);
            let (times, costs) = (columns.integers("time_ms")?, columns.integers("cost_micros")?);
            let (propensities, margins) = (columns.numbers("propensity")?, columns.numbers("margin")?);
            let (effects, currencies) = (columns.numbers("minimum_effect")?, columns.texts("currency")?);
            let (randomised, redeemed) = (columns.flags("is_randomised")?, columns.flags("is_redeemed")?);
            for row in 0..columns.len() {
                let text = |of| optional(of, row).unwrap_or_default().to_owned();
                let user = text(users);
                if UserId::from_key(&user).is_none() {
                    return Err(columns.bad(row, "user", format!("`{user}` is not the key of a user")));
                }
                let propensity = propensities.value(row);
                if !(propensity > 0.0 && propensity <= 1.0) {
                    let problem = format!("{propensity} is not above 0 and at most 1");
                    return Err(columns.bad(row, "propensity", problem));
                }
                let margin = margins.value(row);
                if !(margin > 0.0 && margin <= 1.0) {
                    return Err(columns.bad(row, "margin", format!("{margin} is not above 0 and at most 1")));
                }
                let decision = IncentiveDecision {
                    decision_id: text(ids),
                    user,
                    campaign_id: text(campaigns),
                    incentive_id: text(incentives),
                    at_ms: times.value(row),
                    propensity,
                    is_randomised: randomised.value(row),
                    cost_micros: costs.value(row),
                    currency: text(currencies),
                    margin,
                    minimum_effect: effects.value(row),
                    ..IncentiveDecision::default()
                };
                let known = self.decisions.entry(decision.decision_id.clone()).or_insert((decision, false));
                known.1 |= redeemed.value(row);
            }
            Ok(())
        })
    }

    /// Writes the file to a directory, unless there are no decisions.
    pub fn write(&self, directory: &Path) -> Result<(), DatasetError> {
        if self.decisions.is_empty() {
            return Ok(());
        }
        let rows: Vec<(&IncentiveDecision, bool)> = self.iter().collect();
        let texts = |of: &dyn Fn(&IncentiveDecision) -> &String| {
            Cells::Texts(rows.iter().map(|(decision, _)| of(decision).clone()).collect())
        };
        let integers = |of: &dyn Fn(&IncentiveDecision) -> i64| {
            Cells::Integers(rows.iter().map(|(decision, _)| of(decision)).collect())
        };
        let numbers = |of: &dyn Fn(&IncentiveDecision) -> f64| {
            Cells::Numbers(rows.iter().map(|(decision, _)| Some(of(decision))).collect())
        };
        let columns = [
            ("decision_id", texts(&|of| &of.decision_id)),
            ("user", texts(&|of| &of.user)),
            ("campaign_id", texts(&|of| &of.campaign_id)),
            ("incentive_id", texts(&|of| &of.incentive_id)),
            ("time_ms", integers(&|of| of.at_ms)),
            ("propensity", numbers(&|of| of.propensity)),
            ("is_randomised", Cells::Flags(rows.iter().map(|(decision, _)| decision.is_randomised).collect())),
            ("cost_micros", integers(&|of| of.cost_micros)),
            ("currency", texts(&|of| &of.currency)),
            ("margin", numbers(&|of| of.margin)),
            ("minimum_effect", numbers(&|of| of.minimum_effect)),
            ("is_redeemed", Cells::Flags(rows.iter().map(|(_, is_redeemed)| *is_redeemed).collect())),
        ];
        let columns = columns.into_iter().map(|(name, cells)| (name.to_owned(), cells)).collect();
        write_table(&directory.join(FILE), columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::{ids::EventId, units::UnixMillis};

    #[test]
    fn decisions_are_read_as_written_and_only_their_user_redeems_them() {
        let decision = |id: &str, incentive: &str| IncentiveDecision {
            decision_id: id.into(),
            user: "u:a".into(),
            campaign_id: "winter".into(),
            incentive_id: incentive.into(),
            at_ms: 5,
            propensity: 0.5,
            is_randomised: true,
            cost_micros: 7,
            currency: "EUR".into(),
            margin: 0.3,
            minimum_effect: 0.02,
            ..IncentiveDecision::default()
        };
        let mut decisions = LoggedDecisions::default();
        ["1", "2", "3"].iter().for_each(|id| decisions.add(decision(id, if *id == "3" { "" } else { "ten" })));
        for (coupon, user) in [("1", "a"), ("2", "b"), ("3", "a"), ("4", "a")] {
            let user = UserId::signed_in(user).unwrap();
            let event = Event::new(EventId::parse("e").unwrap(), EventKind::IncentiveRedeemed, user, UnixMillis(9));
            decisions.redeem(&Event { coupon: coupon.into(), ..event });
        }
        assert_eq!(decisions.iter().map(|(_, is_redeemed)| is_redeemed).collect::<Vec<_>>(), [true, false, false]);
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(LoggedDecisions::read(directory.path()).unwrap(), LoggedDecisions::default());
        decisions.write(directory.path()).unwrap();
        assert_eq!(LoggedDecisions::read(directory.path()).unwrap(), decisions);
    }
}
