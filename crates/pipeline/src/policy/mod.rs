//! The policy: the rules from scores to slots (boosts, diversity, repeats, interleaving, pins, exploration). Pure
//! functions over candidates and scores; [`arrange`] applies all of them.
mod arrange;
mod boost;
mod diversity;
mod draft;
mod exploration;
mod objectives;
mod pins;
mod random;
mod repeats;
mod scores;

pub use arrange::{Arranged, OrganicSlot, Placed, PolicyInput, Ranking, arrange};
pub use boost::apply_boosts;
pub use diversity::diversify;
pub use draft::{DraftPick, Team, team_draft};
pub use exploration::{DrawnOrder, Exploration, Marginal, OrganicList, joint};
pub use objectives::{Blend, BlendInput, HeadColumns, ObjectiveFacts, ObjectiveMix, blend};
pub use pins::{PinSlot, Placement, place_pins};
pub use random::Random;
pub use repeats::mix_repeats;
pub use scores::{BaseScores, ScoreParts, utility};

/// The index of a candidate in the list of retrieval. Pinned items that are not candidates have the indices after the
/// list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CandidateIndex(pub u32);

impl CandidateIndex {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
