"""The process of a server that a benchmark measures."""
import signal
import socket
import subprocess
import sys
import time

START_SECONDS = 300


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class ServerProcess:
    """A server process, which ends with the context. A subclass has `is_ready`, which returns whether the server answers."""

    def start(self, command, log, **options):
        """Starts the process, with its output in a file, and waits until it is ready. Ends the program if it does not
        start."""
        self.log = open(log, "w+")
        # A session of its own is a group of Linux's scheduler, as a container is: its threads share the processor with each
        # other by their priorities, and as a whole with the load generator.
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True, **options)
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.log.seek(0)
                sys.exit(f"the server did not start:\n{self.log.read()[-2000:]}")
            time.sleep(0.02)

    def end(self, signal_number=signal.SIGTERM):
        self.process.send_signal(signal_number)
        self.process.wait(timeout=120)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end()
