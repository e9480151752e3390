"""`mqttapi` with a supervisor that takes two seconds of silence for sixty: `python -m tests.workers.impatient run`."""

import sys

from mqttapi.cli import main
from mqttapi.workers import supervisor

if __name__ == "__main__":
    supervisor.HEARTBEAT = 2  # type: ignore[misc]  # a constant to everybody else
    main(sys.argv[1:])
