//! Parts of histories that the sequence encoder learns from.
use super::transformer::Tokens;

/// Texts as numbers: `vectors` `[items × width]`; all zero for an item without text.
#[derive(Debug, Clone, Default)]
pub struct ItemText {
    pub vectors: Vec<f32>,
    pub width: usize,
}

/// A part of a history to learn from.
#[derive(Debug, Clone, Copy)]
pub enum Sample<'a> {
    /// At least two items, oldest first; each but the first is foretold by those before it.
    Next(&'a [u32]),
    /// Events, and what was chosen after some of them: `(event, [(item, share)])`, ascending.
    Choices { tokens: Tokens<'a>, asked: &'a [Asked] },
}

/// An event of a sample, and what was chosen after it, with shares.
pub type Asked = (u32, Vec<(u32, f32)>);

impl<'a> Sample<'a> {
    /// What the encoder reads.
    pub(super) fn tokens(&self) -> Tokens<'a> {
        match self {
            Self::Next(items) => Tokens::from(&items[..items.len() - 1]),
            Self::Choices { tokens, .. } => *tokens,
        }
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = u32> + 'a {
        let (next, asked) = match *self {
            Self::Next(items) => (&items[1..], &[][..]),
            Self::Choices { asked, .. } => (&[][..], asked),
        };
        next.iter().copied().chain(asked.iter().flat_map(|(_, chosen)| chosen.iter().map(|(item, _)| *item)))
    }
}

/// Samples in which each item but the first is foretold.
pub fn next_items<'a>(sequences: &[&'a [u32]]) -> Vec<Sample<'a>> {
    sequences.iter().map(|sequence| Sample::Next(sequence)).collect()
}

/// Cuts histories into sequences of at most `longest` + 1 items, so that each item but a history's first is a target once.
pub(super) fn windows<'a>(histories: &[&'a [u32]], longest: usize) -> Vec<&'a [u32]> {
    let mut windows = Vec::new();
    for history in histories {
        let mut end = history.len();
        while end >= 2 {
            let begin = end.saturating_sub(longest + 1);
            windows.push(&history[begin..end]);
            end = begin + usize::from(begin > 0);
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_make_each_item_but_the_first_a_target_once() {
        let history: Vec<u32> = (0..23).collect();
        let mut targets: Vec<u32> = windows(&[&history], 5).iter().flat_map(|window| window[1..].to_vec()).collect();
        targets.sort_unstable();
        assert_eq!(targets, (1..23).collect::<Vec<u32>>());
        assert!(windows(&[&[1], &[]], 5).is_empty());
    }
}
