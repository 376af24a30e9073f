"""The two parts as complete configurations: the defaults of every setting."""

from collections.abc import Callable

from inat_job.settings import BackboneSettings, DataSettings, FiveBlockSettings, Settings, TrainSettings


def part_a() -> Settings:
    """A five-block CNN from scratch: `python entrypoint.py parta`."""
    return Settings(part="a", model=FiveBlockSettings(), train=TrainSettings(), data=DataSettings(eval_crop=1.0))


def part_b() -> Settings:
    """A fine-tuned ImageNet network, ResNet-50 by default: `python entrypoint.py partb`."""
    recipe = TrainSettings(epochs=10, lr=3e-3, weight_decay=0.02, colour=0.2)
    return Settings(part="b", model=BackboneSettings(), train=recipe, data=DataSettings(eval_crop=0.875))


RECIPES: dict[str, Callable[[], Settings]] = {"a": part_a, "b": part_b}
