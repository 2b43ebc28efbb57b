"""Bases, sections and generated configs, and what a config leaves to the backbone."""

import pytest
import torch

import clip
import train
from dassl.config import CfgNode, ConfigError, get_cfg_default
from dassl.config.files import config_exists, config_files, config_names, config_pairs
from dassl.config.imports import imports_of


@pytest.fixture
def tiny_clip():
    return clip.new_model(
        embed_dim=16,
        image_resolution=24,
        vision_layers=1,
        vision_width=64,
        vision_patch_size=8,
        context_length=16,
        vocab_size=600,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    )


def write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def values(path):
    return {pair.key: pair.value for pair in config_pairs(path)}


def test_a_config_overrides_its_bases_and_a_later_base_an_earlier_one(tmp_path):
    write(
        tmp_path,
        low="OPTIM: {LR: 1, GAMMA: 0.5, MAX_EPOCH: 3}\n",
        bases__high="_BASE_: ../low.yaml\nOPTIM: {LR: 2}\n",
        other="OPTIM: {GAMMA: 0.25}\nSEED: 4\n",
        mine="_BASE_: [bases/high.yaml, other.yaml]\nOPTIM: {MAX_EPOCH: 7}\n",
    )
    expected = {"OPTIM.LR": 2, "OPTIM.GAMMA": 0.25, "OPTIM.MAX_EPOCH": 7, "SEED": 4}
    assert values(tmp_path / "mine.yaml") == expected
    cfg = get_cfg_default()
    cfg.merge_from_file(tmp_path / "mine.yaml")
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.SEED) == (2.0, 7, 4)
    assert "_BASE_" not in cfg.dump()


def test_a_section_is_a_config_and_may_be_a_base(tmp_path):
    write(
        tmp_path, CoOp="small:\n  OPTIM: {LR: 1}\nlarge:\n  _BASE_: CoOp/small.yaml\n  SEED: 2\n", CoOp__own="SEED: 9\n"
    )
    assert values(tmp_path / "CoOp" / "large.yaml") == {"OPTIM.LR": 1, "SEED": 2}
    assert config_names(tmp_path / "CoOp") == ["large", "own", "small"]
    assert config_exists(tmp_path / "CoOp" / "small.yaml")
    assert not config_exists(tmp_path / "CoOp" / "medium.yaml")
    write(tmp_path, CoOp__small="SEED: 1\n")
    assert values(tmp_path / "CoOp" / "small.yaml") == {"SEED": 1}  # a file comes first
    with pytest.raises(ConfigError, match=r"holds the configs small, large: name one as .*CoOp/NAME\.yaml"):
        config_pairs(tmp_path / "CoOp.yaml")


@pytest.mark.parametrize(
    ("base", "kind", "message"),
    [
        ("absent.yaml", FileNotFoundError, r'no config file at ".*absent\.yaml", the _BASE_ of ".*mine\.yaml"'),
        ("mine.yaml", ConfigError, r"_BASE_ goes in a circle: .*mine\.yaml -> .*mine\.yaml"),
        ("there.yaml", ConfigError, r"_BASE_ goes in a circle: .*mine\.yaml -> .*there\.yaml -> .*mine\.yaml"),
        ("{A: 1}", ConfigError, r"_BASE_ is \{'A': 1\}, expected the path of a yaml file or a list"),
        ("['', x.yaml]", ConfigError, r"_BASE_ is \['', 'x\.yaml'\], expected the path"),
        ("wrong.yaml", ConfigError, r'unknown key OPTIM\.LRR \(do you mean OPTIM\.LR\?\) \(in ".*wrong\.yaml"\)'),
        ("words.yaml", ConfigError, r'words\.yaml":\n.*expected keys and values'),
    ],
)
def test_bad_bases(tmp_path, base, kind, message):
    write(
        tmp_path, mine=f"_BASE_: {base}\n", there="_BASE_: mine.yaml\n", wrong="OPTIM: {LRR: 1}\n", words="just words\n"
    )
    cfg = get_cfg_default()
    with pytest.raises(kind, match=message):
        cfg.merge_from_file(tmp_path / "mine.yaml")
    assert cfg == get_cfg_default()


def test_imports_of_a_base_are_seen(tmp_path):
    write(tmp_path, low="IMPORTS: [some_module]\n", mine="_BASE_: low.yaml\nSEED: 1\n", circle="_BASE_: circle.yaml\n")
    assert imports_of(tmp_path / "mine.yaml") == ["some_module"]
    assert imports_of(tmp_path / "circle.yaml") == []  # merging says what is wrong


def config(*argv: str) -> CfgNode:
    return train.build_config(train.build_parser().parse_args(list(argv)))


def test_a_missing_data_set_config_is_made_from_the_registry():
    assert config("--dataset-config-file", "configs/datasets/dtd.yaml").DATASET.NAME == "DescribableTextures"
    retrieval = config("--dataset-config-file", "emoji_retrieval")
    assert (retrieval.DATASET.NAME, retrieval.TEST.EVALUATOR) == ("EmojiRetrieval", "Retrieval")
    with pytest.raises(FileNotFoundError, match=r"the folder has: .*caltech101 cifar10 .*ucf101"):
        config("--dataset-config-file", "configs/datasets/dtdd.yaml")
    with pytest.raises(FileNotFoundError, match="no config file"):
        config("--dataset-config-file", "elsewhere/dtd.yaml")


OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def input_of(cfg):
    return tuple(cfg.INPUT.SIZE), cfg.INPUT.INTERPOLATION, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD


def test_the_backbone_decides_what_a_config_leaves_out(tmp_path, tiny_clip):
    path = tmp_path / "tiny.safetensors"
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    clip.save_model(tiny_clip, path, statistics)
    flags, short = ("--trainer", "CoOp"), ("TRAINER.COOP.N_CTX", "4")  # texts of the tiny model have 16 tokens
    assert input_of(config(*flags, "--backbone", "emoji-ViT-S/8")) == ((64, 64), "bicubic", *OPENAI)
    assert input_of(config(*flags, "--backbone", "ViT-L/14@336px")) == ((336, 336), "bicubic", *OPENAI)
    side = tiny_clip.visual.input_resolution
    assert input_of(config(*flags, "--backbone", str(path), *short)) == ((side, side), "bicubic", *statistics.values())
    given = input_of(
        config(*flags, "--backbone", str(path), "INPUT.SIZE", "(8, 8)", "INPUT.PIXEL_MEAN", "[1, 1, 1]", *short)
    )
    assert given == ((8, 8), "bicubic", [1, 1, 1], statistics["std"])
    dassl = get_cfg_default()
    assert input_of(dassl) == ((224, 224), "bilinear", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert input_of(config()) == input_of(config("--backbone", "resnet50")) == input_of(dassl)


def test_the_header_of_a_file_tells_what_the_loaded_model_takes(tmp_path, tiny_clip):
    path = tmp_path / "tiny.safetensors"
    clip.save_model(tiny_clip, path, {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    _, transform = clip.load(path)
    found = clip.input_of(path)
    assert found[:4] == clip.Input.of(transform)[:4]
    assert (found.context_length, found.vocab_size) == (tiny_clip.context_length, tiny_clip.vocab_size)
    torch.save({"state_dict": {}}, tmp_path / "no_clip.pt")
    assert clip.input_of(tmp_path / "no_clip.pt") is None
    assert clip.input_of(tmp_path / "absent.pt") is None


@pytest.mark.parametrize(
    ("key", "value", "both"),
    [
        ("INPUT.PIXEL_MEAN", "[0.9, 0.1, 0.1]", r"is \[0\.9, 0\.1, 0\.1\], the checkpoint has \[0\.4814"),
        ("INPUT.PIXEL_STD", "[1.0, 1.0, 1.0]", r"is \[1\.0, 1\.0, 1\.0\], the checkpoint has \[0\.268"),
        ("INPUT.INTERPOLATION", "bilinear", "is bilinear, the checkpoint has bicubic"),
        ("INPUT.SIZE", "(224, 224)", r"is \(224, 224\), the checkpoint has \(64, 64\)"),
    ],
)
def test_a_config_that_contradicts_the_checkpoint_is_an_error(key, value, both):
    from trainers.base import CLIPTrainer

    trainer = object.__new__(CLIPTrainer)
    trainer.dm = None  # has no CLIP of its own
    flags = ("--trainer", "ZeroshotCLIP", "--config-file", "configs/trainers/ZeroshotCLIP/emoji.yaml")
    trainer.cfg = config(*flags, key, value)
    with pytest.raises(ValueError, match=f"{key} {both}.*emoji-ViT-S/8 decides"):
        trainer.load_clip()
    trainer.cfg = config(*flags, "INPUT.PIXEL_MEAN", "[0.4815, 0.4578, 0.4082]")  # rounded as in many configs
    trainer.load_clip()


def test_files_of_a_config_are_those_that_it_is_read_from(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 1\n")
    (tmp_path / "Method.yaml").write_text("one:\n  _BASE_: Method/two.yaml\ntwo:\n  _BASE_: base.yaml\n")
    assert config_files(tmp_path / "Method" / "one.yaml") == {tmp_path / "base.yaml", tmp_path / "Method.yaml"}
    assert config_files(tmp_path / "base.yaml") == {tmp_path / "base.yaml"}
    with pytest.raises(FileNotFoundError, match="no config file"):
        config_files(tmp_path / "Method" / "three.yaml")
