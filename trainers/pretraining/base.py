"""Base class of trainers that update CLIP's own weights."""

from __future__ import annotations

import logging
import os

import torch

import clip
from clip import CLIP
from clip.towers.model import TowerCLIP
from trainers.base import CLIPTrainer, PromptedCLIP, cosine_score
from trainers.parts.engine import distributed
from trainers.parts.prompts import FixedText, Learner, TemplateText

logger = logging.getLogger(__name__)

LEARNING = ("fp32", "amp", "bf16", "auto")  # precisions of weights that learn, which stay fp32


class PretrainingTrainer(CLIPTrainer):
    """Base of the methods that train weights of CLIP itself, as PromptTrainer is of those that do not.

    Zero-shot accuracy on the classes of the data set, if it has any, is measured during training and at the end. The
    trained model is written to OUTPUT_DIR/clip.safetensors, which `clip.load` reads and every method takes as its
    backbone. Options of all of them: EVAL_FREQ, epochs between evaluations (0 = only at the end), and FULL_EPOCHS, last
    epochs on all patches of the images.
    """

    eval_split: str | None = None  # of the evaluations during training; None = TEST.SPLIT
    saved_dtype: torch.dtype | None = torch.float16  # of the matrices in the file; None = as they were trained

    def load_clip(self) -> CLIP:
        """As of the base.

        Raises:
            ValueError: towers of another library, which cannot be written to a file of this project.
        """
        model = super().load_clip()
        if isinstance(model, TowerCLIP):
            raise ValueError(f"{type(self).__name__} trains CLIP's own towers; this backbone is {model.family}")
        return model

    def check_eval_freq(self) -> None:
        """ValueError if EVAL_FREQ asks for evaluations of data without test images."""
        freq, data = self.options.EVAL_FREQ, self.cfg.DATASET.NAME
        if freq > 0 and self.test_loader is None:
            raise ValueError(f"TRAINER.{self.node}.EVAL_FREQ is {freq}, but {data} has no test images: set it 0")

    def with_classes(self, model: CLIP) -> PromptedCLIP:
        """The CLIP with a sentence for every class of the data set; data without classes has none."""
        dataset = self.dm.dataset
        if dataset.classnames:
            classes: Learner = TemplateText(model, dataset.classnames, self.template, dataset.long_names)
        else:
            classes = FixedText(model.text_projection.new_zeros(0, model.text_projection.shape[1]))
        return PromptedCLIP(model, classes, cosine_score).to(self.device)

    @property
    def on_all_patches(self) -> bool:
        """True if this epoch is one of the FULL_EPOCHS."""
        return self.epoch >= self.max_epoch - self.options.FULL_EPOCHS

    def after_epoch(self) -> None:
        super().after_epoch()
        frequency, done = self.options.EVAL_FREQ, self.epoch + 1
        if frequency > 0 and done % frequency == 0 and done < self.max_epoch:
            self.test(self.eval_split)

    def after_train(self) -> None:
        path = os.path.join(self.output_dir, "clip.safetensors")
        if distributed.is_main_process():
            pixels = {"mean": list(self.cfg.INPUT.PIXEL_MEAN), "std": list(self.cfg.INPUT.PIXEL_STD)}
            known = pixels if "normalize" in self.cfg.INPUT.TRANSFORMS else None
            clip.save_model(self.model.clip, path, known, self.saved_dtype)
            logger.info("Trained CLIP written to %s", path)
        super().after_train()
