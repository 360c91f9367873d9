//! The conditions of a filter on attributes, by which a caller finds those that no item can satisfy.
use super::{Field, Filter, Literal, Predicate, write_literal, write_text};
use crate::AttributeKind;
use std::fmt;

/// A condition on an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeCondition<'f> {
    pub attribute: &'f str,
    /// The kind of the values that can satisfy the condition.
    pub kind: AttributeKind,
    /// What the condition compares, as filters write it: `5`, `"M"` or `timestamp("2026-01-31")`.
    pub value: String,
}

impl Filter {
    /// Returns the conditions on attributes, in their order. A list has one for each kind of its values, with the first
    /// value of the kind.
    pub fn attribute_conditions(&self) -> Vec<AttributeCondition<'_>> {
        let conditions = self.0.predicates().into_iter().filter_map(|(field, predicate)| {
            let attribute = field.attribute()?;
            let compared = predicate.compared(field).into_iter();
            Some(compared.map(move |(kind, value)| AttributeCondition { attribute, kind, value }))
        });
        conditions.flatten().collect()
    }
}

impl Predicate {
    /// Returns the kinds with which an attribute is compared, each with the first value.
    fn compared(&self, field: &Field) -> Vec<(AttributeKind, String)> {
        let literals = match self {
            Self::Compare(_, literal) => std::slice::from_ref(literal),
            Self::In(literals) => literals,
            Self::Has(text) => {
                return vec![(AttributeKind::Text, fmt::from_fn(|f| write_text(f, &text.written)).to_string())];
            }
        };
        let mut compared: Vec<(AttributeKind, String)> = Vec::new();
        for literal in literals {
            let kind = match (field, literal) {
                (Field::Distance(_), _) => AttributeKind::GeoPoint,
                (_, Literal::Text(_)) => AttributeKind::Text,
                (_, Literal::Number(_)) => AttributeKind::Number,
                (_, Literal::Flag(_)) => AttributeKind::Flag,
                (_, Literal::Time(..)) => AttributeKind::Time,
            };
            if !compared.iter().any(|(known, _)| *known == kind) {
                compared.push((kind, fmt::from_fn(|f| write_literal(f, field, literal)).to_string()));
            }
        }
        compared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_on_attributes_have_the_kind_and_the_value_that_they_compare() {
        use AttributeKind::{Flag, GeoPoint, Number, Text, Time};
        for (filter, expected) in [
            ("price > 5 AND brand = \"a\"", &[][..]),
            ("attributes.a = \"M\" OR NOT attributes.b != 5", &[("a", Text, "\"M\""), ("b", Number, "5")]),
            ("attributes.a", &[("a", Flag, "true")]),
            (
                "attributes.a = false AND (attributes.b HAS \"tea \\\"mug\")",
                &[("a", Flag, "false"), ("b", Text, "\"tea \\\"mug\"")],
            ),
            ("attributes.a IN (1, \"x\", 2, true)", &[("a", Number, "1"), ("a", Text, "\"x\""), ("a", Flag, "true")]),
            ("attributes.a < timestamp(\"2026-01-31\")", &[("a", Time, "timestamp(\"2026-01-31\")")]),
            ("distance(attributes.a, 52.5, 13.4) < 3 km", &[("a", GeoPoint, "3000 m")]),
        ] {
            let filter = Filter::parse(filter).unwrap_or_else(|error| panic!("{filter}: {error}"));
            let conditions = filter.attribute_conditions();
            let found: Vec<_> = conditions.iter().map(|of| (of.attribute, of.kind, of.value.as_str())).collect();
            assert_eq!(found, expected, "{filter}");
        }
    }
}
