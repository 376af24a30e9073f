"""ONNX and .pt2 files of each family of networks against eager mode: logits, accuracy, file size, time.

    python tests/measure/exported_networks.py [--images 200] [--networks five_block,resnet50,...]

Weights are random, and batch norm's statistics are those of the images, so that logits differ from image to image. The
images are generated, and their labels are the network's own answers to other views of them, so that the accuracy is
neither 0 nor 1. All figures are of the CPU in float32. Prints a Markdown table.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from inat_job.data.augment import centre_maps, cut_views  # noqa: E402
from inat_job.ingest.decode import decode  # noqa: E402
from inat_job.models.backbones import build_backbone  # noqa: E402
from inat_job.models.five_block import FiveBlockSpec, build_five_block  # noqa: E402
from inat_job.models.network_exports import compare, export_verified  # noqa: E402
from tests.harness.made_images import encoded  # noqa: E402

CLASSES = 10
SIZES = {
    "five_block": 64,
    "resnet50": 64,
    "densenet121": 64,
    "efficientnet_v2_s": 64,
    "vit_b_16": 224,
    "convnext_tiny": 64,
}


def network_of(name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    if name == "five_block":
        filters = (32, 64, 128, 256, 512)
        spec = FiveBlockSpec(filters, (3,) * 5, "relu", 256, "gap", True, 0.2, size, CLASSES)
        return build_five_block(spec).network
    return build_backbone(name, CLASSES, size).network


def views_of(images: int, size: int, crop: float) -> Tensor:
    decoded = [decode(encoded(seed, (80 + seed % 40, 70)), size) for seed in range(images)]
    pixels = torch.from_numpy(np.stack([square for square, _ in decoded])).permute(0, 3, 1, 2)
    return cut_views(pixels, centre_maps(torch.tensor([each for _, each in decoded]), crop), None, size)


@torch.no_grad()
def settled(network: nn.Module, views: Tensor) -> nn.Module:
    """The network in eval mode, with batch norm's statistics, and logits of mean 0 and deviation 1."""
    network.train()
    for each in network.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.reset_running_stats()
            each.momentum = None  # the plain mean over all batches, not one that begins at 0 and 1
    for batch in views.split(50):
        network(batch)
    network.eval()
    for each in reversed([*network.modules()]):
        if isinstance(each, nn.Linear):
            if not each.weight.any():  # a vision transformer's head begins at 0
                nn.init.normal_(each.weight, std=0.02)
            each.bias -= network(views[:50]).mean(dim=0)
            scale = 1 / network(views[:50]).std()
            each.weight *= scale
            each.bias *= scale
            break
    return network


def row(name: str, images: int) -> str:
    size = SIZES[name]
    views, others = views_of(images, size, 0.9), views_of(images, size, 0.6)
    network = settled(network_of(name, size), views)
    with torch.no_grad():
        labels = torch.cat([network(batch).argmax(dim=1) for batch in others.split(25)])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return zip(views.split(25), labels.split(25), strict=True)

    _, largest, eager = compare(lambda batch: network(torch.from_numpy(batch)).numpy(), network, batches())
    cells = [name, f"{size} px", f"{largest:.3g}", f"{eager:.4f}"]
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("onnx", "pt2"):
            started = time.perf_counter()
            found = export_verified(kind, network, size, Path(folder), batches)
            assert found["accuracy"] == eager, (name, kind)
            seconds = time.perf_counter() - started
            cells += [f"{found['max_abs_diff']:.1e}", f"{found['bytes'] / 1e6:.1f} MB", f"{seconds:.0f} s"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--networks", default=",".join(SIZES))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    columns = ("network", "input", "largest logit", "accuracy of all three", "ONNX differs by", "size", "time")
    columns += (".pt2 differs by", "size", "time")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in asked.networks.split(","):
        print(row(name, asked.images), flush=True)


if __name__ == "__main__":
    main()
