"""Options of the commands that are not settings."""

import pytest

from inat_job import load_model
from inat_job.command_options import (
    LIST,
    STAGES,
    BenchOptions,
    CompareOptions,
    LogOptions,
    PredictOptions,
    PrepareOptions,
    SweepOptions,
)
from inat_job.errors import UsageError
from inat_job.options import parse_section
from inat_job.platforms.submission import SubmitOptions
from inat_job.settings import DataSettings


def test_bench_measures_all_stages_by_default() -> None:
    assert parse_section(BenchOptions, {"stages": None}).stages == STAGES
    assert parse_section(BenchOptions, {"stages": "epoch, test"}).stages == ("epoch", "test")
    assert BenchOptions(stages=("epoch",)).trains
    assert BenchOptions(stages=("test",), baseline=True).trains
    assert not BenchOptions(stages=("test",)).trains


def test_bench_numbers_are_parsed() -> None:
    assert parse_section(BenchOptions, {"scale": "1,2, 8", "runs": "3"}) == BenchOptions(scale=(1, 2, 8), runs=3)
    with pytest.raises(UsageError, match="--scale is '1,x': it must be whole numbers separated by commas"):
        parse_section(BenchOptions, {"scale": "1,x"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": 0}, "--runs is 0: it must be at least 1."),
        ({"synthetic": 7}, "--synthetic is 7"),
        ({"scale": (1, 0)}, "--scale is 0"),
        ({"stages": ("nothing",)}, "--stages is 'nothing': it must be one of pull"),
    ],
)
def test_bench_option_out_of_range(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BenchOptions(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["s3://b/u:S3CRET@x", "s3:/b/x", "file:///x", "hdfs://x"])
@pytest.mark.parametrize(
    ("section", "field", "flag"),
    [
        (BenchOptions, "json", "--json"),
        (CompareOptions, "html", "--html"),
        (DataSettings, "cache_dir", "--cache-dir"),
        (PredictOptions, "csv", "--csv"),
        (SubmitOptions, "patch", "--patch"),
    ],
)
def test_option_of_a_local_path_refuses_an_address(section: type, field: str, flag: str, path: str) -> None:
    with pytest.raises(UsageError, match=f"{flag} begins with '[a-z3]+:/+', and must be a path on this") as error:
        parse_section(section, {field: path})
    assert "S3CRET" not in str(error.value)
    assert getattr(parse_section(section, {field: "x:/s3://y"}), field) == "x:/s3://y"


def test_cache_folder_of_load_model_is_no_address() -> None:
    with pytest.raises(UsageError, match="--cache-dir begins with 's3://'"):
        load_model("runs/x", cache_dir="s3://b/cache")


@pytest.mark.parametrize(("prune", "seconds"), [(None, None), (LIST, None), ("30d", 30 * 86400), ("0s", 0)])
def test_prune_age(prune: str | None, seconds: float | None) -> None:
    assert PrepareOptions(prune).unused_s == seconds


def test_quiet_and_verbose_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--quiet and --verbose contradict each other"):
        LogOptions(quiet=True, verbose=True)


@pytest.mark.parametrize(
    "address",
    [
        *("sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite:///:memory:", "sqlite:///?timeout=3"),
        "sqlite:///file:x?mode=memory&uri=true",
    ],
)
def test_study_in_memory_is_refused(address: str) -> None:
    """The next worker would find no trials, and the end of this one would lose them."""
    with pytest.raises(
        UsageError, match=r"--storage is sqlite.*, a database in memory.*: name a file, such as sqlite:"
    ):
        SweepOptions(study=address)


@pytest.mark.parametrize("address", ["sqlite:///x.db", "sqlite:////a/x.db?timeout=3", "postgresql://host/memory"])
def test_study_in_a_file_or_on_a_server_is_taken(address: str) -> None:
    assert SweepOptions(study=address).study == address
