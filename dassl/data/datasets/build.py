"""From the name in the config to a data set."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl.config.files import GENERATED, Generator
from dassl.utils import Registry, check_availability

if TYPE_CHECKING:
    from .base_dataset import DatasetBase

__all__ = ["DATASET_REGISTRY", "build_dataset"]

logger = logging.getLogger(__name__)

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: Any) -> "DatasetBase":
    """The data set registered as cfg.DATASET.NAME, built from `cfg`; ValueError if there is none of that name."""
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names(), "DATASET.NAME")
    if cfg.VERBOSE:
        logger.info("Loading dataset: %s", cfg.DATASET.NAME)
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)


def config_name(name: str) -> str:
    """Name of a registered data set's config: its class attribute `config_name`, else its name as in emoji_groups."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return getattr(DATASET_REGISTRY.get(name), "config_name", words)


def generated_names(folder: Path) -> list[str]:
    """Configs of all registered data sets, in any folder configs/datasets."""
    if folder.parts[-2:] != ("configs", "datasets"):
        return []
    return [config_name(name) for name in DATASET_REGISTRY.registered_names()]


def generated_config(folder: Path, wanted: str) -> dict[str, Any] | None:
    """Config of a data set by its config's name or by its registered name; None in another folder or for another name.

    A data set that another evaluator measures than Classification names it in its class attribute `evaluator`.
    """
    if folder.parts[-2:] != ("configs", "datasets"):
        return None
    names = DATASET_REGISTRY.registered_names()
    for name in sorted(names, key=lambda name: name != DATASET_REGISTRY.get(name).__name__):  # other names of one last
        if wanted in (name, config_name(name)):
            evaluator = getattr(DATASET_REGISTRY.get(name), "evaluator", None)
            return {"DATASET": {"NAME": name}} | ({"TEST": {"EVALUATOR": evaluator}} if evaluator else {})
    return None


GENERATED.append(Generator(generated_names, generated_config))
