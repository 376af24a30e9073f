"""yaml_patch.py: how a patch is read and merged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.platforms.yaml_patch import merge
from tests.harness.in_process import Ended

NAMES = st.sampled_from("abc")


def trees(with_null: bool) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of three levels, in which each field always has the same kind of value."""
    leaves = st.fixed_dictionaries({}, optional={"number": st.integers(0, 3), "list": st.just([1]) | st.just([2, 3])})
    null = st.none() if with_null else st.nothing()
    items = st.lists(NAMES, unique=True, min_size=1).flatmap(
        lambda names: st.tuples(*(leaves.map(lambda leaf, name=name: {"name": name, **leaf}) for name in names))
    )
    return st.fixed_dictionaries({}, optional={"object": leaves | null, "items": items.map(list) | null})


def test_named_items_are_merged_and_other_lists_replaced() -> None:
    manifest = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "args": ["a"], "kept": 1}
    patch = {"env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}], "args": ["b"]}
    assert merge(manifest, patch) == {
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
        "args": ["b"],
        "kept": 1,
    }


def test_items_are_merged_by_the_field_that_names_them() -> None:
    request = {"Tags": [{"Key": "a", "Value": "1"}], "volumeMounts": [{"name": "v", "mountPath": "/a"}]}
    patch = {"Tags": [{"Key": "a", "Value": "2"}], "volumeMounts": [{"name": "v", "mountPath": "/b"}]}
    assert merge(request, patch) == {
        "Tags": [{"Key": "a", "Value": "2"}],
        "volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b"}],
    }


def test_null_and_directive_remove() -> None:
    request = {"a": 1, "b": {"c": 1, "d": 2}, "env": [{"name": "A"}, {"name": "B"}]}
    patch = {"a": None, "b": {"c": None, "e": {"f": None}}, "env": [{"name": "A", "$patch": "delete"}]}
    assert merge(request, patch) == {"b": {"d": 2, "e": {}}, "env": [{"name": "B"}]}


@given(trees(with_null=False), trees(with_null=True))
def test_a_patch_merged_twice_changes_nothing_more(tree: dict[str, Any], patch: dict[str, Any]) -> None:
    once = merge(tree, patch)
    assert merge(once, patch) == once
    assert merge(tree, {}) == tree
    for field, value in patch.items():
        assert (field in once) == (value is not None)


def shown(submit: Callable[..., Ended], folder: Path, text: str, target: str = "k8s") -> Ended:
    """What a dry run shows with this patch."""
    (folder / "p.yaml").write_text(text)
    command = ("--", "parta", "--output", "s3://b/r")
    return submit(target, "--dry-run", "--patch", str(folder / "p.yaml"), *command)


@pytest.mark.parametrize("target", ["k8s", "batch", "sagemaker"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spec: {x: 1, x: 2}", "the key x is given twice, again in line 1"),
        ("spec:\n  x: 1\nspec:\n  y: 1", "the key spec is given twice, again in line 3"),
        ('{"a": [{"b": 1, "b": 1}]}', "the key b is given twice"),
        ("spec: {x: .nan}", "nan is no number of JSON"),
        ("spec: {x: [-.inf]}", "-inf is no number of JSON"),
    ],
)
def test_patch_that_is_no_json(
    submit: Callable[..., Ended], tmp_path: Path, target: str, text: str, message: str
) -> None:
    refused = shown(submit, tmp_path, text, target)
    assert (refused.code, message in refused.last) == (2, True), refused.last


def test_patch_with_an_anchor_that_is_merged(submit: Callable[..., Ended], tmp_path: Path) -> None:
    """The merged object may have a key of the one that it is merged into."""
    result = shown(submit, tmp_path, "metadata: {labels: &a {x: '1', y: '2'}, annotations: {<<: *a, x: '3'}}")
    assert result.code == 0
    assert "    x: '3'" in result.lines


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("containers: [{name: job, env: [{name: A, value: '1'}, {name: A, value: '2'}]}]", "with the name 'A' in"),
        ("volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]", "with the name 'v' in"),
    ],
)
def test_patch_with_two_items_of_one_name(
    submit: Callable[..., Ended], tmp_path: Path, items: str, message: str
) -> None:
    refused = shown(submit, tmp_path, f"spec: {{template: {{spec: {{{items}}}}}}}")
    assert (refused.code, message in refused.last) == (2, True), refused.last
