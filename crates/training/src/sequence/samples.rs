//! Training samples of the sequence encoder.
use super::transformer::Tokens;

/// Text vectors of all items: `vectors` `[items × width]`; all zero for an item without text.
#[derive(Debug, Clone, Default)]
pub struct ItemText {
    pub vectors: Vec<f32>,
    pub width: usize,
}

/// A part of a history to learn from.
#[derive(Debug, Clone, Copy)]
pub enum Sample<'a> {
    /// At least two items, oldest first; each item but the first is a target, predicted from all items before it.
    Next(&'a [u32]),
    /// Events with explicit targets after some of them, in ascending order of the events.
    Targets { tokens: Tokens<'a>, targets: &'a [EventTargets] },
}

/// The index of an event in its sample, and the items chosen after it with their shares.
pub type EventTargets = (u32, Vec<(u32, f32)>);

impl<'a> Sample<'a> {
    /// Returns the events that the encoder reads.
    pub(super) fn tokens(&self) -> Tokens<'a> {
        match self {
            Self::Next(items) => Tokens::from(&items[..items.len() - 1]),
            Self::Targets { tokens, .. } => *tokens,
        }
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = u32> + 'a {
        let (next, of_events) = match *self {
            Self::Next(items) => (&items[1..], &[][..]),
            Self::Targets { targets, .. } => (&[][..], targets),
        };
        next.iter().copied().chain(of_events.iter().flat_map(|(_, items)| items.iter().map(|(item, _)| *item)))
    }
}

/// Returns samples in which each item but the first is a target.
pub fn next_items<'a>(sequences: &[&'a [u32]]) -> Vec<Sample<'a>> {
    sequences.iter().map(|sequence| Sample::Next(sequence)).collect()
}
