"""Backbones of open_clip, timm and transformers: the features of those libraries, and prompts in their blocks."""

from pathlib import Path

import clip_reference as reference
import foreign_models as foreign
import numpy as np
import pytest
import torch
from PIL import Image

import clip
from clip.adapters import kind_of
from clip.chunks import Chunks
from clip.towers.load import open_clip_model
from clip.words import Words
from tests.tolerance import assert_close

open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed: pip install open_clip_torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
pytest.importorskip("timm", reason="timm is not installed: pip install timm")

NAMES = [*foreign.OPEN_CLIP, *(f"transformers {kind}" for kind in foreign.HUGGING_FACE)]
TEXTS = ["a photo of a cat.", "yin yang", "X"]


@pytest.fixture(scope="module", autouse=True)
def small():
    with foreign.small_timm():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(name): the library's model, its folder, and what was loaded from there; made once."""
    known = {}

    def make(name):
        if name not in known:
            folder = tmp_path_factory.mktemp("backbone") / name.replace(" ", "-")
            if name in foreign.OPEN_CLIP:
                theirs = foreign.of_open_clip(name)
                foreign.saved_open_clip(theirs, name, folder)
            else:
                theirs = foreign.of_hugging_face(name.split()[1])
                foreign.saved_hugging_face(theirs, name.split()[1], folder)
            known[name] = theirs, folder, clip.load(folder)[0].requires_grad_(False)
        return known[name]

    return make


def rows_of_the_page(models):
    """The table in docs/backbones.md."""
    yield "| backbone | image tower | prompts in it | text tower | tokenizer | bias |"
    yield "|---|---|---|---|---|---|"
    for name in NAMES:
        model = models(name)[2]
        tower, own = model.visual, not hasattr(model, "family")
        causal = "causal" if own or model.transformer.cuts else "whole context"
        shown = f"`{name}` of open_clip" if name in foreign.OPEN_CLIP else f"`{name.split()[1]}` of transformers"
        cells = (
            shown,
            f"CLIP's own {kind_of(tower)}"
            if own
            else kind_of(tower)
            if name in foreign.OPEN_CLIP
            else "of transformers",
            "yes" if hasattr(tower, "blocks") else "no",
            causal,
            "CLIP's" if type(model.words) is Words else "of the checkpoint",
            "yes" if getattr(model, "logit_bias", None) is not None else "no",
        )
        yield "| " + " | ".join(cells) + " |"


def test_the_page_has_the_table_of_these_tests(models):
    table = "\n".join(rows_of_the_page(models))
    page = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
    assert f"<!-- towers -->\n{table}\n<!-- /towers -->" in page, table


def images(count=2):
    return torch.randn(count, 3, foreign.SIDE, foreign.SIDE, generator=torch.Generator().manual_seed(3))


def their_features(name, theirs, image, ids):
    if name in foreign.OPEN_CLIP:
        off = {"normalize": False}
        return theirs.encode_image(image, **off), theirs.encode_text(ids, **off)
    if name.endswith("siglip2"):
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        patches = torch.stack([convert_image_to_patches(one, 8) for one in image])
        shapes, mask = torch.full((len(image), 2), 4), torch.ones(len(image), 16, dtype=torch.int32)
        vision = theirs.get_image_features(patches, mask, shapes)
    else:
        vision = theirs.get_image_features(image)
    text = theirs.get_text_features(ids)
    return vision.pooler_output, text.pooler_output


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_are_those_of_the_library(models, name):
    theirs, _, ours = models(name)
    ids = ours.words.tokenize(TEXTS)
    image, text = their_features(name, theirs, images(), ids)
    assert_close(ours.encode_image(images()).pooled, image)
    found = ours.encode_text(ids)
    assert_close(found.pooled, text)
    assert not torch.allclose(ours.encode_text(ids.flip(0)).pooled, text, atol=1e-3)
    other = ours.encode_image(images().flip(-1)).pooled
    assert not torch.allclose(other, image, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_token_ids_are_those_of_the_library(models, name):
    if name == "transformers clip":
        return  # CLIP's vocabulary, cut; tests/clip/test_tokenizer.py
    _, folder, ours = models(name)
    texts = [*TEXTS, "far too long to fit " * 30]
    if name in foreign.OPEN_CLIP:
        expected = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        size = {"padding": "max_length", "truncation": True, "max_length": 24}
        expected = tokenizer(texts, return_tensors="pt", **size).input_ids
    assert torch.equal(ours.words.tokenize(texts, truncate=True), expected)
    with pytest.raises(ValueError, match="too long for context length"):
        ours.words.tokenize(texts)


@pytest.mark.parametrize("name", NAMES)
def test_words_after_others(models, name):
    words = models(name)[2].words
    plain, roomy = words.tokenize(["x x of a cat"]), words.tokenize(["of a cat"], room=2)
    first, end = words.first, int(words.ends(plain)[0])
    behind = slice(end - len(words.ids("of a cat", inside=True)), None)  # "x x" are one or more tokens each
    assert (
        roomy[0, first + 2 : first + 2 + 77 - behind.start].tolist()[: end - behind.start]
        == plain[0, behind][: end - behind.start].tolist()
    )
    assert int(words.ends(roomy)[0]) == first + 2 + end - behind.start
    assert words.decode(words.ids("cat", inside=True)[-1]).strip(" #") in "cat"


def blocks_of(module):
    """Entry of prompts into an image tower of a library, and its blocks."""
    if hasattr(module, "trunk"):
        return module.trunk.norm_pre, module.trunk.blocks
    if hasattr(module, "transformer"):
        return module.ln_pre, module.transformer.resblocks
    return module.encoder.layers[0], module.encoder.layers


def overwriting(hooks, blocks, layers, slots):
    """Deeper prompts in the library's blocks: `slots` of their input become the layer's."""
    for block, layer in zip(blocks[1:], layers[1:]):

        def hook(_, args, layer=layer):
            x = args[0].clone()
            x[:, slots] = layer
            return (x, *args[1:])

        hooks.append(block.register_forward_pre_hook(hook))


VITS = [name for name in NAMES if name not in ("RN50", *foreign.WITHOUT_TOKENS)]
ROTARY = ("EVA02-B-16", "PE-Core-B-16")


@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_visual_prompts_are_more_tokens_of_every_block(models, name):
    theirs, _, ours = models(name)
    layers = [0.5 * torch.randn(3, 32, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    found = ours.encode_image(images(), clip.Prompts(tuple(layers), None))
    turned = ours.encode_image(images(), clip.Prompts(tuple(layer.flip(0) for layer in layers), None))
    assert_close(turned.pooled, found.pooled)  # prompts have no position
    assert found.tokens.shape == (2, 1 + found.tokens.shape[1] - 4 + 3, 32)
    assert not torch.allclose(found.pooled, ours.encode_image(images()).pooled, atol=1e-3)
    if name in ROTARY or name == "transformers clip" or name.endswith("siglip2"):
        return
    visual = theirs.visual if hasattr(theirs, "visual") else theirs.vision_model
    start, blocks = blocks_of(visual)
    hooks = [
        start.register_forward_pre_hook(
            lambda _, args: (torch.cat([args[0], layers[0].expand(len(args[0]), -1, -1)], 1), *args[1:])
        )
    ]
    overwriting(hooks, blocks, layers, slice(-3, None))
    hooks.append(blocks[-1].register_forward_hook(lambda _, __, out: out[:, :-3]))
    try:
        assert_close(found.pooled, their_features(name, theirs, images(), ours.words.tokenize(["a"]))[0])
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", [*VITS, "convnext_base"])
@torch.no_grad()
def test_text_prompts_are_other_entries_of_the_token_table(models, name):
    theirs, _, ours = models(name)
    ids = ours.words.tokenize(["a cat.", "a long-haired dog."], room=2)
    slots = torch.arange(ours.words.first, ours.words.first + 2)
    width = ours.transformer.width
    layers = [torch.randn(2, width, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    found = ours.encode_text(ids, clip.Prompts(tuple(layers), slots))
    if name == "transformers clip":
        return
    text = getattr(theirs, "text", None) or getattr(theirs, "text_model", None) or theirs
    table = text.embeddings.token_embedding if hasattr(text, "embeddings") else text.token_embedding
    blocks = text.encoder.layers if hasattr(text, "encoder") else text.transformer.resblocks
    unused = [n for n in range(5, 60) if not (ids == n).any()][:2]
    kept = table.weight.detach().clone()
    hooks = []
    try:
        table.weight[unused] = layers[0]
        ids[:, slots] = torch.tensor(unused)
        overwriting(hooks, blocks, layers, slots)
        expected = their_features(name, theirs, images(), ids)[1]
    finally:
        table.weight.copy_(kept)
        for hook in hooks:
            hook.remove()
    assert_close(found.pooled, expected)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "transformers siglip2"])
@torch.no_grad()
def test_label_tokens_behind_the_end_change_nothing(models, name):
    """The tower has no mask, so it reads the padding that shorter names fill up with."""
    ours = models(name)[2]
    ids = ours.words.tokenize(["a cat", "a dog"])
    end = int(ours.words.ends(ids)[0])
    words = torch.randn(2, 3, ours.transformer.width, generator=torch.Generator().manual_seed(1))
    alone = ours.encode_text(ids, labels=clip.Prompts((words[:, :1],), torch.tensor([end - 2])))
    filled = ours.encode_text(ids, labels=clip.Prompts((words,), torch.tensor([end - 2, end + 1, end + 2])))
    assert torch.equal(filled.pooled, alone.pooled)
    assert not torch.allclose(alone.pooled, ours.encode_text(ids).pooled, atol=1e-3)


@pytest.mark.parametrize("name", VITS)
def test_chunks_give_the_same_features_and_gradients(models, name):
    ours = models(name)[2]
    ids = ours.words.tokenize(["a cat", "a dog", "yin"], room=2)
    grads = []
    for chunks in (None, Chunks(1, 1)):
        ctx = torch.full((2, ours.transformer.width), 0.1, requires_grad=True)
        deep = torch.full((3, 2, ours.transformer.width), 0.2, requires_grad=True)
        slots = torch.arange(ours.words.first, ours.words.first + 2)
        found = ours.encode_text(ids, clip.Prompts((ctx, deep), slots), chunks=chunks)
        (found.pooled.square().sum() + found.tokens[:, :3].sin().sum()).backward()
        grads.append((found.pooled.detach(), ctx.grad, deep.grad))
    for one, other in zip(*grads):
        assert_close(one, other)
        assert float(one.abs().max()) > 0


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "transformers siglip", "EVA02-B-16"])
@torch.no_grad()
def test_logits_have_the_bias_of_the_checkpoint(models, name):
    theirs, _, ours = models(name)
    ids = ours.words.tokenize(TEXTS)
    if name in foreign.OPEN_CLIP:
        expected = theirs.get_logits(images(), ids)[0]
    else:
        expected = theirs(ids, images()).logits_per_image
    assert_close(ours(images(), ids)[0], expected)
    assert (ours.logit_bias is None) == (name == "EVA02-B-16")


@pytest.mark.parametrize("name", NAMES)
def test_images_are_those_of_the_checkpoint(models, name):
    folder = models(name)[1]
    found = clip.input_of(folder)
    assert found == clip.Input(
        foreign.SIDE, *map(tuple, list(foreign.PIXELS.values())[:2]), "bilinear", foreign.resize_of(name)
    )
    transform = clip.load(folder)[1]
    assert found == clip.Input.of(transform)
    wide = Image.fromarray(np.random.default_rng(0).integers(256, size=(50, 80, 3), dtype=np.uint8))
    if name in foreign.OPEN_CLIP:
        library = pytest.importorskip("open_clip").image_transform(
            foreign.SIDE, False, found.mean, found.std, foreign.resize_of(name), "bilinear"
        )
        assert torch.equal(transform(wide), library(wide))
    elif name != "transformers clip":
        library = pytest.importorskip("transformers").SiglipImageProcessor.from_pretrained(folder)
        pixels = library(wide, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(transform(wide), pixels, rtol=0, atol=2 / 255 / min(found.std))  # 2 levels of 255


def test_locals_of_a_class_token_are_its_projection(models):
    """The local feature of a token of a tower with a class token is what CLIP's own towers give."""
    theirs, folder, ours = models("ViT-B-32")
    config = foreign.OPEN_CLIP["ViT-B-32"] | {"init_logit_bias": 0.0}  # no plain CLIP any more
    weights = {**theirs.state_dict(), "logit_bias": torch.zeros(())}
    other = open_clip_model({"model_cfg": config}, weights, folder, "ViT-B-32")
    prompts = clip.Prompts((torch.randn(2, 32), torch.randn(2, 32)), None)
    for given in (None, prompts):
        own, found = ours.encode_image(images(), given), other.encode_image(images(), given)
        assert_close(found.pooled, own.pooled)
        assert_close(found.tokens, own.tokens)
    ids = ours.words.tokenize(TEXTS)
    own, found = ours.encode_text(ids), other.encode_text(ids)
    assert_close(found.pooled, own.pooled)
    assert_close(found.tokens[0, : int(ids[0].argmax())], own.tokens[0, : int(ids[0].argmax())])


@torch.no_grad()
def test_a_language_model_as_text_tower(tmp_path):
    """BERT in open_clip's wrapper, as of BiomedCLIP: padding is masked, the class token is pooled."""
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = transformers.BertConfig(vocab_size=128, max_position_embeddings=24, pad_token_id=0, **sizes)
    bert.save_pretrained(tmp_path / "bert")
    text = {"hf_model_name": str(tmp_path / "bert"), "hf_tokenizer_name": "none", "hf_proj_type": "mlp"}
    text |= {"hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 24, "hf_model_pretrained": False}
    config = {"embed_dim": 32, "vision_cfg": foreign.VIT, "text_cfg": text}
    theirs = reference.randomised(open_clip.model.CustomTextCLIP(**config)).eval()
    folder = tmp_path / "model"
    foreign.letters_tokenizer("bert").save_pretrained(folder)
    ours = open_clip_model({"model_cfg": config}, theirs.state_dict(), folder, "bert")
    ids = ours.words.tokenize(["a cat.", "yin yang"], room=2)
    assert_close(ours.encode_text(ids).pooled, theirs.encode_text(ids))
    slots = torch.arange(1, 3)
    layers = tuple(torch.randn(2, 24, generator=torch.Generator().manual_seed(k)) for k in range(2))
    found = ours.encode_text(ids, clip.Prompts(layers, slots)).pooled
    encoder, hooks = theirs.text.transformer, []
    table = encoder.embeddings.word_embeddings.weight
    table[[100, 101]] = layers[0]
    ids[:, slots] = torch.tensor([100, 101])
    overwriting(hooks, encoder.encoder.layer, layers, slots)
    assert_close(found, theirs.encode_text(ids))
