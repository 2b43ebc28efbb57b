"""A recipe of tiny runs: two methods or more on a data set of three colours, seconds in all."""

from pathlib import Path

import yaml

from experiments import expand, load_recipe

TINY = Path(__file__).parents[2] / "dassl" / "engine" / "tiny_method.py"
CONFIG = {
    "INPUT": {"SIZE": [8, 8], "TRANSFORMS": ["normalize"]},
    "DATALOADER": {"NUM_WORKERS": 0, "TRAIN_X": {"BATCH_SIZE": 6}, "TEST": {"BATCH_SIZE": 5}},
    "OPTIM": {"NAME": "sgd", "LR": 0.05, "MAX_EPOCH": 2},
}


def write_recipe(folder, **entries):
    """Write a recipe for the trainer Tiny into `folder`; returns its path. `entries` replace or add to its own."""
    (folder / "set.yaml").write_text("DATASET: {NAME: TinyImages}\n")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    content = {
        "task": "few_shot",
        "imports": [str(TINY)],
        "config": str(folder / "tiny.yaml"),
        "datasets": [str(folder / "set.yaml")],
        "shots": 1,
        "seeds": [1, 2],
        "methods": ["Tiny"],
        **entries,
    }
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def slow(seconds, epochs=2):
    """A method whose training takes `seconds` per batch, three batches an epoch."""
    options = {"TRAINER.TINY.SLEEP": seconds, "OPTIM.MAX_EPOCH": epochs}
    return {"name": "Slow", "trainer": "Tiny", "variant": "slow", "options": options}


BROKEN = {"name": "Broken", "trainer": "Tiny", "variant": "broken", "options": {"TRAINER.TINY.BREAK_AT": 1}}


def tiny_runs(folder, **entries):
    """The runs of such a recipe, below folder/out."""
    recipe = load_recipe(write_recipe(folder, **entries))
    return expand(recipe, root=folder / "images", output=folder / "out")
