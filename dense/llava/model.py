"""LLaVA with any CLIP of this project as its vision tower: transformers' classes around the two models."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.eva import EvaVisionTransformer, rotary_angles
from dense.backbone import image_tower, resized_positions
from dense.llava.data import IMAGE

logger = logging.getLogger(__name__)

PROJECTIONS = ("mlp", "linear")


class VisionTower(nn.Module):
    """Frozen image tower that gives the output of one block for every patch, in the form transformers expects.

    Args:
        visual: image tower of a CLIP, a vision transformer.
        layer: number of the block, below 0 counted from the last; -2 is LLaVA's.
        side: of the pictures in pixels, where it is another than the tower's: its positions are interpolated.

    Raises:
        ValueError: the tower has no patches, no such block, or cannot take pictures of that side.
    """

    def __init__(self, visual: Any, layer: int = -2, side: int | None = None) -> None:
        super().__init__()
        blocks = getattr(visual, "blocks", None)
        if blocks is None:
            raise ValueError(f"the image tower is a {type(visual).__name__}, LLaVA needs a vision transformer")
        if not -len(blocks) <= layer < len(blocks):
            raise ValueError(f"TRAINER.LLAVA.LAYER is {layer}, the image tower has {len(blocks)} blocks")
        if side not in (None, visual.input_resolution):
            resize_tower(visual, side)
        self.visual, self.layer = visual.requires_grad_(False), layer
        self.patches = (visual.input_resolution // visual.patch_size) ** 2

    def train(self, mode: bool = True) -> VisionTower:
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """pixel_values: (B, 3, side, side). Returns an output with one hidden state, (B, P, d)."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        found: list[Tensor] = []
        hook = self.visual.blocks[self.layer].register_forward_hook(lambda _, __, out: found.append(out))
        try:
            self.visual(pixel_values)
        finally:
            hook.remove()
        return BaseModelOutputWithPooling(hidden_states=(found[0][:, -self.patches :],))


@torch.no_grad()
def resize_tower(visual: Any, side: int) -> None:
    """Gives one of CLIP's own vision transformers pictures of another side, in pixels.

    Raises:
        ValueError: a tower of another library, or a side that its patches do not tile.
    """
    tower = image_tower(visual)
    if side % tower.patch_size:
        raise ValueError(f"INPUT.SIZE is {(side, side)}, expected a multiple of the patches' {tower.patch_size} pixels")
    grid = side // tower.patch_size
    tower.positions.data = resized_positions(tower, grid, grid).expand(*tower.positions.shape[:-2], -1, -1)
    tower.input_resolution = side
    if isinstance(tower, EvaVisionTransformer):
        angles = F.pad(rotary_angles(grid, tower.width // tower.heads, tower.rope_grid), (0, 0, 1, 0))
        tower.rope_cos, tower.rope_sin = angles.cos(), angles.sin()


def build_llava(tower: VisionTower, language: Any, image_token: int, projection: str = "mlp") -> Any:
    """transformers' LlavaForConditionalGeneration of a vision tower, a projection with random weights and a language
    model, whose parameters are shared.

    Args:
        tower: its patches are the image tokens.
        language: a causal language model of transformers.
        image_token: id that stands for a patch in the text.
        projection: mlp, of two layers, or linear, that of the first LLaVA.
    """
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    width = tower.visual.width
    # A stand-in of the tower, which is never given memory.
    stand_in = CLIPVisionConfig(hidden_size=width, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1)
    config = LlavaConfig(
        vision_config=stand_in,
        text_config=language.config,
        image_token_index=image_token,
        image_seq_length=tower.patches,
        vision_feature_layer=0,  # the only one it gives
        vision_feature_select_strategy="full",
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.multi_modal_projector = (
        LlavaMultiModalProjector(config)
        if projection == "mlp"
        else nn.Linear(width, language.get_input_embeddings().embedding_dim)
    )
    model.model.language_model = language.base_model
    model.lm_head = language.get_output_embeddings()
    model.generation_config = language.generation_config
    return model


def load_language_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, with a token for patches, from a folder of transformers.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no language model, or no tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"TRAINER.LLAVA.LANGUAGE_MODEL is {str(folder)!r}, expected 'tiny' or a folder with config.json, weights "
            "and tokenizer of a causal language model, as transformers' save_pretrained writes it"
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ValueError(f"{path} has no tokenizer (tokenizer.json), expected that of the language model beside it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        language = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError, KeyError) as err:
        raise ValueError(f"{path} holds no causal language model that transformers can load: {err}") from err
    return language, with_image_token(tokenizer, language)


def with_image_token(tokenizer: Any, language: Any) -> Any:
    """The tokenizer with `<image>` and a padding token; the language model gets an embedding if it has none to spare.

    Raises:
        ValueError: the tokenizer cannot tell the characters of a token, or has no end-of-text token.
    """
    if not tokenizer.is_fast or tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer is {type(tokenizer).__name__} with the end-of-text token {tokenizer.eos_token!r}, "
            "expected a fast one (tokenizer.json) that has such a token"
        )
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return tokenizer


def tiny_language_model(texts: Iterable[str], width: int = 128, layers: int = 4, heads: int = 4) -> tuple[Any, Any]:
    """A Llama with random weights and a tokenizer whose tokens are the words and punctuation of `texts`.

    A million parameters: enough for a grammar of some hundred words, not for prose.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.replace(IMAGE, " "))})
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    vocabulary = {word: number for number, word in enumerate([*special.values(), IMAGE, *words])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = split
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    language = LlamaForCausalLM(config)
    return language, with_image_token(tokenizer, language)


def add_lora(language: Any, rank: int) -> None:
    """Puts LoRA (Hu et al. 2022) of `rank` around every linear layer of a language model but the last; the rest is
    frozen.

    Raises:
        ImportError: peft is not installed.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, part in language.base_model.named_modules() if isinstance(part, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=linear), language.base_model)


def choose_learned(llava: Any, stage: int, lora_rank: int = 0) -> None:
    """Lets the parts of a stage learn: the projection, and in stage 2 the language model, or LoRA of it.

    From then on the model's state dict holds what learns and nothing else, and it loads such a one strictly.
    """
    llava.requires_grad_(False)
    if stage == 2 and lora_rank:
        add_lora(llava.model.language_model, lora_rank)
    elif stage == 2:
        llava.model.language_model.requires_grad_(True)
        llava.lm_head.requires_grad_(True)
    llava.model.multi_modal_projector.requires_grad_(True)
    learned = {name for name, part in llava.named_parameters(remove_duplicate=False) if part.requires_grad}
    for part in llava.parameters():
        if part.requires_grad:
            part.data = part.data.float()  # LoRA beside weights of half precision
    frozen = {name: value for name, value in llava.state_dict(keep_vars=True).items() if name not in learned}

    def drop(_: nn.Module, weights: dict[str, Tensor], prefix: str, __: Any) -> None:
        for name in frozen:
            del weights[prefix + name]

    def fill(_: nn.Module, weights: dict[str, Tensor], prefix: str, *__: Any) -> None:
        weights.update({prefix + name: value for name, value in frozen.items()})

    llava.register_state_dict_post_hook(drop)
    llava.register_load_state_dict_pre_hook(fill)


@torch.no_grad()
def answers(llava: Any, tokenizer: Any, batch: dict[str, Tensor], length: int) -> list[str]:
    """Greedy answers of at most `length` tokens to questions, padded on the left."""
    ids = llava.generate(
        input_ids=batch["ids"],
        attention_mask=batch["mask"],
        pixel_values=batch["img"],
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[tokenizer.convert_tokens_to_ids(IMAGE)],
    )
    texts = tokenizer.batch_decode(ids[:, batch["ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
