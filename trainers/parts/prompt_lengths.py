"""Context lengths and phrases against what the text tower takes, from options and the backbone's name alone."""

from __future__ import annotations

from collections.abc import Mapping

import clip
from trainers.parts.engine import CfgNode
from trainers.parts.modes import mode_phrases, words_after
from trainers.parts.prompts import TextSize, readable, word_tokens
from trainers.parts.templates import check_template

LEAST = 4  # tokens besides the context: start, one of a name, period, end


def prompt_problems(cfg: CfgNode, sections: Mapping[str, CfgNode], cuts_phrases: bool) -> list[str]:
    """Options of the prompts that leave no room for a class name, or contradict one another.

    Args:
        sections: the method's below TRAINER, with N_CTX or N_CTX_TEXT and CTX_INIT.
        cuts_phrases: N_CTX vectors start as the first tokens of CTX_INIT; otherwise all its tokens become vectors.

    Returns:
        A text for each problem; none of a backbone whose texts are not known from its name, whose loading reports them.
    """
    size = clip.input_of(cfg.MODEL.BACKBONE.NAME) if cfg.MODEL.BACKBONE.NAME else None
    if size is None or not size.context_length:
        return []
    found = []
    if cfg.INPUT.TEMPLATE:
        try:
            word_tokens(size, check_template(cfg.INPUT.TEMPLATE).format("a"))
        except ValueError as err:
            found.append(f"INPUT.TEMPLATE: {err}")
    for section in sections:
        try:
            found += _too_long(cfg.TRAINER[section], f"TRAINER.{section}", size, cuts_phrases)
        except ValueError as err:
            found.append(f"TRAINER.{section}: {err}")
    return found


def _too_long(options: CfgNode, node: str, size: TextSize, cuts_phrases: bool) -> list[str]:
    key = next((name for name in ("N_CTX", "N_CTX_TEXT") if name in options), "")
    init = options.get("CTX_INIT", "")
    lengths = {}
    if isinstance(init, (str, list, tuple)) and init:
        modes = options.get("TEXT_PROMPT_NUMBER", options.get("N", 1))
        phrases = [phrase for phrase in (mode_phrases(init, modes) if key else _listed(init)) if phrase]
        if cuts_phrases:
            for phrase in phrases:
                words_after(size, phrase, options[key])
        if not cuts_phrases or options.get("KEEP_REST", True):
            lengths = {"CTX_INIT": max((len(word_tokens(size, readable(phrase))) for phrase in phrases), default=0)}
    if key and not lengths.get("CTX_INIT"):
        lengths = {key: options[key]}
    room = size.context_length - LEAST
    return [
        f"{node}.{name} is {length}{' tokens long' * (name == 'CTX_INIT')}, expected at most {room}: "
        f"a text of the backbone has {size.context_length} tokens, with a class name"
        for name, length in lengths.items()
        if length > room
    ]


def _listed(init: str | list[str] | tuple[str, ...]) -> list[str]:
    return [init] if isinstance(init, str) else list(init)
