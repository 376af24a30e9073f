"""inat-job: train, test and report an image classifier as one batch job that survives its machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inat_job.inference.image_model import ClassProbability, ImageModel, Prediction, load_model
    from inat_job.library import predict, train

__version__ = "0.1.0"
__all__ = ["ClassProbability", "ImageModel", "Prediction", "__version__", "load_model", "predict", "train"]


def __getattr__(name: str) -> Any:
    """The library, imported at its first use: the command line starts without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = "library" if name in ("predict", "train") else "inference.image_model"
    return getattr(import_module(f"inat_job.{module}"), name)
