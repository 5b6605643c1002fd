"""Export of a trained network for use without geexp, as a ``torch.export`` program or as ONNX."""

import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import geexp
from geexp.config.compose import is_ours
from geexp.config.errors import ConfigError, DataError, UserError
from geexp.config.schema import ExportConfig, TrainConfig
from geexp.data.datasets import open_dataset
from geexp.data.feeds import make_feed, normalised
from geexp.data.order import FixedOrder
from geexp.data.parallel import waiting
from geexp.runs.atomic_write import atomic_write
from geexp.runs.run import Run
from geexp.runs.run_files import write_json
from geexp.training.classification import Classification
from geexp.training.evaluation import checkpoint_of, data_of, restore_network

FOLDER = "export"  # in a run's folder
SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
# Of the outputs' largest absolute value. Other kernels sum in another order; deep networks differ by about 1e-6.
TOLERANCE = 1e-4
_IMAGES = 8
log = logging.getLogger(__name__)

Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """An exported file: ``difference`` is the largest from the network's own outputs on the images of ``checked_on``.

    Both ``difference`` and ``tolerance`` are absolute differences of logits.
    """

    path: Path
    difference: float
    tolerance: float
    checked_on: str


def export(settings: ExportConfig) -> Exported:
    """Export the network of a finished run, in float32 and evaluation mode, and write its description as JSON.

    The program maps normalised images ``[N, C, H, W]`` of the run's size to logits ``[N, classes]``, for any N. It is
    compared with the network before the file gets its name.

    Raises:
        DataError: for a run that is not finished, or whose checkpoint is missing or damaged.
        ConfigError: for a detector, a custom network or operator that cannot be exported, or one whose exported outputs
            differ from its own.
    """
    checkpoint_path = checkpoint_of(settings.run, settings.which)
    run = Run(checkpoint_path.parents[1])
    try:
        result = run.read_result()
    except DataError as error:
        raise DataError(
            f"run={settings.run}: {error}. Only a finished run can be exported; the command that started it resumes it."
        ) from error
    network, checkpoint = restore_network(Classification(), checkpoint_path)
    network = network.eval().to(torch.float32, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    config = checkpoint.config
    images, classes, checked_on = _inputs(config, settings.root)
    with torch.no_grad():
        expected = network(images)
    tolerance = TOLERANCE * expected.abs().max().item()

    folder = run.folder / FOLDER if settings.out is None else Path(settings.out)
    path = folder / f"{settings.which}{SUFFIXES[settings.format]}"
    with _quietly(f"exporting to {settings.format}"), atomic_write(path) as file:
        content = _program(network, images.shape, config, settings.format)
        file.write(content)
        file.flush()
        runner = _torch_runner(file.name) if settings.format == "torch" else _onnx_runner(file.name)
        # One image and several: the program must not have fixed the batch size.
        parts = [(images, expected), (images[:1], expected[:1])]
        difference = max((runner(part) - wanted).abs().max().item() for part, wanted in parts)
        if not difference <= tolerance:  # NaN fails, too
            raise ConfigError(
                f"format={settings.format}: the outputs of the exported network differ from its own by {difference:.2g}"
                f", more than the tolerance of {tolerance:.2g}, so nothing was written. Try the other format."
            )
    write_json(
        path.with_name(f"{path.name}.json"),
        {
            "file": path.name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "run": str(run.folder.absolute()),
            "checkpoint": checkpoint_path.name,
            "epoch": checkpoint.info.epoch,
            "identity": result.identity,
            "versions": {"geexp": geexp.__version__, "torch": torch.__version__},
            "input": {"dtype": "float32", "shape": ["batch", *images.shape[1:]], "scale": "(pixel / 255 - mean) / std"},
            "output": {"dtype": "float32", "shape": ["batch", *expected.shape[1:]], "meaning": "logits"},
            "image_size": config.data.image_size,
            "mean": config.data.mean,
            "std": config.data.std,
            "classes": classes,
            "check": {"inputs": checked_on, "difference": difference, "tolerance": tolerance},
        },
    )
    return Exported(path, difference, tolerance, checked_on)


@contextmanager
def _quietly(what: str) -> Iterator[None]:
    """A spinner on a terminal, without what torch's exporters log and warn about their own work."""
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with waiting(what), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _inputs(config: TrainConfig, root: str | None) -> tuple[Tensor, list[str] | None, str]:
    """A few evaluation images, normalised, the names of the classes, and what the images are.

    If the data set is not on this machine and no root is given: noise, and no names.
    """
    try:
        data, feed = data_of(config, root=root, workers=0)
        images = open_dataset(data, feed, train=False)
    except UserError as error:
        if root is not None:
            raise
        log.warning("the network is checked on noise, since the data set cannot be opened (root=<folder>): %s", error)
        shape = (_IMAGES, config.data.channels, config.data.image_size, config.data.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)), None, f"{_IMAGES} images of noise"
    order = FixedOrder(len(images), batch_size=_IMAGES, count=_IMAGES)
    batches = make_feed(images, data, feed, train=False, order=order, seed=config.seed, device=torch.device("cpu"))
    batch, _ = next(iter(batches))
    if batch.dtype == torch.uint8:
        batch = normalised(batch, data.mean, data.std)
    return batch.to(torch.float32).contiguous(), images.classes, f"{len(batch)} validation images"


def _program(network: nn.Module, shape: torch.Size, config: TrainConfig, kind: str) -> bytes:
    """The content of the exported file; the batch size is dynamic.

    Raises:
        ConfigError: if a custom network or operator cannot be exported.
    """
    try:
        example = torch.zeros(2, *shape[1:])  # torch.export would treat a batch of one as a constant
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        buffer = io.BytesIO()
        if kind == "torch":
            torch.export.save(program, buffer)
            return buffer.getvalue()
        converted = torch.onnx.export(
            program,
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert converted is not None
        return bytes(converted.model_proto.SerializeToString())
    except RuntimeError as error:  # the base class of the errors of torch.export and torch.onnx
        if is_ours(config.model._target_) and is_ours(config.ge._target_):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"format={kind}: model={config.model.name} ge={config.ge.variant} cannot be exported ({reason}). A custom "
            "network or operator must not branch on the values of tensors or on the batch size."
        ) from error


def _torch_runner(path: str) -> Runner:
    with open(path, "rb") as file:
        module = torch.export.load(file).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return module(images)

    return run


def _onnx_runner(path: str) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
