//! Answers as rows, one for each shown slot: their export as Parquet, and their join with events.
use super::{
    log::day,
    record::{AnswerId, AnswerKind, AnswerRecord},
    replay::{Propensity, ReplayError},
    segment::{AnswerLogError, Damage, SegmentReader, day_of, list},
};
use crate::policy::Marginal;
use ahash::AHashMap;
use lodestone_core::{
    ids::UserId,
    units::{PriceMicros, Quantity, UnixMillis},
    viewer::ViewerContext,
};
use lodestone_dataset::{self as dataset, Cells, DatasetError};
use lodestone_events::{Attribution, Event, EventKind};
use std::{ops::ControlFlow, path::Path};

/// One slot of a first page.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotRow {
    pub answer: AnswerId,
    pub at: UnixMillis,
    /// With its prefix, see [`UserId::as_str`].
    pub user: String,
    /// Empty: unknown.
    pub session: String,
    pub context: ViewerContext,
    pub kind: AnswerKind,
    /// The configuration of the answer; in an interleaved answer, the configuration that picked the slot.
    pub serving_config: String,
    /// Empty: no experiment. The same holds for `arm`.
    pub experiment: String,
    pub arm: String,
    pub generation: String,
    /// The log position that the answer's state included.
    pub log_position: u64,
    /// From 1.
    pub slot: u32,
    pub item: String,
    pub score: f32,
    /// The marginal probability of this item in this slot.
    pub propensity: Marginal,
    /// The probability of this item in this slot, given the items before it. The product over the slots is the
    /// probability of the page.
    pub conditional: f64,
    /// The slot that the item would have had without exploration.
    pub organic_slot: u32,
    pub is_pinned: bool,
    /// Whether the answer explored.
    pub explored: bool,
    /// 1 or 2 in interleaved answers, otherwise 0.
    pub team: u32,
    /// Number of slots on the page.
    pub slot_count: u32,
    /// The ranking model's probabilities of this item, by head. Empty if the model did not run.
    pub heads: Vec<(String, f32)>,
    pub rewards: Rewards,
}

/// Counts of events on an item of an answer, from events that carry the answer's attribution token.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rewards {
    pub impressions: u32,
    pub clicks: u32,
    pub views: u32,
    pub carts: u32,
    pub favorites: u32,
    /// Sum of the quantities.
    pub purchases: f64,
    /// Sum of the quantities.
    pub returns: f64,
    /// Revenue of purchases with a known price, in millionths of the currency's unit.
    pub revenue_micros: i64,
}

/// Calls `visit` with every record of a directory from `since` on, file by file. Skips unreadable parts and returns
/// their number.
pub fn for_each_record(
    directory: &Path,
    since: UnixMillis,
    mut visit: impl FnMut(AnswerRecord),
) -> Result<Damage, AnswerLogError> {
    let mut damage = Damage::default();
    let first_day = day(since);
    for path in list(directory)?.iter().filter(|path| day_of(path) >= first_day.as_str()) {
        let of_file = read_file(path, |record| {
            if record.at_ms >= since.0 {
                visit(record);
            }
        })?;
        damage.damaged_blocks += of_file.damaged_blocks;
        damage.torn_bytes += of_file.torn_bytes;
    }
    Ok(damage)
}

/// Calls `visit` with every record of a file. Skips unreadable parts and returns their number.
pub fn read_file(path: &Path, mut visit: impl FnMut(AnswerRecord)) -> Result<Damage, AnswerLogError> {
    let mut reader = SegmentReader::open(path)?;
    while let Some(records) = reader.next_block()? {
        records.into_iter().for_each(&mut visit);
    }
    Ok(reader.damage)
}

/// Calls `visit` with the records of a file, the last one first, until it breaks. Skips unreadable parts.
pub fn read_backwards(
    path: &Path,
    mut visit: impl FnMut(AnswerRecord) -> ControlFlow<()>,
) -> Result<(), AnswerLogError> {
    let mut reader = SegmentReader::open(path)?;
    for position in reader.block_positions()?.into_iter().rev() {
        if reader.block_at(position)?.into_iter().rev().try_for_each(&mut visit).is_break() {
            break;
        }
    }
    Ok(())
}

impl AnswerRecord {
    /// Returns the first page as rows without rewards. For `sample_count` see [`AnswerRecord::propensities`].
    pub fn rows(&self, sample_count: usize) -> Result<Vec<SlotRow>, ReplayError> {
        let id = AnswerId::try_from(self.id.as_slice()).map_err(|_| ReplayError("the id is missing".to_owned()))?;
        let propensities = self.propensities(sample_count)?;
        let head_count = self.heads.len();
        let (session, context) = self.viewer();
        let row = |(at, (slot, propensity)): (usize, (&super::SlotRecord, Propensity))| {
            let item = slot.item as usize;
            let values = self.head_values.get(item * head_count..(item + 1) * head_count).unwrap_or_default();
            let ranking = self.rankings.get((slot.team as usize).saturating_sub(1));
            Some(SlotRow {
                answer: id,
                at: UnixMillis(self.at_ms),
                user: self.user.clone(),
                session: session.clone(),
                context: context.clone(),
                kind: self.kind(),
                serving_config: ranking.map(|ranking| ranking.serving_config.clone()).unwrap_or_default(),
                experiment: self.experiment.clone(),
                arm: self.arm.clone(),
                generation: self.generation.clone(),
                log_position: self.log_position,
                slot: at as u32 + 1,
                item: self.items.get(item)?.clone(),
                score: slot.score,
                propensity: propensity.marginal,
                conditional: slot.conditional,
                organic_slot: propensity.organic_slot as u32,
                is_pinned: slot.is_pinned,
                explored: self.explored,
                team: slot.team,
                slot_count: self.slots.len() as u32,
                heads: self.heads.iter().cloned().zip(values.iter().copied()).collect(),
                rewards: Rewards::default(),
            })
        };
        let rows = self.slots.iter().zip(propensities).enumerate().map(row).collect::<Option<Vec<SlotRow>>>();
        rows.ok_or_else(|| ReplayError("a slot shows an item that is not in the record".to_owned()))
    }
}

/// Reads all rows of a directory from `since` on, in the order of the log, without rewards. Also returns the number of
/// unreadable parts; an inconsistent record counts as a damaged block.
pub fn read_rows(
    directory: &Path,
    since: UnixMillis,
    sample_count: usize,
) -> Result<(Vec<SlotRow>, Damage), AnswerLogError> {
    let (mut rows, mut inconsistent) = (Vec::new(), 0);
    let mut damage = for_each_record(directory, since, |record| match record.rows(sample_count) {
        Ok(more) => rows.extend(more),
        Err(_) => inconsistent += 1,
    })?;
    damage.damaged_blocks += inconsistent;
    Ok((rows, damage))
}

/// Joins rows with the events that follow from them.
pub struct RewardJoin {
    rows: Vec<SlotRow>,
    /// By answer: the index of its first row.
    answers: AHashMap<AnswerId, usize>,
    /// Number of event lines whose token belongs to an unknown answer, or whose item is not on the answer's first
    /// page.
    pub unmatched_lines: usize,
}

impl RewardJoin {
    /// The rows of an answer must be contiguous.
    pub fn new(rows: Vec<SlotRow>) -> Self {
        let mut answers = AHashMap::new();
        for (at, row) in rows.iter().enumerate() {
            answers.entry(row.answer).or_insert(at);
        }
        Self { rows, answers, unmatched_lines: 0 }
    }

    /// Counts an event for the slots of the answer whose token it carries; `answer_of` verifies tokens. Each line
    /// counts for the slot that shows its item. Must be called once for each event.
    pub fn add(&mut self, event: &Event, answer_of: impl Fn(&str) -> Option<AnswerId>) {
        let Attribution::Answer(token) = &event.attribution else { return };
        let first = answer_of(token).and_then(|answer| self.answers.get(&answer)).copied();
        for line in &event.lines {
            let slot = first.and_then(|first| {
                let answer = self.rows[first].answer;
                self.rows[first..]
                    .iter_mut()
                    .take_while(|row| row.answer == answer)
                    .find(|row| row.item == line.item.as_str())
            });
            match slot {
                Some(row) => row.rewards.count(event.kind, line.quantity, line.price),
                None => self.unmatched_lines += 1,
            }
        }
    }

    pub fn rows(self) -> Vec<SlotRow> {
        self.rows
    }
}

impl Rewards {
    fn count(&mut self, kind: EventKind, quantity: Quantity, price: Option<PriceMicros>) {
        let add = |count: &mut u32, more: u32| *count = count.saturating_add(more);
        match kind {
            EventKind::Impression => add(&mut self.impressions, 1),
            EventKind::Click => add(&mut self.clicks, 1),
            EventKind::View => add(&mut self.views, 1),
            EventKind::AddToCart => add(&mut self.carts, 1),
            EventKind::Favorite => add(&mut self.favorites, 1),
            EventKind::Purchase => {
                self.purchases += quantity.units();
                let micros = price.map_or(0, PriceMicros::micros);
                let paid = i128::from(micros) * i128::from(quantity.thousandths()) / 1000;
                self.revenue_micros = self.revenue_micros.saturating_add(i64::try_from(paid).unwrap_or(i64::MAX));
            }
            EventKind::Refund => self.returns += quantity.units(),
            EventKind::Search
            | EventKind::RemoveFromCart
            | EventKind::Unfavorite
            | EventKind::Review
            | EventKind::CategoryView
            | EventKind::IncentiveShown
            | EventKind::IncentiveRedeemed => {}
        }
    }
}

/// Writes rows to a Parquet file; `docs/answers.md` describes the columns.
pub fn write_rows(path: &Path, rows: &[SlotRow]) -> Result<(), DatasetError> {
    let texts = |of: &dyn Fn(&SlotRow) -> String| Cells::Texts(rows.iter().map(of).collect());
    let integers = |of: &dyn Fn(&SlotRow) -> i64| Cells::Integers(rows.iter().map(of).collect());
    let numbers = |of: &dyn Fn(&SlotRow) -> f64| Cells::Numbers(rows.iter().map(|row| Some(of(row))).collect());
    let flags = |of: &dyn Fn(&SlotRow) -> bool| Cells::Flags(rows.iter().map(of).collect());
    let mut columns = vec![
        ("answer_id".to_owned(), texts(&|row| uuid::Uuid::from_bytes(row.answer).to_string())),
        ("time_ms".to_owned(), integers(&|row| row.at.0)),
        ("user".to_owned(), texts(&|row| row.user.clone())),
        ("session".to_owned(), texts(&|row| row.session.clone())),
        ("platform".to_owned(), texts(&|row| row.context.texts()[0].to_owned())),
        ("region".to_owned(), texts(&|row| row.context.texts()[1].to_owned())),
        ("locale".to_owned(), texts(&|row| row.context.texts()[2].to_owned())),
        ("kind".to_owned(), texts(&|row| row.kind.name().to_owned())),
        ("serving_config".to_owned(), texts(&|row| row.serving_config.clone())),
        ("experiment".to_owned(), texts(&|row| row.experiment.clone())),
        ("arm".to_owned(), texts(&|row| row.arm.clone())),
        ("generation".to_owned(), texts(&|row| row.generation.clone())),
        ("log_position".to_owned(), integers(&|row| row.log_position as i64)),
        ("slot".to_owned(), integers(&|row| i64::from(row.slot))),
        ("slot_count".to_owned(), integers(&|row| i64::from(row.slot_count))),
        ("item_id".to_owned(), texts(&|row| row.item.clone())),
        ("score".to_owned(), numbers(&|row| f64::from(row.score))),
        ("propensity".to_owned(), numbers(&|row| row.propensity.probability)),
        ("propensity_standard_error".to_owned(), numbers(&|row| row.propensity.standard_error)),
        ("propensity_conditional".to_owned(), numbers(&|row| row.conditional)),
        ("organic_slot".to_owned(), integers(&|row| i64::from(row.organic_slot))),
        ("is_pinned".to_owned(), flags(&|row| row.is_pinned)),
        ("explored".to_owned(), flags(&|row| row.explored)),
        ("team".to_owned(), integers(&|row| i64::from(row.team))),
    ];
    let mut heads: Vec<&String> = rows.iter().flat_map(|row| row.heads.iter().map(|(name, _)| name)).collect();
    heads.sort_unstable();
    heads.dedup();
    for head in heads {
        let value = |row: &SlotRow| row.heads.iter().find(|(name, _)| name == head).map(|(_, value)| f64::from(*value));
        columns.push((format!("head_{head}"), Cells::Numbers(rows.iter().map(value).collect())));
    }
    dataset::write_table(path, columns)
}

impl SlotRow {
    /// Parses the user of the row.
    pub fn user_id(&self) -> Option<UserId> {
        UserId::from_key(&self.user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answers::{ExplorationRecord, RankingRecord, SlotRecord, seed_of},
        policy::Exploration,
    };
    use lodestone_core::ids::{EventId, ItemId};
    use lodestone_events::EventLine;

    fn record() -> AnswerRecord {
        let id = vec![7; 16];
        let exploration = Exploration { temperature: 1.0, first_slot: 1, top: 3, share: 1.0, ..Exploration::default() };
        AnswerRecord {
            seed: seed_of(&id),
            id,
            at_ms: 1_764_072_000_000,
            user: "u:p".to_owned(),
            items: ["a", "b", "c", "pin"].map(str::to_owned).to_vec(),
            candidate_count: 3,
            heads: vec!["purchase".to_owned()],
            head_values: vec![0.3, 0.2, 0.1],
            rankings: vec![RankingRecord { serving_config: "default".to_owned(), ..RankingRecord::default() }],
            exploration: Some(ExplorationRecord::from(&exploration)),
            organic_items: vec![0, 1, 2],
            organic_scores: vec![0.3, 0.2, 0.1],
            pinned_slots: vec![2],
            slots: vec![
                SlotRecord { item: 1, score: 0.2, conditional: 0.3, ..SlotRecord::default() },
                SlotRecord { item: 3, is_pinned: true, conditional: 1.0, ..SlotRecord::default() },
                SlotRecord { item: 0, score: 0.3, conditional: 0.6, ..SlotRecord::default() },
            ],
            explored: true,
            ..AnswerRecord::default()
        }
    }

    fn event(kind: EventKind, item: &str, token: &str) -> Event {
        let item = ItemId::parse(item).unwrap();
        Event {
            lines: vec![EventLine {
                item,
                quantity: Quantity::from_units(2.5).unwrap(),
                price: PriceMicros::new(4),
                rank: 0,
            }],
            attribution: Attribution::Answer(token.to_owned()),
            ..Event::new(EventId::parse("e").unwrap(), kind, UserId::signed_in("p").unwrap(), UnixMillis(0))
        }
    }

    #[test]
    fn rows_have_the_propensities_of_the_policy() {
        let rows = record().rows(2000).unwrap();
        let summary: Vec<(&str, u32, u32)> =
            rows.iter().map(|row| (row.item.as_str(), row.slot, row.organic_slot)).collect();
        // Without exploration `a` has slot 1, the pin slot 2, `b` slot 3.
        assert_eq!(summary, [("b", 1, 3), ("pin", 2, 2), ("a", 3, 1)]);
        assert_eq!(rows[1].propensity, Marginal { probability: 1.0, standard_error: 0.0 });
        assert_eq!(rows[0].propensity.standard_error, 0.0);
        assert!(rows[0].propensity.probability < 0.34 && rows[2].propensity.standard_error > 0.0);
        assert_eq!(rows[0].heads, [("purchase".to_owned(), 0.2)]);
    }

    #[test]
    fn slot_probabilities_include_the_propensities() {
        let record = record();
        let probabilities = record.slot_probabilities(20_000).unwrap();
        assert!(probabilities[1].is_empty(), "the slot of a pin is certain");
        for (slot, row) in record.rows(20_000).unwrap().iter().enumerate().filter(|(_, row)| !row.is_pinned) {
            let of_slot = f64::from(probabilities[slot][slot]);
            assert!((of_slot - row.propensity.probability).abs() < 0.02, "{slot}: {probabilities:?}, {row:?}");
            assert_eq!(probabilities[slot][1], 0.0, "nothing but the pin has slot 2");
        }
        let certain = AnswerRecord { exploration: None, ..record };
        assert_eq!(certain.slot_probabilities(10).unwrap(), vec![Vec::<f32>::new(); 3]);
    }

    #[test]
    fn events_count_for_the_slot_that_showed_their_item() {
        let mut join = RewardJoin::new(record().rows(10).unwrap());
        let answer_of = |token: &str| (token == "known").then_some([7; 16]);
        for (kind, item, token) in [
            (EventKind::Impression, "b", "known"),
            (EventKind::Click, "b", "known"),
            (EventKind::Purchase, "a", "known"),
            (EventKind::Click, "nowhere", "known"),
            (EventKind::Click, "b", "another"),
        ] {
            join.add(&event(kind, item, token), answer_of);
        }
        assert_eq!(join.unmatched_lines, 2);
        let rows = join.rows();
        assert_eq!(rows[0].rewards, Rewards { impressions: 1, clicks: 1, ..Rewards::default() });
        assert_eq!(rows[2].rewards, Rewards { purchases: 2.5, revenue_micros: 10, ..Rewards::default() });
    }

    #[test]
    fn rows_are_written_as_parquet() {
        let directory = tempfile::tempdir().unwrap();
        write_rows(&directory.path().join("answers.parquet"), &record().rows(10).unwrap()).unwrap();
        assert!(directory.path().join("answers.parquet").metadata().unwrap().len() > 500);
    }
}
