//! The log of answers: written by one thread beside the answers, never waited for.
//!
//! It has files of its own and is not synced: an answer that is lost with a crash costs one example and no state, and the
//! event log's fsync, which every acknowledgement waits for, keeps the disk for itself.
use super::{
    record::{AnswerId, AnswerRecord},
    segment::{AnswersError, Block, Segment, SegmentReader, compressor, day_of, list},
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use lodestone_core::units::UnixMillis;
use lodestone_telemetry::Metrics;
use std::{
    fs,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Answers that may wait to be written; one more is dropped and counted. Each holds some 50 KB.
const WAITING_MAX: usize = 512;
/// A block is written when it has so many bytes, before compression, or is so old.
const BLOCK_BYTES: usize = 1 << 20;
const BLOCK_AGE_MAX: Duration = Duration::from_secs(1);
/// A day's answers are in files of at most about this size, so that the oldest can be removed.
const SEGMENT_BYTES_MAX: u64 = 256 << 20;

/// What is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswersConfig {
    /// Of the answers, 0 to 1.
    pub share: f64,
    pub days_max: u32,
    pub bytes_max: u64,
}

impl Default for AnswersConfig {
    fn default() -> Self {
        Self { share: 0.1, days_max: 30, bytes_max: 2 << 30 }
    }
}

/// Makes a record of what an answer was made from, on the writing thread.
pub type MakeRecord = Box<dyn FnOnce() -> AnswerRecord + Send>;

enum Job {
    Log(AnswerId, MakeRecord),
    Find(AnswerId, Sender<Option<AnswerRecord>>),
}

/// The open log. Dropping it writes what waits.
pub struct AnswersLog {
    directory: PathBuf,
    share: f64,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    metrics: Metrics,
}

impl AnswersLog {
    /// Makes the directory and starts the thread. Files of earlier runs are only read.
    pub fn open(directory: &Path, config: &AnswersConfig, metrics: Metrics) -> Result<Self, AnswersError> {
        let failed = |source| AnswersError::Io { path: directory.to_owned(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        let compressor = compressor().map_err(failed)?;
        let (sender, jobs) = bounded(WAITING_MAX);
        let writer = Writing {
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
            .map_err(AnswersError::Thread)?;
        Ok(Self {
            directory: directory.to_owned(),
            share: config.share,
            jobs: Some(sender),
            thread: Some(thread),
            metrics,
        })
    }

    /// Whether an answer is one of those that are kept.
    pub fn samples(&self, id: &AnswerId) -> bool {
        // The last bytes of a UUID of version 7 are random.
        let random = u32::from_le_bytes([id[12], id[13], id[14], id[15]]);
        f64::from(random) < self.share * 4_294_967_296.0
    }

    /// Keeps an answer, unless too many wait. Never waits.
    pub fn log(&self, id: AnswerId, make: MakeRecord) {
        let Some(jobs) = &self.jobs else { return };
        if jobs.try_send(Job::Log(id, make)).is_err() {
            self.metrics.answer_logged("queue_full", 1);
        }
    }

    /// The record of an answer, or none if it was not sampled or is older than records are kept. Blocks on file reads: not for
    /// a thread that answers requests.
    pub fn find(&self, id: AnswerId) -> Result<Option<AnswerRecord>, AnswersError> {
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

impl Drop for AnswersLog {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // What the thread could not do it has logged.
            let _ = thread.join();
        }
    }
}

/// Looks an answer up in the files of its day and of its neighbours: answers that are under way at midnight are written later.
pub fn find(directory: &Path, id: &AnswerId) -> Result<Option<AnswerRecord>, AnswersError> {
    let made = UnixMillis(id.iter().take(6).fold(0, |number, byte| number << 8 | i64::from(*byte)));
    let days = [0, 1, -1].map(|days| day(UnixMillis(made.0 + days * UnixMillis::DAY)));
    let files = list(directory)?;
    for path in days.iter().flat_map(|day| files.iter().filter(move |path| day_of(path) == day)) {
        if let Some(record) = SegmentReader::open(path)?.find(id)? {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// The day of a moment in UTC, as `2026-11-25`.
pub fn day(at: UnixMillis) -> String {
    jiff::Timestamp::from_millisecond(at.0).map(|at| at.strftime("%Y-%m-%d").to_string()).unwrap_or_default()
}

/// The state of the thread.
struct Writing {
    directory: PathBuf,
    config: AnswersConfig,
    metrics: Metrics,
    compressor: zstd::bulk::Compressor<'static>,
    block: Block,
    /// When the block began.
    begun: Option<Instant>,
    /// Of the last record.
    day: String,
    segment: Option<Segment>,
}

impl Writing {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let wait = self.begun.map_or(BLOCK_AGE_MAX, |begun| BLOCK_AGE_MAX.saturating_sub(begun.elapsed()));
            match jobs.recv_timeout(wait) {
                Ok(Job::Log(id, make)) => self.take(id, make),
                Ok(Job::Find(id, reply)) => {
                    // The caller may have stopped waiting.
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

    fn take(&mut self, id: AnswerId, make: MakeRecord) {
        let record = make();
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
                tracing::warn!(%error, count, "answers could not be logged");
                self.metrics.answer_logged("write_failed", count);
                // The block may be there in part: go on in a new file.
                self.segment = None;
                self.block = Block::default();
            }
        }
    }

    fn append(&mut self) -> Result<u64, AnswersError> {
        let failed = |source| AnswersError::Io { path: self.directory.clone(), source };
        let bytes = self.block.seal(&mut self.compressor).map_err(failed)?;
        let fits = |segment: &Segment| segment.day() == self.day && segment.bytes() < SEGMENT_BYTES_MAX;
        if !self.segment.as_ref().is_some_and(fits) {
            self.segment = Some(Segment::create(&self.directory, &self.day)?);
            self.remove_old();
        }
        if let Some(segment) = &mut self.segment {
            segment.append(&bytes)?;
        }
        Ok(bytes.len() as u64)
    }

    /// Removes files that are too old or too many; a failure is tried again with the next file.
    fn remove_old(&self) {
        let removed = remove_old(&self.directory, &self.config, &self.day, self.segment.as_ref().map(Segment::path));
        if let Err(error) = removed {
            tracing::warn!(%error, "old answers could not be removed");
        }
    }
}

/// Removes the files of days that are more than `days_max` before `today`, and then the oldest until all together have at most
/// `bytes_max`; never the one that is being written.
fn remove_old(
    directory: &Path,
    config: &AnswersConfig,
    today: &str,
    current: Option<&Path>,
) -> Result<(), AnswersError> {
    let failed = |path: &Path, source| AnswersError::Io { path: path.to_owned(), source };
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
    use super::*;
    use std::io::Write;

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

    fn config() -> AnswersConfig {
        AnswersConfig { share: 1.0, days_max: 30, bytes_max: 1 << 30 }
    }

    fn log(log: &AnswersLog, number: u64, at: i64) {
        log.log(id(number, at), Box::new(move || record(number, at)));
    }

    fn all(directory: &Path) -> (Vec<u64>, super::super::segment::Lost) {
        let (mut numbers, mut lost) = (Vec::new(), super::super::segment::Lost::default());
        for path in list(directory).unwrap() {
            let mut reader = SegmentReader::open(&path).unwrap();
            while let Some(records) = reader.next_block().unwrap() {
                numbers.extend(records.iter().map(|record| u64::from_be_bytes(record.id[8..].try_into().unwrap())));
            }
            lost.damaged_blocks += reader.lost.damaged_blocks;
            lost.torn_bytes += reader.lost.torn_bytes;
        }
        (numbers, lost)
    }

    #[test]
    fn an_answer_is_found_before_and_after_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let open = AnswersLog::open(directory.path(), &config(), Metrics::default()).unwrap();
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
        for cut in [1, HEADER, length - 1] {
            let mut torn = File::options().append(true).open(segment.path()).unwrap();
            let whole = torn.metadata().unwrap().len();
            torn.write_all(&blocks[3][..cut]).unwrap();
            let (numbers, lost) = all(directory.path());
            assert_eq!((numbers, lost.damaged_blocks, lost.torn_bytes), (vec![0, 2], 1, cut as u64));
            assert_eq!(find(directory.path(), &id(2, MIDDAY)).unwrap(), Some(record(2, MIDDAY)));
            torn.set_len(whole).unwrap();
        }
        // A restart goes on in a file of its own.
        let next = Segment::create(directory.path(), "2025-11-25").unwrap();
        assert!(next.path().ends_with("2025-11-25.00001.answers"));
    }

    const HEADER: usize = 48;
    use std::fs::File;

    #[test]
    fn old_and_surplus_files_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        for (day, bytes) in [("2025-10-01", 10), ("2025-11-20", 400), ("2025-11-24", 400), ("2025-11-25", 400)] {
            fs::write(directory.path().join(format!("{day}.00000.answers")), vec![0; bytes]).unwrap();
        }
        let days = || list(directory.path()).unwrap().iter().map(|path| day_of(path).to_owned()).collect::<Vec<_>>();
        let kept = AnswersConfig { bytes_max: 1000, ..config() };
        remove_old(directory.path(), &kept, "2025-11-25", None).unwrap();
        assert_eq!(days(), ["2025-11-24", "2025-11-25"]);
        let current = list(directory.path()).unwrap()[0].clone();
        remove_old(directory.path(), &AnswersConfig { bytes_max: 0, ..config() }, "2025-11-25", Some(&current))
            .unwrap();
        assert_eq!(days(), ["2025-11-24"]);
    }

    #[test]
    fn a_full_queue_drops_answers_and_counts_them() {
        let directory = tempfile::tempdir().unwrap();
        let metrics = Metrics::default();
        let open = AnswersLog::open(directory.path(), &config(), metrics.clone()).unwrap();
        let (release, released) = std::sync::mpsc::channel::<()>();
        open.log(
            id(0, MIDDAY),
            Box::new(move || {
                let _ = released.recv();
                record(0, MIDDAY)
            }),
        );
        let sent = 2 * WAITING_MAX as u64;
        (1..=sent).for_each(|number| log(&open, number, MIDDAY));
        release.send(()).unwrap();
        drop(open);
        let (numbers, _) = all(directory.path());
        let dropped = sent + 1 - numbers.len() as u64;
        assert!(dropped >= WAITING_MAX as u64 - 1, "{dropped} dropped");
        let text = metrics.text(lodestone_telemetry::Sizes::default());
        assert!(text.contains(&format!("lodestone_answers_total{{outcome=\"queue_full\"}} {dropped}")), "{text}");
    }

    #[test]
    fn the_share_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let open =
            AnswersLog::open(directory.path(), &AnswersConfig { share: 0.25, ..config() }, Metrics::default()).unwrap();
        let kept = (0..8000).filter(|_| open.samples(&uuid::Uuid::now_v7().into_bytes())).count();
        assert!((1800..2200).contains(&kept), "{kept} of 8000");
    }
}
