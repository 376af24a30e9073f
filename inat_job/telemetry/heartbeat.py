"""A log line every 30 s in every phase: training rate, share of time spent waiting for data, how busy the device is.

The lines come from a thread of their own, so they also appear while the job hangs, and then say for how long.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from inat_job import events, watchdog
from inat_job.host import cpu, nvidia
from inat_job.job_status import STATUS, JobStatus
from inat_job.telemetry import metric_lines

INTERVAL_S = 30.0

_COUNTERS = ("images", "trained_s", "waited_s")
"""Fields of JobStatus that count up over an attempt."""


@contextmanager
def emit_heartbeats(interval_s: float = INTERVAL_S) -> Iterator[None]:
    """Log heartbeats while the block runs, for machines; people see the progress in bars and lines."""
    finished = threading.Event()
    if events.is_json():
        threading.Thread(target=_emit_until, args=(finished, interval_s), name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        finished.set()


def _emit_until(finished: threading.Event, interval_s: float) -> None:
    before, times = STATUS.snapshot(), (time.process_time(), time.monotonic())
    while not finished.wait(interval_s):
        now, times_now = STATUS.snapshot(), (time.process_time(), time.monotonic())
        use = cpu_use(times, times_now, cpu.available_cpus())
        fields = {**training_rates(before, now), **_device_use(now.device or "cpu", use), "cpu_use": round(use, 3)}
        events.emit("heartbeat", **fields, still_s=round(watchdog.still_s(), 1))
        events.write_metrics(metric_lines.lines(fields))
        before, times = now, times_now


def cpu_use(before: tuple[float, float], now: tuple[float, float], cpus: float) -> float:
    """This process's share of the processors, 1 for all of them, between two pairs of CPU and wall time in seconds."""
    return (now[0] - before[0]) / ((now[1] - before[1]) * cpus)


def training_rates(before: JobStatus, now: JobStatus) -> dict[str, Any]:
    """Training between two snapshots: images per second, the share of time spent waiting for data, and the last loss.

    The rate is over the wall time of training steps. Empty if nothing was trained in between.
    """
    images, trained_s, waited_s = (getattr(now, name) - getattr(before, name) for name in _COUNTERS)
    if trained_s <= 0:
        return {}
    loss = {} if now.train_loss is None else {"train_loss": now.train_loss}
    return {"images_per_s": round(images / trained_s, 1), "data_wait": round(waited_s / trained_s, 4), **loss}


def _device_use(name: str, cpu_share: float) -> dict[str, Any]:
    """How busy the device is, as a share of 1; None with the reason, as `unknown`, if the device does not say."""
    if name == "cpu":
        return {"device_use": round(cpu_share, 3)}
    if not name.startswith("cuda"):
        return {"device_use": None, "unknown": f"{name} does not report how busy it is"}
    import torch  # imported already, since training has begun

    device, memory = torch.device(name), {}
    try:
        free, total = torch.cuda.mem_get_info(device)
        memory = {"device_memory": round(1 - free / total, 3)}
        uuid = torch.cuda.get_device_properties(device).uuid  # of what CUDA_VISIBLE_DEVICES made this device
        return {"device_use": nvidia.gpu_use(f"GPU-{uuid}"), **memory}
    except Exception as error:  # the driver's library is missing, or it refuses
        return {"device_use": None, **memory, "unknown": f"how busy {name} is: {' '.join(str(error).split())[:200]}"}
