"""This process's part in a run, before any work: which run, which rank, whether it is finished, and its lease."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from inat_job import events
from inat_job.distributed.ranks import Rank
from inat_job.run import run_state
from inat_job.run.run_state import CONFIG, LeasedRun, RunState, decide_run_state, delete_run, lease_run, run_config
from inat_job.run.timing import Clock
from inat_job.run.trial_link import TrialLink
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Job:
    """What is known when a rank starts; training/context.py adds the images, the network's arithmetic and the ranks."""

    settings: Settings
    folder: RunFolder
    rank: Rank
    clock: Clock
    stop: StopFlag
    trial: TrialLink | None = None
    """Set in a trial of a sweep, which never sees the test images."""
    tracked_as: str | None = None
    """Its name in the tracker, if that is not its id."""

    def is_finished(self) -> bool:
        """Whether there is nothing to do, see `state`."""
        return self.state() is RunState.FINISHED

    def state(self) -> RunState:
        """What the run's folder is to this rank.

        Rank 0, which starts runs, raises for a folder that it may not continue. The others only tell a finished run.
        """
        if self.rank.rank:
            finished = not self.settings.run.force and run_state.is_finished(self.folder, self.settings)
            return RunState.FINISHED if finished else RunState.RESUME
        state = decide_run_state(self.folder, self.settings)[0]
        if state is RunState.FINISHED:
            report = f"{self.folder.uri}/report.json"
            events.emit("done", message=f"Already finished; there is nothing to do: see {report}.", report=report)
        return state

    @contextmanager
    def lease(self) -> Iterator[LeasedRun | None]:
        """The run with its lease, on rank 0; None on the other ranks, which write nothing and need none."""
        if self.rank.rank:
            yield None
            return
        with lease_run(self.folder, self.settings.run.lease_seconds, self.stop) as leased:
            yield leased

    def take_up(self, leased: LeasedRun) -> LeasedRun:
        """Start the run, or continue it: with the config.json that its folder holds from now on."""
        folder = leased.folder
        if self.settings.run.force:
            delete_run(folder, keep=leased.lease.key)
            leased.lease.forget_earlier()
        state, config = decide_run_state(folder, self.settings)
        if config is None:
            config = self._start()
        elif not folder.has_local(CONFIG, config, "id"):
            folder.discard_local()  # the local files are of a run that was deleted since
            folder.write_json(CONFIG, config)  # so that the next attempt here sees that they are this run's
        events.emit("run", run=folder.uri, state=state.value)
        return replace(leased, config=config)

    def _start(self) -> dict[str, Any]:
        """Write a new run's config.json, which also shows early whether its folder is writable."""
        self.folder.discard_local()
        config = run_config(self.settings, {}, command="train") | {
            "id": secrets.token_hex(8),
            "started": self.clock.started_at(),
        }
        self.folder.write_json(CONFIG, config)
        self.folder.publish(CONFIG)
        return config
