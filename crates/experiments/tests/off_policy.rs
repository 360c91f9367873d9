//! Off-policy estimates on simulated logs with known policy values, and errors for invalid files.
use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{Field, Schema};
use lodestone_core::units::UnixMillis;
use lodestone_experiments::{
    Outcome,
    off_policy::{
        ActionDistribution, Cell, EstimateOptions, Estimator, EvaluatedSlots, Log, LogRow, OffPolicyReport, Refusal,
        Reward, benchmark, estimate, evaluate_answers, gamma_interval,
    },
    read_answers, read_slots,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{fmt::Write, fs, io::Write as _, path::Path, sync::Arc};

const ITEMS: usize = 12;
const POSITIONS: usize = 2;
const CONTEXTS: usize = 4;

/// A shop with known click rates, a logging policy that depends on the context, and a target policy that does not.
struct World {
    /// By position and item.
    rates: Vec<Vec<f64>>,
    /// By context, position and item.
    logging: Vec<Vec<Vec<f64>>>,
    /// By position and item.
    target: Vec<Vec<f64>>,
}

fn distribution(rng: &mut StdRng, spread: f64) -> Vec<f64> {
    let weights: Vec<f64> = (0..ITEMS).map(|_| (spread * rng.random_range(-1.0..1.0f64)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

impl World {
    fn new(seed: u64, rate: f64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let rates =
            (0..POSITIONS).map(|_| (0..ITEMS).map(|_| rate * rng.random_range(-1.0..1.0f64).exp()).collect()).collect();
        let logging = (0..CONTEXTS).map(|_| (0..POSITIONS).map(|_| distribution(&mut rng, 2.0)).collect()).collect();
        let target = (0..POSITIONS).map(|_| distribution(&mut rng, 1.5)).collect();
        Self { rates, logging, target }
    }

    fn truth(&self) -> f64 {
        let of = |position: usize| (0..ITEMS).map(|i| self.target[position][i] * self.rates[position][i]).sum::<f64>();
        (0..POSITIONS).map(of).sum::<f64>() / POSITIONS as f64
    }

    /// Draws an impression of a policy: context, position, item, clicked.
    fn shown(&self, rng: &mut StdRng, policy: impl Fn(usize, usize) -> Vec<f64>) -> (usize, usize, usize, bool) {
        let (context, position) = (rng.random_range(0..CONTEXTS), rng.random_range(0..POSITIONS));
        let mut left: f64 = rng.random();
        let probabilities = policy(context, position);
        let item = probabilities.iter().position(|probability| {
            left -= probability;
            left < 0.0
        });
        let item = item.unwrap_or(ITEMS - 1);
        (context, position, item, rng.random_bool(self.rates[position][item]))
    }

    fn log(&self, seed: u64, rows: usize) -> Log {
        let mut rng = StdRng::seed_from_u64(seed);
        let cell = |position: usize, item: usize| (position * ITEMS + item) as u32;
        let all = || (0..POSITIONS).flat_map(|position| (0..ITEMS).map(move |item| (position, item)));
        Log {
            cells: all().map(|(p, i)| Cell { action: i as u32, position: p as u32 }).collect(),
            distributions: (0..POSITIONS)
                .map(|p| ActionDistribution {
                    cells: (0..ITEMS).map(|i| cell(p, i)).collect(),
                    probabilities: self.target[p].clone(),
                })
                .collect(),
            rows: (0..rows)
                .map(|user| {
                    let (s, p, i, clicked) = self.shown(&mut rng, |s, p| self.logging[s][p].clone());
                    LogRow {
                        user: user as u32,
                        cell: cell(p, i),
                        distribution: p as u32,
                        reward: f64::from(u8::from(clicked)),
                        propensity: self.logging[s][p][i],
                        target: self.target[p][i],
                    }
                })
                .collect(),
            target_counts: None,
        }
    }
}

fn quick(seed: u64) -> EstimateOptions {
    EstimateOptions { resamples: 100, seed, ..EstimateOptions::default() }
}

#[test]
fn estimates_are_unbiased_and_intervals_cover_the_value_at_rare_and_common_rewards() {
    // About 10 clicks in a log, about 100, and a click in every third row.
    for (rate, rows) in [(0.004, 2500), (0.04, 2500), (0.3, 1500)] {
        const RUNS: u64 = 200;
        let mut sums = [0.0; 4];
        let mut covered = [0; 4];
        let mut squares = 0.0;
        let world = World::new(7, rate);
        let truth = world.truth();
        for run in 0..RUNS {
            let estimates = estimate(&world.log(1000 + run, rows), &quick(run)).unwrap();
            for (at, measure) in estimates.measures.iter().enumerate() {
                assert_eq!(measure.estimator, Estimator::ALL[at]);
                assert!(measure.low >= 0.0 && measure.low <= measure.value.max(0.0) && measure.value <= measure.high);
                sums[at] += measure.value / truth / RUNS as f64;
                covered[at] += u64::from((measure.low..=measure.high).contains(&truth));
            }
            squares += (estimates.measures[0].value / truth - 1.0).powi(2) / RUNS as f64;
        }
        let error = (squares / RUNS as f64).sqrt();
        for (at, estimator) in Estimator::ALL.iter().enumerate() {
            assert!((sums[at] - 1.0).abs() < 4.0 * error, "{} at {rate}: {} of the truth", estimator.name(), sums[at]);
            // 95 % of 200 runs minus four standard errors of this count.
            assert!(
                covered[at] >= 178,
                "{} at {rate}: {} of {RUNS} intervals contain the true value",
                estimator.name(),
                covered[at]
            );
        }
    }
}

#[test]
fn dependent_rows_of_users_widen_the_intervals() {
    let world = World::new(3, 0.05);
    let mut log = world.log(5, 4000);
    let rows = estimate(&log, &quick(1)).unwrap().measures[0];
    // Ten equal rows are one user who repeats one action.
    log.rows = log.rows[..400].iter().flat_map(|row| std::iter::repeat_n(*row, 10)).collect();
    let users = estimate(&log, &quick(1)).unwrap().measures[0];
    assert!(users.standard_error > 2.0 * rows.standard_error, "{} {}", users.standard_error, rows.standard_error);
}

#[test]
fn the_reward_model_reduces_the_squared_error() {
    let world = World::new(11, 0.3);
    let truth = world.truth();
    let mut squares = [0.0; 4];
    for run in 0..60 {
        let estimates = estimate(&world.log(run, 1500), &quick(run)).unwrap();
        for (sum, measure) in squares.iter_mut().zip(&estimates.measures) {
            *sum += (measure.value - truth).powi(2);
        }
    }
    assert!(squares[3] < 0.9 * squares[0], "squared errors of IPS and doubly robust: {squares:?}");
}

#[test]
fn a_log_without_rewards_has_an_upper_endpoint_above_zero() {
    let world = World::new(3, 0.05);
    let mut log = world.log(5, 3000);
    log.rows.iter_mut().for_each(|row| row.reward = 0.0);
    for measure in estimate(&log, &quick(1)).unwrap().measures {
        assert_eq!((measure.value, measure.low), (0.0, 0.0));
        // About three rewards of typical weight in 3,000 rows, and more because the weights differ.
        assert!(measure.high > 0.001 && measure.high < 0.02, "{measure:?}");
    }
    assert_eq!(gamma_interval(0.0, 0.0, 0.0, 0.95), (0.0, 0.0));
}

#[test]
fn a_log_without_support_is_refused_with_the_reason() {
    let world = World::new(3, 0.05);
    let log = world.log(5, 3000);
    assert_eq!(estimate(&Log::default(), &quick(1)), Err(Refusal::Empty));

    let mut never = log.clone();
    never.rows.retain(|row| never.cells[row.cell as usize].action != 4);
    let refused = estimate(&never, &quick(1)).unwrap_err();
    assert!(matches!(refused, Refusal::UnseenItems { share, .. } if share > 2.0), "{refused}");

    let mut one_position = log.clone();
    one_position.rows.retain(|row| one_position.cells[row.cell as usize].position == 0);
    // The target policy still includes all positions.
    one_position.distributions = vec![ActionDistribution {
        cells: (0..one_position.cells.len() as u32).collect(),
        probabilities: world.target.iter().flatten().map(|probability| probability / 2.0).collect(),
    }];
    one_position.rows.iter_mut().for_each(|row| row.distribution = 0);
    let refused = estimate(&one_position, &quick(1)).unwrap_err();
    assert!(matches!(refused, Refusal::UnseenCells { share, .. } if share > 40.0), "{refused}");

    let mut few = log.clone();
    few.rows.truncate(60);
    assert!(matches!(estimate(&few, &quick(1)), Err(Refusal::Ess { .. } | Refusal::UnseenCells { .. })));
    few.rows.truncate(30);
    let refusal = estimate(&few, &quick(1)).unwrap_err();
    assert!(matches!(refusal, Refusal::Rows { rows: 30, limit: 50.0 }), "{refusal}");
    assert!(refusal.to_string().contains("the log has 30") && refusal.to_string().contains("at least 50"), "{refusal}");

    // Propensities that are too high by a factor of three.
    let mut wrong = log.clone();
    wrong.rows.iter_mut().for_each(|row| row.propensity = (row.propensity * 3.0).min(1.0));
    let refused = estimate(&wrong, &quick(1)).unwrap_err();
    assert!(matches!(refused, Refusal::Propensities { mean, .. } if mean < 0.5), "{refused}");
}

fn text(world: &World, seed: u64, rows: usize, of_target: bool) -> String {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut text = String::from(",timestamp,item_id,position,click,propensity_score,user_feature_0\n");
    for row in 0..rows {
        let policy = |s: usize, p: usize| if of_target { world.target[p].clone() } else { world.logging[s][p].clone() };
        let (s, p, i, clicked) = world.shown(&mut rng, policy);
        let propensity = policy(s, p)[i];
        let _ = writeln!(text, "{row},2019-11-24,{i},{},{},{propensity},f", p + 1, u8::from(clicked));
    }
    text
}

fn benchmark_of(logged: &str, target: &str) -> Result<OffPolicyReport, String> {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("logged.csv.gz"), directory.path().join("target.csv"));
    gzip(&from, logged);
    fs::write(&to, target).unwrap();
    benchmark(&from, &to, &quick(1)).map_err(|error| error.to_string())
}

fn gzip(path: &Path, text: &str) {
    let mut out = flate2::write::GzEncoder::new(fs::File::create(path).unwrap(), flate2::Compression::fast());
    out.write_all(text.as_bytes()).unwrap();
    out.finish().unwrap();
}

#[test]
fn one_log_estimates_the_value_of_the_policy_of_another() {
    let world = World::new(21, 0.05);
    let report = benchmark_of(&text(&world, 1, 6000, false), &text(&world, 2, 6000, true)).unwrap();
    assert_eq!((report.logged.rows, report.target.rows, report.comparisons.len()), (6000, 6000, 4));
    assert!(
        report.comparisons.iter().all(|comparison| comparison.covers && comparison.relative_error.unwrap() < 0.3),
        "{report}"
    );
    assert!(
        report.comparisons.iter().all(|comparison| comparison.difference_low < 0.0 && comparison.difference_high > 0.0)
    );
    assert!(
        (report.logged.mean - report.target.mean).abs() > 0.002,
        "the two policies have nearly the same value, so the test shows nothing"
    );
    let printed = report.to_string();
    assert!(printed.contains("doubly robust") && printed.contains("effective of 6000 rows"), "{printed}");
    // The same seed reproduces the report.
    let again = benchmark_of(&text(&world, 1, 6000, false), &text(&world, 2, 6000, true)).unwrap();
    assert_eq!(again.estimates, report.estimates);
}

#[test]
fn a_policy_that_the_log_never_followed_is_refused_in_the_report() {
    let world = World::new(21, 0.05);
    let target = text(&world, 2, 2000, true);
    let report =
        benchmark_of(&text(&world, 1, 2000, false), &target.replace(",2019-11-24,3,", ",2019-11-24,new,")).unwrap();
    let reason = report.refused.clone().unwrap();
    assert!(
        reason.contains("never shows") && report.estimates.is_none() && report.to_string().contains(&reason),
        "{reason}"
    );
}

#[test]
fn errors_in_files_name_line_and_column() {
    const HEADER: &str = "item_id,position,click,propensity_score\n";
    let world = World::new(21, 0.05);
    let good = text(&world, 2, 50, true);
    let cases: [(&str, &[&str]); 14] = [
        ("", &["no rows"]),
        (HEADER, &["no rows"]),
        ("item_id,position,click\n1,1,0\n", &["`propensity_score` is missing", "item_id, position, click"]),
        ("item_id,position,click,click,propensity_score\n1,1,0,0,0.5\n", &["`click` occurs twice"]),
        (&format!("{HEADER}1,1,0,0.5\n1,1,0,0\n"), &["line 3", "`propensity_score`", "not above 0"]),
        (&format!("{HEADER}1,1,0,1.5\n"), &["line 2", "`propensity_score`", "above 1"]),
        (&format!("{HEADER}1,1,0,NaN\n"), &["line 2", "`propensity_score`", "`NaN` is not a finite number"]),
        (&format!("{HEADER}1,1,0,-0.1\n"), &["line 2", "`propensity_score`", "not above 0"]),
        (&format!("{HEADER}1,1,2,0.5\n"), &["line 2", "`click`", "neither 0 nor 1"]),
        (&format!("{HEADER}1,0,1,0.5\n"), &["line 2", "`position`", "`0`"]),
        (&format!("{HEADER}1,first,1,0.5\n"), &["line 2", "`position`", "`first`"]),
        (&format!("{HEADER},1,1,0.5\n"), &["line 2", "`item_id`", "empty"]),
        (&format!("{HEADER}1,1,1,0.5\n1,1\n"), &["line 3"]),
        ("item_id,position,reward,propensity_score\n1,1,-3,0.5\n", &["line 2", "`reward`", "-3"]),
    ];
    for (bad, words) in cases {
        let error = benchmark_of(bad, &good).unwrap_err();
        assert!(error.contains("logged.csv.gz"), "the file is not named in: {error}");
        words.iter().for_each(|word| assert!(error.contains(word), "`{word}` is missing in: {error}"));
        let error = benchmark_of(&good, bad).unwrap_err();
        assert!(error.contains("target.csv"), "the file is not named in: {error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let (broken, gone) = (directory.path().join("broken.csv.gz"), directory.path().join("gone.csv"));
    fs::write(&broken, "not gzip").unwrap();
    for path in [&broken, &gone] {
        let error = benchmark(path, path, &quick(1)).unwrap_err().to_string();
        assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
    }
}

const PAGE: usize = 4;
const RATES: [f64; PAGE] = [0.3, 0.2, 0.1, 0.05];

/// Writes answers in the format of `lodestone answers export`: the items 0 to 3 in this order, shuffled in 4 of 10
/// answers. Returns clicks, whose rate falls with the item's number and with the slot.
fn explored(directory: &Path, answers: usize, experiment: &str) -> Vec<Outcome> {
    let mut rng = StdRng::seed_from_u64(3);
    let mut outcomes = Vec::new();
    let mut rows: Vec<(usize, usize, usize)> = Vec::new();
    for answer in 0..answers {
        let mut order: Vec<usize> = (0..PAGE).collect();
        if rng.random_bool(0.4) {
            (1..PAGE).rev().for_each(|end| order.swap(end, rng.random_range(0..=end)));
        }
        for (slot, item) in order.into_iter().enumerate() {
            rows.push((answer, slot, item));
            if rng.random_bool(RATES[item] / (1.0 + slot as f64)) {
                outcomes.push(Outcome {
                    user: format!("u:{}", answer / 2),
                    at: UnixMillis(answer as i64 * 1000 + 500),
                    kind: "click".to_owned(),
                    value: 0.0,
                    currency: String::new(),
                    item: format!("i{item}"),
                    answer: String::new(),
                });
            }
        }
    }
    let day = directory.join("day=2026-01-01");
    fs::create_dir_all(&day).unwrap();
    write_slots(&day.join("answers.parquet"), &rows, experiment);
    outcomes
}

fn write_slots(path: &Path, rows: &[(usize, usize, usize)], experiment: &str) {
    // A suggestion with the same items, which no estimate reads.
    let suggested: Vec<(usize, usize, usize)> = rows.iter().take(2).map(|row| (row.0 + 1_000_000, 0, row.2)).collect();
    let count = rows.len();
    let all: Vec<(usize, usize, usize)> = rows.iter().chain(&suggested).copied().collect();
    let rows = &all[..];
    let kinds = (0..rows.len()).map(|at| Some(if at < count { "search" } else { "suggest" }));
    fn texts(rows: &[(usize, usize, usize)], of: impl Fn(&(usize, usize, usize)) -> String) -> ArrayRef {
        Arc::new(rows.iter().map(|row| Some(of(row))).collect::<StringArray>())
    }
    let integers = |of: &dyn Fn(&(usize, usize, usize)) -> usize| -> ArrayRef {
        Arc::new(rows.iter().map(|row| Some(of(row) as i64)).collect::<Int64Array>())
    };
    let propensity = |row: &(usize, usize, usize)| Some(if row.1 == row.2 { 0.7 } else { 0.1 });
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("kind", Arc::new(kinds.collect::<StringArray>())),
        ("answer_id", texts(rows, |row| row.0.to_string())),
        ("user", texts(rows, |row| format!("u:{}", row.0 / 2))),
        ("session", texts(rows, |row| format!("s{}", row.0 % 2))),
        ("experiment", texts(rows, |_| experiment.to_owned())),
        ("arm", texts(rows, |row| if row.0 / 2 % 2 == 0 { "even" } else { "odd" }.to_owned())),
        ("item_id", texts(rows, |row| format!("i{}", row.2))),
        ("time_ms", integers(&|row| row.0 * 1000)),
        ("slot", integers(&|row| row.1 + 1)),
        ("organic_slot", integers(&|row| row.2 + 1)),
        ("team", integers(&|row| if experiment == "drafts" { 1 + row.1 % 2 } else { 0 })),
        ("propensity", Arc::new(rows.iter().map(propensity).collect::<Float64Array>())),
        ("is_pinned", Arc::new(rows.iter().map(|_| Some(false)).collect::<BooleanArray>())),
    ];
    let fields: Vec<Field> = columns.iter().map(|(name, c)| Field::new(*name, c.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, column)| column).collect()).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(fs::File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn answers_with_exploration_estimate_the_order_without_exploration() {
    let directory = tempfile::tempdir().unwrap();
    let outcomes = explored(directory.path(), 5000, "");
    let slots = EvaluatedSlots::organic(read_slots(directory.path()).unwrap());
    let reward = Reward { kind: "click".to_owned(), is_value: false, window_ms: 900 };
    let report = evaluate_answers(&slots, &outcomes, &reward, &quick(1));
    assert_eq!((report.answers, report.slots, report.users, report.unmatched), (5000, 20_000, 2500, 0));
    assert_eq!(report.matched, outcomes.len());
    let truth: f64 = (0..PAGE).map(|slot| RATES[slot] / (1.0 + slot as f64)).sum::<f64>() / PAGE as f64;
    for measure in report.estimates.as_ref().unwrap().measures.iter() {
        assert!(measure.low < truth && truth < measure.high, "{truth} and {measure:?}");
        assert!(measure.high - measure.low < 0.03 && measure.low > report.shown_mean, "{measure:?}");
    }
    assert!(report.to_string().contains("without exploration"), "{report}");
    // Clicks after the window are unmatched.
    let late = evaluate_answers(&slots, &outcomes, &Reward { window_ms: 100, ..reward.clone() }, &quick(1));
    assert_eq!((late.matched, late.unmatched, late.shown_mean), (0, outcomes.len(), 0.0));
    assert!(
        evaluate_answers(&EvaluatedSlots::default(), &outcomes, &reward, &quick(1))
            .refused
            .unwrap()
            .contains("no rows")
    );
}

#[test]
fn exported_answers_are_exposures_of_their_experiments() {
    let directory = tempfile::tempdir().unwrap();
    explored(directory.path(), 100, "e");
    let log = read_answers(directory.path()).unwrap();
    assert_eq!((log.exposures.len(), log.drafts.len()), (100, 0));
    assert_eq!((log.exposures[3].user.as_str(), log.exposures[3].arm.as_str()), ("u:1", "odd"));
    explored(directory.path(), 100, "drafts");
    let log = read_answers(directory.path()).unwrap();
    assert_eq!((log.exposures.len(), log.drafts.len(), log.drafts[0].picks.len()), (0, 100, PAGE));
    explored(directory.path(), 10, "");
    assert!(read_answers(directory.path()).unwrap().exposures.is_empty(), "answers without an experiment");
    let error = read_answers(&directory.path().join("day=2026-01-01/none")).unwrap_err().to_string();
    assert!(error.contains("none: No such file"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = read_answers(empty.path()).unwrap_err().to_string();
    assert!(error.contains("contains no answers.parquet, and no directory of a day"), "{error}");
}
