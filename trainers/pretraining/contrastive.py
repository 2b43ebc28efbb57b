"""Contrastive image-text training of a CLIP: from scratch (CLIP, Section 2.3), or of one that was pre-trained.

Two additions make a start from scratch affordable: patches are dropped for most of the training, as FLIP (Li et al.,
CVPR 2023) does, and both projections start from whitened features of the random towers, otherwise the loss plateaus at
the logarithm of the batch size for a long time.

CLIP's loss says nothing about the projected patches, which methods such as PLOT and ALIGN compare with text. With
TOKEN_WEIGHT their mean takes part in the same loss beside the class token.

Fine-tuning after Unmasked Token Alignment (and EVA-CLIP, Sun et al., 2023) needs other additions: a fixed temperature,
learning rates that fall from layer to layer, and batches of tens of thousands of pairs, which are spread over processes
and computed in chunks, with the loss and gradients of the whole batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from yacs.config import CfgNode

import clip
from clip import CLIP
from clip.resnet import ModifiedResNet
from trainers.parts.engine import TRAINER_REGISTRY, Option, distributed, method_options
from trainers.parts.feature_cache import state_hash
from trainers.parts.losses import global_contrastive_loss, mean_patch, normalise
from trainers.parts.masking import gather_tokens, keep_patches
from trainers.parts.options import count, precision, share, weight
from trainers.parts.parameter_groups import layer_decay_groups
from trainers.pretraining.base import LEARNING, PretrainingTrainer
from trainers.pretraining.whitening import whiten_projections


class TwoTowers(nn.Module):
    """Both normalised features of a batch of pairs, with part of the patches of each image.

    Args:
        model: the CLIP.
        chunk: pairs whose activations are in memory at a time, 0 for all. With more than one chunk every chunk is
            computed again in the backward pass; loss and gradients are those of the whole batch.
        patches: also give the mean patch of each image (`mean_patch`).
    """

    def __init__(self, model: CLIP, chunk: int = 0, patches: bool = False):
        super().__init__()
        self.clip, self.chunk, self.patches = model, chunk, patches

    def forward(self, image: Tensor, ids: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Encode pairs.

        Args:
            image: (B, 3, H, W).
            ids: (B, L), the captions.
            share: part of the patches that is kept.

        Returns:
            Features of images and captions, (B, E) normalised, the scalar scale, and the mean patches (B, E), or None.
        """
        if self.chunk and self.chunk < len(image):
            parts = [
                checkpoint(self.features, *pair, share, use_reentrant=False)
                for pair in zip(image.split(self.chunk), ids.split(self.chunk))
            ]
            images, captions, means = zip(*parts)
            image_feature, text_feature = torch.cat(images), torch.cat(captions)
            patches = None if means[0] is None else torch.cat(means)
        else:
            image_feature, text_feature, patches = self.features(image, ids, share)
        return image_feature, text_feature, self.clip.logit_scale.exp(), patches

    def features(self, image: Tensor, ids: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normalised features (B, E) of images and captions, and mean patches (B, E), or None."""
        visual = self.clip.visual
        if share < 1:
            tokens = visual.embed(image)
            patches = tokens.shape[1] - 1
            keep = keep_patches("random", len(tokens), (1, patches), max(1, round(share * patches)))
            keep = keep.to(image.device, non_blocking=True)
            encoded = visual.encode(gather_tokens(tokens, keep), keep=keep)
        else:
            encoded = visual(image)
        mean = mean_patch(encoded.tokens) if self.patches else None
        return normalise(encoded.pooled), normalise(self.clip.encode_text(ids).pooled), mean


@TRAINER_REGISTRY.register()
class ContrastiveCLIP(PretrainingTrainer):
    """Trains all of CLIP on batches of images and captions.

    The data set brings its own loader (see `datasets.image_text`) with batches {img, text} and maybe
    `positive`, which says which caption is true of which image; without it caption b is true of image b alone.
    MODEL.BACKBONE.NAME is the CLIP to go on from; without it the weights are random. With several processes every image
    is compared with the captions of all (GATHER).
    """

    node = "CONTRASTIVE"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "CONTRASTIVE",
            {
                "TEMPERATURE": Option(
                    None, "fixed, such as 0.01; None = learned, from that of the backbone on", above=0, kind=float
                ),
                "IMAGE_LAYER_DECAY": share(1.0, "factor on the learning rate from layer to layer of the image tower"),
                "TEXT_LAYER_DECAY": share(1.0, "the same for the text tower"),
                "GATHER": Option(True, "contrast over all processes, not within each"),
                "DROP_PATH": Option(0.0, "stochastic depth in the last image block, linear from 0", low=0, below=1),
                "TOKEN_WEIGHT": weight(0.0, "of the loss between mean projected patches and captions; 0 = without"),
                "CHUNK": count(0, "pairs of a process whose activations are in memory at a time; 0 = all", low=0),
                "EMBED_DIM": count(192, "random weights: width of the features"),
                "VISION_LAYERS": count(6, "random weights: blocks of the image tower"),
                "VISION_WIDTH": count(192, "random weights: width of the image tower"),
                "VISION_PATCH_SIZE": count(8, "random weights: side of a patch in pixels"),
                "CONTEXT_LENGTH": count(77, "random weights: text positions", low=3),
                "VOCAB_SIZE": count(8192, "random weights: tokens", low=514),
                "TEXT_WIDTH": count(192, "random weights: width of the text tower"),
                "TEXT_HEADS": count(3, "random weights: heads of the text tower"),
                "TEXT_LAYERS": count(4, "random weights: blocks of the text tower"),
                "KEEP_PATCHES": share(0.5, "share of the patches that the image tower sees"),
                "FULL_EPOCHS": count(2, "last epochs on all patches", low=0),
                "WHITEN": Option(True, "start both projections from whitened features"),
                "MAX_SCALE": Option(100.0, "upper bound of the learned scale", low=1),
                "EVAL_FREQ": count(0, "epochs between zero-shot evaluations; 0 = only at the end", low=0),
                "PREC": precision("fp32", LEARNING),
            },
        )

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
        options, optim = self.options, self.cfg.OPTIM
        # MODEL.BACKBONE.NAME continues from a checkpoint; without it the weights are random.
        backbone = (self.load_clip() if self.cfg.MODEL.BACKBONE.NAME else self.build_clip()).to(self.device)
        self.context_length, self.vocab_size = backbone.context_length, backbone.vocab_size
        if options.CHUNK and any(isinstance(part, nn.BatchNorm2d) for part in backbone.visual.modules()):
            raise ValueError(
                f"TRAINER.CONTRASTIVE.CHUNK is {options.CHUNK}, but the image tower has batch norms, which need the "
                "whole batch at once: set it 0"
            )
        self.check_eval_freq()
        if options.WHITEN and not self.cfg.MODEL.BACKBONE.NAME and self.dm.dataset.train_x:
            self.whiten(backbone)
        self.backbone_hash = state_hash(backbone)
        if options.TEMPERATURE is not None:
            with torch.no_grad():
                backbone.logit_scale.fill_(-math.log(options.TEMPERATURE))
            backbone.logit_scale.requires_grad_(False)
        if options.DROP_PATH > 0:
            if isinstance(backbone.visual, ModifiedResNet):
                raise ValueError(
                    "TRAINER.CONTRASTIVE.DROP_PATH drops blocks of a transformer, the image tower is a ResNet"
                )
            backbone.visual.set_training_options(options.DROP_PATH)
        self.model = self.with_classes(backbone)
        self.towers = self.parallel(TwoTowers(backbone, options.CHUNK, options.TOKEN_WEIGHT > 0))
        groups = layer_decay_groups(
            backbone, optim.LR, optim.WEIGHT_DECAY, options.IMAGE_LAYER_DECAY, options.TEXT_LAYER_DECAY
        )
        self.register_learned("clip", backbone, groups)

    def whiten(self, model: CLIP, images: int = 1024) -> None:
        """Whitens the projections of a random model on the first batches of the training data."""
        parts: list[tuple[Tensor, Tensor]] = []
        for batch in self.train_loader_x:
            image, ids, _ = self.parse_batch_train(batch)
            parts.append((image, ids))
            if sum(len(part[0]) for part in parts) >= images:
                break
        whiten_projections(model, *(torch.cat(tensors) for tensors in zip(*parts)))

    def parse_batch_train(self, batch) -> tuple[Tensor, Tensor, Tensor | None]:
        if "text" not in batch:
            raise ValueError(
                f"the images of DATASET.NAME {self.cfg.DATASET.NAME!r} have no captions to learn from: use image_text, "
                "see docs/pretraining.md"
            )
        ids = clip.tokenize(
            batch["text"], context_length=self.context_length, truncate=True, vocab_size=self.vocab_size
        )
        positive = batch.get("positive")
        positive = None if positive is None else positive.to(self.device, non_blocking=True)
        return batch["img"].to(self.device, non_blocking=True), ids, positive  # the text tower reads ids on the host

    def losses(self, batch) -> dict[str, Tensor]:
        image, ids, positive = self.parse_batch_train(batch)
        share = 1.0 if self.on_all_patches else self.options.KEEP_PATCHES
        image_feature, text_feature, scale, patches = self.towers(image, ids, share)
        terms = {"contrastive": self.contrast(image_feature, text_feature, scale, positive)}
        if patches is not None:
            terms["tokens"] = self.options.TOKEN_WEIGHT * self.contrast(patches, text_feature, scale, positive)
        return terms

    def contrast(self, image: Tensor, text: Tensor, scale: Tensor, positive: Tensor | None) -> Tensor:
        """Contrastive loss of normalised features (B, E) over all processes: its value is that of the whole batch.

        Its gradient is that of this process's part, which the parallel model averages.
        """
        keys, start = (image, text), 0
        if self.options.GATHER:
            keys, start = (distributed.gather(image), distributed.gather(text)), distributed.get_rank()
        loss = global_contrastive_loss(image, text, *keys, scale, positive, start)
        return loss + (distributed.mean(loss.detach()) - loss.detach())

    def forward_backward(self, batch) -> dict[str, float]:
        shown = super().forward_backward(batch)
        if self.options.TEMPERATURE is None:
            with torch.no_grad():
                self.model.clip.logit_scale.clamp_(0, math.log(self.options.MAX_SCALE))
        return shown
