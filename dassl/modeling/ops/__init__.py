"""Small operations under the names that Dassl users import."""

from .utils import create_onehot, ema_model_update, linear_rampup, sharpen_prob, shuffle_index, sigmoid_rampup

__all__ = [
    "create_onehot",
    "ema_model_update",
    "linear_rampup",
    "sharpen_prob",
    "shuffle_index",
    "sigmoid_rampup",
]
