"""Small models of open_clip and transformers with random weights, in folders as they are published."""

import contextlib
import json

import clip_reference as reference
import pytest
import torch
from safetensors.torch import save_file

SIDE = 32
TIMM = {
    "vit_base_patch16_siglip_224": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": SIDE, "patch_size": 8},
    "eva02_base_patch16_clip_224": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": SIDE, "patch_size": 8},
    "vit_base_mci_224": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": SIDE},
    "vit_pe_core_base_patch16_224": {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "img_size": SIDE,
        "patch_size": 8,
        "ref_feat_shape": (4, 4),
    },
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
}
"""Numbers that make networks of timm small."""
BPE = {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
"""CLIP's text tower and vocabulary."""
SENTENCEPIECE = {
    "context_length": 24,
    "vocab_size": 128,
    "hf_tokenizer_name": "timm/none",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 24,
    "heads": 2,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
VIT = {"image_size": SIDE, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16}


def timm_tower(name, pool, proj):
    return {"image_size": SIDE, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}


OPEN_CLIP = {
    "ViT-B-32": {"vision_cfg": VIT, "text_cfg": BPE},
    "RN50": {
        "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 128},
        "text_cfg": BPE,
    },
    "EVA02-B-16": {"vision_cfg": timm_tower("eva02_base_patch16_clip_224", "token", None), "text_cfg": BPE},
    "ViT-B-16-SigLIP": {
        "init_logit_bias": -10,
        "vision_cfg": timm_tower("vit_base_patch16_siglip_224", "map", "none"),
        "text_cfg": SENTENCEPIECE,
    },
    "ViT-B-16-SigLIP2": {
        "init_logit_bias": -10,
        "vision_cfg": timm_tower("vit_base_patch16_siglip_224", "map", "none"),
        "text_cfg": SENTENCEPIECE | {"act_kwargs": {"approximate": "tanh"}},
    },
    "ViT-L-14-CLIPA": {
        "vision_cfg": VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": BPE
        | {
            "context_length": 24,
            "vocab_size": 128,
            "hf_tokenizer_name": "none",
            "tokenizer_kwargs": {"strip_sep_token": True},
            "pool_type": "last",
            "no_causal_mask": True,
        },
    },
    "coca_ViT-B-32": {
        "vision_cfg": VIT
        | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5, "output_tokens": True},
        "text_cfg": BPE | {"context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": BPE | {"context_length": 76, "attn_pooler_heads": 2},
    },
    "MobileCLIP-B": {"vision_cfg": timm_tower("vit_base_mci_224", "token", None), "text_cfg": BPE},
    "PE-Core-B-16": {
        "vision_cfg": timm_tower("vit_pe_core_base_patch16_224", "map", None),
        "text_cfg": BPE | {"context_length": 32},
    },
    "convnext_base": {"vision_cfg": timm_tower("convnext_tiny", "avg", "linear"), "text_cfg": BPE},
}
"""Configurations of open_clip 3.3 with small numbers; a SigLIP tower's width is its embedding's."""
for config in OPEN_CLIP.values():
    config["embed_dim"] = 32
PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7], "interpolation": "bilinear"}
PLAIN = ("ViT-B-32", "RN50")
WITHOUT_TOKENS = ("convnext_base",)
HUGGING_FACE = ("clip", "siglip", "siglip2")


@contextlib.contextmanager
def small_timm():
    """Networks of timm that open_clip builds are small inside."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    make = timm.create_model

    def create_model(name, **options):
        return make(name, **options, **TIMM.get(name, {}))

    from timm.models import vision_transformer_hybrid as hybrid

    stem = hybrid.ConvStem  # of MobileCLIP's ViT, whose width is not an argument

    def small_stem(channels, **options):
        return stem(channels=(8, 8, 32), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create_model)
        patch.setattr(hybrid, "ConvStem", small_stem)
        yield


def letters_tokenizer(kind):
    """A tokenizer of transformers that spells: "siglip" (T5's), "siglip2" (Gemma's) or "bert"."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    if kind == "bert":
        known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        small = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list(".-0123456789")
        vocab = [*known, *small, *(f"##{one}" for one in small)]
        table = {entry: number for number, entry in enumerate(vocab)}
        model = tokenizers.Tokenizer(tokenizers.models.WordPiece(table, unk_token="[UNK]"))
        model.normalizer = tokenizers.normalizers.BertNormalizer()
        model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        model.post_processor = tokenizers.processors.TemplateProcessing(
            "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **names)
    table = {entry: number for number, entry in enumerate(["<pad>", "</s>", "<unk>", "▁", *letters])}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(table, [], unk_token="<unk>"))
    if kind == "siglip":
        model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    else:
        model.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    model.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    pad = "</s>" if kind == "siglip" else "<pad>"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="</s>", unk_token="<unk>", pad_token=pad, padding_side="right"
    )


def of_open_clip(name):
    """A model of open_clip with random weights."""
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    config = json.loads(json.dumps(OPEN_CLIP[name]))
    kind = open_clip.coca_model.CoCa if "multimodal_cfg" in config else open_clip.model.CustomTextCLIP
    if name in PLAIN:
        kind = open_clip.model.CLIP
    with torch.random.fork_rng(devices=[]):
        return reference.randomised(kind(**config)).eval()


def resize_of(name):
    """Resizing of the backbone's test images, in open_clip's word."""
    return "squash" if "siglip" in name.lower() else "shortest"


def saved_open_clip(model, name, folder):
    """The folder of a model of open_clip, with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": OPEN_CLIP[name], "preprocess_cfg": PIXELS | {"resize_mode": resize_of(name)}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if "hf_tokenizer_name" in OPEN_CLIP[name]["text_cfg"]:
        kind = "bert" if "CLIPA" in name else "siglip2" if "SigLIP2" in name else "siglip"
        letters_tokenizer(kind).save_pretrained(folder)
    return folder


def of_hugging_face(kind):
    """A CLIP, SigLIP or SigLIP 2 of transformers with random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = tower | {"patch_size": 8} | ({"num_patches": 16} if kind == "siglip2" else {"image_size": SIDE})
    text = tower | {"vocab_size": 128, "max_position_embeddings": 24, "projection_size": 32}
    if kind == "clip":
        text = tower | {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
        model = transformers.CLIPModel(config)
    else:
        named = {"siglip": "Siglip", "siglip2": "Siglip2"}[kind]
        config = getattr(transformers, f"{named}Config")(text_config=text, vision_config=vision)
        model = getattr(transformers, f"{named}Model")(config)
    return reference.randomised(model).eval()


def saved_hugging_face(model, kind, folder):
    """The folder of a model of transformers, with preprocessing and tokenizer."""
    model.save_pretrained(folder)
    pixels = {"image_mean": PIXELS["mean"], "image_std": PIXELS["std"], "resample": 2}
    sides = {"height": SIDE, "width": SIDE}
    pixels["size"] = {"shortest_edge": SIDE} if kind == "clip" else sides
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    if kind != "clip":
        letters_tokenizer(kind).save_pretrained(folder)
    return folder
