"""The configuration of every entry point as dataclasses: keys, types, allowed values and defaults.

``model``, ``ge``, ``data``, ``schedule`` and ``optim`` support custom options: a YAML file with the import path of a
function or class as ``_target_``. Keys that the group does not define are passed to it as ``arguments``. Besides
settings, a group has facts, which only describe the option and are available before torch is imported.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from omegaconf import MISSING

from geexp.config.constraints import Above, AtLeast, Extent, Location, NotEmpty, OneOf, Range, WandbName
from geexp.registry import options

Count = Annotated[int, AtLeast(1)]
Workers = Annotated[int | None, AtLeast(0)]
Threads = Annotated[int | None, AtLeast(1)]
PathName = Annotated[str | None, Location()]
Format = Annotated[str, OneOf("text", "json")]
Which = Annotated[str, OneOf("best", "last")]
Accelerator = Annotated[str, OneOf("auto", "cpu", "gpu")]
OnError = Annotated[str, OneOf("stop", "skip")]
_WEIGHTS_FILES = (".pth", ".pt", ".bin", ".safetensors", ".pth.tar")  # as torchvision, timm and others publish them
InAnAddress = WandbName(forbidden="/\\#?%:")  # the names of projects and entities
ANALYSES = ("selectivity", "pruning", "receptive_field", "gates", "curves")
MONITORS = tuple(f"{split}/{name}" for split in ("val", "train") for name in ("loss", "top1_error", "top5_error"))


@dataclass
class ModelConfig:
    """``_target_`` is called with ``num_classes``, ``in_channels`` and the arguments.

    Facts: ``label`` as in the paper; ``stages`` by the paper's numbers; ``gmacs`` of the home setting (``home_size``,
    ``home_classes``), ``last_gmacs`` of them in the last stage; ``detection``: whether a detector can use its stages.
    """

    name: str = MISSING
    stride_in: Annotated[str | None, OneOf("1x1", "3x3")] = None
    shortcut: Annotated[str | None, OneOf("A", "B")] = None
    init: Annotated[str, OneOf("paper", "torch", "own")] = "paper"
    bn_momentum: Annotated[float, Range(0, 1, above=True)] = 0.05
    zero_init_residual: bool = False
    _target_: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    label: str | None = None
    stages: list[int] = MISSING
    home_size: int = 224
    home_classes: int = 1000
    gmacs: float | None = None
    last_gmacs: float | None = None
    detection: bool = True

    @property
    def stride_in_unset(self) -> bool:
        """Whether ``stride_in`` is a setting of the network that is not set."""
        option = options("model").get(self.name, {})
        return self.stride_in is None and "stride_in" in option and option["_target_"] == self._target_


@dataclass
class GatherExciteConfig:
    """``_target_`` is called with the channels, ``extent``, ``size`` of the feature map and the arguments.

    Facts: ``label``, ``order`` and line ``style`` in tables and plots; ``settings`` that have an effect, besides extent
    and stages; ``fixed_size``: with a global extent the network accepts one image size only.
    """

    variant: str = MISSING
    extent: Annotated[int | str, Extent()] = "global"
    stages: list[int] | None = None
    pool: Annotated[str | None, OneOf("avg", "max")] = None
    border: Annotated[str | None, OneOf("real", "padded")] = None
    reduction: Annotated[int | None, AtLeast(1)] = None
    implementation: Annotated[str | None, OneOf("auto", "reference", "fused")] = None
    _target_: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    label: str | None = None
    settings: list[str] = field(default_factory=list)
    fixed_size: bool = False
    order: int = 100
    style: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.extent, str) and self.extent.isdigit():  # '8' in quotes, from YAML or a shell
            self.extent = int(self.extent)


@dataclass
class AugmentationConfig:
    crop: Annotated[str | None, OneOf("pad", "resized")] = None
    pad: Annotated[int, AtLeast(0)] = 0
    flip: bool = False
    rotation: Annotated[float, Range(0, 180, unit=" degrees")] = 0.0
    jitter: Annotated[int, Range(0, 255, unit=" levels")] = 0
    least_area: Annotated[float, Range(0, 1, above=True)] = 0.08  # of a resized crop, as a share of the image


@dataclass
class RecipeConfig:
    name: Annotated[str, OneOf("original", "jpeg", "raw")] = "original"
    max_side: Annotated[int | None, AtLeast(32)] = None
    short_side: Annotated[int | None, AtLeast(32)] = None
    quality: Annotated[int | None, Range(1, 100)] = None


@dataclass
class DataConfig:
    """``_target_`` is called with ``train``, ``root`` if it is set, and the arguments, and returns a map-style dataset.

    Facts: ``kind`` (arrays of small images, image files, or images with boxes); ``requires``: files below ``root``,
    each as a list of alternatives; ``training_images`` and ``total_classes`` of the whole set; ``splits``: names of the
    splits of a detection set; ``archives``: official archives that ``geexp.pack`` can read.
    """

    name: str = MISSING
    num_classes: Count = MISSING
    image_size: Count = MISSING
    channels: Count = MISSING
    mean: list[float] = MISSING
    std: list[float] = MISSING
    root: PathName = None
    download: bool = False
    keep_classes: Annotated[int | None, AtLeast(2)] = None
    default_feed: str = "reference"
    evaluation_crop: Annotated[str | None, OneOf("centre")] = None
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    _target_: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    kind: Annotated[str | None, OneOf("arrays", "files", "boxes")] = None
    requires: list[list[str]] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    downloadable: bool = False
    splits: list[str] = field(default_factory=list)
    training_images: int | None = None
    total_classes: int | None = None


@dataclass
class FeedConfig:
    name: Annotated[str, OneOf("reference", "folder", "pack", "resident", "coco")] = MISSING
    engine: Annotated[str | None, OneOf("threads", "workers")] = None  # None: threads if the feed supports them
    workers: Workers = None
    decode: Annotated[str, OneOf("auto", "torchvision", "torchcodec", "pil")] = "auto"
    on_error: OnError = "stop"
    pack: PathName = None


@dataclass
class DetectorConfig:
    layout: Annotated[str, OneOf("none", "c4", "fpn")] = "none"
    min_size: Count = 600
    max_size: int = 1000
    anchor_sizes: list[int] | None = None
    roi_size: Count = 14
    freeze_bn: bool = True
    candidates: Count = 2000
    proposals: Count = 2000
    candidates_at_test: Count = 1000
    proposals_at_test: Count = 1000
    anchors: Annotated[int, AtLeast(2)] = 256  # both positive and negative anchors are needed
    regions: Annotated[int, AtLeast(2)] = 512
    box_beta: Annotated[float, Above(0)] = 1 / 9
    nms_at_test: Annotated[float, Range(0, 1, above=True)] = 0.5


@dataclass
class ScheduleConfig:
    """Either a built-in ``kind``, or a custom ``_target_``, called with the position and the arguments."""

    name: str = MISSING
    kind: Annotated[str | None, OneOf("steps", "cosine", "plateau")] = None
    epochs: Annotated[int | None, AtLeast(1)] = None
    iterations: Annotated[int | None, AtLeast(1)] = None
    stretch: Annotated[float, Range(0, 1000, above=True)] = 1.0
    warmup: Annotated[float, AtLeast(0)] = 0.0
    warmup_factor: Annotated[float | None, Above(0)] = None
    milestones: list[int] = field(default_factory=list)
    factor: Annotated[float, Above(0)] = 0.1
    monitor: Annotated[str, OneOf(*MONITORS)] = "val/loss"
    patience: Annotated[int, AtLeast(0)] = 10
    threshold: Annotated[float, Range(0, 1, below=True)] = 1e-4
    reductions: Annotated[int, AtLeast(0)] = 3
    _target_: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class OptimConfig:
    """``_target_`` is called with the parameter groups, ``lr`` and the arguments; the built-in one is SGD."""

    lr: Annotated[float, Above(0)] = 0.1
    lr_for_batch: Annotated[int | None, AtLeast(1)] = None
    momentum: Annotated[float | None, Range(0, 1, below=True)] = None
    nesterov: bool | None = None
    weight_decay: Annotated[float, AtLeast(0)] = 1e-4
    batch_size: Annotated[int, AtLeast(2)] = 256  # batch normalisation needs two images
    decay_bn: bool = False
    decay_biases: bool = False
    bias_lr_factor: Annotated[float, Above(0)] = 2.0
    clip_norm: Annotated[float | None, Above(0)] = None
    label_smoothing: Annotated[float, Range(0, 1, below=True)] = 0.0
    _target_: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainerConfig:
    accelerator: Annotated[str, OneOf("auto", "cpu", "gpu", "mps")] = "auto"
    devices: Count = 1
    nodes: Count = 1
    accumulate: Count = 1
    sync_batchnorm: bool = False
    precision: Annotated[str, OneOf("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")] = "32-true"
    max_epochs: Annotated[int | None, AtLeast(1)] = None
    deterministic: bool = False
    channels_last: bool = True
    compile: bool = False
    # modes of torch.compile; reduce-overhead uses CUDA graphs
    compile_mode: Annotated[str, OneOf("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")] = (
        "default"
    )
    checkpoint_every_n_steps: Annotated[int | None, AtLeast(1)] = 1000
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    overfit_batches: int | float = 0
    detect_anomaly: bool = False
    profiler: Annotated[str | None, OneOf("simple", "advanced", "pytorch")] = None


@dataclass
class LoggerConfig:
    """The ``_target_`` and arguments of each of the ``loggers``; the other keys are W&B's."""

    loggers: dict[str, Any] = field(default_factory=dict)
    project: Annotated[str, InAnAddress] = "geexp"
    entity: Annotated[str | None, InAnAddress] = None
    group: Annotated[str | None, WandbName()] = None
    mode: Annotated[str, OneOf("auto", "online", "offline", "shared", "disabled")] = "auto"

    def has(self, name: str) -> bool:
        """Whether our logger of this name, such as ``wandb``, is among the loggers."""
        return any(entry["_target_"] == f"geexp.training.loggers.{name}_logger" for entry in self.loggers.values())


@dataclass
class LauncherConfig:
    name: Annotated[str, OneOf("processes", "inline")] = "processes"
    devices_per_job: Count = 1
    devices: Any = "auto"
    hang_after: Annotated[float | None, AtLeast(1)] = 30.0  # minutes; heartbeats come four times a minute
    grace: Annotated[float, AtLeast(0)] = 120.0


@dataclass
class TrainConfig:
    """``python -m geexp.train`` and ``python -m geexp.status``."""

    model: ModelConfig = field(default_factory=ModelConfig)
    ge: GatherExciteConfig = field(default_factory=GatherExciteConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    weights: PathName = None
    backbone_checkpoint: PathName = None
    data: DataConfig = field(default_factory=DataConfig)
    feed: FeedConfig = field(default_factory=FeedConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    scale: str | None = None
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    outputs: Annotated[str, NotEmpty("the folder of the runs, as in outputs=outputs"), Location()] = "outputs"
    resume: bool | str = "auto"
    resume_from: PathName = None
    force: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        # The tensors do not show where a bottleneck has its stride, but published ones have it on the 3x3 convolution.
        if self.weights is not None and self.weights.endswith(_WEIGHTS_FILES) and self.model.stride_in_unset:
            self.model = replace(self.model, stride_in="3x3")

    @property
    def detects(self) -> bool:
        """Whether a detector is trained, not a classifier."""
        return self.detector.layout != "none"


@dataclass
class HardwareConfig:
    devices: Count = 1
    tflops: Annotated[float, Above(0)] = 50.0
    images_per_second: Annotated[float, Above(0)] = 3000.0


@dataclass
class PlanConfig(TrainConfig):
    """``python -m geexp.plan``."""

    hardware: HardwareConfig = field(default_factory=HardwareConfig)


@dataclass
class EvaluateConfig:
    """``python -m geexp.evaluate``."""

    run: PathName = None
    checkpoint: PathName = None
    which: Which = "best"
    root: PathName = None
    accelerator: Accelerator = "auto"
    devices: Count = 1
    workers: Workers = None
    format: Format = "text"


@dataclass
class ExportConfig:
    """``python -m geexp.export``."""

    run: PathName = None
    format: Annotated[str, OneOf("torch", "onnx")] = "torch"
    which: Which = "best"
    root: PathName = None
    out: PathName = None


@dataclass
class AnalyzeConfig:
    """``python -m geexp.analyze``."""

    analysis: Annotated[str, OneOf(*ANALYSES)] = MISSING
    run: PathName = None
    against: PathName = None
    which: Which = "best"
    split: Annotated[str, OneOf("val", "train")] = "val"
    images: Annotated[int | None, AtLeast(1)] = None
    stage: Annotated[int | None, OneOf(2, 3, 4, 5)] = None
    blocks: list[str] | None = None
    ratios: list[float] | None = None
    root: PathName = None
    accelerator: Accelerator = "auto"
    devices: Count = 1
    workers: Workers = None
    out: PathName = None
    redraw: bool = False
    wandb: bool = False
    format: Format = "text"


@dataclass
class DetectConfig:
    """``python -m geexp.detect mode=predict``."""

    mode: Annotated[str, OneOf("train", "predict")] = "predict"
    run: PathName = None
    which: Which = "best"
    images: PathName = None
    most: Count = 12
    least_score: Annotated[float, Range(0, 1)] = 0.3
    root: PathName = None
    out: PathName = None
    accelerator: Accelerator = "auto"
    format: Format = "text"


@dataclass
class ComplexityConfig:
    """``python -m geexp.complexity``."""

    model: ModelConfig = field(default_factory=ModelConfig)
    ge: GatherExciteConfig = field(default_factory=GatherExciteConfig)
    image_size: Annotated[int | None, AtLeast(1)] = None
    num_classes: Annotated[int | None, AtLeast(1)] = None
    in_channels: Count = 3
    table: Annotated[int | None, OneOf(1, 2, 3, 4)] = None
    format: Format = "text"


@dataclass
class ReportConfig:
    """``python -m geexp.report``."""

    runs: Annotated[str, NotEmpty("the folder of the runs, as in runs=outputs"), Location()] = "outputs"
    table: Annotated[int | None, OneOf(*range(1, 7))] = None
    tables: Annotated[str, OneOf("all", "none")] = "all"
    figures: Annotated[str, OneOf("all", "none")] = "all"
    out: PathName = None
    format: Format = "text"


@dataclass
class DashboardConfig:
    """``python -m geexp.dashboard``."""

    name: str | None = None
    entity: Annotated[str | None, InAnAddress] = None
    project: Annotated[str, InAnAddress] = "geexp"
    runs: PathName = None
    dry_run: bool = False
    out: PathName = None


@dataclass
class PackConfig:
    """``python -m geexp.pack``."""

    data: DataConfig = field(default_factory=DataConfig)
    out: PathName = None
    source: Annotated[str, OneOf("auto", "folders", "archives")] = "auto"
    workers: Threads = None
    on_error: OnError = "stop"
    force: bool = False
    format: Format = "text"


@dataclass
class CheckDataConfig:
    """``python -m geexp.check_data``."""

    data: DataConfig = field(default_factory=DataConfig)
    feed: FeedConfig = field(default_factory=FeedConfig)
    workers: Threads = None
    format: Format = "text"
