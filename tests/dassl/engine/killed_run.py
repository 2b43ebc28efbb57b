"""Runs train.py's main in a process of its own and lets it be killed at a chosen moment of writing."""

import multiprocessing
import os
import signal
import sys


def start(arguments, log, kill_at=None):
    """Run to the end; with kill_at = (function of os, n) the process kills itself at the n-th call of that function.

    "fsync" strikes when a file is written but not yet in its place, "replace" right before it would be.
    """
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w")
    multiprocessing.set_start_method("fork", force=True)  # for data workers, as in a run from the command line
    import train

    if kill_at is not None:
        name, strike = kill_at
        original, calls = getattr(os, name), []

        def strike_or_call(*args, **options):
            calls.append(name)
            if len(calls) == strike:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        setattr(os, name, strike_or_call)
    train.main(arguments)
