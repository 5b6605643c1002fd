"""Start-up time of the entry points: --help, --cfg job, and training up to the first step, against ``import torch``.

    python scripts/benchmarks/startup.py --entries train report

Each runs in its own process; times are its user and system time. The first step is measured with
``python -m geexp.train`` and ResNet-8. / torch: relative to a process that only imports torch, in the same round.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from functools import partial
from itertools import product
from pathlib import Path

import measuring
from measuring import Row, Target
from trainer import train

_UNIT, _CASE = "import torch", "start-up"


def main() -> None:
    project = tomllib.loads((measuring.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = sorted(target.split(":")[0].split(".")[1] for target in project["scripts"].values())
    parser = measuring.parser(__doc__)
    parser.add_argument("--entries", nargs="+", choices=entries, default=entries)
    options = parser.parse_args()
    shown = {
        f"{entry} {' '.join(flag)}": ["-m", f"geexp.{entry}", *flag]
        for entry, flag in product(options.entries, (["--help"], ["--cfg", "job"]))
    }
    with tempfile.TemporaryDirectory(prefix="geexp-benchmark-") as folder:
        works = {_UNIT: partial(start, ["-c", "import torch"], folder), "first step": partial(first_step, folder)}
        works |= {name: partial(start, arguments, folder) for name, arguments in shown.items()}
        times = measuring.interleaved(works, lambda work: work(), rounds=options.rounds)
    rows = [Row(_CASE, name, measuring.by_figure(times[name])) for name in times]
    targets = [Target(_CASE, name, "processor", "≤", 0.5) for name in shown]
    measuring.report("Start-up", rows, against={"/ torch": [_UNIT]}, targets=targets, remarks=__doc__, options=options)


def start(arguments: list[str], folder: str) -> dict[str, float]:
    before, since = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - since, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"processor": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": wall}


def first_step(folder: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=folder) as outputs:
        path, since = Path(outputs, "first_step.json"), time.time()
        callback = f"+callbacks.first_step={{_target_: callbacks.FirstStep, path: {path}}}"
        train("model=resnet8", "ge=theta", "debug=one_batch", "trainer=cpu", callback, folder=outputs)
        noted = json.loads(path.read_text(encoding="utf-8"))
    return {"processor": noted["processor"], "wall": noted["at"] - since}


if __name__ == "__main__":
    main()
