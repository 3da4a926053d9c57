"""`nbagent train` as one of several processes, the first of which has the launcher interrupted: see test_processes.py.

Arguments: the place, the number of the visit, and then those of the command line.
"""

import os
import signal
import sys
import time

import torch
from lives import visit

from nbagent.cli import main
from nbagent.trajectory import Recorder


def interrupt(*args, **kwargs):
    """As Ctrl-C in the launcher's terminal: the processes are in sessions of their own, and it passes the signal on."""
    os.kill(os.getppid(), signal.SIGINT)
    # Far beyond what is needed in the main thread, which the signal reaches here; others are waited for.
    time.sleep(2)


if __name__ == "__main__":
    place, number = sys.argv[1], int(sys.argv[2])
    if os.environ["RANK"] == "0" and place == "rollouts":
        visit(Recorder, "record", interrupt, number, lambda recorder, kind: kind == "end")
    elif os.environ["RANK"] == "0" and place == "update":
        visit(torch.optim.AdamW, "step", interrupt, number)
    sys.argv[1:3] = []
    main()
