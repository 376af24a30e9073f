"""Batches out of the cache, an epoch of them, against a plain copy of as many bytes; and the evaluation's rate."""

import torch
from lightning import Trainer

from inat_job.bench.measured import EPOCH, PICTURES, Measured
from inat_job.bench.timing import by_turns, rates
from inat_job.data.module import Pictures
from inat_job.evaluation.predictions import predict
from inat_job.models.classifier import Classifier


def assembly(pictures: Pictures, runs: int) -> list[Measured]:
    """An epoch of training batches that nobody works on."""
    batches = pictures.train_batches
    sample = next(iter(batches))[0]
    target = torch.empty_like(sample)

    def copies() -> None:
        for _ in range(len(batches)):
            target.copy_(sample)

    def epoch() -> None:
        batches.go_to(0, 0)
        for _ in batches:
            pass

    took = by_turns({"epoch": epoch, "copy": copies}, runs)
    batches.go_to(0, 0)
    count = len(batches) * pictures.slice_size
    limit = rates(count, took["copy"])
    return [Measured("batch assembly", PICTURES, rates(count, took["epoch"]), "memory copy", limit, role=EPOCH)]


def evaluation(trainer: Trainer, classifier: Classifier, pictures: Pictures, runs: int) -> list[Measured]:
    """The test as the job does it, against the forward passes alone."""
    batches, device = pictures.batches(pictures.test_rows), trainer.strategy.root_device
    batch = trainer.strategy.batch_to_device(next(iter(batches)), device)
    count = len(batch.labels)

    def forwards() -> None:
        classifier.to(device).eval()
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            for _ in range(max(1, round(len(pictures.test_rows) / count))):
                classifier(batch)

    took = by_turns({"test": lambda: predict(trainer, classifier, batches), "forward": forwards}, runs, least_s=0)
    limit = rates(max(1, round(len(pictures.test_rows) / count)) * count, took["forward"])
    return [Measured("test", PICTURES, rates(len(pictures.test_rows), took["test"]), "forward alone", limit)]
