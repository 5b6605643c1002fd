"""Overhead of Lightning, geexp's callbacks, metrics and checks over a bare training loop of the same network.

    python scripts/benchmarks/trainer.py --model resnet20 --batch-size 128

The bare loop (batch, forward, cross-entropy, backward, fused SGD; no metrics, checks or signal handling) runs inside
``python -m geexp.train``, alternating with its epochs, see ``callbacks.BareLoop``. Times are processor time per step on
one thread.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import measuring
from measuring import Row, Target

_STEPS = 6


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=measuring.positive, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="geexp-benchmark-") as folder:
        path = Path(folder, "seconds.json")
        train(
            f"model={options.model}",
            "ge=none",
            "trainer=cpu",
            f"optim.batch_size={options.batch_size}",
            f"schedule.epochs={options.rounds + 1}",
            "schedule.warmup=0",
            f"trainer.limit_train_batches={_STEPS}",
            "trainer.limit_val_batches=1",
            f"+callbacks.loop={{_target_: callbacks.BareLoop, path: {path}, steps: {_STEPS}}}",
            folder=folder,
        )
        seconds = json.loads(path.read_text(encoding="utf-8"))
    case = f"{options.model}, batch {options.batch_size}"
    rows = [Row(case, name, {"step": seconds[name][1:]}) for name in ("bare loop", "geexp.train")]  # the first warms up
    target = Target("resnet20, batch 128", "geexp.train", "step", "≤", 1.03, against="bare loop")
    title, bare = "Cost of the trainer beyond its network", {"/ bare": ["bare loop"]}
    measuring.report(title, rows, against=bare, targets=[target], remarks=__doc__, options=options)


def train(*overrides: str, folder: str) -> None:
    """Run ``python -m geexp.train`` on one thread, with this folder's callbacks importable.

    Raises:
        RuntimeError: if it fails, with its output.
    """
    command = [sys.executable, "-m", "geexp.train", *overrides, "logger=none", f"outputs={folder}"]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")


if __name__ == "__main__":
    main()
