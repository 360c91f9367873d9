//! libFuzzer with one of the targets. `scripts/fuzz.sh` builds and starts it.
#![no_main]
use lodestone_fuzz::{TARGETS, Target};
use std::{fs, path::PathBuf, sync::OnceLock};

static TARGET: OnceLock<&Target> = OnceLock::new();

// The panic hook of libFuzzer ends the process at the first panic, also at one that is caught.
libfuzzer_sys::fuzz_target!(init: prepare(), |bytes: &[u8]| {
    let target = TARGET.get().expect("libFuzzer calls `prepare` first");
    (target.accepts)(bytes);
});

/// Selects the target that `FUZZ_TARGET` names, and writes its inputs to the directory `FUZZ_SEEDS`. Without
/// `FUZZ_TARGET`, prints the names of all targets and ends. libFuzzer calls it before it reads its directories.
fn prepare() {
    let Some(name) = setting("FUZZ_TARGET") else {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        end(0);
    };
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("FUZZ_TARGET is `{name}`; run without it for the names");
        end(2);
    };
    if let Some(directory) = setting("FUZZ_SEEDS").map(PathBuf::from) {
        for (number, input) in (target.seeds)().into_iter().chain(target.crashes()).enumerate() {
            fs::write(directory.join(format!("{number:03}")), input).expect("scripts/fuzz.sh creates the directory");
        }
    }
    TARGET.get_or_init(|| target);
}

#[expect(clippy::disallowed_methods, reason = "the arguments belong to libFuzzer")]
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[expect(clippy::disallowed_methods, reason = "the function `main` is that of libFuzzer")]
fn end(code: i32) -> ! {
    std::process::exit(code)
}
