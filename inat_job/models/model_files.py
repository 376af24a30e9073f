"""The files of an exported model, and its description, read and checked without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inat_job.errors import BadDataError, UsageError
from inat_job.options import options_of
from inat_job.settings import BackboneSettings, DataSettings, FiveBlockSettings
from inat_job.storage.disk import parse_json, sha256_of

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
EXPORTS = {"onnx": "model.onnx", "pt2": "model.pt2"}
"""By format of `--export`, the file."""
FORMAT_VERSION = 1

_TEMPERATURES = (0.01, 100.0)
"""Fitted ones are 0.05 to 20; beyond these, probabilities are those of a guess, or 0 and 1."""
_MEANS, _DEVIATIONS = (0.0, 255.0), (0.001, 255.0)
"""Of pixels in 0..255."""


def read_description(path: Path) -> dict[str, Any]:
    """The content of a model.json. Raises BadDataError."""
    try:
        description = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadDataError(f"{path} cannot be read as a model's description ({error}): export it again.") from None
    return _of_this_format(description, path)


def check_description(value: Any, shown: object) -> None:
    """Raise BadDataError, saying what is wrong, unless the content of a model.json describes a network and its input.

    Weights cannot be compared with it here; an architecture that no weights fit is noticed when they are loaded.
    """
    description = _of_this_format(value, shown)
    try:
        architecture = _object(description, "architecture")
        _check_classes(description.get("classes"), architecture.get("num_classes"))
        _check_input(_object(description, "preprocessing"), architecture)
        if "normalisation" in description:  # models of earlier versions have it in their weights
            values = _object(description, "normalisation")
            _check_channels("mean", values.get("mean"), _MEANS)
            _check_channels("std", values.get("std"), _DEVIATIONS)
    except (ValueError, UsageError) as fault:
        raise _damaged(shown, str(fault).rstrip(".")) from None
    temperature_in(description, shown)


def temperature_in(description: Mapping[str, Any], shown: object) -> float:
    """What logits are divided by; 1.0 where the description does not say. Raises BadDataError."""
    temperature = description.get("temperature")
    if temperature is None:
        return 1.0
    if not _is_number(temperature, _TEMPERATURES):
        raise _damaged(shown, f"temperature is {temperature!r}, and must be {_range(_TEMPERATURES)}")
    return float(temperature)


def check_digest(path: Path, expected: object) -> None:
    """Raise BadDataError unless a file has the SHA-256 of its description. Raises OSError."""
    if (digest := sha256_of(path)) != expected:
        raise BadDataError(f"{path} has the sha256 {digest}, not the one in {DESCRIPTION}: export it again.")


def _of_this_format(value: Any, shown: object) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
        raise BadDataError(f"{shown} does not have format version {FORMAT_VERSION}: export it again with this version.")
    return value


def _damaged(shown: object, fault: str) -> BadDataError:
    return BadDataError(f"{shown} is damaged: {fault}: export it again.")


def _object(description: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(value := description.get(name), dict):
        raise ValueError(f"{name} must be an object")
    return value


def _check_classes(classes: Any, outputs: Any) -> None:
    if type(outputs) is not int:
        raise ValueError(f"architecture.num_classes is {outputs!r}, and must be a whole number")
    named = isinstance(classes, list) and all(isinstance(name, str) and name for name in classes)
    if not named or len(classes) != outputs or len({*classes}) != outputs or not outputs:
        raise ValueError(f"classes must be a list of {outputs} different names, as many as the network's outputs")


def _check_input(preprocessing: Mapping[str, Any], architecture: Mapping[str, Any]) -> None:
    """The size is that of --test-size, which is --image-size or larger, where the network takes other sizes."""
    options = options_of(DataSettings)
    least, most = int(options["image_size"][0].minimum), int(options["image_size"][0].maximum)
    trained, size = architecture.get("image_size"), preprocessing.get("image_size")
    if type(trained) is not int or not least <= trained <= most:
        raise ValueError(f"architecture.image_size is {trained!r}, and must be {_range((least, most))}")
    if type(size) is not int or not trained <= size <= most:
        raise ValueError(f"preprocessing.image_size is {size!r}, and must be {_range((trained, most))}")
    if (fixed := _takes_one_size(architecture)) and size != trained:
        raise ValueError(f"preprocessing.image_size is {size}, and with {fixed} the network takes only {trained}")
    crops = (options["eval_crop"][0].minimum, options["eval_crop"][0].maximum)
    if not _is_number(crop := preprocessing.get("eval_crop"), crops):
        raise ValueError(f"preprocessing.eval_crop is {crop!r}, and must be {_range(crops)}")


def _takes_one_size(architecture: Mapping[str, Any]) -> str:
    """What fixes the size of the network's input, if anything does. Raises UsageError for values that none has."""
    if "name" in architecture:
        return BackboneSettings(backbone=str(architecture["name"])).takes_one_size
    return FiveBlockSettings(pooling=str(architecture.get("pooling"))).takes_one_size


def _check_channels(name: str, values: Any, limits: tuple[float, float]) -> None:
    if not isinstance(values, list) or len(values) != 3 or not all(_is_number(each, limits) for each in values):
        raise ValueError(f"normalisation.{name} must be three numbers {_range(limits)}, one for each channel")


def _is_number(value: Any, limits: tuple[float, float]) -> bool:
    """Whether a value is a number within limits, which NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and limits[0] <= value <= limits[1]


def _range(limits: tuple[float, float]) -> str:
    return f"from {limits[0]:g} to {limits[1]:g}"
