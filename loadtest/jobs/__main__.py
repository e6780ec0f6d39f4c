"""`python -m loadtest.jobs`."""

import signal
import sys

from loadtest.jobs.cli import main


def _stop(number: int, _frame: object) -> None:
    """End like after an error, so that the processes are stopped too."""
    sys.exit(128 + number)


signal.signal(signal.SIGTERM, _stop)
main(prog_name="python -m loadtest.jobs")
