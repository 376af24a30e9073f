"""inat-job: train, test and report an image classifier as one batch job that survives its machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inat_job.inference.image_model import ClassProbability, ImageModel, Prediction, load_model

__version__ = "0.1.0"
__all__ = ["ClassProbability", "ImageModel", "Prediction", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """The library, imported at its first use: the command line starts without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("inat_job.inference.image_model"), name)
