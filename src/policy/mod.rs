//! What the shop wants of the order: boosts, pins, diversity. Pure functions over rows and scores.
mod boost;
mod diversity;
mod pins;

pub use boost::apply_boosts;
pub use diversity::diversify;
pub use pins::{PinSlot, Placement, place_pins};
