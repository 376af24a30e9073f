"""Lightning's Trainer as this job uses it: no logger, no checkpoints of its own, no progress bars, and our errors."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from inat_job.checkpoints.training_state import InMemoryCheckpointIO
from inat_job.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from inat_job.errors import ConflictError, JobError, last_line
from inat_job.host import device_faults
from inat_job.settings import TrainSettings
from inat_job.training.execution import Execution
from inat_job.training.execution_callback import ExecutionCallback
from inat_job.training.nondeterminism import NondeterministicLayer


def make_trainer(
    execution: Execution, train: TrainSettings, callbacks: Sequence[Callback], group: ProcessGroup = SINGLE_PROCESS
) -> Trainer:
    """A trainer that computes as `execution` says, on all ranks of a group whose collectives are initialised."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    nondeterminism = [NondeterministicLayer()] if execution.deterministic else []
    trainer = Trainer(
        accelerator=execution.accelerator,
        devices=[torch.cuda.current_device()] if execution.accelerator == "cuda" else 1,
        num_nodes=group.size,
        strategy=_ddp() if group.size > 1 else "auto",
        sync_batchnorm=group.size > 1 and train.sync_batch_norm,
        precision=execution.lightning_precision,  # type: ignore[arg-type]
        max_epochs=train.epochs,
        limit_val_batches=0 if train.final else 1.0,
        accumulate_grad_batches=train.accumulate,
        callbacks=[*callbacks, ExecutionCallback(execution), _LostDevice(), *nondeterminism],
        plugins=[InMemoryCheckpointIO(), _RankEnvironment(group)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    # Lightning's SIGTERM handler broadcasts to the other ranks, whatever collective they are in. Ours only sets a flag.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    # This asks all ranks at each step whether one was stopped, and waits for the device: the checkpoint callback asks.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


@contextmanager
def fit_errors(trainer: Trainer, resume_from: Path | None, group: ProcessGroup = SINGLE_PROCESS) -> Iterator[None]:
    """What `trainer.fit` raises in the block, as our errors.

    Preempted, TransientError for a lost rank, ConflictError for a loss that is not finite or a checkpoint of another
    network, BadDataError for a file that is no checkpoint, and what `device_errors` raises.
    """
    with device_faults.device_errors(), _restore_errors(trainer, resume_from), group.lost_rank_errors():
        yield


class _RankEnvironment(LightningEnvironment):
    """Tells Lightning that each rank is a machine with one device, its own: whether or not it sees those of others."""

    creates_processes_externally = True

    def __init__(self, group: ProcessGroup) -> None:
        super().__init__()
        self._rank = group.rank.rank

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self._rank


class _LostDevice(Callback):
    """After the loss of a device, keeps Lightning from moving the network off it."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if device_faults.is_device_lost(exception):
            raise exception


def _ddp() -> DDPStrategy:
    """DDP that averages gradients in the same buckets at every step.

    Without the search for unused parameters, torch reorders the buckets after the first step; the sums then come in
    another order, and a resume would not be bit-equal. It is needed anyway where stages are unfrozen in mid-run.
    """
    return DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)


@contextmanager
def _restore_errors(trainer: Trainer, path: Path | None) -> Iterator[None]:
    """Until training has started, blame the checkpoint for whatever goes wrong."""
    started = _TrainingStarted()
    trainer.callbacks.append(started)  # type: ignore[attr-defined]  # a list, though its type does not say so
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        if path is None or started.yes or device_faults.fault_of(error):
            raise
        raise ConflictError(
            f"{path} cannot be restored into this run ({last_line(error)}): delete it with its manifest, or change "
            "--run-id."
        ) from error


class _TrainingStarted(Callback):
    yes = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.yes = True
