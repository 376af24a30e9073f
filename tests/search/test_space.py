"""Search spaces: every point of them is a valid run, and files that narrow or extend them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.configuration import changed, configure, options_by_key
from inat_job.errors import UsageError
from inat_job.recipes import PRESETS, RECIPES
from inat_job.search.space import SPACES, Axis, as_text, default_point, space_of, text_of, whole


def values(axis: Axis) -> st.SearchStrategy:
    if axis.choices:
        return st.sampled_from(axis.choices)
    if axis.integer:
        return st.integers(int(axis.low), int(axis.high))
    return st.floats(axis.low, axis.high)


@pytest.mark.parametrize("part", SPACES)
@given(data=st.data())
def test_every_point_is_a_valid_run(part: str, data: st.DataObject) -> None:
    drawn = {}
    for key, axis in SPACES[part].items():
        if axis.applies(drawn):
            drawn[key] = data.draw(values(axis), label=key)
    settings = configure(part, drawn, [], None, environment={}).settings
    of_trial = changed(configure(part, {}, [], None, environment={}).settings, drawn, "sweep")
    assert of_trial.fingerprint() == settings.fingerprint()


@pytest.mark.parametrize("part", SPACES)
def test_axes_are_settings_that_decide_the_result(part: str) -> None:
    known = options_by_key(RECIPES[part]())
    assert all(known[key][0].in_fingerprint for key in SPACES[part])


@pytest.mark.parametrize("part", SPACES)
def test_default_point_is_the_recipe(part: str) -> None:
    point = default_point(RECIPES[part](), SPACES[part])
    assert set(point) == {key for key, axis in SPACES[part].items() if axis.applies(point)}
    assert configure(part, point, [], None, environment={}).settings.fingerprint() == RECIPES[part]().fingerprint()


def test_default_point_leaves_out_what_the_recipe_does_not_set(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text("[data]\ntest_size = {choices = [224, 256]}\n[train]\nmixup = {choices = [0.0, 0.2]}\n")
    space = space_of(RECIPES["a"](), str(file))
    assert "data.test_size" in space
    point = default_point(RECIPES["a"](), space)
    assert "data.test_size" not in point
    assert point["train.mixup"] == 0.0


@pytest.mark.parametrize("part", SPACES)
@pytest.mark.parametrize("preset", ["quick", "best"])
def test_first_trial_is_the_preset(part: str, preset: str) -> None:
    made = configure(part, {"run.preset": preset}, [], None, environment={})
    space = space_of(made.settings, fixed=made.given)
    assert "train.lr" in space
    point = default_point(made.settings, space)
    assert changed(made.settings, point, "sweep").fingerprint() == PRESETS[part][preset]().fingerprint()


@pytest.mark.parametrize("part", SPACES)
def test_text_reads_back(part: str, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(as_text(SPACES[part]))
    assert space_of(RECIPES[part](), str(file)) == SPACES[part]


def test_file_narrows_extends_and_removes(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(
        "[train]\nlr = {low = 1e-3, high = 2e-3}\ncolour = false\nrotation = {low = 0.0, high = 30.0}\n"
        "[train.crop_scale]\nlow = 0.5\nhigh = 0.9\n"
    )
    space = space_of(RECIPES["a"](), str(file), fixed={"model.dense"})
    assert space["train.lr"] == Axis(low=1e-3, high=2e-3)
    assert space["train.rotation"] == Axis(low=0.0, high=30.0)
    assert space["train.crop_scale"].only_with == ("train.augment", (True,))
    assert not {"train.colour", "model.dense"} & set(space)


def test_setting_that_takes_fractions_is_drawn_with_fractions() -> None:
    """However its range is written: 0 to 1 would be two values otherwise, and the recipe's own 0.1 neither."""
    text = "train.weight_decay = {low = 0, high = 1}\ndata.eval_crop = {low = 0.5, high = 1}\n"
    text += "model.dense = {low = 8, high = 9}"
    space = space_of(RECIPES["a"](), text)
    assert space["train.weight_decay"] == Axis(low=0.0, high=1.0)
    assert space["data.eval_crop"] == Axis(low=0.5, high=1.0)
    assert space["model.dense"] == whole(8, 9)
    assert default_point(RECIPES["a"](), space)["train.weight_decay"] == RECIPES["a"]().train.weight_decay
    assert space_of(RECIPES["a"](), as_text(space)) == space


def test_text_is_as_good_as_a_file(tmp_path: Path) -> None:
    text = "train.lr = {low = 1e-3, high = 2e-3}\ntrain.colour = false"
    (tmp_path / "space.toml").write_text(text)
    assert space_of(RECIPES["a"](), text) == space_of(RECIPES["a"](), str(tmp_path / "space.toml"))
    for mistake, sentence in [("train.lr = {", "--space is not TOML"), ("train.lrr = 3", "--space: there is no")]:
        with pytest.raises(UsageError, match=sentence):
            space_of(RECIPES["a"](), mistake)


def test_settings_without_effect_are_not_searched(tmp_path: Path) -> None:
    plain = configure("a", {"train.augment": "false"}, [], None, environment={}).settings
    assert not {"train.crop_scale", "train.colour"} & set(space_of(plain, fixed={"train.augment"}))
    file = tmp_path / "space.toml"
    file.write_text("[train]\naugment = false\n")
    assert "train.augment" not in space_of(RECIPES["a"](), str(file))
    assert {"train.crop_scale", "train.colour"} <= set(space_of(RECIPES["a"](), str(file)))
    assert "train.crop_scale" not in space_of(PRESETS["b"]["quick"]())  # which does not augment
    head = configure("b", {"model.strategy": "head"}, [], None, environment={}).settings
    assert "model.layer_decay" not in space_of(head, fixed={"model.strategy"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[train]\nlrr = {low = 1e-3, high = 1e-2}", r"there is no setting 'train\.lrr'.*lr"),
        ("[train]\nlr = 1e-3", r"train\.lr is 0\.001: give low and high, or choices, or false"),
        ("[train.lr]\nlow = 1e-3", r"give low and high, or choices"),
        ("[train.lr]\nlow = 1e-2\nhigh = 1e-3", r"low must be less than high"),
        ("[train.lr]\nlow = 0.0\nhigh = 1e-3\nlog = true", r"with log = true more than 0"),
        ("[train.lr]\nlow = 0.01\nhigh = inf", r"low must be less than high"),
        ("[model.activation]\nchoices = ['relu', 'relu']", r"choices is a list of different"),
        ("[model.activation]\nchoices = []", r"choices is a list of different"),
        ("[model.dense]\nlow = 1.5\nhigh = 9.5", r"model\.dense may not be 1\.5\. --dense is 1\.5"),
        ("train = 3", r"'train' is not a section"),
        ("train.seed = {low = 0, high = 9}", r"train\.seed is the same for all trials: search settings of model and"),
        ("train.accelerator = {choices = ['cpu', 'cuda']}", r"train\.accelerator is the same for all trials"),
        ("train.max_time = {low = 1.0, high = 9.0}", r"train\.max_time is the same for all trials"),
        ("train.devices = {low = 1, high = 2}", r"train\.devices is the same for all trials"),
        ("train.final = {choices = [true, false]}", r"train\.final is the same for all trials"),
        ("data.val_share = {low = 0.1, high = 0.2}", r"data\.val_share is the same for all trials"),
        ("data.uri = {choices = ['a.zip', 'b.zip']}", r"data\.uri is the same for all trials"),
        ("run.grace_seconds = {low = 1.0, high = 9.0}", r"run\.grace_seconds is the same for all trials"),
        ("[train", r"is not TOML"),
    ],
)
def test_mistakes_in_a_file(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=sentence):
        space_of(RECIPES["a"](), str(file))


@pytest.mark.parametrize("text", ["[train.lr]\nlow = 1.0\nhigh = 100.0", "[model.activation]\nchoices = ['tanh']"])
def test_values_out_of_a_settings_range(text: str, tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match="may not be"):
        space_of(RECIPES["a"](), str(file))


def test_home_at_the_start_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.toml").write_text("[train]\nlr = false\n")
    assert text_of("~/x.toml") == "[train]\nlr = false\n"


def test_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[train]\nlr = {low = 1, high = 2}\n", encoding="utf-8-sig")
    assert space_of(RECIPES["a"](), str(tmp_path / "x.toml"))["train.lr"] == Axis(low=1.0, high=2.0)


@pytest.mark.parametrize("text", ["", "a secret and more", "# no range\n"])
def test_file_without_a_range(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UsageError, match=r"--space \S+x.toml is not TOML that sets a range") as error:
        text_of(str(tmp_path / "x.toml"))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("address", ["s3://kk:secretpw@host/x.pth", "https://host/x.pth?X-Amz-Signature=secretpw"])
@pytest.mark.parametrize("value", ['{{choices = ["{0}", "none"]}}', '"{0}"', '["{0}"]', '{{low = "{0}", high = 1}}'])
def test_address_with_a_secret_is_refused_without_it(address: str, value: str, tmp_path: Path) -> None:
    """Its choices would be in the study, the log and the report as they are."""
    text = f"model.weights = {value.format(address)}"
    (tmp_path / "x.toml").write_text(text)
    for given_text in (text, str(tmp_path / "x.toml")):
        with pytest.raises(UsageError, match=r"model\.weights holds an address .*: name the address without") as error:
            space_of(RECIPES["b"](), given_text)
        assert "secretpw" not in str(error.value)


def test_address_without_a_secret_is_a_choice() -> None:
    choices = ("s3://host/x@2.pth", "https://host/x.pth#sha256=1", "a?b.pth", "none")
    space = space_of(RECIPES["b"](), f"model.weights.choices = {list(choices)}")
    assert space["model.weights"].choices == choices


def test_address_of_a_file_is_refused_without_its_secret() -> None:
    with pytest.raises(UsageError, match="--space begins with 'https://', and must be TOML or a file") as error:
        text_of("https://me:secretpw@host/space.toml")
    assert "secretpw" not in str(error.value)


def test_missing_file() -> None:
    with pytest.raises(UsageError, match="--space is nowhere.toml, which cannot be read"):
        space_of(RECIPES["a"](), "nowhere.toml")


def test_nothing_left_to_search() -> None:
    with pytest.raises(UsageError, match="Nothing is left to search"):
        space_of(RECIPES["a"](), fixed=set(SPACES["a"]))
