"""A fault of each kind in every set-up, at other system calls in each; `make faults` tries hundreds of them."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("every_fault.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.timeout(900)
def test_a_run_goes_on_after_every_fault():
    command = [sys.executable, str(SCRIPT), "--kills", "1", "--others", "1"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.splitlines()[-1].startswith("11 kill, 11 full, 11 broken, 11 read, 0 differ")


def test_a_clock_that_jumps_changes_nothing(tiny, monkeypatch):
    import itertools
    import time

    whole = tiny(output="whole")
    jumps = itertools.cycle([0.0, 86400.0, -86400.0, 1e9])
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + next(jumps))
        jumped = tiny()
    for name in ("accuracy", "ece", "counts", "fingerprint_hash", "mode"):
        assert jumped[name] == whole[name]
