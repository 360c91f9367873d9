//! Parts that several suites share: events, items, state over a log, a trained shop, waiting, settings.
pub(crate) mod answers;
pub(crate) mod bundles;
pub(crate) mod events;
pub(crate) mod grpc;
pub(crate) mod items;
pub(crate) mod live_state;
pub(crate) mod process;
pub(crate) mod rules;
pub(crate) mod server;
pub(crate) mod status;
pub(crate) mod wait;

/// Returns the environment variable `name`.
#[expect(clippy::disallowed_methods, reason = "a test binary takes no arguments of its own")]
pub(crate) fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns the environment variable `name` as a whole number, or `default` if it is not set. Panics on other texts.
pub(crate) fn number_setting(name: &str, default: usize) -> usize {
    setting(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a whole number")))
}

/// Returns the resident memory of this process, in bytes.
pub(crate) fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024
}
