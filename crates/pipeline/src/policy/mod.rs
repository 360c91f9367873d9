//! What the shop wants of the order: boosts, diversity, interleaving, pins, exploration. Pure functions over candidates and
//! scores; `arrange` applies all of them, in the order in which it says.
mod arrange;
mod boost;
mod diversity;
mod draft;
mod exploration;
mod pins;
mod random;
mod scores;

pub use arrange::{Arranged, OrganicPlace, Placed, PolicyInput, Ranking, arrange};
pub use boost::apply_boosts;
pub use diversity::diversify;
pub use draft::{Drafted, Team, team_draft};
pub use exploration::{Drawn, EXPLORED_MAX, Exploration, Marginal, Organic, joint};
pub use pins::{PinSlot, Placement, place_pins};
pub use random::Random;
pub use scores::{Base, utility};

/// The position of a candidate in retrieval's list, from 0. Pinned items that are not candidates have the indices after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CandidateIndex(pub u32);

impl CandidateIndex {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
