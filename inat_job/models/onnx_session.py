"""Runs model.onnx in onnxruntime on the CPU; neither this module nor onnxruntime imports torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from inat_job.errors import BadDataError, ConflictError
from inat_job.host import cpu
from inat_job.models.model_files import DESCRIPTION

PIXELS, LOGITS = "pixels", "logits"
"""The names of the graph's input and output."""

Run = Callable[[np.ndarray], np.ndarray]
"""Views float32 (B, 3, S, S) in 0..255 to logits float32 (B, classes)."""


def open_session(path: Path, *, size: int | None = None, outputs: int | None = None) -> Run:
    """The graph in a file, for views of this `size` and with this number of logits, if they are given.

    Raises ConflictError without onnxruntime, BadDataError for a file that it cannot read, and for another graph.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConflictError(
            f"onnxruntime cannot be imported ({error}): pip install onnxruntime, or use --runtime torch."
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cpu.thread_count(cpu.available_cpus())
    options.log_severity_level = 3  # errors alone
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each status
        raise BadDataError(f"{path} is no graph that onnxruntime can run ({error}): export it again.") from None
    _check_shapes(session, path, size, outputs)

    def run(views: np.ndarray) -> np.ndarray:
        [logits] = session.run([LOGITS], {PIXELS: np.ascontiguousarray(views)})
        return np.asarray(logits)

    return run


def _check_shapes(session: Any, path: Path, size: int | None, outputs: int | None) -> None:
    [pixels], [logits] = session.get_inputs(), session.get_outputs()
    taken, given = pixels.shape[-1], logits.shape[-1]
    if size not in (None, taken) or outputs not in (None, given):
        raise BadDataError(
            f"{path} takes images of {taken} pixels and has {given} outputs, and its {DESCRIPTION} says {size} and "
            f"{outputs}: export it again."
        )
