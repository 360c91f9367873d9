//! `lodestone benchmark events`
use crate::cli::{exit::Exit, numbers::within, output::FormatArgs, paths::new_directory};
use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::{Quantity, UnixMillis},
};
use lodestone_events::{Applied, Change, DEDUPE_IDS_MAX, Deduper, Event, EventKind, EventLine, EventLog, Writer, log};
use lodestone_state::{
    LiveState, RecoveryOptions, Searches, StateLimits, checkpoints::Checkpoints, recover, state_with_items,
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Events per write.
const BATCH: usize = 100;
/// Concurrent writes.
const CONCURRENT_WRITES: usize = 200;
/// Events of the fold benchmark, without the log.
const FOLDED: usize = 1_000_000;
/// Share of the log after the checkpoint.
const TAIL: f64 = 0.025;

/// Measures the event log and its state without network and models: write, fold, checkpoint, startup.
///
/// Fills a new log with events of a synthetic shop, and measures startup with and without the checkpoint. The directory
/// can then be served with `lodestone serve --data OUT`.
#[derive(clap::Args)]
#[command(after_help = "\
Example:
  lodestone benchmark events --events 1000000 --out filled")]
pub(crate) struct EventsArgs {
    /// Number of events.
    #[arg(long, value_name = "N", value_parser = within(1000..=10_000_000_000), default_value_t = 10_000_000)]
    events: usize,
    /// Number of users.
    #[arg(long, value_name = "N", value_parser = within(1..=100_000_000), default_value_t = 200_000)]
    users: usize,
    /// Number of items.
    #[arg(long, value_name = "N", value_parser = within(1..=100_000_000), default_value_t = 50_000)]
    items: usize,
    /// The data directory to create; its log takes about 120 bytes per event.
    #[arg(long, value_name = "DIR", value_parser = new_directory)]
    out: PathBuf,
    /// Seed of the events.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(serde::Serialize)]
struct Report {
    events: usize,
    /// Durable and folded, in batches of 100, without network.
    written_per_s: f64,
    log_bytes: u64,
    /// Decoded events, folded into users, popularity and queries.
    folded_per_s: f64,
    checkpoint_s: f64,
    /// Slowest write while a checkpoint was written, including its commit and fold.
    checkpoint_write_ms_max: f64,
    checkpoint_position: u64,
    start_s: f64,
    start_without_checkpoint_s: f64,
    verify_s: f64,
}

pub(crate) fn events(args: &EventsArgs) -> anyhow::Result<Exit> {
    let directory = args.out.join("log");
    let shop = SyntheticShop::of(args)?;
    let filled = fill(args, &shop, &directory)?;

    let start = |ignores_checkpoint: bool| -> anyhow::Result<(f64, usize)> {
        let started = Instant::now();
        let log = EventLog::open(&directory)?;
        let options = RecoveryOptions {
            directory: &directory,
            history: &args.out.join("events.parquet"),
            // A shifted history makes the recovery skip checkpoints; there is no history here.
            history_end: ignores_checkpoint.then(UnixMillis::now),
            dedupe_ids_max: DEDUPE_IDS_MAX,
        };
        let empty = || state_with_items(std::iter::empty(), Searches::default(), StateLimits::default());
        let recovered = recover(&log, &options, &empty)?;
        Ok((started.elapsed().as_secs_f64(), recovered.state.users.len()))
    };
    let ((start_s, users), (start_without_checkpoint_s, replayed_users)) = (start(false)?, start(true)?);
    ensure!(users == replayed_users, "startup with a checkpoint restores {users} users, without it {replayed_users}");
    let started = Instant::now();
    let check = log::check(&directory)?;
    let verify_s = started.elapsed().as_secs_f64();
    ensure!(check.damaged.is_empty() && check.records == args.events as u64, "the log is damaged");
    let report = Report {
        events: args.events,
        written_per_s: filled.written_per_s,
        log_bytes: check.bytes,
        folded_per_s: folded_per_s(&shop, args.seed),
        checkpoint_s: filled.checkpoint_s,
        checkpoint_write_ms_max: filled.write_ms_max,
        checkpoint_position: filled.checkpoint_position,
        start_s,
        start_without_checkpoint_s,
        verify_s,
    };
    args.format.print(&report)?;
    Ok(Exit::Success)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} events, {} bytes of log", self.events, self.log_bytes)?;
        writeln!(f, "writes, durable and folded, in batches of 100, without network: {:.0}/s", self.written_per_s)?;
        writeln!(f, "fold on one core: {:.0}/s", self.folded_per_s)?;
        writeln!(
            f,
            "checkpoint: {:.1} s during writes, the slowest of which took {:.1} ms",
            self.checkpoint_s, self.checkpoint_write_ms_max
        )?;
        writeln!(f, "startup: {:.1} s with the checkpoint of position {}", self.start_s, self.checkpoint_position)?;
        writeln!(f, "startup: {:.1} s from the whole log", self.start_without_checkpoint_s)?;
        writeln!(f, "verification: {:.1} s", self.verify_s)
    }
}

/// Measurements of [`fill`].
struct Filled {
    written_per_s: f64,
    checkpoint_s: f64,
    /// The slowest write during the checkpoint.
    write_ms_max: f64,
    checkpoint_position: u64,
}

/// Fills the log and writes a checkpoint during the last writes.
fn fill(args: &EventsArgs, shop: &SyntheticShop, directory: &Path) -> anyhow::Result<Filled> {
    let log = EventLog::open(directory)?;
    let live = Arc::new(LiveState::default());
    let recent: Arc<Mutex<Deduper>> = Arc::default();
    let checkpoints = Checkpoints::new(live.clone(), recent.clone(), log.directory(), Default::default(), 0);
    let apply = move |changes: Vec<(u64, Change, Option<()>)>| {
        for (position, change, _) in changes {
            if let Change::Event(event) = change {
                live.apply_event(position, &event);
            }
        }
        Applied::default()
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
            let end = until.min(next + BATCH * CONCURRENT_WRITES);
            let batches: Vec<Vec<(Change, Option<()>)>> = (next..end)
                .step_by(BATCH)
                .map(|begin| (begin..end.min(begin + BATCH)).map(|n| (shop.change(n, &mut random), None)).collect())
                .collect();
            let started = Instant::now();
            let written =
                runtime.block_on(futures_util::future::join_all(batches.into_iter().map(|b| writer.write(b))));
            slowest = slowest.max(started.elapsed().as_secs_f64());
            written.into_iter().collect::<Result<Vec<_>, _>>()?;
            bar.inc((end - next) as u64);
            next = end;
        }
        Ok(slowest)
    };
    let started = Instant::now();
    write(before)?;
    let written_per_s = before as f64 / started.elapsed().as_secs_f64();
    let filled = std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| {
            let started = Instant::now();
            checkpoints.write().map(|position| (started.elapsed().as_secs_f64(), position))
        });
        let slowest = write(args.events)?;
        let (checkpoint_s, checkpoint_position) =
            checkpoint.join().expect("a checkpoint does not panic").context("the checkpoint")?;
        anyhow::Ok(Filled { written_per_s, checkpoint_s, write_ms_max: slowest * 1000.0, checkpoint_position })
    })?;
    bar.finish_and_clear();
    Ok(filled)
}

/// Returns events per second of the fastest of three folds.
fn folded_per_s(shop: &SyntheticShop, seed: u64) -> f64 {
    let mut random = StdRng::seed_from_u64(seed);
    let events: Vec<Event> = (0..FOLDED)
        .filter_map(|number| match shop.change(number, &mut random) {
            Change::Event(event) => Some(event),
            _ => None,
        })
        .collect();
    let once = || {
        let live = LiveState::default();
        let started = Instant::now();
        for (event, position) in events.iter().zip(1..) {
            live.apply_event(position, event);
        }
        events.len() as f64 / started.elapsed().as_secs_f64()
    };
    (0..3).map(|_| once()).fold(0.0, f64::max)
}

struct SyntheticShop {
    users: Vec<UserId>,
    items: Vec<ItemId>,
    now: UnixMillis,
    events: usize,
}

impl SyntheticShop {
    fn of(args: &EventsArgs) -> anyhow::Result<Self> {
        let users =
            (0..args.users).map(|n| UserId::signed_in(&format!("customer-{n:08}"))).collect::<Result<_, _>>()?;
        let items = (0..args.items).map(|n| ItemId::parse(&format!("item-{n:07}"))).collect::<Result<_, _>>()?;
        Ok(Self { users, items, now: UnixMillis::now(), events: args.events })
    }

    /// Generates event number `number`: within the last 60 days, up to an hour out of order. A tenth of the users have
    /// a third, and a tenth of the items nearly half of the events.
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
            _ => vec![EventLine { item, quantity: Quantity::ONE, price: None, rank: 0 }],
        };
        let id = EventId::parse(&format!("{:016x}-{number:08}", random.random::<u64>())).expect("a short plain text");
        let query = match kind {
            EventKind::Search => format!("query {}", random.random_range(0..5000)),
            _ => String::new(),
        };
        Change::Event(Event { lines, query, ..Event::new(id, kind, self.users[user].clone(), at) })
    }
}
