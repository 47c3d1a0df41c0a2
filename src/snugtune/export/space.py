"""A run as a folder for a Hugging Face Space: its web app, its model, and the package itself.

The folder needs nothing but public packages: the model is merged, so no base model is fetched, and
``snugtune`` lies in it as it is here, so no release has to be published. No text of the training table and
no path of this machine is in it (the TF-IDF baseline, where the decision mixes it in, holds words that
occur there). A new process reads the folder by itself and must give the run's probabilities.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from snugtune.errors import ArtifactError, UserInputError
from snugtune.files import write_json, write_text
from snugtune.model.artifact import load_model, save_model
from snugtune.predict.predictor import Predictor
from snugtune.report.page import RunFiles, read_run_files, report_html

PACKAGES = (
    "accelerate", "fastapi", "fastexcel", "gradio", "huggingface_hub", "jinja2", "markdown-it-py",
    "markupsafe",
    "numpy", "openpyxl", "peft", "polars", "psutil", "pydantic", "pyyaml", "safetensors", "scikit-learn",
    "scipy",
    "tokenizers", "torch", "transformers", "typer", "uvicorn", "xlsxwriter",
)  # fmt: skip
"""What the app imports, by the names that pip knows; what they need, pip finds."""

RECORD = (
    "format", "created_at", "labels", "label_aliases", "label_separator", "label_levels", "columns",
    "long_texts", "parameters", "training", "decision", "metrics", "automation", "verdict", "baseline",
    "time",
    "cost", "versions",
)  # fmt: skip
"""What goes with the folder of ``run.json``: what predicting and the report need."""

PRIVATE_SETTINGS = frozenset({"train", "test", "sheet", "test_sheet", "corrections", "add", "model", "track"})
"""Settings that name files of the machine the run was made on."""

APP = '''"""A text classifier as a Space: ``run/`` has the model, ``snugtune/`` the program."""

from pathlib import Path

from snugtune.serve.web.space import open_space

app = open_space(Path(__file__).parent / "run", name={name!r})

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, host="0.0.0.0", port=7860)
'''

_ASK = """
import json, sys
request = json.load(sys.stdin)
sys.path.insert(0, request["folder"])
import snugtune
from importlib import resources
from pathlib import Path
assert Path(snugtune.__file__).is_relative_to(request["folder"]), snugtune.__file__
from snugtune.predict.predictor import Predictor
predictor = Predictor.load(Path(request["folder"]) / "run")
print(json.dumps(predictor.probabilities(request["texts"]).tolist()))
"""
"""Nothing is asked of the Hub, and no package but the folder's own is called snugtune."""


def require_app() -> None:
    """The versions that go into the requirements are those that are here.

    Raises:
        UserInputError: one of the packages is not installed.
    """
    for name in PACKAGES:
        try:
            version(name)
        except PackageNotFoundError:
            raise UserInputError(
                f"A Space needs {name}, which is not here; install it with: pip install 'snugtune[app]'."
            ) from None


def write_space(run: Path, record: dict[str, Any], folder: Path, name: str) -> None:
    """Write the folder of a Space called ``name``.

    Raises:
        UserInputError: a file of the run cannot be read.
    """
    made = folder / "run"
    max_length = int(record["model"]["max_length"])
    model, tokenizer = load_model(
        run / record["model"]["folder"], dtype=torch.float32, attn_implementation="sdpa", as_quantized=False
    )
    (made / "model").mkdir(parents=True)
    save_model(model, tokenizer, made / "model", max_length)
    _forget_origin(made / "model" / "config.json")
    if (run / "baseline").is_dir() and record["decision"]["mixture"].get("weight"):
        shutil.copytree(run / "baseline", made / "baseline")
    public = public_record(record)
    write_json(made / "run.json", public)
    if record.get("metrics"):
        found = read_run_files(run)
        files = RunFiles(public, found.metrics, found.memory, found.predictions)
        write_text(made / "report.html", report_html(files.without_texts()))
    package = Path(str(resources.files("snugtune")))
    shutil.copytree(package, folder / "snugtune", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    write_text(folder / "app.py", APP.format(name=name))
    write_text(folder / "requirements.txt", requirements())
    write_text(folder / "README.md", space_card(record, name))


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """Of ``run.json`` what others may see: no path, no text, no count of faults in the table."""
    settings = {key: value for key, value in record.get("config", {}).items() if key not in PRIVATE_SETTINGS}
    model = record["model"]
    return {
        **{key: record[key] for key in RECORD if key in record},
        "config": settings,
        "data": {"rows": record.get("data", {}).get("rows", {})},
        "model": {**model, "folder": "model", "source": _public_name(str(model.get("source", "")))},
    }


def requirements() -> str:
    """The exact versions that are here; of torch without the name of its build."""
    return "".join(f"{name}=={version(name).split('+')[0]}\n" for name in PACKAGES)


def space_card(record: dict[str, Any], name: str) -> str:
    """``README.md``: the Space's settings (https://huggingface.co/docs/hub/spaces-config-reference), and
    how to.
    """
    settings = {
        "title": name[:60], "emoji": "🏷️", "colorFrom": "blue", "colorTo": "gray", "sdk": "gradio",
        "sdk_version": version("gradio"), "python_version": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "app_file": "app.py", "pinned": False, "suggested_hardware": "cpu-basic",
        "short_description": _short(record), "tags": ["snugtune", "text-classification"],
    }  # fmt: skip
    head = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    baseline = (
        "\nThe TF-IDF baseline that the run mixes in is part of it, and with it words of the training "
        "texts.\n"
        if record["decision"]["mixture"].get("weight")
        else ""
    )
    return (
        f"---\n{head}---\n\n# {name}\n\n{_short(record)}. Made with snugtune.\n\n"
        "Put this folder online: `hf upload OWNER/NAME . --repo-type space` (make it private with "
        "`hf repos create OWNER/NAME --repo-type space --space-sdk gradio --private`). A secret named "
        "`SNUGTUNE_APP_PASSWORD` in the Space's settings asks for a password; then open the Space at its own "
        "address, OWNER-NAME.hf.space.\n\n"
        f"Try it here: `pip install -r requirements.txt && python app.py`.\n{baseline}"
    )


def check_space(folder: Path, texts: Sequence[str], predictor: Predictor) -> NDArray[np.float64]:
    """Probabilities (N, K) that a new process gets out of the folder alone.

    Raises:
        ArtifactError: it does not load there.
    """
    request = json.dumps({"folder": str(folder.resolve()), "texts": list(texts)})
    command = [sys.executable, "-W", "ignore", "-c", _ASK]
    done = subprocess.run(
        command, input=request, capture_output=True, text=True, check=False, cwd=folder, env=_alone()
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1][:300]
        raise ArtifactError(f"The Space in {folder} does not work in a new process: {reason}")
    return np.array(json.loads(lines[-1])).reshape(len(texts), len(predictor.labels.names))


def check_public(run: Path, record: dict[str, Any], folder: Path) -> None:
    """No file that was written for the Space may name a path of this machine.

    Raises:
        ArtifactError: one does.
    """
    config = record.get("config", {})
    named = [str(run.resolve()), str(record["model"].get("source", ""))]
    for key in ("train", "test", "corrections", "add", "model"):
        value = config.get(key) or ""
        named += [value] if isinstance(value, str) else value
    paths = [name for name in named if Path(name).is_absolute()]
    files = [folder / "app.py", folder / "README.md", *(folder / "run").rglob("*.*")]
    for file in files:
        if file.suffix in (".json", ".html", ".md", ".py"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if found := [path for path in paths if path in text]:
                raise ArtifactError(
                    f"{file.name} of the Space would hold the path {found[0]}; nothing was written."
                )


def _alone() -> dict[str, str]:
    """The environment without a path to packages of this machine, and without the Hub."""
    import os

    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def _forget_origin(config: Path) -> None:
    """Transformers notes where a model was loaded from."""
    found = json.loads(config.read_text(encoding="utf-8"))
    found.pop("_name_or_path", None)
    write_json(config, found)


def _public_name(source: str) -> str:
    """The name of a model on the Hub; of a folder its last part."""
    is_path = (
        Path(source).is_absolute() or PureWindowsPath(source).is_absolute() or source.startswith((".", "~"))
    )
    return Path(source).name if is_path or Path(source).is_dir() else source


def _short(record: dict[str, Any]) -> str:
    what = "labels" if record.get("label_separator") else "classes"
    return f"Puts texts into {len(record['labels']):,} {what}"
