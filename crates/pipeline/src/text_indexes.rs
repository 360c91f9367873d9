//! The indexes of a bundle's texts, which are built when it is trained, because building them takes longer than a startup
//! may.
use lodestone_catalog::Item;
use lodestone_index::{
    ArraysError, CompletionCandidate, CompletionSource, Languages, Lexical, LexicalError, LexicalFileError, Suggester,
    phrases,
};
use std::sync::Arc;

/// The indexes as the files of a bundle.
#[derive(Clone)]
pub struct TextIndexes {
    pub(crate) lexical: Arc<Vec<u8>>,
    pub(crate) completions: Arc<Vec<u8>>,
}

impl TextIndexes {
    /// Builds the indexes of items, whose rows are their indices. `searchable` names the attributes whose texts searches
    /// find.
    pub fn build(items: &[Item], searchable: &[String]) -> Result<Self, LexicalError> {
        let completions = || Suggester::build(items.iter().flat_map(completion_candidates)).to_bytes();
        let (lexical, completions) = rayon::join(|| Lexical::file_of(items, searchable), completions);
        Ok(Self { lexical: Arc::new(lexical?), completions: Arc::new(completions) })
    }

    /// Reads the lexical index of `row_count` rows.
    pub(crate) fn read_lexical(&self, row_count: usize, languages: Languages) -> Result<Lexical, LexicalFileError> {
        Lexical::read(&self.lexical, row_count, languages)
    }

    /// Reads the index of completions: of titles, their phrases, categories and brands.
    pub(crate) fn read_completions(&self) -> Result<Suggester, ArraysError> {
        Suggester::read(&self.completions)
    }
}

/// Returns the completions of an item: its title and the phrases of it, its categories and its brand.
pub(crate) fn completion_candidates(item: &Item) -> Vec<CompletionCandidate> {
    use CompletionSource::{Brand, Category, Phrase, Title};
    let of_item = item.primary_category().last().unwrap_or_default();
    let candidate = |text: &str, category: &str, source| CompletionCandidate {
        text: text.to_owned(),
        category: category.to_owned(),
        weight: 1.0,
        source,
    };
    let title = candidate(&item.title, of_item, Title);
    let phrases = phrases(&item.title, &item.brand).into_iter().map(|phrase| candidate(&phrase, of_item, Phrase));
    let categories = item.category_names().into_iter().map(|name| candidate(name, name, Category));
    let brand = (!item.brand.is_empty()).then(|| candidate(&item.brand, of_item, Brand));
    std::iter::once(title).chain(phrases).chain(categories).chain(brand).collect()
}

/// Returns true if the completions of two items are equal because the fields that they are made of are. Most writes set a
/// price or a stock.
pub(crate) fn have_same_completions(a: &Item, b: &Item) -> bool {
    a.title == b.title && a.brand == b.brand && a.categories == b.categories
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::ids::ItemId;

    #[test]
    fn phrases_do_not_cut_the_brand_of_the_item_apart() {
        let mut item = Item::titled(ItemId::parse("a").unwrap(), "Moor & Fell Ltd Wool Throw");
        item.brand = "Moor & Fell Ltd".to_owned();
        let found = completion_candidates(&item);
        let of = |source: CompletionSource| -> Vec<&str> {
            found.iter().filter(|of| of.source == source).map(|of| of.text.as_str()).collect()
        };
        assert_eq!(of(CompletionSource::Phrase), ["throw", "wool", "wool throw"]);
        assert_eq!(of(CompletionSource::Brand), ["Moor & Fell Ltd"]);
    }
}
