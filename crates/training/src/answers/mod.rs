//! Counterfactual learning to rank from the answer log: lists that were really shown, with the interactions that
//! followed from them.
//!
//! An interaction in slot `k` needs that the user examined the slot. So each counts with the inverse of the probability
//! of that, clipped: inverse propensity scoring, which makes the loss on interactions an unbiased estimate of the loss
//! on relevance (Joachims, Swaminathan and Schnabel 2017, "Unbiased Learning-to-Rank with Biased Feedback"; for a
//! softmax, Agarwal, Takatsu, Zaitsev and Joachims 2019, "A General Framework for Counterfactual Learning-to-Rank").
//! The sum of the softmax is over the whole page, examined or not: an item that was not examined counts as a positive
//! elsewhere, with a greater weight, as often as it is wrongly a negative here.
mod lists;
mod log;
mod position_bias;

pub(crate) use lists::{shown_list, with_mean_weight_one};
use lodestone_core::units::UnixMillis;
use lodestone_pipeline::answers::AnswerId;
pub(crate) use log::{JoinInput, LoggedAnswers, ShownAnswer};
pub use position_bias::PositionBias;
use std::{fmt, path::PathBuf};

/// The answer log that a training learns from.
#[derive(Debug, Clone)]
pub struct AnswerSource {
    /// The server's records, `DATA/answers`.
    pub directory: PathBuf,
    /// Returns the answer id of an attribution token.
    pub answer_of: fn(&str) -> Option<AnswerId>,
}

/// Fewest answers with randomness, and fewest interactions in slots that randomness fills, for an estimate of the
/// position bias.
const EXPLORED_ANSWERS_MIN: usize = 200;
const EXPLORED_INTERACTIONS_MIN: usize = 200;

/// What a training learned from the answer log.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct AnswersReport {
    /// Files of the log.
    pub file_count: usize,
    /// End of the training data, without the interactions that are held out, in ms since 1970.
    pub until_ms: i64,
    /// Searches, recommendations `FOR_YOU` and rankings of the caller's candidates with known items before the end of the
    /// training data; at most the latest 20,000.
    pub answer_count: usize,
    /// Slots with an interaction that followed from their answer.
    pub interaction_count: usize,
    /// Answers of configurations that explore, with their slots that exploration may fill in several ways.
    pub explored_answer_count: usize,
    pub explored_interaction_count: usize,
    /// Evidence that is missing for a start; none if there is enough.
    pub missing: Option<MissingEvidence>,
    /// None if evidence is missing.
    pub position_bias: Option<PositionBias>,
    /// Lists that the ranking model learned from: those of the period of its labels with an interaction.
    pub list_count: usize,
    pub left_out: LeftOut,
}

/// The evidence that is missing for an estimate of the position bias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct MissingEvidence {
    pub explored_answer_count: usize,
    pub explored_interaction_count: usize,
}

/// Records that were not used.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// Answers to other requests: from anchor items, of other types, or of more than 200 candidates of the caller.
    pub other_request_count: usize,
    /// Answers without an item of the catalogue.
    pub unknown_item_answer_count: usize,
    /// Other answers, at or after the end of the training data.
    pub later_answer_count: usize,
    /// Damaged blocks, and records that are inconsistent.
    pub damaged_count: usize,
    pub torn_byte_count: u64,
    /// Files that cannot be read, with the reason.
    pub files: Vec<String>,
}

impl AnswersReport {
    fn find_missing(&mut self) {
        let missing = MissingEvidence {
            explored_answer_count: EXPLORED_ANSWERS_MIN.saturating_sub(self.explored_answer_count),
            explored_interaction_count: EXPLORED_INTERACTIONS_MIN.saturating_sub(self.explored_interaction_count),
        };
        self.missing = Some(missing).filter(|missing| *missing != MissingEvidence::default());
    }
}

/// Most slots of the position bias in the summary.
const PRINTED_SLOTS_MAX: usize = 12;

impl fmt::Display for AnswersReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answer_count, interaction_count, explored_answer_count, explored_interaction_count, .. } = self;
        if self.file_count == 0 {
            return writeln!(
                f,
                "answer log: none, so that no list was learned from; `lodestone serve` writes it to the data directory \
                 (--answers-share)"
            );
        }
        writeln!(
            f,
            "answer log: {answer_count} answers, {interaction_count} interactions; {explored_answer_count} answers with \
             exploration, {explored_interaction_count} interactions in their explored slots"
        )?;
        let later_count = self.left_out.later_answer_count;
        if let Some(missing) = &self.missing {
            let remedy = match later_count {
                0 => "let a serving configuration explore (docs/serving.md)",
                _ => "train on newer events, or hold out fewer of them (docs/training.md)",
            };
            writeln!(
                f,
                "  not used, because too few: {} of {EXPLORED_ANSWERS_MIN} answers with exploration and {} of \
                 {EXPLORED_INTERACTIONS_MIN} interactions are missing; {remedy}",
                missing.explored_answer_count, missing.explored_interaction_count
            )?;
        }
        if later_count > 0 {
            let until = UnixMillis(self.until_ms);
            writeln!(
                f,
                "  {later_count} answers are later than the training data without the held-out newest interactions, \
                 which end at {until}"
            )?;
        }
        if let Some(bias) = &self.position_bias {
            let curve: Vec<String> =
                bias.examination.iter().take(PRINTED_SLOTS_MAX).map(|value| format!("{value:.2}")).collect();
            writeln!(f, "  {} lists; examination by slot: {}", self.list_count, curve.join(" "))?;
        }
        let LeftOut { other_request_count, unknown_item_answer_count, damaged_count, torn_byte_count, files, .. } =
            &self.left_out;
        if (LeftOut { later_answer_count: 0, ..self.left_out.clone() }) != LeftOut::default() {
            writeln!(
                f,
                "  left out: {other_request_count} answers to other requests, {unknown_item_answer_count} without a known \
                 item, {damaged_count} damaged parts, {torn_byte_count} bytes of incomplete blocks"
            )?;
        }
        files.iter().try_for_each(|file| writeln!(f, "  left out: {file}"))
    }
}
