"""`python -m datasets.prepare NAME`: fetch, unpack and check a data set."""

import sys

from datasets.prepare.flags import build_parser

if __name__ == "__main__":
    build_parser().parse_args()  # --help and unknown flags end here, before all else is imported
    from datasets.prepare.command import main

    sys.exit(main())
