//! The `lodestone` binary. All code is in the library.
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lodestone::cli::run().into()
}
