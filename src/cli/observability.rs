//! What the server tells its operators: the log, slow requests, traces.
use super::{
    log::LogFormat,
    numbers::{between, whole},
};
use crate::server::{Collector, read_authorities};
use http::Uri;
use std::{path::PathBuf, time::Duration};

/// Log and traces of `lodestone serve`; see docs/observability.md.
#[derive(clap::Args)]
#[command(next_help_heading = "Log and traces")]
pub(crate) struct ObservabilityArgs {
    /// Format of the log on standard error: lines for people, or one JSON object per line. RUST_LOG sets the level.
    #[arg(long, value_enum, env = "LODESTONE_LOG_FORMAT", default_value = "text")]
    pub(super) log_format: LogFormat,
    /// Requests that take at least this long are logged with the times of their stages, at most 10 in 10 seconds. 0: none.
    #[arg(long, value_name = "MS", env = "LODESTONE_SLOW_REQUEST_MS", value_parser = whole::<u64>(0..), default_value_t = 500)]
    slow_request_ms: u64,
    /// Collector of OpenTelemetry traces: OTLP over gRPC, http://HOST:PORT or https://HOST:PORT. Default: no traces.
    #[arg(long, value_name = "URL", env = "LODESTONE_OTLP_ENDPOINT", value_parser = endpoint)]
    otlp_endpoint: Option<String>,
    /// PEM file with the authorities of the collector's certificate. Default: those of the system.
    #[arg(long, value_name = "FILE", env = "LODESTONE_OTLP_CA", requires = "otlp_endpoint")]
    otlp_ca: Option<PathBuf>,
    /// Share of the calls whose traces are exported. A call with a `traceparent` is exported if its caller samples it.
    #[arg(long, value_name = "0..1", env = "LODESTONE_TRACE_SAMPLE", value_parser = between(0.0, 1.0),
          default_value_t = 0.01)]
    trace_sample: f64,
}

impl ObservabilityArgs {
    /// Returns the time from which a request is slow; none: no request is.
    pub(super) fn slow_request(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.slow_request_ms)).filter(|limit| !limit.is_zero())
    }

    /// Returns the collector of traces, if there is one.
    pub(super) fn collector(&self) -> anyhow::Result<Option<Collector>> {
        let Some(endpoint) = self.otlp_endpoint.clone() else { return Ok(None) };
        let ca = self.otlp_ca.as_deref().map(|path| read_authorities("--otlp-ca", path)).transpose()?;
        Ok(Some(Collector { endpoint, ca, share: self.trace_sample }))
    }
}

/// Checks the URL of a collector.
fn endpoint(text: &str) -> Result<String, String> {
    let expected = "it must be http://HOST:PORT or https://HOST:PORT, such as http://localhost:4317";
    let uri: Uri = text.parse().map_err(|_| expected.to_owned())?;
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    let has_host = uri.host().is_some_and(|host| !host.is_empty()) && !text.contains('@');
    let has_path = !matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("" | "/"));
    match is_known && has_host && !has_path {
        true => Ok(text.trim_end_matches('/').to_owned()),
        false => Err(expected.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_a_url_with_a_host_and_without_a_path() {
        for valid in ["http://localhost:4317", "https://otlp.example.com", "http://[::1]:4317", "http://10.0.0.1:1/"] {
            assert_eq!(endpoint(valid).as_deref(), Ok(valid.trim_end_matches('/')));
        }
        for invalid in [
            "",
            "localhost:4317",
            "ftp://a:1",
            "http://",
            "http://a/v1/traces",
            "http://user@a:1",
            "http://a b",
            "grpc",
        ] {
            assert!(endpoint(invalid).unwrap_err().contains("http://HOST:PORT"), "{invalid}");
        }
    }
}
