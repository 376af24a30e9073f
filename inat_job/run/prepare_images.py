"""The first work of every command that needs images: download and decode them, or find them ready in the cache."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from inat_job import events
from inat_job.data import layout, splits
from inat_job.data.cache_index import Cache
from inat_job.ingest import build_cache, data_source
from inat_job.run.run_state import storage_options
from inat_job.run.timing import Clock
from inat_job.settings import Settings, TrainSettings
from inat_job.signals import StopFlag


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
        source = data_source.find(data.uri, cache_dir, storage_options(settings.storage), stop)
        if trains:
            source = replace(source, check_listed=partial(_check_batch_size, settings.train))
        cache = build_cache.prepare(source, cache_dir, data.image_size, data.max_broken, stop, downloaded)
    index = cache.index
    events.emit("data", images=len(index.ids), classes=len(index.classes), digest=index.digest)
    for each in index.rejected:
        events.warn(f"{each['id']} is left out: {each['reason']}")
    if skipped := index.skipped:
        first = f"{skipped[0]['name']} ({skipped[0]['reason']})"
        events.warn(f"{len(skipped)} files of the data set are not used, first {first}")
    if blank := index.blank:
        events.warn(f"{len(blank)} images have (nearly) one colour, maybe because they are broken", first=blank[0])
    if both := index.in_both_splits():
        events.warn(f"{len(both)} test images are also in train, so the test accuracy is too high", first=both[0])
    return cache


def _check_batch_size(train: TrainSettings, images: Sequence[layout.ImageFile]) -> None:
    splits.check_batch_size(train.batch_size, splits.training_count(layout.training_counts(images), train.final))
