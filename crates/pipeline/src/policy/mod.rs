//! What the shop wants of the order: boosts, diversity, interleaving, pins, exploration. Pure functions over rows and
//! scores; `arrange` applies all of them, in the order in which it says.
mod arrange;
mod boost;
mod diversity;
mod draft;
mod exploration;
mod pins;
mod random;
mod scores;

pub use arrange::{Arranged, PolicyInput, OrganicPlace, Placed, Ranking, arrange};
pub use boost::apply_boosts;
pub use diversity::diversify;
pub use draft::{Drafted, Team, team_draft};
pub use exploration::{Drawn, EXPLORED_MAX, Exploration, Marginal, Organic, joint};
pub use pins::{PinSlot, Placement, place_pins};
pub use random::Random;
pub use scores::{Base, utility};
