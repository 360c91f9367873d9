//! Building the graph (HNSW, Malkov and Yashunin 2018) over codes, on all threads of the rayon pool.
use super::{
    codes::{Quantizer, ZERO, signed},
    values::Precision,
};
use crate::kernels::{Codes, Instructions, prefetch, with_codes};
use parking_lot::Mutex;
use rayon::prelude::*;
use std::{
    cell::RefCell,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// No neighbour.
pub(super) const NONE: u32 = u32::MAX;
/// Points that are inserted one after the other before others join: the first ones do not see each other when they come
/// at once.
const FIRST_POINTS: usize = 1000;
const LOCKS: usize = 1 << 14;

/// How a graph is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildConfig {
    /// Neighbours of a point; twice as many in the lowest layer. 2 to 64.
    pub m: usize,
    /// Width of the search for neighbours. At least `m`.
    pub ef_construction: usize,
    pub seed: u64,
    /// Of the vectors for the exact score.
    pub precision: Precision,
}

impl Default for BuildConfig {
    fn default() -> Self {
        Self { m: 16, ef_construction: 200, seed: 1, precision: Precision::F32 }
    }
}

/// A layer above the lowest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UpperLayer {
    /// The points of the layer.
    pub points: Vec<u32>,
    /// By place in `points`: the place in the layer below (in the lowest, the point itself).
    pub below: Vec<u32>,
    /// `[points × m]`: places in `points`, then [`NONE`].
    pub links: Vec<u32>,
}

/// A graph in the making and when it is done: neighbours of each point, in flat arrays.
pub(super) struct Built {
    /// `[points × 2m]`, then [`NONE`].
    pub links: Vec<u32>,
    /// The lowest of them first.
    pub upper: Vec<UpperLayer>,
}

/// What is known of the points while they are linked.
struct Builder<'a> {
    config: BuildConfig,
    codes: &'a [u8],
    length: usize,
    /// By point: the sum of its signed bytes, which the products of unsigned by signed bytes hold 128 times too often.
    sums: Vec<i32>,
    /// By point: what makes all vectors equally long (Bachrach et al. 2014), in steps; empty where they are.
    extras: Vec<f32>,
    instructions: Instructions,
    /// By layer: `[points of the layer × width]`.
    links: Vec<Vec<AtomicU32>>,
    /// By layer: the point of each place; the lowest layer has all.
    points: Vec<Vec<u32>>,
    /// By layer above the lowest: the place in the layer below.
    below: Vec<Vec<u32>>,
    /// By point: its highest layer and its place there.
    tops: Vec<(u8, u32)>,
    locks: Vec<Mutex<()>>,
    /// The highest layer in use and the place where walks begin.
    entry: Mutex<(usize, u32)>,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    visited: Vec<u64>,
    query: Vec<i8>,
    other: Vec<i8>,
    near: Vec<Near>,
    fresh: Vec<u32>,
    fresh_points: Vec<u32>,
    dots: Vec<i32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A place of a layer and how near it is: greater is nearer.
#[derive(Clone, Copy, PartialEq)]
struct Near {
    similarity: f32,
    place: u32,
    expanded: bool,
}

/// Links the points of `codes`, `[points × length]`. `extras` is empty or has one number for each point. `progress` gets
/// the points that are done.
pub(super) fn build(
    quantizer: &Quantizer,
    codes: &[u8],
    extras: Vec<f32>,
    config: BuildConfig,
    progress: &(dyn Fn(usize) + Sync),
) -> Built {
    let length = quantizer.length();
    let count = codes.len() / length;
    let builder = Builder::new(codes, length, count, extras, config);
    let done = std::sync::atomic::AtomicUsize::new(0);
    let insert = |point: u32| {
        SCRATCH.with_borrow_mut(|scratch| builder.insert(point, scratch));
        let done = done.fetch_add(1, Relaxed) + 1;
        if done.is_multiple_of(1024) || done == count {
            progress(done);
        }
    };
    let first = FIRST_POINTS.min(count) as u32;
    (0..first).for_each(insert);
    if rayon::current_num_threads() == 1 {
        (first..count as u32).for_each(insert);
    } else {
        (first..count as u32).into_par_iter().with_max_len(64).for_each(insert);
    }
    builder.finish()
}

/// A number that is as good as random, the same for the same point and seed (splitmix64).
fn random(point: u64, seed: u64) -> u64 {
    let mut x = point.wrapping_add(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl<'a> Builder<'a> {
    fn new(codes: &'a [u8], length: usize, count: usize, extras: Vec<f32>, config: BuildConfig) -> Self {
        let scale = 1.0 / (config.m as f64).ln();
        let level = |point: usize| {
            let uniform = (random(point as u64, config.seed) >> 11) as f64 / (1u64 << 53) as f64;
            ((-(uniform.max(1e-300)).ln() * scale) as usize).min(15)
        };
        let (mut points, mut below): (Vec<Vec<u32>>, Vec<Vec<u32>>) = (vec![Vec::new()], vec![Vec::new()]);
        let mut tops = Vec::with_capacity(count);
        for point in 0..count {
            let top = level(point);
            let mut place = point as u32;
            for layer in 1..=top {
                if points.len() == layer {
                    points.push(Vec::new());
                    below.push(Vec::new());
                }
                below[layer].push(place);
                place = points[layer].len() as u32;
                points[layer].push(point as u32);
            }
            tops.push((top as u8, place));
        }
        let links = (0..points.len())
            .map(|layer| {
                let places = if layer == 0 { count } else { points[layer].len() };
                (0..places * width(config, layer)).map(|_| AtomicU32::new(NONE)).collect()
            })
            .collect();
        let sums = codes.par_chunks(length).map(|code| code.iter().map(|byte| i32::from(*byte) - 128).sum()).collect();
        Self {
            config,
            codes,
            length,
            sums,
            extras,
            instructions: Instructions::of_this_machine(),
            links,
            points,
            below,
            entry: Mutex::new(tops.first().map_or((0, NONE), |(top, place)| (*top as usize, *place))),
            tops,
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
        }
    }

    fn code(&self, point: u32) -> &[u8] {
        &self.codes[point as usize * self.length..][..self.length]
    }

    fn point(&self, layer: usize, place: u32) -> u32 {
        if layer == 0 { place } else { self.points[layer][place as usize] }
    }

    fn links_of(&self, layer: usize, place: u32) -> &[AtomicU32] {
        let width = width(self.config, layer);
        &self.links[layer][place as usize * width..][..width]
    }

    fn lock(&self, layer: usize, place: u32) -> &Mutex<()> {
        &self.locks[(place as usize * 31 + layer) % LOCKS]
    }

    /// Inner products, in squared steps, of the point whose signed code is `query` with others.
    fn similarities(
        &self,
        query: &[i8],
        of: u32,
        points: &[u32],
        dots: &mut Vec<i32>,
        mut give: impl FnMut(usize, f32),
    ) {
        dots.resize(points.len(), 0);
        // SAFETY: points are below the count of the codes.
        with_codes!(self.instructions, |C| unsafe { C::dots(query, self.codes.as_ptr(), points, dots) });
        let excess = i32::from(ZERO) * self.sums[of as usize];
        for (at, (dot, point)) in dots.iter().zip(points).enumerate() {
            let mut similarity = (dot - excess) as f32;
            if !self.extras.is_empty() {
                similarity += self.extras[of as usize] * self.extras[*point as usize];
            }
            give(at, similarity);
        }
    }

    fn insert(&self, point: u32, scratch: &mut Scratch) {
        let (top, place) = (self.tops[point as usize].0 as usize, self.tops[point as usize].1);
        let (entry_layer, entry) = *self.entry.lock();
        if entry == place && entry_layer == top {
            return;
        }
        scratch.query.resize(self.length, 0);
        let mut query = std::mem::take(&mut scratch.query);
        signed(self.code(point), &mut query);
        let mut start = entry;
        for layer in (top + 1..=entry_layer).rev() {
            start = self.below[layer][self.nearest(point, &query, layer, start, scratch) as usize];
        }
        // The place of this point on each layer, from its highest down.
        let mut own = place;
        for layer in (0..=top).rev() {
            if layer <= entry_layer {
                self.search(point, &query, layer, start, own, scratch);
                let near = std::mem::take(&mut scratch.near);
                let chosen = self.choose(&near, layer, self.config.m, scratch);
                self.link(layer, own, &chosen, scratch);
                start = near.first().map_or(start, |near| near.place);
                scratch.near = near;
                if layer > 0 {
                    start = self.below[layer][start as usize];
                }
            }
            if layer > 0 {
                own = self.below[layer][own as usize];
            }
        }
        scratch.query = query;
        let mut entry = self.entry.lock();
        if top > entry.0 {
            *entry = (top, place);
        }
    }

    /// The nearest place that steps to ever nearer neighbours lead to.
    fn nearest(&self, of: u32, query: &[i8], layer: usize, start: u32, scratch: &mut Scratch) -> u32 {
        let mut best = Near { similarity: f32::MIN, place: start, expanded: false };
        loop {
            let from = best.place;
            let Scratch { fresh, fresh_points, dots, .. } = scratch;
            fresh.clear();
            fresh.push(from);
            fresh.extend(
                self.links_of(layer, from).iter().map(|link| link.load(Relaxed)).take_while(|link| *link != NONE),
            );
            fresh_points.clear();
            fresh_points.extend(fresh.iter().map(|place| self.point(layer, *place)));
            self.similarities(query, of, fresh_points, dots, |at, similarity| {
                if similarity > best.similarity {
                    best = Near { similarity, place: fresh[at], expanded: false };
                }
            });
            if best.place == from {
                return from;
            }
        }
    }

    /// The nearest places of a layer into `scratch.near`, nearest first. `own` is not among them.
    fn search(&self, of: u32, query: &[i8], layer: usize, start: u32, own: u32, scratch: &mut Scratch) {
        let Scratch { visited, near, fresh, fresh_points, dots, .. } = scratch;
        let places = if layer == 0 { self.tops.len() } else { self.points[layer].len() };
        visited.clear();
        visited.resize(places.div_ceil(64), 0);
        let visit = |place: u32, visited: &mut Vec<u64>| {
            let (word, bit) = (place as usize / 64, 1u64 << (place % 64));
            let new = visited[word] & bit == 0;
            visited[word] |= bit;
            new
        };
        let ef = self.config.ef_construction;
        near.clear();
        visit(own, visited);
        visit(start, visited);
        self.similarities(query, of, &[self.point(layer, start)], dots, |_, similarity| {
            near.push(Near { similarity, place: start, expanded: false });
        });
        let mut cursor = 0;
        while cursor < near.len() {
            near[cursor].expanded = true;
            let from = near[cursor].place;
            fresh.clear();
            fresh_points.clear();
            for link in self.links_of(layer, from) {
                let place = link.load(Relaxed);
                if place == NONE {
                    break;
                }
                if visit(place, visited) {
                    let point = self.point(layer, place);
                    prefetch(self.codes[point as usize * self.length..].as_ptr());
                    fresh.push(place);
                    fresh_points.push(point);
                }
            }
            let mut lowest = cursor + 1;
            self.similarities(query, of, fresh_points, dots, |at, similarity| {
                if near.len() == ef {
                    if near[ef - 1].similarity >= similarity {
                        return;
                    }
                    near.pop();
                }
                let at_rank = near.partition_point(|other| other.similarity >= similarity);
                near.insert(at_rank, Near { similarity, place: fresh[at], expanded: false });
                lowest = lowest.min(at_rank);
            });
            cursor = lowest;
            while cursor < near.len() && near[cursor].expanded {
                cursor += 1;
            }
            if let Some(next) = near.get(cursor) {
                prefetch(self.links_of(layer, next.place).as_ptr().cast());
            }
        }
    }

    /// Of the nearest, nearest first, those that are nearer to the point than to any that was chosen before: neighbours in
    /// all directions (the paper's algorithm 4). At most `count`.
    fn choose(&self, near: &[Near], layer: usize, count: usize, scratch: &mut Scratch) -> Vec<Near> {
        let Scratch { other, dots, .. } = scratch;
        other.resize(self.length, 0);
        let mut chosen: Vec<Near> = Vec::with_capacity(count);
        let mut chosen_points: Vec<u32> = Vec::with_capacity(count);
        for candidate in near {
            if chosen.len() == count {
                break;
            }
            let point = self.point(layer, candidate.place);
            signed(self.code(point), other);
            let mut hidden = false;
            self.similarities(other, point, &chosen_points, dots, |_, similarity| {
                hidden |= similarity > candidate.similarity;
            });
            if !hidden {
                chosen.push(*candidate);
                chosen_points.push(point);
            }
        }
        chosen
    }

    /// Links a place with its neighbours, both ways.
    fn link(&self, layer: usize, own: u32, chosen: &[Near], scratch: &mut Scratch) {
        {
            let _guard = self.lock(layer, own).lock();
            let links = self.links_of(layer, own);
            // Others may have linked to this place already; they keep a way in through their own links.
            for (at, link) in links.iter().enumerate() {
                link.store(chosen.get(at).map_or(NONE, |near| near.place), Relaxed);
            }
        }
        for near in chosen {
            let _guard = self.lock(layer, near.place).lock();
            self.link_back(layer, near, own, scratch);
        }
    }

    fn link_back(&self, layer: usize, to: &Near, own: u32, scratch: &mut Scratch) {
        let links = self.links_of(layer, to.place);
        let mut known: Vec<u32> = Vec::with_capacity(links.len() + 1);
        for link in links {
            match link.load(Relaxed) {
                NONE => {
                    link.store(own, Relaxed);
                    return;
                }
                place if place == own => return,
                place => known.push(place),
            }
        }
        // Full: the best of all stay.
        let point = self.point(layer, to.place);
        let points: Vec<u32> = known.iter().map(|place| self.point(layer, *place)).collect();
        let mut all: Vec<Near> = vec![Near { similarity: to.similarity, place: own, expanded: false }];
        let mut query = std::mem::take(&mut scratch.other);
        query.resize(self.length, 0);
        signed(self.code(point), &mut query);
        self.similarities(&query, point, &points, &mut scratch.dots, |at, similarity| {
            all.push(Near { similarity, place: known[at], expanded: false });
        });
        scratch.other = query;
        all.sort_unstable_by(|a, b| b.similarity.total_cmp(&a.similarity));
        let chosen = self.choose(&all, layer, links.len(), scratch);
        for (at, link) in links.iter().enumerate() {
            link.store(chosen.get(at).map_or(NONE, |near| near.place), Relaxed);
        }
    }

    fn finish(self) -> Built {
        let (top, entry) = *self.entry.lock();
        let mut links: Vec<Vec<u32>> =
            self.links.into_iter().map(|links| links.into_iter().map(AtomicU32::into_inner).collect()).collect();
        let mut upper: Vec<UpperLayer> = Vec::new();
        let (mut points, mut below) = (self.points, self.below);
        for layer in (1..=top).rev() {
            upper.push(UpperLayer {
                points: std::mem::take(&mut points[layer]),
                below: std::mem::take(&mut below[layer]),
                links: std::mem::take(&mut links[layer]),
            });
        }
        upper.reverse();
        // Walks begin at the first place of the highest layer.
        if let Some(last) = upper.last_mut() {
            last.begin_at(entry, self.config.m);
        }
        Built { links: links.swap_remove(0), upper }
    }
}

impl UpperLayer {
    /// Swaps a place with the first.
    fn begin_at(&mut self, entry: u32, m: usize) {
        let entry = entry as usize;
        self.points.swap(0, entry);
        self.below.swap(0, entry);
        if entry > 0 {
            let (head, tail) = self.links.split_at_mut(entry * m);
            head[..m].swap_with_slice(&mut tail[..m]);
        }
        for link in &mut self.links {
            *link = match *link {
                0 => entry as u32,
                link if link as usize == entry => 0,
                link => link,
            };
        }
    }
}

/// Neighbours that a place of a layer has at most.
pub(super) fn width(config: BuildConfig, layer: usize) -> usize {
    if layer == 0 { config.m * 2 } else { config.m }
}
