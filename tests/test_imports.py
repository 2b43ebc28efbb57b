"""Imports go one way: who may import whom, read from the source."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"clip", "dassl", "datasets", "trainers", "reports", "benchmarks", "train"}
THIRD_PARTY = {
    "clip": {"torch", "torchvision", "ftfy", "regex", "safetensors", "numpy", "PIL", "tqdm", "packaging"},
    "dassl": {"torch", "torchvision", "yacs", "numpy", "PIL", "tqdm", "filelock", "yaml", "gdown"},
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
    },
    "trainers": {"torch", "yacs", "numpy", "sklearn", "safetensors", "filelock"},
}
ALLOWED = {"clip": set(), "dassl": set(), "datasets": {"dassl"}, "trainers": {"clip", "dassl"}}
# What a module of trainers/ that is no method may import from trainers/; a method may import any of these.
INSIDE_TRAINERS = {
    "losses": set(),
    "sinkhorn": set(),
    "transport": {"sinkhorn"},
    "templates": set(),
    "parameter_groups": set(),
    "masking": set(),
    "prompts": set(),
    "feature_cache": set(),
    "logistic_regression": set(),
    "cache_model": {"losses", "prompts"},
    "label_tokens": {"losses", "prompts"},
    "token_alignment": {"losses", "masking"},
    "whitening": set(),
    "memory": set(),
    "pretraining": {"base", "prompts"},
    "base": {"prompts", "losses", "templates", "feature_cache", "memory"},
}
SHARED = set(INSIDE_TRAINERS)  # every other module is a method
BUILD_ONLY = {"datasets/embedded/render.py", "datasets/embedded/build.py", "datasets/embedded/match.py"}


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
            names |= {stem} | ({f"{stem}.{alias.name}" for alias in node.names} if node.level else set())
    return names


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_they_may(package):
    wrong = []
    for path in files(package):
        name = str(path.relative_to(ROOT))
        for module in imported(path):
            top = module.split(".")[0]
            ok = top in {package, *ALLOWED[package], *THIRD_PARTY[package], *sys.stdlib_module_names}
            if not ok and name not in BUILD_ONLY:
                wrong.append(f"{name} imports {module}")
    assert not wrong


def test_only_dassl_data_and_utils_serve_the_readers():
    wrong = [
        f"{path.name} imports {module}"
        for path in files("datasets")
        for module in imported(path)
        if module.split(".")[0] == "dassl" and module.split(".")[1:2] not in (["data"], ["utils"])
    ]
    assert not wrong


def test_no_method_imports_another_method():
    wrong = []
    for path in files("trainers"):
        if path.stem == "__init__":
            continue
        parts = {module.split(".")[1] for module in imported(path) if module.startswith("trainers.")}
        allowed = INSIDE_TRAINERS.get(path.stem, SHARED)
        wrong += [f"{path.name} imports trainers.{part}" for part in parts - allowed]
    assert not wrong


def test_train_py_names_no_method():
    methods = {path.stem for path in files("trainers")} - SHARED - {"__init__"}
    text = (ROOT / "train.py").read_text().lower()
    assert not [method for method in methods if f"trainers.{method}" in text or f"import {method}" in text]
