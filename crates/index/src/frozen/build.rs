//! Parallel construction of an HNSW graph (Malkov and Yashunin 2018) over codes, on the current rayon pool.
//!
//! A *point* is a distinct vector. A *node* is a point on one layer: its index among the points of that layer. On the
//! lowest layer, which has all points, node and point are equal.
use super::{
    codes::{Quantizer, ZERO, signed},
    ids::NONE,
    values::Precision,
};
use crate::kernels::{Codes, InstructionSet, prefetch, with_codes};
use parking_lot::Mutex;
use rayon::prelude::*;
use std::{
    cell::RefCell,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

/// Points that are inserted sequentially before parallel inserts begin, because the first points do not see each other
/// if they are inserted concurrently.
const FIRST_POINTS: usize = 1000;
/// Number of mutexes that the nodes share.
const LOCKS: usize = 1 << 14;

/// Parameters of a frozen graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildConfig {
    /// Maximum neighbours of a node; twice as many in the lowest layer. 2 to 64.
    pub m: usize,
    /// Width of the neighbour search of an insert. At least `m`.
    pub ef_construction: usize,
    /// Seed of the points' levels.
    pub seed: u64,
    /// Precision of the stored vectors, from which exact scores are computed.
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
    /// `[nodes]`: the point of each node.
    pub points: Vec<u32>,
    /// `[nodes]`: the node of the same point in the layer below.
    pub below: Vec<u32>,
    /// `[nodes × m]`: the neighbours of each node, padded with [`NONE`].
    pub links: Vec<u32>,
}

/// A complete graph in flat arrays.
pub(super) struct Built {
    /// `[points × 2m]`: the neighbours of each point in the lowest layer, padded with [`NONE`].
    pub links: Vec<u32>,
    /// Layers above the lowest, in ascending order.
    pub upper: Vec<UpperLayer>,
}

/// A graph under construction.
struct Builder<'a> {
    config: BuildConfig,
    /// `[points × length]`.
    codes: &'a [u8],
    length: usize,
    /// By point: the sum of its signed bytes. Products of unsigned by signed bytes exceed the inner product by 128
    /// times it.
    sums: Vec<i32>,
    /// By point: the component that makes all vectors equally long (Bachrach et al. 2014), in steps; empty if they
    /// are.
    extras: Vec<f32>,
    instructions: InstructionSet,
    /// By layer: `[nodes × width]`.
    links: Vec<Vec<AtomicU32>>,
    /// By layer above the lowest: the point of each node.
    points: Vec<Vec<u32>>,
    /// By layer above the lowest: the node of the same point in the layer below.
    below: Vec<Vec<u32>>,
    /// By point: its highest layer and its node there.
    tops: Vec<(u8, u32)>,
    locks: Vec<Mutex<()>>,
    /// The highest layer in use and the node from which searches start.
    entry: Mutex<(usize, u32)>,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    /// One bit for each node of a layer.
    visited: Vec<u64>,
    query: Vec<i8>,
    other: Vec<i8>,
    candidates: Vec<Candidate>,
    fresh: Vec<u32>,
    fresh_points: Vec<u32>,
    dots: Vec<i32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A node of a layer with its similarity to the inserted point.
#[derive(Clone, Copy, PartialEq)]
struct Candidate {
    similarity: f32,
    node: u32,
    expanded: bool,
}

/// Builds the graph over `codes`, `[points × length]`. `extras` is empty or has one number for each point. Calls
/// `progress` with the number of points that are inserted.
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

/// Returns a pseudorandom number that depends on the point and the seed only (splitmix64).
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
            let mut node = point as u32;
            for layer in 1..=top {
                if points.len() == layer {
                    points.push(Vec::new());
                    below.push(Vec::new());
                }
                below[layer].push(node);
                node = points[layer].len() as u32;
                points[layer].push(point as u32);
            }
            tops.push((top as u8, node));
        }
        let links = (0..points.len())
            .map(|layer| {
                let nodes = if layer == 0 { count } else { points[layer].len() };
                (0..nodes * width(config, layer)).map(|_| AtomicU32::new(NONE)).collect()
            })
            .collect();
        let sums = codes.par_chunks(length).map(|code| code.iter().map(|byte| i32::from(*byte) - 128).sum()).collect();
        Self {
            config,
            codes,
            length,
            sums,
            extras,
            instructions: InstructionSet::detect(),
            links,
            points,
            below,
            entry: Mutex::new(tops.first().map_or((0, NONE), |(top, node)| (*top as usize, *node))),
            tops,
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
        }
    }

    fn code(&self, point: u32) -> &[u8] {
        &self.codes[point as usize * self.length..][..self.length]
    }

    fn point(&self, layer: usize, node: u32) -> u32 {
        if layer == 0 { node } else { self.points[layer][node as usize] }
    }

    fn links_of(&self, layer: usize, node: u32) -> &[AtomicU32] {
        let width = width(self.config, layer);
        &self.links[layer][node as usize * width..][..width]
    }

    fn lock(&self, layer: usize, node: u32) -> &Mutex<()> {
        &self.locks[(node as usize * 31 + layer) % LOCKS]
    }

    /// Computes the inner products, in squared steps, of the point `of`, whose signed code is `query`, with `points`.
    /// Calls `each` with the index of each point in `points` and its inner product.
    fn similarities(
        &self,
        query: &[i8],
        of: u32,
        points: &[u32],
        dots: &mut Vec<i32>,
        mut each: impl FnMut(usize, f32),
    ) {
        dots.resize(points.len(), 0);
        // SAFETY: `points` are points of the graph, each of which has a code; `dots` is as long as `points`.
        with_codes!(self.instructions, |C| unsafe { C::dots(query, self.codes.as_ptr(), points, dots) });
        let excess = i32::from(ZERO) * self.sums[of as usize];
        for (at, (dot, point)) in dots.iter().zip(points).enumerate() {
            let mut similarity = (dot - excess) as f32;
            if !self.extras.is_empty() {
                similarity += self.extras[of as usize] * self.extras[*point as usize];
            }
            each(at, similarity);
        }
    }

    /// Inserts a point on each of its layers (the paper's algorithm 1).
    fn insert(&self, point: u32, scratch: &mut Scratch) {
        let (top, node) = (self.tops[point as usize].0 as usize, self.tops[point as usize].1);
        let (entry_layer, entry) = *self.entry.lock();
        if entry == node && entry_layer == top {
            return;
        }
        scratch.query.resize(self.length, 0);
        let mut query = std::mem::take(&mut scratch.query);
        signed(self.code(point), &mut query);
        let mut start = entry;
        for layer in (top + 1..=entry_layer).rev() {
            start = self.below[layer][self.nearest(point, &query, layer, start, scratch) as usize];
        }
        // The node of this point on each layer, from its highest down.
        let mut own = node;
        for layer in (0..=top).rev() {
            if layer <= entry_layer {
                self.search(point, &query, layer, start, own, scratch);
                let candidates = std::mem::take(&mut scratch.candidates);
                let selected = self.select(&candidates, layer, self.config.m, scratch);
                self.link(layer, own, &selected, scratch);
                start = candidates.first().map_or(start, |nearest| nearest.node);
                scratch.candidates = candidates;
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
            *entry = (top, node);
        }
    }

    /// Returns the node at which a greedy search from `start` ends.
    fn nearest(&self, of: u32, query: &[i8], layer: usize, start: u32, scratch: &mut Scratch) -> u32 {
        let mut best = Candidate { similarity: f32::MIN, node: start, expanded: false };
        loop {
            let from = best.node;
            let Scratch { fresh, fresh_points, dots, .. } = scratch;
            fresh.clear();
            fresh.push(from);
            fresh.extend(
                self.links_of(layer, from).iter().map(|link| link.load(Relaxed)).take_while(|link| *link != NONE),
            );
            fresh_points.clear();
            fresh_points.extend(fresh.iter().map(|node| self.point(layer, *node)));
            self.similarities(query, of, fresh_points, dots, |at, similarity| {
                if similarity > best.similarity {
                    best = Candidate { similarity, node: fresh[at], expanded: false };
                }
            });
            if best.node == from {
                return from;
            }
        }
    }

    /// Searches a layer with width `ef_construction` (the paper's algorithm 2) and writes the result to
    /// `scratch.candidates`, nearest first, without `own`.
    fn search(&self, of: u32, query: &[i8], layer: usize, start: u32, own: u32, scratch: &mut Scratch) {
        let Scratch { visited, candidates, fresh, fresh_points, dots, .. } = scratch;
        let nodes = if layer == 0 { self.tops.len() } else { self.points[layer].len() };
        visited.clear();
        visited.resize(nodes.div_ceil(64), 0);
        let visit = |node: u32, visited: &mut Vec<u64>| {
            let (word, bit) = (node as usize / 64, 1u64 << (node % 64));
            let new = visited[word] & bit == 0;
            visited[word] |= bit;
            new
        };
        let ef = self.config.ef_construction;
        candidates.clear();
        visit(own, visited);
        visit(start, visited);
        self.similarities(query, of, &[self.point(layer, start)], dots, |_, similarity| {
            candidates.push(Candidate { similarity, node: start, expanded: false });
        });
        let mut cursor = 0;
        while cursor < candidates.len() {
            candidates[cursor].expanded = true;
            let from = candidates[cursor].node;
            fresh.clear();
            fresh_points.clear();
            for link in self.links_of(layer, from) {
                let node = link.load(Relaxed);
                if node == NONE {
                    break;
                }
                if visit(node, visited) {
                    let point = self.point(layer, node);
                    prefetch(self.codes[point as usize * self.length..].as_ptr());
                    fresh.push(node);
                    fresh_points.push(point);
                }
            }
            let mut lowest = cursor + 1;
            self.similarities(query, of, fresh_points, dots, |at, similarity| {
                if candidates.len() == ef {
                    if candidates[ef - 1].similarity >= similarity {
                        return;
                    }
                    candidates.pop();
                }
                let at_rank = candidates.partition_point(|other| other.similarity >= similarity);
                candidates.insert(at_rank, Candidate { similarity, node: fresh[at], expanded: false });
                lowest = lowest.min(at_rank);
            });
            cursor = lowest;
            while cursor < candidates.len() && candidates[cursor].expanded {
                cursor += 1;
            }
            if let Some(next) = candidates.get(cursor) {
                prefetch(self.links_of(layer, next.node).as_ptr().cast());
            }
        }
    }

    /// Selects at most `count` diverse neighbours from candidates that are sorted nearest first: each is nearer to the
    /// point than to any neighbour selected before (the heuristic of the paper's algorithm 4).
    fn select(&self, candidates: &[Candidate], layer: usize, count: usize, scratch: &mut Scratch) -> Vec<Candidate> {
        let Scratch { other, dots, .. } = scratch;
        other.resize(self.length, 0);
        let mut selected: Vec<Candidate> = Vec::with_capacity(count);
        let mut selected_points: Vec<u32> = Vec::with_capacity(count);
        for candidate in candidates {
            if selected.len() == count {
                break;
            }
            let point = self.point(layer, candidate.node);
            signed(self.code(point), other);
            let mut hidden = false;
            self.similarities(other, point, &selected_points, dots, |_, similarity| {
                hidden |= similarity > candidate.similarity;
            });
            if !hidden {
                selected.push(*candidate);
                selected_points.push(point);
            }
        }
        selected
    }

    /// Links a node with its neighbours, in both directions.
    fn link(&self, layer: usize, own: u32, selected: &[Candidate], scratch: &mut Scratch) {
        {
            let _guard = self.lock(layer, own).lock();
            let links = self.links_of(layer, own);
            // Other threads may have linked to this node already. Overwriting loses only links from this node to
            // theirs; their own links stay.
            for (at, link) in links.iter().enumerate() {
                link.store(selected.get(at).map_or(NONE, |neighbour| neighbour.node), Relaxed);
            }
        }
        for neighbour in selected {
            let _guard = self.lock(layer, neighbour.node).lock();
            self.link_back(layer, neighbour, own, scratch);
        }
    }

    /// Adds the link from a neighbour to `own`. If the neighbour has no free slot, it selects its neighbours again.
    fn link_back(&self, layer: usize, neighbour: &Candidate, own: u32, scratch: &mut Scratch) {
        let links = self.links_of(layer, neighbour.node);
        let mut known: Vec<u32> = Vec::with_capacity(links.len() + 1);
        for link in links {
            match link.load(Relaxed) {
                NONE => {
                    link.store(own, Relaxed);
                    return;
                }
                node if node == own => return,
                node => known.push(node),
            }
        }
        let point = self.point(layer, neighbour.node);
        let points: Vec<u32> = known.iter().map(|node| self.point(layer, *node)).collect();
        let mut all: Vec<Candidate> = vec![Candidate { similarity: neighbour.similarity, node: own, expanded: false }];
        let mut query = std::mem::take(&mut scratch.other);
        query.resize(self.length, 0);
        signed(self.code(point), &mut query);
        self.similarities(&query, point, &points, &mut scratch.dots, |at, similarity| {
            all.push(Candidate { similarity, node: known[at], expanded: false });
        });
        scratch.other = query;
        all.sort_unstable_by(|a, b| b.similarity.total_cmp(&a.similarity));
        let selected = self.select(&all, layer, links.len(), scratch);
        for (at, link) in links.iter().enumerate() {
            link.store(selected.get(at).map_or(NONE, |neighbour| neighbour.node), Relaxed);
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
        // Searches start at the first node of the highest layer.
        if let Some(last) = upper.last_mut() {
            last.begin_at(entry, self.config.m);
        }
        Built { links: links.swap_remove(0), upper }
    }
}

impl UpperLayer {
    /// Swaps a node with the first.
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

/// Maximum number of neighbours of a node.
pub(super) fn width(config: BuildConfig, layer: usize) -> usize {
    if layer == 0 { config.m * 2 } else { config.m }
}
