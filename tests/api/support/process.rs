//! A server in a process of its own.
use super::{server::TIME_MAX, wait::wait_until};
use parking_lot::Mutex;
use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
};
use tonic::transport::{Channel, Endpoint};

/// A server process, killed by SIGKILL when it is dropped.
pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
    pub(crate) address: String,
}

impl Process {
    /// Starts `lodestone serve` with the flags that `configure` adds, and waits until it serves. Panics with its log if it
    /// ends before.
    pub(crate) async fn serve(configure: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lodestone"));
        command.arg("serve").stderr(Stdio::piped());
        let mut child = configure(&mut command).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, written) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        // A full pipe would block the server.
        let follow = move || {
            for line in lines.map_while(Result::ok) {
                written.lock().extend([line.as_str(), "\n"]);
            }
        };
        std::thread::Builder::new().name("server-log".into()).spawn(follow).unwrap();
        let mut process = Self { child, log, address: String::new() };
        let mut address = None;
        wait_until("the server serves", TIME_MAX, async || {
            assert!(process.child.try_wait().unwrap().is_none(), "{}", process.log());
            address = address_in(&process.log());
            address.is_some()
        })
        .await;
        process.address = address.unwrap();
        process
    }

    /// Returns what the server has logged.
    pub(crate) fn log(&self) -> String {
        self.log.lock().clone()
    }

    /// Returns a channel with a connection of its own, without TLS.
    pub(crate) fn connect(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the address in the line of a log that says that the server serves.
fn address_in(log: &str) -> Option<String> {
    let (_, address) = log.split_once(" serving address=")?;
    Some(address.split_whitespace().next()?.to_owned())
}
