"""Start your own method: python -m tools.new_method NAME [--node NODE].

Writes a trainer, a config for the small embedded CLIP and a test, which work as they are; then make them yours as
docs/add_a_method.md shows.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

from dassl.engine import TRAINER_REGISTRY

ROOT = Path(__file__).resolve().parents[1]

TRAINER = Template('''\
"""$name: say here what is learned and from where it comes (paper, section)."""

from __future__ import annotations

from torch import Tensor
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY

from .base import Output, PromptTrainer
from .parts.prompts import Learner, TextContext


@TRAINER_REGISTRY.register()
class $name(PromptTrainer):
    """Cosine logits against sentences whose first words are learned, and a penalty on long context vectors."""

    node = "$node"

    @staticmethod
    def defaults() -> CfgNode:
        return CfgNode(
            {
                "$node": {
                    "PREC": "fp16",  # fp32, fp16, amp or bf16
                    "N_CTX": 4,  # number of context vectors, if they start at random
                    "CTX_INIT": "a photo of a",  # words that start the context; empty = random
                    "WEIGHT": 0.1,  # of the penalty
                }
            }
        )

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        weight = cfg.TRAINER.$node.WEIGHT
        if not weight >= 0:
            raise ValueError(f"TRAINER.$node.WEIGHT is {weight}, expected 0 or more")

    def build_learner(self, model, classnames) -> Learner:
        """Learned parameters and their place in text and images: see trainers/parts/prompts.py."""
        return TextContext(model, classnames, self.options.N_CTX, self.options.CTX_INIT)

    def extra_losses(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        """Terms besides cross-entropy, by name; all are added up and logged."""
        return {"penalty": self.options.WEIGHT * self.model.learner.ctx.square().sum(dim=-1).mean()}
''')

CONFIG = Template("""\
# $name with the small embedded CLIP, for all settings on the embedded data sets.
# Run: bash scripts/run.sh $name emoji emoji_groups 1 DATASET.NUM_SHOTS 16
# Not measured yet.
_BASE_: ../../bases/emoji.yaml
TRAINER:
  $node:
    CTX_INIT: "a picture of a"
    PREC: fp32
""")

TEST = Template('''\
"""$name against its formulas, written out for one image and one class at a time, on a tiny CLIP."""

import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

import clip
$imports


@pytest.fixture
def trainer(tiny_clip, names):
    """The method without data and engine around it."""
    trainer = object.__new__($name)
    trainer.cfg = CfgNode({"TRAINER": $name.defaults()})
    learner = trainer.build_learner(tiny_clip, names)
    trainer.model = PromptedCLIP(tiny_clip, learner, trainer.build_score(learner))
    return trainer


@pytest.fixture
def images(rng):
    return torch.randn(3, 3, 32, 32, generator=rng)


def test_logits_at_the_start_are_those_of_the_words(trainer, tiny_clip, names, images):
    expected = torch.empty(len(images), len(names))
    with torch.no_grad():
        for c, name in enumerate(names):
            sentence = f"a photo of a {name.replace('_', ' ')}."
            text = tiny_clip.encode_text(clip.tokenize([sentence], vocab_size=tiny_clip.vocab_size)).pooled[0]
            for b, image in enumerate(images):
                feature = tiny_clip.encode_image(image[None]).pooled[0]
                expected[b, c] = tiny_clip.logit_scale.exp() * (feature @ text) / (feature.norm() * text.norm())
        found = trainer.model(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_loss_terms(trainer, images):
    vectors = trainer.model.learner.ctx.detach()
    expected = trainer.options.WEIGHT * sum(float((vector**2).sum()) for vector in vectors) / len(vectors)
    terms = trainer.extra_losses(trainer.model(images), torch.tensor([0, 1, 2]))
    assert {term: float(value.detach()) for term, value in terms.items()} == pytest.approx({"penalty": expected})


def test_every_learned_parameter_gets_a_gradient(trainer, tiny_clip, images):
    label = torch.tensor([0, 1, 2])
    output = trainer.model(images)
    (F.cross_entropy(output.logits, label) + sum(trainer.extra_losses(output, label).values())).backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in trainer.model.learner.parameters())
    assert all(p.grad is None for p in tiny_clip.parameters())


def test_bad_options_are_refused(trainer):
    cfg = trainer.cfg.clone()
    cfg.TRAINER.$node.WEIGHT = -1.0
    with pytest.raises(ValueError, match=r"TRAINER\\.$node\\.WEIGHT is -1\\.0"):
        trainer.check_cfg(cfg)
''')


def check_names(name: str, node: str) -> None:
    """Check that a method and its config section may be called so.

    Raises:
        ValueError: a name is not an identifier, or taken.
    """
    pattern = r"[A-Za-z][A-Za-z0-9_]*"
    if not re.fullmatch(pattern, name) or keyword.iskeyword(name) or keyword.iskeyword(name.lower()):
        raise ValueError(f"the name of a method is {name!r}, expected a Python identifier such as MyMethod")
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", node) or node == "NAME":
        raise ValueError(f"--node is {node!r}, expected capital letters, digits and _ such as MYMETHOD, and not NAME")
    for known in TRAINER_REGISTRY.registered_names():
        if known.lower() == name.lower():
            raise ValueError(f"there is a trainer {known} already; choose another name than {name}")
        defaults = getattr(TRAINER_REGISTRY.get(known), "defaults", None)
        if defaults is not None and node in defaults():
            raise ValueError(f"TRAINER.{node} is the section of {known} already; choose another with --node")


def create(name: str, node: str | None, root: Path) -> list[Path]:
    """Write the three files of a new method below `root`, all or none.

    Args:
        name: of the trainer class, as in --trainer NAME.
        node: of its config section below TRAINER; the name in capitals when None.
        root: of a checkout of this project.

    Returns:
        The files written: trainer, config, test.

    Raises:
        ValueError: a name is not an identifier or taken, or `root` is not a checkout.
        FileExistsError: one of the files exists, or a test file of that name elsewhere.
    """
    node = name.upper() if node is None else node
    check_names(name, node)
    module = name.lower()
    if not (root / "trainers" / "base.py").is_file() or not (root / "tests" / "trainers").is_dir():
        raise ValueError(f"{root} is not a checkout of this project: it needs trainers/ and tests/trainers/")
    contents = {
        root / "trainers" / f"{module}.py": TRAINER,
        root / "configs" / "trainers" / name / "emoji.yaml": CONFIG,
        root / "tests" / "trainers" / f"test_{module}.py": TEST,
    }
    same_test = sorted((root / "tests").rglob(f"test_{module}.py"))  # pytest needs different names
    shared = sorted((root / "trainers").rglob(f"{module}.py"))
    taken = [path for path in contents if path.exists()] + shared + same_test
    if taken:
        raise FileExistsError(f"{taken[0].relative_to(root)} exists already and is left as it is; choose another name")
    imports = sorted(["from trainers.base import PromptedCLIP", f"from trainers.{module} import {name}"])
    for path, template in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(template.substitute(name=name, node=node, imports="\n".join(imports)))
    return list(contents)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.new_method",
        description="Write the trainer, the config and the test of a new method; nothing is overwritten.",
        epilog="What to do next: docs/add_a_method.md",
    )
    parser.add_argument("name", metavar="NAME", help="of the method, such as MyMethod")
    parser.add_argument("--node", metavar="NODE", help="its section below TRAINER (default: NAME in capitals)")
    args = parser.parse_args(argv)
    try:
        files = create(args.name, args.node, ROOT)
    except (ValueError, OSError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    for file in files:
        print(f"written: {file.relative_to(ROOT)}")
    print(f"""
It works as it is:
  bash scripts/run.sh {args.name} emoji emoji_groups 1 DATASET.NUM_SHOTS 16
  bash scripts/test.sh tests/trainers/{files[2].name} tests/test_trainers.py -k {args.name.lower()}
docs/add_a_method.md says how to make it yours.""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
