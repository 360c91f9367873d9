//! The log of a server, on standard error. A line that is written while a call is answered ends with the id of the call
//! and, if it has one, of its trace.
use lodestone_telemetry::call::Call;
use std::{fmt, io::IsTerminal};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{self, Format, Full, Json, Writer},
    },
    registry::LookupSpan,
};

/// The lines without RUST_LOG. Anybody can make h2 warn, by resetting calls.
const DEFAULT_FILTER: &str = "lodestone=info,warn,h2=error";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

/// Begins to log. RUST_LOG selects the lines.
pub(super) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| DEFAULT_FILTER.into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        // Without colours if NO_COLOR is set.
        LogFormat::Text if std::io::stderr().is_terminal() => log.event_format(text()).init(),
        // Escape sequences in a file or a collector's log break its searches.
        LogFormat::Text => log.with_ansi(false).event_format(text()).init(),
        LogFormat::Json => log.with_ansi(false).event_format(json()).init(),
    }
}

fn text() -> OfCall<Format<Full>> {
    let append = |line: &mut String, name: &str, id: &str| line.extend([" ", name, "=", id]);
    OfCall { format: format::format(), append }
}

/// The fields of a line are members of its object, next to `timestamp`, `level`, `message` and `target`.
fn json() -> OfCall<Format<Json>> {
    let append = |line: &mut String, name: &str, id: &str| {
        let id = serde_json::Value::from(id);
        let end = line.strip_suffix('}').map_or(line.len(), str::len);
        line.truncate(end);
        line.extend([",\"", name, "\":", id.to_string().as_str(), "}"]);
    };
    let format = format::format().json().flatten_event(true).with_current_span(false).with_span_list(false);
    OfCall { format, append }
}

/// Appends the ids of the current call to the lines of a format.
///
/// Spans of `tracing` would cost every call the formatting of its ids, also those that log nothing.
struct OfCall<F> {
    format: F,
    append: fn(line: &mut String, name: &str, id: &str),
}

impl<S, N, F> FormatEvent<S, N> for OfCall<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(call) = Call::current() else { return self.format.format_event(context, writer, event) };
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        line.truncate(line.trim_end().len());
        (self.append)(&mut line, "request_id", &call.request_id());
        if let Some(trace_id) = call.trace_id() {
            (self.append)(&mut line, "trace_id", trace_id);
        }
        writeln!(writer, "{line}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::{io, sync::Arc};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Logs a line without a call and one with it.
    fn lines(subscriber: impl Subscriber + Send + Sync + 'static, log: &Log) -> Vec<String> {
        let call = Call::new(Some("r-\"1\"\\".to_owned()), Some("ab12".to_owned()), String::new);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(count = 3, "outside");
            call.sync_scope(|| tracing::warn!(part = "a\nb", "inside"));
        });
        let text = String::from_utf8(log.0.lock().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn strangers_cannot_fill_the_log_with_warnings_of_http2() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_env_filter(DEFAULT_FILTER).with_writer(move || writer.clone());
        tracing::subscriber::with_default(subscriber.with_ansi(false).finish(), || {
            tracing::warn!(target: "h2::proto::streams::recv", "a reset");
            tracing::error!(target: "h2::proto::connection", "an error");
            tracing::warn!(target: "hyper::proto", "a warning");
            tracing::info!(target: "lodestone::server", "a line of the server");
            tracing::debug!(target: "lodestone::server", "a detail");
        });
        let text = String::from_utf8(log.0.lock().clone()).unwrap();
        let parts = ["a reset", "an error", "a warning", "a line of the server", "a detail"];
        assert_eq!(parts.map(|part| text.contains(part)), [false, true, true, true, false], "{text}");
    }

    #[test]
    fn a_line_of_text_has_the_ids_of_its_call() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
        let lines = lines(subscriber.event_format(text()).finish(), &log);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains(" INFO ") && lines[0].ends_with("outside count=3"), "{}", lines[0]);
        assert!(lines[1].ends_with("request_id=r-\"1\"\\ trace_id=ab12"), "{}", lines[1]);
    }

    #[test]
    fn a_line_of_json_is_an_object_with_the_ids_of_its_call() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
        let lines = lines(subscriber.event_format(json()).finish(), &log);
        let parsed: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((parsed.len(), &parsed[0]["message"], &parsed[0]["count"]), (2, &"outside".into(), &3.into()));
        assert_eq!((&parsed[0]["level"], parsed[0].get("request_id")), (&"INFO".into(), None));
        assert_eq!((&parsed[1]["message"], &parsed[1]["part"]), (&"inside".into(), &"a\nb".into()));
        assert_eq!((&parsed[1]["request_id"], &parsed[1]["trace_id"]), (&"r-\"1\"\\".into(), &"ab12".into()));
        assert!(parsed[1]["timestamp"].is_string() && parsed[1]["target"].is_string());
    }
}
