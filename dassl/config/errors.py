"""The error of bad configs."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 200  # letters of a value in a message


def shown(value: object) -> str:
    """A value as it is written in Python, its middle left out if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 20]} ... {text[-10:]}"


class ConfigError(ValueError, KeyError):
    """One or more errors in a config. A KeyError too, because yacs reports an unknown key as one."""

    def __init__(self, source: str, problems: Sequence[str]):
        self.problems = list(problems)
        count = "1 error" if len(self.problems) == 1 else f"{len(self.problems)} errors"
        super().__init__("\n".join([f"{count} in {source}:", *(f"  {err}" for err in self.problems)]))

    def __str__(self) -> str:
        return str(self.args[0])
