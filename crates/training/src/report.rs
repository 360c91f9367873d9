//! The HTML report of an evaluation: training losses, quality by group, ablations, calibration and popularity bias.
use super::{
    Progress,
    baselines::StateUntil,
    comparison::{Cases, Comparison, comparisons},
    error::TrainError,
    evaluate::{
        CUTOFF, EvaluateOptions, Evaluation, METHODS, NDCG, RANKED, UserLists, evaluation, list_metrics, replay_targets,
    },
    lists::{HEADS, Outcomes},
    losses::LossCurves,
    options::Outcome,
    relevance,
    replay::remove_refunded,
};
use ahash::{AHashMap, AHashSet};
use lodestone_core::{
    ids::{ItemId, Row},
    statistics::{MeanInterval, bootstrap_mean, resamples},
    units::UnixMillis,
};
use lodestone_dataset as dataset;
use lodestone_events::EventKind;
use lodestone_experiments::plots::{self, Bar, BarGroup, Line, PAGE_STYLE, escape, section, wide};
use lodestone_pipeline::{
    Models, bundle::Bundle, features::FEATURES, fusion::NOT_FOUND, ranking::Runtime, source::CandidateSource,
};
use rand::{
    SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};
use std::{fmt::Write, path::Path};

/// Bins of a calibration plot.
const CALIBRATION_BINS: usize = 10;
/// Groups of items: the fewest purchases in the training data, and the name.
const ITEM_GROUPS: [(u32, &str); 5] =
    [(0, "never bought (cold)"), (1, "1 to 9 purchases"), (10, "10 to 49"), (50, "50 to 199"), (200, "200 and more")];
/// Groups of users: the fewest events in the history, and the name.
const USER_GROUPS: [(usize, &str); 4] = [(1, "1 to 5 events"), (6, "6 to 20"), (21, "21 to 50"), (51, "51 and more")];

/// What the vectors of the user encoder contribute: the candidates that only their search returned, and the feature,
/// whose values are shuffled among the candidates.
const LEARNED_PARTS: [&str; 3] = ["source user_vector", "feature user_similarity", "both"];

/// Values that the report needs in addition to the evaluation.
#[derive(Default)]
struct Observations {
    /// By user: the user's group, and the NDCG of each method.
    activity: Vec<(usize, [f64; 3])>,
    /// By target: the item's group, and whether each method's list contains it.
    targets: Vec<(usize, [bool; 3])>,
    /// By source and user: the loss of NDCG of the ranked list without the candidates that only this source returned.
    sources: Vec<Vec<f64>>,
    /// By part of [`LEARNED_PARTS`] and user with a target that is new to the user: the loss of NDCG, among items that
    /// are new to the user, without this part.
    learned: [Vec<f64>; LEARNED_PARTS.len()],
    /// By feature and user: the loss of NDCG when the feature's values are shuffled among the user's candidates. If all
    /// of them have the same value, as of a feature of the request, they get that of another user.
    features: Vec<Vec<f64>>,
    /// By feature: the values that were the same for all candidates of a user.
    shared_values: Vec<Vec<f32>>,
    /// By head: predicted probabilities and outcomes.
    calibration: Vec<Vec<(f32, bool)>>,
    /// By group of items: slots in the lists of each method, and targets.
    slots: [[u64; 4]; ITEM_GROUPS.len()],
}

/// Evaluates a bundle as `evaluate` does. Returns the evaluation and one self-contained HTML page.
pub fn report(
    data: &Path,
    bundle: &Path,
    runtime: &Runtime,
    options: &EvaluateOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Evaluation, String), TrainError> {
    let opened = Bundle::open(bundle)?;
    let trained_until = UnixMillis(opened.manifest.trained_until_ms);
    let events = dataset::into_events(dataset::join_orders(dataset::read_history(data)?));
    let mut kept = events.clone();
    remove_refunded(&mut kept);
    let mut purchases: AHashMap<ItemId, u32> = AHashMap::new();
    for event in kept.iter().filter(|event| event.kind == EventKind::Purchase && event.at < trained_until) {
        event.lines.iter().for_each(|line| *purchases.entry(line.item.clone()).or_default() += 1);
    }
    let group_of: Vec<usize> =
        opened.items.iter().map(|item| item_group(purchases.get(&item.id).copied().unwrap_or(0))).collect();
    let ends = events.last().map_or(trained_until, |event| UnixMillis(event.at.0 + 1));
    let outcomes = Outcomes::new(&events, &opened.items, ends, Outcome::Day);
    let mut observations = Observations {
        sources: vec![Vec::new(); CandidateSource::COUNT],
        features: vec![Vec::new(); opened.manifest.features.column_count()],
        shared_values: vec![Vec::new(); opened.manifest.features.column_count()],
        calibration: vec![Vec::new(); opened.manifest.heads.len()],
        ..Observations::default()
    };
    let mut rng = StdRng::seed_from_u64(options.seed);
    let mut cases = Cases::default();
    let since = UnixMillis(i64::MIN);
    let observe = &mut |lists: &UserLists, models: &mut Models| {
        cases.add(lists);
        observe(&mut observations, lists, models, &group_of, &outcomes, &mut rng);
    };
    let scores = replay_targets(data, bundle, since, None, StateUntil::Request, runtime, progress, observe)?;
    let comparisons = comparisons(data, bundle, runtime, cases, options, progress)?;
    let relevance = relevance::of_bundle(bundle, runtime, progress)?;
    let evaluation = evaluation(&scores, relevance, comparisons, options);
    let curves = opened.training.as_deref().and_then(|text| serde_json::from_slice::<LossCurves>(text).ok());
    let page = page(&opened, &evaluation, &observations, &curves.unwrap_or_default(), options);
    Ok((evaluation, page))
}

fn item_group(purchases: u32) -> usize {
    ITEM_GROUPS.iter().rposition(|(from, _)| purchases >= *from).unwrap_or(0)
}

fn observe(
    observations: &mut Observations,
    user: &UserLists,
    models: &mut Models,
    group_of: &[usize],
    outcomes: &Outcomes,
    rng: &mut StdRng,
) {
    let ndcg = |list: &[Row]| list_metrics(list, user.targets)[NDCG];
    let of_methods: [f64; 3] = std::array::from_fn(|method| ndcg(&user.lists[method]));
    let group = USER_GROUPS.iter().rposition(|(from, _)| user.history_length >= *from).unwrap_or(0);
    observations.activity.push((group, of_methods));
    let group = |row: &Row| group_of.get(row.index()).copied().unwrap_or(0);
    for (method, list) in user.lists.iter().enumerate() {
        list.iter().for_each(|row| observations.slots[group(row)][method] += 1);
    }
    for target in user.targets {
        observations.slots[group(target)][3] += 1;
        let hits = std::array::from_fn(|method| user.lists[method].contains(target));
        observations.targets.push((group(target), hits));
    }
    let ranked = user.ranked;
    let rows: Vec<Row> = ranked.candidates.list.iter().map(|candidate| candidate.row).collect();
    for (source, lost) in observations.sources.iter_mut().enumerate() {
        let alone = |index: usize| {
            let ranks = &ranked.candidates.list[index].ranks;
            ranks.iter().enumerate().all(|(other, rank)| (*rank != NOT_FOUND) == (other == source))
        };
        lost.push(of_methods[RANKED] - ndcg(&best(&rows, &ranked.scores, &|index| !alone(index))));
    }
    let mut shuffled = ranked.features.clone();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let columns = observations.features.len();
    let is_new = |row: &Row| !user.bought.contains(row);
    let new_targets: AHashSet<Row> = user.targets.iter().filter(|row| is_new(row)).copied().collect();
    if !new_targets.is_empty() {
        let only_vectors = |index: usize| {
            let ranks = &ranked.candidates.list[index].ranks;
            let of_vectors = CandidateSource::UserVector.index();
            ranks.iter().enumerate().all(|(source, rank)| (*rank != NOT_FOUND) == (source == of_vectors))
        };
        let ndcg = |scores: &[f32], keeps_source: bool| {
            let kept = |index: usize| is_new(&rows[index]) && (keeps_source || !only_vectors(index));
            list_metrics(&best(&rows, scores, &kept), &new_targets)[NDCG]
        };
        order.shuffle(rng);
        let similarity = FEATURES.iter().position(|name| *name == "user_similarity").expect("a built-in feature");
        for (to, from) in order.iter().enumerate() {
            shuffled[to * columns + similarity] = ranked.features[from * columns + similarity];
        }
        if let Ok(without) = models.utilities(&shuffled) {
            let served = ndcg(&ranked.scores, true);
            let left = [ndcg(&ranked.scores, false), ndcg(&without, true), ndcg(&without, false)];
            observations.learned.iter_mut().zip(left).for_each(|(lost, left)| lost.push(served - left));
        }
        shuffled.clone_from(&ranked.features);
    }
    for (feature, (lost, shared)) in observations.features.iter_mut().zip(&mut observations.shared_values).enumerate() {
        let value = |row: usize| ranked.features[row * columns + feature];
        order.shuffle(rng);
        if !rows.is_empty() && (1..rows.len()).all(|row| value(row) == value(0)) {
            let other = shared.choose(rng).copied();
            shared.push(value(0));
            // The first user has no other one.
            let Some(other) = other else { continue };
            (0..rows.len()).for_each(|row| shuffled[row * columns + feature] = other);
        } else {
            order.iter().enumerate().for_each(|(to, from)| shuffled[to * columns + feature] = value(*from));
        }
        if let Ok(scores) = models.utilities(&shuffled) {
            lost.push(of_methods[RANKED] - ndcg(&best(&rows, &scores, &|_| true)));
        }
        for row in 0..rows.len() {
            shuffled[row * columns + feature] = ranked.features[row * columns + feature];
        }
    }
    let positives = outcomes.positives(user.user, user.at);
    let labels = Outcomes::labels(&positives, rows.iter().copied());
    for (labels, probabilities) in labels.iter().zip(ranked.heads.chunks_exact(models.heads.len().max(1))) {
        for (head, (observed, probability)) in
            models.heads.iter().zip(observations.calibration.iter_mut().zip(probabilities))
        {
            // External models may have other heads, whose labels are unknown.
            let label = HEADS.iter().position(|name| *name == head.name).map_or(f32::NAN, |head| labels[head]);
            if !label.is_nan() {
                observed.push((*probability, label == 1.0));
            }
        }
    }
}

/// Returns the first [`CUTOFF`] rows by score among those that `kept` selects.
fn best(rows: &[Row], scores: &[f32], kept: &dyn Fn(usize) -> bool) -> Vec<Row> {
    let mut order: Vec<usize> = (0..rows.len()).filter(|index| kept(*index)).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.into_iter().take(CUTOFF).map(|index| rows[index]).collect()
}

fn page(
    bundle: &Bundle,
    evaluation: &Evaluation,
    observations: &Observations,
    curves: &LossCurves,
    options: &EvaluateOptions,
) -> String {
    let manifest = &bundle.manifest;
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Bundle {0}</title><style>{PAGE_STYLE}{plot_style}</style></head><body><h1>Bundle {0}</h1>\
         <p>{1} items; trained until {2}; evaluated on the next baskets of {3} users. Brackets and thin lines are 95 % \
         bootstrap intervals over users.</p>",
        escape(&manifest.name),
        evaluation.item_count,
        UnixMillis(manifest.trained_until_ms),
        evaluation.user_count,
        plot_style = plots::STYLE
    );
    quality(&mut html, evaluation);
    baselines(&mut html, &evaluation.comparisons);
    section(&mut html, "Losses", "One plot per stage. Points are means of adjacent steps.");
    if curves.curves.is_empty() {
        html.push_str("<p>The bundle contains no training losses.</p>");
    }
    for pair in stages(curves) {
        wide(&mut html, &plots::lines(&pair, "step", "loss", plots::Scales::Independent));
    }
    let by_group = |groups: &[&str], values: &dyn Fn(usize, usize) -> Vec<f64>| {
        let group = |(at, name): (usize, &&str)| BarGroup {
            name: format!("{name} ({})", values(at, 0).len()),
            bars: (0..3).map(|method| bar(METHODS[method], &values(at, method), options)).collect(),
        };
        groups.iter().enumerate().map(group).filter(|group| !group.name.ends_with("(0)")).collect::<Vec<_>>()
    };
    section(&mut html, "Quality by activity of the user", "NDCG@10. In brackets: users of the group.");
    let names: Vec<&str> = USER_GROUPS.iter().map(|group| group.1).collect();
    let activity = |group, method: usize| {
        observations.activity.iter().filter(|user| user.0 == group).map(|user| user.1[method]).collect::<Vec<f64>>()
    };
    wide(&mut html, &plots::bars(&by_group(&names, &activity)));
    section(
        &mut html,
        "Quality by activity of the item",
        "Share of the bought items that are among the first ten, by purchases of the item in the training data. In \
         brackets: bought items of the group. The first group is cold items.",
    );
    let names: Vec<&str> = ITEM_GROUPS.iter().map(|group| group.1).collect();
    let targets = |group, method: usize| {
        let of_group = observations.targets.iter().filter(|target| target.0 == group);
        of_group.map(|target| f64::from(u8::from(target.1[method]))).collect::<Vec<f64>>()
    };
    wide(&mut html, &plots::bars(&by_group(&names, &targets)));
    popularity(&mut html, observations, &names);
    section(
        &mut html,
        "Ablation of sources",
        "Loss of NDCG@10 of the ranked lists without the candidates that only this source returned.",
    );
    wide(
        &mut html,
        &plots::bars(&ablations(&CandidateSource::ALL.map(CandidateSource::name), &observations.sources, options)),
    );
    section(
        &mut html,
        "Ablation of the learned vectors on discovery",
        &format!(
            "Loss of NDCG@10 of the ranked lists of items that are new to the user, without the candidates that only the \
             user's vector found, with shuffled similarities to it, and without both. {} users whose next basket has an \
             item that is new to them.",
            observations.learned[0].len()
        ),
    );
    wide(&mut html, &plots::bars(&ablations(&LEARNED_PARTS, &observations.learned, options)));
    section(
        &mut html,
        "Ablation of features",
        "Loss of NDCG@10 of the ranked lists when the feature's values are shuffled among a user's candidates. Values that \
         all candidates share, such as the hour of the request, are replaced by those of an earlier user. In brackets: \
         95 % bootstrap intervals over users.",
    );
    wide(&mut html, &plots::bars(&ablations(manifest.features.names(), &observations.features, options)));
    for (head, observed) in
        manifest.heads.iter().zip(&observations.calibration).filter(|(_, observed)| !observed.is_empty())
    {
        calibration(&mut html, &head.name, observed);
    }
    html.push_str("</body></html>\n");
    html
}

fn quality(html: &mut String, evaluation: &Evaluation) {
    section(
        html,
        "Quality",
        "The same users for all methods. Coverage is the share of the catalogue in any user's list.",
    );
    html.push_str("<div class=\"wide\"><table><tr><th></th><th>HR@10</th><th>NDCG@10</th><th>MRR@10</th><th>coverage@10</th></tr>");
    for method in &evaluation.methods {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.4}</td></tr>",
            method.name, method.hr_at_10, method.ndcg_at_10, method.mrr_at_10, method.coverage_at_10
        );
    }
    html.push_str("</table></div><p>");
    for (name, gain) in &evaluation.ndcg_gains {
        let _ = write!(html, "NDCG@10 {name}: {gain}<br>");
    }
    html.push_str("</p>");
    let bar = |name: &str, value: MeanInterval| Bar {
        name: name.to_owned(),
        mean: value.mean,
        low: value.low,
        high: value.high,
    };
    let groups: Vec<BarGroup> = ["HR@10", "NDCG@10", "MRR@10"]
        .iter()
        .enumerate()
        .map(|(metric, name)| BarGroup {
            name: (*name).to_owned(),
            bars: (evaluation.methods.iter())
                .map(|method| bar(method.name, [method.hr_at_10, method.ndcg_at_10, method.mrr_at_10][metric]))
                .collect(),
        })
        .collect();
    wide(html, &plots::bars(&groups));
}

/// Adds the comparison with the best baseline by task, as a table and as bars.
fn baselines(html: &mut String, comparisons: &[Comparison]) {
    section(
        html,
        "Baselines",
        "NDCG@10 of the served lists and of the best of the baselines, which need no training beyond counting or one \
         matrix inverse, for the same users. Each is tuned on the last part of the training data. Repeat: items that the \
         user bought before; discovery: all others. Live: with the state up to each request; static: with that of the \
         end of the training.",
    );
    html.push_str(
        "<div class=\"wide\"><table><tr><th></th><th>served</th><th>best baseline</th><th></th><th>ratio</th>\
         <th>difference</th></tr>",
    );
    let mut groups = Vec::new();
    for comparison in comparisons {
        let best = comparison.best();
        let ratio = comparison.ratio.map_or_else(String::new, |ratio| format!("{ratio:.3}"));
        let name = format!("{} ({})", comparison_name(comparison), comparison.case_count);
        let _ = write!(
            html,
            "<tr><td>{name}</td><td>{}</td><td>{}</td><td>{}</td><td>{ratio}</td><td>{}</td></tr>",
            comparison.served_ndcg_at_10, best.ndcg_at_10, best.name, comparison.gain
        );
        let bar = |name: &str, value: MeanInterval| Bar {
            name: name.to_owned(),
            mean: value.mean,
            low: value.low,
            high: value.high,
        };
        let bars = vec![bar("best baseline", best.ndcg_at_10), bar("served", comparison.served_ndcg_at_10)];
        groups.push(BarGroup { name, bars });
    }
    html.push_str("</table></div>");
    wide(html, &plots::bars(&groups));
}

fn comparison_name(comparison: &Comparison) -> String {
    let name = comparison.task.name();
    match comparison.state_until {
        _ if comparison.task.is_request() => name.to_owned(),
        StateUntil::Request => format!("{name}, live"),
        StateUntil::Training => format!("{name}, static"),
    }
}

/// Returns the training loss of each stage, with its validation loss if there is one.
fn stages(curves: &LossCurves) -> Vec<Vec<Line>> {
    let line = |name: &str, points: &[(usize, f32)]| Line {
        name: name.to_owned(),
        points: points.iter().map(|(step, loss)| (*step as f64, f64::from(*loss))).collect(),
    };
    let is_validation = |name: &str| name.ends_with(", validation");
    let training = curves.curves.iter().filter(|(name, _)| !is_validation(name));
    training
        .map(|(stage, points)| {
            let validation = curves.curves.iter().filter(|(name, _)| {
                is_validation(name) && name.strip_suffix(", validation").is_some_and(|own| own == stage)
            });
            std::iter::once(line(stage, points)).chain(validation.map(|(name, points)| line(name, points))).collect()
        })
        .collect()
}

fn bar(name: &str, values: &[f64], options: &EvaluateOptions) -> Bar {
    let MeanInterval { mean, low, high } = match values.is_empty() {
        true => MeanInterval { mean: 0.0, low: 0.0, high: 0.0 },
        false => bootstrap_mean(values, &resamples(values.len(), options.bootstrap_count, options.seed)),
    };
    Bar { name: name.to_owned(), mean, low, high }
}

/// Returns the bars of an ablation, the greatest loss first.
fn ablations(names: &[impl AsRef<str>], lost: &[Vec<f64>], options: &EvaluateOptions) -> Vec<BarGroup> {
    let mut bars: Vec<Bar> = names.iter().zip(lost).map(|(name, lost)| bar(name.as_ref(), lost, options)).collect();
    bars.sort_by(|a, b| b.mean.total_cmp(&a.mean));
    bars.into_iter().map(|bar| BarGroup { name: bar.name.clone(), bars: vec![bar] }).collect()
}

fn popularity(html: &mut String, observations: &Observations, names: &[&str]) {
    section(
        html,
        "Popularity bias",
        "Share of the slots in the lists, compared with the share of purchases, by purchases of the item in the training \
         data.",
    );
    let sum = |column: usize| observations.slots.iter().map(|slots| slots[column]).sum::<u64>().max(1) as f64;
    let sums: [f64; 4] = std::array::from_fn(sum);
    let columns = [METHODS[0], METHODS[1], METHODS[2], "bought"];
    let group = |(name, slots): (&&str, &[u64; 4])| BarGroup {
        name: (*name).to_owned(),
        bars: (0..4)
            .map(|column| {
                let share = slots[column] as f64 / sums[column];
                Bar { name: columns[column].to_owned(), mean: share, low: share, high: share }
            })
            .collect(),
    };
    wide(html, &plots::bars(&names.iter().zip(&observations.slots).map(group).collect::<Vec<_>>()));
}

/// Adds a calibration plot: mean prediction and observed rate in bins of about equal count. The error is the mean
/// distance of both, weighted by count (expected calibration error, Naeini et al. 2015, with bins of equal count).
fn calibration(html: &mut String, head: &str, observed: &[(f32, bool)]) {
    let mut sorted = observed.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let size = sorted.len().div_ceil(CALIBRATION_BINS).max(1);
    let points: Vec<(f64, f64, usize)> = sorted
        .chunks(size)
        .map(|bin| {
            let count = bin.len() as f64;
            let predicted = bin.iter().map(|(probability, _)| f64::from(*probability)).sum::<f64>() / count;
            (predicted, bin.iter().filter(|(_, is_positive)| *is_positive).count() as f64 / count, bin.len())
        })
        .collect();
    let error: f64 =
        points.iter().map(|(predicted, rate, count)| (predicted - rate).abs() * *count as f64).sum::<f64>()
            / sorted.len().max(1) as f64;
    section(
        html,
        &format!("Calibration of {head}"),
        &format!(
            "{} predictions in {} bins of equal count; expected calibration error {}.",
            sorted.len(),
            points.len(),
            plots::short(error)
        ),
    );
    let line = Line { name: head.to_owned(), points: points.iter().map(|point| (point.0, point.1)).collect() };
    wide(html, &plots::lines(&[line], "predicted", "observed", plots::Scales::Shared));
}
