"""Several ranks together count what one alone counts, each image once, also when their shares differ."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import environment

ROOT = Path(__file__).parents[2]


def validated_by(world: int, folder: Path) -> list[dict]:
    launcher = [] if world == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    done = subprocess.run(
        [sys.executable, *launcher, str(Path(__file__).with_name("counted_run.py")), str(folder), str(world)],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]


def test_validation_counts_every_image_once_over_uneven_shares(tmp_path):
    (alone,) = validated_by(1, tmp_path)
    ranks = validated_by(3, tmp_path)
    assert [rank["mine"] for rank in ranks] == [667, 667, 666]
    for rank in ranks:
        assert rank["val/images"] == alone["val/images"] == 2_000
        assert rank["val/top1_wrong"] == alone["val/top1_wrong"]
        assert rank["val/top5_wrong"] == alone["val/top5_wrong"]
        assert abs(rank["val/loss"] - alone["val/loss"]) < 1e-5
