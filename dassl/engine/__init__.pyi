from .build import TRAINER_REGISTRY, add_trainer_defaults, build_trainer
from .precision import Precision
from .trainer import SimpleNet, SimpleTrainer, TrainerBase, TrainerX, TrainerXU

__all__ = [
    "TRAINER_REGISTRY",
    "Precision",
    "SimpleNet",
    "SimpleTrainer",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "add_trainer_defaults",
    "build_trainer",
]
