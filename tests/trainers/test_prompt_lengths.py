"""Context lengths against the text tower: refused from the config alone, all at once, before data are read."""

import pytest

import train  # noqa: F401  registers the methods
from clip import input_of
from dassl.config import ConfigError, check_values
from dassl.config.flags import build_parser
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.command import build_config, known_config
from trainers.base import CLIPTrainer

EMBEDDED = "emoji-ViT-S/8"


def problems(trainer, *pairs):
    cfg = known_config()
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", EMBEDDED, "TRAINER.NAME", trainer, *pairs])
    return TRAINER_REGISTRY.get(trainer).config_problems(cfg)


def test_the_defaults_of_every_method_fit():
    for name in TRAINER_REGISTRY.registered_names():
        if issubclass(TRAINER_REGISTRY.get(name), CLIPTrainer):
            assert problems(name, "DATASET.NUM_SHOTS", 16) == []


def test_the_size_of_texts_is_read_from_the_header():
    import clip

    model, _ = clip.load(EMBEDDED)
    found = input_of(EMBEDDED)
    assert (found.context_length, found.vocab_size) == (model.context_length, model.vocab_size)


@pytest.mark.parametrize(
    ("trainer", "pairs", "expected"),
    [
        ("CoOp", ("TRAINER.COOP.N_CTX", 74), "COOP.N_CTX is 74, expected at most 73"),
        ("CoOp", ("TRAINER.COOP.N_CTX", 73), None),
        ("CoOp", ("TRAINER.COOP.N_CTX", 10**12), "COOP.N_CTX is 1000000000000, expected"),
        ("CoOp", ("TRAINER.COOP.N_CTX", 500, "TRAINER.COOP.CTX_INIT", "a photo of a"), None),  # N_CTX is not used
        ("CoOp", ("TRAINER.COOP.CTX_INIT", "word " * 74), "CTX_INIT is 74 tokens long, expected at most 73"),
        ("CoOp", ("TRAINER.COOP.CTX_INIT", "word " * 200), "too long for context length 77"),
        ("CoOp", ("INPUT.TEMPLATE", "word " * 100 + "{}"), "INPUT.TEMPLATE: .*too long"),
        ("CoOp", ("INPUT.TEMPLATE", "a photo"), "INPUT.TEMPLATE: .*exactly once"),
        ("MaPLe", ("TRAINER.MAPLE.N_CTX", 9), "has 4 tokens but N_CTX is 9"),
        ("MaPLe", ("TRAINER.MAPLE.CTX_INIT", "word " * 75), "CTX_INIT is 75 tokens long"),
        ("MaPLe", ("TRAINER.MAPLE.CTX_INIT", "word " * 75, "TRAINER.MAPLE.KEEP_REST", False), None),
        ("MaPLe", ("TRAINER.MAPLE.CTX_INIT", "", "TRAINER.MAPLE.N_CTX", 80), "MAPLE.N_CTX is 80"),
        ("PromptSRC", ("TRAINER.PROMPTSRC.CTX_INIT", "", "TRAINER.PROMPTSRC.N_CTX_TEXT", 80), "N_CTX_TEXT is 80"),
        ("ALIGN", ("TRAINER.ALIGN.CTX_INIT", ["a b", "c d"]), "a list of 2.*there are 4 textual prompts"),
        ("ALIGN", ("TRAINER.ALIGN.VISION_PROMPT_NUMBER", 3), "VISION_PROMPT_NUMBER is 3, expected the 4"),
        ("PLOT", ("TRAINER.PLOT.CTX_INIT", "a photo of a", "TRAINER.PLOT.N_CTX", 9), "has 4 tokens but N_CTX is 9"),
        ("PLOTPP", ("TRAINER.PLOTPP.CTX_INIT", "word " * 75), "CTX_INIT is 75 tokens long"),
        ("MaPLeLAMM", ("TRAINER.MAPLE.N_CTX", 9, "DATASET.NUM_SHOTS", 4), "N_CTX is 9"),
        ("CoOp", ("TEST.VIEWS", 2), "TEST.VIEWS is 2"),
    ],
)
def test_lengths_and_phrases(trainer, pairs, expected):
    import re

    found = problems(trainer, *pairs)
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert re.search(expected, found[0])


def test_a_backbone_that_is_not_known_is_left_to_its_loading():
    assert problems("CoOp", "MODEL.BACKBONE.NAME", "no such", "TRAINER.COOP.N_CTX", 500) == []


def test_they_are_shown_with_all_other_errors_before_data_are_read(tmp_path):
    pairs = ("TRAINER.COOP.N_CTX", "74", "OPTIM.GAMMA", "-1", "INPUT.TEMPLATE", "x", "TEST.VIEWS", "1")
    flags = ["--root", str(tmp_path / "none"), "--trainer", "CoOp", "--backbone", EMBEDDED]
    with pytest.raises(ConfigError) as caught:
        build_config(build_parser().parse_args([*flags, *pairs]))
    named = sorted(problem.split(" ")[0].rstrip(":") for problem in caught.value.problems)
    assert named == ["INPUT.TEMPLATE", "OPTIM.GAMMA", "TEST.VIEWS", "TRAINER.COOP.N_CTX"]


def test_relations_wait_for_values_that_are_right_by_themselves():
    cfg = known_config()
    cfg.merge_from_list(["TRAINER.COOP.N_CTX", 0])
    with pytest.raises(ConfigError, match=r"1 error .*\n.*N_CTX is 0"):
        check_values(cfg, lambda cfg: 1 / 0)


def test_imports_among_the_pairs_come_too_late():
    with pytest.raises(ValueError, match="use --import"):
        build_config(build_parser().parse_args(["IMPORTS", "['/no/such.py']"]))
