"""LLaVA with our towers: logits, loss, what learns, and answers, against transformers' own and plain loops."""

import copy

import pytest
import torch
from llava_models import PATCHES, SIDE, TURNS, tiny_clip_pair, tiny_llava
from tolerance import assert_close
from transformers import LlavaConfig, LlavaForConditionalGeneration

import clip
from dense.backbone import DenseBackbone
from dense.llava.data import IGNORED, Wording, encode, pad
from dense.llava.model import VisionTower, answers, choose_learned


def batch_of(tokenizer, count=2, **options):
    generator = torch.Generator().manual_seed(3)
    items = [
        {
            "img": torch.randn(3, SIDE, SIDE, generator=generator),
            "target": None,
            **encode(tokenizer, PATCHES, Wording(), 500, TURNS[: 1 + 2 * i], **options)._asdict(),
        }
        for i in range(count)
    ]
    return pad(items)


def logits_of(model, batch):
    return model(input_ids=batch["ids"], pixel_values=batch["img"], attention_mask=batch["mask"]).logits


@pytest.mark.parametrize("layer", [-1, -2])
def test_logits_are_those_of_transformers(layer):
    """LLaVA of transformers with its own CLIPVisionModel, holding the same weights."""
    theirs, ours = tiny_clip_pair()
    llava, tokenizer = tiny_llava(layer=layer, visual=ours.visual)
    config = LlavaConfig(
        vision_config=theirs.config.vision_config,
        text_config=llava.config.text_config,
        image_token_index=llava.config.image_token_index,
        vision_feature_layer=layer,
    )
    reference = LlavaForConditionalGeneration(config).eval()
    reference.model.vision_tower.load_state_dict(theirs.vision_model.state_dict())
    own = {name: value for name, value in llava.state_dict().items() if "vision_tower" not in name}
    missing, unexpected = reference.load_state_dict(own, strict=False)
    assert not unexpected
    assert all("vision_tower" in name for name in missing)
    batch = batch_of(tokenizer)
    with torch.no_grad():
        found, expected = logits_of(llava, batch), logits_of(reference, batch)
        assert_close(found, expected)
        llava.model.vision_tower.layer = -1 - layer % 2
        with pytest.raises(AssertionError):
            assert_close(logits_of(llava, batch), expected)


def test_loss_is_the_mean_over_the_tokens_of_answers():
    llava, tokenizer = tiny_llava()
    batch = batch_of(tokenizer)
    with torch.no_grad():
        found = llava(
            input_ids=batch["ids"], pixel_values=batch["img"], attention_mask=batch["mask"], labels=batch["labels"]
        ).loss
        logits = logits_of(llava, batch)
    terms, all_terms = [], []
    for row in range(len(logits)):
        for place in range(1, logits.shape[1]):
            if batch["mask"][row, place]:
                term = -logits[row, place - 1].log_softmax(0)[batch["ids"][row, place]]
                all_terms.append(term)
                if batch["labels"][row, place] != IGNORED:
                    terms.append(term)
    assert_close(found, torch.stack(terms).mean())
    with pytest.raises(AssertionError):
        assert_close(found, torch.stack(all_terms).mean())


@pytest.mark.parametrize("projection", ["mlp", "linear"])
def test_stages_train_what_they_should(projection):
    for stage, rank in ((1, 0), (2, 0), (2, 4)):
        llava, tokenizer = tiny_llava(projection)
        before = {name: value.clone() for name, value in llava.state_dict().items()}
        choose_learned(llava, stage, rank)
        llava.train()
        assert llava.model.language_model.training
        assert not llava.model.vision_tower.visual.training
        batch = batch_of(tokenizer)
        loss = llava(input_ids=batch["ids"], pixel_values=batch["img"], labels=batch["labels"]).loss
        loss.backward()
        with torch.no_grad():
            for parameter in llava.parameters():
                assert (parameter.grad is not None) is parameter.requires_grad
                if parameter.requires_grad:
                    parameter -= parameter.grad.sign()
        now = {**dict(llava.named_parameters(remove_duplicate=False)), **dict(llava.named_buffers())}
        changed = {name for name, value in now.items() if name in before and (value != before[name]).any()}
        saved = llava.state_dict()
        assert saved.keys() == {name for name, part in llava.named_parameters() if part.requires_grad}
        parts = {name.split(".")[1] if name.startswith("model") else "lm_head" for name in changed}
        whole = {"multi_modal_projector", "language_model", "lm_head"}
        assert parts == (whole if stage == 2 and not rank else {"multi_modal_projector"})
        if rank:
            lora = {name for name in saved if "language_model" in name}
            assert lora
            assert all("lora_" in name for name in lora)


@pytest.mark.parametrize(("stage", "rank"), [(1, 0), (2, 0), (2, 4)])
def test_what_learned_moves_to_another_model(stage, rank):
    first, second = tiny_llava()[0], tiny_llava()[0]
    for model in (first, second):
        if rank:
            model.model.language_model.bfloat16()
        choose_learned(model, stage, rank)
        assert all(part.dtype == torch.float32 for part in model.parameters() if part.requires_grad)
    with torch.no_grad():
        for parameter in first.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    weights = first.state_dict()
    second.load_state_dict(weights)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    del weights["model.multi_modal_projector.linear_1.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*linear_1"):
        second.load_state_dict(weights)


def test_answers_are_the_likeliest_tokens_one_by_one():
    llava, tokenizer = tiny_llava()
    with torch.no_grad():
        llava.lm_head.weight.mul_(40)  # so that the likeliest token is clear
    batch = batch_of(tokenizer, answered=False)
    found = answers(llava, tokenizer, batch, 6)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    for row in range(len(found)):
        ids = batch["ids"][row][batch["mask"][row].bool()].tolist()
        start = len(ids)
        while len(ids) < start + 6 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            with torch.no_grad():
                logits = llava(input_ids=torch.tensor([ids]), pixel_values=batch["img"][row : row + 1]).logits[0, -1]
            logits[image_token] = -torch.inf
            ids.append(int(logits.argmax()))
        assert found[row] == tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_towers_without_patches_or_blocks_are_refused():
    resnet = clip.new_model(16, SIDE, (1, 1, 1, 1), 8, None, 8, 600, 16, 2, 1).visual
    with pytest.raises(ValueError, match="is a ModifiedResNet, LLaVA needs a vision transformer"):
        VisionTower(resnet)
    visual = tiny_clip_pair()[1].visual
    with pytest.raises(ValueError, match=r"LAYER is -4, the image tower has 3 blocks"):
        VisionTower(visual, -4)


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_pictures_of_another_size_are_seen_as_the_dense_backbone_sees_them(kind):
    torch.manual_seed(2)
    numbers = (16, SIDE, 2, 128, 8, 8, 600, 64, 1, 1)
    visual = clip.new_model(*numbers, rope_grid=16 if kind == "eva" else None).visual.eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        backbone = DenseBackbone(copy.deepcopy(visual), 8).eval()
        expected = backbone.encode(image).flatten(2).transpose(1, 2)
        tower = VisionTower(visual, -1, 64)
        assert tower.patches == 64
        norm = visual.ln_post if kind == "vit" else visual.norm
        assert_close(norm(tower(image).hidden_states[0]), expected)
    with pytest.raises(ValueError, match=r"INPUT.SIZE is \(60, 60\), expected a multiple of the patches' 8 pixels"):
        VisionTower(visual, -1, 60)


def test_wrong_number_of_image_tokens_is_refused():
    llava, tokenizer = tiny_llava()
    batch = batch_of(tokenizer)
    with pytest.raises(ValueError, match="do not match"):
        llava(input_ids=batch["ids"][:, 1:], pixel_values=batch["img"][:1])
