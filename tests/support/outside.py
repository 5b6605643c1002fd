"""A user's own options of every open group, and a logger: a module and a folder of configuration files."""

from pathlib import Path

MODULE = '''
import math

import torch
from torch import nn


class Fifth(nn.Module):
    """A gate from the channel's mean, through a bottleneck."""

    def __init__(self, channels, *, extent, size, squeeze, bias=True):
        super().__init__()
        self.down = nn.Linear(channels, channels // squeeze, bias=bias)
        self.up = nn.Linear(channels // squeeze, channels, bias=bias)

    def forward(self, x):
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.ge = nn.Identity()

    def forward(self, x):
        return torch.relu(x + self.ge(self.bn(self.conv(x))))


class Tiny(nn.Module):
    def __init__(self, num_classes, in_channels, width):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, stride=4, padding=1)
        self.layer1, self.layer2 = nn.Sequential(Block(width)), nn.Sequential(Block(width))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))


class Stripes(torch.utils.data.Dataset):
    """Images of horizontal and of vertical stripes."""

    classes = ["horizontal", "vertical"]

    def __init__(self, train, period):
        generator = torch.Generator().manual_seed(int(train))
        self.images = torch.randint(0, 60, (96 if train else 32, 16, 16), generator=generator, dtype=torch.uint8)
        self.targets = [i % 2 for i in range(len(self.images))]
        for image, target in zip(self.images, self.targets):
            stripes = image[::period] if target == 0 else image[:, ::period]
            stripes += 150

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


def linear(position, floor=0.0):
    """From the base rate down to ``floor`` times it."""
    return max(floor, 1 - position)
'''

OPTIONS = {
    "ge/fifth.yaml": "_target_: mine.Fifth\nsqueeze: 4\n",
    "model/tiny.yaml": "_target_: mine.Tiny\nstages: [2, 3]\nwidth: 8\n",
    "data/stripes.yaml": (
        "_target_: mine.Stripes\nperiod: 4\nnum_classes: 2\nimage_size: 16\nchannels: 1\nmean: [0.3]\nstd: [0.3]\n"
    ),
    "schedule/linear.yaml": "_target_: mine.linear\nname: linear\nepochs: 2\nfloor: 0.1\n",
    "logger/rows.yaml": (
        "_target_: pytorch_lightning.loggers.CSVLogger\nsave_dir: ${hydra:runtime.output_dir}\nname: rows\n"
    ),
    "optim/adamw.yaml": "_target_: torch.optim.AdamW\nlr: 0.01\nbatch_size: 16\nbetas: [0.9, 0.99]\n",
}
# All of them together, as a command line chooses them.
CHOICES = ("ge=fifth", "model=tiny", "data=stripes", "schedule=linear", "optim=adamw", "logger=[csv,rows]")


def write_outside(folder: Path) -> Path:
    """Write ``mine.py`` and ``conf/`` below ``folder``, and return the latter's path, for ``--config-dir``."""
    (folder / "mine.py").write_text(MODULE)
    for name, content in OPTIONS.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder / "conf"
