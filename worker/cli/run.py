"""`run`: the worker."""

from worker.app import run_worker
from worker.settings import load_settings
from worker.telemetry import configure_logs


def run() -> None:
    """Run the worker: apply measurement updates to Postgres and answer them.

    SIGTERM or Ctrl-C finishes what is in flight and exits 0 within WORKER_DRAIN_TIMEOUT. While Kafka or Postgres is
    away it waits, says so in its log, and goes on. Run as many as you like: they share the partitions.
    """
    settings = load_settings(with_servers=True)
    configure_logs(settings.worker_log_level)
    run_worker(settings)
