//! Readers of the benchmarks' text files: plain, .gz or .zst.
use super::SequenceError;
use ahash::AHashMap;
use lodestone_dataset::decompress;
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// Consecutive numbers of item ids, in the order of first occurrence.
#[derive(Debug, Clone, Default)]
pub struct ItemNumbers {
    pub ids: Vec<String>,
    numbers: AHashMap<String, u32>,
}

impl ItemNumbers {
    /// Returns the number of an id, a new one for a new id.
    pub fn number(&mut self, id: &str) -> u32 {
        if let Some(number) = self.numbers.get(id) {
            return *number;
        }
        let number = self.ids.len() as u32;
        self.ids.push(id.to_owned());
        self.numbers.insert(id.to_owned(), number);
        number
    }

    pub fn count(&self) -> usize {
        self.ids.len()
    }
}

/// Text and attributes of items, by item number.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    pub items: ItemNumbers,
    /// Words of titles, phrases and keywords.
    pub words: Vec<Vec<String>>,
    /// Categories, brands and similar values.
    pub attributes: Vec<Vec<String>>,
    /// The sort key of items with the same day: the column `asin`, or the id.
    pub order: Vec<String>,
}

impl Catalogue {
    /// Adds empty entries for items that are not in the catalogue file.
    pub fn complete(&mut self) {
        let count = self.items.count();
        self.words.resize(count, Vec::new());
        self.attributes.resize(count, Vec::new());
        let known = self.order.len();
        self.order.extend(self.items.ids[known..].iter().cloned());
    }
}

/// Calls `take` with the number, from 1, and the text of each line that is not empty.
pub fn for_each_line(
    path: &Path,
    mut take: impl FnMut(usize, &str) -> Result<(), String>,
) -> Result<(), SequenceError> {
    let io = |source| SequenceError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let (_, reader) = decompress(&name, file).map_err(io)?;
    for (index, line) in BufReader::new(reader).lines().enumerate() {
        let at = |problem: String| SequenceError::Line { path: path.to_owned(), line: index + 1, problem };
        let line = line.map_err(|error| at(error.to_string()))?;
        let line = line.trim_end_matches('\r');
        if !line.trim().is_empty() {
            take(index + 1, line).map_err(at)?;
        }
    }
    Ok(())
}

/// Reads lines of a user and its items, oldest first, separated by white space.
pub fn read_sequences(path: &Path, items: &mut ItemNumbers) -> Result<(Vec<String>, Vec<Vec<u32>>), SequenceError> {
    let (mut users, mut histories) = (Vec::new(), Vec::new());
    for_each_line(path, |_, line| {
        let mut fields = line.split_whitespace();
        users.push(fields.next().unwrap_or_default().to_owned());
        histories.push(fields.map(|id| items.number(id)).collect());
        Ok(())
    })?;
    Ok((users, histories))
}

/// Reads a tab-separated file with a header: `item`, and optionally `asin`, `title`, `phrase`, `keywords` and
/// `attributes`.
pub fn read_catalogue(path: &Path) -> Result<Catalogue, SequenceError> {
    let mut catalogue = Catalogue::default();
    let mut names: Vec<String> = Vec::new();
    for_each_line(path, |_, line| {
        let fields: Vec<&str> = line.split('\t').collect();
        if names.is_empty() {
            names = fields.iter().map(|name| (*name).to_owned()).collect();
            return match names.iter().any(|name| name == "item") {
                true => Ok(()),
                false => Err(format!("column item is missing; found: {}", names.join(", "))),
            };
        }
        let field = |name: &str| {
            let column = names.iter().position(|other| other == name);
            column.and_then(|column| fields.get(column)).copied().unwrap_or_default()
        };
        let number = catalogue.items.number(field("item")) as usize;
        if number < catalogue.words.len() {
            return Err(format!("item {} occurs twice", field("item")));
        }
        let mut words = words_of(field("title"));
        words.extend(words_of(field("phrase")));
        let pieces = field("keywords").split([' ', '+']).filter(|piece| !piece.is_empty());
        words.extend(pieces.map(|piece| format!("+{piece}")));
        catalogue.words.push(words);
        catalogue.attributes.push(field("attributes").split_whitespace().map(str::to_owned).collect());
        catalogue.order.push(if field("asin").is_empty() { field("item") } else { field("asin") }.to_owned());
        Ok(())
    })?;
    Ok(catalogue)
}

fn words_of(text: &str) -> Vec<String> {
    let words = text.split(|character: char| !character.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

/// Reads lines of a user, a tab, and the cluster of the user; a first line that begins with `user` is a header. Returns
/// the cluster of each user.
pub fn read_clusters(path: &Path) -> Result<AHashMap<String, String>, SequenceError> {
    let mut clusters = AHashMap::new();
    for_each_line(path, |number, line| {
        let (user, cluster) = line.split_once('\t').ok_or("expected a user, a tab and a cluster".to_owned())?;
        if number > 1 || user != "user" {
            clusters.insert(user.to_owned(), cluster.trim().to_owned());
        }
        Ok(())
    })?;
    Ok(clusters)
}

/// Reads sessions in time order: one in each line, items in the order of the clicks, separated by spaces; or
/// tab-separated clicks with a header that has `SessionId`, `ItemId` and `Time`.
pub fn read_sessions(path: &Path, items: &mut ItemNumbers) -> Result<Vec<Vec<u32>>, SequenceError> {
    if let Some(clicks) = read_clicks(path, items)? {
        return Ok(clicks);
    }
    let mut sessions = Vec::new();
    for_each_line(path, |_, line| {
        sessions.push(line.split_whitespace().map(|id| items.number(id)).collect());
        Ok(())
    })?;
    Ok(sessions)
}

/// Reads lines of the clicks of a session, a tab, and the next click; or clicks as in [`read_sessions`], and returns
/// every prefix of their sessions.
pub fn read_prefixes(path: &Path, items: &mut ItemNumbers) -> Result<Vec<(Vec<u32>, u32)>, SequenceError> {
    if let Some(clicks) = read_clicks(path, items)? {
        let prefixes =
            clicks.iter().flat_map(|session| (1..session.len()).map(|end| (session[..end].to_vec(), session[end])));
        return Ok(prefixes.collect());
    }
    let mut prefixes = Vec::new();
    for_each_line(path, |_, line| {
        let (clicks, next) = line.split_once('\t').ok_or("expected items, a tab and the next item".to_owned())?;
        let clicks: Vec<u32> = clicks.split_whitespace().map(|id| items.number(id)).collect();
        if clicks.is_empty() || next.split_whitespace().count() != 1 {
            return Err("expected at least one item, a tab and one next item".to_owned());
        }
        prefixes.push((clicks, items.number(next.trim())));
        Ok(())
    })?;
    Ok(prefixes)
}

/// Reads the sessions of a file of clicks, in the order of their first clicks; `None` if the header is not that of
/// clicks.
fn read_clicks(path: &Path, items: &mut ItemNumbers) -> Result<Option<Vec<Vec<u32>>>, SequenceError> {
    let mut columns: Option<[usize; 3]> = None;
    let mut is_clicks = true;
    let mut numbers: AHashMap<String, usize> = AHashMap::new();
    let mut sessions: Vec<Vec<(f64, u32)>> = Vec::new();
    for_each_line(path, |_, line| {
        if !is_clicks {
            return Ok(());
        }
        let fields: Vec<&str> = line.split('\t').collect();
        let Some([session, item, time]) = columns else {
            let column = |name: &str| fields.iter().position(|field| *field == name);
            columns = (|| Some([column("SessionId")?, column("ItemId")?, column("Time")?]))();
            is_clicks = columns.is_some();
            return Ok(());
        };
        let field = |column: usize| fields.get(column).copied().ok_or_else(|| "a column is missing".to_owned());
        let time = field(time)?.parse().map_err(|_| format!("`{}` is not a time in seconds", fields[time]))?;
        let next = sessions.len();
        let number = *numbers.entry(field(session)?.to_owned()).or_insert(next);
        if number == next {
            sessions.push(Vec::new());
        }
        sessions[number].push((time, items.number(field(item)?)));
        Ok(())
    })?;
    if !is_clicks || columns.is_none() {
        return Ok(None);
    }
    sessions.iter_mut().for_each(|session| session.sort_by(|a, b| a.0.total_cmp(&b.0)));
    sessions.sort_by(|a, b| a[0].0.total_cmp(&b[0].0));
    let items_of = |session: Vec<(f64, u32)>| session.into_iter().map(|(_, item)| item).collect();
    Ok(Some(sessions.into_iter().map(items_of).collect()))
}

/// A user and its baskets, oldest first; each is sorted and has no duplicates.
pub type UserBaskets = (String, Vec<Vec<u32>>);

/// Reads lines of a user, a tab, and baskets separated by semicolons; items of a basket are separated by spaces.
pub fn read_baskets(path: &Path, items: &mut ItemNumbers) -> Result<Vec<UserBaskets>, SequenceError> {
    let mut users = Vec::new();
    for_each_line(path, |_, line| {
        let (user, baskets) = line.split_once('\t').ok_or("expected a user, a tab and baskets".to_owned())?;
        let mut baskets: Vec<Vec<u32>> =
            baskets.split(';').map(|basket| basket.split_whitespace().map(|id| items.number(id)).collect()).collect();
        baskets.iter_mut().for_each(|basket: &mut Vec<u32>| {
            basket.sort_unstable();
            basket.dedup();
        });
        baskets.retain(|basket| !basket.is_empty());
        users.push((user.to_owned(), baskets));
        Ok(())
    })?;
    Ok(users)
}
