"""Explanations: the numbers against the scores and plain loops, and the files that are written."""

import re

import numpy as np
import pytest
import torch
from loaded_models import NAMES
from PIL import Image

from align_prompt.__main__ import main
from align_prompt.explain import mistakes, sections
from align_prompt.explain.attention import maps_of, method_maps, plain_maps, rollout
from align_prompt.explain.plans import plans_of, token_names
from align_prompt.explain.words import nearest, nearest_words
from dassl.evaluation.calibration import calibration_error, reliability

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
    with pytest.raises(ValueError, match="at least one block"):
        rollout([])


@pytest.mark.parametrize("method", ["ALIGN", "CoCoOp", "CLIPLoRA", "MaPLe"])
def test_maps_of_methods(method, trained, pictures):
    depth = {"ALIGN": ALIGN, "MaPLe": ("TRAINER.MAPLE.PROMPT_DEPTH", 2)}
    model = trained(method, *depth.get(method, ()))
    image = next(iter(model.image_batches(pictures[:1])))
    own, plain = method_maps(model, image, 1), plain_maps(model, image, 1)
    modes = model.prompted.learner.vision_modes
    for maps, rows in ((own, modes), (plain, 1)):
        assert maps.rollout.shape == maps.gradient.shape == (rows, 2, 2)
        assert (maps.rollout > 0).all()
        assert (maps.rollout.sum((1, 2)) < 1).all()
        assert (maps.gradient >= 0).all()
    same = method == "CoCoOp"  # leaves the image tower as it is
    assert torch.allclose(own.rollout[:1], plain.rollout, atol=1e-6) == same
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
        assert {"picture1_method_rollout", "picture1_plain_gradient", "picture1_seen"} <= set(numbers)
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


def test_clear_errors(explain, checkpoint, trained, pictures, tmp_path):
    path = checkpoint("CoOp")
    (tmp_path / "no.png").write_text("no picture")
    for arguments, message in (
        ([path], "nothing to explain"),
        ([path, pictures[0], "--class", "zebra"], "'zebra' is none of the 3 classes of the model: 'cat', "),
        ([path, tmp_path / "no.png"], "not an image file"),
        ([path, tmp_path / "none.png"], "No file exists"),
        ([path, "--data", tmp_path], "does not name its data set"),
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
