"""The first work of every command that needs images: download and decode them, or find them ready in the cache."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from inat_job import events
from inat_job.data import layout, splits
from inat_job.data.cache_index import Cache, CacheIndex
from inat_job.data.layout import Arrangement
from inat_job.event_text import counted
from inat_job.ingest import build_cache, data_source, label_file
from inat_job.run.run_state import storage_options
from inat_job.run.timing import Clock
from inat_job.settings import FOLDERS, DataSettings, Settings
from inat_job.signals import Stop, StopFlag
from inat_job.storage import StorageOptions


def prepare_images(settings: Settings, clock: Clock, stop: StopFlag, trains: bool = False) -> Cache:
    """The decoded images of `--data`. Raises what the source, the disk and the images raise, and Preempted.

    If the command `trains`, raises ConflictError, before the images are decoded, where they give no batch.

    A zip is decoded while it is downloaded: pull_s is the time until all of it is here, prepare_s what comes after.
    """
    data, cache_dir = settings.data, Path(settings.data.cache_dir)
    with ExitStack() as timed:

        def downloaded() -> None:
            timed.close()
            events.phase("prepare")
            timed.enter_context(clock.phase("prepare_s"))

        events.phase("pull")
        timed.enter_context(clock.phase("pull_s"))
        options = storage_options(settings.storage)
        source = data_source.find(data.uri, cache_dir, options, stop, arrangement(data, options, stop))
        if trains:
            source = replace(source, check_listed=partial(_check_batch_size, settings))
        cache = build_cache.prepare(source, cache_dir, data.eval_size, data.max_broken, stop, downloaded)
    _say_what_is_used(cache.index)
    return cache


def _say_what_is_used(index: CacheIndex) -> None:
    """Log what the data set has, and warn of what is left out or may be wrong with it."""
    events.emit("data", images=len(index.ids), classes=len(index.classes), digest=index.digest)
    if index.test_share is not None:
        events.emit("split", test_share=index.test_share, test=len(index.rows(layout.TEST)))
    for each in index.rejected:
        events.warn(f"{each['id']} is left out: {each['reason']}")
    if skipped := index.skipped:
        first = f"{skipped[0]['name']} ({skipped[0]['reason']})"
        files = counted(len(skipped), "file of the data set is", "files of the data set are")
        events.warn(f"{files} not used, first {first}")
    if blank := index.blank:
        images = counted(len(blank), "image has (nearly) one colour", "images have (nearly) one colour")
        events.warn(f"{images}, maybe because of damage", first=blank[0])
    for split, name, others in ((layout.TEST, "test", "train or val"), (layout.VALIDATION, "validation", "train")):
        if both := index.in_both_splits(split):
            images = counted(len(both), f"{name} image is", f"{name} images are")
            text = f"{images} also in {others}, so the {name} accuracy is too high"
            events.warn(text, first=both[0])


def arrangement(data: DataSettings, options: StorageOptions, stop: Stop) -> Arrangement:
    """What decides the classes and splits beside the folders. Raises what `label_file.read` raises."""
    return Arrangement(label_file.read(data.labels, options, stop) if data.labels != FOLDERS else None, data.test_share)


def _check_batch_size(settings: Settings, images: Sequence[layout.ImageFile]) -> None:
    train, data, own = settings.train, settings.data, layout.validation_count(images)
    counts = layout.training_counts(images, data.test_share)
    splits.check_batch_size(train.batch_size, splits.training_count(counts, train.final, data.val_share, own))
