//! The filter language. `docs/filters.md` is its reference for shops.
mod attributes;
mod build;
mod columns;
mod parse;

use super::{AttributeValue, Availability, GeoPoint, Item, item::PATH_SEPARATOR};
pub use attributes::AttributeCondition;
pub use build::FilterValue;
pub(super) use columns::{BLOCK_ROWS, CategoryLabels, Column, Columns, Mask, OnlyValues, Texts};
use lodestone_core::{
    text::{self, normalize},
    units::UnixMillis,
};
use std::fmt;

/// The length limit of a filter, in characters.
pub(crate) const FILTER_CHARS_MAX: usize = 5_000;
/// The depth limit of parentheses and NOT.
pub(crate) const FILTER_DEPTH_MAX: usize = 16;

/// The reason why a text is not a valid filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {position}: {message}")]
pub struct FilterError {
    /// The first wrong character, counted from 0; the length of the filter if something is missing at its end.
    pub position: usize,
    pub message: String,
    /// The name of a field that does not exist, if this is the reason.
    pub unknown_field: Option<String>,
}

/// A parsed condition on items.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Filter(Node);

impl TryFrom<String> for Filter {
    type Error = FilterError;

    fn try_from(text: String) -> Result<Self, FilterError> {
        Self::parse(&text)
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> Self {
        filter.to_string()
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    /// At least two operands.
    And(Vec<Node>),
    /// At least two operands.
    Or(Vec<Node>),
    Not(Box<Node>),
    Predicate(Field, Predicate),
}

/// A field of an item, by its name in filters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Field {
    ItemId,
    GroupId,
    Title,
    Description,
    Category,
    /// The path of categories up to any level, such as `Home > Kitchen`.
    CategoryPath,
    Brand,
    Price,
    OriginalPrice,
    /// See [`Pricing::discount`](crate::Pricing::discount).
    Discount,
    /// See [`Item::margin_at`].
    Margin,
    Currency,
    Rating,
    RatingCount,
    StockQuantity,
    InStock,
    /// The name of [`Item::availability`].
    Availability,
    Tags,
    CreateTime,
    Attribute(String),
    Distance(Distance),
}

/// The distance in metres between a point and the location that an attribute has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Distance {
    attribute: String,
    /// In millionths of a degree, which are at most 11 cm.
    latitude_e6: i32,
    longitude_e6: i32,
}

impl Distance {
    /// Returns None for a point that does not exist.
    fn new(attribute: &str, latitude: f64, longitude: f64) -> Option<Self> {
        let point = GeoPoint::new(latitude, longitude)?;
        let e6 = |degrees: f64| (degrees * 1e6).round() as i32;
        Some(Self {
            attribute: attribute.to_owned(),
            latitude_e6: e6(point.latitude),
            longitude_e6: e6(point.longitude),
        })
    }

    /// Parses a text such as `distance(attributes.branch, 52.5, 13.4)`.
    fn parse(text: &str) -> Option<Self> {
        let mut arguments = text.strip_prefix("distance(")?.strip_suffix(')')?.split(',').map(str::trim);
        let attribute = attribute_name(arguments.next()?)?;
        let mut degrees = || arguments.next()?.parse::<f64>().ok();
        let distance = Self::new(attribute, degrees()?, degrees()?);
        if arguments.next().is_some() { None } else { distance }
    }

    pub(crate) fn to(&self, point: GeoPoint) -> f64 {
        let degrees = |e6: i32| f64::from(e6) / 1e6;
        GeoPoint { latitude: degrees(self.latitude_e6), longitude: degrees(self.longitude_e6) }.distance(point)
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let degrees = |e6: i32| f64::from(e6) / 1e6;
        let (latitude, longitude) = (degrees(self.latitude_e6), degrees(self.longitude_e6));
        write!(f, "distance(attributes.{}, {latitude}, {longitude})", self.attribute)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Predicate {
    Compare(Operator, Literal),
    In(Vec<Literal>),
    /// The text's normal form is not empty.
    Has(Text),
}

/// An operator of comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, PartialEq)]
enum Literal {
    Text(Text),
    Number(f64),
    Flag(bool),
    /// Milliseconds since 1970, with the text as written.
    Time(i64, String),
}

/// A text as written and in normal form, by which texts are compared.
#[derive(Debug, Clone, PartialEq)]
struct Text {
    written: String,
    normal: String,
}

/// Returns the normal form of a path of categories such as `Home > Kitchen`: that of each level.
pub fn path_normal(path: &str) -> String {
    path.split('>').map(normalize).collect::<Vec<_>>().join(PATH_SEPARATOR)
}

impl Text {
    /// A text that is compared with a field.
    fn new(field: &Field, written: String) -> Self {
        Self { normal: field.normal(&written), written }
    }

    /// Returns true if a text in normal form contains this text as whole words. Every letter of a script without spaces
    /// has word boundaries on both sides.
    fn is_within(&self, text: &str) -> bool {
        text.match_indices(&self.normal).any(|(at, found)| {
            let (before, after) = (&text[..at], &text[at + found.len()..]);
            is_word_boundary(before.chars().next_back(), found.chars().next())
                && is_word_boundary(found.chars().next_back(), after.chars().next())
        })
    }
}

/// Returns the attribute's name of a field such as `attributes.size`: 1 to 64 ASCII letters, digits and `_`.
pub fn attribute_name(field: &str) -> Option<&str> {
    let is_name =
        |name: &&str| (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    field.strip_prefix("attributes.").filter(is_name)
}

/// Returns true if a word of a text in normal form begins with a prefix in normal form. Every letter of a script
/// without spaces begins a word.
pub fn has_word_prefix(text: &str, prefix: &str) -> bool {
    let first = prefix.chars().next();
    text.match_indices(prefix).any(|(at, _)| is_word_boundary(text[..at].chars().next_back(), first))
}

/// Returns true for a word boundary between two characters.
pub fn is_word_boundary(before: Option<char>, after: Option<char>) -> bool {
    // A mark belongs to the letter before it.
    let is_mark = after.is_some_and(text::is_combining_mark);
    let is_letter = |c: char| c.is_alphanumeric() || text::is_combining_mark(c);
    let is_word = |c: Option<char>| c.is_some_and(|c| is_letter(c) && !text::is_unspaced(c));
    !(is_mark || is_word(before) && is_word(after))
}

impl Filter {
    /// Parses a filter of at most [`FILTER_CHARS_MAX`] characters and a nesting depth of at most [`FILTER_DEPTH_MAX`].
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        parse::parse(text).map(Filter)
    }

    /// Returns the filter of items whose price is reduced.
    pub fn on_sale() -> Self {
        Self(Node::Predicate(Field::Discount, Predicate::Compare(Operator::Greater, Literal::Number(0.0))))
    }

    /// Returns the filter of items that are not discontinued.
    pub fn not_discontinued() -> Self {
        let discontinued = Text::new(&Field::Availability, Availability::Discontinued.name().to_owned());
        let predicate = Predicate::Compare(Operator::Unequal, Literal::Text(discontinued));
        Self(Node::Predicate(Field::Availability, predicate))
    }

    /// Returns a filter that matches what both match.
    pub fn and(self, other: Filter) -> Filter {
        let nodes = |Filter(node)| match node {
            Node::And(nodes) => nodes,
            node => vec![node],
        };
        let mut both = nodes(self);
        both.extend(nodes(other));
        Filter(Node::And(both))
    }

    /// Returns a filter that matches what this one does not match.
    pub fn negated(self) -> Filter {
        Filter(Node::Not(Box::new(self.0)))
    }

    /// Returns the normal forms of the texts that the filter selects of a field by `=` and IN, as far as AND joins
    /// these conditions with the rest.
    pub fn selected_texts(&self, field: &Field) -> Vec<&str> {
        let mut texts = Vec::new();
        for node in self.0.conjuncts() {
            let literals = match node {
                Node::Predicate(of, Predicate::Compare(Operator::Equal, literal)) if of == field => {
                    std::slice::from_ref(literal)
                }
                Node::Predicate(of, Predicate::In(literals)) if of == field => literals,
                _ => &[],
            };
            texts.extend(literals.iter().filter_map(|literal| match literal {
                Literal::Text(text) => Some(text.normal.as_str()),
                _ => None,
            }));
        }
        texts
    }

    /// Returns true if a condition is on one of these fields.
    pub fn has_any(&self, is_one: impl Fn(&Field) -> bool + Copy) -> bool {
        self.0.has_any(is_one)
    }

    /// Returns true if all matches have the same currency, because AND joins a condition on it with the rest.
    pub fn selects_one_currency(&self) -> bool {
        self.0.conjuncts().iter().any(|node| match node {
            Node::Predicate(Field::Currency, Predicate::Compare(Operator::Equal, _)) => true,
            Node::Predicate(Field::Currency, Predicate::In(literals)) => literals.len() == 1,
            _ => false,
        })
    }

    /// Returns true if [`Filter::without`] leaves conditions out.
    pub fn has_condition_on(&self, field: &Field) -> bool {
        self.0.conjuncts().iter().any(|node| node.is_only_about(field))
    }

    /// Returns the filter without the conditions on a field, as far as AND joins them with the rest; none if it has no
    /// others.
    pub fn without(&self, field: &Field) -> Option<Filter> {
        let conjuncts = self.0.conjuncts().into_iter();
        let rest: Vec<Node> = conjuncts.filter(|node| !node.is_only_about(field)).cloned().collect();
        match rest.len() {
            0 | 1 => rest.into_iter().next().map(Filter),
            _ => Some(Filter(Node::And(rest))),
        }
    }

    /// Returns true if an item matches at a time. A comparison with a value that the item does not have is false, even
    /// `!=`; only that with an empty text is true.
    pub fn matches(&self, item: &Item, at: UnixMillis) -> bool {
        self.0.matches(item, at)
    }
}

impl Node {
    /// Returns the conditions that AND joins, also those of groups.
    fn conjuncts(&self) -> Vec<&Node> {
        match self {
            Self::And(nodes) => nodes.iter().flat_map(Self::conjuncts).collect(),
            node => vec![node],
        }
    }

    fn has_any(&self, is_one: impl Fn(&Field) -> bool + Copy) -> bool {
        match self {
            Self::And(nodes) | Self::Or(nodes) => nodes.iter().any(|node| node.has_any(is_one)),
            Self::Not(node) => node.has_any(is_one),
            Self::Predicate(field, _) => is_one(field),
        }
    }

    /// Returns all conditions with their fields, in their order.
    fn predicates(&self) -> Vec<(&Field, &Predicate)> {
        match self {
            Self::And(nodes) | Self::Or(nodes) => nodes.iter().flat_map(Self::predicates).collect(),
            Self::Not(node) => node.predicates(),
            Self::Predicate(field, predicate) => vec![(field, predicate)],
        }
    }

    /// Returns true if all conditions are on this field.
    fn is_only_about(&self, field: &Field) -> bool {
        match self {
            Self::And(nodes) | Self::Or(nodes) => nodes.iter().all(|node| node.is_only_about(field)),
            Self::Not(node) => node.is_only_about(field),
            // A path of categories that a filter compares with `category` is a condition on the path.
            Self::Predicate(of, _) => {
                let are_categories = [of, field].iter().all(|of| matches!(of, Field::Category | Field::CategoryPath));
                of == field || are_categories
            }
        }
    }

    fn matches(&self, item: &Item, at: UnixMillis) -> bool {
        match self {
            Self::And(nodes) => nodes.iter().all(|node| node.matches(item, at)),
            Self::Or(nodes) => nodes.iter().any(|node| node.matches(item, at)),
            Self::Not(node) => !node.matches(item, at),
            Self::Predicate(field, predicate) => field.matches(predicate, item, at),
        }
    }
}

impl Field {
    /// Returns the name of the attribute whose value the field is or, for a distance, begins from.
    pub fn attribute(&self) -> Option<&str> {
        match self {
            Self::Attribute(name) | Self::Distance(Distance { attribute: name, .. }) => Some(name),
            _ => None,
        }
    }

    fn matches(&self, predicate: &Predicate, item: &Item, at: UnixMillis) -> bool {
        match self {
            Self::ItemId => predicate.matches_id(item.id.as_str()),
            Self::GroupId => predicate.matches_normal(&item.group_id),
            Self::Title => predicate.matches_text(&item.title),
            Self::Description => predicate.matches_text(&item.description),
            Self::Category => predicate.matches_labels(item.category_names().into_iter().map(normalize)),
            Self::CategoryPath => predicate.matches_labels(item.category_paths().into_iter().map(path_normal)),
            Self::Tags => predicate.matches_labels(item.tags.iter().map(|label| normalize(label))),
            Self::Brand => predicate.matches_text(&item.brand),
            Self::Currency => predicate.matches_text(&item.currency),
            Self::InStock => predicate.matches_flag(item.is_in_stock()),
            Self::Availability => predicate.matches_text(item.availability().name()),
            Self::CreateTime => item.created_at.is_some_and(|at| predicate.matches_time(at.0)),
            Self::Attribute(name) => match item.attributes.get(name) {
                // Like an empty brand.
                None => predicate.matches_normal(""),
                Some(AttributeValue::Texts(texts)) if texts.is_empty() => predicate.matches_normal(""),
                Some(AttributeValue::Text(text)) => predicate.matches_texts(std::slice::from_ref(text)),
                Some(AttributeValue::Texts(texts)) => predicate.matches_texts(texts),
                Some(AttributeValue::Number(number)) => predicate.matches_number(*number),
                Some(AttributeValue::Flag(flag)) => predicate.matches_flag(*flag),
                Some(AttributeValue::Time(time)) => predicate.matches_time(time.time_ms),
                Some(AttributeValue::GeoPoint(_)) => false,
            },
            Self::Price
            | Self::OriginalPrice
            | Self::Discount
            | Self::Margin
            | Self::Rating
            | Self::RatingCount
            | Self::StockQuantity
            | Self::Distance(_) => self.plain_number(item, at).is_some_and(|number| predicate.matches_number(number)),
        }
    }

    /// Returns the value at a time of a field that is a number in every item, or a time in milliseconds since 1970; none
    /// for other fields.
    pub(crate) fn plain_number(&self, item: &Item, at: UnixMillis) -> Option<f64> {
        match self {
            Self::Price => item.price_at(at).price.map(|price| price.units()),
            Self::OriginalPrice => item.price_at(at).original_price.map(|price| price.units()),
            Self::Discount => item.price_at(at).discount(),
            Self::Margin => item.margin_at(at),
            Self::Rating => item.rating,
            Self::RatingCount => item.rating_count.map(f64::from),
            Self::StockQuantity => item.stock_quantity.map(f64::from),
            Self::CreateTime => item.created_at.map(|time| time.0 as f64),
            Self::Distance(from) => match item.attributes.get(&from.attribute)? {
                AttributeValue::GeoPoint(point) => Some(from.to(*point)),
                _ => None,
            },
            Self::ItemId | Self::GroupId | Self::Title | Self::Description | Self::Category | Self::Brand => None,
            Self::CategoryPath | Self::Currency | Self::InStock | Self::Availability | Self::Tags => None,
            Self::Attribute(_) => None,
        }
    }

    /// Returns true for a field whose value offers may change.
    pub(crate) fn is_of_offers(&self) -> bool {
        self.is_price()
            || matches!(self, Self::Discount | Self::Currency)
            || matches!(self, Self::StockQuantity | Self::InStock | Self::Availability)
    }

    /// Returns true for a field in the unit of a currency.
    pub fn is_price(&self) -> bool {
        matches!(self, Self::Price | Self::OriginalPrice | Self::Margin)
    }

    /// Parses a name such as `price` or `attributes.size`, or a distance such as
    /// `distance(attributes.branch, 52.5, 13.4)`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "item_id" => Self::ItemId,
            "group_id" => Self::GroupId,
            "title" => Self::Title,
            "description" => Self::Description,
            "category" | "categories" => Self::Category,
            "category_path" => Self::CategoryPath,
            "brand" => Self::Brand,
            "price" => Self::Price,
            "original_price" => Self::OriginalPrice,
            "discount" => Self::Discount,
            "margin" => Self::Margin,
            "currency" => Self::Currency,
            "rating" => Self::Rating,
            "rating_count" => Self::RatingCount,
            "stock_quantity" => Self::StockQuantity,
            "in_stock" => Self::InStock,
            "availability" => Self::Availability,
            "tags" => Self::Tags,
            "create_time" => Self::CreateTime,
            _ => match attribute_name(name) {
                Some(attribute) => Self::Attribute(attribute.to_owned()),
                None => Self::Distance(Distance::parse(name)?),
            },
        })
    }

    /// Returns the normal form by which texts of the field are compared.
    pub fn normal(&self, text: &str) -> String {
        match self {
            Self::CategoryPath => path_normal(text),
            Self::GroupId => text.to_owned(),
            _ => normalize(text),
        }
    }

    /// Returns true if blocks have a column of the field. Titles, descriptions and ids have none, because almost every
    /// item has a different value.
    fn has_column(&self) -> bool {
        !matches!(self, Self::ItemId | Self::Title | Self::Description)
    }

    /// Returns the type of the literals that the field is compared with.
    fn value_type(&self) -> ValueType {
        match self {
            Self::Price | Self::OriginalPrice | Self::Discount | Self::Margin => ValueType::Number,
            Self::Rating | Self::RatingCount | Self::StockQuantity => ValueType::Number,
            Self::InStock => ValueType::Flag,
            Self::Availability => ValueType::Availability,
            Self::CreateTime => ValueType::Time,
            Self::Distance(_) => ValueType::Distance,
            Self::Attribute(_) => ValueType::Attribute,
            Self::ItemId | Self::GroupId | Self::Title | Self::Description => ValueType::Text,
            Self::Category | Self::CategoryPath | Self::Brand => ValueType::Text,
            Self::Currency | Self::Tags => ValueType::Text,
        }
    }
}

impl TryFrom<String> for Field {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::named(&name)
    }
}

impl From<Field> for String {
    fn from(field: Field) -> Self {
        field.to_string()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ValueType {
    Text,
    Number,
    Flag,
    Time,
    /// A name of an [`Availability`](crate::Availability).
    Availability,
    /// Metres.
    Distance,
    /// Text, number, flag or time.
    Attribute,
}

impl Predicate {
    fn matches_id(&self, id: &str) -> bool {
        let equals = |literal: &Literal| matches!(literal, Literal::Text(text) if text.written == id);
        match self {
            Self::Compare(operator, literal) => equals(literal) == (*operator == Operator::Equal),
            Self::In(literals) => literals.iter().any(equals),
            Self::Has(text) => text.written == id,
        }
    }

    fn matches_text(&self, text: &str) -> bool {
        self.matches_normal(&normalize(text))
    }

    /// `text` is in the form by which the field is compared.
    fn matches_normal(&self, text: &str) -> bool {
        match self {
            Self::Compare(Operator::Equal, literal) => literal.equals(text),
            Self::Compare(Operator::Unequal, Literal::Text(literal)) => !text.is_empty() && literal.normal != text,
            Self::Compare(..) => false,
            Self::In(literals) => literals.iter().any(|literal| literal.equals(text)),
            Self::Has(literal) => literal.is_within(text),
        }
    }

    /// Returns true if one of the texts matches; for `!=`, if there is one and all match.
    fn matches_texts(&self, texts: &[String]) -> bool {
        match self {
            Self::Compare(Operator::Unequal, _) => {
                !texts.is_empty() && texts.iter().all(|text| self.matches_text(text))
            }
            _ => texts.iter().any(|text| self.matches_text(text)),
        }
    }

    /// `labels` are in normal form.
    fn matches_labels(&self, labels: impl Iterator<Item = String>) -> bool {
        let labels: Vec<String> = labels.collect();
        let has = |literal: &Literal| labels.iter().any(|label| literal.equals(label));
        match self {
            Self::Compare(operator, literal) => has(literal) == (*operator == Operator::Equal),
            Self::In(literals) => literals.iter().any(has),
            Self::Has(literal) => labels.contains(&literal.normal),
        }
    }

    fn matches_number(&self, number: f64) -> bool {
        let equals = |literal: &Literal| matches!(literal, Literal::Number(other) if *other == number);
        match self {
            Self::Compare(operator, Literal::Number(other)) => operator.accepts(number.partial_cmp(other)),
            Self::In(literals) => literals.iter().any(equals),
            Self::Compare(..) | Self::Has(_) => false,
        }
    }

    fn matches_flag(&self, flag: bool) -> bool {
        match self {
            Self::Compare(Operator::Equal, Literal::Flag(other)) => flag == *other,
            Self::Compare(Operator::Unequal, Literal::Flag(other)) => flag != *other,
            Self::In(literals) => literals.contains(&Literal::Flag(flag)),
            Self::Compare(..) | Self::Has(_) => false,
        }
    }

    fn matches_time(&self, at: i64) -> bool {
        match self {
            Self::Compare(operator, Literal::Time(other, _)) => operator.accepts(Some(at.cmp(other))),
            Self::In(literals) => literals.iter().any(|other| matches!(other, Literal::Time(other, _) if *other == at)),
            Self::Compare(..) | Self::Has(_) => false,
        }
    }
}

impl Literal {
    /// Returns true for the text of a normal form.
    fn equals(&self, normal: &str) -> bool {
        matches!(self, Self::Text(literal) if literal.normal == normal)
    }
}

impl Operator {
    fn accepts(self, ordering: Option<std::cmp::Ordering>) -> bool {
        ordering.is_some_and(|ordering| match self {
            Self::Equal => ordering.is_eq(),
            Self::Unequal => ordering.is_ne(),
            Self::Less => ordering.is_lt(),
            Self::LessOrEqual => ordering.is_le(),
            Self::Greater => ordering.is_gt(),
            Self::GreaterOrEqual => ordering.is_ge(),
        })
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::Unequal => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}

impl fmt::Display for Filter {
    /// Writes a filter that parses to this one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, false)
    }
}

impl Node {
    fn write(&self, f: &mut fmt::Formatter<'_>, is_operand: bool) -> fmt::Result {
        let (nodes, word) = match self {
            Self::And(nodes) => (nodes, " AND "),
            Self::Or(nodes) => (nodes, " OR "),
            Self::Not(node) => {
                f.write_str("NOT ")?;
                return node.write(f, true);
            }
            Self::Predicate(field, predicate) => return write_predicate(f, field, predicate),
        };
        if is_operand {
            f.write_str("(")?;
        }
        for (i, node) in nodes.iter().enumerate() {
            if i > 0 {
                f.write_str(word)?;
            }
            node.write(f, true)?;
        }
        if is_operand { f.write_str(")") } else { Ok(()) }
    }
}

fn write_predicate(f: &mut fmt::Formatter<'_>, field: &Field, predicate: &Predicate) -> fmt::Result {
    write!(f, "{field}")?;
    match predicate {
        Predicate::Compare(operator, literal) => {
            write!(f, " {} ", operator.sign())?;
            write_literal(f, field, literal)
        }
        Predicate::Has(text) => {
            f.write_str(" HAS ")?;
            write_text(f, &text.written)
        }
        Predicate::In(literals) => {
            f.write_str(" IN (")?;
            for (i, literal) in literals.iter().enumerate() {
                f.write_str(if i > 0 { ", " } else { "" })?;
                write_literal(f, field, literal)?;
            }
            f.write_str(")")
        }
    }
}

/// Writes a literal as the parser expects it for a field.
fn write_literal(f: &mut fmt::Formatter<'_>, field: &Field, literal: &Literal) -> fmt::Result {
    match (field, literal) {
        (Field::Attribute(_), Literal::Time(_, written)) => {
            f.write_str("timestamp(")?;
            write_text(f, written)?;
            f.write_str(")")
        }
        (Field::Distance(_), literal) => write!(f, "{literal} m"),
        (_, literal) => write!(f, "{literal}"),
    }
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    write!(f, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ItemId => "item_id",
            Self::GroupId => "group_id",
            Self::Title => "title",
            Self::Description => "description",
            Self::Category => "category",
            Self::CategoryPath => "category_path",
            Self::Brand => "brand",
            Self::Price => "price",
            Self::OriginalPrice => "original_price",
            Self::Discount => "discount",
            Self::Margin => "margin",
            Self::Currency => "currency",
            Self::Rating => "rating",
            Self::RatingCount => "rating_count",
            Self::StockQuantity => "stock_quantity",
            Self::InStock => "in_stock",
            Self::Availability => "availability",
            Self::Tags => "tags",
            Self::CreateTime => "create_time",
            Self::Attribute(name) => return write!(f, "attributes.{name}"),
            Self::Distance(distance) => return write!(f, "{distance}"),
        })
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write_text(f, &text.written),
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Time(_, written) => write_text(f, written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_core::{ids::ItemId, units::PriceMicros};
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

    fn mug() -> Item {
        let mut item = Item::titled(ItemId::parse("mug-1").unwrap(), "Red Retrospot Mug 马克杯");
        item.categories = vec!["Home > Kitchen > Mugs".to_owned(), "Gifts".to_owned()];
        item.brand = "Acme".to_owned();
        item.price = PriceMicros::new(2_950_000);
        item.stock_quantity = Some(12);
        item.tags = vec!["vegan".to_owned(), "gift \"box\"".to_owned()];
        item.attributes.insert("size".to_owned(), AttributeValue::Text("M".to_owned()));
        item.attributes.insert("litres".to_owned(), AttributeValue::Number(0.3));
        item.attributes.insert("organic".to_owned(), AttributeValue::Flag(true));
        item.created_at = Some(UnixMillis(1_770_000_000_000));
        item.attributes.insert("released".to_owned(), AttributeValue::time(UnixMillis(1_770_000_000_000)));
        let berlin = GeoPoint { latitude: 52.52, longitude: 13.4 };
        item.attributes.insert("branch".to_owned(), AttributeValue::GeoPoint(berlin));
        item
    }

    fn holds(filter: &str) -> bool {
        Filter::parse(filter).unwrap_or_else(|error| panic!("{filter}: {error}")).matches(&mug(), NOW)
    }

    #[test]
    fn filters_on_every_field_are_evaluated() {
        for filter in [
            r#"category IN ("shoes", "mugs") AND price <= 50 AND NOT brand = "X" AND in_stock AND tags HAS "vegan""#,
            r#"attributes.size = "M" AND stock_quantity > 3 AND item_id IN ("a", "mug-1") AND title HAS "mug""#,
            r#"category = "Home" AND category = "Kitchen" AND category != "Garden""#,
            "price = 2.95 AND price >= 2.95 AND price < 3 AND price > -1 AND price != 2 AND price IN (1, 2.95)",
            "in_stock = true AND in_stock != false AND attributes.organic AND attributes.litres < 0.5",
            r#"title HAS "retrospot mug" AND title HAS "马克" AND description = """#,
            r#"tags HAS "gift \"box\"" AND currency = """#,
            r#"category = "Gifts" AND category_path = "home>KITCHEN" AND category = "Home > Kitchen > Mugs""#,
            r#"category IN ("Shoes", "Home > Kitchen") AND NOT category = "Home > Mugs" AND category != "Home > Gifts""#,
            r#"attributes.released > timestamp("2026-01-31") AND attributes.released <= timestamp("2026-02-02T12:00:00Z")"#,
            r#"create_time > timestamp("2026-01-31") AND NOT attributes.released > 5 AND NOT attributes.litres < timestamp("2026-01-31")"#,
            "distance(attributes.branch, 52.5, 13.4) < 3 km AND distance( attributes.branch ,52.52,13.4)<=0 m",
            "distance(attributes.branch, -33.9, 151.2) > 10000 km AND NOT distance(attributes.size, 52.5, 13.4) < 99999 km",
            r#"availability = "in stock" AND availability IN ("preorder", "IN_STOCK") AND NOT margin > 0"#,
            r#"create_time >= "2026-01-31" AND create_time < "2027-01-31T12:00:00+02:00""#,
        ] {
            assert!(holds(filter), "{filter}");
        }
        for filter in [r#"title HAS "mu""#, r#"title = "red""#, r#"item_id = "MUG-1""#, "price > 2.95", "NOT in_stock"]
        {
            assert!(!holds(filter), "{filter}");
        }
    }

    #[test]
    fn texts_are_compared_in_normal_form() {
        let mut item = Item::titled(ItemId::parse("a").unwrap(), "Kaffee\u{ad}becher für Zuhause, แก้วกาแฟ");
        item.brand = "Black & Decker™".to_owned();
        item.categories = vec!["Straßenschuhe > 檯燈".to_owned()];
        item.attributes.insert("material".to_owned(), AttributeValue::Text("Porcelán".to_owned()));
        for filter in [
            r#"brand = "black and decker" AND brand IN ("x", "BLACK &amp; DECKER") AND NOT brand != "Black&Decker""#,
            r#"category = "STRASSENSCHUHE" AND category HAS "台灯" AND category IN ("strassenschuhe")"#,
            r#"title HAS "kaffeebecher" AND title HAS "FUR" AND title HAS "กาแฟ" AND NOT title HAS "แก""#,
            r#"attributes.material = "porcelan" AND attributes.material HAS "PORCELÁN""#,
        ] {
            let filter = Filter::parse(filter).unwrap();
            assert!(filter.matches(&item, NOW), "{filter}");
            let mut columns = Columns::default();
            columns.add(0, &item, NOW, &mut CategoryLabels::default());
            let mask = filter.mask(&columns, &|_| &item, {
                let mut first: Mask = [0; 16];
                first[0] = 1;
                first
            });
            assert_eq!(mask[0], 1, "{filter}");
        }
    }

    #[test]
    fn conditions_that_and_joins_are_left_out_also_in_groups() {
        let brand = Field::Brand;
        let without = |text: &str| {
            let filter = Filter::parse(text).unwrap();
            let rest = filter.without(&brand);
            assert_eq!(filter.has_condition_on(&brand), rest.as_ref() != Some(&filter), "{text}");
            rest.map(|filter| filter.to_string())
        };
        let rest = Some("price < 5 AND in_stock = true".to_owned());
        for text in [
            "price < 5 AND in_stock AND brand = \"a\"",
            "price < 5 AND (in_stock AND brand = \"a\")",
            "(brand = \"a\" OR brand = \"b\") AND (price < 5 AND (in_stock AND NOT brand = \"c\"))",
        ] {
            assert_eq!(without(text), rest, "{text}");
        }
        assert_eq!(without("brand = \"a\" AND NOT brand = \"b\""), None);
        assert_eq!(without("brand = \"a\" OR price < 5"), Some("brand = \"a\" OR price < 5".to_owned()));
    }

    #[test]
    fn a_missing_value_matches_no_comparison() {
        let bare = Item::titled(ItemId::parse("a").unwrap(), "a");
        let numbers = ["price < 5", "price != 5", "price >= 5", "stock_quantity < 9", "attributes.x != 1"];
        let texts = ["brand != \"x\"", "brand != \"\"", "description != \"x\"", "currency != \"EUR\""];
        for filter in numbers.into_iter().chain(texts) {
            assert!(!Filter::parse(filter).unwrap().matches(&bare, NOW), "{filter}");
        }
        for filter in ["brand = \"\"", "attributes.x = \"\"", "attributes.x IN (\"M\", \" \")"] {
            assert!(
                Filter::parse(filter).unwrap().matches(&bare, NOW),
                "an empty text finds items without one: {filter}"
            );
        }
        for filter in ["attributes.x != \"\"", "attributes.x != \"M\"", "attributes.x IN (\"M\", 1, false)"] {
            assert!(!Filter::parse(filter).unwrap().matches(&bare, NOW), "{filter}");
        }
        let with_value =
            [AttributeValue::Number(0.0), AttributeValue::Flag(false), AttributeValue::Text("M".to_owned())];
        for value in with_value {
            let mut item = bare.clone();
            item.attributes.insert("x".to_owned(), value);
            assert!(!Filter::parse("attributes.x = \"\"").unwrap().matches(&item, NOW), "{:?}", item.attributes);
        }
        assert!(Filter::parse("NOT price < 5 AND in_stock").unwrap().matches(&bare, NOW));
    }

    #[test]
    fn and_binds_tighter_than_or_and_parentheses_override_it() {
        assert!(holds("in_stock OR in_stock AND price > 100"));
        assert!(!holds("(in_stock OR in_stock) AND price > 100"));
        assert!(holds("NOT in_stock AND price > 100 OR in_stock"));
    }

    #[test]
    fn errors_have_a_position_and_a_hint() {
        for (filter, position, part) in [
            ("colour = \"red\"", 0, "the fields are item_id"),
            ("price <= \"50\"", 9, "a number"),
            ("in_stock AND brand = 5", 21, "a text"),
            ("马 = 1", 0, "unknown field"),
            ("title HAS \"马克\" AND price ~ 5", 25, "unexpected"),
            ("title < \"a\"", 6, "for numbers"),
            ("brand = \"open", 8, "closing quote"),
            ("(in_stock", 9, "expected )"),
            ("in_stock in_stock", 9, "expected AND"),
            ("", 0, "found the end"),
            ("price HAS \"5\"", 6, "HAS"),
            ("in_stock AND title HAS \"\"", 23, "HAS needs a text"),
            ("tags HAS \" \t\"", 9, "HAS needs a text"),
            ("price = 1e5", 8, "not a number"),
            ("create_time > \"soon\"", 14, "time"),
            ("brand", 5, "expected a comparison"),
            ("availability = \"soon\"", 15, "in_stock, backorder"),
            ("attributes.a > timestamp(5)", 25, "time"),
            ("attributes.a > timestamp(\"soon\")", 25, "time"),
            ("distance(attributes.a, 91, 0) < 1 m", 0, "latitude"),
            ("distance(price, 1, 0) < 1 m", 9, "attributes.NAME"),
            ("distance(attributes.a, 1, 0) < 5", 32, "a distance"),
            ("distance(attributes.a, 1, 0) < 5 miles", 33, "a distance"),
            ("distance(attributes.a, 1, 0) IN (5 m)", 29, "IN is not"),
            ("availability HAS \"stock\"", 13, "HAS is for texts"),
        ] {
            let error = Filter::parse(filter).unwrap_err();
            assert_eq!(error.position, position, "{filter}: {error}");
            assert!(error.message.contains(part), "{filter}: {error}");
        }
    }

    #[test]
    fn length_and_depth_are_limited() {
        let nested = |depth: usize| format!("{}in_stock{}", "(".repeat(depth), ")".repeat(depth));
        assert!(Filter::parse(&nested(16)).is_ok());
        assert!(Filter::parse(&nested(17)).unwrap_err().message.contains("16"));
        assert!(Filter::parse(&"NOT ".repeat(1000)).is_err());
        assert!(Filter::parse(&" ".repeat(5001)).unwrap_err().message.contains("5000"));
    }

    /// Draws from few texts and numbers, so that filters often match.
    fn any_item() -> impl Strategy<Value = Item> {
        let text = || "[abA马 ]{0,2}";
        let attribute = prop_oneof![
            text().prop_map(AttributeValue::Text),
            prop::collection::vec(text(), 1..4).prop_map(AttributeValue::Texts),
            (0i32..4).prop_map(|number| AttributeValue::Number(f64::from(number))),
            any::<bool>().prop_map(AttributeValue::Flag),
            (0i64..4).prop_map(|ms| AttributeValue::time(UnixMillis(ms))),
            (0i32..4).prop_map(|degree| {
                let degree = f64::from(degree);
                AttributeValue::GeoPoint(GeoPoint { latitude: degree, longitude: -degree })
            }),
        ];
        let numbers = (prop::option::of(0i64..4), prop::option::of(0u32..4), prop::option::of(any::<bool>()));
        let labels = || prop::collection::vec(text(), 0..3);
        let paths = prop::collection::vec("[abA马]( > [abA马]){0,2}", 0..3);
        let attributes = prop::collection::btree_map("(a_1|b)", attribute, 0..3);
        (text(), text(), paths, labels(), numbers, attributes).prop_map(
            |(title, brand, categories, tags, (price, stock_quantity, old), attributes)| Item {
                brand,
                categories,
                tags,
                price: price.and_then(|units| PriceMicros::new(units * 1_000_000)),
                sale_price: old.and_then(|_| PriceMicros::new(1_000_000)),
                sale_start: old.map(|old| UnixMillis(if old { 0 } else { 4_000_000_000_000 })),
                cost: stock_quantity.and_then(|cost| PriceMicros::new(i64::from(cost) * 1_000_000)),
                stated_availability: price.and_then(|at| Availability::ALL.get(at as usize + 1)).copied(),
                original_price: price.and_then(|_| PriceMicros::new(2_000_000)),
                rating: stock_quantity.map(f64::from),
                stock_quantity,
                attributes,
                created_at: old.map(|old| UnixMillis(if old { 0 } else { 4_000_000_000_000 })),
                ..Item::titled(ItemId::parse("a").unwrap(), &title)
            },
        )
    }

    fn any_filter() -> impl Strategy<Value = String> {
        let text = "\"([abA马 ]{0,2}|([a-zA-Z马 ]|\\\\\"|\\\\\\\\){0,6})\"";
        let number = prop_oneof![-1000.0f64..1000.0, (0i32..4).prop_map(f64::from)];
        let field = "(brand|title|category|tags|item_id|attributes\\.a_1)";
        let test = prop_oneof![
            2 => (field, "(=|!=)", text).prop_map(|(field, operator, text)| format!("{field} {operator} {text}")),
            1 => (field, "[abA马][abA马 ]?").prop_map(|(field, text)| format!("{field} HAS \"{text}\"")),
            2 => ("(price|discount|margin|rating|stock_quantity|attributes\\.b)", "(=|!=|<|<=|>|>=)", number)
                .prop_map(|(field, operator, number)| format!("{field} {operator} {number}")),
            1 => ("(brand|attributes\\.a_1)", prop::collection::vec(text, 1..4))
                .prop_map(|(field, texts)| format!("{field} IN ({})", texts.join(","))),
            1 => "(in_stock|attributes\\.(a_1|b|c) (=|!=) \"\")",
            1 => "availability (=|!=) \"(preorder|In Stock|DISCONTINUED)\"",
            1 => "attributes\\.b (=|!=|<|<=|>|>=) timestamp\\(\"1970-01-01T00:00:00\\.00[0-3]Z\"\\)",
            1 => "distance\\(attributes\\.b, [0-3], -[0-3]\\) (=|!=|<|<=|>|>=) [0-3]00 km",
            1 => "category(_path)? = \"a > b\"",
            1 => Just("create_time < \"2026-05-01\"".to_owned()),
        ];
        test.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(|all| format!("({})", all.join(" AND "))),
                prop::collection::vec(inner.clone(), 1..4).prop_map(|any| format!("({})", any.join(" OR "))),
                inner.prop_map(|one| format!("NOT {one}")),
            ]
        })
    }

    proptest! {
        #[test]
        fn parsing_any_text_does_not_panic(text in "\\PC{0,200}") {
            let _ = Filter::parse(&text);
        }

        #[test]
        fn parsing_any_sequence_of_filter_tokens_does_not_panic(
            parts in prop::collection::vec("(AND|OR|NOT|IN|HAS|\\(|\\)|,|=|!=|<|-|\"a\"|\"|5|1\\.|price|in_stock|brand)", 0..30),
        ) {
            if let Ok(filter) = Filter::parse(&parts.join(" ")) {
                filter.matches(&mug(), NOW);
            }
        }

        #[test]
        fn column_evaluation_agrees_with_item_evaluation(
            text in any_filter(),
            items in prop::collection::vec(any_item(), 1..100),
            among in any::<[u64; 16]>(),
        ) {
            let filter = Filter::parse(&text).unwrap();
            let mut columns = Columns::default();
            let mut labels = CategoryLabels::default();
            items.iter().enumerate().for_each(|(at, item)| columns.add(at, item, NOW, &mut labels));
            let none = Item::titled(ItemId::parse("none").unwrap(), "none");
            let item_of = |index: usize| items.get(index).unwrap_or(&none);
            let mut among: Mask = among;
            among[items.len() / 64] &= (1 << (items.len() % 64)) - 1;
            among[items.len() / 64 + 1..].fill(0);
            let expected: Vec<usize> =
                lodestone_core::bits::ones(&among, 0).filter(|index| filter.matches(&items[*index], NOW)).collect();
            let mask = filter.mask(&columns, &item_of, among);
            prop_assert_eq!(lodestone_core::bits::ones(&mask, 0).collect::<Vec<_>>(), expected, "{}", filter);
        }

        #[test]
        fn a_displayed_filter_parses_to_the_same_filter(text in any_filter()) {
            let filter = Filter::parse(&text).unwrap();
            let written = filter.to_string();
            prop_assert_eq!(&Filter::parse(&written).unwrap(), &filter, "{}", written);
            prop_assert_eq!(Filter::parse(&format!("NOT ({text})")).unwrap().matches(&mug(), NOW), !filter.matches(&mug(), NOW));
        }
    }
}
