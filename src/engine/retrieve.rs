//! Stage one: several sources give candidates, which are fused into one list.
use super::world::World;
use crate::{
    catalog::Catalog,
    features::{PersonContext, Recent, SourceEvidence},
    ids::{ItemKey, Row},
    retrieval::{LexicalError, Match, Neighbours, dot, exact_search, reciprocal_rank_fusion},
    units::UnixMillis,
};
use ahash::AHashMap;

/// The sources, in the order of [`Candidate::ranks`].
pub const SOURCES: [&str; 8] =
    ["person_vector", "query_vector", "words", "next", "together", "similar", "popular", "history"];
pub const PERSON_VECTOR: usize = 0;
pub const QUERY_VECTOR: usize = 1;
pub const WORDS: usize = 2;
pub const NEXT: usize = 3;
pub const TOGETHER: usize = 4;
pub const SIMILAR: usize = 5;
pub const POPULAR: usize = 6;
pub const HISTORY: usize = 7;

/// Weights of the sources in reciprocal-rank fusion.
const WEIGHTS: [f32; SOURCES.len()] = [1.0, 1.0, 1.5, 1.0, 0.7, 0.5, 0.5, 1.2];
const FUSION_K: f32 = 60.0;
/// The graph's list while walking.
const EF_SEARCH: usize = 160;
/// Below this many eligible rows the graph is not walked: an exact scan is faster and misses nothing.
const EXACT_ROWS_MAX: usize = 2000;

/// A list of rows with scores, best first.
pub type Found = Vec<(Row, f32)>;

/// What stage one is asked.
pub struct Ask<'a> {
    pub world: &'a World,
    pub catalog: &'a Catalog,
    pub person: &'a PersonContext,
    /// The words and their vector.
    pub query: Option<(&'a str, Option<&'a [f32]>)>,
    /// Items to start from; the person's recent ones when it is not about given items.
    pub anchors: &'a [Recent],
    /// Which rows may appear.
    pub keep: &'a dyn Fn(Row) -> bool,
    /// Eligible rows when a filter leaves few, so that they are scanned.
    pub few: Option<&'a [Row]>,
    pub now: UnixMillis,
    /// Candidates of each source.
    pub source_count: usize,
    /// Candidates after fusion.
    pub candidate_count: usize,
}

/// What stage one gives, best first.
#[derive(Default)]
pub struct Candidates {
    pub rows: Vec<Row>,
    pub evidence: Vec<SourceEvidence>,
    /// What each source found.
    pub lists: Vec<(usize, Found)>,
    pub words_best: f32,
}

impl Candidates {
    /// Fuses the lists and gathers what the sources said of each row that is left.
    pub fn fuse(
        lists: Vec<(usize, Found)>,
        next: &AHashMap<Row, f32>,
        together: &AHashMap<Row, f32>,
        count: usize,
    ) -> Self {
        let slices: Vec<&[(Row, f32)]> = lists.iter().map(|(_, list)| &list[..]).collect();
        let weights: Vec<f32> = lists.iter().map(|(source, _)| WEIGHTS[*source]).collect();
        let mut fused = reciprocal_rank_fusion(&slices, &weights, FUSION_K);
        fused.truncate(count);
        let words: AHashMap<Row, f32> =
            lists.iter().filter(|(source, _)| *source == WORDS).flat_map(|(_, list)| list.iter().copied()).collect();
        let evidence = fused
            .iter()
            .map(|(row, score)| SourceEvidence {
                words: words.get(row).copied().unwrap_or(0.0),
                next: next.get(row).copied().unwrap_or(0.0),
                together: together.get(row).copied().unwrap_or(0.0),
                fused: *score,
            })
            .collect();
        Self {
            rows: fused.into_iter().map(|(row, _)| row).collect(),
            evidence,
            words_best: words.values().copied().fold(0.0, f32::max),
            lists,
        }
    }
}

/// Candidates for a person: what they may want next.
pub fn for_person(ask: &Ask) -> Candidates {
    let next = spread(ask, &ask.world.next);
    let together = spread(ask, &ask.world.together);
    let mut lists = Vec::with_capacity(SOURCES.len());
    if let Some(vector) = &ask.person.vector {
        lists.push((PERSON_VECTOR, near(ask, vector, Space::Person)));
    }
    lists.push((NEXT, best_of(&next, ask.source_count)));
    lists.push((TOGETHER, best_of(&together, ask.source_count / 2)));
    lists.push((HISTORY, history(ask)));
    lists.push((POPULAR, popular(ask)));
    Candidates::fuse(lists, &next, &together, ask.candidate_count)
}

/// Candidates that answer a query. The second value is true when not all words could be matched.
pub fn for_query(ask: &Ask) -> Result<(Candidates, bool), LexicalError> {
    let (query, vector) = ask.query.unwrap_or_default();
    let mut words = ask.world.lexical.search(query, Match::All, ask.source_count, ask.keep)?;
    let relaxed = words.is_empty();
    if relaxed {
        words = ask.world.lexical.search(query, Match::Any, ask.source_count, ask.keep)?;
    }
    let mut lists = vec![(WORDS, words)];
    if let Some(vector) = vector {
        lists.push((QUERY_VECTOR, near(ask, vector, Space::Query)));
    }
    let (next, together) = (spread(ask, &ask.world.next), spread(ask, &ask.world.together));
    Ok((Candidates::fuse(lists, &next, &together, ask.candidate_count), relaxed))
}

/// Items like the anchors, in both spaces.
pub fn like_anchors(ask: &Ask) -> Candidates {
    let mut lists = Vec::new();
    for anchor in ask.anchors.iter().take(5) {
        let vectors = &ask.catalog.get(anchor.row).vectors;
        for (space, vector) in [(Space::Person, &vectors.person_space), (Space::Query, &vectors.query_space)] {
            let mut found = near(ask, vector, space);
            found.retain(|(row, _)| ask.anchors.iter().all(|anchor| anchor.row != *row));
            lists.push((SIMILAR, found));
        }
    }
    let (next, together) = (spread(ask, &ask.world.next), spread(ask, &ask.world.together));
    Candidates::fuse(lists, &next, &together, ask.candidate_count)
}

/// Items bought with the anchors.
pub fn with_anchors(ask: &Ask) -> Candidates {
    let next = spread(ask, &ask.world.next);
    let mut together = spread(ask, &ask.world.together);
    together.retain(|row, _| ask.anchors.iter().all(|anchor| anchor.row != *row));
    let lists = vec![(TOGETHER, best_of(&together, ask.source_count))];
    Candidates::fuse(lists, &next, &together, ask.candidate_count)
}

/// Items that the person bought.
pub fn bought_before(ask: &Ask) -> Candidates {
    Candidates::fuse(
        vec![(HISTORY, history(ask))],
        &spread(ask, &ask.world.next),
        &AHashMap::new(),
        ask.candidate_count,
    )
}

/// Items in a given order, such as trending or recently viewed ones.
pub fn in_order(source: usize, found: Found, count: usize) -> Candidates {
    Candidates::fuse(vec![(source, found)], &AHashMap::new(), &AHashMap::new(), count)
}

#[derive(Clone, Copy)]
enum Space {
    Person,
    Query,
}

fn near(ask: &Ask, vector: &[f32], space: Space) -> Found {
    let vector_of = |row: Row| {
        let vectors = &ask.catalog.get(row).vectors;
        match space {
            Space::Person => &vectors.person_space[..],
            Space::Query => &vectors.query_space[..],
        }
    };
    if let Some(few) = ask.few.filter(|rows| rows.len() <= EXACT_ROWS_MAX) {
        return exact_search(few.iter().copied(), vector_of, vector, ask.source_count);
    }
    let graph = match space {
        Space::Person => &ask.world.person_graph,
        Space::Query => &ask.world.query_graph,
    };
    let found = graph.search(vector, ask.source_count, EF_SEARCH.max(ask.source_count), ask.keep);
    match ask.few {
        // The walk met too few that match: the scan finds all.
        Some(rows) if found.len() < ask.source_count.min(rows.len()) => {
            exact_search(rows.iter().copied(), vector_of, vector, ask.source_count)
        }
        _ => found,
    }
}

/// Sums weight × neighbour weight over the anchors.
fn spread(ask: &Ask, neighbours: &Neighbours) -> AHashMap<Row, f32> {
    let mut scores = AHashMap::with_capacity(512);
    for anchor in ask.anchors {
        let (keys, weights) = neighbours.of(Row(anchor.key.0));
        for (&key, &weight) in keys.iter().zip(weights) {
            if let Some(row) = ask.catalog.row_of_key(ItemKey(key))
                && (ask.keep)(row)
            {
                *scores.entry(row).or_insert(0.0) += weight * anchor.weight;
            }
        }
    }
    scores
}

fn best_of(scores: &AHashMap<Row, f32>, count: usize) -> Found {
    let mut found: Found = scores.iter().map(|(row, score)| (*row, *score)).collect();
    found.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    found.truncate(count);
    found
}

/// What the person bought: often and lately first.
fn history(ask: &Ask) -> Found {
    let mut found: Found = ask
        .person
        .items()
        .filter(|(_, stats)| stats.bought_count > 0)
        .filter_map(|(key, stats)| {
            let row = ask.catalog.row_of_key(key).filter(|row| (ask.keep)(*row))?;
            Some((row, stats.bought_count as f32 / (1.0 + stats.days_since(stats.bought_at, ask.now).max(0.0))))
        })
        .collect();
    found.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    found.truncate(ask.source_count);
    found
}

/// What many people buy.
pub fn popular(ask: &Ask) -> Found {
    let rows =
        |(key, score): &(ItemKey, f32)| Some((ask.catalog.row_of_key(*key).filter(|row| (ask.keep)(*row))?, *score));
    ask.world.popular(ask.now).iter().filter_map(rows).take(ask.source_count / 2).collect()
}

/// The recent items that speak most for a row, by a neighbour table or by likeness.
pub fn evidence_for(person: &[Recent], catalog: &Catalog, table: Option<&Neighbours>, row: Row) -> Vec<ItemKey> {
    let target = catalog.get(row);
    let mut scored: Vec<(ItemKey, f32)> = person
        .iter()
        .filter(|recent| recent.row != row)
        .map(|recent| {
            let weight = match table {
                Some(table) => {
                    let (keys, weights) = table.of(Row(recent.key.0));
                    keys.iter().position(|key| *key == target.key.0).map_or(0.0, |index| weights[index])
                }
                None => dot(&catalog.get(recent.row).vectors.person_space, &target.vectors.person_space),
            };
            (recent.key, weight * recent.weight)
        })
        .filter(|(_, score)| *score > 0.0)
        .collect();
    scored.sort_unstable_by(|a, b| b.1.total_cmp(&a.1));
    scored.truncate(2);
    scored.into_iter().map(|(key, _)| key).collect()
}
