"""Tables of a recipe beside the published numbers: `python report.py RECIPE`, see `python report.py --help`."""

import signal
import sys

from experiments.reports.flags import build_parser

if __name__ == "__main__":
    build_parser().parse_args()  # --help and unknown flags end here, before torch is imported
    from experiments.reports.command import main

    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has seen enough: no error
    sys.exit(main())
