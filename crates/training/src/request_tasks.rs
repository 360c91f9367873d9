//! Evaluates each type of request through the serving pipeline against baselines of counts.
use super::{
    Progress,
    baselines::{Case, Decay, ItemWeights, Sales, Shop, StateUntil, decayed, validation_begins, validation_cases},
    comparison::{Comparison, Scored, Settings, Task},
    counts::transitions,
    error::TrainError,
    evaluate::{CUTOFF, EvaluateOptions, NDCG, list_metrics},
    replay::{Interaction, Session, ViewerContexts, baskets, is_one_visit, sampled},
};
use ahash::{AHashMap, AHashSet};
use lodestone_catalog::Item;
use lodestone_core::{
    ids::{ItemId, Row, UserId},
    units::UnixMillis,
    viewer::ViewerContext,
};
use lodestone_dataset as dataset;
use lodestone_index::Neighbours;
use lodestone_pipeline::{
    Generation, Models, Options, Page, RecommendKind, RecommendRequest, SearchRequest, Viewer,
    bundle::Bundle,
    ranking::{Device, Runtime},
    run::{AnswerLogging, PlannedRequest, RankingRequest, run},
    serving::Plan,
    slate::{CurrentItems, PageStart},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::index};
use std::{fmt, ops::Range, path::Path};

/// Most requests of a task.
const REQUESTS_MAX: usize = 1000;
/// Fewest pairs of views from which on the items viewed next are the targets of SIMILAR. With fewer, the items of the
/// next basket are.
pub(super) const VIEW_PAIRS_MIN: usize = 50;
/// Rows of the lexical search, as many as a source of the pipeline returns.
const LEXICAL_ROWS: usize = 150;

const TASKS: [Task; 4] = [Task::BoughtTogether, Task::Similar, Task::BuyAgain, Task::Search];

/// A request, and what the user chose after it.
#[derive(Debug, Clone)]
struct EvaluatedRequest {
    case: Case,
    anchor: Option<u32>,
    query: String,
}

impl EvaluatedRequest {
    fn with_anchor(user: Option<&UserId>, at: UnixMillis, anchor: u32, others: impl Iterator<Item = u32>) -> Self {
        let guest = || UserId::visitor("evaluation").expect("a valid constant");
        let case = Case { user: user.cloned().unwrap_or_else(guest), at, targets: others.map(Row).collect() };
        Self { case, anchor: Some(anchor), query: String::new() }
    }
}

/// The interactions of a shop from which requests and counts are made.
pub(super) struct History<'a> {
    shop: &'a Shop<'a>,
    /// Purchases, or other interactions if there are none.
    interactions: &'a [Interaction],
    views: &'a [Interaction],
    has_views: bool,
    trained_until: UnixMillis,
}

impl<'a> History<'a> {
    pub(super) fn new(
        shop: &'a Shop<'a>,
        interactions: &'a [Interaction],
        views: &'a [Interaction],
        trained_until: UnixMillis,
    ) -> Self {
        let pairs = view_pairs(views, &(trained_until..UnixMillis(i64::MAX)));
        Self { shop, interactions, views, has_views: pairs.len() >= VIEW_PAIRS_MIN, trained_until }
    }

    /// Returns the requests of each task of [`TASKS`] within a range of time. `cases` are users' next baskets in it.
    fn requests(
        &self,
        times: &Range<UnixMillis>,
        cases: &[Case],
        items: &[Item],
        seed: u64,
    ) -> [Vec<EvaluatedRequest>; 4] {
        let requests = [
            self.together(times, seed),
            self.similar(times, seed),
            cases.iter().filter_map(|case| self.buy_again(case)).collect(),
            searches(cases, items, seed),
        ];
        requests.map(|requests| sampled(requests, REQUESTS_MAX))
    }

    fn within(&self, times: &Range<UnixMillis>) -> impl Iterator<Item = &Interaction> {
        self.interactions.iter().filter(|interaction| times.contains(&interaction.at))
    }

    /// The rest of a basket from one of its items.
    fn together(&self, times: &Range<UnixMillis>, seed: u64) -> Vec<EvaluatedRequest> {
        let mut rng = StdRng::seed_from_u64(seed);
        let baskets = self.within(times).filter(|basket| basket.rows.len() > 1);
        let request = |basket: &Interaction| {
            let anchor = basket.rows[rng.random_range(0..basket.rows.len())];
            let others = basket.rows.iter().copied().filter(|row| *row != anchor);
            EvaluatedRequest::with_anchor(basket.user.as_ref(), basket.at, anchor, others)
        };
        baskets.map(request).collect()
    }

    /// The different item that the user views next in the same visit. In a shop without views, the other items of the
    /// user's next basket, from an item of this one.
    fn similar(&self, times: &Range<UnixMillis>, seed: u64) -> Vec<EvaluatedRequest> {
        if self.has_views {
            return view_pairs(self.views, times);
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let mut last: AHashMap<&UserId, &Interaction> = AHashMap::new();
        let mut requests = Vec::new();
        for basket in self.within(times) {
            let Some(user) = &basket.user else { continue };
            if let Some(before) = last.insert(user, basket) {
                let anchor = before.rows[rng.random_range(0..before.rows.len())];
                let others = basket.rows.iter().copied().filter(|row| *row != anchor);
                requests.push(EvaluatedRequest::with_anchor(Some(user), before.at, anchor, others));
            }
        }
        requests.retain(|request| !request.case.targets.is_empty());
        requests
    }

    /// The own items in the next basket.
    fn buy_again(&self, case: &Case) -> Option<EvaluatedRequest> {
        let own: AHashSet<Row> =
            self.shop.bought_before(&case.user, case.at).iter().map(|bought| Row(bought.row)).collect();
        let targets: AHashSet<Row> = case.targets.intersection(&own).copied().collect();
        let case = Case { targets, ..case.clone() };
        (!case.targets.is_empty()).then(|| EvaluatedRequest { case, anchor: None, query: String::new() })
    }
}

/// A view, and the different item that the user views next within the same visit.
fn view_pairs(views: &[Interaction], times: &Range<UnixMillis>) -> Vec<EvaluatedRequest> {
    let mut last: AHashMap<&UserId, ((Session, UnixMillis), u32)> = AHashMap::new();
    let mut requests = Vec::new();
    for view in views.iter().filter(|view| times.contains(&view.at)) {
        let (Some(user), Some(&row)) = (&view.user, view.rows.first()) else { continue };
        let here = (view.session, view.at);
        let before = last.insert(user, (here, row));
        if let Some((last, anchor)) = before.filter(|(last, anchor)| is_one_visit(*last, here) && *anchor != row) {
            requests.push(EvaluatedRequest::with_anchor(Some(user), last.1, anchor, [row].into_iter()));
        }
    }
    requests
}

/// Two or three words of the title of an item of the basket; the target is this item.
fn searches(cases: &[Case], items: &[Item], seed: u64) -> Vec<EvaluatedRequest> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut requests = Vec::new();
    for case in cases {
        let mut targets: Vec<Row> = case.targets.iter().copied().collect();
        targets.sort_unstable();
        if targets.is_empty() {
            continue;
        }
        let target = targets[rng.random_range(0..targets.len())];
        let title = &items[target.index()].title;
        let words: Vec<&str> = title.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).collect();
        if words.len() < 2 {
            continue;
        }
        let length = rng.random_range(2..=words.len().min(3));
        let mut chosen = index::sample(&mut rng, words.len(), length).into_vec();
        chosen.sort_unstable();
        let query = chosen.into_iter().map(|index| words[index]).collect::<Vec<_>>().join(" ");
        let case = Case { targets: [target].into(), ..case.clone() };
        requests.push(EvaluatedRequest { case, anchor: None, query });
    }
    requests
}

/// An order by counts, with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
enum CountBaseline {
    /// Items in the same baskets, each basket with the weight 1 / (size - 1).
    CoOccurrence,
    /// Items in the same visits, with the same weight.
    CoViews,
    /// Items viewed after the anchor.
    NextViews,
    /// Cosine of the items' users.
    ItemKnn,
    Popularity {
        days: f32,
    },
    /// Own items by decayed purchases.
    Own {
        half_life_days: f32,
    },
    /// Own items by decayed purchases plus the weighted logarithm of the sales of all users.
    OwnPopularity {
        half_life_days: f32,
        weight: f32,
        days: f32,
    },
    /// Own items, the last purchase first.
    OwnLast,
    /// The lexical order. With a weight, that times the logarithm of the purchases is added to the score.
    Lexical,
    LexicalOwn {
        weight: f32,
    },
    LexicalPopularity {
        weight: f32,
        days: f32,
    },
}

impl fmt::Display for CountBaseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CoOccurrence | Self::CoViews => f.write_str("weight 1 / (size - 1)"),
            Self::NextViews => f.write_str("transitions"),
            Self::ItemKnn => f.write_str("cosine"),
            Self::Popularity { days } => write!(f, "{days} days"),
            Self::Own { half_life_days } => write!(f, "{}", Decay(*half_life_days)),
            Self::OwnPopularity { half_life_days, weight, days } => {
                write!(f, "{}, weight {weight}, {days} days", Decay(*half_life_days))
            }
            Self::OwnLast => f.write_str("the latest first"),
            Self::Lexical => f.write_str("the lexical order"),
            Self::LexicalOwn { weight } => write!(f, "weight {weight}"),
            Self::LexicalPopularity { weight, days } => write!(f, "weight {weight}, {days} days"),
        }
    }
}

const NEVER: f32 = f32::INFINITY;
const WINDOWS: [f32; 3] = [7.0, 14.0, 60.0];
/// Weights of the logarithm of purchases, relative to the best lexical score or to a purchase of the user.
const PURCHASE_WEIGHTS: [f32; 5] = [0.02, 0.1, 0.3, 1.0, 3.0];

/// Returns the baselines of a task, each with its possible settings.
fn families(task: Task, has_views: bool) -> Vec<(&'static str, Vec<CountBaseline>)> {
    let popularity = || ("popularity", WINDOWS.map(|days| CountBaseline::Popularity { days }).to_vec());
    let own = |half_lives: &[f32]| half_lives.iter().map(|days| CountBaseline::Own { half_life_days: *days }).collect();
    let own_with_popularity = || {
        let mut orders = Vec::new();
        for half_life_days in [30.0, 90.0, 180.0] {
            for weight in PURCHASE_WEIGHTS {
                orders.extend(WINDOWS.map(|days| CountBaseline::OwnPopularity { half_life_days, weight, days }));
            }
        }
        orders
    };
    match task {
        Task::BoughtTogether => {
            vec![
                popularity(),
                ("ItemKNN", vec![CountBaseline::ItemKnn]),
                ("co-occurrence", vec![CountBaseline::CoOccurrence]),
            ]
        }
        Task::Similar if has_views => vec![
            ("ItemKNN", vec![CountBaseline::ItemKnn]),
            ("co-views", vec![CountBaseline::CoViews]),
            ("next views", vec![CountBaseline::NextViews]),
        ],
        Task::Similar => {
            vec![("ItemKNN", vec![CountBaseline::ItemKnn]), ("co-occurrence", vec![CountBaseline::CoOccurrence])]
        }
        Task::BuyAgain => vec![
            ("frequency", own(&[NEVER])),
            ("last purchase", vec![CountBaseline::OwnLast]),
            ("own purchases", own(&[14.0, 30.0, 90.0, 180.0])),
            ("own + popularity", own_with_popularity()),
        ],
        Task::Search => {
            let with_popularity = |weight| WINDOWS.map(|days| CountBaseline::LexicalPopularity { weight, days });
            vec![
                ("lexical", vec![CountBaseline::Lexical]),
                ("lexical + own", PURCHASE_WEIGHTS.map(|weight| CountBaseline::LexicalOwn { weight }).to_vec()),
                ("lexical + popularity", PURCHASE_WEIGHTS.into_iter().flat_map(with_popularity).collect()),
            ]
        }
        Task::All | Task::Repeat | Task::Discovery => Vec::new(),
    }
}

/// Items of a basket that are counted, because the number of pairs grows quadratically.
const COUNTED_ITEMS_MAX: usize = 200;

/// Counts of what happened before a time.
struct Counts {
    together: Neighbours,
    viewed_together: Neighbours,
    next_views: Neighbours,
    cosines: ItemWeights,
}

impl Counts {
    fn new(history: &History, until: UnixMillis) -> Self {
        let item_count = history.shop.item_count;
        let interactions = before(history.interactions, until);
        let views = before(history.views, until);
        Self {
            together: co_occurrence(interactions, item_count),
            viewed_together: co_occurrence(&baskets(views), item_count),
            next_views: transitions(views, item_count),
            cosines: ItemWeights::counts(history.shop, until).cosines(),
        }
    }
}

fn before(interactions: &[Interaction], until: UnixMillis) -> &[Interaction] {
    &interactions[..interactions.partition_point(|interaction| interaction.at < until)]
}

/// Counts the pairs of items in a basket, with the weight 1 / (size - 1), so that each basket adds 1 to an item.
fn co_occurrence(baskets: &[Interaction], item_count: usize) -> Neighbours {
    let pairs = baskets.iter().flat_map(|basket| {
        let rows = &basket.rows[..basket.rows.len().min(COUNTED_ITEMS_MAX)];
        let weight = 1.0 / (rows.len() as f32 - 1.0);
        rows.iter().flat_map(move |from| rows.iter().map(move |to| (Row(*from), Row(*to), weight)))
    });
    // More than a list shows are not read.
    Neighbours::from_counts(item_count, pairs, CUTOFF)
}

/// Computes the orders by counts for requests at advancing times.
struct CountBaselines<'a> {
    history: &'a History<'a>,
    counts: &'a Counts,
    generation: &'a Generation,
    sales: Vec<(f32, Sales)>,
}

impl<'a> CountBaselines<'a> {
    fn new(history: &'a History<'a>, counts: &'a Counts, generation: &'a Generation) -> Self {
        let sales = WINDOWS.map(|days| (days, Sales::new(history.shop.item_count, days)));
        Self { history, counts, generation, sales: sales.to_vec() }
    }

    /// Returns NDCG@10 of each order.
    fn ndcg(&mut self, orders: &[CountBaseline], request: &EvaluatedRequest) -> Vec<f64> {
        self.sales.iter_mut().for_each(|(_, sales)| sales.advance(self.history.shop, request.case.at));
        let matches = lexical_matches(self.generation, &request.query);
        let score =
            |order: &CountBaseline| list_metrics(&self.list(*order, request, &matches), &request.case.targets)[NDCG];
        orders.iter().map(score).collect()
    }

    fn sales(&self, days: f32) -> &[f32] {
        self.sales.iter().find(|(of, _)| *of == days).map_or(&[], |(_, sales)| sales.counts())
    }

    fn list(&self, order: CountBaseline, request: &EvaluatedRequest, matches: &LexicalMatches) -> Vec<Row> {
        let Case { user, at, .. } = &request.case;
        let own = |half_life_days| {
            let mut scores: AHashMap<u32, f32> = AHashMap::new();
            for bought in self.history.shop.bought_before(user, *at) {
                *scores.entry(bought.row).or_default() += decayed(bought.at, *at, half_life_days);
            }
            scores
        };
        let neighbours = |table: &Neighbours| match request.anchor {
            Some(anchor) => table.of(Row(anchor)).0.iter().take(CUTOFF).map(|row| Row(*row)).collect(),
            None => Vec::new(),
        };
        let best = |scores: &[f32]| {
            let scored = scores.iter().enumerate().map(|(row, score)| (row as u32, *score));
            first_rows(scored.filter(|(row, _)| Some(*row) != request.anchor))
        };
        match order {
            CountBaseline::CoOccurrence => neighbours(&self.counts.together),
            CountBaseline::CoViews => neighbours(&self.counts.viewed_together),
            CountBaseline::NextViews => neighbours(&self.counts.next_views),
            CountBaseline::ItemKnn => {
                request.anchor.map_or_else(Vec::new, |anchor| best(&self.counts.cosines.of_item(anchor)))
            }
            CountBaseline::Popularity { days } => best(self.sales(days)),
            CountBaseline::Own { half_life_days } => first_rows(own(half_life_days).into_iter()),
            CountBaseline::OwnPopularity { half_life_days, weight, days } => {
                let sales = self.sales(days);
                let own = own(half_life_days).into_iter();
                first_rows(own.map(|(row, score)| (row, score + weight * sales[row as usize].ln_1p())))
            }
            CountBaseline::OwnLast => {
                let mut rows: Vec<Row> = Vec::new();
                for bought in self.history.shop.bought_before(user, *at).iter().rev() {
                    if rows.len() < CUTOFF && !rows.contains(&Row(bought.row)) {
                        rows.push(Row(bought.row));
                    }
                }
                rows
            }
            CountBaseline::Lexical => matches.best_by(|_| 0.0),
            CountBaseline::LexicalOwn { weight } => {
                let own = own(NEVER);
                matches.best_by(|row| weight * own.get(&row.0).copied().unwrap_or(0.0).ln_1p())
            }
            CountBaseline::LexicalPopularity { weight, days } => {
                let sales = self.sales(days);
                matches.best_by(|row| weight * sales[row.index()].ln_1p())
            }
        }
    }
}

/// Returns the first [`CUTOFF`] rows with a score above 0.
fn first_rows(scored: impl Iterator<Item = (u32, f32)>) -> Vec<Row> {
    let mut scored: Vec<(u32, f32)> = scored.filter(|(_, score)| *score > 0.0).collect();
    scored.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    scored.into_iter().take(CUTOFF).map(|(row, _)| Row(row)).collect()
}

/// The rows of a lexical search: those with every word come first. Scores are relative to the best one.
struct LexicalMatches {
    /// Whether the row has every word, and its score.
    rows: Vec<(Row, bool, f32)>,
}

fn lexical_matches(generation: &Generation, query: &str) -> LexicalMatches {
    let found = generation.lexical.search_all_then_any(query, LEXICAL_ROWS, &|_| true).unwrap_or_default();
    let best = found.rows.iter().map(|(_, score)| *score).fold(f32::MIN_POSITIVE, f32::max);
    let rows = found.rows.iter().enumerate();
    LexicalMatches { rows: rows.map(|(index, (row, score))| (*row, index < found.complete, score / best)).collect() }
}

impl LexicalMatches {
    /// Returns the first rows by the sum of the score and `added`, those with every word before the others.
    fn best_by(&self, added: impl Fn(Row) -> f32) -> Vec<Row> {
        let mut rows: Vec<(Row, bool, f32)> =
            self.rows.iter().map(|(row, is_complete, score)| (*row, *is_complete, score + added(*row))).collect();
        rows.sort_by(|a, b| b.1.cmp(&a.1).then(b.2.total_cmp(&a.2)));
        rows.into_iter().take(CUTOFF).map(|(row, ..)| row).collect()
    }
}

/// Compares the answers to requests of each task after the training with the baselines. `cases` are the users' next
/// baskets, with the state up to each request.
pub(super) fn compare_requests(
    data: &Path,
    bundle: &Path,
    runtime: &Runtime,
    history: &History,
    cases: &[Case],
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Comparison>, TrainError> {
    let bundle = Bundle::open(bundle)?;
    let mut models = Models::open(runtime, &bundle, Device::Cpu)?;
    let items = bundle.items.clone();
    let generation = Generation::standalone(bundle, 1024)?;
    let until = history.trained_until;
    let requests = history.requests(&(until..UnixMillis(i64::MAX)), cases, &items, options.seed);
    let answers = served(data, &generation, &mut models, &items, &requests, progress)?;
    let begins = validation_begins(history.shop, until);
    let validation = validation_cases(history.shop, begins, until, StateUntil::Request);
    let validation = history.requests(&(begins..until), &validation, &items, options.seed);
    let (early, late) = (Counts::new(history, begins), Counts::new(history, until));
    let mut comparisons = Vec::new();
    for (index, task) in TASKS.into_iter().enumerate() {
        let families = families(task, history.has_views);
        let orders: Vec<CountBaseline> = families.iter().flat_map(|(_, orders)| orders.clone()).collect();
        let ndcg = |counts: &Counts, requests: &[EvaluatedRequest]| -> Vec<Vec<f64>> {
            let mut state = CountBaselines::new(history, counts, &generation);
            in_time_order(requests, |request| state.ndcg(&orders, request))
        };
        let chosen = best_orders(&families, &ndcg(&early, &validation[index]));
        let late = ndcg(&late, &requests[index]);
        let scored = Scored {
            served: answers[index].clone(),
            baselines: chosen.iter().map(|order| late.iter().map(|scores| scores[*order]).collect()).collect(),
        };
        let settings = families
            .iter()
            .zip(&chosen)
            .map(|((name, _), order)| Settings { name, settings: orders[*order].to_string() });
        let settings: Vec<Settings> = settings.collect();
        comparisons.extend(Comparison::new(StateUntil::Request, task, &scored, &settings, Vec::new(), options));
    }
    Ok(comparisons)
}

/// Returns for each family the index of the order with the greatest mean, the first of equals.
fn best_orders(families: &[(&'static str, Vec<CountBaseline>)], scores: &[Vec<f64>]) -> Vec<usize> {
    let mean = |order: &usize| scores.iter().map(|scores| scores[*order]).sum::<f64>();
    let mut first = 0;
    let best = families.iter().map(|(_, orders)| {
        let of_family = first..first + orders.len();
        first = of_family.end;
        of_family.clone().rev().max_by(|a, b| mean(a).total_cmp(&mean(b))).unwrap_or(of_family.start)
    });
    best.collect()
}

/// Computes a value of each request in the order of their times. Returns the values in the order of the requests.
fn in_time_order<T>(requests: &[EvaluatedRequest], mut value: impl FnMut(&EvaluatedRequest) -> T) -> Vec<T> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|index| requests[*index].case.at);
    let mut values: Vec<(usize, T)> = order.into_iter().map(|index| (index, value(&requests[index]))).collect();
    values.sort_by_key(|(index, _)| *index);
    values.into_iter().map(|(_, value)| value).collect()
}

/// Answers the requests of each task through the serving pipeline, with the state up to each. Returns NDCG@10.
fn served(
    data: &Path,
    generation: &Generation,
    models: &mut Models,
    items: &[Item],
    requests: &[Vec<EvaluatedRequest>; 4],
    progress: &mut dyn FnMut(Progress),
) -> Result<[Vec<f64>; 4], TrainError> {
    let events = dataset::into_events(dataset::join_orders(dataset::read_history(data)?));
    let contexts = ViewerContexts::of(&events);
    let mut order: Vec<(usize, usize)> = Vec::new();
    for (task, requests) in requests.iter().enumerate() {
        order.extend((0..requests.len()).map(|index| (task, index)));
    }
    order.sort_by_key(|(task, index)| requests[*task][*index].case.at);
    let mut scores: [Vec<f64>; 4] = std::array::from_fn(|task| vec![0.0; requests[task].len()]);
    let mut applied = 0;
    for (done, (task, index)) in order.iter().enumerate() {
        let request = &requests[*task][*index];
        let next = applied + events[applied..].partition_point(|event| event.at < request.case.at);
        events[applied..next].iter().for_each(|event| generation.state.apply_event(0, event));
        applied = next;
        generation.state.publish_popularity(request.case.at);
        let context = contexts.at(&request.case.user, request.case.at);
        let list = answer(generation, models, items, TASKS[*task], request, context);
        scores[*task][*index] = list_metrics(&list, &request.case.targets)[NDCG];
        if done % 64 == 0 {
            progress(Progress { stage: "requests", done, total: order.len(), loss: f32::NAN });
        }
    }
    Ok(scores)
}

/// Returns the first page of the answer to a request.
fn answer(
    generation: &Generation,
    models: &mut Models,
    items: &[Item],
    task: Task,
    request: &EvaluatedRequest,
    context: ViewerContext,
) -> Vec<Row> {
    let viewer = Viewer { context, ..Viewer::of_user(request.case.user.clone()) };
    let page = Page { size: CUTOFF, token: String::new(), number: 1, fingerprint: 0 };
    let recommend = |kind| {
        RankingRequest::Recommend(RecommendRequest {
            viewer: viewer.clone(),
            kind,
            page: page.clone(),
            filter: None,
            anchors: request.anchor.iter().map(|row| items[*row as usize].id.clone()).collect(),
            facets: Vec::new(),
            options: Options::default(),
            message: Vec::new(),
        })
    };
    let ranking = match task {
        Task::BoughtTogether => recommend(RecommendKind::BoughtTogether),
        Task::Similar => recommend(RecommendKind::Similar),
        Task::BuyAgain => recommend(RecommendKind::BuyAgain),
        Task::Search => RankingRequest::Search(SearchRequest {
            viewer: viewer.clone(),
            query: request.query.clone(),
            page,
            filter: None,
            facets: Vec::new(),
            dynamic_facet_count: 0,
            options: Options::default(),
            fallback: None,
            message: Vec::new(),
        }),
        Task::All | Task::Repeat | Task::Discovery => recommend(RecommendKind::ForYou),
    };
    let planned =
        PlannedRequest { request: ranking, answer_id: [0; 16], plan: Plan::default(), logging: AnswerLogging::Skipped };
    let answer = run(generation, models, &[planned], request.case.at).remove(0);
    let now = CurrentItems { generation, catalog: &answer.catalog };
    let page = answer.slate.page(generation, now, &PageStart::default(), CUTOFF);
    let row = |id: &ItemId| generation.state.keys.get(id).map(|key| Row(key.0));
    page.results.iter().filter_map(|result| row(&result.id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lodestone_events::EventKind;

    fn user(name: &str) -> UserId {
        UserId::signed_in(name).unwrap()
    }

    fn interaction(name: &str, minute: i64, kind: EventKind, rows: &[u32]) -> Interaction {
        let user = (!name.is_empty()).then(|| user(name));
        Interaction { user, session: Session::UNKNOWN, at: UnixMillis(minute * 60_000), kind, rows: rows.to_vec() }
    }

    fn purchase(name: &str, minute: i64, rows: &[u32]) -> Interaction {
        interaction(name, minute, EventKind::Purchase, rows)
    }

    fn rows(request: &EvaluatedRequest) -> Vec<u32> {
        let mut rows: Vec<u32> = request.case.targets.iter().map(|row| row.0).collect();
        rows.sort_unstable();
        rows
    }

    fn with_history(interactions: &[Interaction], views: &[Interaction], check: impl Fn(&History)) {
        let shop = Shop::new(interactions, vec![None; 5]);
        check(&History::new(&shop, interactions, views, UnixMillis(0)));
    }

    #[test]
    fn each_basket_adds_one_to_an_item() {
        let baskets = [purchase("a", 0, &[0, 1, 2]), purchase("b", 1, &[0, 1]), purchase("c", 2, &[3])];
        let table = co_occurrence(&baskets, 4);
        assert_eq!(table.of(Row(0)), (&[1, 2][..], &[1.5, 0.5][..]));
        assert!(table.of(Row(3)).0.is_empty());
    }

    #[test]
    fn together_asks_for_the_rest_of_the_basket_of_guests_too() {
        let interactions = [purchase("", 5, &[0, 1, 2]), purchase("a", 6, &[3]), purchase("a", 99, &[3, 4])];
        with_history(&interactions, &[], |history| {
            let requests = history.together(&(UnixMillis(0)..UnixMillis(50 * 60_000)), 1);
            assert_eq!(requests.len(), 1);
            let mut whole = rows(&requests[0]);
            whole.extend(requests[0].anchor);
            whole.sort_unstable();
            assert_eq!(whole, [0, 1, 2]);
        });
    }

    #[test]
    fn similar_asks_for_the_next_basket_without_views() {
        let interactions = [
            purchase("a", 0, &[0]),
            purchase("b", 1, &[0]),
            purchase("a", 2, &[0, 1]),
            purchase("b", 3, &[0]),
            purchase("a", 4, &[2]),
        ];
        with_history(&interactions, &[], |history| {
            let requests = history.similar(&(UnixMillis(0)..UnixMillis(i64::MAX)), 1);
            let found: Vec<(Option<u32>, Vec<u32>)> =
                requests.iter().map(|request| (request.anchor, rows(request))).collect();
            assert_eq!(found.len(), 2, "a basket with the anchor alone is no target: {found:?}");
            assert_eq!(found[0], (Some(0), vec![1]));
            assert_eq!(found[1].1, [2]);
        });
    }

    #[test]
    fn similar_asks_for_the_item_viewed_next_in_the_same_visit() {
        let view = |name, minute, row| interaction(name, minute, EventKind::View, &[row]);
        let views = [view("a", 0, 0), view("b", 1, 4), view("a", 5, 0), view("a", 10, 1), view("a", 90, 2)];
        let pairs = view_pairs(&views, &(UnixMillis(0)..UnixMillis(i64::MAX)));
        assert_eq!(pairs.len(), 1);
        assert_eq!((pairs[0].anchor, rows(&pairs[0]), pairs[0].case.at), (Some(0), vec![1], views[2].at));
    }

    #[test]
    fn buy_again_asks_for_own_items() {
        let interactions = [purchase("a", 0, &[0, 1])];
        let case = |targets: &[u32]| Case {
            user: user("a"),
            at: UnixMillis(60_000),
            targets: targets.iter().map(|row| Row(*row)).collect(),
        };
        with_history(&interactions, &[], |history| {
            assert_eq!(rows(&history.buy_again(&case(&[1, 2])).unwrap()), [1]);
            assert!(history.buy_again(&case(&[2])).is_none());
        });
    }

    #[test]
    fn queries_have_two_or_three_words_of_the_title_in_order() {
        let item = |title: &str| Item::titled(ItemId::parse(title).unwrap(), title);
        let items = [item("one two three four"), item("alone"), item("left & right")];
        let case = |targets: &[u32]| Case {
            user: user("a"),
            at: UnixMillis(0),
            targets: targets.iter().map(|row| Row(*row)).collect(),
        };
        let cases: Vec<Case> = (0..50).map(|_| case(&[0])).chain([case(&[1]), case(&[2]), case(&[])]).collect();
        let requests = searches(&cases, &items, 1);
        assert_eq!(requests.len(), 51, "a title of one word is no query");
        for request in &requests[..50] {
            let words: Vec<&str> = request.query.split(' ').collect();
            let places: Vec<usize> =
                words.iter().map(|word| items[0].title.find(word).expect("a word of the title")).collect();
            assert!((2..=3).contains(&words.len()) && places.is_sorted(), "{words:?}");
        }
        assert_eq!(requests[50].query, "left right");
        assert!(requests[..50].iter().any(|request| request.query != requests[0].query));
        let again = searches(&cases, &items, 1);
        assert!(again.iter().zip(&requests).all(|(a, b)| a.query == b.query), "the seed determines them");
    }

    #[test]
    fn the_best_settings_of_each_family_are_chosen() {
        let families = [
            ("popularity", vec![CountBaseline::Popularity { days: 7.0 }, CountBaseline::Popularity { days: 14.0 }]),
            ("frequency", vec![CountBaseline::Own { half_life_days: NEVER }]),
        ];
        assert_eq!(best_orders(&families, &[vec![0.1, 0.5, 0.0], vec![0.2, 0.0, 0.0]]), [1, 2]);
        assert_eq!(best_orders(&families, &[]), [0, 2], "the first without a case");
    }

    #[test]
    fn added_purchases_change_the_order_within_the_rows_with_every_word() {
        let matches = LexicalMatches { rows: vec![(Row(0), true, 1.0), (Row(1), true, 0.8), (Row(2), false, 0.7)] };
        let added = |row: Row| row.0 as f32;
        assert_eq!(matches.best_by(|_| 0.0), [0, 1, 2].map(Row));
        assert_eq!(matches.best_by(|row| 0.1 * added(row)), [0, 1, 2].map(Row));
        assert_eq!(matches.best_by(added), [1, 0, 2].map(Row));
    }
}
