//! Converts filters: texts in the filter language, and messages. Both become the same.
use super::shortened;
use crate::server::{
    proto::{self, filter_expression::Kind, filter_value},
    violations::Violations,
};
use lodestone_catalog::{Field, Filter, FilterError, FilterValue, Operator};
use lodestone_pipeline::run::RequestField;
use prost::Message;
use std::fmt::Display;

/// Bytes of a filter that is a message, of which each part that is wrong has a violation. Its text has the limit of texts.
const EXPRESSION_BYTES_MAX: usize = 64 << 10;

/// Which filters of a request are messages, for the names of their fields in errors that the engine finds.
#[derive(Debug, Default)]
pub(crate) struct FilterForms {
    filter_is_message: bool,
    boosts_are_messages: Vec<bool>,
}

impl FilterForms {
    pub(crate) fn of(
        filter_expression: Option<&proto::FilterExpression>,
        options: Option<&proto::RankingOptions>,
    ) -> Self {
        let boosts = options.map_or(&[][..], |options| &options.boosts);
        Self {
            filter_is_message: filter_expression.is_some(),
            boosts_are_messages: boosts.iter().map(|boost| boost.filter_expression.is_some()).collect(),
        }
    }

    /// Returns the path of a field in the request.
    pub(crate) fn path(&self, field: RequestField) -> String {
        let name = |is_message: bool| if is_message { "filter_expression" } else { "filter" };
        match field {
            RequestField::Filter => name(self.filter_is_message).to_owned(),
            RequestField::OrderBy => "options.order_by".to_owned(),
            RequestField::Facet(index) => format!("facet_specs[{index}].field"),
            RequestField::Boost(index) => {
                let is_message = self.boosts_are_messages.get(index).copied().unwrap_or_default();
                format!("options.boosts[{index}].{}", name(is_message))
            }
        }
    }
}

/// Parses a filter that a request has as a text or as a message. None without one, and if there are violations.
pub(crate) fn filter(
    violations: &mut Violations,
    field: impl Display,
    text: &str,
    expression: Option<&proto::FilterExpression>,
) -> Option<Filter> {
    let is_empty = text.trim().is_empty();
    let Some(expression) = expression else {
        let parsed = (!is_empty).then(|| Filter::parse(text))?;
        let invalid = |error: FilterError| match &error.unknown_field {
            Some(name) => violations.add_unknown_field(field, error.to_string(), name),
            None => violations.add(field, error.to_string()),
        };
        return parsed.map_err(invalid).ok();
    };
    let message = format!("{field}_expression");
    if !is_empty {
        violations.add(&message, format!("is set together with {field}; set one of the two"));
    }
    from_message(violations, &message, expression)
}

/// Converts a filter that is a message. Returns none if there are violations.
pub(crate) fn from_message(
    violations: &mut Violations,
    field: &str,
    expression: &proto::FilterExpression,
) -> Option<Filter> {
    let bytes = expression.encoded_len();
    if bytes > EXPRESSION_BYTES_MAX {
        violations.add(field, format!("has {bytes} bytes; the limit is {EXPRESSION_BYTES_MAX}"));
        return None;
    }
    let before = violations.found.len();
    let filter = node(violations, field, expression).filter(|_| violations.found.len() == before)?;
    // The limits are those of the text.
    match Filter::parse(&filter.to_string()) {
        Ok(_) => Some(filter),
        Err(error) => {
            violations.add(field, format!("written in the filter language, {}", error.message));
            None
        }
    }
}

fn node(violations: &mut Violations, path: &str, expression: &proto::FilterExpression) -> Option<Filter> {
    match &expression.kind {
        None => {
            let kinds = "comparison, in_list, has_words, all_of, any_of or negated";
            violations.add(path, format!("has no condition; set {kinds}"));
            None
        }
        Some(Kind::Comparison(comparison)) => {
            let path = format!("{path}.comparison");
            let named = field(violations, &path, &comparison.field);
            let operator = operator(violations, &path, comparison.operator);
            let value = value(violations, &format!("{path}.value"), comparison.value.as_ref());
            let (named, operator, value) = (named?, operator?, value?);
            violations.keep(path, Filter::comparison(&named, operator, value))
        }
        Some(Kind::InList(list)) => {
            let path = format!("{path}.in_list");
            let named = field(violations, &path, &list.field);
            let values = list.values.iter().enumerate();
            let values: Vec<Option<FilterValue>> =
                values.map(|(index, sent)| value(violations, &format!("{path}.values[{index}]"), Some(sent))).collect();
            let (named, values) = (named?, values.into_iter().collect::<Option<_>>()?);
            violations.keep(path, Filter::in_list(&named, values))
        }
        Some(Kind::HasWords(words)) => {
            let path = format!("{path}.has_words");
            let named = field(violations, &path, &words.field)?;
            violations.keep(path, Filter::has_words(&named, words.text.clone()))
        }
        Some(Kind::AllOf(all)) => nodes(violations, &format!("{path}.all_of"), all, Filter::all_of),
        Some(Kind::AnyOf(any)) => nodes(violations, &format!("{path}.any_of"), any, Filter::any_of),
        Some(Kind::Negated(negated)) => node(violations, &format!("{path}.negated"), negated).map(Filter::negated),
    }
}

fn nodes(
    violations: &mut Violations,
    path: &str,
    sent: &proto::FilterExpressions,
    join: fn(Vec<Filter>) -> Option<Filter>,
) -> Option<Filter> {
    if sent.expressions.is_empty() {
        violations.add(format_args!("{path}.expressions"), "is empty; it must have at least 1 entry");
    }
    let operands = sent.expressions.iter().enumerate();
    let operands: Vec<Option<Filter>> =
        operands.map(|(index, operand)| node(violations, &format!("{path}.expressions[{index}]"), operand)).collect();
    join(operands.into_iter().collect::<Option<_>>()?)
}

fn field(violations: &mut Violations, path: &str, name: &str) -> Option<Field> {
    let parsed = Field::parse(name);
    if parsed.is_none() {
        violations.add_unknown_field(format_args!("{path}.field"), Field::unknown(&shortened(name)), name);
    }
    parsed
}

fn operator(violations: &mut Violations, path: &str, number: i32) -> Option<Operator> {
    use proto::FilterOperator as Wire;
    let operator = match Wire::try_from(number) {
        Ok(Wire::Equal) => Ok(Operator::Equal),
        Ok(Wire::NotEqual) => Ok(Operator::Unequal),
        Ok(Wire::Less) => Ok(Operator::Less),
        Ok(Wire::LessOrEqual) => Ok(Operator::LessOrEqual),
        Ok(Wire::Greater) => Ok(Operator::Greater),
        Ok(Wire::GreaterOrEqual) => Ok(Operator::GreaterOrEqual),
        Ok(Wire::Unspecified) => Err("is not set; choose a FilterOperator such as FILTER_OPERATOR_EQUAL".to_owned()),
        Err(_) => Err(format!("{number} is not a FilterOperator")),
    };
    violations.keep(format_args!("{path}.operator"), operator)
}

fn value(violations: &mut Violations, path: &str, sent: Option<&proto::FilterValue>) -> Option<FilterValue> {
    match sent.and_then(|value| value.kind.as_ref()) {
        Some(filter_value::Kind::Text(text)) => Some(FilterValue::Text(text.clone())),
        Some(filter_value::Kind::Number(number)) => Some(FilterValue::Number(*number)),
        Some(filter_value::Kind::Flag(flag)) => Some(FilterValue::Flag(*flag)),
        Some(filter_value::Kind::Time(time)) => Some(FilterValue::Time(time.clone())),
        None => {
            violations.add(path, "is not set; set text, number, flag or time");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::{FilterComparison, FilterExpression, FilterExpressions, FilterHasWords, FilterInList, FilterOperator};

    fn expression(kind: Kind) -> FilterExpression {
        FilterExpression { kind: Some(kind) }
    }

    fn text_value(text: &str) -> proto::FilterValue {
        proto::FilterValue { kind: Some(filter_value::Kind::Text(text.to_owned())) }
    }

    fn number_value(number: f64) -> proto::FilterValue {
        proto::FilterValue { kind: Some(filter_value::Kind::Number(number)) }
    }

    fn comparison(field: &str, operator: FilterOperator, value: proto::FilterValue) -> FilterExpression {
        let value = Some(value);
        expression(Kind::Comparison(FilterComparison { field: field.to_owned(), operator: operator.into(), value }))
    }

    fn parsed(expression: &FilterExpression) -> Result<Filter, Vec<(String, String)>> {
        let mut violations = Violations::default();
        let filter = filter(&mut violations, "filter", "", Some(expression));
        assert_eq!(filter.is_some(), violations.is_empty());
        filter.ok_or_else(|| violations.found.into_iter().map(|of| (of.field, of.description)).collect())
    }

    fn quoted(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    /// A message, and the same filter written in the filter language.
    fn any_filter() -> impl Strategy<Value = (FilterExpression, String)> {
        // Of categories, `>` makes a path.
        let text = "([abA马>\"\\\\ ]{0,3}|[a-z]{1,6})";
        let texts = "(brand|title|category|category_path|tags|item_id|group_id|currency|attributes\\.a_1)";
        let numbers = "(price|original_price|discount|rating|rating_count|stock_quantity|attributes\\.b)";
        let signs = [
            (FilterOperator::Equal, "="),
            (FilterOperator::NotEqual, "!="),
            (FilterOperator::Less, "<"),
            (FilterOperator::LessOrEqual, "<="),
            (FilterOperator::Greater, ">"),
            (FilterOperator::GreaterOrEqual, ">="),
        ];
        let number = prop_oneof![-1e6f64..1e6, (0i32..4).prop_map(f64::from)];
        let leaf = prop_oneof![
            (texts, 0usize..2, text).prop_map(move |(field, at, text)| {
                let (operator, sign) = signs[at];
                (comparison(&field, operator, text_value(&text)), format!("{field} {sign} {}", quoted(&text)))
            }),
            (numbers, 0usize..6, number.clone()).prop_map(move |(field, at, number)| {
                let (operator, sign) = signs[at];
                (comparison(&field, operator, number_value(number)), format!("{field} {sign} {number}"))
            }),
            (2usize..6).prop_map(move |at| {
                let (operator, sign) = signs[at];
                let time = "2026-05-01T12:00:00+02:00";
                (comparison("create_time", operator, text_value(time)), format!("create_time {sign} \"{time}\""))
            }),
            (2usize..6, 0.0f64..1e6).prop_map(move |(at, metres)| {
                let (operator, sign) = signs[at];
                let field = "distance(attributes.branch, 52.5, 13.4)";
                (comparison(field, operator, number_value(metres)), format!("{field} {sign} {metres} m"))
            }),
            (0usize..6).prop_map(move |at| {
                let (operator, sign) = signs[at];
                let time = "2026-05-01";
                let value = proto::FilterValue { kind: Some(filter_value::Kind::Time(time.to_owned())) };
                (
                    comparison("attributes.since", operator, value),
                    format!("attributes.since {sign} timestamp(\"{time}\")"),
                )
            }),
            (0usize..2).prop_map(move |at| {
                let (operator, sign) = signs[at];
                let written = format!("availability {sign} \"preorder\"");
                (comparison("availability", operator, text_value("preorder")), written)
            }),
            (any::<bool>(), any::<bool>()).prop_map(|(flag, is_attribute)| {
                let field = if is_attribute { "attributes.organic" } else { "in_stock" };
                let value = proto::FilterValue { kind: Some(filter_value::Kind::Flag(flag)) };
                let text = if flag { field.to_owned() } else { format!("{field} = false") };
                (comparison(field, FilterOperator::Equal, value), text)
            }),
            (texts, prop::collection::vec(text, 1..4)).prop_map(|(field, list)| {
                let values = list.iter().map(|text| text_value(text)).collect();
                let written: Vec<String> = list.iter().map(|text| quoted(text)).collect();
                let text = format!("{field} IN ({})", written.join(", "));
                (expression(Kind::InList(FilterInList { field, values })), text)
            }),
            (numbers, prop::collection::vec(number, 1..4)).prop_map(|(field, list)| {
                let values = list.iter().map(|number| number_value(*number)).collect();
                let written: Vec<String> = list.iter().map(f64::to_string).collect();
                let text = format!("{field} IN ({})", written.join(","));
                (expression(Kind::InList(FilterInList { field, values })), text)
            }),
            (texts, "[ab马][ab马 ]{0,3}").prop_map(|(field, text)| {
                let written = format!("{field} HAS {}", quoted(&text));
                (expression(Kind::HasWords(FilterHasWords { field, text })), written)
            }),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            fn joined(operands: &[(FilterExpression, String)], word: &str) -> (FilterExpressions, String) {
                let texts: Vec<String> = operands.iter().map(|(_, text)| format!("({text})")).collect();
                let expressions = operands.iter().map(|(message, _)| message.clone()).collect();
                (FilterExpressions { expressions }, texts.join(word))
            }
            prop_oneof![
                prop::collection::vec(inner.clone(), 1..4).prop_map(|all| {
                    let (expressions, text) = joined(&all, " AND ");
                    (expression(Kind::AllOf(expressions)), text)
                }),
                prop::collection::vec(inner.clone(), 1..4).prop_map(|any| {
                    let (expressions, text) = joined(&any, " OR ");
                    (expression(Kind::AnyOf(expressions)), text)
                }),
                inner.prop_map(|(message, text)| {
                    (expression(Kind::Negated(Box::new(message))), format!("NOT ({text})"))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_message_is_the_same_filter_as_its_text((message, text) in any_filter()) {
            let of_text = Filter::parse(&text).unwrap();
            prop_assert_eq!(parsed(&message), Ok(of_text), "{}", text);
        }
    }

    #[test]
    fn a_text_and_a_message_together_are_refused() {
        let mut violations = Violations::default();
        let message = comparison("price", FilterOperator::Less, number_value(5.0));
        filter(&mut violations, "filter", "in_stock", Some(&message));
        assert_eq!(violations.found[0].field, "filter_expression");
        assert!(violations.found[0].description.contains("together with filter"));
    }

    #[test]
    fn all_problems_of_a_message_are_named_with_their_paths() {
        let all = |expressions| expression(Kind::AllOf(FilterExpressions { expressions }));
        let problems = parsed(&all(vec![
            comparison("colour", FilterOperator::Unspecified, proto::FilterValue::default()),
            comparison("price", FilterOperator::Less, text_value("5")),
            comparison("price", FilterOperator::Less, number_value(f64::NAN)),
            comparison("title", FilterOperator::Less, text_value("a")),
            expression(Kind::InList(FilterInList { field: "brand".into(), values: vec![] })),
            expression(Kind::HasWords(FilterHasWords { field: "price".into(), text: "a".into() })),
            expression(Kind::HasWords(FilterHasWords { field: "title".into(), text: " ".into() })),
            all(vec![]),
            FilterExpression::default(),
        ]))
        .unwrap_err();
        let paths: Vec<&str> = problems
            .iter()
            .map(|(path, _)| path.strip_prefix("filter_expression.all_of.expressions").unwrap())
            .collect();
        assert_eq!(
            paths,
            [
                "[0].comparison.field",
                "[0].comparison.operator",
                "[0].comparison.value",
                "[1].comparison",
                "[2].comparison",
                "[3].comparison",
                "[4].in_list",
                "[5].has_words",
                "[6].has_words",
                "[7].all_of.expressions",
                "[8]"
            ]
        );
        assert!(problems[0].1.contains("the fields are item_id"), "{problems:?}");
        assert!(problems[3].1.contains("price is compared with a number, found \"5\""), "{problems:?}");
    }

    #[test]
    fn a_message_has_the_limits_of_its_text() {
        let nested = |depth: usize| {
            let leaf = comparison("price", FilterOperator::Less, number_value(5.0));
            (0..depth).fold(leaf, |inner, _| expression(Kind::Negated(Box::new(inner))))
        };
        assert!(parsed(&nested(16)).is_ok());
        assert!(parsed(&nested(17)).unwrap_err()[0].1.contains("nested deeper than 16"));
        let long = comparison("title", FilterOperator::Equal, text_value(&"x".repeat(5000)));
        assert!(parsed(&long).unwrap_err()[0].1.contains("5000"));
    }
}
