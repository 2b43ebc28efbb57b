"""The sentences of CLIP's ImageNet classifier under the module name and as the lists of the CoOp repository."""

from trainers.parts import templates

IMAGENET_TEMPLATES = list(templates.IMAGENET_TEMPLATES)
IMAGENET_TEMPLATES_SELECT = list(templates.IMAGENET_TEMPLATES_SELECT)
