use super::CandidateIndex;

/// Merges the items that the user bought before with the others: of the first n, about n × `fraction` are such items,
/// while there are some. Each of the two keeps its order. `is_repeat` is by candidate.
pub fn mix_repeats(list: &[(CandidateIndex, f32)], is_repeat: &[bool], fraction: f32) -> Vec<(CandidateIndex, f32)> {
    let is_repeat = |(candidate, _): &(CandidateIndex, f32)| is_repeat.get(candidate.index()).copied().unwrap_or(false);
    let (repeats, others): (Vec<_>, Vec<_>) = list.iter().copied().partition(is_repeat);
    let (mut repeats, mut others) = (repeats.into_iter().peekable(), others.into_iter().peekable());
    let mut mixed = Vec::with_capacity(list.len());
    let mut placed = 0.0;
    while mixed.len() < list.len() {
        let wanted = (fraction * (mixed.len() + 1) as f32).round();
        let takes_repeat = repeats.peek().is_some() && (placed < wanted || others.peek().is_none());
        if takes_repeat {
            placed += 1.0;
        }
        mixed.extend(if takes_repeat { repeats.next() } else { others.next() });
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mixed(repeats: &[bool], fraction: f32) -> Vec<u32> {
        let list: Vec<(CandidateIndex, f32)> = (0..repeats.len() as u32).map(|at| (CandidateIndex(at), 0.0)).collect();
        mix_repeats(&list, repeats, fraction).into_iter().map(|(candidate, _)| candidate.0).collect()
    }

    #[test]
    fn every_second_item_is_a_repeat_at_one_half() {
        let repeats = [true, true, true, false, false, false, false];
        assert_eq!(mixed(&repeats, 0.5), [0, 3, 1, 4, 2, 5, 6]);
        assert_eq!(mixed(&repeats, 0.0), [3, 4, 5, 6, 0, 1, 2]);
        assert_eq!(mixed(&repeats, 1.0), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(mixed(&[false, false, true], 0.34), [0, 2, 1]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_each_part_keeps_its_order(
            repeats in prop::collection::vec(any::<bool>(), 0..60),
            fraction in 0f32..=1.0,
        ) {
            let mixed = mixed(&repeats, fraction);
            for part in [true, false] {
                let of_part: Vec<u32> = mixed.iter().copied().filter(|at| repeats[*at as usize] == part).collect();
                prop_assert!(of_part.is_sorted());
            }
            prop_assert_eq!(mixed.len(), repeats.len());
            let count = repeats.iter().filter(|is_repeat| **is_repeat).count() as f32;
            for length in 1..=mixed.len() {
                let placed = mixed[..length].iter().filter(|at| repeats[**at as usize]).count() as f32;
                let others = length as f32 - placed;
                let wanted = fraction * length as f32;
                let runs_out = placed >= count || others >= repeats.len() as f32 - count;
                prop_assert!((placed - wanted).abs() <= 1.0 || runs_out, "{} of {}", placed, length);
            }
        }
    }
}
