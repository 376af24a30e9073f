"""The two parts as complete configurations: the defaults of every setting, and the presets.

The docstring of a preset holds its command, the accuracy to expect on iNaturalist-12K (mean, range and number of seeds)
and the time it takes. A preset is only a set of values: any other option on the command line overrides them.
"""

import dataclasses
from collections.abc import Callable, Mapping

from inat_job.job_settings import STANDARD
from inat_job.settings import BackboneSettings, DataSettings, FiveBlockSettings, Settings, TrainSettings

Recipe = Callable[[], Settings]


FROM_SCRATCH = TrainSettings(
    min_images_seen=96_000,
    optimiser="muon",
    lr=3e-3,
    weight_decay=0.1,
    ema=0.998,
    flip="alternating",
    crop_scale=0.25,
    erase=0.25,
    trivial_augment=0.7,
)
"""How Part A is trained; docs/recipes.md has what they bring, alone or together.

With Muon, 20 epochs are worth more than 30 with AdamW, and 8,000 images are soon learnt by heart: so they are changed
more, by smaller crops, erased boxes and TrivialAugment.
"""

FINE_TUNED = TrainSettings(epochs=10, min_images_seen=9_600, lr=3e-3, weight_decay=0.02, colour=0.2)
"""How Part B is trained."""


_CROP_A = 0.85
"""A centre crop shows things larger than a whole image, as training does, whose random crops keep 0.77 of a square's
side on average. docs/recipes.md has the losses with other crops."""

_CROP_B = 0.9655
"""That of the default weights, 224 of 232 pixels; for others, configuration.py puts theirs in its place."""


def part_a() -> Settings:
    """A five-block CNN from scratch.

    Command: `python entrypoint.py parta`
    Expected accuracy: not measured. docs/results.md has other data sets.
    Time: not measured.
    """
    return Settings("a", FiveBlockSettings(), FROM_SCRATCH, DataSettings(eval_crop=_CROP_A))


def part_b() -> Settings:
    """A fine-tuned ImageNet network, ResNet-50 by default.

    Command: `python entrypoint.py partb`
    Expected accuracy: not measured. docs/results.md has other data sets.
    Time: not measured.
    """
    return Settings("b", BackboneSettings(), FINE_TUNED, DataSettings(eval_crop=_CROP_B))


def quick_a() -> Settings:
    """Part A in about five minutes on a laptop, without the download.

    A step at 64 px costs a twelfth of one at 224 px: 15 epochs of 8,000 images at 600 images a second take 200 s. In so
    few epochs strong distortion is more than the network can learn: crops keep at least half of an image, and colours
    change less.

    Command: `python entrypoint.py parta --preset quick`
    Expected accuracy: not measured.
    Time: not measured.
    """
    recipe = dataclasses.replace(
        FROM_SCRATCH, epochs=15, min_images_seen=48_000, crop_scale=0.5, colour=0.2, trivial_augment=0.0
    )
    return Settings("a", FiveBlockSettings(), recipe, DataSettings(image_size=64, eval_crop=_CROP_A))


def best_a() -> Settings:
    """Part A for a GPU: more filters where maps are large, and a long run, for which it needs CutMix and mixup.

    The filters take 2.3 times the multiply-adds of 32-64-128-256-512, with as many parameters. On ten classes of 64 px
    photos with seed 0, they gain 1.5 points of validation accuracy; three times as many epochs, mixed so, gain 3.8 with
    the usual filters (docs/recipes.md).

    Command: `python entrypoint.py parta --preset best`
    Expected accuracy: not measured.
    Time: not measured.
    """
    model = FiveBlockSettings(filters=(64, 128, 192, 256, 384))
    recipe = dataclasses.replace(FROM_SCRATCH, epochs=90, min_images_seen=288_000, cutmix=1.0, mixup=0.2)
    return Settings("a", model, recipe, DataSettings(image_size=224, eval_crop=_CROP_A))


def quick_b() -> Settings:
    """Part B in about five minutes on a laptop, without the download: a head on features that are computed once.

    ResNet-50 at 128 px takes 1.3 billion multiply-adds, a third of those at 224 px. Without augmentation each image has
    one view, so the stem runs for 10,000 images, and for 4,000 in the last evaluation: at 100 billion a second, about
    what two cores reach, 190 s.

    Command: `python entrypoint.py partb --preset quick`
    Expected accuracy: not measured.
    Time: not measured.
    """
    recipe = dataclasses.replace(FINE_TUNED, augment=False)
    data = DataSettings(image_size=128, eval_crop=_CROP_B)
    return Settings("b", BackboneSettings(strategy="head"), recipe, data)


def best_b() -> Settings:
    """Part B for a GPU: all layers of ResNet-50 at 352 px.

    The best public result on iNaturalist-12K that a log shows, 90.9 %, has these weights and this size, 10 epochs and
    no augmentation; larger images are what the best ones share. With augmentation a run may be longer.

    Command: `python entrypoint.py partb --preset best`
    Expected accuracy: not measured.
    Time: not measured.
    """
    recipe = dataclasses.replace(FINE_TUNED, epochs=15, min_images_seen=14_400)
    data = DataSettings(image_size=352, eval_crop=_CROP_B)
    return Settings("b", BackboneSettings(strategy="full"), recipe, data)


PRESETS: Mapping[str, Mapping[str, Recipe]] = {
    "a": {"quick": quick_a, STANDARD: part_a, "best": best_a},
    "b": {"quick": quick_b, STANDARD: part_b, "best": best_b},
}
"""The presets of each part, by name."""

RECIPES: dict[str, Recipe] = {part: presets[STANDARD] for part, presets in PRESETS.items()}
"""The defaults of each part."""
