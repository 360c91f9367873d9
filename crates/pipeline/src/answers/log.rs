//! The answer log, written by one background thread; answers never wait for it.
//!
//! It has its own files, which are not synced: a crash costs a few records and no state, and the fsync of the event
//! log, which every acknowledgement waits for, does not compete for the disk.
use super::{
    record::{AnswerId, AnswerRecord},
    segment::{AnswerLogError, Block, Segment, SegmentReader, compressor, day_of, list},
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use lodestone_core::units::UnixMillis;
use lodestone_events::storage;
use lodestone_telemetry::Metrics;
use std::{
    fs,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Maximum number of queued answers; further ones are dropped and counted. Each has about 50 KB.
const QUEUED_MAX: usize = 512;
/// Size, before compression, at which a block is written.
const BLOCK_BYTES: usize = 1 << 20;
/// Age at which a block is written.
const BLOCK_AGE_MAX: Duration = Duration::from_secs(1);
/// Approximate maximum size of a file. A day has several files, so that the oldest can be removed.
const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// Sampling and retention.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerLogConfig {
    /// Share of answers that are logged, 0 to 1.
    pub share: f64,
    pub days_max: u32,
    pub bytes_max: u64,
}

impl Default for AnswerLogConfig {
    fn default() -> Self {
        Self { share: 0.1, days_max: 30, bytes_max: 2 << 30 }
    }
}

/// Builds the record of an answer, on the writing thread.
pub type RecordBuilder = Box<dyn FnOnce() -> AnswerRecord + Send>;

enum Job {
    Log(AnswerId, RecordBuilder),
    Find(AnswerId, Sender<Option<AnswerRecord>>),
}

/// The open log. Dropping it writes the queued answers.
pub struct AnswerLog {
    directory: PathBuf,
    share: f64,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    metrics: Metrics,
}

impl AnswerLog {
    /// Creates the directory and starts the thread. Files of earlier runs are only read.
    pub fn open(directory: &Path, config: &AnswerLogConfig, metrics: Metrics) -> Result<Self, AnswerLogError> {
        let failed = |source| AnswerLogError::Io { path: directory.to_owned(), source };
        storage::create_private_directory(directory).map_err(failed)?;
        let compressor = compressor().map_err(failed)?;
        let (sender, jobs) = bounded(QUEUED_MAX);
        let writer = LogWriter {
            directory: directory.to_owned(),
            config: config.clone(),
            metrics: metrics.clone(),
            compressor,
            block: Block::default(),
            begun: None,
            day: String::new(),
            segment: None,
        };
        let thread = thread::Builder::new()
            .name("answers".into())
            .spawn(move || writer.run(&jobs))
            .map_err(AnswerLogError::Thread)?;
        Ok(Self {
            directory: directory.to_owned(),
            share: config.share,
            jobs: Some(sender),
            thread: Some(thread),
            metrics,
        })
    }

    /// Returns the directory of the files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns whether an answer is in the sample.
    pub fn samples(&self, id: &AnswerId) -> bool {
        // The last bytes of a UUID of version 7 are random.
        let random = u32::from_le_bytes([id[12], id[13], id[14], id[15]]);
        f64::from(random) < self.share * 4_294_967_296.0
    }

    /// Queues an answer, or drops it if the queue is full. Never waits.
    pub fn log(&self, id: AnswerId, build: RecordBuilder) {
        let Some(jobs) = &self.jobs else { return };
        if jobs.try_send(Job::Log(id, build)).is_err() {
            self.metrics.answer_logged("queue_full", 1);
        }
    }

    /// Finds the record of an answer; none if the answer was not sampled or its file was removed. Blocks on file reads,
    /// so it must not be called from a thread that answers requests.
    pub fn find(&self, id: AnswerId) -> Result<Option<AnswerRecord>, AnswerLogError> {
        let (reply, found) = bounded(1);
        if let Some(jobs) = &self.jobs
            && jobs.try_send(Job::Find(id, reply)).is_ok()
            && let Ok(Some(record)) = found.recv()
        {
            return Ok(Some(record));
        }
        find(&self.directory, &id)
    }
}

impl Drop for AnswerLog {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // The thread logs its own failures.
            let _ = thread.join();
        }
    }
}

/// Finds an answer in the files of its day and of the neighbouring days, because answers around midnight may be in the
/// file of another day.
pub fn find(directory: &Path, id: &AnswerId) -> Result<Option<AnswerRecord>, AnswerLogError> {
    let answered_at = UnixMillis(id.iter().take(6).fold(0, |number, byte| number << 8 | i64::from(*byte)));
    let days = [0, 1, -1].map(|days| day(UnixMillis(answered_at.0 + days * UnixMillis::DAY)));
    let files = list(directory)?;
    for path in days.iter().flat_map(|day| files.iter().filter(move |path| day_of(path) == day)) {
        if let Some(record) = SegmentReader::open(path)?.find(id)? {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// Formats the UTC day of a time, such as `2026-11-25`.
pub fn day(at: UnixMillis) -> String {
    at.date().unwrap_or_default()
}

/// The state of the writing thread.
struct LogWriter {
    directory: PathBuf,
    config: AnswerLogConfig,
    metrics: Metrics,
    compressor: zstd::bulk::Compressor<'static>,
    block: Block,
    /// The start of the current block.
    begun: Option<Instant>,
    /// The day of the last record.
    day: String,
    segment: Option<Segment>,
}

impl LogWriter {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let wait = self.begun.map_or(BLOCK_AGE_MAX, |begun| BLOCK_AGE_MAX.saturating_sub(begun.elapsed()));
            match jobs.recv_timeout(wait) {
                Ok(Job::Log(id, build)) => self.add(id, build),
                Ok(Job::Find(id, reply)) => {
                    // Fails if the caller has gone.
                    let _ = reply.send(self.block.find(&id));
                }
                Err(RecvTimeoutError::Timeout) => self.write(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.block.raw_len() >= BLOCK_BYTES || self.begun.is_some_and(|begun| begun.elapsed() >= BLOCK_AGE_MAX) {
                self.write();
            }
        }
        self.write();
    }

    fn add(&mut self, id: AnswerId, build: RecordBuilder) {
        let record = build();
        let day = day(UnixMillis(record.at_ms));
        if day != self.day {
            self.write();
            self.day = day;
        }
        self.block.push(id, &record);
        self.begun.get_or_insert_with(Instant::now);
    }

    fn write(&mut self) {
        self.begun = None;
        if self.block.is_empty() {
            return;
        }
        let count = u64::from(self.block.count());
        match self.append() {
            Ok(bytes) => {
                self.metrics.answer_logged("logged", count);
                self.metrics.answers_written(bytes);
            }
            Err(error) => {
                tracing::warn!(%error, count, "cannot log answers");
                self.metrics.answer_logged("write_failed", count);
                self.block = Block::default();
            }
        }
    }

    fn append(&mut self) -> Result<u64, AnswerLogError> {
        let failed = |source| AnswerLogError::Io { path: self.directory.clone(), source };
        let bytes = self.block.seal(&mut self.compressor).map_err(failed)?;
        let is_open = |segment: &Segment| {
            segment.day() == self.day && segment.bytes() < SEGMENT_BYTES_MAX && segment.is_in_place()
        };
        if !self.segment.as_ref().is_some_and(is_open) {
            self.segment = Some(Segment::create(&self.directory, &self.day)?);
            self.remove_old();
        }
        if let Some(segment) = &mut self.segment {
            segment.append(&bytes)?;
        }
        Ok(bytes.len() as u64)
    }

    /// Removes files beyond the retention. A failure is retried when the next file is created.
    fn remove_old(&self) {
        let removed = remove_old(&self.directory, &self.config, &self.day, self.segment.as_ref().map(Segment::path));
        if let Err(error) = removed {
            tracing::warn!(%error, "cannot remove old files of the answer log");
        }
    }
}

/// Removes the files of days more than `days_max` before `today`, and then the oldest files until the total size is at
/// most `bytes_max`. Never removes `current`.
fn remove_old(
    directory: &Path,
    config: &AnswerLogConfig,
    today: &str,
    current: Option<&Path>,
) -> Result<(), AnswerLogError> {
    let failed = |path: &Path, source| AnswerLogError::Io { path: path.to_owned(), source };
    let oldest = jiff::civil::Date::strptime("%Y-%m-%d", today)
        .ok()
        .and_then(|today| today.checked_sub(jiff::Span::new().days(i64::from(config.days_max))).ok())
        .map(|day| day.strftime("%Y-%m-%d").to_string())
        .unwrap_or_default();
    let mut sizes = Vec::new();
    for path in list(directory)? {
        let bytes = fs::metadata(&path).map_err(|source| failed(&path, source))?.len();
        sizes.push((path, bytes));
    }
    let mut total: u64 = sizes.iter().map(|(_, bytes)| bytes).sum();
    for (path, bytes) in sizes {
        let is_over = day_of(&path) < oldest.as_str() || total > config.bytes_max;
        if is_over && Some(path.as_path()) != current {
            fs::remove_file(&path).map_err(|source| failed(&path, source))?;
            total -= bytes;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::segment::{Damage, HEADER_BYTES},
        *,
    };
    use std::{fs::File, io::Write};

    const MIDDAY: i64 = 1_764_072_000_000;

    fn id(number: u64, at: i64) -> AnswerId {
        let mut id = [0; 16];
        id[..6].copy_from_slice(&at.to_be_bytes()[2..]);
        id[8..].copy_from_slice(&number.to_be_bytes());
        id
    }

    fn record(number: u64, at: i64) -> AnswerRecord {
        let items = (0..50).map(|item| format!("item {item} of {number}")).collect();
        AnswerRecord { id: id(number, at).to_vec(), at_ms: at, items, ..AnswerRecord::default() }
    }

    fn config() -> AnswerLogConfig {
        AnswerLogConfig { share: 1.0, days_max: 30, bytes_max: 1 << 30 }
    }

    fn log(log: &AnswerLog, number: u64, at: i64) {
        log.log(id(number, at), Box::new(move || record(number, at)));
    }

    fn all(directory: &Path) -> (Vec<u64>, Damage) {
        let (mut numbers, mut damage) = (Vec::new(), Damage::default());
        for path in list(directory).unwrap() {
            let mut reader = SegmentReader::open(&path).unwrap();
            while let Some(records) = reader.next_block().unwrap() {
                numbers.extend(records.iter().map(|record| u64::from_be_bytes(record.id[8..].try_into().unwrap())));
            }
            damage.damaged_blocks += reader.damage.damaged_blocks;
            damage.torn_bytes += reader.damage.torn_bytes;
        }
        (numbers, damage)
    }

    #[test]
    fn an_answer_is_found_before_and_after_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let open = AnswerLog::open(directory.path(), &config(), Metrics::default()).unwrap();
        log(&open, 1, MIDDAY);
        log(&open, 2, MIDDAY + UnixMillis::DAY);
        for number in [1, 2] {
            let at = MIDDAY + (number as i64 - 1) * UnixMillis::DAY;
            assert_eq!(open.find(id(number, at)).unwrap(), Some(record(number, at)));
        }
        assert_eq!(open.find(id(3, MIDDAY)).unwrap(), None);
        drop(open);
        assert_eq!(
            find(directory.path(), &id(2, MIDDAY + UnixMillis::DAY)).unwrap().map(|found| found.at_ms),
            Some(MIDDAY + UnixMillis::DAY)
        );
        let days: Vec<String> = list(directory.path()).unwrap().iter().map(|path| day_of(path).to_owned()).collect();
        assert_eq!(days, ["2025-11-25", "2025-11-26"]);
    }

    #[test]
    fn a_torn_tail_and_a_flipped_bit_cost_only_their_blocks() {
        let directory = tempfile::tempdir().unwrap();
        let mut compressor = compressor().unwrap();
        let mut segment = Segment::create(directory.path(), "2025-11-25").unwrap();
        let mut blocks = Vec::new();
        for number in 0..4 {
            let mut block = Block::default();
            block.push(id(number, MIDDAY), &record(number, MIDDAY));
            blocks.push(block.seal(&mut compressor).unwrap());
        }
        segment.append(&blocks[0]).unwrap();
        let length = blocks[1].len();
        blocks[1][length / 2] ^= 1;
        segment.append(&blocks[1]).unwrap();
        segment.append(&blocks[2]).unwrap();
        let length = blocks[3].len();
        for cut in [1, HEADER_BYTES, length - 1] {
            let mut torn = File::options().append(true).open(segment.path()).unwrap();
            let whole = torn.metadata().unwrap().len();
            torn.write_all(&blocks[3][..cut]).unwrap();
            let (numbers, damage) = all(directory.path());
            assert_eq!((numbers, damage.damaged_blocks, damage.torn_bytes), (vec![0, 2], 1, cut as u64));
            assert_eq!(find(directory.path(), &id(2, MIDDAY)).unwrap(), Some(record(2, MIDDAY)));
            torn.set_len(whole).unwrap();
        }
        // A restart continues in a new file.
        let next = Segment::create(directory.path(), "2025-11-25").unwrap();
        assert!(next.path().ends_with("2025-11-25.00001.answers"));
    }

    #[test]
    fn a_flipped_bit_anywhere_costs_only_its_block() {
        let directory = tempfile::tempdir().unwrap();
        let mut segment = Segment::create(directory.path(), "2025-11-25").unwrap();
        let mut compressor = compressor().unwrap();
        let mut length = 0;
        for number in 0..3 {
            let mut block = Block::default();
            block.push(id(number, MIDDAY), &record(number, MIDDAY));
            let bytes = block.seal(&mut compressor).unwrap();
            length = bytes.len();
            segment.append(&bytes).unwrap();
        }
        let whole = fs::read(segment.path()).unwrap();
        let begin = whole.len() - 2 * length;
        for at in begin..begin + length {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(segment.path(), bytes).unwrap();
            let (numbers, damage) = all(directory.path());
            assert_eq!((numbers, damage), (vec![0, 2], Damage { damaged_blocks: 1, torn_bytes: 0 }), "byte {at}");
            assert_eq!(find(directory.path(), &id(2, MIDDAY)).unwrap(), Some(record(2, MIDDAY)), "byte {at}");
        }
    }

    #[test]
    fn answers_are_logged_again_after_the_files_were_removed() {
        for removed in ["", "2025-11-25.00000.answers"] {
            let directory = tempfile::tempdir().unwrap();
            let answers = directory.path().join("answers");
            let open = AnswerLog::open(&answers, &config(), Metrics::default()).unwrap();
            log(&open, 1, MIDDAY);
            wait_until_written(&answers, 1);
            match removed {
                "" => fs::remove_dir_all(&answers).unwrap(),
                name => fs::remove_file(answers.join(name)).unwrap(),
            }
            log(&open, 2, MIDDAY);
            drop(open);
            assert_eq!(all(&answers).0, [2], "{removed}");
        }
    }

    #[test]
    fn a_failed_write_leaves_no_file_and_no_part_of_a_block() {
        let directory = tempfile::tempdir().unwrap();
        let mut segment = Segment::create(directory.path(), "2025-11-25").unwrap();
        let mut block = Block::default();
        block.push(id(1, MIDDAY), &record(1, MIDDAY));
        let bytes = block.seal(&mut compressor().unwrap()).unwrap();
        // Part of a block that a full disk interrupted, and whose removal failed too.
        let mut file = File::options().append(true).open(segment.path()).unwrap();
        file.write_all(&bytes[..20]).unwrap();
        segment.append(&bytes).unwrap();
        assert_eq!(all(directory.path()), (vec![1], Damage::default()));
        // No file can be created at a path that has a file as a directory.
        let at_file = segment.path().join("answers");
        assert!(Segment::create(&at_file, "2025-11-25").is_err());
    }

    /// Waits until a number of records is in the files.
    #[expect(clippy::disallowed_methods, reason = "the interval between two tests of a condition that has a deadline")]
    fn wait_until_written(directory: &Path, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while all(directory).0.len() < count {
            assert!(Instant::now() < deadline, "the answers are not written");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn old_and_surplus_files_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        for (day, bytes) in [("2025-10-01", 10), ("2025-11-20", 400), ("2025-11-24", 400), ("2025-11-25", 400)] {
            fs::write(directory.path().join(format!("{day}.00000.answers")), vec![0; bytes]).unwrap();
        }
        let days = || list(directory.path()).unwrap().iter().map(|path| day_of(path).to_owned()).collect::<Vec<_>>();
        let retention = AnswerLogConfig { bytes_max: 1000, ..config() };
        remove_old(directory.path(), &retention, "2025-11-25", None).unwrap();
        assert_eq!(days(), ["2025-11-24", "2025-11-25"]);
        let current = list(directory.path()).unwrap()[0].clone();
        remove_old(directory.path(), &AnswerLogConfig { bytes_max: 0, ..config() }, "2025-11-25", Some(&current))
            .unwrap();
        assert_eq!(days(), ["2025-11-24"]);
    }

    #[test]
    fn a_full_queue_drops_answers_and_counts_them() {
        let directory = tempfile::tempdir().unwrap();
        let metrics = Metrics::default();
        let open = AnswerLog::open(directory.path(), &config(), metrics.clone()).unwrap();
        let (release, released) = std::sync::mpsc::channel::<()>();
        open.log(
            id(0, MIDDAY),
            Box::new(move || {
                let _ = released.recv();
                record(0, MIDDAY)
            }),
        );
        let sent = 2 * QUEUED_MAX as u64;
        (1..=sent).for_each(|number| log(&open, number, MIDDAY));
        release.send(()).unwrap();
        drop(open);
        let (numbers, _) = all(directory.path());
        let dropped = sent + 1 - numbers.len() as u64;
        assert!(dropped >= QUEUED_MAX as u64 - 1, "{dropped} dropped");
        let text = metrics.text(lodestone_telemetry::Sizes::default());
        assert!(text.contains(&format!("lodestone_answers_total{{outcome=\"queue_full\"}} {dropped}")), "{text}");
    }

    #[test]
    fn the_sampled_share_is_the_configured_one() {
        let directory = tempfile::tempdir().unwrap();
        let open = AnswerLog::open(directory.path(), &AnswerLogConfig { share: 0.25, ..config() }, Metrics::default())
            .unwrap();
        let sampled = (0..8000).filter(|_| open.samples(&uuid::Uuid::now_v7().into_bytes())).count();
        assert!((1800..2200).contains(&sampled), "{sampled} of 8000");
    }
}
