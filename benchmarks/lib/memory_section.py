"""The page's section on predicted and measured memory."""

from __future__ import annotations

from typing import Any

from .tables import table

HOLLOW = "Hollow"


def memory(result: dict[str, Any]) -> list[str]:
    """Errors of the predicted peaks, over all configurations and by model."""
    summary = result["summary"]
    rows = [row for row in result["cases"] if "error_percent" in row]
    models = sorted({row["case"]["model"] for row in rows})
    lines = [_line(model, [row for row in rows if row["case"]["model"] == model]) for model in models]
    left = f", {summary['left_out']} left out" if summary["left_out"] else ""
    failed = f", {summary['failed']} failed" if summary["failed"] else ""
    goal, met = result["goal"], "met" if summary["goal_met"] else "missed"
    return [
        f"{summary['cases']} configurations{left}{failed}: models, lengths, micro-batches, number formats, "
        f"kernels, methods, levers. {_where(result)}",
        "",
        *table(["model", "configurations", "peak, GiB", "reserved: mean error", "most over", "most under"],
               [*lines, _line("all", rows)]),
        "",
        f"The goal (within {goal['worst_error_percent']:g} %, never under by more than "
        f"{-goal['most_under_percent']:g} %, mean error under {goal['mean_error_percent']:g} %) is {met}. "
        f"Tensors' own peak (allocated) is off by {summary['allocated']['mean_error_percent']:.2f} % in the "
        f"mean, {summary['allocated']['worst_error_percent']:.2f} % at worst.",
    ]  # fmt: skip


def _where(result: dict[str, Any]) -> str:
    if not result["card"].startswith(HOLLOW):
        return f"Measured on {result['card'].replace('-', ' ')} by PyTorch's own counters."
    return (
        "Counted by PyTorch's own allocator and CUDA code on a card that computes nothing "
        f"(`benchmarks/hollow`, by its description a {result['card'].removeprefix(HOLLOW + '-')}): what "
        "libraries take outside of it is not there."
    )


def _line(name: str, rows: list[dict[str, Any]]) -> list[str]:
    errors = [row["error_percent"]["reserved"] for row in rows]
    peaks = [row["measured_gib"]["reserved"] for row in rows]
    mean = sum(map(abs, errors)) / len(errors)
    return [
        name, str(len(rows)), f"{min(peaks):.2f} to {max(peaks):.2f}", f"{mean:.2f} %",
        f"{max(*errors, 0.0):+.2f} %", f"{min(*errors, 0.0):+.2f} %",
    ]  # fmt: skip
