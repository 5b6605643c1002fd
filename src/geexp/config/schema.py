"""The configuration of every entry point as dataclasses: keys, types and defaults; ``conf/`` chooses values."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ModelConfig:
    name: str = MISSING
    stride_in: str | None = None
    init: str = "paper"
    bn_momentum: float = 0.05
    zero_init_residual: bool = False


@dataclass
class GatherExciteConfig:
    variant: str = MISSING
    extent: int | str = "global"
    stages: list[int] | None = None
    pool: str = "avg"
    reduction: int = 16
    implementation: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.extent, str) and self.extent.isdigit():  # '8' in quotes, from YAML or a shell
            self.extent = int(self.extent)


@dataclass
class AugmentationConfig:
    crop: str | None = None
    pad: int = 0
    flip: bool = False
    rotation: float = 0.0
    jitter: int = 0


@dataclass
class RecipeConfig:
    name: str = "original"
    max_side: int | None = None
    short_side: int | None = None
    quality: int | None = None


@dataclass
class DataConfig:
    name: str = MISSING
    num_classes: int = MISSING
    image_size: int = MISSING
    channels: int = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING
    root: str | None = None
    download: bool = False
    keep_classes: int | None = None
    default_feed: str = MISSING
    evaluation_crop: str | None = None
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)


@dataclass
class FeedConfig:
    name: str = MISSING
    engine: str = "threads"
    workers: int | None = None
    decode: str = "auto"
    on_error: str = "stop"
    pack: str | None = None


@dataclass
class DetectorConfig:
    layout: str = "none"
    min_size: int = 600
    max_size: int = 1000
    anchor_sizes: list[int] | None = None
    roi_size: int = 14
    freeze_bn: bool = True
    candidates: int = 2000
    proposals: int = 2000
    candidates_at_test: int = 1000
    proposals_at_test: int = 1000
    anchors: int = 256
    regions: int = 512


@dataclass
class ScheduleConfig:
    name: str = MISSING
    kind: str = MISSING
    epochs: int | None = None
    iterations: int | None = None
    stretch: float = 1.0
    warmup: float = 0.0
    warmup_factor: float | None = None
    milestones: list[int] = field(default_factory=list)
    factor: float = 0.1
    monitor: str = "val/loss"
    patience: int = 10
    threshold: float = 1e-4
    reductions: int = 3


@dataclass
class OptimConfig:
    lr: float = 0.1
    lr_for_batch: int | None = None
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    batch_size: int = 256
    decay_bn: bool = False
    decay_biases: bool = False
    bias_lr_factor: float = 2.0
    clip_norm: float | None = None


@dataclass
class TrainerConfig:
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    accumulate: int = 1
    sync_batchnorm: bool = False
    precision: str = "32-true"
    max_epochs: int | None = None
    deterministic: bool = False
    channels_last: bool = True
    compile: bool = False
    compile_mode: str = "default"
    checkpoint_every_n_steps: int | None = 1000
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    overfit_batches: int | float = 0
    detect_anomaly: bool = False
    profiler: str | None = None


@dataclass
class LoggerConfig:
    name: str = MISSING
    project: str = "geexp"
    entity: str | None = None
    group: str | None = None
    mode: str = "auto"


@dataclass
class LauncherConfig:
    name: str = "processes"
    devices_per_job: int = 1
    devices: Any = "auto"
    hang_after: float | None = 30.0
    grace: float = 120.0


@dataclass
class TrainConfig:
    """``python -m geexp.train`` and ``python -m geexp.status``."""

    model: ModelConfig = field(default_factory=ModelConfig)
    ge: GatherExciteConfig = field(default_factory=GatherExciteConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    backbone_checkpoint: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    feed: FeedConfig = field(default_factory=FeedConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    scale: str | None = None
    seed: int = 0
    outputs: str = "outputs"
    resume: bool | str = "auto"
    force: bool = False
    dry_run: bool = False


@dataclass
class HardwareConfig:
    devices: int = 1
    tflops: float = 50.0
    images_per_second: float = 3000.0


@dataclass
class PlanConfig(TrainConfig):
    """``python -m geexp.plan``."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)


@dataclass
class EvaluateConfig:
    """``python -m geexp.evaluate``."""

    run: str | None = None
    checkpoint: str | None = None
    which: str = "best"
    root: str | None = None
    accelerator: str = "auto"
    devices: int = 1
    workers: int | None = None
    format: str = "text"


@dataclass
class AnalyzeConfig:
    """``python -m geexp.analyze``."""

    analysis: str = MISSING
    run: str | None = None
    against: str | None = None
    which: str = "best"
    split: str = "val"
    images: int | None = None
    stage: int | None = None
    blocks: list[str] | None = None
    ratios: list[float] | None = None
    root: str | None = None
    accelerator: str = "auto"
    devices: int = 1
    workers: int | None = None
    out: str | None = None
    redraw: bool = False
    wandb: bool = False
    format: str = "text"


@dataclass
class DetectConfig:
    """``python -m geexp.detect mode=predict``."""

    mode: str = "predict"
    run: str | None = None
    which: str = "best"
    images: str | None = None
    most: int = 12
    least_score: float = 0.3
    root: str | None = None
    out: str | None = None
    accelerator: str = "auto"
    format: str = "text"


@dataclass
class ComplexityConfig:
    """``python -m geexp.complexity``."""

    model: ModelConfig = field(default_factory=ModelConfig)
    ge: GatherExciteConfig = field(default_factory=GatherExciteConfig)
    image_size: int | None = None
    num_classes: int | None = None
    in_channels: int = 3
    table: int | None = None
    format: str = "text"


@dataclass
class ReportConfig:
    """``python -m geexp.report``."""

    runs: str = "outputs"
    table: int | None = None
    tables: str = "all"
    figures: str = "all"
    out: str | None = None
    format: str = "text"


@dataclass
class DashboardConfig:
    """``python -m geexp.dashboard``."""

    name: str | None = None
    entity: str | None = None
    project: str = "geexp"
    runs: str | None = None
    dry_run: bool = False
    out: str | None = None


@dataclass
class PackConfig:
    """``python -m geexp.pack``."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str | None = None
    source: str = "auto"
    workers: int | None = None
    on_error: str = "stop"
    force: bool = False
    format: str = "text"


@dataclass
class CheckDataConfig:
    """``python -m geexp.check_data``."""

    data: DataConfig = field(default_factory=DataConfig)
    feed: FeedConfig = field(default_factory=FeedConfig)
    workers: int | None = None
    format: str = "text"
