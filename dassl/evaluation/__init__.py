"""Evaluators by name."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .evaluator import Classification, EvaluatorBase
from .retrieval import Retrieval

__all__ = ["EVALUATOR_REGISTRY", "Classification", "EvaluatorBase", "Retrieval", "build_evaluator"]
