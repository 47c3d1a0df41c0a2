"""PEFT's methods beside each other on real data: score, what is trained, memory, time, size of what is saved.

Each method's learning rate is chosen among ``--rates`` on validation rows; then, with ``--test``, a whole
``snugtune fit`` with the best rate is scored on the test file, once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accuracy import fit_command, fit_once, task_of
from lib import common, datasets, page


@dataclass(frozen=True)
class Entrant:
    """A method with the settings that make it a row of the table, and the rates it is tried with."""

    settings: dict[str, Any]
    rates: tuple[float, ...]


ENTRANTS = {
    "lora": Entrant({}, (2e-4, 5e-4, 1e-3)),
    "rslora": Entrant({"use_rslora": True}, (1e-4, 2e-4, 5e-4)),
    "dora": Entrant({"use_dora": True}, (2e-4, 5e-4, 1e-3)),
    "pissa": Entrant({"init_lora_weights": "pissa"}, (1e-4, 2e-4, 5e-4)),
    "eva": Entrant({"init_lora_weights": "eva"}, (2e-4, 5e-4, 1e-3)),
    "lora+": Entrant({"loraplus_lr_ratio": 16.0}, (2e-5, 5e-5, 1e-4)),
    "adalora": Entrant({"method": "adalora"}, (5e-4, 1e-3, 2e-3)),
    "vera": Entrant({"method": "vera"}, (1e-3, 4e-3, 1e-2)),
    "oft": Entrant({"method": "oft"}, (1e-4, 5e-4, 2e-3)),
    "boft": Entrant({"method": "boft"}, (1e-4, 5e-4, 2e-3)),
    "ia3": Entrant({"method": "ia3"}, (1e-3, 3e-3, 1e-2)),
    "bitfit": Entrant({"method": "bitfit"}, (4e-4, 1e-3, 3e-3)),
    "prefix": Entrant({"method": "prefix"}, (1e-3, 5e-3, 2e-2)),
    "prompt": Entrant({"method": "prompt"}, (1e-3, 1e-2, 1e-1)),
    "p-tuning": Entrant({"method": "p-tuning"}, (2e-4, 1e-3, 5e-3)),
    "head": Entrant({"method": "head"}, (5e-4,)),
    "full": Entrant({"method": "full"}, (2e-5, 5e-5, 1e-4)),
}


def main() -> None:
    options = _arguments()
    common.quiet_libraries()
    began = time.perf_counter()
    found: dict[str, dict[str, Any]] = {}
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    with tempfile.TemporaryDirectory() as temporary:
        task = task_of(options.data, Path(temporary))
        if task is None:
            return
        texts = datasets.read_tables(task.train.parent, task.text, task.label)
        begun = start(texts, options)
        for name in options.methods:
            if time.perf_counter() - began > options.limit_s:
                print(f"{name}: left out, the time is over.")
                continue
            tried = try_rates(ENTRANTS[name], begun, options)
            best = max(tried, key=lambda rate: (tried[rate]["score"], -tried[rate]["log_loss"]))
            found[name] = {"settings": ENTRANTS[name].settings, "tried": tried, "rate": float(best)}
            print(f"{name}: {', '.join(_tried(rate, line) for rate, line in tried.items())}")
            if options.test:
                run = Path(temporary) / name
                found[name] |= whole_fit(ENTRANTS[name], float(best), task, run, options)
                print(f"{name}: {_said(found[name])}")
            # After each, for the next one may take hours.
            record = {"benchmark": "methods", "settings": settings, "methods": found}
            common.save_result(f"methods-{options.data}", record, options.out, machine=common.hardware())
    page.refresh(options.out)


def _arguments() -> Any:
    parser = common.parser("PEFT's methods on one data set.")
    parser.add_argument("--data", choices=("banking77", "cfpb-product"), default="banking77")
    parser.add_argument("--methods", nargs="+", choices=tuple(ENTRANTS), default=list(ENTRANTS))
    parser.add_argument("--rows", type=int, default=3000, help="training rows with which rates are tried")
    parser.add_argument("--rate-epochs", type=float, default=2, help="epochs with which rates are tried")
    parser.add_argument("--epochs", type=float, default=4, help="epochs of the whole fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--limit-s", type=float, default=7200, help="no new method begins after this time")
    parser.add_argument("--fit-limit-s", type=float, default=3600, help="most seconds of one fit")
    return parser.parse_args()


@dataclass(frozen=True)
class Start:
    """What all methods begin from: tokens of some training rows and of validation, and the probes on them."""

    data: Any
    probes: Any


def start(texts: datasets.Texts, options: Any) -> Start:
    """Tokens and probes, made once."""
    import numpy as np
    import torch
    from lib import ours

    from snugtune.config import make_config
    from snugtune.model.head import find_head
    from snugtune.train.probe import HeldOut, fit_probes

    torch.set_num_threads(options.threads)
    config = make_config({"train": "", "seed": options.seed})
    data = datasets.token_data(texts, config)
    rows = np.random.default_rng(options.seed).permutation(len(data.train.y))
    data = datasets.replace_train(data, datasets.subset(data.train, rows[: options.rows]))
    of_train, held_out = ours.frozen_features(data, config)
    head = find_head(data.backbone.model)
    chooser = HeldOut(held_out, data.validation.y)
    return Start(data, fit_probes(of_train, data.train.y, len(data.labels.names), head, chooser))


def try_rates(entrant: Entrant, begun: Start, options: Any) -> dict[str, dict[str, Any]]:
    """By rate: the score before, score and log loss on validation rows after a training on some rows."""
    import torch
    from lib import ours

    from snugtune.config import make_config
    from snugtune.model.backbone import load_for_fit
    from snugtune.model.head import find_head
    from snugtune.train.eva import start_from_data
    from snugtune.train.probe import write_start

    found: dict[str, dict[str, Any]] = {}
    for rate in entrant.rates:
        config = make_config(
            {
                "train": "", "num_train_epochs": options.rate_epochs, "seed": options.seed,
                "learning_rate": rate, "early_stopping_patience": None, **entrant.settings,
            }
        )  # fmt: skip
        backbone = load_for_fit(config, begun.data.labels, dtype=begun.data.dtype)
        data = replace(begun.data, backbone=backbone)
        begin_from = write_start(backbone.model, find_head(backbone.model), *begun.probes)
        torch.manual_seed(options.seed)
        model, head_names = ours.wrap_model(data, config)
        if config.init_lora_weights == "eva":
            start_from_data(
                model, config, data.train.tokens, pad_token_id=backbone.tokenizer.pad_token_id,
                device=data.device, dtype=data.dtype,
            )  # fmt: skip
        started = time.perf_counter()
        result = ours.train_ours(data, model, head_names, config, begin_from=begin_from)
        looks = [line for line in result.metrics if "eval_score" in line]
        found[f"{rate:g}"] = {
            "start": looks[0]["eval_score"], "score": looks[-1]["eval_score"],
            "log_loss": looks[-1]["eval_loss"], "seconds": time.perf_counter() - started,
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }  # fmt: skip
    return found


def whole_fit(entrant: Entrant, rate: float, task: Any, run: Path, options: Any) -> dict[str, Any]:
    """The row of the table: what ``run.json`` of a fit with this rate says."""
    settings = [
        "--learning-rate",
        f"{rate:g}",
        "--epochs",
        f"{options.epochs:g}",
        "--seed",
        f"{options.seed}",
    ]
    settings += ["--no-audit", "--no-mix-with-baseline"]
    for name, value in entrant.settings.items():
        option = f"--{name.replace('_', '-')}"
        settings += [option] if value is True else [option, str(value)]
    seconds, error = fit_once(fit_command(task, run, settings), options.threads, options.fit_limit_s)
    return {"error": error} if error else read_fit(run) | {"seconds": seconds}


def read_fit(run: Path) -> dict[str, Any]:
    """Scores on the test file, parameters, memory, time and bytes of a run folder."""
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    test, memory = record["metrics"]["test"], record["memory"]
    saved = run / record["model"]["folder"]
    return {
        "accuracy": test["accuracy"],
        "f1_macro": test["f1_macro"],
        "validation": record["metrics"]["validation"]["accuracy"],
        "best_step": record["training"]["best_step"],
        "trainable": record["parameters"]["trainable"],
        "predicted_peak_gib": memory["predicted_peak_gib"],
        "measured_peak_gib": memory["measured_peak_gib"],
        "train_s": record["time"]["train_s"],
        "saved_bytes": sum(path.stat().st_size for path in saved.glob("*.safetensors")),
    }


def _tried(rate: str, line: dict[str, Any]) -> str:
    return f"{rate} {line['score']:.4f} ({line['log_loss']:.3f}, {line['seconds']:.0f} s)"


def _said(found: dict[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    return (
        f"accuracy {found['accuracy']:.4f}, macro-F1 {found['f1_macro']:.4f}, "
        f"{found['trainable']:,} trained, {found['measured_peak_gib']:.2f} GiB, "
        f"{found['train_s']:.0f} s of training"
    )


if __name__ == "__main__":
    main()
