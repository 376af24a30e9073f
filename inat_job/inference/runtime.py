"""What computes the logits of squares: torch, or onnxruntime without torch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from inat_job.data.centre_crop import centre_views
from inat_job.inference.model_folder import ModelFolder
from inat_job.ingest.decode import Squash
from inat_job.ingest.integer_resize import squash_without_torch
from inat_job.models.model_files import EXPORTS
from inat_job.models.onnx_session import open_session

Sizes = Sequence[tuple[int, int]]
"""Original widths and heights."""


class Runtime(Protocol):
    """The network, with the way that images are squashed for it."""

    squash: Squash

    def logits(self, squares: np.ndarray, sizes: Sizes) -> np.ndarray:
        """Logits float32 (B, classes) of squares uint8 (B, S, S, 3)."""


class OnnxRuntime:
    """model.onnx in onnxruntime; the views are cut by numpy."""

    def __init__(self, folder: ModelFolder) -> None:
        self.squash: Squash = squash_without_torch
        self._crop, self._size = folder.eval_crop, folder.image_size
        self._run = open_session(folder.path / EXPORTS["onnx"], size=self._size, outputs=len(folder.classes))

    def logits(self, squares: np.ndarray, sizes: Sizes) -> np.ndarray:
        return self._run(centre_views(squares, sizes, self._crop, self._size))
