"""The network in torch, in float32 without TF32, as `test` runs it."""

import numpy as np
import torch

from inat_job.data.augment import centre_maps, cut_views
from inat_job.host.device_faults import device_errors
from inat_job.inference.model_folder import ModelFolder
from inat_job.inference.runtime import Sizes
from inat_job.ingest.decode import Squash, squash_with_torch
from inat_job.models.export import load_exported
from inat_job.training.execution import choose_accelerator, float32_math


class TorchRuntime:
    """model.safetensors on a device: auto, cpu, cuda or mps. Raises BadDataError, ConflictError."""

    def __init__(self, folder: ModelFolder, accelerator: str) -> None:
        self.squash: Squash = squash_with_torch
        self._crop, self._size = folder.eval_crop, folder.image_size
        network, _ = load_exported(folder.path)
        with device_errors(training=False):
            self._device = torch.device(choose_accelerator(accelerator))
            self._network = network.to(self._device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def logits(self, squares: np.ndarray, sizes: Sizes) -> np.ndarray:
        with device_errors(training=False), float32_math(tf32=False):
            pixels = torch.from_numpy(squares).permute(0, 3, 1, 2).to(self._device)
            maps = centre_maps(torch.tensor(sizes), self._crop).to(self._device)
            logits: np.ndarray = self._network(cut_views(pixels, maps, None, self._size)).cpu().numpy()
        return logits
