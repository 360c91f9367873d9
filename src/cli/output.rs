//! `--format` and `--out`, with the same meaning in every command. Results go to standard output or to a file; progress
//! and logs go to standard error.
use super::paths::new_file;
use anyhow::Context;
use lodestone_events::storage;
use serde::Serialize;
use std::{
    fmt::Display,
    fs,
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Aligned text to read.
    #[default]
    Table,
    /// One JSON document for programs.
    Json,
}

/// Flag of commands whose `--out` names a dataset or a bundle: the summary is printed.
#[derive(clap::Args)]
pub(crate) struct FormatArgs {
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The same as --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// Flags of commands whose result is a report.
#[derive(clap::Args)]
pub(crate) struct OutputArgs {
    #[command(flatten)]
    format: FormatArgs,
    /// Writes the result to this file instead of standard output.
    #[arg(long, value_name = "FILE", value_parser = new_file)]
    out: Option<PathBuf>,
}

impl FormatArgs {
    fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }

    fn render(&self, result: &(impl Serialize + Display)) -> anyhow::Result<String> {
        let mut text = match self.format() {
            Format::Json => serde_json::to_string_pretty(result)?,
            Format::Table => result.to_string(),
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(text)
    }

    /// Prints the result to standard output.
    pub(crate) fn print(&self, result: &(impl Serialize + Display)) -> anyhow::Result<()> {
        write_to(&mut io::stdout().lock(), &self.render(result)?).context("standard output")
    }
}

impl OutputArgs {
    /// Writes the result to `--out`, or to standard output without it.
    pub(crate) fn write(&self, result: &(impl Serialize + Display)) -> anyhow::Result<()> {
        match &self.out {
            None => self.format.print(result),
            Some(path) => write_file("--out", path, &self.format.render(result)?),
        }
    }
}

impl OutputArgs {
    /// Fails if the file of `--out` exists, because it may have the only copy of another secret. Devices and pipes are
    /// written to.
    pub(crate) fn refuse_existing(&self) -> anyhow::Result<()> {
        let Some(path) = self.out.as_deref().filter(|path| path.is_file()) else { return Ok(()) };
        anyhow::bail!(
            "--out {}: the file exists, and may have a key that is stored nowhere else; name another file, or remove it first",
            path.display()
        )
    }

    /// Writes a result with a secret. The file of `--out`, which only its owner reads, has the secret alone, unless the
    /// format is JSON; `described` without the secret is then printed to standard error.
    pub(crate) fn write_secret(
        &self,
        secret: &str,
        described: &str,
        result: &(impl Serialize + Display),
    ) -> anyhow::Result<()> {
        let Some(path) = &self.out else { return self.format.print(result) };
        let text = match self.format.format() {
            Format::Table => {
                write_to(&mut io::stderr().lock(), described).context("standard error")?;
                format!("{secret}\n")
            }
            Format::Json => self.format.render(result)?,
        };
        let written = storage::create_private(path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("--out {}", path.display()))
    }
}

/// A reader that closes its end early, such as `head`, is no failure.
fn write_to(stream: &mut impl Write, text: &str) -> io::Result<()> {
    match stream.write_all(text.as_bytes()).and_then(|()| stream.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Writes a file that the user named with `flag`.
pub(crate) fn write_file(flag: &str, path: &Path, contents: &str) -> anyhow::Result<()> {
    fs::write(path, contents).with_context(|| format!("{flag} {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_broken_pipe_is_success_and_a_full_disk_is_not() {
        assert!(write_to(&mut Failing(ErrorKind::BrokenPipe), "text").is_ok());
        assert!(write_to(&mut Failing(ErrorKind::StorageFull), "text").is_err());
    }
}
