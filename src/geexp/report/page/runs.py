"""The runs as the template prints them: a row each, and for some all that is known of them."""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from geexp.report.page import words
from geexp.report.runs import Run
from geexp.report.style import VARIANT_STYLE
from geexp.runs.identity import flat


def details_first(runs: Sequence[Run], filled: Container[Path]) -> list[Run]:
    """In the order of the page, those first that fill a table."""
    order = {variant: place for place, variant in enumerate(VARIANT_STYLE)}

    def place(run: Run) -> tuple[Any, ...]:
        names = tuple(str(run.identity.get(f"{group}.name")) for group in ("model", "data", "schedule"))
        variant = order.get(run.identity.get("ge.variant", ""), len(order))
        label = words.network(run.result["identity"].get("ge"))
        return run.folder not in filled, names, variant, label, run.seed, str(run.folder)

    return sorted(runs, key=place)


def row_of(run: Run, number: int | None, filled: Sequence[str]) -> dict[str, Any]:
    """A row of the table of runs; ``number`` names its details, if it has any."""
    leaves, result = run.identity, run.result
    schedule, scale = leaves.get("schedule.name"), leaves.get("scale")
    return {
        "number": number,
        "label": words.network(result["identity"].get("ge")),
        "variant": leaves.get("ge.variant"),
        "model": " ".join(filter(None, [leaves.get("model.name"), leaves.get("detector.layout")])),
        "data": leaves.get("data.name"),
        "schedule": f"{schedule}, {scale}" if scale else schedule,
        "seed": run.seed,
        "detector": run.detector,
        **_figures(run),
        "params": words.millions(words.get(result, "complexity", "params")),
        "macs": words.millions(words.get(result, "complexity", "macs")),
        "seconds": words.number(result.get("seconds")),
        "time": words.duration(result.get("seconds")),
        "finished": words.date(words.get(result, "metrics", "last", "time"))[:10],
        "filled": filled,
    }


def _figures(run: Run) -> dict[str, float | None]:
    """A detector's are its mAP, after the last epoch and the best."""
    metric = "map" if run.detector else "top1"
    last, best = run.figure(metric), run.figure(metric, "best")
    return {"last": last, "best": best, "top5": None if run.detector else run.figure("top5")}


def facts_of(run: Run) -> dict[str, str]:
    """What a run gave and what it was made with, by heading. What its ``result.json`` does not say is left out."""
    result = run.result
    devices, gpu, versions = result.get("devices"), result.get("gpu"), result.get("versions")
    threads = f"{result['threads']} threads" if result.get("threads") else None
    memory = {"resident": "of the process", "gpu": "on the GPU"}
    peaks = {name: words.number(words.get(result, "peak_memory_bytes", key)) for key, name in memory.items()}
    python = f"Python {result['python']}" if result.get("python") else None
    found = {
        **(
            {"mAP": _last_and_best(run, "map")}
            if run.detector
            else {"top-1 error": _last_and_best(run, "top1"), "top-5 error": _last_and_best(run, "top5")}
        ),
        "backbone": words.get(result, "backbone", "loaded"),
        "epochs": words.value(result["epochs"]) if result.get("epochs") is not None else None,
        "time": words.duration(result.get("seconds")),
        "finished": words.date(words.get(result, "metrics", "last", "time")),
        "processor": _joined(result.get("processor"), threads),
        "GPU": _joined(*gpu.values()) if isinstance(gpu, dict) else words.value(gpu) if gpu else "none",
        "devices": _joined(*(f"{key.replace('_', ' ')} {value}" for key, value in devices.items()))
        if isinstance(devices, dict)
        else None,
        "peak memory": _joined(*(f"{peak / 2**30:.2f} GiB {name}" for name, peak in peaks.items() if peak is not None)),
        "feed": words.get(result, "feed", "name"),
        "host": _joined(result.get("host"), result.get("platform")),
        "commit": result.get("commit"),
        "versions": _joined(python, *(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else ()),
    }
    return {name: str(text) for name, text in found.items() if text}


def _last_and_best(run: Run, metric: str) -> str:
    epoch = words.get(run.result, "metrics", "best", "epoch")
    best = f"after the best{'' if epoch is None else f' ({epoch})'}"
    return f"{run.figure(metric):.2f} % after the last epoch, {run.figure(metric, 'best'):.2f} % {best}"


def _joined(*parts: Any) -> str:
    return " · ".join(str(part) for part in parts if part)


def configuration_of(run: Run) -> list[tuple[str, str]]:
    """Titles and texts, a setting a line: what determines the result, and the rest of the configuration."""
    identity = flat(run.result["identity"])
    config = run.result.get("config")
    rest = {k: v for k, v in flat(config).items() if k not in identity} if isinstance(config, dict) else {}
    parts = {"What determines the result": identity, "The rest of the configuration": rest}
    return [(title, _lines(leaves)) for title, leaves in parts.items() if leaves]


def _lines(leaves: dict[str, Any]) -> str:
    return "\n".join(f"{key}={words.value(value)}" for key, value in leaves.items())
