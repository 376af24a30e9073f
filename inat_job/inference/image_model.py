"""An exported model as a library: `load_model("runs/x").predict("a.jpg")`. Lightning is never imported."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from inat_job.address import expanded
from inat_job.errors import BadDataError, UsageError
from inat_job.evaluation.prediction_table import softmax
from inat_job.host import cpu
from inat_job.inference.model_folder import RUNTIMES, ModelFolder, find_model
from inat_job.inference.runtime import OnnxRuntime, Runtime
from inat_job.ingest.build_cache import cache_side
from inat_job.ingest.decode import Rejected, decode, squash_image
from inat_job.options import parse_section
from inat_job.settings import DataSettings
from inat_job.signals import Stop, never
from inat_job.storage import StorageOptions
from inat_job.storage.disk import disk_errors
from inat_job.storage.local import SPECIAL

BATCH_SIZE = 32

ImageLike = Any
"""A path, an image file's bytes, a Pillow image, or a uint8 array of shape (H, W, 3) in RGB."""

Square = tuple[np.ndarray, tuple[int, int]]
"""A decoded image: uint8 (S, S, 3), and the original width and height."""


@dataclass(frozen=True)
class ClassProbability:
    """A class, and its probability in 0..1."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """All classes of one image, the most probable first."""

    classes: tuple[ClassProbability, ...]

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.classes[0].name

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return self.classes[0].probability


class ImageModel:
    """A network with its classes and its preprocessing; made by `load_model`."""

    def __init__(self, folder: ModelFolder, runtime: Runtime) -> None:
        self.classes, self.image_size = folder.classes, folder.image_size
        self._folder, self._runtime = folder, runtime

    @overload
    def predict(self, images: Sequence[ImageLike]) -> list[Prediction]: ...
    @overload
    def predict(self, images: ImageLike) -> Prediction: ...
    def predict(self, images: ImageLike | Sequence[ImageLike]) -> Prediction | list[Prediction]:
        """The prediction of an image, or of each image in a list or tuple.

        A path or bytes are decoded as `test` decodes them, and have the same digits. A Pillow image or an array has
        been decoded by another program, at full resolution, and may differ a little. Raises BadDataError for an image
        that cannot be read, naming it or its number.
        """
        if isinstance(images, list | tuple):
            return self._predict_all(images)
        return self._predict_all([images])[0]

    def logits(self, squares: Sequence[Square]) -> np.ndarray:
        """Logits float32 (n, classes) of decoded images."""
        return self._runtime.logits(np.stack([pixels for pixels, _ in squares]), [size for _, size in squares])

    def predictions(self, squares: Sequence[Square]) -> list[Prediction]:
        """The predictions of decoded images, in one batch. Raises BadDataError for logits that are no numbers."""
        scaled = self.logits(squares).astype(np.float64) / self._folder.temperature
        if not np.isfinite(scaled).all():
            raise BadDataError(f"{self._folder.path} computes NaN or infinite logits: train the model again.")
        return [self._prediction(row) for row in softmax(scaled)]

    def decode(self, image: ImageLike) -> Square:
        """A decoded image. Raises Rejected with the reason, and what the disk raises for a path."""
        side, squash = cache_side(self.image_size), self._runtime.squash
        if isinstance(image, str | Path):
            path = Path(expanded(str(image)))
            with disk_errors(path, missing=f"{image} does not exist: check the path."):
                if path.exists() and not (path.is_file() or path.is_dir()):  # to open a pipe would wait
                    raise Rejected(SPECIAL)
                image = path.read_bytes()
        if isinstance(image, bytes):
            return decode(image, side, squash)
        return squash_image(image, side, squash)

    def _prediction(self, probabilities: np.ndarray) -> Prediction:
        order = np.argsort(-probabilities, kind="stable")
        return Prediction(tuple(ClassProbability(self.classes[at], float(probabilities[at])) for at in order))

    def _predict_all(self, images: Sequence[ImageLike]) -> list[Prediction]:
        found: list[Prediction] = []
        with ThreadPoolExecutor(cpu.available_cpus()) as pool:
            for start in range(0, len(images), BATCH_SIZE):
                batch = images[start : start + BATCH_SIZE]
                names = [each if isinstance(each, str | Path) else start + at for at, each in enumerate(batch)]
                found += self.predictions(list(pool.map(self._decode_named, batch, names)))
        return found

    def _decode_named(self, image: ImageLike, name: object) -> Square:
        try:
            return self.decode(image)
        except Rejected as reason:
            raise BadDataError(f"Image {name} cannot be read ({reason}): leave it out.") from None


def load_model(
    name: str | Path,
    *,
    runtime: str = "torch",
    accelerator: str = "auto",
    cache_dir: str | Path = "cache",
    options: StorageOptions | None = None,
    stop: Stop = never,
    output: str | None = None,
) -> ImageModel:
    """The model of a run: its folder, its model/ folder, or an address of either in a bucket, which is downloaded once.

    `runtime` is torch, or onnx for a run with `--export onnx`, which imports no torch and runs on the CPU.
    `accelerator` is auto, cpu, cuda or mps, and torch's. Raises BadDataError for a missing or damaged model.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"runtime is {runtime!r}: it must be one of {', '.join(RUNTIMES)}.")
    cache = Path(parse_section(DataSettings, {"cache_dir": str(cache_dir)}).cache_dir)
    folder = find_model(str(name), runtime, cache, options or StorageOptions(), stop, output)
    if runtime == "onnx":
        return ImageModel(folder, OnnxRuntime(folder))
    from inat_job.inference.torch_runtime import TorchRuntime  # which imports torch

    return ImageModel(folder, TorchRuntime(folder, accelerator))
