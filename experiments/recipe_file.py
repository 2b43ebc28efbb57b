"""Read and check the yaml file of a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import datasets as _datasets  # noqa: F401 - registers the data sets
import dense as _dense  # noqa: F401 - registers the dense tasks
import trainers as _trainers  # noqa: F401 - registers the methods
from dassl.config import ConfigError
from dassl.config.files import config_exists, config_names
from dassl.config.imports import UntrustedCode, import_modules, imports_of
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.command import known_config
from dassl.utils.yaml_files import load_yaml
from experiments.recipe import (
    RECIPES,
    ROOT,
    First,
    Method,
    Published,
    Recipe,
    RecipeError,
    When,
    config_file,
    label,
)
from experiments.settings import SETTINGS, step_parts
from experiments.tune_section import read_tune

_KEYS = ("task", "title", "config", "datasets", "source", "targets", "domain", "sets", "shots", "seeds", "methods")
_OPTIONAL = ("joint", "imports", "published", "options", "variant", "tune")
_METHOD_KEYS = ("name", "trainer", "config", "variant", "options", "when", "first", "shots", "seeds", "published")
_FIRST_KEYS = ("config", "option")
_WHEN_KEYS = ("shots", "datasets", "parts", "options")
_PUBLISHED_KEYS = ("file", "paper", "table")
# Options that every run gets from other entries of its recipe.
_OF_THE_RECIPE = ("SEED", "OUTPUT_DIR", "TRAINER.NAME", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES")
_MOST_RUNS = 100_000
_MOST_SETS = 100  # the runs grow with the square of the number of sets


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Args:
        path: a yaml file, or the name of one in recipes/ without .yaml.

    Raises:
        FileNotFoundError: there is no such file.
        RecipeError: unknown keys, trainers, configs, data sets or options, or values that make no sense; all at once.
    """
    file = _file(path)
    try:
        text = file.read_text(encoding="utf-8")
        content, tree = load_yaml(text, unique=False), yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise RecipeError(f'recipe "{path}" is not valid YAML: {err}') from err
    reader = _Reader(file)
    reader.keys_once(tree, set())
    recipe = reader.read(_inherited(content, file))
    if reader.problems or recipe is None:
        raise RecipeError(f'recipe "{path}": ' + "; ".join(reader.problems))
    return recipe


def _file(path: str | Path) -> Path:
    named = RECIPES / f"{path}.yaml"
    file = named if "/" not in str(path) and named.is_file() else Path(path)
    if not file.is_file():
        known = " ".join(sorted(entry.stem for entry in RECIPES.glob("*.yaml")))
        raise FileNotFoundError(f'there is no recipe "{path}"; recipes has: {known or "nothing"}')
    return file


def _inherited(content: Any, file: Path) -> Any:
    """The recipe that `like` names, with the entries of this one in the place of its own.

    A name in `methods` that is a method of that recipe stands for its entry.

    Raises:
        RecipeError: `like` names no recipe, or one that itself has a `like`.
    """
    if not isinstance(content, Mapping) or "like" not in content:
        return content
    other = file.parent / str(content["like"])
    base = load_yaml(other.read_text(encoding="utf-8"), unique=False) if other.is_file() else None
    if not isinstance(base, Mapping) or "like" in base:
        raise RecipeError(
            f'recipe "{file}": like is {content["like"]!r}, expected a recipe file beside it that has no like itself'
        )
    merged = {**base, **{key: value for key, value in content.items() if key != "like"}}
    if isinstance(merged.get("methods"), list) and isinstance(base.get("methods"), list):
        known = {entry["name"]: entry for entry in base["methods"] if isinstance(entry, Mapping) and "name" in entry}
        merged["methods"] = [
            known.get(entry, entry) if isinstance(entry, str) else entry for entry in merged["methods"]
        ]
    return merged


class _Reader:
    """Turns the content of a yaml file into a recipe and gathers its errors."""

    def __init__(self, file: Path):
        self.file = file
        self.problems: list[str] = []
        self.imports: tuple[str, ...] = ()
        self.untrusted = ""

    def keys_once(self, node: yaml.Node | None, seen: set[int]) -> None:
        """Note keys that a mapping has twice, of which plain yaml takes the last; `seen` are visited nodes."""
        if node is None or id(node) in seen or isinstance(node, yaml.ScalarNode):
            return
        seen.add(id(node))
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        keys = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        self.once(keys, f"line {node.start_mark.line + 1}: one mapping")
        for child in [value for _, value in pairs] or node.value:
            self.keys_once(child, seen)

    def read(self, content: Any) -> Recipe | None:
        if not isinstance(content, Mapping):
            self.problems.append("expected keys and values, such as task: few_shot")
            return None
        task = content.get("task")
        if not isinstance(task, str) or task not in SETTINGS:
            self.problems.append(f"task is {task!r}, expected one of {', '.join(SETTINGS)}")
            return None
        setting = SETTINGS[task]
        special = ("datasets", "source", "targets", "domain", "sets", "joint")
        unused = [key for key in special if key not in (*setting.needs, *setting.takes)]
        self.unknown(content, [key for key in (*_KEYS, *_OPTIONAL) if key not in unused], f"of task {task}")
        for key in setting.needs:
            if not content.get(key):
                self.problems.append(f"{key} is missing, task {task} needs it")
        imports = self.names(content.get("imports", []), "imports")
        try:
            import_modules(imports)
            self.imports = imports
        except UntrustedCode as err:
            self.untrusted = str(err)
        except ImportError as err:
            self.problems.append(str(err))
        domain = self.text(content.get("domain", ""), "domain")
        datasets = self.datasets(content.get("datasets", []), "datasets")
        source = self.datasets([content["source"]] if content.get("source") else [], "source")
        targets = self.names(content.get("targets", []), "targets")
        styles = bool(domain) and task == "domain_generalization"
        if not styles:
            self.datasets(targets, "targets")
        trained = domain if styles else "" if domain or not source else label(source[0])
        if trained and trained in map(label, targets):
            self.problems.append(f"targets has {trained!r}, which is what is trained on")
        methods = self.methods(content)
        if task == "incremental" and any(method.first is not None for method in methods):
            self.problems.append("first is not possible in task incremental, whose steps start from one another")
        sets = self.sets(content.get("sets")) if "sets" in setting.needs else 0
        runs = sum(len(method.shots) * len(method.seeds) for method in methods) * max(1, len(datasets) + len(targets))
        if runs > _MOST_RUNS:
            self.problems.append(
                f"methods, data sets, shots and seeds make {runs:,} runs, expected at most {_MOST_RUNS:,}"
            )
        joint = content.get("joint", False)
        if not isinstance(joint, bool):
            self.problems.append(f"joint is {joint!r}, expected true or false")
        parts = (*(setting.parts or step_parts(sets)), *(["joint"] if joint is True else []))
        self.check_datasets_of(methods, parts)
        return Recipe(
            name=self.file.stem,
            path=self.file,
            task=task,
            title=self.text(content.get("title", ""), "title") or f"{self.file.stem}: {setting.title}",
            methods=methods,
            datasets=datasets,
            source=source[0] if source else "",
            targets=targets,
            domain=domain,
            sets=sets,
            joint=joint is True,
            imports=imports,
            untrusted=self.untrusted,
            published=self.published(content.get("published", [])),
            tune=read_tune(self, content["tune"], task, methods) if "tune" in content else None,
        )

    def unknown(self, content: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
        self.problems += [
            f"unknown key {key!r} {where}, expected one of {', '.join(known)}" for key in content if key not in known
        ]

    def text(self, value: Any, where: str) -> str:
        if isinstance(value, str):
            return value
        self.problems.append(f"{where} is {value!r}, expected text")
        return ""

    def names(self, value: Any, where: str) -> tuple[str, ...]:
        """A list of different non-empty names."""
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
            self.problems.append(f"{where} is {value!r}, expected a list of names")
            return ()
        self.once(value, where)
        return tuple(value)

    def numbers(self, value: Any, where: str, highest: int, meaning: str) -> tuple[int, ...]:
        """A list of different whole numbers, or one."""
        values = value if isinstance(value, list) else [value]
        right = [type(item) is int and 0 <= item <= highest for item in values]
        if not values or not all(right):
            self.problems.append(f"{where} is {value!r}, expected {meaning}")
            return ()
        self.once(values, where)
        return tuple(values)

    def once(self, values: Sequence[Any], where: str) -> None:
        for value in sorted((value for value, number in Counter(values).items() if number > 1), key=str):
            self.problems.append(f"{where} has {value!r} more than once")

    def shots(self, value: Any, where: str) -> tuple[int, ...]:
        return self.numbers(value, where, 10**9, "numbers of images per class, such as [1, 2, 4, 8, 16]")

    def seeds(self, value: Any, where: str) -> tuple[int, ...]:
        return self.numbers(value, where, 2**32 - 1, "numbers from 0, such as [1, 2, 3]")

    def sets(self, value: Any) -> int:
        if type(value) is int and 1 < value <= _MOST_SETS:
            return value
        if value:  # a missing entry has been reported
            self.problems.append(f"sets is {value!r}, expected a number of sets of classes from 2 to {_MOST_SETS}")
        return 0

    def datasets(self, value: Any, where: str) -> tuple[str, ...]:
        names = self.names(value, where)
        self.configs("configs/datasets", names, where)
        self.once([label(name) for name in dict.fromkeys(names)], f"{where}, as files without their folders,")
        return names

    def configs(self, folder: str, names: Sequence[str], where: str) -> None:
        for name in names:
            if not config_exists(config_file(folder, name)):
                known = " ".join(config_names(ROOT / folder))
                self.problems.append(
                    f"{where}: there is no config {name!r} in {folder}, which has {known or 'nothing'}"
                )

    def methods(self, content: Mapping[str, Any]) -> tuple[Method, ...]:
        entries = content.get("methods")
        if not isinstance(content.get("options", {}), Mapping):
            self.problems.append(f"options is {content['options']!r}, expected KEY: VALUE")
            return ()
        if not isinstance(entries, list) or not entries:
            self.problems.append("methods is missing or empty, expected a list")
            return ()
        defaults = {
            "config": content.get("config"),
            "options": content.get("options", {}),
            "variant": self.text(content.get("variant", ""), "variant"),
            "shots": self.shots(content.get("shots", []), "shots") if "shots" in content else (),
            "seeds": self.seeds(content.get("seeds", [1, 2, 3]), "seeds"),
        }
        methods = [method for entry in entries if (method := self.method(entry, defaults)) is not None]
        self.once([method.name for method in methods], "methods")
        return tuple(methods)

    def method(self, entry: Any, defaults: Mapping[str, Any]) -> Method | None:
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
            self.problems.append(f"methods has {entry!r}, expected a name or keys and values with a name")
            return None
        name = entry["name"]
        where = f"of method {name}"
        self.unknown(entry, _METHOD_KEYS, where)
        trainer = self.text(entry.get("trainer", name), f"trainer {where}")
        config = entry.get("config", defaults["config"])
        config = "" if config is None else self.text(config, f"config {where}")
        if trainer not in TRAINER_REGISTRY.registered_names() and not self.untrusted:
            known = ", ".join(sorted(TRAINER_REGISTRY.registered_names()))
            self.problems.append(f"there is no trainer {trainer!r} ({where}), known are {known}")
        elif not config:
            self.problems.append(f"config is missing {where}")
        else:
            self.configs(f"configs/trainers/{trainer}", [config], f"config {where}")
        shots = self.shots(entry["shots"], f"shots {where}") if "shots" in entry else defaults["shots"]
        if not shots and not self.problems:
            self.problems.append(f"shots is missing for method {name}")
        own = config_file(f"configs/trainers/{trainer}", config)
        extra = entry.get("options", {})
        extra = {**defaults["options"], **extra} if isinstance(extra, Mapping) else extra
        options = self.options(extra, f"options {where}", own)
        variant = "_".join(filter(None, (defaults["variant"], self.text(entry.get("variant", ""), f"variant {where}"))))
        if Path(variant).name != variant:
            self.problems.append(f"variant {where} is {variant!r}, expected a part of a folder's name")
        if options and not variant:
            self.problems.append(f"method {name} has options and no variant, which names the folder of its runs")
        return Method(
            name=name,
            trainer=trainer,
            config=config,
            shots=shots,
            seeds=self.seeds(entry["seeds"], f"seeds {where}") if "seeds" in entry else defaults["seeds"],
            published=self.text(entry.get("published", name), f"published {where}"),
            variant=variant,
            options=options,
            when=self.when(entry.get("when", []), f"when {where}", own),
            first=self.first(entry["first"], where, trainer, own) if "first" in entry else None,
        )

    def first(self, value: Any, where: str, trainer: str, config: Path) -> First | None:
        texts = [str(value.get(key) or "") for key in _FIRST_KEYS] if isinstance(value, Mapping) else []
        if not texts or "" in texts:
            self.problems.append(f"first {where} is {value!r}, expected config: NAME and option: KEY")
            return None
        self.unknown(value, _FIRST_KEYS, f"in first {where}")
        found = First(*texts)
        self.configs(f"configs/trainers/{trainer}", [found.config], f"first {where}")
        self.options({found.option: "folder"}, f"first {where}", config)
        return found

    def when(self, value: Any, where: str, config: Path) -> tuple[When, ...]:
        if not isinstance(value, list) or not all(isinstance(case, Mapping) for case in value):
            self.problems.append(
                f"{where} is {value!r}, expected a list such as [{{shots: 1, options: {{KEY: VALUE}}}}]"
            )
            return ()
        cases = []
        for case in value:
            self.unknown(case, _WHEN_KEYS, f"in {where}")
            cases.append(
                When(
                    options=self.options(case.get("options", {}), f"options in {where}", config),
                    shots=self.shots(case["shots"], f"shots in {where}") if "shots" in case else (),
                    datasets=self.names(case.get("datasets", []), f"datasets in {where}"),
                    parts=self.names(case.get("parts", []), f"parts in {where}"),
                )
            )
        return tuple(cases)

    def check_datasets_of(self, methods: Sequence[Method], parts: Sequence[str]) -> None:
        for method in methods:
            for case in method.when:
                self.configs("configs/datasets", case.datasets, f"when of method {method.name}")
                for part in case.parts:
                    if part not in parts:
                        self.problems.append(
                            f"when of method {method.name}: part {part!r}, expected {', '.join(parts)}"
                        )

    def options(self, value: Any, where: str, config: Path) -> tuple[tuple[str, str], ...]:
        """KEY VALUE pairs; keys may also be of the modules that the recipe or the config file imports."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            self.problems.append(f"{where} is {value!r}, expected KEY: VALUE")
            return ()
        self.problems += [f"{where}: {key} is decided by the recipe itself" for key in value if key in _OF_THE_RECIPE]
        pairs = tuple((key, str(item)) for key, item in value.items())
        try:
            cfg = known_config([*imports_of(config), *self.imports])
            cfg.merge_from_list([item for pair in pairs for item in pair])
        except UntrustedCode as err:
            self.untrusted = str(err)
        except (ConfigError, KeyError, ImportError) as err:
            if not self.untrusted:
                self.problems.append(f"{where}: {err}")
        return pairs

    def published(self, value: Any) -> tuple[Published, ...]:
        entries = [value] if isinstance(value, Mapping) else value
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            self.problems.append(f"published is {value!r}, expected file, paper and table, or a list of such entries")
            return ()
        found = []
        for entry in entries:
            self.unknown(entry, _PUBLISHED_KEYS, "of published")
            texts = {key: self.text(entry.get(key, ""), f"{key} of published") for key in _PUBLISHED_KEYS}
            file = ROOT / "experiments" / "reports" / "published" / texts["file"]
            if file.suffix != ".csv" or not file.is_file():
                self.problems.append(f"published: there is no table {texts['file']!r} in experiments/reports/published")
            found.append(Published(**texts))
        return tuple(found)
