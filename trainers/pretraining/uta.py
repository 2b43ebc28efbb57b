"""Unmasked Token Alignment: an image tower learns the features of a CLIP's image tower from images alone.

The frozen teacher sees whole images, the student only the patches that a mask leaves; every token the student has,
class token included, is pulled towards the teacher's token of the same place in the common embedding space of image and
text (Liu et al., TMLR 2024). There are no mask tokens, so training matches inference, and the teacher's text tower
serves the student unchanged.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from yacs.config import CfgNode

import clip
from clip.eva import SIZES, EvaVisionTransformer
from clip.model import HEAD_WIDTH, VisionTransformer
from clip.resnet import ModifiedResNet
from trainers.parts.engine import TRAINER_REGISTRY, Option, count_num_param, method_options
from trainers.parts.masking import MASKS, keep_patches
from trainers.parts.options import count, precision
from trainers.parts.parameter_groups import decay_groups
from trainers.parts.token_alignment import Student, TargetCache, Targets, Tower, alignment_losses
from trainers.pretraining.base import LEARNING, PretrainingTrainer

logger = logging.getLogger(__name__)

DETERMINISTIC = frozenset({"normalize", "center_crop", "instance_norm"})
"""Names of INPUT.TRANSFORMS that leave an image the same in every epoch."""
OBJECTIVES = ("unmasked", "mask_tokens", "none")
ALIGN = ("both", "class", "tokens")


@TRAINER_REGISTRY.register()
class UTA(PretrainingTrainer):
    """Pre-trains an image tower on images alone; labels and captions of the data are ignored.

    MODEL.BACKBONE.NAME is the teacher. The student has its text tower and embedding space, so that both make a CLIP.
    """

    node = "UTA"

    @staticmethod
    def defaults() -> CfgNode:
        return method_options(
            "UTA",
            {
                "STUDENT": Option(
                    "eva",
                    "eva or clip (OpenAI's) with the numbers below, a released one (eva-B/16 ...), or the path of a "
                    "CLIP whose image tower is trained on",
                ),
                "LAYERS": count(12, "blocks of the student"),
                "WIDTH": count(768, "width of the student"),
                "HEADS": count(0, "0 = one per 64 of WIDTH", low=0),
                "MLP_WIDTH": count(0, "hidden width of the MLPs; 0 = 8/3 WIDTH for eva, 4 WIDTH for clip", low=0),
                "PATCH_SIZE": count(0, "pixels; 0 = the teacher's", low=0),
                "DROP_PATH": Option(0.0, "stochastic depth in the last block, growing linearly from 0", low=0, below=1),
                "CHECKPOINT": Option(False, "compute blocks again in the backward pass, to save memory"),
                "OBJECTIVE": Option(
                    "unmasked",
                    "mask_tokens: the student sees a learned token at masked places, which are aligned; none: the "
                    "student is written as it starts, for other trainers",
                    choices=OBJECTIVES,
                ),
                "ALIGN": Option("both", "class token and patches, or one of them", choices=ALIGN),
                "CLASS_WEIGHT": Option(1.0, "of the class token; ALIGN leaves terms out", above=0),
                "TOKEN_WEIGHT": Option(1.0, "of one patch; ALIGN leaves terms out", above=0),
                "MASK": Option(
                    "reversed", "patches that are left out, see trainers/parts/masking.py", choices=tuple(MASKS)
                ),
                "MASK_RATIO": Option(
                    0.4, "share of the patches that the student does not see; the paper: 0.5 for large", low=0, below=1
                ),
                "FULL_EPOCHS": count(0, "last epochs on all patches (unmasked only)", low=0),
                "CACHE_TEACHER": Option(
                    False, "teacher features of every image in memory, N (1 + P) E numbers; unaugmented images only"
                ),
                "EVAL_FREQ": count(0, "epochs between zero-shot evaluations; 0 = only at the end", low=0),
                "EVAL_SPLIT": Option("test", "split of these", choices=("test", "val")),
                "SAVE": Option("fp16", "type of the matrices in clip.safetensors", choices=("fp16", "fp32")),
                "PREC": precision("fp32", LEARNING, "; what learns is fp32 in all of them"),
            },
        )

    @classmethod
    def config_problems(cls, cfg) -> list[str]:
        found, options = super().config_problems(cfg), cfg.TRAINER.UTA
        if options.OBJECTIVE == "mask_tokens" and (options.MASK_RATIO == 0 or options.FULL_EPOCHS):
            found.append("TRAINER.UTA.OBJECTIVE mask_tokens needs a MASK_RATIO above 0 and FULL_EPOCHS 0")
        if options.CACHE_TEACHER:
            augmented = sorted(set(cfg.INPUT.TRANSFORMS) - DETERMINISTIC)
            if augmented or cfg.INPUT.NO_TRANSFORM or cfg.DATALOADER.K_TRANSFORMS > 1:
                found.append(
                    "TRAINER.UTA.CACHE_TEACHER keeps one set of features per image, but images change from epoch to "
                    f"epoch (INPUT.TRANSFORMS {', '.join(augmented) or 'of their own'}): set it False"
                )
        if cfg.DATALOADER.K_TRANSFORMS > 1:
            found.append(f"DATALOADER.K_TRANSFORMS is {cfg.DATALOADER.K_TRANSFORMS}, but UTA takes one view: 1")
        return found

    def build_student(self, teacher: Tower | ModifiedResNet) -> Tower:
        """The image tower that learns, with the teacher's image size and embedding.

        Raises:
            ValueError: its numbers do not fit together or to the teacher.
        """
        options, side, out = self.options, teacher.input_resolution, teacher.output_dim
        name = options.STUDENT
        if name in SIZES:
            return EvaVisionTransformer(*SIZES[name]._replace(image_size=side, output_dim=out))
        if name in ("eva", "clip"):
            width = options.WIDTH
            heads = options.HEADS or max(1, width // HEAD_WIDTH)
            patch = options.PATCH_SIZE or getattr(teacher, "patch_size", 0)
            if patch < 1 or side % patch:
                raise ValueError(
                    f"TRAINER.UTA.PATCH_SIZE is {options.PATCH_SIZE}, expected a size that tiles {side} pixels"
                )
            if name == "eva":
                hidden = options.MLP_WIDTH or width * 8 // 3
                return EvaVisionTransformer(side, patch, width, options.LAYERS, heads, hidden, out)
            return VisionTransformer(
                side, patch, width, options.LAYERS, heads, out, True, options.MLP_WIDTH or 4 * width
            )
        visual = clip.load(name)[0].visual
        if isinstance(visual, ModifiedResNet):
            raise ValueError(f"TRAINER.UTA.STUDENT {name} has a ResNet, which cannot leave patches out")
        if (visual.input_resolution, visual.output_dim) != (side, out):
            raise ValueError(
                f"TRAINER.UTA.STUDENT {name} takes {visual.input_resolution} pixels and gives {visual.output_dim} "
                f"features, the teacher {side} and {out}"
            )
        return visual

    def build_model(self) -> None:
        options = self.options
        model = self.load_clip().requires_grad_(False)
        teacher = model.visual
        model.visual = visual = self.build_student(teacher)  # beside the teacher's text tower
        visual.set_training_options(options.DROP_PATH, options.CHECKPOINT)
        self.grid = grid_of(visual)
        if options.ALIGN != "class" and (isinstance(teacher, ModifiedResNet) or grid_of(teacher) != self.grid):
            raise ValueError(
                "patches are aligned one by one, so teacher and student need the same grid of patches (the student has "
                f"{self.grid[0]} x {self.grid[1]}): change TRAINER.UTA.PATCH_SIZE, or set TRAINER.UTA.ALIGN class"
            )
        if options.OBJECTIVE == "mask_tokens" and self.kept == self.grid[0] * self.grid[1]:
            raise ValueError(
                f"TRAINER.UTA.MASK_RATIO is {options.MASK_RATIO}, which masks none of {self.kept} patches, but "
                "OBJECTIVE mask_tokens aligns those that are masked: set a larger one"
            )
        self.check_eval_freq()
        self.eval_split, self.saved_dtype = options.EVAL_SPLIT, torch.float16 if options.SAVE == "fp16" else None
        clip.convert_weights(teacher, self.precision.dtype)
        self.teacher = teacher.to(self.device)
        self.model = self.with_classes(model)
        self.student = Student(visual, options.OBJECTIVE).to(self.device).requires_grad_(True)
        self.towers = self.parallel(self.student)
        self.targets = self.cached_targets() if options.CACHE_TEACHER else lambda image, _: self.teacher_features(image)
        if options.OBJECTIVE == "none":
            return
        groups = decay_groups(self.student, self.cfg.OPTIM.WEIGHT_DECAY, without=(visual.positions,))
        self.register_learned("student", self.student, groups)
        logger.info(
            "UTA: a student of %s parameters learns from the image tower of %s; %d of %d patches are masked (%s)",
            f"{count_num_param(self.student):,}",
            self.cfg.MODEL.BACKBONE.NAME,
            self.grid[0] * self.grid[1] - self.kept,
            self.grid[0] * self.grid[1],
            options.MASK,
        )

    def cached_targets(self) -> TargetCache:
        """Raises ValueError for a data set that makes its own training images."""
        if hasattr(self.dm.dataset, "train_loader"):
            raise ValueError(
                f"TRAINER.UTA.CACHE_TEACHER keeps one set of features per image, but {self.cfg.DATASET.NAME} makes new "
                "images in every epoch: set it False"
            )
        return TargetCache(len(self.dm.dataset.train_x), self.teacher_features)

    @property
    def class_bound(self) -> bool:
        return False

    @property
    def kept(self) -> int:
        """Patches that the student sees."""
        patches = self.grid[0] * self.grid[1]
        return min(patches, max(1, round((1 - self.options.MASK_RATIO) * patches)))

    @torch.no_grad()
    def teacher_features(self, image: Tensor) -> Targets:
        """Teacher features of whole images (B, 3, H, W)."""
        encoded = self.teacher(image)
        return Targets(encoded.pooled, encoded.tokens[:, 1:])

    def masks(self, rows: int) -> Tensor:
        """Numbers of the patches that are seen, (rows, K), drawn from torch's global generator."""
        patches = self.grid[0] * self.grid[1]
        if self.on_all_patches or self.kept == patches:
            return torch.arange(patches).expand(rows, -1)
        return keep_patches(self.options.MASK, rows, self.grid, self.kept)

    def losses(self, batch) -> dict[str, Tensor]:
        image = batch["img"].to(self.device, non_blocking=True)
        targets = self.targets(image, batch.get("index"))
        aligned = self.towers(image, self.masks(len(image)).to(self.device, non_blocking=True))
        weights = {"class": (1.0, 0.0), "tokens": (0.0, 1.0), "both": (1.0, 1.0)}[self.options.ALIGN]
        return alignment_losses(
            aligned, targets, weights[0] * self.options.CLASS_WEIGHT, weights[1] * self.options.TOKEN_WEIGHT
        )


def grid_of(visual: Tower) -> tuple[int, int]:
    """Patches per column and per row of a vision transformer."""
    return (visual.input_resolution // visual.patch_size,) * 2
