//! The facts of a block of items, column by column: a condition is met by many items at once.
use super::{Field, Filter, Literal, Node, Operator, Test, lower};
use crate::{AttributeValue, Item};
use ahash::AHashMap;

/// Items of a block.
pub(crate) const BLOCK_ROWS: usize = 1024;

/// One bit for each item of a block.
pub(crate) type Mask = [u64; BLOCK_ROWS / 64];

const NONE: Mask = [0; BLOCK_ROWS / 64];

/// The columns of one block. Titles, descriptions and ids have none: nearly every item has another, so they are read where
/// the other conditions leave something to ask.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    category: Column,
    brand: Column,
    price: Column,
    currency: Column,
    stock_quantity: Column,
    in_stock: Column,
    tags: Column,
    create_time: Column,
    attributes: AHashMap<Box<str>, Column>,
}

/// What the items of a block say of one field. An attribute may be a text in one item and a number in another.
#[derive(Debug, Clone, Default)]
struct Column {
    /// By text in lower case: its items, ascending.
    labels: AHashMap<Box<str>, Vec<u16>>,
    numbers: Option<Numbers>,
    /// Which items say true, and which say true or false.
    flags: Option<[Mask; 2]>,
}

#[derive(Debug, Clone)]
struct Numbers {
    /// By item; NaN where it has none, which meets no comparison.
    values: Box<[f64; BLOCK_ROWS]>,
    least: f64,
    most: f64,
}

impl Column {
    fn label(&mut self, at: usize, label: &str) {
        let items = self.labels.entry(lower(label).into()).or_default();
        if items.last() != Some(&(at as u16)) {
            items.push(at as u16);
        }
    }

    fn number(&mut self, at: usize, number: f64) {
        let numbers = self.numbers.get_or_insert_with(|| Numbers {
            values: Box::new([f64::NAN; BLOCK_ROWS]),
            least: f64::INFINITY,
            most: f64::NEG_INFINITY,
        });
        numbers.values[at] = number;
        (numbers.least, numbers.most) = (numbers.least.min(number), numbers.most.max(number));
    }

    fn flag(&mut self, at: usize, flag: bool) {
        let [is_true, said] = self.flags.get_or_insert([NONE; 2]);
        set(said, at);
        if flag {
            set(is_true, at);
        }
    }

    fn having(&self, text: &str) -> Mask {
        let mut mask = NONE;
        self.labels.get(text).into_iter().flatten().for_each(|at| set(&mut mask, *at as usize));
        mask
    }

    fn saying(&self, flag: bool) -> Mask {
        self.flags.map_or(NONE, |[is_true, said]| if flag { is_true } else { and_not(said, &is_true) })
    }

    /// `labels_of_item`: an item may have several texts (categories, tags), so HAS asks for a whole one, and `!=` is met
    /// where there is none.
    fn meets(&self, test: &Test, labels_of_item: bool) -> Mask {
        let equals = |literal: &Literal| match literal {
            Literal::Text(text) => self.having(&text.lower),
            Literal::Number(number) => self.compare(Operator::Equal, *number),
            Literal::Flag(flag) => self.saying(*flag),
            Literal::Time(at, _) => self.compare(Operator::Equal, *at as f64),
        };
        match test {
            Test::Compare(Operator::Equal, literal) => equals(literal),
            Test::Compare(Operator::Unequal, Literal::Text(text)) if labels_of_item => {
                and_not([u64::MAX; BLOCK_ROWS / 64], &self.having(&text.lower))
            }
            Test::Compare(Operator::Unequal, Literal::Text(text)) => {
                // A number is not unequal to a text: it is no text.
                let texts = self.labels.values().flatten().fold(NONE, |mut mask, at| {
                    set(&mut mask, *at as usize);
                    mask
                });
                and_not(texts, &self.having(&text.lower))
            }
            Test::Compare(Operator::Unequal, Literal::Flag(flag)) => self.saying(!flag),
            Test::Compare(operator, Literal::Number(number)) => self.compare(*operator, *number),
            Test::Compare(operator, Literal::Time(at, _)) => self.compare(*operator, *at as f64),
            Test::Compare(..) => NONE,
            Test::In(literals) => literals.iter().fold(NONE, |mask, literal| or(mask, &equals(literal))),
            Test::Has(text) if labels_of_item => self.having(&text.lower),
            Test::Has(text) => {
                let labels = self.labels.keys().filter(|label| text.is_within(label));
                labels.fold(NONE, |mask, label| or(mask, &self.having(label)))
            }
        }
    }

    fn compare(&self, operator: Operator, limit: f64) -> Mask {
        let Some(numbers) = &self.numbers else { return NONE };
        // Most blocks of a sorted catalogue lie wholly on one side.
        let (least, most) = (numbers.least, numbers.most);
        let none = match operator {
            Operator::Equal => limit < least || limit > most,
            Operator::Less => least >= limit,
            Operator::LessOrEqual => least > limit,
            Operator::Greater => most <= limit,
            Operator::GreaterOrEqual => most < limit,
            Operator::Unequal => false,
        };
        if none {
            return NONE;
        }
        match operator {
            Operator::Equal => mask_of(&numbers.values, |value| value == limit),
            Operator::Unequal => mask_of(&numbers.values, |value| !value.is_nan() && value != limit),
            Operator::Less => mask_of(&numbers.values, |value| value < limit),
            Operator::LessOrEqual => mask_of(&numbers.values, |value| value <= limit),
            Operator::Greater => mask_of(&numbers.values, |value| value > limit),
            Operator::GreaterOrEqual => mask_of(&numbers.values, |value| value >= limit),
        }
    }
}

impl Columns {
    /// The columns of at most [`BLOCK_ROWS`] items.
    pub fn of<'i>(items: impl Iterator<Item = &'i Item>) -> Self {
        let mut columns = Self::default();
        for (at, item) in items.take(BLOCK_ROWS).enumerate() {
            item.categories.iter().for_each(|label| columns.category.label(at, label));
            item.tags.iter().for_each(|label| columns.tags.label(at, label));
            columns.brand.label(at, &item.brand);
            columns.currency.label(at, &item.currency);
            columns.in_stock.flag(at, item.is_in_stock());
            if let Some(price) = item.price {
                columns.price.number(at, price.units());
            }
            if let Some(stock) = item.stock_quantity {
                columns.stock_quantity.number(at, f64::from(stock));
            }
            if let Some(time) = item.created_at {
                columns.create_time.number(at, time.0 as f64);
            }
            for (name, value) in &item.attributes {
                let column = columns.attributes.entry(name.as_str().into()).or_default();
                match value {
                    AttributeValue::Text(text) => column.label(at, text),
                    AttributeValue::Number(number) => column.number(at, *number),
                    AttributeValue::Flag(flag) => column.flag(at, *flag),
                }
            }
        }
        columns
    }

    /// None for what has no column.
    fn meets(&self, field: &Field, test: &Test) -> Option<Mask> {
        Some(match field {
            Field::ItemId | Field::Title | Field::Description => return None,
            Field::Category => self.category.meets(test, true),
            Field::Tags => self.tags.meets(test, true),
            Field::Brand => self.brand.meets(test, false),
            Field::Currency => self.currency.meets(test, false),
            Field::Price => self.price.meets(test, false),
            Field::StockQuantity => self.stock_quantity.meets(test, false),
            Field::InStock => self.in_stock.meets(test, false),
            Field::CreateTime => self.create_time.meets(test, false),
            Field::Attribute(name) => self.attributes.get(name.as_str()).map_or(NONE, |c| c.meets(test, false)),
        })
    }
}

impl Filter {
    /// Those of `among` that meet the condition: as [`Filter::matches`] of each, by the columns where there are some.
    pub fn mask<'i>(&self, columns: Option<&Columns>, item_of: &impl Fn(usize) -> &'i Item, among: Mask) -> Mask {
        self.0.mask(columns, item_of, among)
    }
}

impl Node {
    fn mask<'i>(&self, columns: Option<&Columns>, item_of: &impl Fn(usize) -> &'i Item, among: Mask) -> Mask {
        if among == NONE {
            return NONE;
        }
        match self {
            Self::All(nodes) => {
                // What has a column first: the rest is asked of fewer items.
                let in_order = by_cost(nodes);
                in_order.fold(among, |left, node| node.mask(columns, item_of, left))
            }
            Self::Any(nodes) => {
                let mut rest = among;
                for node in by_cost(nodes) {
                    rest = and_not(rest, &node.mask(columns, item_of, rest));
                }
                and_not(among, &rest)
            }
            Self::Not(node) => and_not(among, &node.mask(columns, item_of, among)),
            Self::Test(field, test) => match columns.and_then(|columns| columns.meets(field, test)) {
                Some(mask) => and(mask, &among),
                None => {
                    let mut mask = NONE;
                    lodestone_core::bits::ones(&among, 0)
                        .filter(|at| field.meets(test, item_of(*at)))
                        .for_each(|at| set(&mut mask, at));
                    mask
                }
            },
        }
    }

    fn reads_items(&self) -> bool {
        match self {
            Self::All(nodes) | Self::Any(nodes) => nodes.iter().any(Self::reads_items),
            Self::Not(node) => node.reads_items(),
            Self::Test(field, _) => matches!(field, Field::ItemId | Field::Title | Field::Description),
        }
    }
}

fn by_cost(nodes: &[Node]) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(|node| !node.reads_items()).chain(nodes.iter().filter(|node| node.reads_items()))
}

fn mask_of(values: &[f64; BLOCK_ROWS], meets: impl Fn(f64) -> bool) -> Mask {
    let mut mask = NONE;
    for (word, values) in mask.iter_mut().zip(values.chunks_exact(64)) {
        *word = values.iter().enumerate().fold(0, |word, (at, value)| word | u64::from(meets(*value)) << at);
    }
    mask
}

fn set(mask: &mut Mask, at: usize) {
    mask[at / 64] |= 1 << (at % 64);
}

fn and(a: Mask, b: &Mask) -> Mask {
    std::array::from_fn(|at| a[at] & b[at])
}

fn and_not(a: Mask, b: &Mask) -> Mask {
    std::array::from_fn(|at| a[at] & !b[at])
}

fn or(a: Mask, b: &Mask) -> Mask {
    std::array::from_fn(|at| a[at] | b[at])
}
