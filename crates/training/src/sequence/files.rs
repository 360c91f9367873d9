//! Reads the files of the benchmarks: text, plain, .gz or .zst.
use super::SequenceError;
use ahash::AHashMap;
use lodestone_dataset::decompress;
use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// Numbers of item ids, in the order in which they were first met.
#[derive(Debug, Clone, Default)]
pub struct ItemNumbers {
    pub ids: Vec<String>,
    numbers: AHashMap<String, u32>,
}

impl ItemNumbers {
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

/// What is written about items, by number.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    pub items: ItemNumbers,
    /// Words of titles, phrases and keywords.
    pub words: Vec<Vec<String>>,
    /// Categories, brands and the like.
    pub attributes: Vec<Vec<String>>,
    /// What orders items that were chosen on the same day: the column `asin`, or the id.
    pub order: Vec<String>,
}

impl Catalogue {
    /// Makes room for items that the file of items did not have.
    pub fn complete(&mut self) {
        let count = self.items.count();
        self.words.resize(count, Vec::new());
        self.attributes.resize(count, Vec::new());
        let known = self.order.len();
        self.order.extend(self.items.ids[known..].iter().cloned());
    }
}

/// Calls `take` with each line that is not empty and its number, from 1.
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

/// Lines of a user and the items it chose, oldest first, separated by white space.
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

/// Tab-separated with a header: `item`, and where there are any `asin`, `title`, `phrase`, `keywords`, `attributes`.
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
            let place = names.iter().position(|other| other == name);
            place.and_then(|place| fields.get(place)).copied().unwrap_or_default()
        };
        let number = catalogue.items.number(field("item")) as usize;
        if number < catalogue.words.len() {
            return Err(format!("item {} is there twice", field("item")));
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

/// Lines of an account, a tab, and the user that it belongs to.
pub fn read_accounts(path: &Path) -> Result<AHashMap<String, String>, SequenceError> {
    let mut users = AHashMap::new();
    for_each_line(path, |number, line| {
        let (account, user) = line.split_once('\t').ok_or("a line must be an account, a tab and a user".to_owned())?;
        if number > 1 || account != "user" {
            users.insert(account.to_owned(), user.trim().to_owned());
        }
        Ok(())
    })?;
    Ok(users)
}

/// Sessions in time order: one a line, items in the order in which they were clicked, separated by spaces; or
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

/// Lines of the clicks of a session so far, a tab, and the next click; or clicks as in [`read_sessions`], of which every
/// prefix is taken.
pub fn read_prefixes(path: &Path, items: &mut ItemNumbers) -> Result<Vec<(Vec<u32>, u32)>, SequenceError> {
    if let Some(clicks) = read_clicks(path, items)? {
        let prefixes =
            clicks.iter().flat_map(|session| (1..session.len()).map(|end| (session[..end].to_vec(), session[end])));
        return Ok(prefixes.collect());
    }
    let mut prefixes = Vec::new();
    for_each_line(path, |_, line| {
        let (clicks, next) = line.split_once('\t').ok_or("a line is items, a tab and the next item".to_owned())?;
        let clicks: Vec<u32> = clicks.split_whitespace().map(|id| items.number(id)).collect();
        if clicks.is_empty() || next.split_whitespace().count() != 1 {
            return Err("a line is at least one item, a tab and one next item".to_owned());
        }
        prefixes.push((clicks, items.number(next.trim())));
        Ok(())
    })?;
    Ok(prefixes)
}

/// Sessions of a file of clicks, by the time of their first one; none if the file has no header of clicks.
fn read_clicks(path: &Path, items: &mut ItemNumbers) -> Result<Option<Vec<Vec<u32>>>, SequenceError> {
    let mut places: Option<[usize; 3]> = None;
    let mut is_clicks = true;
    let mut numbers: AHashMap<String, usize> = AHashMap::new();
    let mut sessions: Vec<Vec<(f64, u32)>> = Vec::new();
    for_each_line(path, |_, line| {
        if !is_clicks {
            return Ok(());
        }
        let fields: Vec<&str> = line.split('\t').collect();
        let Some([session, item, time]) = places else {
            let place = |name: &str| fields.iter().position(|field| *field == name);
            places = (|| Some([place("SessionId")?, place("ItemId")?, place("Time")?]))();
            is_clicks = places.is_some();
            return Ok(());
        };
        let field = |place: usize| fields.get(place).copied().ok_or_else(|| "a column is missing".to_owned());
        let time = field(time)?.parse().map_err(|_| format!("`{}` is no time in seconds", fields[time]))?;
        let next = sessions.len();
        let number = *numbers.entry(field(session)?.to_owned()).or_insert(next);
        if number == next {
            sessions.push(Vec::new());
        }
        sessions[number].push((time, items.number(field(item)?)));
        Ok(())
    })?;
    if !is_clicks || places.is_none() {
        return Ok(None);
    }
    sessions.iter_mut().for_each(|session| session.sort_by(|a, b| a.0.total_cmp(&b.0)));
    sessions.sort_by(|a, b| a[0].0.total_cmp(&b[0].0));
    let items_of = |session: Vec<(f64, u32)>| session.into_iter().map(|(_, item)| item).collect();
    Ok(Some(sessions.into_iter().map(items_of).collect()))
}

/// A user and its baskets, oldest first, each sorted and with an item once.
pub type UserBaskets = (String, Vec<Vec<u32>>);

/// Lines of a user, a tab, and baskets separated by semicolons; items of a basket are separated by spaces.
pub fn read_baskets(path: &Path, items: &mut ItemNumbers) -> Result<Vec<UserBaskets>, SequenceError> {
    let mut users = Vec::new();
    for_each_line(path, |_, line| {
        let (user, baskets) = line.split_once('\t').ok_or("a line is a user, a tab and baskets".to_owned())?;
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
