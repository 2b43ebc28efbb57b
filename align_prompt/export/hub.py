"""A folder as the Hugging Face Hub shows it: model.safetensors, config.json, README.md. Nothing is uploaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

import align_prompt
from align_prompt.bundle import BUNDLE, card, stored_config, write_bundle
from align_prompt.model import Model
from dassl.utils import write_json, write_text

TEXT = """\
# {title}

{method} on {backbone}, {classes} classes{trained}. Made with align_prompt {version}.

```python
import align_prompt

model = align_prompt.load("this/folder")
model.predict(["picture.jpg"], top=5)
```

## Classes

{names}

## Figures

{figures}

## Fingerprint

What must be equal for figures to be comparable: split, class names, template, transforms, backbone, seed, shots.

```json
{fingerprint}
```

## Licenses

{licenses}

## Limits

The probabilities are over the classes above alone: a picture of anything else gets one of them too.
"""


def write_folder(model: Model, folder: Path, backbone: bool = False, features: bool = True) -> str:
    """Write the folder; returns what is in it. `align_prompt.load` reads it."""
    said = write_bundle(model, folder / BUNDLE, backbone, features)
    config = {
        "library_name": "align_prompt",
        "library_version": align_prompt.__version__,
        "method": model.method,
        "backbone": model.backbone,
        "id2label": dict(enumerate(model.classnames)),
        "config": stored_config(model.source.cfg),
    }
    write_json(config, folder / "config.json")
    write_text(readme(model), folder / "README.md")
    return f"{BUNDLE} ({said}), config.json, README.md"


def readme(model: Model) -> str:
    """The model card, with the metadata of the Hub in front."""
    about = card(model)
    header: dict[str, Any] = {
        "library_name": "align_prompt",
        "pipeline_tag": "image-classification",
        "license": "other",
        "license_name": "see-below",
        "tags": ["clip", "prompt-learning", model.method.lower()],
    }
    if "accuracy" in about:
        metrics = [{"type": name, "value": round(about[name], 2)} for name in ("accuracy", "macro_f1") if name in about]
        task = {"type": "image-classification"}
        data = {"name": str(about.get("dataset", "")), "type": str(about.get("dataset", ""))}
        results = [{"task": task, "dataset": data, "metrics": metrics}]
        header["model-index"] = [{"name": f"{model.method} {about['backbone']}", "results": results}]
    shots = about.get("shots", 0)
    shown = [f"- {key}: {about[key]:.2f} %" for key in ("accuracy", "macro_f1", "ece") if key in about]
    text = TEXT.format(
        title=f"{model.method} on {about['backbone']}",
        method=model.method,
        backbone=about["backbone"],
        classes=len(model.classnames),
        trained=f", learned from {shots} pictures per class of {about['dataset']}" if shots and shots > 0 else "",
        version=align_prompt.__version__,
        names=", ".join(model.classnames),
        figures="\n".join(shown) or "none",
        fingerprint=json.dumps(about.get("fingerprint", {}), indent=1),
        licenses="\n".join(f"- {key}: {value}" for key, value in about["licenses"].items()),
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n{text}"
