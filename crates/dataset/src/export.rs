//! Export of the log's events to Parquet files, one directory for each day.
use super::{DatasetError, LoggedDecisions, columns::ParquetRows, events};
use arrow_array::{
    ArrayRef, Float64Array, Int64Array, StringArray,
    builder::{ListBuilder, StringBuilder},
};
use arrow_schema::{Field, Schema};
use lodestone_core::units::UnixMillis;
use lodestone_events::{Attribution, Change, Event, EventLine, LogError, log, storage};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{ControlFlow, Range},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The number of files that are written at the same time. A log of more days is read several times.
const DAYS_AT_ONCE: usize = 200;
/// The number of events of a day that are buffered before they are written.
const PENDING_MAX: usize = 4096;

/// The reason why events cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error("day {0} since 1970 is outside the range of the calendar")]
    Day(i64),
}

/// The result of an export.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Exported {
    pub events: u64,
    /// The number of those events with a foreign attribution token. They are marked, and training ignores the token.
    pub foreign: u64,
    /// The number of decisions about incentives, of any day.
    pub decisions: u64,
    /// The files in the order of their days.
    pub files: Vec<PathBuf>,
    /// The last position of the log that was read.
    pub position: u64,
}

/// Writes the events of the log in `directory` with event times on `days` (days since 1970, UTC) to
/// `OUT/date=YYYY-MM-DD/events.parquet`, in log order. The complete file of a day replaces an existing one. The log may
/// be in use. All decisions about incentives, of any day, are written to `OUT/incentive_decisions.parquet`.
pub fn export(directory: &Path, days: Range<i64>, out: &Path) -> Result<Exported, ExportError> {
    let mut days_with_events: BTreeSet<i64> = BTreeSet::new();
    // All later passes stop at this position, so that all files are consistent.
    let mut decisions = LoggedDecisions::default();
    let position = log::read(directory, 1, |_, _, change| match change {
        Change::Event(event) => {
            decisions.redeem(&event);
            days_with_events.extend(Some(day_of(event.at)).filter(|day| days.contains(day)));
        }
        Change::Decision(decision) => decisions.add(decision),
        Change::Item(_) | Change::Rule(_) => {}
    })?;
    storage::create_private_directory(out).map_err(|source| DatasetError::Io { path: out.to_owned(), source })?;
    decisions.write(out)?;
    let mut exported = Exported { position, decisions: decisions.iter().count() as u64, ..Exported::default() };
    let days_with_events: Vec<i64> = days_with_events.into_iter().collect();
    for batch in days_with_events.chunks(DAYS_AT_ONCE) {
        export_days(directory, batch, out, &mut exported)?;
    }
    Ok(exported)
}

fn export_days(directory: &Path, days: &[i64], out: &Path, exported: &mut Exported) -> Result<(), ExportError> {
    let mut files: BTreeMap<i64, DayFile> = BTreeMap::new();
    for day in days {
        files.insert(*day, DayFile::create(out, *day)?);
    }
    let mut failed = Ok(());
    let until = exported.position;
    log::try_read(directory, 1, |position, _, change| {
        if position > until {
            return ControlFlow::Break(());
        }
        if let Change::Event(event) = change
            && let Some(file) = files.get_mut(&day_of(event.at))
        {
            exported.events += 1;
            exported.foreign += u64::from(matches!(event.attribution, Attribution::Foreign(_)));
            failed = file.add(event);
        }
        match failed {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    failed?;
    for (_, file) in files {
        exported.files.push(file.finish()?);
    }
    Ok(())
}

fn day_of(at: UnixMillis) -> i64 {
    at.0.div_euclid(UnixMillis::DAY)
}

struct DayFile {
    path: PathBuf,
    rows: ParquetRows,
    pending: Vec<Event>,
}

impl DayFile {
    fn create(out: &Path, day: i64) -> Result<Self, ExportError> {
        let date = UnixMillis(day.saturating_mul(UnixMillis::DAY)).date().ok_or(ExportError::Day(day))?;
        let directory = out.join(format!("date={date}"));
        storage::create_private_directory(&directory)
            .map_err(|source| DatasetError::Io { path: directory.clone(), source })?;
        let path = directory.join("events.parquet");
        let rows = ParquetRows::create(&path.with_extension("new"), schema_of(&columns(&[])))?;
        Ok(Self { path, rows, pending: Vec::new() })
    }

    fn add(&mut self, event: Event) -> Result<(), DatasetError> {
        self.pending.push(event);
        if self.pending.len() < PENDING_MAX { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<(), DatasetError> {
        let columns = columns(&std::mem::take(&mut self.pending));
        self.rows.write(columns.into_iter().map(|(_, array)| array).collect())
    }

    fn finish(mut self) -> Result<PathBuf, DatasetError> {
        self.write()?;
        self.rows.finish()?;
        storage::rename(&self.path.with_extension("new"), &self.path)
            .map_err(|source| DatasetError::Io { path: self.path.clone(), source })?;
        Ok(self.path)
    }
}

fn schema_of(columns: &[(&str, ArrayRef)]) -> Schema {
    Schema::new(
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect::<Vec<_>>(),
    )
}

/// Returns the canonical columns and those that only the log has, with one row for each item of an event and one row
/// for an event without items.
fn columns(events: &[Event]) -> Vec<(&'static str, ArrayRef)> {
    let rows: Vec<(&Event, Option<&EventLine>)> = events
        .iter()
        .flat_map(|event| {
            let without = event.lines.is_empty().then_some((event, None));
            event.lines.iter().map(move |line| (event, Some(line))).chain(without)
        })
        .collect();
    let texts = |of: &dyn Fn(&Event) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(|(event, _)| of(event)).collect::<StringArray>())
    };
    let numbers = |of: &dyn Fn(&Event, Option<&EventLine>) -> Option<i64>| -> ArrayRef {
        Arc::new(rows.iter().map(|(event, line)| of(event, *line)).collect::<Int64Array>())
    };
    let items: StringArray = rows.iter().map(|(_, line)| line.map(|line| line.item.as_str())).collect();
    let quantities: Float64Array = rows.iter().map(|(_, line)| line.map(|line| line.quantity.units())).collect();
    let mut categories = ListBuilder::new(StringBuilder::new());
    for (event, _) in &rows {
        event.categories.iter().for_each(|category| categories.values().append_value(category));
        categories.append(true);
    }
    vec![
        ("event_id", texts(&|event| Some(event.id.to_string()))),
        ("user", texts(&|event| Some(event.user.as_str().to_owned()))),
        ("session", texts(&|event| Some(event.session.clone()))),
        ("type", texts(&|event| Some(event.kind.name().to_owned()))),
        ("time_ms", numbers(&|event, _| Some(event.at.0))),
        ("item_id", Arc::new(items)),
        ("quantity", Arc::new(quantities)),
        ("price_micros", numbers(&|_, line| line.and_then(|line| line.price).map(|price| price.micros()))),
        ("currency", texts(&|event| Some(event.currency.clone()))),
        ("order_id", texts(&|event| Some(event.order.clone()))),
        ("query", texts(&|event| Some(event.query.clone()))),
        ("platform", texts(&|event| Some(event.context.texts()[0].to_owned()))),
        ("region", texts(&|event| Some(event.context.texts()[1].to_owned()))),
        ("locale", texts(&|event| Some(event.context.texts()[2].to_owned()))),
        ("rank", numbers(&|_, line| line.map(|line| line.rank.into()).filter(|rank| *rank > 0))),
        ("stars", numbers(&|event, _| Some(event.stars.into()).filter(|stars| *stars > 0))),
        ("coupon_id", texts(&|event| Some(event.coupon.clone()))),
        ("completion", texts(&|event| Some(event.completion.clone()))),
        ("categories", Arc::new(categories.finish())),
        (
            "attribution",
            texts(&|event| match event.attribution {
                Attribution::None => None,
                Attribution::Answer(_) => Some(events::SIGNED.to_owned()),
                Attribution::Foreign(_) => Some("foreign".to_owned()),
            }),
        ),
        (
            "attribution_token",
            texts(&|event| match &event.attribution {
                Attribution::None => None,
                Attribution::Answer(token) | Attribution::Foreign(token) => Some(token.clone()),
            }),
        ),
    ]
}
