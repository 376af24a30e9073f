"""timm's way to train, for comparison: its model, loader and optimiser in the order of its train.py, as a program.

    python tests/gpu/timm_training.py FOLDER IMAGE_SIZE BATCH_SIZE EPOCHS DEVICE

FOLDER holds a folder of images for each class. timm's wheel does not contain train.py, so its training epoch
(train_one_epoch with --amp --amp-dtype bfloat16 --channels-last --opt adamw, timm 1.0) is written out here. Prints
the images per second of each epoch but the first, as JSON.
"""

import json
import os
import sys
import time
from typing import Any

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2

PRINT_EVERY = 50
"""Steps between two times that the loss is read, train.py's --log-interval."""


def main(folder: str, image_size: int, batch_size: int, epochs: int, device: torch.device) -> None:
    dataset = create_dataset("", root=folder, split="train", is_training=True, batch_size=batch_size)
    model = timm.create_model("resnet50", pretrained=False, num_classes=len(os.listdir(folder)))  # noqa: PTH208
    model.to(device=device, memory_format=torch.channels_last)
    config = resolve_data_config({}, model=model)
    loader = create_loader(
        dataset,
        input_size=(3, image_size, image_size),
        batch_size=batch_size,
        is_training=True,
        no_aug=False,
        scale=(0.35, 1.0),
        hflip=0.5,
        color_jitter=0.2,
        interpolation="random",
        mean=config["mean"],
        std=config["std"],
        num_workers=len(os.sched_getaffinity(0)),
        pin_memory=device.type == "cuda",
        device=device,
        use_prefetcher=True,
        persistent_workers=True,
    )
    optimiser = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.02)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1).to(device)
    rates = [train_one_epoch(model, loader, optimiser, criterion, device) for _ in range(epochs)]
    print(json.dumps(rates[1:]))


def train_one_epoch(model: Any, loader: Any, optimiser: Any, criterion: Any, device: torch.device) -> float:
    """Images per second, with the wait for data."""
    model.train()
    count, began = 0, now(device)
    for number, (images, labels) in enumerate(loader):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = criterion(model(images.contiguous(memory_format=torch.channels_last)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        count += len(labels)
        if number % PRINT_EVERY == 0:
            loss.item()
    return count / (now(device) - began)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), torch.device(sys.argv[5]))  # type: ignore[arg-type]
