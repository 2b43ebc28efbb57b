"""Files with the entry names and shapes of the released repositories become learners with the same prompts."""

import pickle

import pytest
import torch
from torch.nn import functional as F

import clip
from clip import save_model
from dassl.engine import TRAINER_REGISTRY
from tools import import_checkpoint
from tools.import_checkpoint import CONVERSIONS, build_config, build_learner, build_parser, main

D, V, E, N = 48, 64, 32, 3  # text width, image width, embedding, classes of the released run
METHODS = [name for name in CONVERSIONS if name in TRAINER_REGISTRY.registered_names()]


@pytest.fixture(scope="module")
def backbone(tiny_clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    save_model(tiny_clip, path)
    return str(path)


@pytest.fixture
def draw(rng):
    return lambda *shape: torch.randn(*shape, generator=rng)


def tokens(n, prefix="", rows=N):
    return {
        f"{prefix}token_prefix": torch.zeros(rows, 1, D).half(),
        f"{prefix}token_suffix": torch.zeros(rows, 76 - n, D).half(),
    }


def frozen(model):
    """CLIP as the released models hold it: two encoders, fp16 matrices."""
    state = {}
    for name, value in model.state_dict().items():
        half = value.half() if value.dim() > 1 else value
        if name.startswith("visual."):
            state["image_encoder." + name.removeprefix("visual.")] = half
        elif name == "logit_scale":
            state[name] = value
        elif not name.startswith("token_embedding"):
            state["text_encoder." + name] = half
    return state


def linear(draw, name, inputs, outputs):
    return {f"{name}.weight": draw(outputs, inputs), f"{name}.bias": draw(outputs)}


def blocks(draw, tower, layers, n, width):
    return {f"{tower}.transformer.resblocks.{i}.VPT_shallow": draw(n, width) for i in range(1, layers)}


def coupled(draw, modes, depth):
    shape = (2, D) if modes == 1 else (modes, 2, D)
    state = {"prompt_learner.ctx": draw(*shape).half(), **linear(draw, "prompt_learner.proj", D, V)}
    for k in range(depth - 1):
        state[f"prompt_learner.compound_prompts_text.{k}"] = draw(*shape)
        state |= linear(draw, f"prompt_learner.compound_prompt_projections.{k}", D, V)
    return state | tokens(2, "prompt_learner.", N * modes)


def released(method, draw, model):
    """State dict as the released repository writes it, and KEY VALUE pairs of the config it belongs to."""
    if method in ("CoOp", "ProGrad"):
        return {"ctx": draw(5, D).half(), **tokens(5)}, [f"TRAINER.{method.upper()}.N_CTX", "5"]
    if method == "KgCoOp":
        unused = {"bias_vectors": draw(1, D), **linear(draw, "meta_net.linear1", D, D)}
        return {"ctx": draw(4, D), **unused, **tokens(4)}, []
    if method == "CoCoOp":
        net = linear(draw, "meta_net.linear1", E, E // 16) | linear(draw, "meta_net.linear2", E // 16, D)
        return {"ctx": draw(4, D), **net, **tokens(4)}, ["TRAINER.COCOOP.N_CTX", "4"]
    if method == "TCP":
        net = linear(draw, "meta_net.linear1", E, E // 4) | linear(draw, "meta_net.linear2", E // 4, 4 * D)
        return {"ctx": draw(4, D), **net, **tokens(4)}, ["TRAINER.TCP.BLOCK", "2"]
    if method == "PLOT":
        return {"ctx": draw(4, 16, D), **tokens(16, rows=4 * N)}, []
    if method == "PLOTPP":
        own = {"prompt_learner.ctx": draw(4, 4, D), "prompt_learner.ctx_vision": draw(4, 2, V)}
        clip_weights = {name.replace("text_encoder.", "text_encoder.module."): v for name, v in frozen(model).items()}
        return own | tokens(4, "prompt_learner.", 4 * N) | clip_weights, []
    if method == "VPT":
        own = {"image_encoder.VPT": draw(3, V), **blocks(draw, "image_encoder", 4, 3, V)}
        return own | frozen(model), ["TRAINER.VPT.N_CTX_VISION", "3", "TRAINER.VPT.PROMPT_DEPTH_VISION", "4"]
    if method in ("IVLP", "PromptSRC"):
        own = {"prompt_learner.ctx": draw(4, D), "image_encoder.VPT": draw(3, V)}
        own |= blocks(draw, "text_encoder", 3, 4, D) | blocks(draw, "image_encoder", 2, 3, V)
        if method == "PromptSRC":
            copy = {name: v for name, v in frozen(model).items() if name.startswith("image_encoder.")}
            own |= {f"prompt_learner.ZS_{name}": value for name, value in copy.items()}
        sizes = {"N_CTX_TEXT": 4, "N_CTX_VISION": 3, "PROMPT_DEPTH_TEXT": 3, "PROMPT_DEPTH_VISION": 2}
        pairs = [item for key, value in sizes.items() for item in (f"TRAINER.{method.upper()}.{key}", str(value))]
        return own | tokens(4, "prompt_learner.") | frozen(model), pairs
    if method == "MaPLe":
        return coupled(draw, 1, 3) | frozen(model), ["TRAINER.MAPLE.PROMPT_DEPTH", "3"]
    numbers = [f"TRAINER.ALIGN.{tower}_PROMPT_NUMBER" for tower in ("TEXT", "VISION")]
    sizes = ["TRAINER.ALIGN.PROMPT_DEPTH", "3", numbers[0], "2", numbers[1], "2"]
    return coupled(draw, 2, 3) | frozen(model), sizes


def write(path, state, **more):
    """A checkpoint as Dassl wrote it: with a live scheduler inside."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    entries = {"optimizer": optimizer.state_dict(), "scheduler": {"successor": successor}, "val_result": None}
    torch.save({"state_dict": state, "epoch": 5, **entries, **more}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    return str(path)


def loaded(method, folder, backbone, pairs):
    """The learner of our trainer with what was written, for other classes, read as train.py reads it."""
    flags = ["x", "--trainer", method, "--output", "x", "--backbone", backbone, *pairs]
    cfg = build_config(build_parser().parse_intermixed_args(flags))
    learner = build_learner(cfg, clip.load(backbone)[0], classes=2)
    name = TRAINER_REGISTRY.get(method).model_name
    checkpoint = torch.load(folder / name / "model.pth.tar-5", weights_only=True)
    assert checkpoint["epoch"] == 5
    learner.load_state_dict(checkpoint["state_dict"])
    return learner


def expected_layers(method, state):
    """Text and image prompts by layer, from the released entries alone: shapes (N, n, D) and (M, m, V)."""
    state = {name.removeprefix("prompt_learner."): value.float() for name, value in state.items()}
    ctx = state.get("ctx")
    if method in ("MaPLe", "ALIGN"):
        texts = [ctx, *(state[f"compound_prompts_text.{k}"] for k in range(2))]
        maps = ["proj", *(f"compound_prompt_projections.{k}" for k in range(2))]
        images = [F.linear(text, state[f"{name}.weight"], state[f"{name}.bias"]) for text, name in zip(texts, maps)]
        if method == "MaPLe":
            texts, images = [t[None] for t in texts], [i[None] for i in images]
        return texts, images
    if method == "PLOTPP":
        return [ctx], [state["ctx_vision"]]
    if method == "PLOT":
        return [ctx], []
    text_layers = [ctx[None]] if ctx is not None else []
    text_layers += [
        state[f"text_encoder.transformer.resblocks.{i}.VPT_shallow"][None]
        for i in range(1, 4)
        if f"text_encoder.transformer.resblocks.{i}.VPT_shallow" in state
    ]
    image_layers = [state["image_encoder.VPT"][None]] if "image_encoder.VPT" in state else []
    image_layers += [
        state[f"image_encoder.transformer.resblocks.{i}.VPT_shallow"][None]
        for i in range(1, 4)
        if f"image_encoder.transformer.resblocks.{i}.VPT_shallow" in state
    ]
    return text_layers, image_layers


@pytest.mark.parametrize("method", METHODS)
def test_the_imported_learner_gives_the_same_prompts(method, draw, tiny_clip, backbone, tmp_path, capsys):
    state, pairs = released(method, draw, tiny_clip)
    file = write(tmp_path / "model.pth.tar-5", {f"module.{name}": value for name, value in state.items()})
    code = main([file, "--trainer", method, "--output", str(tmp_path / "ours"), "--backbone", backbone, *pairs])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    learner = loaded(method, tmp_path / "ours", backbone, pairs)
    texts, images = expected_layers(method, state)

    if method == "CoCoOp":
        feature = draw(2, E)
        hidden = F.linear(F.normalize(feature), state["meta_net.linear1.weight"], state["meta_net.linear1.bias"])
        shift = F.linear(hidden.relu(), state["meta_net.linear2.weight"], state["meta_net.linear2.bias"])
        found = learner.conditional_prompts(feature)[1].layers
        torch.testing.assert_close(found[0], state["ctx"] + shift[:, None])
    elif method == "TCP":
        hidden = F.linear(learner.teacher, state["meta_net.linear1.weight"], state["meta_net.linear1.bias"])
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        vectors = F.linear(hidden, state["meta_net.linear2.weight"], state["meta_net.linear2.bias"])
        first, skipped, second = learner.text_prompts()[1].layers
        assert (torch.equal(first, state["ctx"]), skipped) == (True, None)
        torch.testing.assert_close(second, vectors.view(2, 4, D))
    elif texts:
        prompts = learner.text_prompts()[1]
        assert len(prompts.layers) == len(texts)
        for layer, text in zip(prompts.layers, texts):  # rows of two classes, class-major
            layer = layer if prompts.prompt_index is None else layer[prompts.prompt_index]
            rows = layer if layer.dim() == 3 else layer[None].expand(2, -1, -1)
            torch.testing.assert_close(rows, torch.cat([text, text]))
    found = learner.vision_prompts()
    assert (found is None) == (not images)
    for layer, image in zip(found.layers if found else (), images):
        torch.testing.assert_close(layer, image)
    assert len(found.layers if found else ()) == len(images)


def call(path, backbone, method, pairs=(), output=None):
    return main([path, "--trainer", method, "--output", str(output or path + "-ours"), "--backbone", backbone, *pairs])


def fails(capsys, *arguments, **more):
    assert call(*arguments, **more) == 2
    shown = capsys.readouterr()
    assert "written: " not in shown.out
    assert shown.err.startswith("error: ")
    return shown.err


@pytest.mark.parametrize("method", [m for m in ("MaPLe", "ALIGN", "CoOp", "IVLP", "VPT", "PLOT") if m in METHODS])
def test_other_sizes_are_refused_and_named(method, draw, tiny_clip, backbone, tmp_path, capsys):
    state, pairs = released(method, draw, tiny_clip)
    wrong = {
        "MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", "2"],
        "ALIGN": ["TRAINER.ALIGN.PROMPT_DEPTH", "3"],
        "CoOp": ["TRAINER.COOP.N_CTX", "4"],
        "IVLP": [*pairs[:-1], "3"],
        "VPT": [*pairs[:-1], "3"],
        "PLOT": ["TRAINER.PLOT.N", "2"],
    }[method]
    hint = {
        "MaPLe": "TRAINER.MAPLE.PROMPT_DEPTH 3",
        "ALIGN": "TRAINER.ALIGN.TEXT_PROMPT_NUMBER 2 TRAINER.ALIGN.VISION_PROMPT_NUMBER 2",
        "CoOp": "TRAINER.COOP.N_CTX 5",
        "IVLP": "TRAINER.IVLP.PROMPT_DEPTH_VISION 2",
        "VPT": "TRAINER.VPT.PROMPT_DEPTH_VISION 4",
        "PLOT": "TRAINER.PLOT.N 4",
    }[method]
    error = fails(capsys, write(tmp_path / "f", state), backbone, method, wrong)
    assert "does not fit this model" in error
    assert f"the file was made with: {hint}" in error
    assert not (tmp_path / "f-ours").exists()


def test_what_is_unknown_or_missing_is_refused(draw, tiny_clip, backbone, tmp_path, capsys):
    state, pairs = released("MaPLe", draw, tiny_clip)
    extra = {**state, "prompt_learner.compound_prompts_vision.0": draw(2, V)}
    error = fails(capsys, write(tmp_path / "a", extra), backbone, "MaPLe", pairs)
    assert "unknown entries compound_prompts_vision.0; a file of MaPLe has ctx, compound_prompts_text.{}" in error
    del state["prompt_learner.proj.bias"]
    error = fails(capsys, write(tmp_path / "b", state), backbone, "MaPLe", pairs)
    assert "missing: projections.0.bias" in error
    error = fails(capsys, write(tmp_path / "c", state), backbone, "CoOp")
    assert "unknown entries" in error
    assert "a file of CoOp has ctx" in error
    error = fails(capsys, write(tmp_path / "d", frozen(tiny_clip)), backbone, "VPT")
    assert "there is nothing to read: a file of VPT has image_encoder.VPT" in error
    twice = {"ctx": draw(4, D), "prompt_learner.ctx": draw(4, D)}
    assert "the entry ctx stands twice" in fails(capsys, write(tmp_path / "e", twice), backbone, "CoOp")
    error = fails(capsys, write(tmp_path / "f", twice), backbone, "ZeroshotCLIP")
    assert "--trainer is 'ZeroshotCLIP', expected one of CoOp" in error


def test_prompts_inside_a_tower_are_never_left_out(draw, tiny_clip, backbone, tmp_path, capsys):
    """Deep text prompts in a file that is taken for VPT."""
    state, _ = released("IVLP", draw, tiny_clip)
    state = {name: value for name, value in state.items() if not name.startswith("prompt_learner.")}
    error = fails(capsys, write(tmp_path / "f", state), backbone, "VPT")
    assert "unknown entries text_encoder.transformer.resblocks.1.VPT_shallow" in error


def test_another_backbone_is_refused(draw, tiny_clip, backbone, tmp_path, capsys):
    state, pairs = released("MaPLe", draw, tiny_clip)
    name = "image_encoder.transformer.resblocks.2.mlp.c_fc.weight"
    other = {**state, name: state[name] + 0.05 * draw(*state[name].shape)}
    error = fails(capsys, write(tmp_path / "a", other), backbone, "MaPLe", pairs)
    assert f"its weight {name} differs by" in error
    assert "Choose it with --backbone" in error
    other = {**state, "image_encoder.proj": draw(V, 2 * E)}
    assert "has shape (64, 64), the backbone has shape (64, 32)" in fails(
        capsys, write(tmp_path / "b", other), backbone, "MaPLe", pairs
    )
    other = {**state, "image_encoder.layer1.0.conv1.weight": draw(2, 2)}
    assert "the backbone has none" in fails(capsys, write(tmp_path / "c", other), backbone, "MaPLe", pairs)


def test_code_in_a_file_is_not_run(backbone, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    file = write(tmp_path / "f", {"ctx": torch.zeros(4, D)}, val_result=Evil())
    assert "is refused" in fails(capsys, file, backbone, "CoOp")
    assert not (tmp_path / "ran").exists()


def test_nothing_is_overwritten(draw, tiny_clip, backbone, tmp_path, capsys):
    state, pairs = released("CoOp", draw, tiny_clip)
    file = write(tmp_path / "f", state)
    assert call(file, backbone, "CoOp", pairs) == 0
    capsys.readouterr()
    assert "exists already and is left as it is" in fails(capsys, file, backbone, "CoOp", pairs)


@pytest.mark.parametrize("method", ["CoOp", "ProGrad"])
def test_class_specific_contexts(method, draw, backbone, tmp_path, capsys):
    node = method.upper()
    state = {"ctx": draw(N, 5, D), **tokens(5)}
    pairs = [f"TRAINER.{node}.N_CTX", "5"]
    file = write(tmp_path / "f", state)
    assert f"the file was made with: TRAINER.{node}.CSC True" in fails(capsys, file, backbone, method, pairs)
    assert call(file, backbone, method, [*pairs, f"TRAINER.{node}.CSC", "True"]) == 0
    path = tmp_path / "f-ours" / "prompt_learner" / "model.pth.tar-5"
    assert torch.equal(torch.load(path, weights_only=True)["state_dict"]["ctx"], state["ctx"])


def test_language_only_prompts(draw, tiny_clip, backbone, tmp_path, capsys):
    state, pairs = released("IVLP", draw, tiny_clip)
    state = {name: v for name, v in state.items() if not ("VPT" in name and name.startswith("image_encoder"))}
    error = fails(capsys, write(tmp_path / "f", state), backbone, "IVLP", pairs)
    assert "TRAINER.IVLP.PROMPT_DEPTH_VISION 0" in error
    assert call(str(tmp_path / "f"), backbone, "IVLP", [*pairs[:-1], "0"]) == 0


def test_every_conversion_names_a_trainer_and_its_options():
    if set(CONVERSIONS) - set(METHODS):
        pytest.skip(f"no trainers {set(CONVERSIONS) - set(METHODS)}")
    for name, conversion in CONVERSIONS.items():
        trainer = TRAINER_REGISTRY.get(name)
        assert set(conversion.sizes) <= set(trainer.defaults()[trainer.node])


def test_rounding_and_averaging_pass_for_the_backbone(tiny_clip):
    """fp16 weights, and the fp16 average over epochs of PromptSRC, are still the backbone's."""
    weights = {name: value * (1 + 1e-3) for name, value in frozen(tiny_clip).items()}
    import_checkpoint.check_backbone(weights, tiny_clip, "tiny")
