//! The exit codes of every command.
use std::process::ExitCode;

/// How a command ended. The discriminant is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Success = 0,
    /// The command ran to its end and the answer is no. The result is printed as usual.
    No = 1,
    /// The command could not do its work: usage, configuration or a failure while running. Clap uses the same code.
    Error = 2,
    /// A signal ended the command before its work was done: 128 + SIGINT, the convention of shells.
    Interrupted = 130,
}

impl Exit {
    const ALL: [Self; 4] = [Self::Success, Self::No, Self::Error, Self::Interrupted];

    /// `Success` for yes, `No` for no.
    pub(crate) fn answer(is_yes: bool) -> Self {
        if is_yes { Self::Success } else { Self::No }
    }

    pub(crate) fn code(self) -> i32 {
        self as i32
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::No => "the command ran and the answer is no: a bundle is refused, a log is damaged, ...",
            Self::Error => "usage, configuration or runtime error; the reason is on standard error",
            Self::Interrupted => "interrupted by Ctrl-C or SIGTERM; a server finishes its requests and ends with 0",
        }
    }

    /// The section of `lodestone --help`.
    pub(crate) fn help() -> String {
        let lines = Self::ALL.map(|exit| format!("  {:>3}  {}\n", exit.code(), exit.meaning()));
        format!("Exit codes:\n{}", lines.concat())
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
