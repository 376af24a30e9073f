"""yaml_patch.py: how a patch is merged."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inat_job.platforms.yaml_patch import merge

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
