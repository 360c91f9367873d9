//! The answers of the log with the interactions that followed from them.
use super::{AnswerId, AnswerSource, AnswersReport, LeftOut, PositionBias, position_bias::PairCounts};
use crate::error::TrainError;
use ahash::AHashMap;
use lodestone_core::{
    ids::{ItemId, Row, UserId},
    units::UnixMillis,
    viewer::ViewerContext,
};
use lodestone_dataset::AnswerTokens;
use lodestone_events::{Event, EventKind};
use lodestone_pipeline::{
    PAGE_SIZE_MAX,
    answers::{self, AnswerRecord, RequestedList},
};
use rayon::prelude::*;
use std::{collections::BTreeMap, path::Path};

/// Most answers that are kept, the latest ones.
const ANSWERS_MAX: usize = 20_000;
/// Records that are decoded before their probabilities are computed in parallel. A record has about 50 KB.
const BATCH: usize = 128;
/// Monte Carlo samples of the probabilities of a page.
const SAMPLES: usize = 200;
/// An interaction this long after its answer is too late to be its outcome.
const WINDOW_MS: i64 = UnixMillis::DAY;

/// An answer that users saw.
#[derive(Debug, Clone)]
pub(crate) struct ShownAnswer {
    id: AnswerId,
    pub user: UserId,
    pub context: ViewerContext,
    /// The time of the answer; that of its first event, if this is earlier because the clocks differ.
    pub at: UnixMillis,
    /// None without one.
    pub query: Option<String>,
    /// Those of the caller, in the order of retrieval. None: retrieval found them.
    pub candidates: Option<Vec<ShownCandidate>>,
    /// Without pins and unknown items.
    pub slots: Vec<ShownSlot>,
}

/// A candidate of the caller.
#[derive(Debug, Clone)]
pub(crate) struct ShownCandidate {
    pub row: Row,
    /// The values that the request has for features, by name.
    pub features: BTreeMap<String, f64>,
}

#[derive(Debug, Clone)]
pub(crate) struct ShownSlot {
    pub row: Row,
    /// From 0.
    pub slot: usize,
    /// See [`AnswerRecord::slot_probabilities`].
    pub probabilities: Vec<f32>,
    pub outcome: SlotOutcome,
}

/// The interactions that followed from a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SlotOutcome {
    pub has_click: bool,
    pub has_cart: bool,
    pub has_purchase: bool,
}

impl SlotOutcome {
    pub(super) fn has_interaction(self) -> bool {
        self.has_click || self.has_cart || self.has_purchase
    }

    fn add(&mut self, kind: EventKind) {
        match kind {
            EventKind::View | EventKind::Click | EventKind::Review => self.has_click = true,
            EventKind::AddToCart | EventKind::Favorite => self.has_cart = true,
            EventKind::Purchase => self.has_purchase = true,
            _ => {}
        }
    }
}

impl ShownAnswer {
    pub(crate) fn has_interaction(&self) -> bool {
        self.slots.iter().any(|slot| slot.outcome.has_interaction())
    }
}

impl ShownSlot {
    /// Returns whether exploration may show the item in another slot of the page.
    fn is_explored(&self) -> bool {
        self.probabilities.iter().enumerate().any(|(slot, probability)| slot != self.slot && *probability > 0.0)
    }
}

/// The usable part of an answer log.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoggedAnswers {
    /// In time order. Empty if evidence is missing.
    pub answers: Vec<ShownAnswer>,
    pub report: AnswersReport,
}

/// The shop's data that answers are joined with.
pub(crate) struct JoinInput<'a> {
    /// In time order. Those at or after `until` are ignored.
    pub events: &'a [Event],
    pub until: UnixMillis,
    pub tokens: &'a AnswerTokens,
    pub row_of: &'a AHashMap<ItemId, u32>,
}

impl LoggedAnswers {
    /// Reads the log, joins it with the events, and estimates the position bias if there is enough evidence.
    pub(crate) fn read(source: &AnswerSource, input: &JoinInput) -> Result<Self, TrainError> {
        let mut logged = Self::default();
        logged.report.until_ms = input.until.0;
        logged.read_files(&source.directory, input)?;
        logged.join(input, source.answer_of);
        logged.answers.sort_by_key(|answer| (answer.at, answer.id));
        let slot_count = logged.answers.iter().flat_map(|answer| &answer.slots).map(|slot| slot.slot + 1).max();
        let mut counts = PairCounts::new(slot_count.unwrap_or(0));
        let report = &mut logged.report;
        report.answer_count = logged.answers.len();
        for answer in &logged.answers {
            report.explored_answer_count += usize::from(answer.slots.iter().any(ShownSlot::is_explored));
            for slot in &answer.slots {
                let has_interaction = slot.outcome.has_interaction();
                report.interaction_count += usize::from(has_interaction);
                report.explored_interaction_count += usize::from(has_interaction && slot.is_explored());
                counts.add(slot.slot, &slot.probabilities, has_interaction);
            }
        }
        report.find_missing();
        match report.missing {
            None => report.position_bias = Some(PositionBias::estimate(&counts)),
            Some(_) => logged.answers.clear(),
        }
        Ok(logged)
    }

    /// Reads the latest answers. Fails if no file can be read, or no shown item is in the catalogue.
    fn read_files(&mut self, directory: &Path, input: &JoinInput) -> Result<(), TrainError> {
        let files = answers::list_files(directory)?;
        self.report.file_count = files.len();
        let mut first_error = None;
        for path in files.iter().rev() {
            if self.answers.len() >= ANSWERS_MAX {
                break;
            }
            let mut batch: Vec<AnswerRecord> = Vec::with_capacity(BATCH);
            let read = answers::read_file(path, |record| {
                batch.push(record);
                if batch.len() == BATCH {
                    self.add(&mut batch, input);
                }
            });
            self.add(&mut batch, input);
            match read {
                Ok(damage) => {
                    self.report.left_out.damaged_count += damage.damaged_blocks;
                    self.report.left_out.torn_byte_count += damage.torn_bytes;
                }
                // The other files may still be readable, for example after an upgrade.
                Err(error) => {
                    self.report.left_out.files.push(error.to_string());
                    first_error.get_or_insert(error);
                }
            }
        }
        if let Some(error) = first_error.filter(|_| self.report.left_out.files.len() == files.len()) {
            return Err(error.into());
        }
        self.answers.sort_by_key(|answer| (answer.at, answer.id));
        self.answers.drain(..self.answers.len().saturating_sub(ANSWERS_MAX));
        let LeftOut { unknown_item_answer_count, later_answer_count, .. } = self.report.left_out;
        if self.answers.is_empty() && later_answer_count == 0 && unknown_item_answer_count > 0 {
            return Err(TrainError::OtherCatalogue {
                directory: directory.to_owned(),
                answer_count: unknown_item_answer_count,
                item_count: input.row_of.len(),
            });
        }
        Ok(())
    }

    fn add(&mut self, batch: &mut Vec<AnswerRecord>, input: &JoinInput) {
        let shown: Vec<Result<ShownAnswer, Unusable>> =
            batch.par_iter().map(|record| shown_answer(record, input.row_of)).collect();
        batch.clear();
        let left_out = &mut self.report.left_out;
        for answer in shown {
            match answer {
                // The events that follow from later answers are held out.
                Ok(answer) if answer.at >= input.until => left_out.later_answer_count += 1,
                Ok(answer) => self.answers.push(answer),
                Err(Unusable::OtherRequest) => left_out.other_request_count += 1,
                Err(Unusable::UnknownItems) => left_out.unknown_item_answer_count += 1,
                Err(Unusable::Inconsistent) => left_out.damaged_count += 1,
            }
        }
    }

    /// Attributes events to slots: by the event's token; without one, to the user's latest earlier answer that shows
    /// the item. An event that names an answer that is not logged has no slot.
    fn join(&mut self, input: &JoinInput, answer_of: fn(&str) -> Option<AnswerId>) {
        let by_id: AHashMap<AnswerId, usize> =
            self.answers.iter().enumerate().map(|(index, answer)| (answer.id, index)).collect();
        let mut by_user: AHashMap<UserId, Vec<usize>> = AHashMap::new();
        for (index, answer) in self.answers.iter().enumerate() {
            by_user.entry(answer.user.clone()).or_default().push(index);
        }
        // The join changes times of answers.
        let logged_at: Vec<UnixMillis> = self.answers.iter().map(|answer| answer.at).collect();
        for event in input.events.iter().take_while(|event| event.at < input.until) {
            let token = input.tokens.get(event.id.as_str());
            let named = token.and_then(|token| answer_of(token)).and_then(|id| by_id.get(&id).copied());
            if let Some(index) = named {
                // Events are in time order, so that the first one decides, and the later ones are not before it.
                let answer = &mut self.answers[index];
                answer.at = answer.at.min(event.at);
            }
            if !event.kind.is_positive() {
                continue;
            }
            for row in event.lines.iter().filter_map(|line| input.row_of.get(&line.item).map(|row| Row(*row))) {
                let index = match token {
                    Some(_) => named,
                    None => {
                        by_user.get(&event.user).and_then(|indices| self.latest(indices, &logged_at, event.at, row))
                    }
                };
                let Some(answer) = index.map(|index| &mut self.answers[index]) else { continue };
                if event.at.0 < answer.at.0.saturating_add(WINDOW_MS)
                    && let Some(slot) = answer.slots.iter_mut().find(|slot| slot.row == row)
                {
                    slot.outcome.add(event.kind);
                }
            }
        }
    }

    /// Returns the latest of a user's answers, in time order, that is not after `at` and shows the item.
    fn latest(&self, indices: &[usize], logged_at: &[UnixMillis], at: UnixMillis, row: Row) -> Option<usize> {
        let end = indices.partition_point(|index| logged_at[*index] <= at);
        let shows = |index: &&usize| self.answers[**index].slots.iter().any(|slot| slot.row == row);
        let is_recent = |index: &&usize| at.0 - logged_at[**index].0 < WINDOW_MS;
        indices[..end].iter().rev().take_while(is_recent).find(shows).copied()
    }
}

enum Unusable {
    OtherRequest,
    UnknownItems,
    Inconsistent,
}

fn shown_answer(record: &AnswerRecord, row_of: &AHashMap<ItemId, u32>) -> Result<ShownAnswer, Unusable> {
    let row_of = |item: &String| ItemId::parse(item).ok().and_then(|item| row_of.get(&item).map(|row| Row(*row)));
    let (query, candidates) = match record.requested_list() {
        RequestedList::Query(query) => (Some(query), None),
        RequestedList::ForYou => (None, None),
        // The probabilities of a page take the square of its slots.
        RequestedList::Candidates { .. } if record.slots.len() > PAGE_SIZE_MAX => return Err(Unusable::OtherRequest),
        RequestedList::Candidates { query, mut features } => {
            let ranked = record.items.iter().take(record.candidate_count as usize);
            let candidate = |item: &String| {
                let features = features.remove(item).unwrap_or_default();
                Some(ShownCandidate { row: row_of(item)?, features })
            };
            (query, Some(ranked.filter_map(candidate).collect()))
        }
        RequestedList::Other => return Err(Unusable::OtherRequest),
    };
    let id = AnswerId::try_from(record.id.as_slice()).map_err(|_| Unusable::Inconsistent)?;
    let user = UserId::from_key(&record.user).ok_or(Unusable::Inconsistent)?;
    let probabilities = record.slot_probabilities(SAMPLES).map_err(|_| Unusable::Inconsistent)?;
    let mut slots = Vec::new();
    for (slot, (shown, probabilities)) in record.slots.iter().zip(probabilities).enumerate() {
        let item = record.items.get(shown.item as usize).ok_or(Unusable::Inconsistent)?;
        if let Some(row) = row_of(item).filter(|_| !shown.is_pinned) {
            slots.push(ShownSlot { row, slot, probabilities, outcome: SlotOutcome::default() });
        }
    }
    match slots.is_empty() && !record.slots.iter().all(|slot| slot.is_pinned) {
        true => Err(Unusable::UnknownItems),
        false => {
            let (_, context) = record.viewer();
            Ok(ShownAnswer { id, user, context, at: UnixMillis(record.at_ms), query, candidates, slots })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::{EXPLORED_ANSWERS_MIN, LeftOut, MissingEvidence};
    use lodestone_core::{ids::EventId, units::Quantity};
    use lodestone_events::EventLine;
    use lodestone_pipeline::{
        answers::{AnswerKind, AnswerLog, AnswerLogConfig, ExplorationRecord, SlotRecord, seed_of},
        policy::Exploration,
    };
    use lodestone_telemetry::Metrics;
    use std::fs;

    const START: i64 = 1_764_072_000_000;
    const HOUR: i64 = 3_600_000;

    fn id(number: usize) -> AnswerId {
        let mut id = [0; 16];
        id[8..].copy_from_slice(&(number as u64).to_be_bytes());
        id
    }

    /// An answer `FOR_YOU` to user `u` with the items `a` and `b`, which an exploration may swap.
    fn record(number: usize, at: i64) -> AnswerRecord {
        let exploration = Exploration { temperature: 1.0, first_slot: 1, top: 2, share: 1.0, ..Exploration::default() };
        let slots = [number % 2, 1 - number % 2].map(|item| SlotRecord { item: item as u32, ..SlotRecord::default() });
        AnswerRecord {
            id: id(number).to_vec(),
            seed: seed_of(&id(number)),
            at_ms: at,
            user: "u:u".to_owned(),
            kind: AnswerKind::Recommend as i32,
            // Field 2, the type, is 1: FOR_YOU.
            request: vec![0x10, 1],
            items: ["a", "b"].map(str::to_owned).to_vec(),
            candidate_count: 2,
            exploration: Some(ExplorationRecord::from(&exploration)),
            organic_items: vec![0, 1],
            organic_scores: vec![0.2, 0.1],
            slots: slots.to_vec(),
            explored: true,
            ..AnswerRecord::default()
        }
    }

    fn write(directory: &Path, records: Vec<AnswerRecord>) {
        let config = AnswerLogConfig { share: 1.0, days_max: 30, bytes_max: 1 << 30 };
        let log = AnswerLog::open(directory, &config, Metrics::default()).unwrap();
        // All of them fit into the queue.
        for record in records {
            log.log(id(0), Box::new(move || record));
        }
    }

    fn event(id: &str, kind: EventKind, item: &str, at: i64) -> Event {
        let line = EventLine { item: ItemId::parse(item).unwrap(), quantity: Quantity::ONE, price: None, rank: 0 };
        let user = UserId::signed_in("u").unwrap();
        Event { lines: vec![line], ..Event::new(EventId::parse(id).unwrap(), kind, user, UnixMillis(at)) }
    }

    /// A token is the number of its answer.
    fn answer_of(token: &str) -> Option<AnswerId> {
        token.parse().ok().map(id)
    }

    fn read(directory: &Path, events: &[Event], tokens: &[(&str, &str)]) -> Result<LoggedAnswers, TrainError> {
        read_until(directory, events, tokens, UnixMillis(i64::MAX))
    }

    fn read_until(
        directory: &Path,
        events: &[Event],
        tokens: &[(&str, &str)],
        until: UnixMillis,
    ) -> Result<LoggedAnswers, TrainError> {
        let row_of = ["a", "b"].iter().enumerate();
        let row_of = row_of.map(|(row, item)| (ItemId::parse(item).unwrap(), row as u32)).collect();
        let tokens: AnswerTokens = tokens.iter().map(|(event, token)| (event.to_string(), token.to_string())).collect();
        let input = JoinInput { events, until, tokens: &tokens, row_of: &row_of };
        LoggedAnswers::read(&AnswerSource { directory: directory.to_owned(), answer_of }, &input)
    }

    fn outcomes(answer: &ShownAnswer) -> Vec<(u32, bool, bool)> {
        let outcome = |slot: &ShownSlot| (slot.row.0, slot.outcome.has_click, slot.outcome.has_purchase);
        answer.slots.iter().map(outcome).collect()
    }

    #[test]
    fn answers_of_the_callers_candidates_have_the_values_of_their_features() {
        let directory = tempfile::tempdir().unwrap();
        let candidate = |item: u8, value: f64| {
            // The id, and an entry of the map of features: `margin`, and the value.
            let entry = [&[0x0a, 6][..], b"margin", &[0x11], &value.to_le_bytes()].concat();
            let fields = [&[0x0a, 1, item, 0x22, entry.len() as u8][..], &entry].concat();
            [&[0x12, fields.len() as u8][..], &fields].concat()
        };
        let request = [candidate(b'a', 2.5), candidate(b'x', 9.0), candidate(b'b', 0.5)].concat();
        let ranked = |number| AnswerRecord {
            kind: AnswerKind::Rank as i32,
            request: request.clone(),
            ..record(number, START + number as i64 * HOUR)
        };
        write(directory.path(), (0..EXPLORED_ANSWERS_MIN).map(ranked).collect());
        let events: Vec<Event> = (0..EXPLORED_ANSWERS_MIN)
            .map(|number| event(&format!("e{number}"), EventKind::Click, "a", START + number as i64 * HOUR + 1))
            .collect();
        let logged = read(directory.path(), &events, &[]).unwrap();
        assert_eq!(logged.report.left_out, LeftOut::default());
        let candidates = logged.answers[0].candidates.as_ref().unwrap().iter();
        let values: Vec<(u32, Option<&f64>)> = candidates.map(|of| (of.row.0, of.features.get("margin"))).collect();
        assert_eq!(values, [(0, Some(&2.5)), (1, Some(&0.5))]);
    }

    #[test]
    fn events_follow_from_the_answer_that_their_token_names_or_from_the_latest_one() {
        let directory = tempfile::tempdir().unwrap();
        let count = EXPLORED_ANSWERS_MIN;
        write(directory.path(), (0..count).map(|number| record(number, START + number as i64 * HOUR)).collect());
        let at = |number: usize| START + number as i64 * HOUR;
        let mut events = vec![
            // By its token, although answer 1 is later.
            event("e1", EventKind::Purchase, "a", at(1) + 1),
            // Without a token: of answer 1.
            event("e2", EventKind::Click, "a", at(1) + 2),
            // Of an answer that is not logged.
            event("e3", EventKind::Click, "a", at(3) + 1),
            // Too late for answer 5.
            event("e4", EventKind::Click, "a", at(5) + 25 * HOUR),
            // An impression is no interaction.
            event("e5", EventKind::Impression, "b", at(40) + 1),
        ];
        for number in 50..EXPLORED_ANSWERS_MIN {
            events.extend(
                ["a", "b"].map(|item| event(&format!("{item}{number}"), EventKind::Click, item, at(number) + 9)),
            );
        }
        events.sort_by_key(|event| event.at);
        let logged = read(directory.path(), &events, &[("e1", "0"), ("e3", "999"), ("e4", "5"), ("e5", "40")]).unwrap();
        assert_eq!(logged.report.missing, None, "{:?}", logged.report);
        assert_eq!(logged.answers.len(), count);
        assert_eq!(outcomes(&logged.answers[0]), [(0, false, true), (1, false, false)]);
        assert_eq!(outcomes(&logged.answers[1]), [(1, false, false), (0, true, false)]);
        assert!([3, 5, 40].iter().all(|number| !logged.answers[*number].has_interaction()));
        assert_eq!(logged.report.interaction_count, 2 + 2 * (count - 50));
        assert!(logged.report.position_bias.is_some());
        // Clocks that differ: the events of an answer precede it.
        let early = read(directory.path(), &[event("e", EventKind::Click, "a", START - 1)], &[("e", "7")]).unwrap();
        assert_eq!(
            (early.report.interaction_count, early.answers.len()),
            (1, 0),
            "answers are dropped without evidence"
        );
        let missing = MissingEvidence { explored_answer_count: 0, explored_interaction_count: 199 };
        assert_eq!(early.report.missing, Some(missing));
        assert!(early.report.to_string().contains("0 of 200 answers with exploration and 199 of 200"));
    }

    #[test]
    fn answers_without_exploration_are_no_evidence() {
        let directory = tempfile::tempdir().unwrap();
        let certain = |number| AnswerRecord { exploration: None, organic_items: Vec::new(), ..record(number, START) };
        write(directory.path(), (0..3).map(certain).collect());
        let logged = read(directory.path(), &[event("e", EventKind::Click, "a", START + 1)], &[("e", "1")]).unwrap();
        let report = &logged.report;
        assert_eq!((report.answer_count, report.interaction_count), (3, 1));
        assert_eq!((report.explored_answer_count, report.explored_interaction_count), (0, 0));
        assert!(report.missing.is_some() && report.position_bias.is_none());
    }

    #[test]
    fn unusable_records_and_files_are_counted_and_cost_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path(), &[], &[]).unwrap().report.answer_count, 0, "an empty log");
        assert_eq!(read(&directory.path().join("none"), &[], &[]).unwrap().report.answer_count, 0, "no log");
        let similar = AnswerRecord { request: vec![0x10, 2], ..record(1, START) };
        let elsewhere = AnswerRecord { items: ["x", "y"].map(str::to_owned).to_vec(), ..record(2, START) };
        let inconsistent = AnswerRecord { organic_items: vec![9, 8], ..record(3, START) };
        let anonymous = AnswerRecord { user: String::new(), ..record(4, START) };
        write(directory.path(), vec![record(0, START), similar, elsewhere, inconsistent, anonymous]);
        let files = answers::list_files(directory.path()).unwrap();
        let bytes = fs::read(&files[0]).unwrap();
        fs::write(&files[0], [&bytes[..], b"torn"].concat()).unwrap();
        fs::write(directory.path().join("2025-11-24.00000.answers"), b"LDANSW\0\x01 of an earlier version").unwrap();
        fs::write(directory.path().join("2025-11-23.00000.answers"), b"something else").unwrap();
        let report = read(directory.path(), &[], &[]).unwrap().report;
        assert_eq!(report.answer_count, 1);
        let left_out = &report.left_out;
        assert_eq!((left_out.other_request_count, left_out.unknown_item_answer_count), (1, 1));
        assert_eq!((left_out.damaged_count, left_out.torn_byte_count, left_out.files.len()), (2, 4, 2));
        assert!(left_out.files[0].contains("2025-11-24") && left_out.files[1].contains("not an answer log file"));
        assert!(report.to_string().contains("left out"), "{report}");
    }

    #[test]
    fn answers_after_the_training_data_are_counted_and_named_as_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), vec![record(0, START), record(1, START + HOUR), record(2, START + 2 * HOUR)]);
        let report = read_until(directory.path(), &[], &[], UnixMillis(START + HOUR)).unwrap().report;
        assert_eq!((report.answer_count, report.left_out.later_answer_count), (1, 2));
        let text = report.to_string();
        assert!(text.contains("2 answers are later than the training data") && text.contains("newer events"), "{text}");
        assert!(!text.contains("let a serving configuration explore"), "{text}");
    }

    #[test]
    fn a_log_of_which_no_file_can_be_read_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("2025-11-24.00000.answers"), b"something else").unwrap();
        let error = read(directory.path(), &[], &[]).err().unwrap().to_string();
        assert!(error.contains("2025-11-24.00000.answers: not an answer log file"), "{error}");
    }

    #[test]
    fn the_log_of_another_shop_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere =
            |number| AnswerRecord { items: ["x", "y"].map(str::to_owned).to_vec(), ..record(number, START) };
        write(directory.path(), (0..3).map(elsewhere).collect());
        let error = read(directory.path(), &[], &[]).err().unwrap().to_string();
        assert!(error.contains("none of the 3 answers shows an item of the catalogue, which has 2"), "{error}");
    }
}
