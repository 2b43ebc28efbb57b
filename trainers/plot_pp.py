"""PLOT++: several learned prompts of either tower, matched to each other by optimal transport, trained in two stages.

The authors' later version of PLOT (Chen et al., ICLR 2023) for vision transformers; described by its released code.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import CLIP, Encoded, Prompts
from trainers.parts.engine import BEST_MODEL, TRAINER_REGISTRY, Option, last_epoch, method_options
from trainers.parts.losses import cosine_logits
from trainers.parts.modes import ModeContext, mode_similarity
from trainers.parts.options import PLOT_OPTIONS, count, precision
from trainers.parts.prompts import Learner, random_prompt, readable, vision_blocks, word_tokens
from trainers.parts.set_transport import SetTransport
from trainers.parts.templates import prefixes_for

from .base import PromptTrainer, Score

logger = logging.getLogger(__name__)

STAGES = ("vision", "joint")


class TwoSidedModes(ModeContext):
    """N textual contexts that start as phrases, and M visual prompts of m vectors at the input; they share nothing.

    Every context has as many vectors n as the shortest phrase has tokens. Words of another phrase beyond n stay frozen
    in its sentences.

    Args:
        model: the frozen CLIP; its visual tower must be a vision transformer.
        classnames: C class names.
        phrases: N prefixes of the sentences.
        vision_modes, n_vision: M and m.
        learn_text: false keeps the contexts at the phrases (stage 1).
        overwrite_names: n is the size of the first phrase; the last vectors of a shorter one take the place of name
            tokens and start as what follows the phrase, its end token.

    Raises:
        ValueError: no vision transformer, or an empty phrase.
    """

    def __init__(
        self,
        model: CLIP,
        classnames: Sequence[str],
        phrases: Sequence[str],
        vision_modes: int,
        n_vision: int,
        learn_text: bool,
        overwrite_names: bool = False,
    ):
        vision_blocks(model)  # refuses a ResNet
        first = model.words.first
        lengths = [len(word_tokens(model, phrase)) for phrase in phrases]
        if 0 in lengths:
            raise ValueError(f"CTX_INIT is {list(phrases)!r}, expected one prefix or several, none of them empty")
        n = lengths[0] if overwrite_names else min(lengths)
        device = model.token_embedding.weight.device
        ids, starts = [], []
        for phrase in phrases:
            ids.append(model.words.tokenize([f"{phrase} {readable(name)}." for name in classnames]))
            starts.append(model.words.tokenize([phrase])[0, first : first + n])
        with torch.no_grad():
            ctx = model.token_embedding(torch.stack(starts).to(device)).float()  # (N, n, d)
        slots = torch.arange(first, first + n).expand(len(classnames), len(phrases), n)
        super().__init__(torch.stack(ids, dim=1), slots, ctx, learn_text)
        self.vision_modes = vision_modes
        self.ctx_vision: nn.Parameter = random_prompt(vision_modes, n_vision, model.visual.width)

    def vision_prompts(self) -> Prompts | None:
        return Prompts((self.ctx_vision,), None)


@TRAINER_REGISTRY.register()
class PLOTPP(PromptTrainer):
    """M image features and N text features per pair; logit = scale * sum(T * S), S their cosines, T the plan of 1 - S.

    Stage 1 (`vision`) learns the visual prompts with contexts fixed at the phrases, stage 2 (`joint`) goes on with both
    from the run of stage 1 in PRETRAIN_DIR.
    """

    node = "PLOTPP"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "PLOTPP",
            {
                "M": count(4, "visual prompts"),
                "N_CTX_V": count(2, "m, vectors of a visual prompt, drawn from N(0, 0.02²)"),
                "CTX_INIT": Option(
                    (),
                    "one prefix or a list of N, of any lengths: contexts have as many vectors as the shortest has "
                    "tokens; empty = four by data set, those of Caltech101 elsewhere",
                    texts=True,
                ),
                "RELEASED_PREFIXES": Option(False, 'third prefix "this is a" on ImageNet and its variants'),
                "MODEL_UPD": Option("joint", "vision (stage 1) or joint (stage 2)", choices=STAGES),
                "PRETRAIN_DIR": Option("", "folder of the stage-1 run; empty: stage 2 starts from the prefixes"),
                "TRADE_OFF": Option(
                    None, "adds scale * cosine of the mean features; None = in stage 1 only", kind=bool
                ),
                **PLOT_OPTIONS,
                "PREC": precision(more="; transport is computed in fp32 in every mode"),
            },
        )

    @classmethod
    def config_problems(cls, cfg) -> list[str]:
        found, options = super().config_problems(cfg), cfg.TRAINER.PLOTPP
        if options.PRETRAIN_DIR and options.MODEL_UPD == "vision":
            found.append(
                "TRAINER.PLOTPP.PRETRAIN_DIR is set, but stage 1 (MODEL_UPD vision) starts from nothing: "
                "leave it empty, or train stage 2 with MODEL_UPD joint"
            )
        return found

    def build_learner(self, model, classnames) -> Learner:
        options, init = self.options, self.options.CTX_INIT
        own = (init,) if isinstance(init, str) and init else tuple(init)
        return TwoSidedModes(
            model,
            classnames,
            own or prefixes_for(self.cfg.DATASET.NAME, options.RELEASED_PREFIXES),
            vision_modes=options.M,
            n_vision=options.N_CTX_V,
            learn_text=options.MODEL_UPD == "joint",
            overwrite_names=options.RELEASED_PREFIXES,
        )

    def build_score(self, learner) -> Score:
        options = self.options
        pooled = options.MODEL_UPD == "vision" if options.TRADE_OFF is None else options.TRADE_OFF

        self.transport = transport = SetTransport(options)

        def score(image: Encoded, text: Encoded, scale: Tensor) -> Tensor:
            images = image.pooled.float().unflatten(0, (-1, learner.vision_modes))  # (B, M, E)
            texts = text.pooled.float().unflatten(0, (-1, learner.text_modes))  # (C, N, E)
            scores = transport(images, texts, scale)
            transport.metrics["mode_similarity_image"] = mode_similarity(images)
            return scores + cosine_logits(images.mean(dim=1), texts.mean(dim=1), scale) if pooled else scores

        return score

    def extra_metrics(self) -> dict[str, Tensor]:
        return self.transport.metrics

    def before_train(self) -> None:
        """Stage 2 starts from the prompts of stage 1; a run that is resumed then takes its own."""
        directory = self.options.PRETRAIN_DIR
        if directory:
            best = (Path(directory) / self.model_name / BEST_MODEL).is_file()
            self.load_model(directory, epoch=None if best else last_epoch(directory))
        elif self.options.MODEL_UPD == "joint":
            logger.warning("TRAINER.PLOTPP.PRETRAIN_DIR is empty: both sides are learned without a stage 1")
        super().before_train()
