"""Methods on backbones of open_clip and transformers: training, resuming, prediction, export, and what is refused."""

import foreign_models as foreign
import numpy as np
import pytest
import torch
from PIL import Image

import align_prompt
import clip
import datasets  # noqa: F401 - registers the data sets
import train
import trainers  # noqa: F401 - registers the methods
from align_prompt.bundle import write_bundle
from align_prompt.export.graph import exported
from dassl.engine import build_trainer
from dassl.engine.command import known_config
from trainers.parts.feature_cache import state_hash
from trainers.parts.inputs import input_options

for package in ("open_clip", "timm", "transformers"):
    pytest.importorskip(package, reason=f"{package} is not installed: see the extra `towers`")

pytestmark = pytest.mark.slow
VITS = [  # those of CLIP's own towers are in the tests of the methods
    *(name for name in foreign.OPEN_CLIP if name not in (*foreign.PLAIN, *foreign.WITHOUT_TOKENS)),
    "transformers siglip",
    "transformers siglip2",
]
METHODS = {
    "CoOp": ("TRAINER.COOP.N_CTX", 2),
    "MaPLe": ("TRAINER.MAPLE.PROMPT_DEPTH", 2, "TRAINER.MAPLE.CTX_INIT", ""),
    "ALIGN": ("TRAINER.ALIGN.PROMPT_DEPTH", 2, "TRAINER.ALIGN.CTX_INIT", "", "TRAINER.ALIGN.VISION_PROMPT_NUMBER", 2)
    + ("TRAINER.ALIGN.TEXT_PROMPT_NUMBER", 2),
    "TipAdapter": ("TRAINER.TIP_ADAPTER.AUGMENT_EPOCH", 1, "TRAINER.TIP_ADAPTER.SEARCH_STEP", "(2,2)"),
    "LAMM": (),
    "PLOT": ("TRAINER.PLOT.N", 2, "TRAINER.PLOT.N_CTX", 2),
    "CoCoOp": ("TRAINER.COCOOP.N_CTX", 2),
    "PLOTPP": ("TRAINER.PLOTPP.M", 2),
    "CLIPLoRA": (),
    "ContrastiveCLIP": (),
}


@pytest.fixture(scope="module", autouse=True)
def small():
    with foreign.small_timm():
        yield


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Folder of a backbone by name; made once."""
    known = {}

    def make(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("backbone") / name.replace(" ", "-")
            if name in foreign.OPEN_CLIP:
                foreign.saved_open_clip(foreign.of_open_clip(name), name, folder)
            else:
                kind = name.split()[1]
                foreign.saved_hugging_face(foreign.of_hugging_face(kind), kind, folder)
            known[name] = str(folder)
        return known[name]

    return make


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("pictures") / "mine", np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(256, size=(32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def settings(method, folder, pictures, output):
    return [
        "TRAINER.NAME", method,
        "DATASET.NAME", "folder",
        "DATASET.ROOT", str(pictures),
        "DATASET.CACHE_DIR", str(output / "cache"),
        "DATASET.NUM_SHOTS", 1,
        "DATALOADER.NUM_WORKERS", 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE", 2,
        "INPUT.TRANSFORMS", ("normalize",),
        "MODEL.BACKBONE.NAME", folder,
        "OPTIM.LR", 0.02,
        "OPTIM.MAX_EPOCH", 1,
        "OUTPUT_DIR", str(output),
        "USE_CUDA", False,
        *METHODS[method],
    ]  # fmt: skip


def built(method, folder, pictures, output, *more):
    cfg = known_config()
    found = clip.input_of(folder)
    pairs = [item for key, value in input_options(found).items() for item in (f"INPUT.{key}", value)]
    cfg.merge_from_list([*pairs, *settings(method, folder, pictures, output), *more])
    return build_trainer(cfg)


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("method", ["CoOp", "MaPLe", "ALIGN", "TipAdapter", "LAMM"])
@pytest.mark.parametrize("name", VITS)
def test_methods_train_on_every_vit(backbone, pictures, tmp_path, name, method):
    trainer = built(method, backbone(name), pictures, tmp_path)
    before, frozen = weights(trainer.model.learner), state_hash(trainer.model.clip)
    trainer.train()
    after = weights(trainer.model.learner)
    assert any(not torch.equal(before[key], after[key]) for key in after)
    assert all(bool(torch.isfinite(value).all()) for value in after.values())
    assert state_hash(trainer.model.clip) == frozen


@pytest.mark.parametrize("method", ["PLOT", "PLOTPP", "CoCoOp"])
@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "EVA02-B-16"])
def test_other_methods_train(backbone, pictures, tmp_path, name, method):
    more = ("TRAINER.PLOTPP.MODEL_UPD", "vision") if method == "PLOTPP" else ()
    trainer = built(method, backbone(name), pictures, tmp_path, *more)
    before = weights(trainer.model.learner)
    trainer.train()
    assert any(not torch.equal(before[key], value) for key, value in weights(trainer.model.learner).items())


def test_a_tower_without_tokens(backbone, pictures, tmp_path):
    folder = backbone("convnext_base")
    built("CoOp", folder, pictures, tmp_path / "coop").train()
    for method, error in {
        "MaPLe": "visual prompts need a vision transformer, but the image tower is a ConvNeXt without tokens",
        "ALIGN": "visual prompts need a vision transformer, but the image tower is a ConvNeXt without tokens",
        "PLOT": "PLOT compares patches, but the image tower of .*convnext_base is a ConvNeXt without tokens",
    }.items():
        with pytest.raises(ValueError, match=error):
            built(method, folder, pictures, tmp_path / method)


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("CLIPLoRA", "adapters .* need CLIP's own towers; this backbone is .* of open_clip"),
        ("ContrastiveCLIP", "trains CLIP's own towers; this backbone is .* of open_clip"),
    ],
)
def test_methods_that_need_clip_s_own_towers(backbone, pictures, tmp_path, method, error):
    with pytest.raises(ValueError, match=error):
        built(method, backbone("EVA02-B-16"), pictures, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "both"),
    [
        ("INPUT.PIXEL_MEAN", [0.9, 0.1, 0.1], r"is \[0\.9, 0\.1, 0\.1\], the checkpoint has \[0\.5, 0\.4, 0\.3\]"),
        ("INPUT.INTERPOLATION", "bicubic", "is bicubic, the checkpoint has bilinear"),
        ("INPUT.RESIZE", "shortest", "is shortest, the checkpoint has squash"),
        ("INPUT.SIZE", (64, 64), r"is \(64, 64\), the checkpoint has \(32, 32\)"),
    ],
)
def test_a_config_that_contradicts_the_checkpoint(backbone, pictures, tmp_path, key, value, both):
    with pytest.raises(ValueError, match=both):
        built("CoOp", backbone("ViT-B-16-SigLIP"), pictures, tmp_path, key, value)


@pytest.mark.parametrize("name", ["EVA02-B-16", "transformers siglip2"])
def test_a_run_is_resumed_predicts_and_is_exported(backbone, pictures, tmp_path, name):
    folder, output = backbone(name), tmp_path / "run"
    pairs = list(map(str, settings("MaPLe", folder, pictures, output)))
    train.main([*pairs, "TRAIN.CHECKPOINT_FREQ", "1"])
    (output / "DONE").unlink()  # as if it had been stopped before it wrote that
    train.main([*pairs, "TRAIN.CHECKPOINT_FREQ", "1"])
    model = align_prompt.load(output, device="cpu")
    files = sorted(map(str, pictures.glob("*/*.png")))
    rows = model.predict(files)
    logits = model.logits(files)
    assert {row.label for row in rows} <= {"cat", "dog"}
    bundle = tmp_path / "model.safetensors"
    assert f"backbone named: {folder}" in write_bundle(model, bundle)
    assert torch.equal(align_prompt.load(bundle, device="cpu").logits(files), logits)
    with pytest.raises(ValueError, match="cannot be put into the file"):
        write_bundle(model, tmp_path / "inside.safetensors", backbone=True)
    program, graph, example = exported(model)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(example), graph(example), rtol=1e-4, atol=1e-4)
