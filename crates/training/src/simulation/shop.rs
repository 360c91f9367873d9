//! A simulated catalogue of products with known properties.
use super::{
    SimulationConfig,
    draws::{Draws, Purpose},
};
use lodestone_catalog::Item;
use lodestone_core::{
    ids::ItemId,
    units::{PriceMicros, UnixMillis},
};

/// Product kinds. A buyer of one kind may soon need its complement, the next in the list.
pub(super) const KINDS: [&str; 12] =
    ["mug", "teapot", "tray", "lamp", "candle", "vase", "cushion", "blanket", "rug", "notebook", "pen", "calendar"];
/// Styles of products.
pub(super) const STYLES: [&str; 8] = ["rustic", "floral", "striped", "retro", "nordic", "velvet", "golden", "woven"];
/// Words of titles for which no shopper has a preference.
const COLOURS: [&str; 6] = ["red", "blue", "green", "grey", "cream", "black"];
const RANGES: [&str; 10] =
    ["abbey", "bramley", "camden", "dorset", "exmoor", "fenwick", "granby", "harlow", "islay", "jura"];
/// Share of the products that are launched during the simulated days.
const LAUNCHED_SHARE: f64 = 0.2;
/// Utility that the style in fashion gains, and the one before it loses, over the simulated days.
const FASHION: f64 = 0.8;
/// Standard deviation of the quality of products.
const QUALITY: f64 = 0.4;

/// A product with the properties that shoppers react to.
#[derive(Debug, Clone)]
pub struct Product {
    /// Index in [`KINDS`].
    pub kind: usize,
    /// Index in [`STYLES`].
    pub style: usize,
    /// Utility for every shopper; 0 on average.
    pub quality: f64,
    /// The simulated day on which it is launched; none for a product of the first catalogue.
    pub launch_day: Option<usize>,
    pub title: String,
    pub price: PriceMicros,
}

/// All products, by number.
#[derive(Debug, Clone)]
pub struct Shop {
    pub products: Vec<Product>,
    /// The style that comes into fashion, and the one that goes out of fashion.
    fashion: [usize; 2],
    day_count: usize,
}

impl Shop {
    pub fn new(config: &SimulationConfig, draws: Draws) -> Self {
        let product = |number: usize| {
            let part = |count, part| draws.below(count, Purpose::Product, &[number as u64, part]);
            let (kind, style) = (number % KINDS.len(), part(STYLES.len(), 0));
            let title = [STYLES[style], COLOURS[part(COLOURS.len(), 1)], KINDS[kind], RANGES[part(RANGES.len(), 2)]];
            let is_launched = draws.happens(LAUNCHED_SHARE, Purpose::Launch, &[number as u64]);
            // Not on the first day, because the first bundle and its server begin with the same catalogue.
            let launch_day = (is_launched && config.day_count > 1)
                .then(|| 1 + draws.below(config.day_count - 1, Purpose::Launch, &[number as u64, 1]));
            Product {
                kind,
                style,
                quality: QUALITY * draws.normal(Purpose::Product, &[number as u64, 3]),
                launch_day,
                title: title.join(" "),
                price: PriceMicros::new(1_000_000 * (2 + part(40, 4) as i64)).expect("a few pounds are a price"),
            }
        };
        let season = draws.below(STYLES.len(), Purpose::Product, &[]);
        Self {
            products: (0..config.product_count).map(product).collect(),
            fashion: [season, (season + 1) % STYLES.len()],
            day_count: config.day_count,
        }
    }

    /// Returns the utility that fashion adds to a style on a day; 0 before the first simulated day.
    pub fn fashion(&self, style: usize, day: i64) -> f64 {
        let share = (day.max(0) as f64 / self.day_count.max(1) as f64).min(1.0);
        match self.fashion.iter().position(|fashion| *fashion == style) {
            Some(0) => FASHION * share,
            Some(_) => -FASHION * share,
            None => 0.0,
        }
    }

    /// Whether the product was launched by this day.
    pub fn is_offered(&self, product: usize, day: i64) -> bool {
        self.products[product].launch_day.is_none_or(|launch| launch as i64 <= day)
    }

    /// Returns the products that are launched on this day, or for none those of the first catalogue.
    pub fn launched(&self, day: Option<usize>) -> impl Iterator<Item = usize> {
        (0..self.products.len()).filter(move |product| self.products[*product].launch_day == day)
    }

    /// Returns the catalogue item of a product. `first_offered` is its launch time.
    pub fn item(&self, product: usize, first_offered: Option<UnixMillis>) -> Item {
        let Product { kind, title, price, .. } = &self.products[product];
        let id = ItemId::parse(&id_of(product)).expect("digits are an id");
        Item {
            categories: vec![format!("Home > {}", KINDS[*kind])],
            price: Some(*price),
            currency: CURRENCY.to_owned(),
            created_at: first_offered,
            ..Item::titled(id, title)
        }
    }
}

/// The currency of all prices.
pub(super) const CURRENCY: &str = "GBP";

/// Returns the item id of a product.
pub fn id_of(product: usize) -> String {
    format!("p{product:04}")
}

/// Returns the product with this item id.
pub fn product_of(id: &str) -> Option<usize> {
    id.strip_prefix('p')?.parse().ok()
}

/// Returns the kind that complements this one.
pub(super) fn complement(kind: usize) -> usize {
    (kind + 1) % KINDS.len()
}
