"""Sentence templates of the data sets."""

import pytest

from trainers.parts.templates import (
    DEFAULT_TEMPLATE,
    IMAGENET_TEMPLATES,
    IMAGENET_TEMPLATES_SELECT,
    TEMPLATES,
    template_for,
)


def test_the_override_comes_first_then_the_data_sets_own_then_the_known_one():
    assert template_for("EuroSAT") == "a centered satellite photo of {}."
    assert template_for("EuroSAT", own="a map of {}.") == "a map of {}."
    assert template_for("EuroSAT", "land: {}", "a map of {}.") == "land: {}"
    assert template_for("Mine") == DEFAULT_TEMPLATE


@pytest.mark.parametrize("own", ["", None])
def test_a_data_set_without_a_template(own):
    """A reader written for Dassl has none; our base class says so by an empty string."""
    assert template_for("Mine", own=own) == DEFAULT_TEMPLATE
    assert template_for("Food101", own=own) == TEMPLATES["Food101"]


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}", "{name}", "{"])
def test_templates_without_one_place_for_the_name(template):
    with pytest.raises(ValueError, match="must contain"):
        template_for("Mine", template)


def test_imagenet_sentences_are_those_of_open_clip():
    open_clip = pytest.importorskip("open_clip")
    assert tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES) == IMAGENET_TEMPLATES
    assert tuple(template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES) == IMAGENET_TEMPLATES_SELECT
