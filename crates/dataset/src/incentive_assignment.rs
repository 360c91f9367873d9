//! Reads the decisions that `lodestone loyalty assign` writes.
use super::{
    DatasetError,
    columns::{self, optional},
};
use std::{collections::BTreeMap, path::Path};

/// A decision about one user.
#[derive(Debug, Clone, PartialEq)]
pub struct AssignedIncentive {
    /// `none`: no incentive.
    pub incentive: String,
    /// Name of `lodestone.v1.IncentiveReason`, without its prefix.
    pub reason: String,
    /// Probability with which the decision had its result, above 0 and at most 1.
    pub propensity: f64,
}

/// Reads a file of decisions, by user. Each user has one.
pub fn read_incentive_assignment(path: &Path) -> Result<BTreeMap<String, AssignedIncentive>, DatasetError> {
    let mut decisions = BTreeMap::new();
    columns::read(path, |columns| {
        let (users, incentives) = (columns.texts("user_id")?, columns.texts("incentive_id")?);
        let (reasons, propensities) = (columns.texts("reason")?, columns.numbers("propensity")?);
        for row in 0..columns.len() {
            let text = |column: &'static str, texts| match optional(texts, row) {
                Some(text) if !text.is_empty() => Ok(text.to_owned()),
                _ => Err(columns.bad(row, column, "is empty".to_owned())),
            };
            let user = text("user_id", users)?;
            let propensity = propensities.value(row);
            if !(propensity > 0.0 && propensity <= 1.0) {
                let problem = format!("{propensity} is not above 0 and at most 1");
                return Err(columns.bad(row, "propensity", problem));
            }
            let (incentive, reason) = (text("incentive_id", incentives)?, text("reason", reasons)?);
            let decision = AssignedIncentive { incentive, reason, propensity };
            if decisions.insert(user.clone(), decision).is_some() {
                let problem = format!("`{user}` has an earlier row; each user has one decision");
                return Err(columns.bad(row, "user_id", problem));
            }
        }
        Ok(())
    })?;
    Ok(decisions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cells, write_table};

    fn read(users: [&str; 2], propensity: Option<f64>) -> Result<BTreeMap<String, AssignedIncentive>, DatasetError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("decisions.parquet");
        let texts = |of: [&str; 2]| Cells::Texts(of.map(str::to_owned).into());
        let columns = [
            ("user_id", texts(users)),
            ("incentive_id", texts(["ten", "none"])),
            ("reason", texts(["GAIN", "HOLDOUT"])),
            ("propensity", Cells::Numbers(vec![Some(0.9), propensity])),
        ];
        write_table(&path, columns.into_iter().map(|(name, cells)| (name.to_owned(), cells)).collect()).unwrap();
        read_incentive_assignment(&path)
    }

    #[test]
    fn each_user_has_one_valid_decision() {
        let found = read(["a", "b"], Some(0.1)).unwrap();
        let expected = AssignedIncentive { incentive: "none".into(), reason: "HOLDOUT".into(), propensity: 0.1 };
        assert_eq!((found.len(), &found["b"]), (2, &expected));
        for (users, propensity, expected) in [
            (["a", "a"], Some(0.1), "row 2, column `user_id`: `a` has an earlier row; each user has one decision"),
            (["a", ""], Some(0.1), "row 2, column `user_id`: is empty"),
            (["a", "b"], None, "row 2, column `propensity`: 0 is not above 0 and at most 1"),
            (["a", "b"], Some(1.5), "row 2, column `propensity`: 1.5 is not above 0 and at most 1"),
        ] {
            let message = read(users, propensity).unwrap_err().to_string();
            assert!(message.ends_with(expected), "{message}");
        }
    }
}
