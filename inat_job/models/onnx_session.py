"""Runs model.onnx in onnxruntime on the CPU; neither this module nor onnxruntime imports torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from inat_job.errors import BadDataError, ConflictError
from inat_job.host import cpu

PIXELS, LOGITS = "pixels", "logits"
"""The names of the graph's input and output."""

Run = Callable[[np.ndarray], np.ndarray]
"""Views float32 (B, 3, S, S) in 0..255 to logits float32 (B, classes)."""


def open_session(path: Path) -> Run:
    """The graph in a file. Raises ConflictError without onnxruntime, BadDataError for a file that it cannot read."""
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

    def run(views: np.ndarray) -> np.ndarray:
        [logits] = session.run([LOGITS], {PIXELS: np.ascontiguousarray(views)})
        return np.asarray(logits)

    return run
