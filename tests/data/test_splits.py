"""The validation split: stratified, by content, independent of the order."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from inat_job.data import splits

ITEMS = st.lists(st.tuples(st.integers(0, 40).map(str), st.integers(0, 3)), min_size=1, max_size=120)


@given(ITEMS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_split_is_independent_of_order(items, seed, random) -> None:
    def sides(pairs):
        held = splits.validation([content for content, _ in pairs], [label for _, label in pairs], seed)
        return Counter(zip(pairs, held, strict=True))

    shuffled = list(items)
    random.shuffle(shuffled)
    assert sides(items) == sides(shuffled)


@given(ITEMS, st.integers(0, 5))
def test_copies_stay_on_one_side(items, seed) -> None:
    hashes, labels = [content for content, _ in items], [label for _, label in items]
    held = splits.validation(hashes, labels, seed)
    sides = {}
    for content, out in zip(hashes, held, strict=True):
        assert sides.setdefault(content, out) == out
    for label in set(labels):
        assert not all(out for out, other in zip(held, labels, strict=True) if other == label)


@given(ITEMS, st.integers(0, 5))
def test_class_of_two_images_is_validated(items, seed) -> None:
    hashes, labels = [f"{content} {label}" for content, label in items], [label for _, label in items]
    held = splits.validation(hashes, labels, seed)
    for label, distinct in Counter(label for _, label in set(items)).items():
        assert any(out for out, other in zip(held, labels, strict=True) if other == label) == (distinct > 1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.integers(0, 5))
def test_each_class_holds_out_its_share(labels, seed) -> None:
    held = splits.validation([str(at) for at in range(len(labels))], labels, seed)
    given = Counter(label for label, out in zip(labels, held, strict=True) if out)
    for label, count in Counter(labels).items():
        assert given[label] == min(max(1, round(0.2 * count)), count - 1)


@given(ITEMS, st.integers(0, 5), st.permutations(range(4)))
def test_split_is_independent_of_label_numbers(items, seed, numbers) -> None:
    hashes, labels = [content for content, _ in items], [label for _, label in items]
    held = splits.validation(hashes, labels, seed)
    assert held == splits.validation(hashes, [numbers[label] for label in labels], seed)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 9))
def test_training_count_of_different_images_is_exact(counts: list[int], seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    held_out = splits.validation([f"{at:064x}" for at in range(len(labels))], labels, seed)
    assert splits.training_count(counts) == held_out.count(False)


def test_copies_in_two_classes() -> None:
    hashes = [str(at) for at in range(100)] + [str(at) for at in range(10)]
    held = splits.validation(hashes, [0] * 100 + [1] * 10, seed=0)
    assert held[:10] == held[100:]
    assert sum(held[100:]) >= 2
    assert 20 <= sum(held[:100]) <= 22


def test_a_fifth_of_each_class_is_held_out() -> None:
    labels = [0] * 100 + [1] * 50
    held = splits.validation([str(at) for at in range(150)], labels, seed=0)
    assert Counter(label for label, out in zip(labels, held, strict=True) if out) == {0: 20, 1: 10}


@given(ITEMS, st.floats(0.01, 0.9), st.randoms(use_true_random=False))
def test_test_images_depend_on_contents_alone(items, share, random) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)

    def sides(pairs):
        held = splits.test([content for content, _ in pairs], [label for _, label in pairs], share)
        return Counter(zip(pairs, held, strict=True))

    assert sides(items) == sides(shuffled)


def test_seed_changes_split_and_digest() -> None:
    hashes = [str(at) for at in range(100)]
    one, two = (splits.validation(hashes, [0] * 100, seed) for seed in (0, 1))
    assert one != two
    assert splits.digest(hashes, one) != splits.digest(hashes, two)
    assert splits.digest(hashes, one) == splits.digest(hashes[::-1], one[::-1])
