"""A callback that notes when the first training step was done."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class FirstStep(pl.Callback):
    """Writes wall-clock time, processor seconds of this process and its modules to ``path`` after the first step."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.path.exists():
            noted = {"at": time.time(), "processor": time.process_time(), "modules": len(sys.modules)}
            self.path.write_text(json.dumps(noted), encoding="utf-8")
