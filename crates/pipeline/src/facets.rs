//! Facets: counts of items by the values of a field.
use crate::products;
use lodestone_catalog::{Catalog, Field, Group, SeenGroups, has_word_prefix};
use lodestone_core::bits;

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
/// Number of items by which facets are chosen.
const CHOICE_SAMPLE: usize = 4096;
/// Number of attributes among which facets are chosen: those that most items have. None of the others covers more items,
/// so that hardly one would be chosen.
const CHOICE_ATTRIBUTES: usize = 64;
/// Factor of the score of an attribute with numbers. Their ranges, which are computed so that each has as many items, split
/// items best of all, but say less to a shopper than words: `Silver` is a choice, and `0.35 to 0.8` hardly one.
const NUMBER_SHARE: f64 = 0.5;
/// Maximum number of numbers from which bounds are computed.
const BOUNDS_SAMPLE: usize = 8192;

/// A requested facet.
#[derive(Debug, Clone, PartialEq)]
pub struct FacetSpec {
    pub field: Field,
    /// 1 to [`FACET_VALUES_MAX`].
    pub value_count: usize,
    /// Ascending and finite. Empty: computed from the numbers.
    pub bounds: Vec<f64>,
    /// The filter's conditions on the field do not apply to its counts.
    pub multi_select: bool,
    /// In normal form: only texts in which a word begins with it. Empty: all.
    pub value_query: String,
    /// Of [`Field::CategoryPath`]: the path in normal form whose next level is counted. Empty: the first level.
    pub parent: String,
}

impl FacetSpec {
    /// Returns a facet with the defaults of a request.
    pub fn of(field: Field) -> Self {
        Self {
            field,
            value_count: FACET_VALUES_DEFAULT,
            bounds: Vec::new(),
            multi_select: false,
            value_query: String::new(),
            parent: String::new(),
        }
    }
}

/// Parses a field name of the filter language; none for a field that cannot be counted.
pub fn facet_field(name: &str) -> Option<Field> {
    let is_counted = |field: &Field| {
        matches!(
            field,
            Field::Category
                | Field::CategoryPath
                | Field::Brand
                | Field::Tags
                | Field::Price
                | Field::Discount
                | Field::Rating
                | Field::StockQuantity
                | Field::InStock
                | Field::Availability
                | Field::Attribute(_)
        )
    };
    Field::parse(name).filter(is_counted)
}

/// Returns whether values of a facet may be numbers, which are counted by ranges.
pub fn has_ranges(field: &Field) -> bool {
    is_number(field) || matches!(field, Field::Attribute(_))
}

/// Returns whether all values of a facet are numbers.
fn is_number(field: &Field) -> bool {
    matches!(field, Field::Price | Field::Discount | Field::Rating | Field::StockQuantity)
}

/// Returns whether values of a facet may be texts that differ between shops.
pub fn has_texts(field: &Field) -> bool {
    !is_number(field) && !matches!(field, Field::InStock | Field::Availability)
}

/// A counted facet.
#[derive(Debug, Clone, PartialEq)]
pub struct Facet {
    pub field: Field,
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

impl Facets {
    /// The memory of the counts in bytes, approximately.
    pub fn bytes(&self) -> usize {
        let text = |value: &FacetValue| match &value.key {
            FacetKey::Text(text) => text.len(),
            FacetKey::Range(..) => 0,
        };
        let of_value = |value: &FacetValue| size_of::<FacetValue>() + text(value);
        let of_facet = |facet: &Facet| size_of::<Facet>() + facet.values.iter().map(of_value).sum::<usize>();
        size_of::<Self>() + self.facets.iter().map(of_facet).sum::<usize>()
    }
}

/// Counts the values of a facet over the rows in a bit set. `one_per_group`: variants of one product count once for
/// each value.
pub fn count(catalog: &Catalog, spec: &FacetSpec, among: &[u64], one_per_group: bool) -> Facet {
    let counts = catalog.count_values(&spec.field, among, one_per_group);
    let mut texts: Vec<(&str, u64)> = counts.texts().collect();
    for (flag, count) in ["false", "true"].into_iter().zip(counts.flags).filter(|(_, count)| *count > 0) {
        match texts.iter_mut().find(|(text, _)| *text == flag) {
            Some((_, known)) => *known += count,
            None => texts.push((flag, count)),
        }
    }
    if spec.field == Field::CategoryPath {
        texts.retain(|(path, _)| is_child(path, &spec.parent));
    }
    if !spec.value_query.is_empty() {
        texts.retain(|(text, _)| has_word_prefix(text, &spec.value_query));
    }
    let most_frequent_first = |a: &(&str, u64), b: &(&str, u64)| b.1.cmp(&a.1).then(a.0.cmp(b.0));
    if texts.len() > spec.value_count {
        texts.select_nth_unstable_by(spec.value_count, most_frequent_first);
        texts.truncate(spec.value_count);
    }
    texts.sort_unstable_by(most_frequent_first);
    let text = |(normal, item_count)| {
        let key = FacetKey::Text(catalog.spelling(&spec.field, normal, among));
        FacetValue { key, item_count }
    };
    let mut values: Vec<FacetValue> = texts.into_iter().map(text).collect();
    let has_numbers = !(counts.numbers.is_empty() && counts.group_numbers.is_empty());
    if has_numbers && spec.value_query.is_empty() {
        let bounds = match spec.bounds.is_empty() {
            true => {
                let numbers = || counts.numbers.iter().chain(counts.group_numbers.iter().map(|(number, _)| number));
                between_numbers(bounds_of(numbers()), numbers)
            }
            false => spec.bounds.clone(),
        };
        // A single range without ends would have nothing to select.
        if !bounds.is_empty() {
            values.extend(range_values(&counts.numbers, &counts.group_numbers, &bounds));
        }
    }
    Facet { field: spec.field.clone(), values }
}

/// Returns facets of the fields that split the rows in a bit set best, the best one first, at most `count`, without
/// those of `known` fields and of attributes that are `refused`. Of the paths of categories it counts the level below
/// `parent`, which may be empty.
pub fn choose(
    catalog: &Catalog,
    among: &[u64],
    known: &[FacetSpec],
    refused: impl Fn(&str) -> bool,
    count: usize,
    parent: &str,
    one_per_group: bool,
) -> Vec<FacetSpec> {
    let distance = bits::count(among, among.len() * 64).div_ceil(CHOICE_SAMPLE).max(1);
    let sample = bits::of(bits::ones(among, 0).step_by(distance), among.len() * 64);
    let item_count = products::count(catalog, &sample, one_per_group);
    let names = catalog.frequent_attributes(&sample, CHOICE_ATTRIBUTES, |name| !refused(name));
    let attributes = names.into_iter().map(|name| Field::Attribute(name.to_owned()));
    let fields = [Field::CategoryPath, Field::Brand, Field::Price].into_iter().chain(attributes);
    // Prices in several currencies are no ranges.
    let has_one_currency = catalog.price_currencies(&sample).len() < 2;
    let unknown = fields
        .filter(|field| has_one_currency || !field.is_price())
        .filter(|field| !known.iter().any(|spec| spec.field == *field));
    let mut scored: Vec<(f64, FacetSpec)> = unknown
        .map(|field| {
            let mut spec = FacetSpec::of(field);
            if spec.field == Field::CategoryPath {
                parent.clone_into(&mut spec.parent);
            }
            let facet = self::count(catalog, &spec, &sample, one_per_group);
            let has_ranges = facet.values.iter().any(|value| matches!(value.key, FacetKey::Range(..)));
            let share = if has_ranges && spec.field != Field::Price { NUMBER_SHARE } else { 1.0 };
            (share * split(&facet, item_count as u64), spec)
        })
        .filter(|(score, _)| *score > 0.0)
        .collect();
    // Equal scores stay in the order of the fields.
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(count).map(|(_, spec)| spec).collect()
}

/// Returns how well the values of a facet split items: the share of the items that they cover, times the probability
/// that two of these have different values (Gini impurity), so that neither a value of all items nor values of one item
/// each score.
fn split(facet: &Facet, item_count: u64) -> f64 {
    let counts = facet.values.iter().map(|value| value.item_count).filter(|count| *count > 1);
    let (covered, squares) =
        counts.fold((0.0, 0.0), |(sum, squares), count| (sum + count as f64, squares + (count as f64).powi(2)));
    match covered > 0.0 {
        true => (covered / item_count.max(1) as f64).min(1.0) * (1.0 - squares / (covered * covered)),
        false => 0.0,
    }
}

/// Returns true if a path is one level below its parent, which may be empty; both in normal form.
fn is_child(path: &str, parent: &str) -> bool {
    let below = match parent {
        "" => Some(path),
        parent => path.strip_prefix(parent).and_then(|rest| rest.strip_prefix(" > ")),
    };
    below.is_some_and(|level| !level.contains(" > "))
}

/// Returns bounds that split numbers into parts of about equal size, rounded to two digits for display. There is at
/// least one number. Of many numbers, some thousands at equal distances decide.
fn bounds_of<'n>(numbers: impl Iterator<Item = &'n f64> + Clone) -> Vec<f64> {
    let (mut least, mut most, mut count) = (f64::INFINITY, f64::NEG_INFINITY, 0usize);
    for number in numbers.clone() {
        (least, most, count) = (least.min(*number), most.max(*number), count + 1);
    }
    let mut sample: Vec<f64> = numbers.copied().step_by(count.div_ceil(BOUNDS_SAMPLE)).collect();
    let mut quantile = |part: usize| {
        let index = sample.len() * part / RANGE_COUNT;
        *sample.select_nth_unstable_by(index, f64::total_cmp).1
    };
    let mut bounds: Vec<f64> = (1..RANGE_COUNT).map(|part| rounded(quantile(part))).collect();
    bounds.retain(|bound| *bound > least && *bound <= most);
    bounds.dedup();
    bounds
}

/// Removes bounds below which the range is empty: rounded ones may enclose no number.
fn between_numbers<'n, N: Iterator<Item = &'n f64>>(mut bounds: Vec<f64>, numbers: impl Fn() -> N) -> Vec<f64> {
    let mut least = f64::NEG_INFINITY;
    bounds.retain(|bound| {
        let has_number = numbers().any(|number| (least..*bound).contains(number));
        if has_number {
            least = *bound;
        }
        has_number
    });
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

/// Counts the numbers in the ranges between bounds; those of a group once in each range.
fn range_values(numbers: &[f64], of_groups: &[(f64, Group)], bounds: &[f64]) -> Vec<FacetValue> {
    let mut counts = vec![0; bounds.len() + 1];
    let range = |number: f64| bounds.partition_point(|bound| *bound <= number);
    numbers.iter().for_each(|number| counts[range(*number)] += 1);
    let mut seen: Vec<SeenGroups> = bounds.iter().map(|_| SeenGroups::default()).collect();
    seen.push(SeenGroups::default());
    for (number, group) in of_groups {
        counts[range(*number)] += u64::from(seen[range(*number)].add(*group));
    }
    let bound = |at: usize| bounds.get(at).copied();
    let value = |(at, item_count): (usize, u64)| FacetValue {
        key: FacetKey::Range(at.checked_sub(1).and_then(bound), bound(at)),
        item_count,
    };
    counts.into_iter().enumerate().map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_catalog::{AttributeValue, Item, ItemKeys, ItemVectors};
    use lodestone_core::ids::ItemId;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, sync::Arc};

    fn catalog(items: impl IntoIterator<Item = Item>) -> Catalog {
        let (keys, mut catalog) = (ItemKeys::default(), Catalog::default());
        for (n, item) in items.into_iter().enumerate() {
            let item = Item { id: ItemId::parse(&format!("i{n}")).unwrap(), ..item };
            catalog.upsert(&keys, Arc::new(item), ItemVectors::new(&[], &[]));
        }
        catalog
    }

    fn item() -> Item {
        Item::titled(ItemId::parse("i").unwrap(), "title")
    }

    fn spec(field: &str) -> FacetSpec {
        FacetSpec::of(facet_field(field).unwrap())
    }

    fn counted(catalog: &Catalog, spec: &FacetSpec) -> Vec<(String, u64)> {
        let name = |key: &FacetKey| match key {
            FacetKey::Text(text) => text.clone(),
            FacetKey::Range(from, to) => format!("{from:?}..{to:?}"),
        };
        count(catalog, spec, catalog.alive(), false)
            .values
            .iter()
            .map(|value| (name(&value.key), value.item_count))
            .collect()
    }

    fn expected(values: &[(&str, u64)]) -> Vec<(String, u64)> {
        values.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn spellings_with_one_normal_form_are_one_value() {
        let brands = ["ACME", "Acmé™", "Acme", "Acme", "Zeta", "Zeta", "Beta", "Beta", "", " "];
        let catalog = catalog(brands.map(|brand| Item { brand: brand.to_owned(), ..item() }));
        assert_eq!(counted(&catalog, &spec("brand")), expected(&[("Acme", 4), ("Beta", 2), ("Zeta", 2)]));
        let two = FacetSpec { value_count: 2, ..spec("brand") };
        assert_eq!(counted(&catalog, &two), expected(&[("Acme", 4), ("Beta", 2)]));
    }

    #[test]
    fn numbers_are_counted_in_ranges_unless_they_are_equal() {
        let rated = |rating: f64| Item { rating: Some(rating), ..item() };
        let catalog = catalog([rated(4.5), rated(4.0), rated(2.0), item()]);
        let from_four = FacetSpec { bounds: vec![4.0], ..spec("rating") };
        assert_eq!(counted(&catalog, &from_four), expected(&[("None..Some(4.0)", 1), ("Some(4.0)..None", 2)]));
        let equal = self::catalog([rated(4.0), rated(4.0)]);
        assert!(counted(&equal, &spec("rating")).is_empty());
    }

    #[test]
    fn an_item_counts_once_for_each_of_its_labels() {
        let labelled =
            |labels: &[&str]| Item { categories: labels.iter().map(|l| (*l).to_owned()).collect(), ..item() };
        let catalog = catalog([labelled(&["Bath & Body", "bath and body > Home"]), labelled(&["Home"])]);
        assert_eq!(counted(&catalog, &spec("category")), expected(&[("Home", 2), ("Bath & Body", 1)]));
    }

    #[test]
    fn an_attribute_may_have_texts_flags_and_numbers() {
        let values = [
            AttributeValue::Flag(true),
            AttributeValue::Text("True".to_owned()),
            AttributeValue::Flag(false),
            AttributeValue::Number(3.0),
            AttributeValue::Number(30.0),
        ];
        let with = |value| Item { attributes: BTreeMap::from([("a".to_owned(), value)]), ..item() };
        let catalog = catalog(values.map(with));
        let spec = FacetSpec { bounds: vec![10.0], ..spec("attributes.a") };
        let ranges = [("None..Some(10.0)", 1), ("Some(10.0)..None", 1)];
        assert_eq!(counted(&catalog, &spec), expected(&[&[("True", 2), ("false", 1)], &ranges[..]].concat()));
    }

    #[test]
    fn a_value_query_finds_values_by_the_begin_of_a_word() {
        let brands = ["Blue Mountain", "Mountain & Sea", "Sea Blue", "Seablue", "蓝山咖啡"];
        let catalog = catalog(brands.map(|brand| Item { brand: brand.to_owned(), ..item() }));
        let found = |query: &str| {
            let spec = FacetSpec { value_query: lodestone_core::text::normalize(query), ..spec("brand") };
            counted(&catalog, &spec).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(found("BLU"), ["Blue Mountain", "Sea Blue"]);
        assert_eq!(found("mountain and"), ["Mountain & Sea"]);
        assert_eq!(found("咖啡"), ["蓝山咖啡"]);
        assert_eq!(found("lue"), Vec::<String>::new());
    }

    #[test]
    fn fields_that_split_the_items_are_chosen() {
        let item = |number: usize| {
            let text = |text: &str| AttributeValue::Text(text.to_owned());
            let mut attributes = BTreeMap::from([
                ("color".to_owned(), text(["red", "blue", "green"][number % 3])),
                ("made".to_owned(), text("here")),
                ("serial".to_owned(), text(&format!("s{number}"))),
                ("weight".to_owned(), AttributeValue::Number(number as f64)),
            ]);
            if number.is_multiple_of(10) {
                attributes.insert("rare".to_owned(), text(["a", "b"][number / 10 % 2]));
            }
            Item { brand: ["Acme", "Zeta"][number % 2].to_owned(), attributes, ..item() }
        };
        let catalog = catalog((0..300).map(item));
        let chosen = |known: &[FacetSpec], count: usize| {
            let specs = choose(&catalog, catalog.alive(), known, |_| false, count, "", false);
            specs.into_iter().map(|spec| spec.field.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&[], 9), ["attributes.color", "brand", "attributes.weight", "attributes.rare"]);
        assert_eq!(chosen(&[spec("attributes.color")], 2), ["brand", "attributes.weight"]);
        let refused = choose(&catalog, catalog.alive(), &[], |name| name == "weight", 9, "", false);
        assert!(refused.iter().all(|spec| spec.field != Field::Attribute("weight".to_owned())) && refused.len() == 3);
        assert!(choose(&catalog, &[], &[], |_| false, 5, "", false).is_empty());
    }

    #[test]
    fn a_bound_belongs_to_the_range_above_it() {
        let found = range_values(&[10.0, 25.0, 1.0, 10.0], &[], &[10.0, 20.0]);
        assert_eq!(found.iter().map(|value| value.item_count).collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(found[1].key, FacetKey::Range(Some(10.0), Some(20.0)));
    }

    #[test]
    fn computed_bounds_are_round() {
        let numbers: Vec<f64> = (0..100).rev().map(|n| f64::from(n) * 1.2345).collect();
        assert_eq!(bounds_of(numbers.iter()), [25.0, 49.0, 74.0, 99.0]);
        assert!(bounds_of([7.0; 30].iter()).is_empty());
    }

    proptest! {
        #[test]
        fn every_number_is_in_one_range(numbers in prop::collection::vec(-1e9f64..1e9, 1..60)) {
            let bounds = bounds_of(numbers.iter());
            prop_assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
            let found = range_values(&numbers, &[], &bounds);
            for value in &found {
                let FacetKey::Range(from, to) = value.key else { panic!("a number is in a range") };
                let is_inside = |n: &&f64| from.is_none_or(|from| **n >= from) && to.is_none_or(|to| **n < to);
                prop_assert_eq!(value.item_count, numbers.iter().filter(is_inside).count() as u64);
            }
        }

        /// Counts from columns, over several blocks, equal counts item by item.
        #[test]
        fn counts_of_a_part_of_the_rows_are_those_of_its_items(brands in prop::collection::vec(0usize..4, 1..2500), seed in any::<u64>()) {
            let name = |brand: usize| ["", "Acme", "Zeta", "Öko"][brand].to_owned();
            let catalog = catalog(brands.iter().map(|brand| Item { brand: name(*brand), tags: vec![name(*brand)], ..item() }));
            let among: Vec<u64> = catalog.alive().iter().enumerate().map(|(n, word)| word & seed.rotate_left(n as u32)).collect();
            for field in ["brand", "tags"] {
                let found = count(&catalog, &spec(field), &among, false).values;
                for (brand, text) in [(1, "Acme"), (2, "Zeta"), (3, "Öko")] {
                    let expected = brands.iter().enumerate().filter(|(n, of)| **of == brand && lodestone_core::bits::has(&among, *n));
                    let value = found.iter().find(|value| value.key == FacetKey::Text(text.to_owned()));
                    prop_assert_eq!(value.map_or(0, |value| value.item_count), expected.count() as u64, "{} {}", field, text);
                }
            }
        }
    }
}
