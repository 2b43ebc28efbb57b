"""From the name in the config to a data set."""

import logging
from typing import Any

from dassl.utils import Registry, check_availability

from .base_dataset import DatasetBase

__all__ = ["DATASET_REGISTRY", "build_dataset"]

logger = logging.getLogger(__name__)

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: Any) -> DatasetBase:
    """The data set registered as cfg.DATASET.NAME, built from `cfg`; ValueError if there is none of that name."""
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    if cfg.VERBOSE:
        logger.info("Loading dataset: %s", cfg.DATASET.NAME)
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
