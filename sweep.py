"""Do all runs of one or more recipes: `python sweep.py --help`.

python sweep.py RECIPE...           do what is not done yet, continue what was stopped, retry what failed
python sweep.py status RECIPE...    how far it is
python sweep.py tune RECIPE         choose the options of its methods on validation images
"""

import sys

from experiments.sweeps.flags import parse

if __name__ == "__main__":
    parse()  # --help and unknown flags end here, before torch is imported
    from experiments.sweeps.command import main

    sys.exit(main())
