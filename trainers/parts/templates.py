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

# The 80 sentences of CLIP's ImageNet classifier (CLIP, Section 3.1.4), in their published order.
IMAGENET_TEMPLATES = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)

# The seven of them that do as well as all 80 on ImageNet (CLIP's notes on prompt engineering).
IMAGENET_TEMPLATES_SELECT = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def check_template(template: str) -> str:
    """The template itself.

    Raises:
        ValueError: it does not hold the place `{}` of the class name exactly once.
    """
    if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
        raise ValueError(f"template {template!r} must contain {{}} exactly once, the place of the class name")
    return template


def template_for(dataset_name: str, override: str = "", own: str | None = None) -> str:
    """Template of a data set: `override` (INPUT.TEMPLATE), else the data set's `own`, else the known one.

    An empty text is none.
    """
    if override:
        return check_template(override)
    return check_template(own or TEMPLATES.get(dataset_name, DEFAULT_TEMPLATE))


TEMPLATE_SETS = ("dataset", "imagenet80", "select7", "released", "imagenet7")


def template_set(kind: str, dataset_name: str, template: str) -> tuple[str, ...]:
    """The templates whose features are averaged.

    Args:
        kind: `dataset`: the data set's own; `imagenet80`, `select7`: the lists above, on every data set; `released`:
            the seven and the data set's own, the seven alone on the data set named ImageNet (the released code of CoOp,
            ZeroshotCLIP2); `imagenet7`: the seven on ImageNet, the data set's own elsewhere (Tip-Adapter, LP++, APE).
        dataset_name: DATASET.NAME.
        template: the data set's own.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in TEMPLATE_SETS:
        raise ValueError(f"the set of templates is {kind!r}, expected one of {', '.join(TEMPLATE_SETS)}")
    if kind == "dataset" or (kind == "imagenet7" and dataset_name != "ImageNet"):
        return (template,)
    if kind == "imagenet80":
        return IMAGENET_TEMPLATES
    own = (template,) if kind == "released" and dataset_name != "ImageNet" else ()
    return (*IMAGENET_TEMPLATES_SELECT, *own)


# Phrases that the contexts of PLOT++ start as, before the class name, by data set (its released code).
DEFAULT_PREFIXES = ("a photo of a", "this is a photo", "this is picture of", "one picture of a")
PREFIXES = {
    "DescribableTextures": (
        "a photo of a texture",
        "this is a photo texture",
        "this is a picture texture",
        "one picture of a texture",
    ),
    "EuroSAT": (
        "a centered satellite photo of",
        "a centered satellite picture of",
        "this is centered satellite photo of",
        "one centered satellite photo of a",
    ),
    "FGVCAircraft": (
        "a photo of an aircraft",
        "a picture of an aircraft",
        "this is aircraft picture of",
        "one picture of an aircraft",
    ),
    "Food101": ("a photo of a food", "this is a food photo", "this is food picture of", "one picture of a food"),
    "OxfordFlowers": (
        "a photo of a flower",
        "one picture of a flower",
        "this is flower picture of",
        "one picture of a flower",
    ),
    "OxfordPets": ("a photo of a pet", "one picture of a pet", "this is pet picture of", "one picture of a pet"),
    "UCF101": (
        "a photo of a person doing",
        "this is a photo people doing",
        "this is picture of people doing",
        "one picture of a person doing",
    ),
}


def prefixes_for(dataset_name: str, released: bool = False) -> tuple[str, ...]:
    """The four prefixes of a data set in PLOT++.

    With `released` the third one of ImageNet and its variants is "this is a", as in the released code: one token less
    than the contexts have vectors, so that the last vector takes the place of the name's first token.
    """
    if released and dataset_name.startswith("ImageNet"):
        return tuple("this is a" if k == 2 else prefix for k, prefix in enumerate(DEFAULT_PREFIXES))
    return PREFIXES.get(dataset_name, DEFAULT_PREFIXES)
