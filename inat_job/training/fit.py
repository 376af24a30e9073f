"""Lightning's trainer as this job uses it: no logger, no checkpoints of its own, no bars, and our errors."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from inat_job.data.module import Pictures
from inat_job.errors import ConflictError, Preempted
from inat_job.models.classifier import Classifier
from inat_job.settings import TrainSettings
from inat_job.training.execution import Execution


def make_trainer(execution: Execution, train: TrainSettings, callbacks: Sequence[Callback]) -> Trainer:
    """A trainer that runs as `execution` says; pictures, recipe and checkpoints come with the callbacks."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return Trainer(
        accelerator=execution.accelerator,
        devices=1,
        precision=execution.lightning_precision,  # type: ignore[arg-type]
        max_epochs=train.epochs,
        accumulate_grad_batches=train.accumulate,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def fit(trainer: Trainer, classifier: Classifier, pictures: Pictures, resume_from: Path | None) -> None:
    """Train to the end. Raises Preempted, and ConflictError for too little memory or a loss that is not finite."""
    with memory_errors():
        try:
            trainer.fit(
                classifier, datamodule=pictures, ckpt_path=str(resume_from) if resume_from else None, weights_only=True
            )
        except SIGTERMException:  # the signal came before our handler was back in place
            raise Preempted("Preempted before the first step: run the same command again to go on.") from None


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn the ways of running out of memory into a sentence that says what to lower."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_little_memory() from error
    except RuntimeError as error:
        if "allocate memory" in str(error):
            raise _too_little_memory() from error
        raise


def _too_little_memory() -> ConflictError:
    return ConflictError("Out of memory at these settings: lower --batch-size or --image-size, or raise --accumulate.")
