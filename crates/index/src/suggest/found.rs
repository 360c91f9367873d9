//! The best of what was found, for one user.
use super::Completion;
use super::{
    list::{Entry, finite},
    nearness::STARTS_MAX,
};
use ahash::AHashSet;
use std::cell::RefCell;

/// How much a user likes each category, asked once.
pub(super) struct Lift<'a> {
    affinity: &'a dyn Fn(&str) -> f32,
    categories: &'a [String],
    known: RefCell<Vec<Option<f32>>>,
}

impl<'a> Lift<'a> {
    pub(super) fn new(affinity: &'a dyn Fn(&str) -> f32, categories: &'a [String]) -> Self {
        Self { affinity, categories, known: RefCell::new(vec![None; categories.len()]) }
    }

    pub(super) fn of(&self, category: u32) -> f32 {
        let at = category as usize;
        *self.known.borrow_mut()[at].get_or_insert_with(|| lift_of((self.affinity)(&self.categories[at])))
    }
}

pub(super) fn lift_of(affinity: f32) -> f32 {
    1.0 + finite(affinity).min(10.0)
}

/// Candidates; a text may be among them several times.
#[derive(Default)]
pub(super) struct Found<'s> {
    listed: Vec<(f32, &'s Entry)>,
}

impl<'s> Found<'s> {
    pub(super) fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    pub(super) fn offer(&mut self, entry: &'s Entry, score: f32) {
        self.listed.push((score, entry));
    }

    pub(super) fn into_best(self, count: usize) -> Vec<Completion> {
        let mut all = self.listed;
        // The shorter of two equally good texts is nearer to what was typed.
        let order = |(a_score, a): &(f32, &Entry), (b_score, b): &(f32, &Entry)| {
            let by_text = a.normal.len().cmp(&b.normal.len()).then(a.normal.cmp(&b.normal));
            b_score.total_cmp(a_score).then(by_text).then((a.source as u8).cmp(&(b.source as u8)))
        };
        // A text may be listed once for each of its words and sources, so some more than `count` must be sorted.
        let enough = count.saturating_mul(STARTS_MAX * 3);
        if all.len() > enough {
            all.select_nth_unstable_by(enough, order);
            all.truncate(enough);
        }
        all.sort_unstable_by(order);
        let mut seen = AHashSet::new();
        (all.into_iter())
            .filter(|(_, entry)| seen.insert(entry.normal.as_str()))
            .take(count)
            .map(|(_, entry)| Completion { text: entry.text.clone(), source: entry.source })
            .collect()
    }
}
