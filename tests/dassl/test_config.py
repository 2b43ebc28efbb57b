"""Merging and checking of configs."""

import pytest
from yacs.config import CfgNode as YacsNode

from dassl.config import CfgNode, ConfigError, check_values, clean_cfg, get_cfg_default


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_defaults_of_the_original():
    cfg = get_cfg_default()
    assert cfg.SEED == -1
    assert cfg.USE_CUDA is True
    assert cfg.OUTPUT_DIR == "./output"
    assert cfg.INPUT.SIZE == (224, 224)
    assert cfg.INPUT.RRCROP_SCALE == (0.08, 1.0)
    assert cfg.DATALOADER.NUM_WORKERS == 4
    assert cfg.DATALOADER.TRAIN_X == {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}
    assert cfg.DATALOADER.TEST == {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32}
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY, cfg.OPTIM.MOMENTUM) == ("adam", 3e-4, 5e-4, 0.9)
    assert (cfg.OPTIM.LR_SCHEDULER, cfg.OPTIM.STEPSIZE, cfg.OPTIM.GAMMA) == ("single_step", (-1,), 0.1)
    assert (cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_RECOUNT) == (10, -1, True)
    assert (cfg.OPTIM.WARMUP_TYPE, cfg.OPTIM.WARMUP_CONS_LR, cfg.OPTIM.WARMUP_MIN_LR) == ("linear", 1e-5, 1e-5)
    assert (cfg.TRAIN.CHECKPOINT_FREQ, cfg.TRAIN.PRINT_FREQ, cfg.TRAIN.COUNT_ITER) == (0, 10, "train_x")
    assert (cfg.TEST.EVALUATOR, cfg.TEST.SPLIT, cfg.TEST.FINAL_MODEL) == ("Classification", "test", "last_step")
    assert (cfg.DATASET.SUBSAMPLE_CLASSES, cfg.DATASET.NUM_SHOTS) == ("all", -1)
    check_values(cfg)


def test_each_call_gives_a_fresh_copy():
    cfg = get_cfg_default()
    cfg.INPUT.PIXEL_MEAN.append(1.0)
    cfg.OPTIM.LR = 1.0
    assert get_cfg_default().INPUT.PIXEL_MEAN == [0.485, 0.456, 0.406]
    assert get_cfg_default().OPTIM.LR == 3e-4


def test_yaml_texts_become_numbers_and_tuples(tmp_path):
    cfg = get_cfg_default()
    text = "OPTIM:\n  WARMUP_CONS_LR: 1e-5\n  LR: 1\nINPUT:\n  SIZE: (64, 32)\n  TRANSFORMS: [normalize]\nSEED: 3\n"
    cfg.merge_from_file(write(tmp_path, text))
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5
    assert cfg.OPTIM.LR == 1.0
    assert type(cfg.OPTIM.LR) is float
    assert cfg.INPUT.SIZE == (64, 32)
    assert cfg.INPUT.TRANSFORMS == ("normalize",)
    assert cfg.SEED == 3


def test_same_result_as_yacs_where_both_accept(tmp_path):
    text = "A: (1, 2)\nB:\n  C: '2.5'\n  D: [3]\n  E: some/path\nF: 'True'\n"
    plain = YacsNode({"A": (0,), "B": {"C": 0.0, "D": (), "E": ""}, "F": False})
    own = CfgNode({"A": (0,), "B": {"C": 0.0, "D": (), "E": ""}, "F": False})
    path = write(tmp_path, text)
    for node in (plain, own):
        node.merge_from_file(str(path))
        node.merge_from_list(["B.E", "x", "A", "[4, 5]"])
    assert own == plain
    assert own.A == (4, 5)


def test_all_faults_at_once_and_nothing_applied(tmp_path):
    cfg = get_cfg_default()
    text = "SEED: 5\nOPTIM:\n  LRR: 0.1\n  MAX_EPOCH: 2.5\nTRAIN: 3\nDATALOADER:\n  TRAIN_X:\n    BATCH_SIZE: many\n"
    with pytest.raises(ConfigError) as caught:
        cfg.merge_from_file(write(tmp_path, text))
    message = str(caught.value)
    assert "4 errors" in message
    assert "config.yaml" in message
    assert "unknown key OPTIM.LRR (do you mean OPTIM.LR?)" in message
    assert "OPTIM.MAX_EPOCH is 2.5 (float), expected int such as 10" in message
    assert "TRAIN is a section" in message
    assert "DATALOADER.TRAIN_X.BATCH_SIZE is 'many' (str)" in message
    assert cfg == get_cfg_default()


def test_unknown_key_is_a_key_error_and_a_value_error():
    for kind in (KeyError, ValueError):
        with pytest.raises(kind, match=r"unknown key TRAINER\.COOP\.N_CTX"):
            get_cfg_default().merge_from_list(["TRAINER.COOP.N_CTX", "4"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEED", "True"),
        ("USE_CUDA", "1"),
        ("OPTIM.LR", "None"),
        ("OPTIM.LR", "fast"),
        ("INPUT.SIZE", "224"),
        ("SEED", ""),
    ],
)
def test_wrong_types_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        get_cfg_default().merge_from_list([key, value])


def test_a_text_that_looks_like_a_number_stays_a_text():
    cfg = get_cfg_default()
    cfg.merge_from_list(["OUTPUT_DIR", "2024", "DATASET.NAME", "'Food'"])
    assert cfg.OUTPUT_DIR == "2024"
    assert cfg.DATASET.NAME == "Food"


def test_odd_list_double_key_broken_yaml_missing_file(tmp_path):
    cfg = get_cfg_default()
    with pytest.raises(ConfigError, match="odd number"):
        cfg.merge_from_list(["SEED"])
    with pytest.raises(ConfigError, match="the key LR stands twice"):
        cfg.merge_from_file(write(tmp_path, "OPTIM:\n  LR: 0.1\n  LR: 0.2\n"))
    with pytest.raises(ConfigError, match="not readable as yaml"):
        cfg.merge_from_file(write(tmp_path, "OPTIM: [1,\n"))
    with pytest.raises(ConfigError, match="expected keys and values"):
        cfg.merge_from_file(write(tmp_path, "just words\n"))
    with pytest.raises(FileNotFoundError, match="absent"):
        cfg.merge_from_file(tmp_path / "absent.yaml")
    cfg.merge_from_file(write(tmp_path, "# only a comment\n"))
    assert cfg == get_cfg_default()


def test_a_method_adds_its_own_keys():
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = YacsNode({"N_CTX": 16, "CSC": False})
    cfg.merge_from_list(["TRAINER.COOP.N_CTX", "4"])
    assert cfg.TRAINER.COOP.N_CTX == 4
    cfg.merge_from_other_cfg(YacsNode({"TRAINER": {"COOP": {"CSC": True}}}))
    assert cfg.TRAINER.COOP.CSC is True


def test_new_keys_where_they_are_allowed():
    cfg = get_cfg_default()
    cfg.set_new_allowed(True)
    cfg.merge_from_list(["TRAINER.MINE.DEEP.RATE", "0.5"])
    assert cfg.TRAINER.MINE.DEEP.RATE == 0.5
    assert "RATE: 0.5" in cfg.dump()


def test_dump_can_be_merged_again(tmp_path):
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.TRANSFORMS", "('normalize', 'random_flip')", "OPTIM.LR", "2e-3"])
    again = get_cfg_default()
    again.merge_from_file(write(tmp_path, cfg.dump()))
    assert again == cfg


def test_frozen_config_cannot_be_set():
    cfg = get_cfg_default()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.OPTIM.LR = 1.0


def test_check_values_lists_every_fault():
    cfg = get_cfg_default()
    cfg.merge_from_list(
        ["INPUT.INTERPOLATION", "cubic", "OPTIM.NAME", "sdg", "OPTIM.MAX_EPOCH", "0", "INPUT.SIZE", "(224,)"]
        + ["INPUT.PIXEL_STD", "[1.0, 0.0, 1.0]", "SEED", str(2**32), "OPTIM.STEPSIZE", "()"]
        + ["DATASET.SUBSAMPLE_CLASSES", "old", "DATALOADER.NUM_WORKERS", "-1", "INPUT.PIXEL_MEAN", "[1.0]"]
    )
    with pytest.raises(ConfigError) as caught:
        check_values(cfg)
    assert len(caught.value.problems) == 10
    assert "INPUT.INTERPOLATION is 'cubic', expected one of bilinear, bicubic, nearest" in caught.value.problems


def test_clean_cfg_keeps_one_method():
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 16})
    cfg.TRAINER.ALIGN = CfgNode({"M": 4})
    clean_cfg(cfg, "CoOp")
    assert set(cfg.TRAINER) == {"NAME", "COOP"}


def test_a_config_is_dumped_as_yacs_does():
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.ROOT", "é: #\n 'x'", "SEED", 3])
    text = YacsNode.dump(cfg)
    assert "SEED: 3" in text
    assert cfg.dump() == text
