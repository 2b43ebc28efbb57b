"""The wheel: one package that shadows nothing, complete enough to train in an empty folder."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

spec = importlib.util.spec_from_file_location("_setup", ROOT / "setup.py")
source = (ROOT / "setup.py").read_text().replace("setup(cmdclass", "dict(cmdclass")
build = {"__file__": str(ROOT / "setup.py"), "__name__": "_setup"}
exec(compile(source, "setup.py", "exec"), build)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import clip\n", "from align_prompt.lib import clip\n"),
        ("import clip.model\n", "import align_prompt.lib.clip.model; from align_prompt.lib import clip\n"),
        ("import datasets as d\n", "from align_prompt.lib import datasets as d\n"),
        ("import dassl.utils as u\n", "from align_prompt.lib.dassl import utils as u\n"),
        ("from trainers.base import (\n    X,\n)\n", "from align_prompt.lib.trainers.base import (\n    X,\n)\n"),
        ("def f():\n    import train\n", "def f():\n    from align_prompt.lib import train\n"),
        ("from . import clip\nimport clipboard, os\n", "from . import clip\nimport clipboard, os\n"),
        ("text = 'import clip'\n", "text = 'import clip'\n"),
        ("x = 'python -m datasets.prepare dtd'\n", "x = 'align-prompt prepare dtd'\n"),
    ],
)
def test_imports_are_rewritten(before, after):
    assert build["rewrite"](before) == after


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages: the wheel beside others called clip and datasets."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, ROOT]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, env={**os.environ, "TMPDIR": str(folder)})
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("clip", "datasets", "trainers"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(f"owner = 'another {name}'\n")
    return site


REAL = ["datasets", "pyarrow", "dill", "multiprocess", "xxhash", "openai-clip", "setuptools<70"]
"""Hugging Face's datasets with what else it needs; OpenAI's clip, which asks an older setuptools for its parser."""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder with Hugging Face's datasets and OpenAI's clip."""
    folder = tmp_path_factory.mktemp("real")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", folder]
    done = subprocess.run([*map(str, command), *REAL], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {', '.join(REAL)}: {done.stderr.strip().splitlines()[-1]}")
    return folder


def run(site, folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_wheel_takes_one_name(site):
    found = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert found == {"align_prompt", "clip", "datasets", "trainers"}
    assert sum(path.stat().st_size for path in site.rglob("*")) < 60e6


@pytest.mark.slow
def test_an_installed_copy_trains_and_predicts_in_an_empty_folder(site, tmp_path):
    done = run(
        site, tmp_path, "-m", "align_prompt", "train", "--root", "data", "--trainer", "CoOp", "--output-dir", "run",
        "--dataset-config-file", site / "align_prompt/lib/configs/datasets/emoji_clocks.yaml",
        "--config-file", site / "align_prompt/lib/configs/trainers/CoOp/emoji.yaml",
        "OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "DONE").is_file()
    code = (
        "import align_prompt, clip, datasets, trainers, sys\n"
        "from pathlib import Path\n"
        "picture = next(Path('data').rglob('*.png'))\n"
        "print(align_prompt.load('run').predict([picture])[0].label)\n"
        "print(clip.owner, datasets.owner, trainers.owner)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('dassl', 'transport', 'experiments')]\n"
    )
    done = run(site, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "another clip another datasets another trainers"
    status = run(site, tmp_path, "-m", "align_prompt", "sweep", "status", "embedded_few_shot", "--only", "method=CoOp")
    assert status.returncode == 0, status.stderr
    listed = run(site, tmp_path, "-m", "align_prompt", "list", "recipes")
    assert "embedded_few_shot" in listed.stdout, listed.stderr


@pytest.mark.slow
def test_beside_hugging_face_datasets_and_openai_clip(site, real, tmp_path):
    """All three are imported in one process, and the quickstart's recipe runs in an empty folder."""
    code = (
        "import align_prompt, clip, datasets\n"
        "label = datasets.ClassLabel(names=['cat', 'dog']).str2int('dog')\n"
        "print(label, clip.available_models()[0], clip.tokenize('a')[0, 0])\n"
        "from align_prompt.lib import clip as ours, datasets as readers\n"
        "print(ours.available_models()[-1], readers.__name__)\n"
        "print(clip.__file__, datasets.__file__)\n"
    )
    both = os.pathsep.join(map(str, (real, site)))
    done = run(both, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    theirs, ours, files = done.stdout.splitlines()
    assert theirs == "1 RN50 tensor(49406, dtype=torch.int32)"
    assert ours == "emoji_vit_s8_tokens align_prompt.lib.datasets"
    assert files == f"{real}/clip/__init__.py {real}/datasets/__init__.py"
    done = run(both, tmp_path, "-m", "align_prompt", "sweep", "quickstart", "--only", "method=ZeroshotCLIP")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "output").rglob("DONE"))) == 1
