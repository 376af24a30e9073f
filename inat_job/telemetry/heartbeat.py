"""A line every half minute of any phase: how fast images are worked through, what waits for them, and how busy the
device is. It comes of a thread of its own, so it also comes of a job that hangs, and then says for how long.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from inat_job import events, watchdog
from inat_job.host import cpu
from inat_job.job_status import STATUS, JobStatus
from inat_job.telemetry import metric_lines

EVERY_S = 30.0

_COUNTS = ("images", "trained_s", "waited_s")
"""Facts that count up over an attempt, see MetricsLog."""


@contextmanager
def beating(every_s: float = EVERY_S, status: Callable[[], JobStatus] = STATUS.snapshot) -> Iterator[None]:
    """Tell a machine how the job gets on, within the block; a person sees it by the bars."""
    over = threading.Event()
    if events.is_json():
        threading.Thread(target=_beat, args=(over, every_s, status), name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _beat(over: threading.Event, every_s: float, status: Callable[[], JobStatus]) -> None:
    before, cpu_s, at = status(), time.process_time(), time.monotonic()
    while not over.wait(every_s):
        now, cpu_now_s, at_now = status(), time.process_time(), time.monotonic()
        cpu_use = (cpu_now_s - cpu_s) / ((at_now - at) * cpu.available())
        said = {**paces(before, now), **_device(now.device or "cpu", cpu_use), "cpu_use": round(cpu_use, 3)}
        events.emit("heartbeat", **said, still_s=round(watchdog.still_s(), 1))
        events.write_metrics(metric_lines.lines(said))
        before, cpu_s, at = now, cpu_now_s, at_now


def paces(before: JobStatus, now: JobStatus) -> dict[str, Any]:
    """Training between two looks: images per second of its wall time, which share of that went by in waiting for
    data, and the loss that was noted last. Empty where nothing was trained in between."""
    images, trained_s, waited_s = (getattr(now, name) - getattr(before, name) for name in _COUNTS)
    if trained_s <= 0:
        return {}
    loss = {} if now.train_loss is None else {"train_loss": now.train_loss}
    return {"images_per_s": round(images / trained_s, 1), "data_wait": round(waited_s / trained_s, 4), **loss}


def _device(name: str, cpu_use: float) -> dict[str, Any]:
    """How busy the device is, as far as that is known, and else why not."""
    if name == "cpu":
        return {"device_use": round(cpu_use, 3)}
    if not name.startswith("cuda"):
        return {"device_use": None, "unknown": f"nothing tells how busy {name} is"}
    import torch  # which training has imported by now

    device, memory = torch.device(name), {}
    try:
        free, total = torch.cuda.mem_get_info(device)
        memory = {"device_memory": round(1 - free / total, 3)}
        return {"device_use": torch.cuda.utilization(device) / 100, **memory}
    except Exception as error:  # without the package that asks the driver, or one that refuses it
        return {"device_use": None, **memory, "unknown": f"how busy {name} is: {' '.join(str(error).split())[:200]}"}
