"""Explanations: the numbers against the scores and plain loops, and the files that are written."""

import importlib.util
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loaded_models import NAMES
from PIL import Image

import align_prompt
import clip
from align_prompt.__main__ import main
from align_prompt.explain import epochs, mistakes, sections
from align_prompt.explain.attention import maps_of, method_maps, plain_maps, rollout
from align_prompt.explain.plans import plans_of, token_names
from align_prompt.explain.words import nearest, nearest_words
from align_prompt.registries import names_of_methods
from dassl.engine import TRAINER_REGISTRY
from dassl.evaluation.calibration import calibration_error, reliability
from dassl.utils import save_checkpoint
from tests.short_options import SHORT
from trainers.base import CLIPTrainer

ALIGN = ("TRAINER.ALIGN.PROMPT_DEPTH", 2, "TRAINER.ALIGN.N_CTX", 2)


def plans(model, picture, place):
    """Plans, encoded image, encoded classes and the model's own logit."""
    model.encode_classes()
    image = next(iter(model.image_batches([picture])))
    with torch.no_grad():
        encoded = model.prompted.encode_image(image)
    found = plans_of(model, encoded, model.trainer.text, place)
    return found, encoded, model.trainer.text, float(model.logits([picture])[0, place])


def unit(value):
    return torch.nn.functional.normalize(value.float(), dim=-1)


@pytest.mark.parametrize("score", ["paper", "released"])
def test_align_plans_are_those_of_the_logit(score, trained, pictures):
    model = trained("ALIGN", *ALIGN, "TRAINER.ALIGN.SCORE", score)
    place = 1
    found, image, text, logit = plans(model, pictures[0], place)
    m, n, j = found.tokens.shape[:3]
    assert found.prompts.shape == (m, n)
    torch.testing.assert_close(found.prompts.sum(), torch.tensor(1.0), atol=2e-3, rtol=0)
    for a in range(m):
        for b in range(n):
            plan, mask = found.tokens[a, b], found.mask[b]
            assert not plan[:, ~mask].any()
            close = {"atol": 2e-3 if score == "paper" else 0.05, "rtol": 0}  # as far as Sinkhorn goes
            torch.testing.assert_close(plan.sum(0)[mask], torch.full((int(mask.sum()),), 1 / int(mask.sum())), **close)
            torch.testing.assert_close(plan.sum(1), torch.full((j,), 1 / j), **close)
    x, y = unit(image.pooled), unit(text.pooled[place * n : (place + 1) * n])
    r, s = unit(image.tokens[:, 1:]), unit(text.tokens[place * n : (place + 1) * n])
    value = 0.0
    for a in range(m):
        for b in range(n):
            d = float((found.tokens[a, b] * (1 - r[a] @ s[b].T)).sum())
            similarity = float(x[a] @ y[b])
            value += float(found.prompts[a, b]) * (1 - (1 - similarity + d) if score == "paper" else similarity)
    if score == "paper":
        value += 1 - float(found.prompts.sum())  # a plan that is not quite converged
    scale = float(model.prompted.clip.logit_scale.exp())
    assert scale * value == pytest.approx(logit, abs=1e-4 * scale)
    assert found.logit == pytest.approx(logit, abs=1e-4 * scale)
    ratio = found.relative()
    assert torch.isnan(ratio).any(dim=(0, 2)).equal(~found.mask)
    assert float(ratio.nanmean()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("method", ["PLOT", "PLOTPP"])
def test_plot_plans_are_those_of_the_score(method, trained, pictures):
    model = trained(method)
    found, image, text, _ = plans(model, pictures[0], 2)
    n = model.prompted.learner.text_modes
    u = unit(image.tokens[0, 1:] if method == "PLOT" else image.pooled)
    w = unit(text.pooled[2 * n : 3 * n])
    assert found.local == (method == "PLOT")
    assert found.plan.shape == (len(u), n)
    torch.testing.assert_close(found.plan.sum(1), torch.full((len(u),), 1 / len(u)), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.plan.sum(0), torch.full((n,), 1 / n), atol=2e-3, rtol=0)
    scale = float(model.prompted.clip.logit_scale.exp())
    assert scale * float((found.plan * (u @ w.T)).sum()) == pytest.approx(found.score, abs=1e-4 * scale)
    if method == "PLOT":  # whose logit is the transport alone
        assert found.score == pytest.approx(float(model.logits([pictures[0]])[0, 2]), abs=1e-4 * scale)
    assert model.trainer.transport.definition is None


def test_tokens_have_the_names_of_their_places(trained):
    model = trained("ALIGN", *ALIGN)
    names, mask = token_names(model, 1), model.trainer.transport.text_mask(77)[1]
    first = [name for name, part in zip(names[0], mask[0].tolist()) if part]
    assert first[:4] == ["[v1]", "[v2]", "of", "a"]
    assert "".join(first[4:]) == "goldenretriever"
    second = [name for name, part in zip(names[1], mask[1].tolist()) if part]
    assert "".join(second) == "[v1][v2]goldenretriever"


def test_rollout_is_that_of_a_loop():
    draw = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 5, 5, generator=draw).softmax(-1) for _ in range(4)]
    found = rollout(maps)
    for row in range(2):
        joint = np.eye(5)
        for block in maps:
            mean = sum(block[row, head].double().numpy() for head in range(3)) / 3
            joint = (0.5 * mean + 0.5 * np.eye(5)) @ joint
        np.testing.assert_allclose(found[row], joint, rtol=1e-5, atol=1e-6)
        wrong = np.linalg.multi_dot([0.5 * block[row].mean(0).double().numpy() + 0.5 * np.eye(5) for block in maps])
        assert not np.allclose(found[row], wrong, atol=1e-4)  # the order of the blocks matters
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5))
    late = [
        maps[0],
        maps[1],
        torch.rand(2, 3, 7, 7, generator=draw).softmax(-1),
    ]  # two tokens come before the third block
    joint = np.eye(7)
    joint[:5, :5] = rollout(late[:2])[0].numpy()
    last = 0.5 * late[2][0].mean(0).numpy() + 0.5 * np.eye(7)
    np.testing.assert_allclose(rollout(late)[0], last @ joint, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least one block"):
        rollout([])


METHODS = [name for name in names_of_methods() if issubclass(TRAINER_REGISTRY.get(name), CLIPTrainer)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_maps(method, trained, pictures):
    """Also methods that are added later."""
    model = trained(method, *SHORT.get(method, ()))
    image = next(iter(model.image_batches(pictures[:1])))
    own, plain = method_maps(model, image, 1), plain_maps(model, image, 1)
    for maps, rows in ((own, model.prompted.learner.vision_modes), (plain, 1)):
        assert maps.attention.shape == maps.gradient.shape == (rows, 2, 2)
        assert (maps.attention > 0).all()


@pytest.mark.parametrize("method", ["ALIGN", "CoCoOp", "CLIPLoRA", "MaPLe"])
def test_maps_of_methods(method, trained, pictures):
    depth = {"ALIGN": ALIGN, "MaPLe": ("TRAINER.MAPLE.PROMPT_DEPTH", 2)}
    model = trained(method, *depth.get(method, ()))
    image = next(iter(model.image_batches(pictures[:1])))
    own, plain = method_maps(model, image, 1), plain_maps(model, image, 1)
    modes = model.prompted.learner.vision_modes
    for maps, rows in ((own, modes), (plain, 1)):
        assert maps.attention.shape == maps.gradient.shape == (rows, 2, 2)
        assert (maps.attention > 0).all()
        assert (maps.attention.sum((1, 2)) < 1).all()
        assert (maps.gradient >= 0).all()
    same = method == "CoCoOp"  # leaves the image tower as it is
    assert torch.allclose(own.attention[:1], plain.attention, atol=1e-6) == same
    assert all(value.grad is None for value in model.prompted.parameters())


def last_block(block, x, scale):
    """A block of x (1, L, d) whose normalised input is scaled."""
    weights = block.attn.maps(block.ln_1(x) * scale)
    v = block.attn.project(block.ln_1(x) * scale)[2]
    x = x + block.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
    return x + block.mlp(block.ln_2(x))


def test_the_gradient_is_that_of_the_last_block_alone(trained, pictures):
    """Derivative of the cosine when the normalised input of the last block is scaled, patch by patch."""
    model = trained("CoOp")
    model.encode_classes()
    image, tower = next(iter(model.image_batches(pictures[:1]))), model.prompted.clip.visual
    positive = 0
    for sign in (1, -1):
        text = sign * unit(model.trainer.text.pooled[1])

        def cosine(pooled, text=text):
            return torch.nn.functional.normalize(pooled, dim=-1)[0] @ text

        found = maps_of(model.prompted.clip, image, tower.encode, lambda encoded, cosine=cosine: cosine(encoded.pooled))
        with torch.no_grad():
            x = tower.ln_pre(tower.embed(image))
            for block in tower.blocks[:-1]:
                x = block(x)
        scale = torch.ones(1, x.shape[1], 1, requires_grad=True)
        value = cosine(tower.ln_post(last_block(tower.blocks[-1], x, scale))[:, 0] @ tower.proj)
        (expected,) = torch.autograd.grad(value, scale)
        expected = expected[0, 1:, 0].clamp(min=0)
        torch.testing.assert_close(found.gradient.flatten(), expected, rtol=1e-3, atol=1e-6)
        positive += int((expected > 1e-5).sum())
    assert positive


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    torch.manual_seed(0)
    shape = {"vision_layers": (1, 1, 1, 1), "vision_width": 8, "vision_heads": 4, "vision_patch_size": None}
    text = {"context_length": 77, "vocab_size": 2048, "transformer_width": 32, "transformer_heads": 2}
    model = clip.CLIP(embed_dim=32, image_resolution=96, transformer_layers=2, **shape, **text)
    with torch.no_grad():  # so that the last map has the size of its positions or more
        model.visual.layer4[0].downsample.get_submodule("1").weight.mul_(300)
    path = tmp_path_factory.mktemp("clip") / "resnet.safetensors"
    clip.save_model(model, path)
    return str(path)


@pytest.mark.parametrize("method", ["CoOp", "PLOT"])
def test_maps_of_a_resnet_are_those_of_a_loop(method, resnet, trained, pictures):
    """Derivative of the logit when the channels of one place of the last map are scaled, and the pool's attention."""
    model = trained(method, "MODEL.BACKBONE.NAME", resnet, "INPUT.SIZE", (96, 96))
    image, tower = next(iter(model.image_batches(pictures[:1]))), model.prompted.clip.visual
    kept, positive = [], 0
    hook = tower.layer4.register_forward_hook(lambda _, __, out: kept.append(out))
    tokens = tower.embed(image).detach()
    hook.remove()
    pool = tower.attnpool

    def logits(scale):
        x = (kept[0].detach() * scale).flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + pool.positional_embedding
        return model.prompted.compare(tower.encode(x), model.trainer.text).logits[0]

    for place in range(len(NAMES)):
        own, plain = method_maps(model, image, place), plain_maps(model, image, place)
        scale = torch.ones(3, 3, requires_grad=True)
        (expected,) = torch.autograd.grad(logits(scale)[place], scale)
        close = {"rtol": 1e-3, "atol": 1e-4 * float(expected.abs().max())}
        torch.testing.assert_close(own.gradient[0], expected.clamp(min=0), **close)
        positive += int((expected > close["atol"]).sum())
    assert positive
    heads = []
    for q, k in zip(pool.q_proj(tokens[0, 0]).chunk(pool.heads), pool.k_proj(tokens[0]).chunk(pool.heads, dim=-1)):
        heads.append(((k @ q) / len(q) ** 0.5).softmax(0)[1:].view(3, 3))
    torch.testing.assert_close(own.attention[0], torch.stack(heads).mean(0).detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(own.attention, plain.attention)


def test_nearest_words_are_those_of_a_loop(trained):
    draw = torch.Generator().manual_seed(3)
    table, vectors = torch.randn(30, 4, generator=draw), torch.randn(300, 4, generator=draw)
    numbers, distances = nearest(table, vectors, 3)
    for k in (0, 5, 255, 256, 299):
        every = [float(((vectors[k] - row) ** 2).sum() ** 0.5) for row in table]
        assert numbers[k].tolist() == sorted(range(30), key=every.__getitem__)[:3]
        assert distances[k].tolist() == pytest.approx(sorted(every)[:3], rel=1e-5)
    model = trained("CoOp", "TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.CTX_INIT", "a photo of a")
    with torch.no_grad():
        model.prompted.learner.ctx[1] = model.prompted.clip.token_embedding.weight[262]
    rows = nearest_words(model, 0, count=2)
    assert [row.name for row in rows] == ["v1", "v2", "v3", "v4"]
    assert rows[1].words[0][1] == 0
    assert len(rows[1].words) == 2


@pytest.mark.parametrize(
    ("method", "options", "count", "first"),
    [
        ("ALIGN", ALIGN, 8, "prompt 1, v1"),
        ("CoOp", ("TRAINER.COOP.CSC", True, "TRAINER.COOP.N_CTX", 4), 4, "v1"),
        ("CoCoOp", ("TRAINER.COCOOP.N_CTX", 4), 4, "v1"),
        ("VPT", ("TRAINER.VPT.PROMPT_DEPTH_VISION", 2), 0, ""),
        ("LAMM", (), 2, "name of yin yang, token 1"),
    ],
)
def test_learned_vectors_of_methods(method, options, count, first, trained):
    rows = nearest_words(trained(method, *options), 2)
    if method != "LAMM":
        assert len(rows) == count
    assert not first or rows[0].name == first


def test_outcomes_of_a_test_set():
    labels, predicted = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 1])
    probability = torch.tensor([0.9, 0.8, 0.55, 0.95, 0.6])
    found = mistakes.Outcome(list("abcde"), labels, predicted, probability)
    assert mistakes.confusion(labels, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 1, 0]]
    assert mistakes.worst(found) == [3, 1, 4]
    assert mistakes.worst(found, 1) == [3]
    bins = reliability(probability, found.correct, 15)
    share = bins.count / len(labels)
    error = float((share * (bins.accuracy - bins.probability).abs().nan_to_num()).sum())
    assert error == pytest.approx(calibration_error(probability, found.correct), abs=1e-6)
    assert found.accuracy == pytest.approx(0.4)
    assert mistakes.spread_sample(5, 3) == [0, 2, 4]


@pytest.fixture
def explain(capsys, tmp_path):
    """explain(arguments...): exit code, folder and standard error."""

    def run(*arguments):
        folder = tmp_path / "explained"
        code = main(["explain", *map(str, arguments), "--device", "cpu", "--output", str(folder)])
        return code, folder, capsys.readouterr().err

    return run


@pytest.mark.parametrize("method", ["ALIGN", "PLOT", "PLOTPP", "LAMM"])
def test_the_page_is_whole_and_needs_nothing_else(method, explain, checkpoint, pictures):
    code, folder, _ = explain(checkpoint(method, *(ALIGN if method == "ALIGN" else ())), pictures[0])
    assert code == 0
    text = (folder / "index.html").read_text()
    files = sorted(folder.glob("*.png"))
    assert text.count("data:image/png;base64,") == len(files) == {"ALIGN": 6, "PLOT": 2, "PLOTPP": 2, "LAMM": 2}[method]
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|<script", text)
    for file in files:
        with Image.open(file) as image:
            assert min(image.size) > 100
    with np.load(folder / "numbers.npz", allow_pickle=False) as numbers:
        assert {"picture1_method_attention", "picture1_plain_gradient", "picture1_seen"} <= set(numbers)
        if method == "ALIGN":
            assert numbers["picture1_token_plans"].shape[:3] == (4, 4, 6)
            assert numbers["picture1_prompt_plan"].sum() == pytest.approx(1, abs=2e-3)


def test_a_test_set_has_its_own_part(trained, pictures, monkeypatch):
    model = trained("CoOp")
    data = mistakes.Labeled(pictures, torch.tensor([0, 1, 2, 0, 1]))
    monkeypatch.setattr(sections, "own_test_set", lambda *_: data)
    section = sections.data_section(model, "data")
    shown = {figure.name for figure in section.figures}
    assert {"confusion", "reliability", "tsne"} <= shown
    assert section.numbers["test_confusion"].sum() == 5
    before, after = mistakes.features_before_and_after(model, pictures)
    torch.testing.assert_close(before, after)  # CoOp leaves the image tower as it is


def test_projections(monkeypatch):
    """Two groups that point elsewhere stay two groups; UMAP is given what fits the number of pictures."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(40, 8, generator=draw) * 0.1
    features[:20, 0] += 1
    features[20:, 1] += 1
    places = mistakes.in_two_dimensions(features)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert ((distance.argmin(1) < 20) == (np.arange(40) < 20)).all()
    given = []

    class UMAP:
        def __init__(self, **options):
            given.append(options)

        def fit_transform(self, values):
            return values[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=UMAP))
    assert mistakes.in_two_dimensions(features[:5], "umap").shape == (5, 2)
    assert mistakes.in_two_dimensions(features, "umap").shape == (40, 2)
    assert [(how["n_neighbors"], how["init"], how["metric"]) for how in given] == [
        (4, "random", "cosine"),
        (15, "spectral", "cosine"),
    ]
    for name in mistakes.PROJECTIONS:
        with pytest.raises(ValueError, match="of 3 pictures: expected at least 4"):
            mistakes.in_two_dimensions(features[:3], name)


@pytest.fixture
def two_epochs(checkpoint):
    """two_epochs(method, ...): path of the second of two checkpoints of one run, which differ."""

    def make(method, *options):
        path = checkpoint(method, *options)
        content = torch.load(path, weights_only=True)
        for value in content["state_dict"].values():
            if value.is_floating_point():
                value.mul_(-1.5)
        save_checkpoint({**content, "epoch": 2}, str(path.parent))
        return path.with_name("model.pth.tar-2")

    return make


@pytest.mark.parametrize("method", ["ALIGN", "PLOT", "PLOTPP"])
def test_plans_by_epoch_are_those_of_each_checkpoint(method, two_epochs, pictures):
    options = {"ALIGN": (*ALIGN, "TRAINER.ALIGN.VISION_PROMPT_NUMBER", 2, "TRAINER.ALIGN.TEXT_PROMPT_NUMBER", 2)}
    path = two_epochs(method, *options.get(method, ()))
    model = align_prompt.load(path, device="cpu")
    before = model.logits(pictures)
    section = epochs.epochs_section(model, 1, pictures[0], NAMES[1])
    assert section.numbers["picture1_epochs"] == [1, 2]
    assert len(section.figures) == {"ALIGN": 2 + 4, "PLOT": 2, "PLOTPP": 2}[method]
    assert torch.equal(model.logits(pictures), before)
    for row, name in enumerate(("model.pth.tar-1", path.name)):
        found, *_ = plans(align_prompt.load(path.with_name(name), device="cpu"), pictures[0], 1)
        if method == "ALIGN":
            np.testing.assert_array_equal(section.numbers["picture1_epoch_token_plans"][row], found.tokens)
            np.testing.assert_array_equal(section.numbers["picture1_epoch_prompt_plans"][row], found.prompts)
        else:
            np.testing.assert_array_equal(section.numbers["picture1_epoch_plans"][row], found.plan)
    values = next(v for k, v in section.numbers.items() if k.endswith("plans"))
    assert not np.allclose(values[0], values[1], atol=1e-4)


def test_distance_from_the_uniform_plan():
    plan = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]])
    assert epochs.from_uniform(plan, torch.tensor([True, True, False])) == pytest.approx(0.5)
    assert epochs.from_uniform(torch.full((4, 5), 1 / 20)) == pytest.approx(0, abs=1e-6)


def test_clear_errors(explain, checkpoint, trained, pictures, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "umap" else find(name, *more))
    path = checkpoint("CoOp")
    (tmp_path / "no.png").write_text("no picture")
    for arguments, message in (
        ([path], "nothing to explain"),
        ([path, pictures[0], "--class", "zebra"], "'zebra' is none of the 3 classes of the model: 'cat', "),
        ([path, tmp_path / "no.png"], "not an image file"),
        ([path, tmp_path / "none.png"], "No file exists"),
        ([path, "--data", tmp_path], "does not name its data set"),
        ([path, pictures[0], "--by-epoch"], "of 1 epochs, expected at least 2 to see a change: train with TRAIN.CHECK"),
        ([path, pictures[0], "--projection", "umap"], "umap-learn"),
    ):
        code, folder, err = explain(*arguments)
        assert code == 2
        assert message in err
        assert not folder.exists()
    model = trained("CoOp")
    model.encode_classes()
    with pytest.raises(ValueError, match="CoOp has no transport plans: ALIGN"):
        plans_of(model, model.trainer.text, model.trainer.text, 0)
    with pytest.raises(ValueError, match="class 3 is asked for, expected 0 to 2"):
        plans_of(model, model.trainer.text, model.trainer.text, len(NAMES))
