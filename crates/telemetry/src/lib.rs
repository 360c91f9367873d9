//! The server's metrics for Prometheus.
//!
//! Metrics are aggregates that an operator monitors. The debug levels of a request describe a single answer, and logs
//! describe single occurrences. [`call`] has the times of a single call for logs and traces.
#![forbid(unsafe_code)]
pub mod call;

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    panic,
    sync::{Arc, LazyLock, Once},
    time::Duration,
};

/// Histogram buckets of request and stage times in seconds, from a cached answer to a deadline.
const SECONDS: [f64; 16] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Histogram buckets of load times in seconds, from a small bundle to one with millions of items.
const LOAD_SECONDS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rpc {
    rpc: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcCode {
    rpc: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Arm {
    experiment: String,
    arm: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rule {
    rule: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Config {
    serving_config: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct IncentiveReason {
    campaign: String,
    incentive: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Client {
    client: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClientReason {
    client: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
    generation: String,
}

/// Panics of the process, because a panic hook is global too. Without labels, so that the metric is 0 before the first
/// panic and an increase is visible.
static PANICS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// The help text of [`PANICS`].
const PANICS_HELP: &str = "Panics in any thread; each is a bug";

/// Counts every panic of the process from now on, in whatever thread and whether it is caught or not. Panics are still
/// printed, with the name of their thread. Later calls have no effect.
pub fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.inc();
            previous(info);
        }));
    });
}

fn encoded(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("writing to a string does not fail");
    text
}

/// Merges texts of the OpenMetrics format, which describes each metric once, before all of its samples.
fn merged(texts: impl Iterator<Item = String>) -> String {
    // By metric: its description, and its samples.
    let mut metrics: BTreeMap<String, (String, String)> = BTreeMap::new();
    for text in texts {
        let mut name = String::new();
        // The descriptions of the others are the same.
        let mut is_first = false;
        for line in text.lines().filter(|line| *line != "# EOF") {
            let described = line.strip_prefix("# ").and_then(|rest| rest.split(' ').nth(1));
            if let Some(described) = described
                && described != name
            {
                described.clone_into(&mut name);
                is_first = !metrics.contains_key(&name);
            }
            let (description, samples) = metrics.entry(name.clone()).or_default();
            match described {
                Some(_) if !is_first => {}
                Some(_) => description.extend([line, "\n"]),
                None => samples.extend([line, "\n"]),
            }
        }
    }
    let parts = metrics.into_values().map(|(description, samples)| description + &samples);
    parts.collect::<String>() + "# EOF\n"
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// The metrics of one server. `docs/metrics.md` lists them.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<RpcCode, Counter>,
    request_seconds: Histograms<Rpc>,
    requests_in_flight: Family<Rpc, Gauge>,
    client_requests: Family<Client, Counter>,
    client_refused: Family<ClientReason, Counter>,
    stage_seconds: Histograms<Stage>,
    degradations: Family<Code, Counter>,
    written: Family<Outcome, Counter>,
    answers: Family<Outcome, Counter>,
    answers_bytes: Counter,
    explored: Counter,
    experiment_answers: Family<Arm, Counter>,
    rule_answers: Family<Rule, Counter>,
    rules: Gauge,
    synonym_sets: Gauge,
    serving_config_answers: Family<Config, Counter>,
    serving_configs: Gauge,
    incentive_decisions: Family<IncentiveReason, Counter>,
    /// The labels of `incentive_decisions`, which the family does not list.
    incentive_reasons: Arc<Mutex<BTreeSet<IncentiveReason>>>,
    items: Gauge,
    live_items: Gauge,
    merges: Gauge,
    users: Gauge,
    slates: Gauge,
    slate_bytes: Gauge,
    log_position: Gauge,
    dedupe_ids: Gauge,
    checkpoint_position: Gauge,
    log_writable: Gauge,
    certificate_expiry: Gauge,
    quarantined: Gauge,
    repeated_order_lines: Counter,
    unknown_event_items: Counter,
    events_without_currency: Counter,
    evicted_users: Gauge,
    evicted_items: Gauge,
    item_keys: Gauge,
    build: Family<Build, Gauge>,
    bundle_changes: Family<Outcome, Counter>,
    bundle_load_seconds: Histogram,
    generations: Gauge,
    completions: Family<Outcome, Counter>,
    slow_requests: Family<Rpc, Counter>,
    spans: Family<Outcome, Counter>,
}

/// Values that are read at each scrape.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sizes {
    pub items: usize,
    pub live_items: usize,
    pub merges: u64,
    pub users: usize,
    pub slates: u64,
    pub slate_bytes: u64,
    pub log_position: u64,
    pub dedupe_ids: usize,
    pub checkpoint_position: u64,
    pub log_writable: bool,
    pub quarantined: usize,
    pub evicted_users: u64,
    pub evicted_items: u64,
    pub item_keys: usize,
    pub rules: usize,
    pub synonym_sets: usize,
    pub serving_configs: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            requests_in_flight: Family::default(),
            client_requests: Family::default(),
            client_refused: Family::default(),
            stage_seconds: Family::new_with_constructor(seconds),
            degradations: Family::default(),
            written: Family::default(),
            answers: Family::default(),
            answers_bytes: Counter::default(),
            explored: Counter::default(),
            experiment_answers: Family::default(),
            rule_answers: Family::default(),
            rules: Gauge::default(),
            synonym_sets: Gauge::default(),
            serving_config_answers: Family::default(),
            serving_configs: Gauge::default(),
            incentive_decisions: Family::default(),
            incentive_reasons: Arc::default(),
            items: Gauge::default(),
            live_items: Gauge::default(),
            merges: Gauge::default(),
            users: Gauge::default(),
            slates: Gauge::default(),
            slate_bytes: Gauge::default(),
            log_position: Gauge::default(),
            dedupe_ids: Gauge::default(),
            checkpoint_position: Gauge::default(),
            log_writable: Gauge::default(),
            certificate_expiry: Gauge::default(),
            quarantined: Gauge::default(),
            repeated_order_lines: Counter::default(),
            unknown_event_items: Counter::default(),
            events_without_currency: Counter::default(),
            evicted_users: Gauge::default(),
            evicted_items: Gauge::default(),
            item_keys: Gauge::default(),
            build: Family::default(),
            bundle_changes: Family::default(),
            bundle_load_seconds: Histogram::new(LOAD_SECONDS),
            generations: Gauge::default(),
            completions: Family::default(),
            slow_requests: Family::default(),
            spans: Family::default(),
        }
    }
}

impl Metrics {
    /// Registers all metrics; of one of several catalogues with its name as a label.
    fn registry(&self, catalog: Option<&str>) -> Registry {
        let label = catalog.map(|name| (Cow::Borrowed("catalog"), Cow::Owned(name.to_owned())));
        let mut registry = Registry::with_prefix_and_labels("lodestone", label.into_iter());
        registry.register("requests", "Completed requests by RPC and gRPC status code", self.requests.clone());
        registry.register("request_seconds", "Time from request to response", self.request_seconds.clone());
        registry.register("requests_in_flight", "Requests in progress", self.requests_in_flight.clone());
        let help = "Messages of requests by client";
        registry.register("client_requests", help, self.client_requests.clone());
        let help = "Messages of requests that were refused because of a client's limit";
        registry.register("client_refused", help, self.client_refused.clone());
        registry.register("stage_seconds", "Time of the stages of a request", self.stage_seconds.clone());
        registry.register("degradations", "Degraded answers by the code of the degradation", self.degradations.clone());
        registry.register("written", "Events and items by outcome", self.written.clone());
        // Of the process, so that it has no catalogue.
        if catalog.is_none() {
            registry.register("panics", PANICS_HELP, PANICS.clone());
        }
        registry.register("answers", "Answers for the answer log by outcome", self.answers.clone());
        let help = "Completions that Suggest returned and that events accepted";
        registry.register("completions", help, self.completions.clone());
        registry.register("answers_bytes", "Bytes written to the answer log", self.answers_bytes.clone());
        registry.register("explored", "Answers that explored", self.explored.clone());
        registry.register("experiment_answers", "Answers of experiments, by arm", self.experiment_answers.clone());
        registry.register("rule_answers", "Answers to which a rule applied", self.rule_answers.clone());
        registry.register("rules", "Rules", self.rules.clone());
        registry.register("synonym_sets", "Sets of synonyms, without those of the file", self.synonym_sets.clone());
        let help = "Answers of serving configurations";
        registry.register("serving_config_answers", help, self.serving_config_answers.clone());
        let help = "Serving configurations of the API, without those of the file";
        registry.register("serving_configs", help, self.serving_configs.clone());
        let help = "Answers of DecideIncentive by campaign, incentive and reason";
        registry.register("incentive_decisions", help, self.incentive_decisions.clone());
        registry.register("items", "Items in the catalogue", self.items.clone());
        registry.register(
            "live_items",
            "Items that wait for the next merge into the frozen index",
            self.live_items.clone(),
        );
        registry.register("merges", "Merges of live items since startup", self.merges.clone());
        registry.register("users", "Users with a history", self.users.clone());
        registry.register("slates", "Frozen slates that are kept for later pages", self.slates.clone());
        let help = "Memory of the frozen slates in bytes, approximately";
        registry.register("slate_bytes", help, self.slate_bytes.clone());
        registry.register("log_position", "Position of the last durable change", self.log_position.clone());
        registry.register("dedupe_ids", "Event ids in the deduplication window", self.dedupe_ids.clone());
        registry.register(
            "checkpoint_position",
            "Position of the last checkpoint; startup reads the log from there",
            self.checkpoint_position.clone(),
        );
        let help = "1 while the event log takes writes, otherwise 0";
        registry.register("log_writable", help, self.log_writable.clone());
        let help = "Time at which the first certificate in use expires, in seconds since 1970; 0: none";
        registry.register("certificate_expiry_timestamp_seconds", help, self.certificate_expiry.clone());
        registry.register(
            "quarantined",
            "Changes of the log that could not be applied and are skipped",
            self.quarantined.clone(),
        );
        registry.register(
            "repeated_order_lines",
            "Lines of purchases that an earlier event of the same user and order counted",
            self.repeated_order_lines.clone(),
        );
        registry.register(
            "unknown_event_items",
            "Lines of valid events whose items the catalogue does not have",
            self.unknown_event_items.clone(),
        );
        registry.register(
            "events_without_currency",
            "Purchases and refunds whose values have no currency",
            self.events_without_currency.clone(),
        );
        let help = "Users whose history was evicted since startup, including its replay";
        registry.register("evicted_users", help, self.evicted_users.clone());
        let help = "Items whose events were evicted since startup, including its replay";
        registry.register("evicted_items", help, self.evicted_items.clone());
        registry.register("item_keys", "Item ids in memory, of the catalogue and of events", self.item_keys.clone());
        registry.register("build", "1, with the program's version and the current bundle version", self.build.clone());
        registry.register("bundle_changes", "Bundles by outcome", self.bundle_changes.clone());
        let help = "Time to load, self-test and warm a bundle while the current one serves";
        registry.register("bundle_load_seconds", help, self.bundle_load_seconds.clone());
        registry.register("generations", "Generations in memory", self.generations.clone());
        registry.register("slow_requests", "Requests that took longer than the limit", self.slow_requests.clone());
        registry.register("spans", "Spans of sampled requests by outcome", self.spans.clone());
        registry
    }

    /// Returns the metrics in the OpenMetrics 1.0 text format.
    pub fn text(&self, sizes: Sizes) -> String {
        self.set(sizes);
        encoded(&self.registry(None))
    }

    /// Sets the gauges that are read at each scrape.
    fn set(&self, sizes: Sizes) {
        self.items.set(sizes.items as i64);
        self.live_items.set(sizes.live_items as i64);
        self.merges.set(sizes.merges as i64);
        self.users.set(sizes.users as i64);
        self.slates.set(sizes.slates as i64);
        self.slate_bytes.set(sizes.slate_bytes as i64);
        self.log_position.set(sizes.log_position as i64);
        self.dedupe_ids.set(sizes.dedupe_ids as i64);
        self.checkpoint_position.set(sizes.checkpoint_position as i64);
        self.log_writable.set(sizes.log_writable.into());
        self.quarantined.set(sizes.quarantined as i64);
        self.evicted_users.set(sizes.evicted_users as i64);
        self.evicted_items.set(sizes.evicted_items as i64);
        self.item_keys.set(sizes.item_keys as i64);
        self.rules.set(sizes.rules as i64);
        self.synonym_sets.set(sizes.synonym_sets as i64);
        self.serving_configs.set(sizes.serving_configs as i64);
    }

    /// Returns the metrics of several catalogues in the OpenMetrics 1.0 text format. Each has the label `catalog`, except
    /// those of the process.
    pub fn text_of_catalogs<'a>(catalogs: impl Iterator<Item = (&'a str, &'a Self, Sizes)>) -> String {
        let mut process = Registry::with_prefix("lodestone");
        process.register("panics", PANICS_HELP, PANICS.clone());
        let of_catalogs = catalogs.map(|(name, metrics, sizes)| {
            metrics.set(sizes);
            encoded(&metrics.registry(Some(name)))
        });
        merged(std::iter::once(encoded(&process)).chain(of_catalogs))
    }

    /// Sets the current bundle version.
    pub fn serving(&self, generation: &str) {
        self.build.clear();
        let build = Build { version: env!("CARGO_PKG_VERSION"), generation: generation.to_owned() };
        self.build.get_or_create(&build).set(1);
    }

    /// Counts a bundle as activated, refused or rolled back.
    pub fn changed_bundle(&self, outcome: &'static str) {
        self.bundle_changes.get_or_create(&Outcome { outcome }).inc();
    }

    /// Sets the time at which the first certificate in use expires, in seconds since 1970.
    pub fn certificate_expiry(&self, seconds: i64) {
        self.certificate_expiry.set(seconds);
    }

    /// Records the load time of a bundle.
    pub fn loaded_bundle(&self, time: Duration) {
        self.bundle_load_seconds.observe(time.as_secs_f64());
    }

    /// Sets the number of generations in memory.
    pub fn generations(&self, count: usize) {
        self.generations.set(count as i64);
    }

    /// Records the start of a request.
    pub fn begun(&self, rpc: &'static str) {
        self.requests_in_flight.get_or_create(&Rpc { rpc }).inc();
    }

    /// Records the end of a request with the name of its gRPC status code.
    pub fn ended(&self, rpc: &'static str, code: &'static str, time: Duration) {
        self.requests_in_flight.get_or_create(&Rpc { rpc }).dec();
        self.requests.get_or_create(&RpcCode { rpc, code }).inc();
        self.request_seconds.get_or_create(&Rpc { rpc }).observe(time.as_secs_f64());
    }

    /// Counts a request that reached no service.
    pub fn refused(&self, rpc: &'static str, code: &'static str) {
        self.requests.get_or_create(&RpcCode { rpc, code }).inc();
    }

    /// Counts a request that took longer than the limit of the log of slow requests.
    pub fn slow_request(&self, rpc: &'static str) {
        self.slow_requests.get_or_create(&Rpc { rpc }).inc();
    }

    /// Counts spans of sampled requests by outcome: `exported` or `dropped`.
    pub fn spans(&self, outcome: &'static str, count: u64) {
        self.spans.get_or_create(&Outcome { outcome }).inc_by(count);
    }

    pub fn stage(&self, stage: &'static str, time: Duration) {
        self.stage_seconds.get_or_create(&Stage { stage }).observe(time.as_secs_f64());
    }

    pub fn degraded(&self, code: &'static str) {
        self.degradations.get_or_create(&Code { code }).inc();
    }

    /// Counts an answer to which a rule applied.
    pub fn applied_rule(&self, rule: &str) {
        self.rule_answers.get_or_create(&Rule { rule: rule.to_owned() }).inc();
    }

    /// Removes the count of a deleted rule, so that labels do not accumulate.
    pub fn forget_rule(&self, rule: &str) {
        self.rule_answers.remove(&Rule { rule: rule.to_owned() });
    }

    /// Counts an answer of a serving configuration.
    pub fn configured(&self, config: &str) {
        self.serving_config_answers.get_or_create(&Config { serving_config: config.to_owned() }).inc();
    }

    /// Removes the count of a deleted serving configuration, so that labels do not accumulate.
    pub fn forget_serving_config(&self, config: &str) {
        self.serving_config_answers.remove(&Config { serving_config: config.to_owned() });
    }

    /// Counts an answer of DecideIncentive. `incentive`: `none` if the user receives nothing. Only existing campaigns have
    /// answers, so their limits bound the labels.
    pub fn decided_incentive(&self, campaign: &str, incentive: &str, reason: &'static str) {
        let labels = IncentiveReason { campaign: campaign.to_owned(), incentive: incentive.to_owned(), reason };
        self.incentive_decisions.get_or_create(&labels).inc();
        self.incentive_reasons.lock().insert(labels);
    }

    /// Removes the counts of a campaign for incentives that `is_kept` refuses, so that labels do not accumulate.
    pub fn retain_incentives(&self, campaign: &str, is_kept: impl Fn(&str) -> bool) {
        self.incentive_reasons.lock().retain(|labels| {
            let is_kept = labels.campaign != campaign || is_kept(&labels.incentive);
            if !is_kept {
                self.incentive_decisions.remove(labels);
            }
            is_kept
        });
    }

    /// Counts a message of a request by its client. Callers bound the number of clients.
    pub fn client_request(&self, client: &str) {
        self.client_requests.get_or_create(&Client { client: client.to_owned() }).inc();
    }

    /// Counts a message of a request that was refused because of a limit of its client: `rate` or `quota`.
    pub fn client_refused(&self, client: &str, reason: &'static str) {
        self.client_refused.get_or_create(&ClientReason { client: client.to_owned(), reason }).inc();
    }

    pub fn wrote(&self, outcome: &'static str, count: u64) {
        self.written.get_or_create(&Outcome { outcome }).inc_by(count);
    }

    /// Counts order lines that were not stored, because an earlier event counted them.
    pub fn repeated_order_lines(&self, count: u64) {
        self.repeated_order_lines.inc_by(count);
    }

    /// Counts lines of valid events whose items the catalogue does not have.
    pub fn unknown_event_items(&self, count: u64) {
        self.unknown_event_items.inc_by(count);
    }

    /// Counts a purchase or refund whose values have no currency.
    pub fn event_without_currency(&self) {
        self.events_without_currency.inc();
    }

    /// Counts answers for the answer log by outcome: `logged`, `queue_full` or `write_failed`.
    pub fn answer_logged(&self, outcome: &'static str, count: u64) {
        self.answers.get_or_create(&Outcome { outcome }).inc_by(count);
    }

    pub fn answers_written(&self, bytes: u64) {
        self.answers_bytes.inc_by(bytes);
    }

    /// Counts completions that a Suggest returned.
    pub fn shown_completions(&self, count: u64) {
        self.completions.get_or_create(&Outcome { outcome: "shown" }).inc_by(count);
    }

    /// Counts completions that stored events accept.
    pub fn accepted_completions(&self, count: u64) {
        self.completions.get_or_create(&Outcome { outcome: "accepted" }).inc_by(count);
    }

    pub fn explored(&self) {
        self.explored.inc();
    }

    /// Counts an answer of an experiment. The labels have low cardinality, because the serving file defines the names.
    pub fn experimented(&self, experiment: &str, arm: &str) {
        let arm = Arm { experiment: experiment.to_owned(), arm: arm.to_owned() };
        self.experiment_answers.get_or_create(&arm).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_panic_is_counted_in_whatever_thread() {
        count_panics();
        let counted = || {
            let text = Metrics::default().text(Sizes::default());
            let count = text.lines().find_map(|line| line.strip_prefix("lodestone_panics_total "));
            count.expect("the metric exists before the first panic").parse::<u64>().unwrap()
        };
        let before = counted();
        for name in ["merge", "answer-7"] {
            let panics = std::thread::Builder::new().name(name.to_owned()).spawn(|| panic!("of a test"));
            assert!(panics.unwrap().join().is_err());
        }
        assert_eq!(counted(), before + 2);
    }

    #[test]
    fn the_metrics_of_several_catalogues_are_described_once_and_labelled() {
        let (a, b) = (Metrics::default(), Metrics::default());
        a.ended("Search", "OK", Duration::from_millis(2));
        b.ended("Search", "OK", Duration::from_millis(2));
        let sizes = |items| Sizes { items, ..Sizes::default() };
        let text = Metrics::text_of_catalogs([("default", &a, sizes(1)), ("outlet", &b, sizes(2))].into_iter());
        let lines = |begin: &str| text.lines().filter(|line| line.starts_with(begin)).collect::<Vec<_>>();
        assert_eq!(
            lines("lodestone_items{"),
            ["lodestone_items{catalog=\"default\"} 1", "lodestone_items{catalog=\"outlet\"} 2"]
        );
        assert_eq!(lines("lodestone_requests_total{").len(), 2, "{text}");
        assert_eq!(lines("lodestone_panics_total ").len(), 1, "{text}");
        let described = lines("# TYPE ");
        assert_eq!(described.iter().collect::<BTreeSet<_>>().len(), described.len(), "{text}");
        assert!(text.ends_with("# EOF\n") && lines("# EOF").len() == 1);
        // Each metric's samples follow its description.
        let mut seen = BTreeSet::new();
        let mut current = "";
        for line in text.lines().filter(|line| *line != "# EOF") {
            match line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) {
                Some(name) => {
                    assert!(seen.insert(name), "{name} is described twice");
                    current = name;
                }
                None => assert!(line.starts_with("# HELP ") || line.starts_with(current), "{line} after {current}"),
            }
        }
    }

    #[test]
    fn counts_of_deleted_campaigns_and_incentives_are_removed() {
        let metrics = Metrics::default();
        for (campaign, incentive, reason) in [
            ("winter", "ten", "GAIN"),
            ("winter", "ten", "GAIN"),
            ("winter", "gift", "GAIN"),
            ("winter", "none", "HOLDOUT"),
            ("spring", "gift", "GAIN"),
        ] {
            metrics.decided_incentive(campaign, incentive, reason);
        }
        let counts = || {
            let text = metrics.text(Sizes::default());
            let lines = text.lines().filter_map(|line| line.strip_prefix("lodestone_incentive_decisions_total"));
            lines.map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let of = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<BTreeSet<_>>();
        let spring = "{campaign=\"spring\",incentive=\"gift\",reason=\"GAIN\"} 1";
        let ten = "{campaign=\"winter\",incentive=\"ten\",reason=\"GAIN\"} 2";
        let none = "{campaign=\"winter\",incentive=\"none\",reason=\"HOLDOUT\"} 1";
        assert_eq!(counts().len(), 4);
        metrics.retain_incentives("winter", |incentive| incentive != "gift");
        assert_eq!(counts(), of(&[spring, ten, none]));
        metrics.retain_incentives("winter", |_| false);
        assert_eq!(counts(), of(&[spring]));
    }

    #[test]
    fn the_document_lists_exactly_the_registered_metrics() {
        let metrics = Metrics::default();
        // The encoder omits families without members.
        metrics.serving("generation");
        metrics.begun("Search");
        metrics.ended("Search", "OK", Duration::from_millis(2));
        metrics.stage("rank", Duration::from_millis(1));
        metrics.degraded("QUERY_RELAXED");
        metrics.client_request("shop");
        metrics.client_refused("shop", "rate");
        metrics.wrote("accepted", 1);
        metrics.answer_logged("logged", 1);
        metrics.shown_completions(1);
        metrics.experimented("experiment", "arm");
        metrics.applied_rule("rule");
        metrics.configured("default");
        metrics.decided_incentive("winter", "none", "HOLDOUT");
        metrics.changed_bundle("activated");
        metrics.loaded_bundle(Duration::from_secs(1));
        metrics.generations(2);
        metrics.slow_request("Search");
        metrics.spans("dropped", 1);
        let text = metrics.text(Sizes {
            items: 1,
            live_items: 5,
            merges: 6,
            users: 2,
            slates: 3,
            log_position: 4,
            ..Sizes::default()
        });
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let name = |name: &str, kind: &str| if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let registered: BTreeMap<String, BTreeSet<String>> =
            types.clone().map(|(of, kind)| (name(of, kind), labels_of(&text, of))).collect();
        let document = include_str!("../../../docs/metrics.md");
        let documented: BTreeMap<String, BTreeSet<String>> = document
            .lines()
            .filter_map(|line| {
                let (name, rest) = line.strip_prefix("| `lodestone_")?.split_once("` |")?;
                let labels = rest.split('|').next()?.split('`').skip(1).step_by(2);
                Some((format!("lodestone_{name}"), labels.map(str::to_owned).collect()))
            })
            .collect();
        assert_eq!(documented, registered);
        // Each registered metric has a sample above, because the encoder would omit it otherwise.
        let source = include_str!("lib.rs").split("#[cfg(test)]").next().unwrap();
        let calls = source.split(".register(").skip(1);
        let in_source: BTreeSet<String> = calls
            .filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next())
            .map(|name| format!("lodestone_{name}"))
            .collect();
        assert_eq!(in_source, types.map(|(name, _)| name.to_owned()).collect());
    }

    /// Returns the labels of the samples of a metric, without the bounds of histograms.
    fn labels_of(text: &str, metric: &str) -> BTreeSet<String> {
        let suffixes = ["", "_total", "_bucket", "_sum", "_count"];
        let is_of_metric = |line: &&str| {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            name.strip_prefix(metric).is_some_and(|suffix| suffixes.contains(&suffix))
        };
        let labels = |line: &str| match line.split_once('{') {
            Some((_, labels)) => labels.split_once('}').map_or("", |(labels, _)| labels).to_owned(),
            None => String::new(),
        };
        let samples = text.lines().filter(is_of_metric).map(labels).collect::<Vec<_>>().join(",");
        let names = samples.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        names.filter(|name| name != "le").collect()
    }

    #[test]
    fn recorded_values_are_encoded() {
        let metrics = Metrics::default();
        metrics.begun("Search");
        metrics.ended("Search", "OK", Duration::from_millis(2));
        metrics.wrote("accepted", 5);
        let text = metrics.text(Sizes { items: 7, live_items: 0, merges: 0, users: 0, slates: 0, ..Sizes::default() });
        for line in [
            "lodestone_requests_total{rpc=\"Search\",code=\"OK\"} 1",
            "lodestone_requests_in_flight{rpc=\"Search\"} 0",
            "lodestone_request_seconds_count{rpc=\"Search\"} 1",
            "lodestone_written_total{outcome=\"accepted\"} 5",
            "lodestone_items 7",
        ] {
            assert!(text.lines().any(|encoded| encoded == line), "{line} is missing in\n{text}");
        }
    }
}
