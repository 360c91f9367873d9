//! The file of a lexical index: that of a bundle's items, which a server reads instead of tokenizing all texts.
//!
//! The arrays are the searchable attributes, the names and contents of tantivy's files, and the words of the forward index
//! and of the vocabulary. Inflected forms are not stored, because a server chooses the languages.
use super::{Lexical, LexicalError, Words};
use crate::{
    arrays::{ArrayReader, ArrayWriter, ArraysError, check},
    forms::{Forms, Languages},
    forward::ForwardIndex,
    spelling::Vocabulary,
};
use ahash::AHashMap;
use lodestone_catalog::Item;
use lodestone_core::ids::Row;
use serde::Serialize;
use std::{collections::BTreeMap, path::Path};
use tantivy::{
    Directory, TantivyError,
    directory::{OwnedBytes, RamDirectory},
    index::SegmentId,
    indexer::NoMergePolicy,
};

const MAGIC: &[u8; 8] = b"LSLEXIC1";
/// Memory budget of the writer of a file, in bytes. Most catalogues become one segment, because each segment adds to the
/// cost of every search; the largest become several, because tantivy panics if one takes 4 GiB.
const FILE_ARENA_BYTES: usize = 1 << 30;
/// Tantivy's list of segments.
const SEGMENT_LIST: &str = "meta.json";
/// Tantivy's list of its files, which is not in itself.
const FILE_LIST: &str = ".managed.json";

/// The reason why a lexical index cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LexicalFileError {
    #[error(transparent)]
    Arrays(#[from] ArraysError),
    #[error("its files cannot be opened by this program: {0}; train again")]
    Files(#[from] LexicalError),
}

impl Lexical {
    /// Builds the index of items, whose rows are their indices, and serializes it. The same items return the same bytes.
    pub fn file_of(items: &[Item], searchable: &[String]) -> Result<Vec<u8>, LexicalError> {
        let lexical = Self::new()?;
        *lexical.searchable.write() = searchable.into();
        // Merges run in the background, so their segments would depend on the time that each merge takes.
        *lexical.writer.lock() = Some(lexical.start_writing(FILE_ARENA_BYTES, Box::new(NoMergePolicy))?);
        let rows: Vec<(Row, &Item)> = items.iter().enumerate().map(|(row, item)| (Row(row as u32), item)).collect();
        lexical.upsert(&rows)?;
        lexical.to_bytes()
    }

    /// Serializes the index. No row may have been replaced or removed, and nothing may write meanwhile.
    fn to_bytes(&self) -> Result<Vec<u8>, LexicalError> {
        self.end_writing()?;
        let files = self.numbered_files()?;
        let mut out = ArrayWriter::new(MAGIC);
        out.texts(self.searchable().iter().map(String::as_str));
        out.texts(files.keys().map(String::as_str));
        files.values().for_each(|content| out.bytes(content));
        let words = self.words.read();
        words.forward.write(&mut out);
        words.vocabulary.write(&mut out);
        Ok(out.finish())
    }

    /// Returns tantivy's files by name. The random ids of segments are replaced by numbers in the order of rows. Ids occur
    /// in names of files and in the two lists only, and no random one, a UUID of version 4, is so small.
    fn numbered_files(&self) -> Result<BTreeMap<String, OwnedBytes>, LexicalError> {
        let searcher = self.reader.searcher();
        let mut segments = Vec::new();
        for segment in searcher.segment_readers() {
            segments.push((segment.fast_fields().u64("row")?.first(0), segment.segment_id(), segment.max_doc()));
        }
        segments.sort_unstable();
        let mut list = self.index.load_metas()?;
        list.segments.clear();
        let mut numbers: AHashMap<String, String> = AHashMap::new();
        for (number, (_, id, document_count)) in (1u32..).zip(segments) {
            let number = format!("{number:032x}");
            let numbered = SegmentId::from_uuid_string(&number).expect("32 hexadecimal digits are a UUID");
            list.segments.push(self.index.new_segment_meta(numbered, document_count));
            numbers.insert(id.uuid_string(), number);
        }
        let mut files = BTreeMap::new();
        for path in self.index.directory().list_managed_files() {
            let Some((id, component)) = path.to_str().and_then(|name| name.split_once('.')) else { continue };
            let Some(number) = numbers.get(id) else { continue };
            let content = self.files.open_read(&path).map_err(TantivyError::from)?.read_bytes()?;
            files.insert(format!("{number}.{component}"), content);
        }
        files.insert(SEGMENT_LIST.to_owned(), json(&list)?);
        let names = json(&files.keys().collect::<Vec<_>>())?;
        files.insert(FILE_LIST.to_owned(), names);
        Ok(files)
    }

    /// Reads an index of `row_count` rows that [`Lexical::file_of`] returned. Checks all numbers of its own arrays; the
    /// content of tantivy's files is checked by whoever compares checksums, and tantivy may panic on any other.
    pub fn read(bytes: &[u8], row_count: usize, languages: Languages) -> Result<Self, LexicalFileError> {
        let mut reader = ArrayReader::new(bytes, MAGIC)?;
        let searchable: Vec<String> = reader.texts()?.into_iter().map(str::to_owned).collect();
        let names = reader.texts()?;
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            files.push((name, reader.bytes()?));
        }
        let forward = ForwardIndex::read(&mut reader, row_count)?;
        let vocabulary = Vocabulary::read(&mut reader, row_count)?;
        reader.finish()?;
        let directory = RamDirectory::create();
        for (name, content) in files {
            directory.atomic_write(Path::new(name), content).map_err(LexicalError::from)?;
        }
        let mut lexical = Self::open(directory)?;
        check(lexical.row_count() == row_count, "its rows are not those of the items")?;
        *lexical.searchable.write() = searchable.into();
        let mut forms = Forms::new(languages);
        vocabulary.texts().for_each(|word| forms.add(word));
        *lexical.words.get_mut() = Words { forward, vocabulary, forms };
        Ok(lexical)
    }
}

fn json(value: &impl Serialize) -> Result<OwnedBytes, LexicalError> {
    Ok(OwnedBytes::new(serde_json::to_vec(value).map_err(TantivyError::from)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MatchMode, RowChange};
    use lodestone_catalog::AttributeValue;
    use lodestone_core::ids::ItemId;
    use std::{collections::HashSet, path::PathBuf};

    fn items() -> Vec<Item> {
        ["Red retrospot mug", "Blaue Tasse", "Rote Tassen 0.5 l", "陶瓷马克杯", "Wi-Fi router"]
            .iter()
            .enumerate()
            .map(|(number, title)| {
                let mut item = Item::titled(ItemId::parse(&format!("SKU-{number}")).unwrap(), title);
                item.brand = "Acme".to_owned();
                item.attributes.insert("glaze".to_owned(), AttributeValue::Text("celadon".to_owned()));
                item
            })
            .collect()
    }

    fn read(bytes: &[u8]) -> Result<Lexical, LexicalFileError> {
        Lexical::read(bytes, 5, "en,de".parse().unwrap())
    }

    /// Returns rows and scores of queries of all kinds, and corrections.
    fn answers(lexical: &Lexical) -> Vec<String> {
        ["mug", "tasse", "rote tassen", "acme", "sku-4", "wifi", "马克杯", "celadon", "retrospt", "red acme router"]
            .iter()
            .flat_map(|query| {
                let modes = [MatchMode::All, MatchMode::Any, MatchMode::Prefix];
                let found = modes.map(|mode| format!("{:?}", lexical.search(*query, mode, 9, &|_| true).unwrap()));
                found.into_iter().chain([format!("{:?}", lexical.correct(*query, &|_| true).unwrap())])
            })
            .collect()
    }

    #[test]
    fn an_index_that_is_read_answers_as_the_one_that_was_written_and_takes_changes() {
        let (items, searchable) = (items(), vec!["glaze".to_owned()]);
        let mut built = Lexical::new().unwrap();
        built.set_languages("en,de".parse().unwrap());
        *built.searchable.write() = searchable.clone().into();
        let rows: Vec<(Row, &Item)> = items.iter().enumerate().map(|(row, item)| (Row(row as u32), item)).collect();
        built.upsert(&rows).unwrap();
        let read = read(&Lexical::file_of(&items, &searchable).unwrap()).unwrap();
        assert_eq!(answers(&read), answers(&built));
        assert!(answers(&read).iter().filter(|answer| *answer == "[]").count() < 10);
        let changed = Item::titled(ItemId::parse("SKU-0").unwrap(), "Green teapot");
        for lexical in [&built, &read] {
            lexical.apply(&[RowChange { row: Row(0), old: Some(&items[0]), new: Some(&changed) }]).unwrap();
            // A merge removes the old document, and with it its count.
            lexical.end_writing().unwrap();
            lexical.refresh().unwrap();
        }
        assert_eq!(answers(&read), answers(&built));
        let teapot = read.search("teapot", MatchMode::All, 9, &|_| true).unwrap();
        assert_eq!((teapot.len(), read.row_count(), read.searchable().to_vec()), (1, 5, searchable.clone()));
        assert_eq!(read.correct("retrospt", &|_| true).unwrap(), None, "the word has gone with its item");
        let rows = items.iter().enumerate().skip(1).map(|(row, item)| (Row(row as u32), item));
        read.set_searchable(Vec::new(), rows).unwrap();
        assert!(read.search("celadon", MatchMode::All, 9, &|_| true).unwrap().is_empty());
    }

    fn many_items(count: usize) -> Vec<Item> {
        let title = |number: usize| {
            let (colour, content) = (["red", "blue", "green"][number % 3], ["tea", "coffee"][number % 2]);
            format!("{colour} mug for {content} no {number}")
        };
        let item = |number| Item::titled(ItemId::parse(&format!("SKU-{number}")).unwrap(), &title(number));
        (0..count).map(item).collect()
    }

    #[test]
    fn the_same_items_have_the_same_file() {
        let (items, none) = (many_items(5000), many_items(0));
        assert!(Lexical::file_of(&items, &[]).unwrap() == Lexical::file_of(&items, &[]).unwrap());
        assert!(Lexical::file_of(&none, &[]).unwrap() == Lexical::file_of(&none, &[]).unwrap());
        let empty = Lexical::read(&Lexical::file_of(&none, &[]).unwrap(), 0, Languages::default()).unwrap();
        assert_eq!(empty.row_count(), 0);
    }

    #[test]
    fn segments_are_numbered_in_the_order_of_rows() {
        let items = many_items(90);
        let rows: Vec<(Row, &Item)> = items.iter().enumerate().map(|(row, item)| (Row(row as u32), item)).collect();
        let build = || {
            let lexical = Lexical::new().unwrap();
            *lexical.writer.lock() = Some(lexical.start_writing(FILE_ARENA_BYTES, Box::new(NoMergePolicy)).unwrap());
            // Segments of one size, which tantivy lists in random order.
            rows.chunks(10).for_each(|part| lexical.upsert(part).unwrap());
            lexical.to_bytes().unwrap()
        };
        let bytes = build();
        assert!(bytes == build());
        let mut reader = ArrayReader::new(&bytes, MAGIC).unwrap();
        let (_, names) = (reader.texts().unwrap(), reader.texts().unwrap());
        assert!(names.contains(&"00000000000000000000000000000009.term"), "{names:?}");
        let open = |bytes: &[u8]| Lexical::read(bytes, 90, Languages::default()).unwrap();
        let (parts, whole) = (open(&bytes), open(&Lexical::file_of(&items, &[]).unwrap()));
        let managed: HashSet<PathBuf> =
            names.into_iter().filter(|name| *name != FILE_LIST).map(PathBuf::from).collect();
        assert_eq!(parts.index.directory().list_managed_files(), managed);
        let segment_count = |lexical: &Lexical| lexical.index.searchable_segment_ids().unwrap().len();
        assert_eq!((segment_count(&parts), segment_count(&whole)), (9, 1));
        let found = |lexical: &Lexical, query: &str, mode| lexical.search(query, mode, 90, &|_| true).unwrap();
        for (query, mode) in [("blue mug", MatchMode::All), ("green tea", MatchMode::Any), ("cof", MatchMode::Prefix)] {
            assert_eq!(found(&parts, query, mode), found(&whole, query, mode), "{query}");
            assert!(found(&whole, query, mode).len() >= 30, "{query}");
        }
        let changed = Item::titled(ItemId::parse("SKU-0").unwrap(), "Green teapot");
        for lexical in [&parts, &whole] {
            lexical.apply(&[RowChange { row: Row(0), old: Some(&items[0]), new: Some(&changed) }]).unwrap();
            lexical.end_writing().unwrap();
            lexical.refresh().unwrap();
            let rows: Vec<Row> = found(lexical, "teapot", MatchMode::All).into_iter().map(|(row, _)| row).collect();
            assert_eq!((rows, lexical.row_count()), (vec![Row(0)], 90));
        }
    }

    #[test]
    fn damaged_files_are_errors() {
        let bytes = Lexical::file_of(&items(), &[]).unwrap();
        assert!(Lexical::read(&bytes, 6, Languages::default()).is_err());
        let of = |bytes: &[u8]| read(bytes).map(drop).map_err(|error| error.to_string());
        assert_eq!(
            of(b"LSLEXIC9 and more").unwrap_err(),
            "has version 9 of its format, but this program reads version 1"
        );
        assert!(of(b"items").unwrap_err().contains("LSLEXIC1"));
        assert!(of(&[&bytes[..], b"x"].concat()).unwrap_err().contains("1 bytes more"));
        for length in (0..bytes.len()).step_by(7) {
            assert!(of(&bytes[..length]).is_err(), "{length} bytes");
        }
    }
}
