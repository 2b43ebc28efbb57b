"""Mean and spread of a figure over runs: `python parse_test_res.py --help`."""

import signal
import sys

from tools.parse_test_res import main

if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has seen enough: no error
    sys.exit(main())
