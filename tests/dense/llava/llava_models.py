"""A tiny CLIP, language model and pictures for the tests of LLaVA."""

import json

import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

import clip
from dense.llava.data import Turn
from dense.llava.model import VisionTower, build_llava, tiny_language_model

TURNS = (
    Turn("<image>\nwhat is in the picture?", "a cat, a dog."),
    Turn("how many cats are there?", "one."),
    Turn("is the cat left of the dog?", "yes, it is."),
)
SIDE, PATCHES = 32, 16


def tiny_clip_pair():
    """transformers' CLIPModel with random weights, and the same as a clip.CLIP."""
    size = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    config = CLIPConfig(
        text_config={**size, "vocab_size": 600, "num_hidden_layers": 1, "bos_token_id": 598, "eos_token_id": 599},
        vision_config={**size, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    theirs = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    weights = theirs.state_dict()
    return theirs, clip.build_model(weights, quick_gelu=True).eval()


def tiny_llava(projection="mlp", layer=-2, visual=None):
    """A LLaVA of the tiny CLIP, and its tokenizer."""
    visual = tiny_clip_pair()[1].visual if visual is None else visual
    torch.manual_seed(1)
    language, tokenizer = tiny_language_model([text for turn in TURNS for text in turn], 32, 2, 2)
    tower = VisionTower(visual, layer)
    model = build_llava(tower, language, tokenizer.convert_tokens_to_ids("<image>"), projection)
    return model.eval(), tokenizer


def record(**changes):
    messages = [
        {"from": role, "value": text} for turn in TURNS for role, text in zip(("human", "gpt"), turn, strict=True)
    ]
    return {"id": "7", "image": "a.png", "conversations": messages, **changes}


def write_records(folder, *records):
    """FOLDER/conversations.json with records and the picture FOLDER/a.png."""
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    (folder / "conversations.json").write_text(json.dumps(list(records)))
    return folder / "conversations.json"
