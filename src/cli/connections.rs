//! The flags of `lodestone serve` about connections and about the end of the server.
use super::numbers::between;
use crate::server::ServerConfig;
use std::time::Duration;

/// Greatest duration of a setting in seconds: 116 days.
const SECONDS_MAX: f64 = 1e7;
/// Greatest time for a server to end.
const DRAIN_SECONDS_MAX: f64 = 86_400.0;

/// Connections, and how the server ends.
#[derive(clap::Args)]
#[command(next_help_heading = "Connections and shutdown")]
pub(super) struct ConnectionArgs {
    /// Time between the signal that stops the server and the end of accepting connections. Meanwhile the server is not
    /// ready, and answers what arrives; see docs/overload.md. It is as long as load balancers need to notice.
    #[arg(long, value_name = "S", env = "LODESTONE_DRAIN_WAIT", value_parser = between(0.0, DRAIN_SECONDS_MAX),
          default_value_t = 5.0)]
    drain_wait: f64,
    /// Time in which running calls may finish afterwards.
    #[arg(long, value_name = "S", env = "LODESTONE_DRAIN_TIMEOUT", value_parser = between(0.0, DRAIN_SECONDS_MAX),
          default_value_t = ServerConfig::default().drain.as_secs_f64())]
    drain_timeout: f64,
    /// Greatest time for which a connection has no call. Then the server ends it with GOAWAY. 0: no limit.
    #[arg(long, value_name = "S", env = "LODESTONE_CONNECTION_IDLE", value_parser = between(0.0, SECONDS_MAX),
          default_value_t = 600.0)]
    connection_idle: f64,
    /// Greatest age of a connection, with a jitter of a tenth. Then the server ends it with GOAWAY, running calls finish,
    /// and the client connects again, perhaps to a server that was added meanwhile. 0: no limit.
    #[arg(long, value_name = "S", env = "LODESTONE_MAX_CONNECTION_AGE", value_parser = between(0.0, SECONDS_MAX),
          default_value_t = 0.0)]
    max_connection_age: f64,
    /// Time for the calls that run at the greatest age, after which the connection is closed. 0: as long as they take,
    /// which a stream of events decides itself.
    #[arg(long, value_name = "S", env = "LODESTONE_MAX_CONNECTION_AGE_GRACE", value_parser = between(0.0, SECONDS_MAX),
          default_value_t = 0.0)]
    max_connection_age_grace: f64,
}

impl ConnectionArgs {
    /// Checks the settings that depend on each other.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.max_connection_age_grace == 0.0 || self.max_connection_age > 0.0,
            "--max-connection-age-grace {} has no effect, because connections have no greatest age; set \
             --max-connection-age, or leave the grace out",
            self.max_connection_age_grace
        );
        Ok(())
    }

    /// Returns a configuration with these settings.
    pub(super) fn apply(&self, config: ServerConfig) -> ServerConfig {
        ServerConfig {
            drain_wait: Duration::from_secs_f64(self.drain_wait),
            drain: Duration::from_secs_f64(self.drain_timeout),
            connection_idle: limit(self.connection_idle),
            connection_age: limit(self.max_connection_age),
            connection_age_grace: limit(self.max_connection_age_grace),
            ..config
        }
    }
}

/// Returns a limit; 0 is none.
fn limit(seconds: f64) -> Option<Duration> {
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        connections: ConnectionArgs,
    }

    fn config(arguments: &[&str]) -> ServerConfig {
        let arguments = ["program"].iter().chain(arguments);
        Command::try_parse_from(arguments).unwrap().connections.apply(ServerConfig::default())
    }

    #[test]
    fn zero_seconds_are_no_limit_and_no_wait() {
        let config = config(&["--connection-idle", "0", "--drain-wait", "0", "--max-connection-age", "1.5"]);
        assert_eq!((config.connection_idle, config.drain_wait), (None, Duration::ZERO));
        assert_eq!(config.connection_age, Some(Duration::from_millis(1500)));
        assert_eq!(config.connection_age_grace, None);
        assert_eq!(self::config(&[]).connection_idle, ServerConfig::default().connection_idle);
    }

    #[test]
    fn a_grace_needs_an_age() {
        let check = |arguments: &[&str]| {
            let arguments = ["program"].iter().chain(arguments);
            Command::try_parse_from(arguments).unwrap().connections.check()
        };
        assert!(check(&[]).is_ok() && check(&["--max-connection-age", "60"]).is_ok());
        assert!(check(&["--max-connection-age", "60", "--max-connection-age-grace", "5"]).is_ok());
        for arguments in [
            vec!["--max-connection-age-grace", "5"],
            vec!["--max-connection-age", "0", "--max-connection-age-grace", "5"],
        ] {
            let error = check(&arguments).unwrap_err().to_string();
            assert!(
                error.starts_with("--max-connection-age-grace 5 ") && error.contains("set --max-connection-age,"),
                "{error}"
            );
        }
    }

    #[test]
    fn durations_are_within_their_limits() {
        for flag in ["--drain-wait", "--drain-timeout", "--connection-idle", "--max-connection-age"] {
            for value in ["-1", "1e9", "NaN", "soon"] {
                let refused = Command::try_parse_from(["program", &format!("{flag}={value}")]);
                assert!(refused.is_err(), "{flag} {value}");
            }
        }
    }
}
