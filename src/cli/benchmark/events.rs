//! benchmark events: the log and its fold, without network and models.
use crate::cli::Format;
use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::UnixMillis,
};
use lodestone_events::{
    Attribution, Change, DEDUPE_IDS_MAX, Deduper, Event, EventKind, EventLine, EventLog, Writer, log,
};
use lodestone_state::{LiveState, RecoveryOptions, checkpoints::Checkpoints, recover, state_of_items};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Events of one write.
const BATCH: usize = 100;
/// Writes that wait together.
const WAITING: usize = 200;
/// Events that are folded again and again, without the log.
const FOLDED: usize = 1_000_000;
/// The share of the log that comes after the checkpoint.
const TAIL: f64 = 0.025;

/// Fills a log with events of a made-up shop and measures the write, the fold on one core, the checkpoint, and how long a
/// start takes with and without it. The directory can then be served: `lodestone serve --data DIR`.
#[derive(clap::Args)]
pub(crate) struct EventsArgs {
    #[arg(long, value_name = "N", default_value_t = 10_000_000)]
    events: usize,
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    users: usize,
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    items: usize,
    /// A data directory that is made; its log needs some 120 bytes per event.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
}

#[derive(serde::Serialize)]
struct Report {
    events: usize,
    /// Written in batches of 100, durable and folded, without network.
    written_per_s: f64,
    log_bytes: u64,
    /// Decoded events into users, popularity and searches.
    folded_per_s: f64,
    checkpoint_s: f64,
    /// Longest time that a write waited while checkpoints were written: a commit and its fold included.
    checkpoint_write_ms_max: f64,
    checkpoint_position: u64,
    start_s: f64,
    start_without_checkpoint_s: f64,
    verify_s: f64,
}

pub(super) fn events(args: EventsArgs) -> anyhow::Result<()> {
    ensure!(args.events >= 1000, "--events is {}; at least 1,000", args.events);
    ensure!(args.users >= 1 && args.items >= 1, "--users and --items must be at least 1");
    ensure!(!args.out.exists(), "{} exists already", args.out.display());
    let directory = args.out.join("log");
    let shop = MadeUpShop::of(&args)?;
    let (written_per_s, (checkpoint_s, checkpoint_write_ms_max, checkpoint_position)) = fill(&args, &shop, &directory)?;

    let start = |ignores_checkpoint: bool| -> anyhow::Result<(f64, usize)> {
        let begun = Instant::now();
        let log = EventLog::open(&directory)?;
        let options = RecoveryOptions {
            directory: &directory,
            history: &args.out.join("events.parquet"),
            // A shifted history makes the recovery skip checkpoints; there is none here.
            history_end: ignores_checkpoint.then(UnixMillis::now),
            dedupe_ids_max: DEDUPE_IDS_MAX,
        };
        let recovered = recover(&log, &options, &|| state_of_items(std::iter::empty()))?;
        Ok((begun.elapsed().as_secs_f64(), recovered.state.users.len()))
    };
    let ((start_s, users), (start_without_checkpoint_s, same)) = (start(false)?, start(true)?);
    ensure!(users == same, "a start with a checkpoint knows {users} users, one without it {same}");
    let begun = Instant::now();
    let check = log::check(&directory)?;
    let verify_s = begun.elapsed().as_secs_f64();
    ensure!(check.damaged.is_empty() && check.records == args.events as u64, "the log is not whole");
    let report = Report {
        events: args.events,
        written_per_s,
        log_bytes: check.bytes,
        folded_per_s: folded_per_s(&shop, args.seed),
        checkpoint_s,
        checkpoint_write_ms_max,
        checkpoint_position,
        start_s,
        start_without_checkpoint_s,
        verify_s,
    };
    match args.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Text => print!("{}", report.told()),
    }
    Ok(())
}

impl Report {
    fn told(&self) -> String {
        let lines = [
            format!("{} events, {} bytes of log", self.events, self.log_bytes),
            format!("written, durable and folded, in batches of 100, without network: {:.0}/s", self.written_per_s),
            format!("folded on one core: {:.0}/s", self.folded_per_s),
            format!(
                "a checkpoint: {:.1} s beside writes, of which the slowest took {:.1} ms",
                self.checkpoint_s, self.checkpoint_write_ms_max
            ),
            format!(
                "state of a start: {:.1} s with the checkpoint of position {}",
                self.start_s, self.checkpoint_position
            ),
            format!("state of a start: {:.1} s from the whole log", self.start_without_checkpoint_s),
            format!("verified: {:.1} s", self.verify_s),
        ];
        lines.join("\n") + "\n"
    }
}

/// Fills the log. Gives the events per second, and of the checkpoint its seconds, the slowest write beside it in
/// milliseconds, and its position.
fn fill(args: &EventsArgs, shop: &MadeUpShop, directory: &Path) -> anyhow::Result<(f64, (f64, f64, u64))> {
    let log = EventLog::open(directory)?;
    let state = Arc::new(LiveState::default());
    let recent: Arc<Mutex<Deduper>> = Arc::default();
    let checkpoints = Checkpoints::new(state.clone(), recent.clone(), directory, Default::default(), 0);
    let apply = move |changes: Vec<(u64, Change, Option<()>)>| {
        for (position, change, _) in changes {
            if let Change::Event(event) = change {
                state.apply_event(position, &event);
            }
        }
    };
    let writer = Writer::start(log, recent, UnixMillis::now, Box::new(apply))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let bar = ProgressBar::new(args.events as u64);
    bar.set_style(ProgressStyle::with_template("writing events [{bar:30}] {pos}/{len}")?);
    let mut random = StdRng::seed_from_u64(args.seed);
    let (before, mut next) = (((1.0 - TAIL) * args.events as f64) as usize, 0);
    let mut write = |until: usize| -> anyhow::Result<f64> {
        let mut slowest: f64 = 0.0;
        while next < until {
            let end = until.min(next + BATCH * WAITING);
            let batches: Vec<Vec<(Change, Option<()>)>> = (next..end)
                .step_by(BATCH)
                .map(|begin| (begin..end.min(begin + BATCH)).map(|n| (shop.change(n, &mut random), None)).collect())
                .collect();
            let begun = Instant::now();
            let written =
                runtime.block_on(futures_util::future::join_all(batches.into_iter().map(|b| writer.write(b))));
            slowest = slowest.max(begun.elapsed().as_secs_f64());
            written.into_iter().collect::<Result<Vec<_>, _>>()?;
            bar.inc((end - next) as u64);
            next = end;
        }
        Ok(slowest)
    };
    let begun = Instant::now();
    write(before)?;
    let written_per_s = before as f64 / begun.elapsed().as_secs_f64();
    let checkpoint = std::thread::scope(|scope| {
        let taking = scope.spawn(|| {
            let begun = Instant::now();
            checkpoints.write().map(|position| (begun.elapsed().as_secs_f64(), position))
        });
        let slowest = write(args.events)?;
        let (seconds, position) = taking.join().expect("a checkpoint does not panic").context("the checkpoint")?;
        anyhow::Ok((seconds, slowest * 1000.0, position))
    })?;
    bar.finish_and_clear();
    Ok((written_per_s, checkpoint))
}

/// The best of three.
fn folded_per_s(shop: &MadeUpShop, seed: u64) -> f64 {
    let mut random = StdRng::seed_from_u64(seed);
    let events: Vec<Event> = (0..FOLDED)
        .filter_map(|number| match shop.change(number, &mut random) {
            Change::Event(event) => Some(event),
            _ => None,
        })
        .collect();
    let once = || {
        let state = LiveState::default();
        let begun = Instant::now();
        for (event, position) in events.iter().zip(1..) {
            state.apply_event(position, event);
        }
        events.len() as f64 / begun.elapsed().as_secs_f64()
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}

struct MadeUpShop {
    users: Vec<UserId>,
    items: Vec<ItemId>,
    now: UnixMillis,
    events: usize,
}

impl MadeUpShop {
    fn of(args: &EventsArgs) -> anyhow::Result<Self> {
        let users =
            (0..args.users).map(|n| UserId::signed_in(&format!("customer-{n:08}"))).collect::<Result<_, _>>()?;
        let items = (0..args.items).map(|n| ItemId::parse(&format!("item-{n:07}"))).collect::<Result<_, _>>()?;
        Ok(Self { users, items, now: UnixMillis::now(), events: args.events })
    }

    /// An event of the last 60 days, up to an hour out of order. A tenth of the users and items have a third and nearly a
    /// half of the events.
    fn change(&self, number: usize, random: &mut StdRng) -> Change {
        let mut skewed = |count: usize, power: i32| (random.random::<f64>().powi(power) * count as f64) as usize;
        let (user, item) = (skewed(self.users.len(), 2), skewed(self.items.len(), 3));
        let kind = match random.random_range(0..100) {
            0..5 => EventKind::Search,
            5..10 => EventKind::Impression,
            10..70 => EventKind::View,
            70..88 => EventKind::Click,
            88..97 => EventKind::AddToCart,
            _ => EventKind::Purchase,
        };
        let ago = 60.0 * UnixMillis::DAY as f64 * (1.0 - number as f64 / self.events.max(FOLDED) as f64);
        let at = UnixMillis(self.now.0 - ago as i64 - random.random_range(0..3_600_000));
        let item = self.items[item].clone();
        let lines = match kind {
            EventKind::Search => Vec::new(),
            _ => vec![EventLine { item, quantity: 1, price: None, rank: 0 }],
        };
        Change::Event(Event {
            id: EventId::parse(&format!("{:016x}-{number:08}", random.random::<u64>())).expect("a short plain text"),
            kind,
            user: self.users[user].clone(),
            session: String::new(),
            at,
            lines,
            query: match kind {
                EventKind::Search => format!("query {}", random.random_range(0..5000)),
                _ => String::new(),
            },
            order: String::new(),
            stars: 0,
            coupon: String::new(),
            categories: Vec::new(),
            currency: String::new(),
            attribution: Attribution::None,
        })
    }
}
