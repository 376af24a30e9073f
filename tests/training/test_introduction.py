"""What is said before training of settings that have no effect."""

import pytest

from inat_job.configuration import configure
from inat_job.recipes import RECIPES
from inat_job.training.introduction import warn_of_unused_augmentation


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"train.augment": "false"}, []),
        ({"train.augment": "false", "run.preset": "quick"}, []),
        ({"train.augment": "false", "train.erase": "0"}, []),
        (
            {"train.augment": "false", "train.mixup": "0.2", "train.rotation": "10"},
            ["--mixup is 0.2", "--rotation is 10"],
        ),
        ({"train.augment": "true", "train.mixup": "0.2"}, []),
    ],
)
@pytest.mark.parametrize("part", RECIPES)
def test_augmentation_given_with_no_augment_is_warned_of(
    part: str, flags: dict[str, str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_unused_augmentation(configure(part, flags, [], None).settings)
    out = capsys.readouterr().out
    assert out.count("does nothing without augmentation") == len(told)
    assert all(each in out for each in told)
