"""Contrastive image-text pre-training of a CLIP of any size from scratch (CLIP, Section 2.3).

Two additions make it affordable: patches are dropped for most of the training, as FLIP (Li et al., CVPR 2023) does, and
both projections start from whitened features of the random towers, without which the loss rests at the logarithm of
the batch size for a long time.
"""

from __future__ import annotations

import logging
import math
import os

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

import clip
from clip import CLIP
from dassl.engine import TRAINER_REGISTRY

from .base import CLIPTrainer, PromptedCLIP, cosine_score, state_hash
from .losses import contrastive_loss, normalise
from .prompts import TemplateText

logger = logging.getLogger(__name__)


def keep_random_patches(tokens: Tensor, keep: int, generator: torch.Generator | None = None) -> Tensor:
    """Class token and `keep` random patches of every image, (B, 1 + P, d) -> (B, 1 + keep, d), in patch order."""
    rows, length, width = tokens.shape
    chosen = torch.rand(rows, length - 1, generator=generator, device=tokens.device).topk(keep, dim=1).indices
    index = torch.cat([chosen.new_zeros(rows, 1), chosen.sort(dim=1).values + 1], dim=1)
    return tokens.gather(1, index[:, :, None].expand(-1, -1, width))


class TwoTowers(nn.Module):
    """Both normalised features of a batch of pairs, with part of the patches of each image."""

    def __init__(self, model: CLIP):
        super().__init__()
        self.clip = model

    def forward(self, image: Tensor, ids: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W), captions (B, L), share of the patches kept -> (B, E), (B, E) and the scalar scale."""
        tokens = self.clip.visual.embed(image)
        if share < 1:
            tokens = keep_random_patches(tokens, max(1, round(share * (tokens.shape[1] - 1))))
        image_feature = normalise(self.clip.visual.encode(tokens).pooled)
        text_feature = normalise(self.clip.encode_text(ids).pooled)
        return image_feature, text_feature, self.clip.logit_scale.exp()


def whitening(feature: Tensor, out: int, floor: float = 1e-2) -> Tensor:
    """Linear map (d, out) after which features (K, d) are uncorrelated, of equal size and without their common part.

    The mean direction is projected out (a projection has no bias), and eigenvalues of the covariance below `floor`
    times the largest are raised to it. Components beyond the rank are random.
    """
    mean = feature.mean(dim=0)
    direction = mean / mean.norm()
    rest = feature - (feature @ direction)[:, None] * direction  # without the mean direction
    centred = rest - rest.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(feature))
    white = vectors * values.clamp(min=floor * float(values[-1])).rsqrt()  # (d, d)
    white = white - direction[:, None] * (direction @ white)[None, :]
    rotation = torch.linalg.qr(torch.randn(white.shape[1], max(out, white.shape[1])).T)[0].T
    return white @ rotation[:, :out] / math.sqrt(out)


@torch.no_grad()
def whiten_projections(model: CLIP, image: Tensor, ids: Tensor) -> None:
    """Replaces both projections of a random model by whitening maps of its own features on one batch."""
    for tower, name, encode in (
        (model.visual, "proj", lambda: model.encode_image(image)),
        (model, "text_projection", lambda: model.encode_text(ids)),
    ):
        old = getattr(tower, name)
        width, out = old.shape
        setattr(tower, name, nn.Parameter(torch.eye(width, device=old.device)))
        feature = encode().pooled.float().cpu()
        setattr(tower, name, nn.Parameter(whitening(feature, out).to(old)))


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups of AdamW: matrices decay, vectors and scalars (biases, norms, temperature) do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@TRAINER_REGISTRY.register()
class ContrastiveCLIP(CLIPTrainer):
    """Trains all of CLIP on batches of images and captions.

    The data set brings its own loader (see `datasets.image_text`) with batches {img, text, positive}, where `positive`
    says which caption is true of which image; its classes and test images serve for zero-shot accuracy during
    training. With several processes every process contrasts its own batch.
    The trained model is written to OUTPUT_DIR/clip.safetensors, loadable by `clip.load`.
    """

    node = "CONTRASTIVE"

    @staticmethod
    def defaults() -> CfgNode:
        return CfgNode(
            {
                "CONTRASTIVE": {
                    "PREC": "fp32",  # fp32, amp or bf16
                    "EMBED_DIM": 192,
                    "VISION_LAYERS": 6,
                    "VISION_WIDTH": 192,
                    "VISION_PATCH_SIZE": 8,
                    "CONTEXT_LENGTH": 77,
                    "VOCAB_SIZE": 8192,
                    "TEXT_WIDTH": 192,
                    "TEXT_HEADS": 3,
                    "TEXT_LAYERS": 4,
                    "KEEP_PATCHES": 0.5,  # share of the patches that the image tower sees
                    "FULL_EPOCHS": 2,  # last epochs on all patches
                    "WHITEN": True,  # start both projections from whitened features
                    "MAX_SCALE": 100.0,  # upper bound of the learned scale
                    "EVAL_FREQ": 0,  # epochs between zero-shot evaluations, 0 = only at the end
                }
            }
        )

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        options = cfg.TRAINER.CONTRASTIVE
        if options.PREC == "fp16":
            raise ValueError(
                "TRAINER.CONTRASTIVE.PREC is 'fp16', but weights that learn stay fp32: use fp32, amp or bf16"
            )
        if not 0 < options.KEEP_PATCHES <= 1:
            raise ValueError(f"TRAINER.CONTRASTIVE.KEEP_PATCHES is {options.KEEP_PATCHES}, expected a share in (0, 1]")

    def build_clip(self) -> CLIP:
        options = self.options
        height, width = self.cfg.INPUT.SIZE
        if height != width or height % options.VISION_PATCH_SIZE:
            raise ValueError(
                f"INPUT.SIZE is {(height, width)}, expected a square that patches of {options.VISION_PATCH_SIZE} tile"
            )
        return CLIP(
            embed_dim=options.EMBED_DIM,
            image_resolution=height,
            vision_layers=options.VISION_LAYERS,
            vision_width=options.VISION_WIDTH,
            vision_patch_size=options.VISION_PATCH_SIZE,
            context_length=options.CONTEXT_LENGTH,
            vocab_size=options.VOCAB_SIZE,
            transformer_width=options.TEXT_WIDTH,
            transformer_heads=options.TEXT_HEADS,
            transformer_layers=options.TEXT_LAYERS,
        )

    def build_model(self) -> None:
        # MODEL.BACKBONE.NAME continues from a checkpoint; without it the weights are random.
        backbone = (self.load_clip() if self.cfg.MODEL.BACKBONE.NAME else self.build_clip()).to(self.device)
        if self.options.WHITEN and not self.cfg.MODEL.BACKBONE.NAME:
            self.whiten(backbone)
        self.backbone_hash = state_hash(backbone)
        classes = TemplateText(backbone, self.dm.dataset.classnames, self.template)
        self.model = PromptedCLIP(backbone, classes, cosine_score).to(self.device)
        self.towers = self.parallel(TwoTowers(backbone))
        self.register_learned("clip", backbone, decay_groups(backbone, self.cfg.OPTIM.WEIGHT_DECAY))

    def whiten(self, model: CLIP, images: int = 1024) -> None:
        """Whitens the projections of a random model on the first batches of the training data."""
        parts: list[tuple[Tensor, Tensor]] = []
        for batch in self.train_loader_x:
            image, ids, _ = self.parse_batch_train(batch)
            parts.append((image, ids))
            if sum(len(part[0]) for part in parts) >= images:
                break
        whiten_projections(model, *(torch.cat(tensors) for tensors in zip(*parts)))

    def parse_batch_train(self, batch) -> tuple[Tensor, Tensor, Tensor]:
        options = self.options
        ids = clip.tokenize(
            batch["text"], context_length=options.CONTEXT_LENGTH, truncate=True, vocab_size=options.VOCAB_SIZE
        )
        return batch["img"].to(self.device), ids.to(self.device), batch["positive"].to(self.device)

    def losses(self, batch) -> dict[str, Tensor]:
        image, ids, positive = self.parse_batch_train(batch)
        full = self.epoch >= self.max_epoch - self.options.FULL_EPOCHS
        share = 1.0 if full else self.options.KEEP_PATCHES
        image_feature, text_feature, scale = self.towers(image, ids, share)
        return {"contrastive": contrastive_loss(image_feature, text_feature, scale, positive)}

    def forward_backward(self, batch) -> dict[str, float]:
        shown = super().forward_backward(batch)
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(0, math.log(self.options.MAX_SCALE))
        return shown

    def after_epoch(self) -> None:
        super().after_epoch()
        frequency, done = self.options.EVAL_FREQ, self.epoch + 1
        if frequency > 0 and done % frequency == 0 and done < self.max_epoch:
            self.test()

    def after_train(self) -> None:
        path = os.path.join(self.output_dir, "clip.safetensors")
        clip.save_model(self.model.clip, path, dtype=torch.float16)
        logger.info("Trained CLIP written to %s", path)
        super().after_train()
