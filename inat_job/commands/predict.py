"""`predict`: classify images with an exported model. torch is imported only for `--runtime torch`."""

import csv
import dataclasses
import io
import itertools
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_job import events, signals
from inat_job.address import as_utf8
from inat_job.command_options import PredictOptions
from inat_job.errors import BadDataError, ConflictError, UsageError
from inat_job.event_text import printable
from inat_job.host import cpu
from inat_job.inference.image_model import ImageModel, Prediction, Square, load_model
from inat_job.inference.image_source import ImageSource, find_images, unreadable_path
from inat_job.ingest.container import Load
from inat_job.run.run_state import storage_options
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage import StorageOptions
from inat_job.storage.disk import disk_errors, refuse_foreign, write_named
from inat_job.telemetry import heartbeat

_NAME_WIDTH = 60
"""Letters of a table's first column at most; a longer name moves the rest of its row."""

_CSV_START = "image,class_1,"


@dataclass(frozen=True)
class Row:
    """The prediction of an image, or the reason why there is none."""

    image: str
    prediction: Prediction | None
    error: str = ""


def run(settings: Settings, model: str, paths: Sequence[str], request: PredictOptions, stop: StopFlag) -> None:
    """Print a row for each image, and then raise BadDataError if one could not be read.

    Raises ConflictError if --csv would replace another file, what the model and the stores raise, and Preempted.
    """
    if request.runtime == "onnx" and settings.train.accelerator not in ("auto", "cpu"):
        raise UsageError(
            f"--accelerator is {settings.train.accelerator}, and --runtime onnx runs on the CPU: leave one out."
        )
    if request.csv:
        refuse_foreign(Path(request.csv), "--csv", "table of predict", lambda start: start.startswith(_CSV_START))
    options, cache_dir = storage_options(settings.storage), Path(settings.data.cache_dir)
    with heartbeat.emit_heartbeats():
        events.phase("start")
        loaded = load_model(
            model,
            runtime=request.runtime,
            accelerator=settings.train.accelerator,
            cache_dir=cache_dir,
            options=options,
            stop=stop,
            output=settings.run.output,
        )
        if request.top_k > len(loaded.classes):
            events.warn(f"--top-k is {request.top_k}, and the model has {len(loaded.classes)} classes: all are shown.")
            request = dataclasses.replace(request, top_k=len(loaded.classes))
        sources = _find_all(paths, cache_dir, options, stop)
        rows = _predicted(loaded, sources, settings.train.batch_size, stop)
        total = sum(len(each.names) for each in sources)
        _finish(_write(rows, sources, loaded, request, total), total)


def _find_all(paths: Sequence[str], cache_dir: Path, options: StorageOptions, stop: StopFlag) -> list[ImageSource]:
    """The images at each path; a path without any has the reason in their place."""
    sources = []
    for path in paths:
        try:
            sources.append(find_images(path, cache_dir, options, stop))
        except BadDataError as error:
            sources.append(unreadable_path(path, error))
    return sources


def _predicted(model: ImageModel, sources: Sequence[ImageSource], batch_size: int, stop: StopFlag) -> Iterator[Row]:
    """The rows of all images, batch by batch; the next batch is decoded meanwhile."""
    loads = itertools.chain.from_iterable(source.load() for source in sources)
    waiting: deque[list[tuple[str, Future[Square | str]]]] = deque()
    with ThreadPoolExecutor(cpu.available_cpus()) as pool:
        while True:
            signals.check(stop, "predicting")
            batch = [(name, pool.submit(_decode, model, load)) for name, load in itertools.islice(loads, batch_size)]
            waiting.append(batch)
            if len(waiting) > 1:
                yield from _predict_batch(model, waiting.popleft())
            if not batch:
                return


def _decode(model: ImageModel, load: Load) -> Square | str:
    """The image, or the reason why it cannot be read."""
    try:
        return model.decode(load())
    except BadDataError as reason:
        return str(reason)
    except MemoryError as error:
        raise ConflictError("Too little memory to decode images: lower --batch-size, or give the job more.") from error


def _predict_batch(model: ImageModel, batch: Sequence[tuple[str, "Future[Square | str]"]]) -> Iterator[Row]:
    decoded = [(name, future.result()) for name, future in batch]
    squares = [each for _, each in decoded if not isinstance(each, str)]
    found = iter(model.predictions(squares) if squares else [])
    for name, each in decoded:
        yield Row(name, None, each) if isinstance(each, str) else Row(name, next(found))


def _write(
    rows: Iterator[Row], sources: Sequence[ImageSource], model: ImageModel, request: PredictOptions, total: int
) -> list[Row]:
    """Print each row, and write them to the file of `--csv`; returns those without a prediction."""
    names = (len(source.shown(name)) for source in sources for name in source.names)
    widths = min(_NAME_WIDTH, max(names, default=0)), max(map(len, model.classes))
    # On a terminal the rows show the progress.
    show = None if sys.stdout.isatty() else events.progress("predict")
    broken = []
    with _csv_file(Path(request.csv), request.top_k) if request.csv else nullcontext() as add:
        for done, row in enumerate(rows, 1):
            _print(row, request, widths)
            if add:
                add(row)
            if row.prediction is None:
                broken.append(row)
            if show:
                show(done, total)
    events.close()
    events.emit("predicted", images=total - len(broken), broken=len(broken))
    return broken


def _print(row: Row, request: PredictOptions, widths: tuple[int, int]) -> None:
    if request.json:
        print(json.dumps(_fields(row, request.top_k)), flush=True)
    elif events.is_json():
        events.emit("prediction", **_fields(row, request.top_k))
    else:
        print(f"{_shown(row.image):<{widths[0]}}  {_answer(row, request.top_k, widths[1])}", flush=True)


def _answer(row: Row, top_k: int, width: int) -> str:
    if row.prediction is None:
        return f"not read: {printable(row.error)}"
    first = row.prediction.classes[:top_k]
    return "  ".join(f"{printable(each.name):<{width}} {each.probability:.4f}" for each in first)


def _fields(row: Row, top_k: int) -> dict[str, Any]:
    if row.prediction is None:
        return {"image": row.image, "error": row.error}
    top = [{"class": each.name, "probability": each.probability} for each in row.prediction.classes[:top_k]]
    return {"image": row.image, **top[0], "top": top}


def _shown(name: str) -> str:
    """A name without what could steer a terminal, and that is UTF-8."""
    return printable(as_utf8(name))


@contextmanager
def _csv_file(path: Path, top_k: int) -> Iterator[Callable[[Row], None]]:
    """A function that adds a row to the file of `--csv`, which is written after the block."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    columns = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("class", "probability")]
    writer.writerow(["image", *columns, "error"])

    def add(row: Row) -> None:
        top = row.prediction.classes[:top_k] if row.prediction else ()
        values = [value for each in top for value in (each.name, f"{each.probability:.9g}")]
        writer.writerow([row.image, *values, *[""] * (2 * top_k - len(values)), row.error])

    with disk_errors(path):
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
    yield add
    with disk_errors(path):
        write_named(path, text.getvalue().encode(errors="surrogateescape"))


def _finish(broken: Sequence[Row], total: int) -> None:
    if broken:
        first = broken[0]
        reason = first.error.rstrip(".")
        raise BadDataError(
            f"{len(broken)} of {total} images could not be read, first {_shown(first.image)} ({reason}): leave "
            "them out, or replace them."
        )
