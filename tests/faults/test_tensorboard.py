"""TensorBoard files of a run that was stopped have every point once."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dassl.engine.simple import SimpleTrainer


def steps(folder: Path) -> list[int]:
    found = []
    for path in sorted(folder.glob("events*")):
        events = EventAccumulator(str(path)).Reload()
        found += [event.step for event in events.Scalars("train/lr")] if "train/lr" in events.Tags()["scalars"] else []
    return found


@pytest.mark.parametrize("epoch", [0, 2])
def test_no_point_is_there_twice(tiny, tmp_path, monkeypatch, epoch):
    def stop(trainer):
        if trainer.epoch == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SimpleTrainer, "after_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            tiny()
    assert len(steps(tmp_path / "run" / "tensorboard")) == 3 * (epoch + 1)
    tiny()
    assert steps(tmp_path / "run" / "tensorboard") == list(range(12))
