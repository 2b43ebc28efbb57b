"""Imports go one way: who may import whom, read from the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = {
    "align_prompt",
    "clip",
    "dassl",
    "transport",
    "datasets",
    "trainers",
    "dense",
    "experiments",
    "tools",
    "benchmarks",
    "train",
    "sweep",
    "report",
}
THIRD_PARTY = {
    "clip": {"torch", "torchvision", "ftfy", "regex", "safetensors", "numpy", "PIL", "tqdm", "packaging"},
    "dassl": {"torch", "torchvision", "yacs", "numpy", "PIL", "tqdm", "filelock", "yaml", "gdown", "lazy_loader"}
    | {"sklearn", "scipy"},  # of the figures beyond accuracy, when they are asked for
    "transport": {"torch"},
    "datasets": {
        "torch",
        "torchvision",
        "numpy",
        "PIL",
        "sklearn",
        "scipy",
        "yaml",
        "tqdm",
        "filelock",
        "pyarrow",
        "gdown",
        "huggingface_hub",
    },
    "trainers": {"torch", "yacs", "numpy", "sklearn", "safetensors", "filelock"},
    "dense": {"torch", "torchvision", "numpy", "PIL", "yacs", "filelock", "tqdm"},
}
EXTRAS = {  # of a folder, which it imports inside functions only
    "clip/towers": {"open_clip", "timm", "transformers"},
    "dense": {"timm"},
    "dense/segmentation": {"transformers", "torchmetrics"},
    "dense/detection": {"faster_coco_eval"},
    "dense/llava": {"transformers", "tokenizers", "peft", "torchmetrics"},
}
# Who may import whom among the rooms of the project; tools, benchmarks, tests and the scripts may import anything.
ALLOWED = {
    "clip": set(),
    "dassl": set(),
    "transport": set(),
    "datasets": {"dassl"},
    "trainers": {"clip", "dassl", "transport"},
    "dense": {"clip", "dassl", "datasets", "trainers"},
    "experiments": {"dassl", "trainers", "datasets", "dense"},
    "align_prompt": {
        "train",
        "sweep",
        "report",
        "clip",
        "dassl",
        "transport",
        "datasets",
        "trainers",
        "dense",
        "experiments",
    },
}
# What a module of trainers/ that is not a method may import from trainers/; a method may import any of these.
SHARED = {
    "trainers.imagenet_templates": {"trainers.parts.templates"},
    "trainers.parts.options": {"trainers.parts.prompts", "trainers.parts.templates"},
    "trainers.parts.cache_model": {"trainers.parts.losses", "trainers.parts.prompts"},
    "trainers.parts.two_stages": {"trainers.parts.prompts"},
    "trainers.parts.label_tokens": {"trainers.parts.losses", "trainers.parts.prompts"},
    "trainers.parts.modes": {"trainers.parts.prompts"},
    "trainers.parts.prompt_lengths": {f"trainers.parts.{name}" for name in ("modes", "prompts", "templates")},
    "trainers.parts.set_transport": {"trainers.parts.modes"},
    "trainers.parts.token_alignment": {"trainers.parts.losses", "trainers.parts.masking"},
    "trainers.parts.wrapper": {"trainers.base", "trainers.parts.prompted_clip", "trainers.parts.prompts"},
    "trainers.parts.descriptions": {"trainers.parts.losses", "trainers.parts.prompts"},
    "trainers.parts.teacher": {"trainers.parts.losses", "trainers.parts.prompted_clip"},
    "trainers.parts.prompted_clip": {f"trainers.parts.{name}" for name in ("prompts", "losses", "memory")},
    "trainers.pretraining.whitening": set(),
    "trainers.pretraining.base": {"trainers.base", "trainers.parts.prompts"},
    "trainers.base": {
        f"trainers.parts.{name}"
        for name in (
            *("prompts", "prompted_clip", "templates", "feature_cache", "memory", "inputs", "descriptions"),
            *("options", "prompt_lengths"),
        )
    },
}


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def module_of(name: str) -> str:
    """The module that an imported name is or stands in."""
    while not is_module(name) and name.count(".") > 1:
        name = name.rpartition(".")[0]
    return name


def is_module(name: str) -> bool:
    place = ROOT / Path(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def is_shared(name: str) -> bool:
    return name in SHARED or name.startswith("trainers.parts.")


def imported(path: Path) -> set[str]:
    """Absolute dotted names a file imports, relative ones resolved."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *(node.module.split(".") if node.module else [])])
            parts = {f"{stem}.{alias.name}" for alias in node.names}
            names |= {stem} | {part for part in parts if node.level or is_module(part)}
    return names


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(package: str) -> list[tuple[Path, str]]:
    """Every file of a package with every name it imports."""
    return [(path, module) for path in files(package) for module in imported(path)]


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_they_may(package):
    wrong = []
    for path in files(package):
        for module in imported(path):
            top = module.split(".")[0]
            if top in TOP:
                ok = top in {package, *ALLOWED[package]}
            else:
                own = THIRD_PARTY.get(package, {top}) | EXTRAS.get(path.parent.relative_to(ROOT).as_posix(), set())
                ok = top in sys.stdlib_module_names or top in own
            if not ok:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_only_dassl_data_and_utils_serve_the_readers():
    wrong = [
        f"{path.name} imports {module}"
        for path, module in imports("datasets")
        if module.split(".")[0] == "dassl" and module.split(".")[1:2] not in (["data"], ["utils"])
    ]
    assert not wrong


def test_no_method_imports_another_method():
    wrong = []
    for path in files("trainers"):
        name = dotted(path)
        if path.stem == "__init__":
            continue
        ours = {module_of(module) for module in imported(path) if module.startswith("trainers.")}
        ours -= {name, "trainers.parts", "trainers.parts.engine"}
        allowed = SHARED.get(name, set()) if is_shared(name) else {module for module in ours if is_shared(module)}
        wrong += [f"{name} imports {module}" for module in ours - allowed]
    assert not wrong


def test_a_dense_task_imports_what_methods_share_and_no_other_task():
    wrong = [
        f"{dotted(path)} imports {module}"
        for path, module in imports("dense")
        if (module.startswith("trainers.") and not module.startswith("trainers.parts."))
        or (len(parts := module.split(".")) > 2 and parts[0] == "dense" and parts[1] != path.parent.name)
    ]
    assert not wrong


def test_trainers_ask_their_engine_at_one_place():
    """`trainers.parts.engine`, so that they also train on the original Dassl."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path, module in imports("trainers")
        if module.split(".")[0] == "dassl" and path.parent.name != "engine"
    ]
    assert wrong == ["trainers/__init__.py imports dassl.engine"]


def test_no_library_module_imports_a_script():
    scripts = {"train", "sweep", "report", "parse_test_res"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for package in ALLOWED
        for path in files(package)
        for module in imported(path) & scripts
        if dotted(path) != "align_prompt.__main__"  # a script itself
    ]
    assert not wrong


def test_no_folder_is_crowded():
    """At most 25 entries in a folder of code."""
    crowded = {}
    for package in (*ALLOWED, "tools", "benchmarks"):
        for folder in {path.parent for path in files(package)}:
            names = [entry for entry in folder.iterdir() if entry.name != "__pycache__"]
            if len(names) > 25:
                crowded[str(folder.relative_to(ROOT))] = len(names)
    assert not crowded


def test_the_entry_point_names_no_method():
    methods = [path.stem for path in files("trainers") if not is_shared(dotted(path)) and path.stem != "__init__"]
    for name in ("train.py", "dassl/engine/command.py"):
        text = (ROOT / name).read_text().lower()
        assert not [m for m in methods if f"trainers.{m}" in text or f"import {m}" in text]


def test_extras_are_imported_when_they_are_needed():
    """A backbone of CLIP's own needs none of them, and importing them takes seconds."""
    for folder, packages in EXTRAS.items():
        for path in (ROOT / folder).glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            first = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
            names = {alias.name for node in first for alias in node.names}
            names |= {node.module or "" for node in first if isinstance(node, ast.ImportFrom)}
            assert not packages & {name.split(".")[0] for name in names}, path
