//! Parts that several suites share: events, state over a log, a trained shop, waiting, settings.
pub(crate) mod bundles;
pub(crate) mod events;
pub(crate) mod grpc;
pub(crate) mod live_state;
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
