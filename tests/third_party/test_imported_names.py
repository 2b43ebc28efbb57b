"""Imported files: whose name wins, whose package they belong to, and what modules of other code bases they find."""

import logging
import sys

import pytest
import torch

import train
from dassl import utils
from dassl.config.imports import import_modules
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.machine import cuda_calls
from dassl.utils.errors import error_line
from dassl.utils.registry import imported_code

MODULE = """
from dassl.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class {name}(TrainerX):
    pass
"""


@pytest.fixture
def known(monkeypatch):
    """The registry of trainers, as before once the test is over."""
    TRAINER_REGISTRY.registered_names()
    for table in ("_obj_map", "replaced"):
        monkeypatch.setattr(TRAINER_REGISTRY, table, dict(getattr(TRAINER_REGISTRY, table)))
    monkeypatch.setattr(TRAINER_REGISTRY, "_imported", set(TRAINER_REGISTRY._imported))


def test_an_imported_name_wins_over_a_built_in_one_loaded_later_or_earlier(caplog):
    for used in (False, True):
        registry = utils.Registry("THING")
        registry.on_first_use(lambda registry=registry: registry.register(int, name="CoOp"))
        if used:
            assert registry.get("CoOp") is int
        with imported_code():
            registry.register(str, name="CoOp")
            with pytest.raises(KeyError, match='"CoOp" was already registered'):  # by another imported one
                registry.register(float, name="CoOp")
        assert registry.get("CoOp") is str
        assert registry.replaced == {"CoOp": int}
        assert '"CoOp" of builtins replaces the built-in one' in caplog.text
        with pytest.raises(KeyError, match='"CoOp" was already registered'):
            registry.register(float, name="CoOp")
        caplog.clear()


def test_a_trainer_of_a_taken_name(tmp_path, known, caplog):
    (tmp_path / "coop.py").write_text(MODULE.format(name="CoOp"))
    ours = TRAINER_REGISTRY.get("CoOp")
    with caplog.at_level(logging.WARNING):
        cfg = train.build_config(
            train.build_parser().parse_args(["--import", str(tmp_path / "coop.py"), "--trainer", "CoOp"])
        )
    assert TRAINER_REGISTRY.get("CoOp") is not ours
    assert "replaces the built-in one" in caplog.text
    assert cfg.TRAINER.COOP.N_CTX == 16  # the options of the replaced one stay


@pytest.mark.parametrize("package", [True, False], ids=["package", "folder"])
def test_relative_imports(tmp_path, known, package):
    folder = tmp_path / "top.v1" / "trainers"
    folder.mkdir(parents=True)
    if package:
        (folder.parent / "__init__.py").write_text("STARTED = True\n")
        (folder / "__init__.py").write_text("")
        (folder.parent / "beside.py").write_text("VALUE = 3\n")
    (folder / "helper.py").write_text("WIDTH = 5\n")
    above = "from ..beside import VALUE\nfrom .. import STARTED\n" if package else ""
    text = f"from .helper import WIDTH\nfrom . import helper\nimport trainers.coop\n{above}"
    (folder / "first.x.py").write_text(text + MODULE.format(name=f"Relative{package}"))
    names = [str(folder / "first.x.py"), str(folder / "helper.py")]
    first, helper = import_modules(names).values()
    assert first.WIDTH == 5
    assert first.helper is helper  # one module, whichever way it is asked for
    assert sys.modules["trainers.coop"] is first.trainers.coop  # not the file's own package of that name
    assert import_modules(names)[names[0]] is first


def test_a_file_that_fails_can_be_imported_once_it_is_mended(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("from .missing import x\n")
    with pytest.raises(ImportError, match=r"own.py': ModuleNotFoundError: No module named '.*missing'"):
        import_modules([str(file)])
    file.write_text("x = 1 + 1\n")
    assert import_modules([str(file)])[str(file)].x == 2


def test_imagenet_templates_of_the_coop_repository():
    from trainers import _methods, imagenet_templates
    from trainers.parts import templates

    assert list(templates.IMAGENET_TEMPLATES) == imagenet_templates.IMAGENET_TEMPLATES
    assert len(imagenet_templates.IMAGENET_TEMPLATES + ["{}."]) == 81
    assert list(templates.IMAGENET_TEMPLATES_SELECT) == imagenet_templates.IMAGENET_TEMPLATES_SELECT
    assert "trainers.imagenet_templates" not in _methods()
    assert "trainers.coop" in _methods()


@pytest.mark.parametrize("frequency", [-1, 0])
def test_a_checkpoint_frequency_below_1_is_off(frequency):
    flags = ["--trainer", "CoOp", "TRAIN.CHECKPOINT_FREQ", str(frequency)]
    assert frequency == train.build_config(train.build_parser().parse_args(flags)).TRAIN.CHECKPOINT_FREQ


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_names_the_line_to_change(tmp_path):
    file = tmp_path / "own.py"
    file.write_text("import torch\n\ndef build():\n    return torch.zeros(2).cuda()\n")
    module = import_modules([str(file)])[str(file)]
    with pytest.raises((AssertionError, RuntimeError)) as caught:
        module.build()
    line = error_line(caught.value)
    assert f"{file}, line 4, `return torch.zeros(2).cuda()` asks for a GPU" in line
    assert ".to(self.device)" in line
    assert "asks for a GPU" not in error_line(RuntimeError("CUDA error: device-side assert triggered"))


def test_cuda_calls_do_nothing_where_cuda_is_not_to_be_used():
    before = torch.Tensor.cuda, torch.nn.Module.cuda
    with cuda_calls(False):
        tensor, module = torch.zeros(2), torch.nn.Linear(2, 2)
        assert tensor.cuda() is tensor
        assert module.cuda(0) is module
    assert (torch.Tensor.cuda, torch.nn.Module.cuda) == before
    with cuda_calls(True):
        assert (torch.Tensor.cuda, torch.nn.Module.cuda) == before
