"""Hand-made sentences per data set, the prompts of zero-shot CLIP (CoOp paper, appendix; CLIP paper, Section 3.1.4)."""

from __future__ import annotations

DEFAULT_TEMPLATE = "a photo of a {}."

TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}


def check_template(template: str) -> str:
    """The template itself.

    Raises:
        ValueError: it does not hold the place `{}` of the class name exactly once.
    """
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise ValueError(f"template {template!r} must contain {{}} exactly once, the place of the class name")
    return template


def template_for(dataset_name: str, override: str = "", own: str | None = None) -> str:
    """Template of a data set: `override` (INPUT.TEMPLATE), else the data set's `own`, else the known one."""
    if override:
        return check_template(override)
    return check_template(own if own is not None else TEMPLATES.get(dataset_name, DEFAULT_TEMPLATE))
