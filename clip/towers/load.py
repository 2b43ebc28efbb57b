"""From a configuration and weights of open_clip or transformers to a :class:`TowerCLIP`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from clip.archive import CheckpointError
from clip.convert import StateDict, check_equal
from clip.towers.image import SiglipViT, open_clip_tower
from clip.towers.model import TowerCLIP
from clip.towers.names import needed
from clip.towers.text import SiglipText, open_clip_text
from clip.towers.words import TowerWords
from clip.words import Words

SIGLIP = ("siglip", "siglip2")
"""``model_type`` of transformers' configurations that are read here."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)


def open_clip_model(config: dict[str, Any], weights: StateDict, folder: Path, name: str) -> TowerCLIP:
    """A model of open_clip, in evaluation mode, fp32. Draws no random numbers.

    Args:
        config: content of open_clip_config.json.
        weights: of the whole model.
        folder: of the weights, where a tokenizer may lie.
        name: for messages.

    Raises:
        ImportError: open_clip, timm or transformers is missing.
        CheckpointError: a configuration or weights that do not fit, or a tokenizer that is missing.
    """
    open_clip = needed("open_clip", name)
    settings = copy.deepcopy(config.get("model_cfg", config))
    vision, text = settings.get("vision_cfg") or {}, settings.get("text_cfg") or {}
    if vision.get("timm_model_name"):
        needed("timm", name)
        vision["timm_model_pretrained"] = False
    if text.get("hf_model_name"):
        needed("transformers", name)
        text["hf_model_pretrained"] = False
    settings.pop("custom_text", None)
    kind = open_clip.coca_model.CoCa if "multimodal_cfg" in settings else open_clip.model.CustomTextCLIP
    try:
        with torch.random.fork_rng(devices=[]):
            model = kind(**settings)
    except (TypeError, ValueError, KeyError, AssertionError, AttributeError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"open_clip {open_clip.__version__} cannot build the model of this configuration, vision_cfg {vision}, "
            f"text_cfg {text} ({type(error).__name__}: {error})"
        ) from error
    weights = open_clip.convert.convert_state_dict(model, weights)
    if "positional_embedding" in weights:
        weights = open_clip.model.convert_to_custom_text_state_dict(weights)
    _fill(model, weights)
    output_dim = settings["embed_dim"]
    return TowerCLIP(
        open_clip_tower(model.visual, output_dim),
        open_clip_text(model.text),
        _open_clip_words(text, model.text.vocab_size, folder, name),
        model.logit_scale,
        model.logit_bias,
        f"{name} of open_clip",
    ).eval()


def siglip_model(config: dict[str, Any], weights: StateDict, folder: Path, name: str) -> TowerCLIP:
    """A SigLIP or SigLIP 2 of transformers; arguments and errors as of :func:`open_clip_model`."""
    transformers = needed("transformers", name)
    own = transformers.AutoConfig.for_model(**config)
    own.dtype = torch.float32
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModel.from_config(own)
    if not own.vision_config.vision_use_head:
        raise CheckpointError("config.json has vision_use_head false, so an image has no feature")
    _fill(model.float(), weights)
    length, vocabulary = own.text_config.max_position_embeddings, own.text_config.vocab_size
    return TowerCLIP(
        SiglipViT(model.vision_model),
        SiglipText(model.text_model),
        TowerWords(_tokenizer(folder, str(folder), name), length, vocabulary),
        model.logit_scale,
        model.logit_bias,
        f"{own.model_type} of transformers",
    ).eval()


def _fill(model: torch.nn.Module, weights: StateDict) -> None:
    """Weights into a model, strictly; numbers of shape (1,) and () are the same."""
    expected = model.state_dict()
    found = {}
    for key, value in weights.items():
        if key.endswith("position_ids") and key not in expected:
            continue  # counts from 0, which some versions store
        one = key in ("logit_scale", "logit_bias") and key in expected
        found[key] = value.reshape(expected[key].shape) if one else value
    check_equal(expected, found)
    model.load_state_dict(found, strict=True)


def _open_clip_words(text: dict[str, Any], vocabulary: int, folder: Path, name: str) -> Words:
    """The tokenizer that a configuration of open_clip names."""
    length = text.get("context_length", 77)
    if not (source := text.get("hf_tokenizer_name")):
        return Words(length, vocabulary)
    if mode := text.get("tokenizer_mode"):
        raise CheckpointError(f"text_cfg has the tokenizer_mode {mode!r}, which is not known here")
    settings = dict(text.get("tokenizer_kwargs") or {})
    from open_clip.tokenizer import get_clean_fn

    clean = get_clean_fn(settings.pop("clean", "whitespace"))
    strip = settings.pop("strip_sep_token", False)
    tokenizer = _tokenizer(folder, str(folder) if _has_tokenizer(folder) else source, name, **settings)
    return TowerWords(tokenizer, length, vocabulary, clean, strip)


def _tokenizer(folder: Path, source: str, name: str, **settings: Any) -> Any:
    """The tokenizer in a folder or of a repository of the Hub.

    Raises:
        CheckpointError: it is not there.
    """
    transformers = needed("transformers", name)
    reason: Exception | str = "no such file there"
    if source != str(folder) or _has_tokenizer(folder):
        try:
            return transformers.AutoTokenizer.from_pretrained(source, **settings)
        except (OSError, ValueError, ImportError) as error:
            reason = error
    raise CheckpointError(
        f"its tokenizer, {source}, cannot be loaded ({str(reason).splitlines()[0][:200]}): put the model's tokenizer "
        f"files (tokenizer_config.json and tokenizer.json or spiece.model) into {folder}"
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in TOKENIZER_FILES)
