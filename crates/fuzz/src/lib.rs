//! Fuzz targets: every parser of bytes that come from outside the program, which are requests, the files of a shop,
//! bundles, settings, and files that a crash or a disk may have damaged.
//!
//! A target returns for any input whether it is accepted. It panics if the parser does, or if something accepted breaks
//! an invariant of its type. The tests here try the seeds, their truncations and former crashes; `make fuzz` lets
//! libFuzzer search for inputs that reach code which no earlier input reached.
#![forbid(unsafe_code)]
mod bundles;
mod files;
mod imports;
mod logs;
mod requests;
mod settings;
mod texts;

use std::{fs, path::Path};

/// A parser, or a few whose first byte of the input selects one.
pub struct Target {
    pub name: &'static str,
    /// Returns small inputs that are accepted.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Parses an input. Returns whether it is accepted.
    pub accepts: fn(&[u8]) -> bool,
}

/// All targets, sorted by name.
pub const TARGETS: &[Target] = &[
    Target { name: "analysis_files", seeds: imports::analysis_seeds, accepts: imports::accepts_analysis },
    Target { name: "answer_log", seeds: logs::answer_log_seeds, accepts: logs::accepts_answer_log },
    Target { name: "answer_record", seeds: logs::answer_record_seeds, accepts: logs::accepts_answer_record },
    Target { name: "bundle_tables", seeds: bundles::table_seeds, accepts: bundles::accepts_table },
    Target { name: "certificates", seeds: settings::certificate_seeds, accepts: settings::accepts_certificate },
    Target { name: "checkpoint", seeds: logs::checkpoint_seeds, accepts: logs::accepts_checkpoint },
    Target { name: "event_log", seeds: logs::event_log_seeds, accepts: logs::accepts_event_log },
    Target { name: "event_record", seeds: logs::event_record_seeds, accepts: logs::accepts_event_record },
    Target { name: "filter", seeds: texts::filter_seeds, accepts: texts::accepts_filter },
    Target { name: "import", seeds: imports::import_seeds, accepts: imports::accepts_import },
    Target { name: "manifest", seeds: bundles::manifest_seeds, accepts: bundles::accepts_manifest },
    Target { name: "onnx_weights", seeds: bundles::model_seeds, accepts: bundles::accepts_model },
    Target { name: "order_by", seeds: texts::order_seeds, accepts: texts::accepts_order },
    Target { name: "parquet", seeds: imports::parquet_seeds, accepts: imports::accepts_parquet },
    Target { name: "query", seeds: texts::query_seeds, accepts: texts::accepts_query },
    Target { name: "requests", seeds: requests::seeds, accepts: requests::accepts },
    Target { name: "settings", seeds: settings::seeds, accepts: settings::accepts },
    Target { name: "synonyms", seeds: texts::synonym_seeds, accepts: texts::accepts_synonyms },
    Target { name: "tokens", seeds: texts::token_seeds, accepts: texts::accepts_token },
    Target { name: "vector_files", seeds: bundles::vector_file_seeds, accepts: bundles::accepts_vector_file },
    Target { name: "vector_index", seeds: bundles::index_seeds, accepts: bundles::accepts_index },
];

impl Target {
    /// Returns the inputs that once made the target panic, from `crashes/NAME/` of this crate.
    pub fn crashes(&self) -> Vec<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("crashes").join(self.name);
        let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        paths.iter().filter_map(|path| fs::read(path).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most truncated inputs of one seed.
    const TRUNCATIONS_MAX: usize = 64;

    #[test]
    fn targets_are_sorted_and_accept_their_seeds() {
        assert!(TARGETS.is_sorted_by(|a, b| a.name < b.name));
        let mut refused = Vec::new();
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{} has no seed", target.name);
            let refuses =
                |(number, seed): (usize, &Vec<u8>)| (!(target.accepts)(seed)).then_some((target.name, number));
            refused.extend(seeds.iter().enumerate().filter_map(refuses));
        }
        assert_eq!(refused, [], "seeds that their target refuses");
    }

    #[test]
    fn former_crashes_and_truncated_seeds_are_accepted_or_refused_without_a_panic() {
        for target in TARGETS {
            println!("{}", target.name);
            for crash in target.crashes() {
                (target.accepts)(&crash);
            }
            for seed in (target.seeds)() {
                for length in (0..seed.len()).step_by(seed.len().div_ceil(TRUNCATIONS_MAX).max(1)) {
                    (target.accepts)(&seed[..length]);
                }
            }
        }
    }

    #[test]
    fn every_directory_of_crashes_is_that_of_a_target() {
        let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("crashes"));
        for entry in entries.into_iter().flatten() {
            let name = entry.unwrap().file_name();
            assert!(TARGETS.iter().any(|target| name.to_str() == Some(target.name)), "{name:?} is not a target");
        }
    }
}
