//! Reader of logs in the format of the Open Bandit Dataset (Saito et al. 2021): .csv, .csv.gz or .csv.zst with a
//! header.
use ahash::AHashMap;
use lodestone_dataset::decompress;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// The greatest valid position; a greater one indicates a wrong column.
const POSITION_MAX: u32 = 10_000;
/// The greatest valid reward of one row.
const REWARD_MAX: f64 = 1e12;

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OffPolicyFileError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: column `{column}` is missing; found: {found}")]
    MissingColumn { path: PathBuf, column: &'static str, found: String },
    #[error("{path}: column `{column}` occurs twice")]
    TwiceColumn { path: PathBuf, column: String },
    #[error("{path}: line {line}: {message}")]
    Broken { path: PathBuf, line: u64, message: String },
    #[error("{path}: line {line}, column `{column}`: {problem}")]
    Value { path: PathBuf, line: u64, column: String, problem: String },
    #[error("{path}: has no rows")]
    Empty { path: PathBuf },
}

/// One shown item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FileRow {
    /// An index of [`LoggedFile::items`].
    pub item: u32,
    /// From 1.
    pub position: u32,
    pub reward: f64,
    /// Above 0, at most 1: the probability of this item at this position when the row was logged.
    pub propensity: f64,
    /// The number of the user, if the file has users.
    pub user: Option<u32>,
}

/// The content of a log file.
#[derive(Debug, Clone, Default)]
pub struct LoggedFile {
    pub items: Vec<String>,
    pub rows: Vec<FileRow>,
    /// The number of users, if the file has users.
    pub users: Option<usize>,
}

impl LoggedFile {
    /// Returns the mean reward of a row.
    pub fn reward_mean(&self) -> f64 {
        self.rows.iter().map(|row| row.reward).sum::<f64>() / self.rows.len().max(1) as f64
    }
}

/// Accepted names of the columns, in order of preference.
const ITEM: [&str; 2] = ["item_id", "action"];
const POSITION: [&str; 1] = ["position"];
const REWARD: [&str; 2] = ["click", "reward"];
const PROPENSITY: [&str; 3] = ["propensity_score", "action_prob", "pscore"];
const USER: [&str; 2] = ["user_id", "user"];

/// Index and name of each column in a file.
struct Columns {
    item: (usize, String),
    position: (usize, String),
    reward: (usize, String),
    propensity: (usize, String),
    user: Option<(usize, String)>,
}

/// Reads a log: `item_id`, `position` (1 and more), `click` (0 or 1) or `reward` (0 and more), `propensity_score`
/// (above 0, at most 1), and optionally `user_id`. Other columns are ignored. `user_feature_…` does not identify users,
/// because many users share the same values.
pub fn read_file(path: &Path) -> Result<LoggedFile, OffPolicyFileError> {
    let io = |source| OffPolicyFileError::Io { path: path.to_owned(), source };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let (_, reader) = decompress(&name, File::open(path).map_err(io)?).map_err(io)?;
    let mut reader = csv::ReaderBuilder::new().from_reader(reader);
    let broken = |line: u64, error: &csv::Error| OffPolicyFileError::Broken {
        path: path.to_owned(),
        line: error.position().map_or(line, csv::Position::line),
        message: error.to_string(),
    };
    let header = reader.headers().map_err(|error| broken(1, &error))?;
    let names: Vec<String> = header.iter().map(|name| name.trim_start_matches('\u{feff}').trim().to_owned()).collect();
    if names.is_empty() {
        return Err(OffPolicyFileError::Empty { path: path.to_owned() });
    }
    let columns = Columns::find(path, &names)?;
    let mut file = LoggedFile::default();
    let (mut items, mut users) = (AHashMap::<String, u32>::new(), AHashMap::<String, u32>::new());
    let mut record = csv::StringRecord::new();
    let mut line = 1;
    while reader.read_record(&mut record).map_err(|error| broken(line + 1, &error))? {
        line = record.position().map_or(line + 1, csv::Position::line);
        let row = Fields { path, line, record: &record };
        let id = row.text(&columns.item)?;
        let next = file.items.len() as u32;
        let item = *items.entry(id.to_owned()).or_insert_with(|| {
            file.items.push(id.to_owned());
            next
        });
        let user = match &columns.user {
            None => None,
            Some(column) => {
                let next = users.len() as u32;
                Some(*users.entry(row.text(column)?.to_owned()).or_insert(next))
            }
        };
        file.rows.push(FileRow {
            item,
            position: row.position(&columns.position)?,
            reward: row.reward(&columns.reward)?,
            propensity: row.propensity(&columns.propensity)?,
            user,
        });
    }
    if file.rows.is_empty() {
        return Err(OffPolicyFileError::Empty { path: path.to_owned() });
    }
    file.users = columns.user.as_ref().map(|_| users.len());
    Ok(file)
}

impl Columns {
    fn find(path: &Path, names: &[String]) -> Result<Self, OffPolicyFileError> {
        let optional = |wanted: &[&'static str]| -> Result<Option<(usize, String)>, OffPolicyFileError> {
            let Some(name) = wanted.iter().find(|name| names.iter().any(|other| other == *name)) else {
                return Ok(None);
            };
            let mut columns = names.iter().enumerate().filter(|(_, other)| other == name);
            match (columns.next(), columns.next()) {
                (_, Some(_)) => {
                    Err(OffPolicyFileError::TwiceColumn { path: path.to_owned(), column: (*name).to_owned() })
                }
                (column, None) => Ok(column.map(|(index, name)| (index, name.clone()))),
            }
        };
        let needed = |wanted: &[&'static str]| {
            optional(wanted)?.ok_or_else(|| OffPolicyFileError::MissingColumn {
                path: path.to_owned(),
                column: wanted[0],
                found: listed(names),
            })
        };
        Ok(Self {
            item: needed(&ITEM)?,
            position: needed(&POSITION)?,
            reward: needed(&REWARD)?,
            propensity: needed(&PROPENSITY)?,
            user: optional(&USER)?,
        })
    }
}

/// Returns the names of a header, shortened if it is long.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let first = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{first} and {} more", names.len() - SHOWN) } else { first }
}

/// A row with its file and line, for errors.
struct Fields<'a> {
    path: &'a Path,
    line: u64,
    record: &'a csv::StringRecord,
}

impl Fields<'_> {
    fn bad(&self, column: &str, problem: String) -> OffPolicyFileError {
        OffPolicyFileError::Value { path: self.path.to_owned(), line: self.line, column: column.to_owned(), problem }
    }

    fn text(&self, (index, column): &(usize, String)) -> Result<&str, OffPolicyFileError> {
        match self.record.get(*index).map(str::trim) {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(self.bad(column, "is empty".to_owned())),
        }
    }

    fn number(&self, column: &(usize, String)) -> Result<f64, OffPolicyFileError> {
        let text = self.text(column)?;
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err(self.bad(&column.1, format!("`{text}` is not a finite number"))),
        }
    }

    fn position(&self, column: &(usize, String)) -> Result<u32, OffPolicyFileError> {
        let text = self.text(column)?;
        match text.parse::<u32>() {
            Ok(position) if (1..=POSITION_MAX).contains(&position) => Ok(position),
            _ => Err(self.bad(&column.1, format!("`{text}` is not a whole number from 1 to {POSITION_MAX}"))),
        }
    }

    fn reward(&self, column: &(usize, String)) -> Result<f64, OffPolicyFileError> {
        let reward = self.number(column)?;
        let is_click = column.1 == "click";
        if is_click && reward != 0.0 && reward != 1.0 {
            return Err(
                self.bad(&column.1, format!("{reward} is neither 0 nor 1; a column `reward` may hold other numbers"))
            );
        }
        if !(0.0..=REWARD_MAX).contains(&reward) {
            return Err(self.bad(&column.1, format!("{reward} is not between 0 and {REWARD_MAX}")));
        }
        Ok(reward)
    }

    fn propensity(&self, column: &(usize, String)) -> Result<f64, OffPolicyFileError> {
        let propensity = self.number(column)?;
        if propensity <= 0.0 {
            let problem = format!("{propensity} is not above 0, but the shown item had some probability");
            return Err(self.bad(&column.1, problem));
        }
        if propensity > 1.0 {
            return Err(self.bad(&column.1, format!("{propensity} is above 1")));
        }
        Ok(propensity)
    }
}
