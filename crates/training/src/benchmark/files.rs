//! Readers of the benchmarks' text files: plain, .gz or .zst.
use crate::sequence::SequenceError;
use ahash::AHashMap;
use lodestone_catalog::Item;
use lodestone_core::ids::ItemId;
use lodestone_dataset::decompress;
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// Consecutive numbers of item ids, in the order of first occurrence.
#[derive(Debug, Clone, Default)]
pub(super) struct ItemNumbers {
    pub(super) ids: Vec<String>,
    numbers: AHashMap<String, u32>,
}

impl ItemNumbers {
    /// Returns the number of an id, a new one for a new id.
    pub(super) fn number(&mut self, id: &str) -> u32 {
        if let Some(number) = self.numbers.get(id) {
            return *number;
        }
        let number = self.ids.len() as u32;
        self.ids.push(id.to_owned());
        self.numbers.insert(id.to_owned(), number);
        number
    }
}

/// Items by their number.
#[derive(Debug, Clone, Default)]
pub(super) struct Catalogue {
    pub(super) items: ItemNumbers,
    pub(super) described: Vec<Item>,
    /// The sort key of items with the same day: the column `asin`, or the id.
    pub(super) order: Vec<String>,
}

impl Catalogue {
    /// Adds items that are not in the catalogue file. Their ids are their titles.
    pub(super) fn complete(&mut self) -> Result<(), SequenceError> {
        for id in &self.items.ids[self.described.len()..] {
            let parsed =
                ItemId::parse(id).map_err(|error| SequenceError::TooLittle(format!("item `{id}`: {error}")))?;
            self.described.push(Item::titled(parsed, id));
            self.order.push(id.clone());
        }
        Ok(())
    }
}

/// Calls `take` with the number, from 1, and the text of each line that is not empty.
pub(super) fn for_each_line(
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
pub(super) fn read_sequences(
    path: &Path,
    items: &mut ItemNumbers,
) -> Result<(Vec<String>, Vec<Vec<u32>>), SequenceError> {
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
pub(super) fn read_catalogue(path: &Path) -> Result<Catalogue, SequenceError> {
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
        if number < catalogue.described.len() {
            return Err(format!("item {} occurs twice", field("item")));
        }
        catalogue.described.push(item(&field)?);
        catalogue.order.push(if field("asin").is_empty() { field("item") } else { field("asin") }.to_owned());
        Ok(())
    })?;
    Ok(catalogue)
}

/// Builds an item of the fields of a line. A phrase is the title of an item without one.
fn item<'a>(field: &impl Fn(&str) -> &'a str) -> Result<Item, String> {
    let id = ItemId::parse(field("item")).map_err(|error| format!("item `{}`: {error}", field("item")))?;
    let mut texts = ["title", "phrase", "item"].into_iter().map(field).filter(|text| !text.trim().is_empty());
    let title = texts.next().unwrap_or_default();
    let mut tags: Vec<String> = Vec::new();
    if field("phrase") != title {
        tags.extend(Some(field("phrase").to_owned()).filter(|phrase| !phrase.is_empty()));
    }
    let pieces = field("keywords").split([' ', '+']).filter(|piece| !piece.is_empty());
    tags.extend(pieces.map(str::to_owned));
    tags.extend(field("attributes").split_whitespace().map(|attribute| format!("attribute{attribute}")));
    Ok(Item { tags, ..Item::titled(id, title) })
}

/// Reads lines of a user, a tab, and the cluster of the user; a first line that begins with `user` is a header. Returns
/// the cluster of each user.
pub(super) fn read_clusters(path: &Path) -> Result<AHashMap<String, String>, SequenceError> {
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
pub(super) fn read_sessions(path: &Path, items: &mut ItemNumbers) -> Result<Vec<Vec<u32>>, SequenceError> {
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
pub(super) fn read_prefixes(path: &Path, items: &mut ItemNumbers) -> Result<Vec<(Vec<u32>, u32)>, SequenceError> {
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
pub(super) type UserBaskets = (String, Vec<Vec<u32>>);

/// Reads lines of a user, a tab, and baskets separated by semicolons; items of a basket are separated by spaces.
pub(super) fn read_baskets(path: &Path, items: &mut ItemNumbers) -> Result<Vec<UserBaskets>, SequenceError> {
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
