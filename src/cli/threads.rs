//! `--threads`.

#[derive(clap::Args)]
pub(crate) struct ThreadsArgs {
    /// Number of threads. Default: one per processor. With one thread, the same seed produces the same result.
    #[arg(long, value_name = "N", value_parser = super::numbers::whole::<u16>(1..=256))]
    threads: Option<u16>,
}

impl ThreadsArgs {
    pub(crate) fn count(&self) -> usize {
        self.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }

    /// Starts the process-wide rayon pool and returns its number of threads.
    pub(crate) fn start_pool(&self) -> anyhow::Result<usize> {
        rayon::ThreadPoolBuilder::new().num_threads(self.count()).build_global()?;
        Ok(self.count())
    }
}
