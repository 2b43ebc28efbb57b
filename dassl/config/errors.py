"""The error of bad configs."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError, KeyError):
    """One or more errors in a config. A KeyError too, because yacs reports an unknown key as one."""

    def __init__(self, source: str, problems: Sequence[str]):
        self.problems = list(problems)
        count = "1 error" if len(self.problems) == 1 else f"{len(self.problems)} errors"
        super().__init__("\n".join([f"{count} in {source}:", *(f"  {err}" for err in self.problems)]))

    def __str__(self) -> str:
        return str(self.args[0])
