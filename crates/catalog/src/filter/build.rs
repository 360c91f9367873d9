//! Builds filters from their parts, with the checks of the filter language.
use super::{Field, Filter, Literal, Node, Operator, Predicate, Text, ValueType, parse::FIELDS, write_text};
use crate::Availability;
use lodestone_core::units::UnixMillis;
use std::fmt;

/// What a distance is compared with, for errors.
pub(super) const DISTANCE: &str = "a distance such as 10 km or 500 m";

/// A value with which a filter compares a field.
#[derive(Debug, Clone, PartialEq)]
pub enum FilterValue {
    /// Of `create_time` a time, and of `availability` one of its names.
    Text(String),
    /// Of a distance in metres.
    Number(f64),
    Flag(bool),
    /// A time such as `2026-01-31` or `2026-01-31T12:00:00Z`, also of an attribute.
    Time(String),
}

impl fmt::Display for FilterValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write_text(f, text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Time(text) => {
                f.write_str("timestamp(")?;
                write_text(f, text)?;
                f.write_str(")")
            }
        }
    }
}

impl Filter {
    /// Returns a filter such as `price <= 5`. An error says what is wrong with the value or the operator.
    pub fn comparison(field: &Field, operator: Operator, value: FilterValue) -> Result<Self, String> {
        let predicate = Predicate::comparison(operator, Literal::of(field, value)?)?;
        Ok(Self(node(field.clone(), predicate)))
    }

    /// Returns a filter such as `brand IN ("Acme", "Zenith")`. An error says what is wrong with the field or a value.
    pub fn in_list(field: &Field, values: Vec<FilterValue>) -> Result<Self, String> {
        field.check_in_list()?;
        if values.is_empty() {
            return Err("is empty; it must have at least one value".to_owned());
        }
        let literals: Result<Vec<Literal>, String> =
            values.into_iter().map(|value| Literal::of(field, value)).collect();
        Ok(Self(node(field.clone(), Predicate::In(literals?))))
    }

    /// Returns a filter such as `title HAS "tea mug"`. An error says what is wrong with the field or the text.
    pub fn has_words(field: &Field, text: String) -> Result<Self, String> {
        field.check_has_words()?;
        Ok(Self(node(field.clone(), Predicate::has_words(field, text)?)))
    }

    /// Returns a filter that matches what all of the filters match; none without filters.
    pub fn all_of(filters: Vec<Self>) -> Option<Self> {
        Self::joined(filters, Node::And)
    }

    /// Returns a filter that matches what at least one of the filters matches; none without filters.
    pub fn any_of(filters: Vec<Self>) -> Option<Self> {
        Self::joined(filters, Node::Or)
    }

    fn joined(filters: Vec<Self>, join: fn(Vec<Node>) -> Node) -> Option<Self> {
        let mut nodes: Vec<Node> = filters.into_iter().map(|Self(node)| node).collect();
        match nodes.len() {
            0 | 1 => nodes.pop().map(Self),
            _ => Some(Self(join(nodes))),
        }
    }
}

impl Field {
    /// Parses the name of a field; an error lists the fields.
    pub(super) fn named(name: &str) -> Result<Self, String> {
        Self::parse(name).ok_or_else(|| Self::unknown(name))
    }

    /// Describes a name that is not one of a field.
    pub fn unknown(name: &str) -> String {
        format!("unknown field {name}; the fields are {FIELDS}")
    }

    pub(super) fn check_in_list(&self) -> Result<(), String> {
        match self.value_type() {
            ValueType::Time | ValueType::Distance => {
                Err(format!("IN is not for times and distances; compare {self} with < and >="))
            }
            ValueType::Text | ValueType::Number | ValueType::Flag | ValueType::Availability | ValueType::Attribute => {
                Ok(())
            }
        }
    }

    pub(super) fn check_has_words(&self) -> Result<(), String> {
        match self.value_type() {
            ValueType::Text | ValueType::Attribute => Ok(()),
            ValueType::Number | ValueType::Flag | ValueType::Time | ValueType::Availability | ValueType::Distance => {
                Err(format!("HAS is for texts, and {self} is not a text"))
            }
        }
    }

    /// Returns true if the field, or an attribute of this name, may have times.
    pub(super) fn has_times(&self) -> bool {
        matches!(self.value_type(), ValueType::Time | ValueType::Attribute)
    }
}

impl Predicate {
    pub(super) fn comparison(operator: Operator, literal: Literal) -> Result<Self, String> {
        let is_ordered = matches!(literal, Literal::Number(_) | Literal::Time(..));
        match is_ordered || matches!(operator, Operator::Equal | Operator::Unequal) {
            true => Ok(Self::Compare(operator, literal)),
            false => Err(format!("{} is for numbers and times", operator.sign())),
        }
    }

    pub(super) fn has_words(field: &Field, text: String) -> Result<Self, String> {
        match Text::new(field, text) {
            text if text.normal.is_empty() => {
                Err(format!("HAS needs a text with a word; to find items without {field}, compare by ="))
            }
            text => Ok(Self::Has(text)),
        }
    }
}

impl Literal {
    /// Returns the literal that a field is compared with.
    pub(super) fn of(field: &Field, value: FilterValue) -> Result<Self, String> {
        let value_type = field.value_type();
        let is_any = value_type == ValueType::Attribute;
        match value {
            FilterValue::Time(text) if field.has_times() => Self::time(text),
            FilterValue::Text(text) if value_type == ValueType::Time => Self::time(text),
            FilterValue::Text(text) if value_type == ValueType::Availability => match Availability::parse(&text) {
                Some(availability) => Ok(Self::Text(Text::new(field, availability.name().to_owned()))),
                None => {
                    let names = Availability::ALL.map(Availability::name).join(", ");
                    Err(format!("{text:?} is no availability; use {names}"))
                }
            },
            FilterValue::Text(text) if is_any || value_type == ValueType::Text => {
                Ok(Self::Text(Text::new(field, text)))
            }
            FilterValue::Number(number) if !number.is_finite() => Err(format!("{number} is not finite")),
            FilterValue::Number(number) if is_any || matches!(value_type, ValueType::Number | ValueType::Distance) => {
                Ok(Self::Number(number))
            }
            FilterValue::Flag(flag) if is_any || value_type == ValueType::Flag => Ok(Self::Flag(flag)),
            value => Err(wrong_type(field, &value)),
        }
    }

    fn time(text: String) -> Result<Self, String> {
        match UnixMillis::parse(&text) {
            Some(at) => Ok(Self::Time(at.0, text)),
            None => Err("is not a time such as \"2026-01-31\" or \"2026-01-31T12:00:00Z\"".to_owned()),
        }
    }
}

/// Returns a condition. Of the names and paths with which categories are compared, the paths become conditions on
/// [`Field::CategoryPath`].
pub(super) fn node(field: Field, predicate: Predicate) -> Node {
    let is_path = |literal: &Literal| matches!(literal, Literal::Text(text) if text.written.contains('>'));
    let of_path = |literal: Literal| match literal {
        Literal::Text(text) => Literal::Text(Text::new(&Field::CategoryPath, text.written)),
        other => other,
    };
    match predicate {
        Predicate::Compare(operator, literal) if field == Field::Category && is_path(&literal) => {
            Node::Predicate(Field::CategoryPath, Predicate::Compare(operator, of_path(literal)))
        }
        Predicate::Has(text) if field == Field::Category && text.written.contains('>') => {
            Node::Predicate(Field::CategoryPath, Predicate::Has(Text::new(&Field::CategoryPath, text.written)))
        }
        Predicate::In(literals) if field == Field::Category && literals.iter().any(is_path) => {
            let (paths, names): (Vec<Literal>, Vec<Literal>) = literals.into_iter().partition(is_path);
            let paths = paths.into_iter().map(of_path).collect();
            let paths = Node::Predicate(Field::CategoryPath, Predicate::In(paths));
            match names.is_empty() {
                true => paths,
                false => Node::Or(vec![Node::Predicate(field, Predicate::In(names)), paths]),
            }
        }
        predicate => Node::Predicate(field, predicate),
    }
}

/// Describes a value, or another token, that the field is not compared with.
pub(super) fn wrong_type(field: &Field, found: &dyn fmt::Display) -> String {
    let expected = match field.value_type() {
        ValueType::Text => "a text in double quotes",
        ValueType::Number => "a number",
        ValueType::Flag => "true or false",
        ValueType::Time => "a time in double quotes",
        ValueType::Availability => "an availability in double quotes",
        ValueType::Distance => DISTANCE,
        ValueType::Attribute => "a text in double quotes, a number, true, false or timestamp(\"2026-01-31T12:00:00Z\")",
    };
    format!("{field} is compared with {expected}, found {found}")
}
