"""torchrun with the exit code of the rank that failed first, instead of exit code 1 and torchrun's traceback.

The exit code distinguishes preempted, interrupted and failed runs. The launchers start it as
``python -m geexp.launching.torchrun``, with torchrun's arguments.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def run() -> None:
    # torchrun logs stopped ranks as failed; ranks that do fail print their own error.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        if code < 0:
            print(f"geexp.train: rank {rank}, process {failure.pid}, was killed by signal {-code}", file=sys.stderr)
        sys.exit(code if code >= 0 else 128 - code)  # as in shells
    except SignalException as stop:  # before any rank was started
        sys.exit(128 + stop.sigval)


if __name__ == "__main__":
    run()
