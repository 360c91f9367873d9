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
use lodestone_catalog::Item;
use lodestone_core::ids::Row;
use std::path::{Path, PathBuf};
use tantivy::{Directory, directory::RamDirectory};

const MAGIC: &[u8; 8] = b"LSLEXIC1";
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
    /// Builds the index of items, whose rows are their indices, and serializes it.
    pub fn file_of(items: &[Item], searchable: &[String]) -> Result<Vec<u8>, LexicalError> {
        let lexical = Self::new()?;
        *lexical.searchable.write() = searchable.into();
        let rows: Vec<(Row, &Item)> = items.iter().enumerate().map(|(row, item)| (Row(row as u32), item)).collect();
        lexical.upsert(&rows)?;
        lexical.to_bytes()
    }

    /// Serializes the index. Nothing may write meanwhile.
    fn to_bytes(&self) -> Result<Vec<u8>, LexicalError> {
        self.end_writing()?;
        // Merges leave the files of the segments that they replaced.
        self.start_writing()?.garbage_collect_files().wait()?;
        let mut paths: Vec<PathBuf> = self.index.directory().list_managed_files().into_iter().collect();
        paths.push(FILE_LIST.into());
        paths.retain(|path| self.files.exists(path).is_ok_and(|exists| exists));
        paths.sort_unstable();
        let names: Vec<&str> = paths.iter().filter_map(|path| path.to_str()).collect();
        let mut out = ArrayWriter::new(MAGIC);
        out.texts(self.searchable().iter().map(String::as_str));
        out.texts(names.iter().copied());
        for name in names {
            let file = self.files.open_read(Path::new(name)).map_err(tantivy::TantivyError::from)?;
            out.bytes(&file.read_bytes()?);
        }
        let words = self.words.read();
        words.forward.write(&mut out);
        words.vocabulary.write(&mut out);
        Ok(out.finish())
    }

    /// Reads an index of `row_count` rows that [`Lexical::file_of`] returned. Checks the bounds of all numbers; the
    /// content of tantivy's files is checked by whoever compares checksums.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MatchMode, RowChange};
    use lodestone_catalog::AttributeValue;
    use lodestone_core::ids::ItemId;

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
