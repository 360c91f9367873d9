//! Facets: counts of items by the values of a field.
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::{AttributeValue, Catalog, Item, attribute_name};
use lodestone_core::{ids::Row, text::normalize};
use std::fmt;

/// Maximum number of facets of a request.
pub const FACETS_MAX: usize = 20;
/// Default number of values of a facet.
pub const FACET_VALUES_DEFAULT: usize = 20;
/// Maximum number of values of a facet.
pub const FACET_VALUES_MAX: usize = 200;
/// Maximum number of bounds of a facet.
pub const FACET_BOUNDS_MAX: usize = 50;
/// Number of ranges that are computed for a request without bounds.
const RANGE_COUNT: usize = 5;

/// A requested facet.
#[derive(Debug, Clone, PartialEq)]
pub struct FacetSpec {
    pub field: FacetField,
    /// 1 to [`FACET_VALUES_MAX`].
    pub value_count: usize,
    /// Ascending and finite. Empty: computed from the numbers.
    pub bounds: Vec<f64>,
}

/// A countable field of an item.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FacetField {
    Category,
    Brand,
    Tags,
    Price,
    InStock,
    Attribute(String),
}

impl FacetField {
    /// Parses a field name of the filter language; none for a field that cannot be counted.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "category" => Self::Category,
            "brand" => Self::Brand,
            "tags" => Self::Tags,
            "price" => Self::Price,
            "in_stock" => Self::InStock,
            _ => Self::Attribute(attribute_name(name)?.to_owned()),
        })
    }

    /// Returns whether values may be numbers, which are counted by ranges.
    pub fn has_ranges(&self) -> bool {
        matches!(self, Self::Price | Self::Attribute(_))
    }
}

impl fmt::Display for FacetField {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Category => f.write_str("category"),
            Self::Brand => f.write_str("brand"),
            Self::Tags => f.write_str("tags"),
            Self::Price => f.write_str("price"),
            Self::InStock => f.write_str("in_stock"),
            Self::Attribute(name) => write!(f, "attributes.{name}"),
        }
    }
}

/// A counted facet.
#[derive(Debug, Clone, PartialEq)]
pub struct Facet {
    pub field: FacetField,
    /// Texts by descending frequency, then ranges in ascending order.
    pub values: Vec<FacetValue>,
}

/// A value with its number of items.
#[derive(Debug, Clone, PartialEq)]
pub struct FacetValue {
    pub key: FacetKey,
    pub item_count: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub enum FacetKey {
    Text(String),
    /// From the first number, inclusive, to the second, exclusive. None: unbounded.
    Range(Option<f64>, Option<f64>),
}

/// The counts of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facets {
    pub facets: Vec<Facet>,
    /// Number of counted items.
    pub item_count: u64,
}

/// Counts distinct rows. O(rows × facets).
pub fn count(catalog: &Catalog, rows: &[Row], specs: &[FacetSpec]) -> Facets {
    if specs.is_empty() {
        return Facets::default();
    }
    let facets =
        specs.iter().map(|spec| Facet { field: spec.field.clone(), values: values(catalog, rows, spec) }).collect();
    Facets { facets, item_count: rows.len() as u64 }
}

fn values(catalog: &Catalog, rows: &[Row], spec: &FacetSpec) -> Vec<FacetValue> {
    let mut texts: AHashMap<&str, u64> = AHashMap::new();
    let mut numbers: Vec<f64> = Vec::new();
    for &row in rows {
        collect(&catalog.get(row).item, &spec.field, &mut texts, &mut numbers);
    }
    let mut values = text_values(texts);
    values.truncate(spec.value_count);
    if !numbers.is_empty() {
        numbers.sort_unstable_by(f64::total_cmp);
        let bounds = if spec.bounds.is_empty() { bounds_of(&numbers) } else { spec.bounds.clone() };
        values.extend(range_values(&numbers, &bounds));
    }
    values
}

fn collect<'a>(item: &'a Item, field: &FacetField, texts: &mut AHashMap<&'a str, u64>, numbers: &mut Vec<f64>) {
    let mut text = |text: &'a str| {
        if !text.is_empty() {
            *texts.entry(text).or_default() += 1;
        }
    };
    let flag = |flag| if flag { "true" } else { "false" };
    match field {
        FacetField::Category => distinct(&item.categories).for_each(text),
        FacetField::Tags => distinct(&item.tags).for_each(text),
        FacetField::Brand => text(&item.brand),
        FacetField::InStock => text(flag(item.is_in_stock())),
        FacetField::Price => numbers.extend(item.price.map(|price| price.units())),
        FacetField::Attribute(name) => match item.attributes.get(name) {
            Some(AttributeValue::Text(value)) => text(value),
            Some(AttributeValue::Flag(value)) => text(flag(*value)),
            Some(AttributeValue::Number(number)) => numbers.push(*number),
            None => {}
        },
    }
}

/// Returns labels without those of the same normal form as one before.
fn distinct(labels: &[String]) -> impl Iterator<Item = &str> {
    let mut seen: AHashSet<String> = AHashSet::new();
    labels.iter().map(String::as_str).filter(move |label| labels.len() == 1 || seen.insert(normalize(label)))
}

/// Merges spellings with the same normal form, because filters compare normal forms too.
fn text_values(texts: AHashMap<&str, u64>) -> Vec<FacetValue> {
    let mut folded: AHashMap<String, (u64, &str, u64)> = AHashMap::with_capacity(texts.len());
    for (text, count) in texts {
        let (sum, spelling, most) = folded.entry(normalize(text)).or_insert((0, text, 0));
        *sum += count;
        if count > *most || count == *most && text < *spelling {
            (*spelling, *most) = (text, count);
        }
    }
    let mut values: Vec<(&str, u64)> = folded.into_values().map(|(sum, spelling, _)| (spelling, sum)).collect();
    values.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let value = |(text, item_count): (&str, u64)| FacetValue { key: FacetKey::Text(text.to_owned()), item_count };
    values.into_iter().map(value).collect()
}

/// Returns bounds that split sorted numbers into parts of about equal size, rounded to two digits for display.
fn bounds_of(numbers: &[f64]) -> Vec<f64> {
    let mut bounds: Vec<f64> =
        (1..RANGE_COUNT).map(|part| rounded(numbers[numbers.len() * part / RANGE_COUNT])).collect();
    bounds.retain(|bound| *bound > numbers[0] && *bound <= numbers[numbers.len() - 1]);
    bounds.dedup();
    bounds
}

fn rounded(number: f64) -> f64 {
    let unit = 10f64.powf(number.abs().log10().floor() - 1.0);
    let rounded = (number / unit).round() * unit;
    // The unit of zero and of the smallest numbers is not a number.
    let rounded = if rounded.is_finite() { rounded } else { number };
    // Removes binary rounding errors such as 0.30000000000000004.
    format!("{rounded:.6}").parse().unwrap_or(rounded)
}

/// Counts the sorted numbers in the ranges between bounds.
fn range_values(numbers: &[f64], bounds: &[f64]) -> Vec<FacetValue> {
    let ends = bounds.iter().copied().map(Some).chain([None]);
    let mut start = (None, 0);
    ends.map(|end| {
        let below = end.map_or(numbers.len(), |end| numbers.partition_point(|number| *number < end));
        let value = FacetValue { key: FacetKey::Range(start.0, end), item_count: (below - start.1) as u64 };
        start = (end, below);
        value
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(values: &[FacetValue]) -> Vec<(String, u64)> {
        let name = |key: &FacetKey| match key {
            FacetKey::Text(text) => text.clone(),
            FacetKey::Range(from, to) => format!("{from:?}..{to:?}"),
        };
        values.iter().map(|value| (name(&value.key), value.item_count)).collect()
    }

    #[test]
    fn spellings_with_one_normal_form_are_one_value() {
        let counts = AHashMap::from([("Acme", 2), ("ACME", 2), ("Acmé™", 1), ("Zeta", 5), ("Beta", 5)]);
        let found: Vec<(String, u64)> = text(&text_values(counts));
        let expected = [("ACME", 5), ("Beta", 5), ("Zeta", 5)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!(found, expected);
        let labels = ["Bath & Body", "bath and body", "Home"].map(str::to_owned);
        assert_eq!(distinct(&labels).collect::<Vec<_>>(), ["Bath & Body", "Home"]);
    }

    #[test]
    fn a_bound_belongs_to_the_range_above_it() {
        let found = range_values(&[1.0, 10.0, 10.0, 25.0], &[10.0, 20.0]);
        assert_eq!(found.iter().map(|value| value.item_count).collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(found[1].key, FacetKey::Range(Some(10.0), Some(20.0)));
    }

    #[test]
    fn computed_bounds_are_round() {
        let numbers: Vec<f64> = (0..100).map(|n| f64::from(n) * 1.2345).collect();
        assert_eq!(bounds_of(&numbers), [25.0, 49.0, 74.0, 99.0]);
        assert!(bounds_of(&[7.0; 30]).is_empty());
    }

    proptest! {
        #[test]
        fn every_number_is_in_one_range(mut numbers in prop::collection::vec(-1e9f64..1e9, 1..60)) {
            numbers.sort_by(f64::total_cmp);
            let bounds = bounds_of(&numbers);
            prop_assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
            let found = range_values(&numbers, &bounds);
            prop_assert_eq!(found.iter().map(|value| value.item_count).sum::<u64>(), numbers.len() as u64);
        }
    }
}
