"""The status of this process's job: one typed record, updated by the module that does the work.

Every JSON log line, the heartbeat, the lease and the last sentence of the job read it.
"""

import dataclasses
from dataclasses import dataclass


@dataclass
class JobStatus:
    """What is known so far; a field is None until something is known. Fields are set one by one, from any thread.

    `step` is the step that training is at, `stored_step` and `checkpoint` the last checkpoint in the store. `images`,
    `trained_s` and `waited_s` add up over one attempt: images trained on, seconds in training steps, and how many of
    these were spent waiting for data.
    """

    run: str | None = None
    run_id: str | None = None
    rank: int = 0
    phase: str | None = None
    device: str | None = None
    gpu: str | None = None
    """Number, name and UUID of this process's GPU, to name it when it can no longer be asked."""
    resident: bool = False
    """Whether the images are in the GPU's memory."""
    step: int | None = None
    steps_per_epoch: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    images: int = 0
    trained_s: float = 0.0
    waited_s: float = 0.0
    images_per_s: float | None = None
    train_loss: float | None = None
    val_accuracy: float | None = None
    stored_step: int | None = None
    checkpoint: str | None = None
    stopping: str | None = None
    """Why the job stops, once that has been reported."""
    outcome: str | None = None
    """The result in one sentence, once there is one."""

    def snapshot(self) -> "JobStatus":
        """A copy that no longer changes."""
        return dataclasses.replace(self)


STATUS = JobStatus()
"""The record of this process."""
