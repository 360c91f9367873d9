//! Conversion of items to tantivy documents.
use super::Lexical;
use lodestone_catalog::{AttributeValue, Item};
use lodestone_core::{
    ids::Row,
    text::{self, TokenKind},
};
use tantivy::{
    TantivyDocument,
    tokenizer::{PreTokenizedString, Token},
};

/// Attributes that identify an item in addition to its id, in lower case.
const IDENTIFIERS: [&str; 7] = ["sku", "gtin", "ean", "upc", "isbn", "mpn", "asin"];

impl Lexical {
    pub(super) fn document(&self, row: Row, item: &Item, texts: &ItemTexts) -> TantivyDocument {
        let mut document = TantivyDocument::new();
        document.add_u64(self.fields.row, u64::from(row.0));
        document.add_pre_tokenized_text(self.fields.id, tokenized(identifiers(item).into_iter()));
        document.add_pre_tokenized_text(self.fields.title, indexed(&texts.title));
        document.add_pre_tokenized_text(self.fields.labels, indexed(&texts.labels));
        if !texts.description.is_empty() {
            document.add_pre_tokenized_text(self.fields.description, indexed(&texts.description));
        }
        document
    }
}

/// The tokenized texts of an item.
pub(super) struct ItemTexts {
    pub title: Vec<text::Token>,
    pub labels: Vec<text::Token>,
    description: Vec<text::Token>,
    /// Words of title and labels without stemming.
    pub written: Vec<String>,
}

impl ItemTexts {
    /// `searchable` names the attributes whose texts are labels.
    pub(super) fn of(item: &Item, searchable: &[String]) -> Self {
        let mut labels = item.brand.clone();
        let attributes = searchable.iter().flat_map(|name| texts(item, name));
        let labels_of = item.tags.iter().chain(attributes).map(String::as_str);
        for label in item.category_names().into_iter().chain(labels_of) {
            labels.push_str(" · ");
            labels.push_str(label);
        }
        let mut written = text::written_words(&item.title);
        written.extend(text::written_words(&labels));
        written.extend(text::written_compounds(&item.title));
        Self {
            title: text::tokens(&item.title),
            labels: text::tokens(&labels),
            description: text::tokens(&item.description),
            written,
        }
    }
}

/// Returns the texts of an attribute.
fn texts<'i>(item: &'i Item, name: &str) -> &'i [String] {
    match item.attributes.get(name) {
        Some(AttributeValue::Text(text)) => std::slice::from_ref(text),
        Some(AttributeValue::Texts(texts)) => texts,
        _ => &[],
    }
}

/// Returns true if an attribute has a text.
pub(super) fn has_texts(item: &Item, name: &str) -> bool {
    !texts(item, name).is_empty()
}

/// Returns true if the documents of two items have the same texts.
pub(super) fn has_equal_texts(a: &Item, b: &Item, searchable: &[String]) -> bool {
    (&a.title, &a.description, &a.brand) == (&b.title, &b.description, &b.brand)
        && (&a.categories, &a.tags) == (&b.categories, &b.tags)
        && searchable.iter().all(|name| texts(a, name) == texts(b, name))
        && identifiers(a) == identifiers(b)
}

/// Returns the normalized identifiers of an item: its id, that of its group, and attributes such as its SKU.
fn identifiers(item: &Item) -> Vec<String> {
    let is_identifier = |name: &str| IDENTIFIERS.iter().any(|known| name.eq_ignore_ascii_case(known));
    let attributes =
        item.attributes.iter().filter(|(name, _)| is_identifier(name)).flat_map(|(_, value)| match value {
            AttributeValue::Text(text) => vec![text::normalize(text)],
            AttributeValue::Texts(texts) => texts.iter().map(|text| text::normalize(text)).collect(),
            // The f64 of up to 15 digits, such as a GTIN, prints the same digits.
            AttributeValue::Number(number) => vec![number.to_string()],
            AttributeValue::Flag(_) | AttributeValue::Time(_) | AttributeValue::GeoPoint(_) => Vec::new(),
        });
    let ids = [item.id.as_str(), item.group_id.as_str()].map(text::normalize);
    let mut identifiers: Vec<String> = ids.into_iter().chain(attributes).collect();
    identifiers.retain(|text| !text.is_empty());
    identifiers.sort_unstable();
    identifiers.dedup();
    identifiers
}

/// Returns the words of a text in their order, without the tokens that repeat parts of them.
pub(super) fn ordered(tokens: &[text::Token]) -> impl Iterator<Item = &str> {
    tokens.iter().filter(|token| token.kind.is_sequential()).map(|token| token.text.as_str())
}

/// Returns the joined forms of words.
pub(super) fn joined(tokens: &[text::Token]) -> impl Iterator<Item = &str> {
    tokens.iter().filter(|token| token.kind == TokenKind::Joined).map(|token| token.text.as_str())
}

fn indexed(tokens: &[text::Token]) -> PreTokenizedString {
    tokenized(tokens.iter().map(|token| token.text.clone()))
}

fn tokenized(words: impl Iterator<Item = String>) -> PreTokenizedString {
    let token = |(position, text)| Token { text, position, ..Token::default() };
    PreTokenizedString { text: String::new(), tokens: words.enumerate().map(token).collect() }
}
