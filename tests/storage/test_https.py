"""The read side over a loopback web server, in order and out of it: the bytes served are counted."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inat_job.errors import BadDataError, ConflictError, NoPermissionError, Preempted, TransientError
from inat_job.storage import StorageOptions, open_store, partial_download, retry
from inat_job.storage.partial_download import DownloadPlan
from inat_job.storage.retry import PassingError, Patience

from .conftest import Site

ROOT = Path(__file__).parents[2]
PLAN_FOR = partial_download.plan_for
CHUNK = 100_000
DATA = os.urandom(1_050_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
OPTIONS = StorageOptions(threads=4, retries=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """Many small chunks, short waits, and one file to fetch."""
    monkeypatch.setattr(partial_download, "plan_for", lambda size: DownloadPlan(size, CHUNK))
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)
    site.files["x.zip"] = DATA
    site.etags["x.zip"] = '"v1"'


def _get(site: Site, path: Path, key: str = "x.zip", **more: object) -> object:
    return open_store(site.url, OPTIONS).get(key, path, **more)  # type: ignore[arg-type]


def test_stat_and_read(site: Site) -> None:
    store = open_store(site.url + "/", OPTIONS)
    entry = store.stat("x.zip")
    assert entry is not None
    assert (entry.size, entry.version) == (len(DATA), '"v1"')
    assert store.read("x.zip") == DATA
    assert store.stat("missing") is None
    assert store.stat("") is None
    with pytest.raises(BadDataError, match="missing does not exist"):
        store.read("missing")


def test_each_byte_is_served_once(site: Site, tmp_path: Path) -> None:
    entry = _get(site, tmp_path / "x", sha256=SHA256)
    assert entry == open_store(site.url).stat("x.zip")
    assert (tmp_path / "x").read_bytes() == DATA
    assert site.sent == len(DATA)
    ranges = [asked for _, asked in site.requests if asked != "bytes=0-0"]
    assert len(ranges) == 11


@pytest.mark.parametrize("fault", ["truncate", "reset", "503", "429", "500"])
def test_faults_are_outlasted(site: Site, tmp_path: Path, fault: str) -> None:
    site.faults = [fault, "", fault, fault]
    _get(site, tmp_path / "x", sha256=SHA256)
    assert (tmp_path / "x").read_bytes() == DATA
    assert site.sent <= len(DATA) + len(site.faults) * CHUNK


def test_a_cut_body_goes_on_where_it_was_cut(site: Site, tmp_path: Path) -> None:
    site.faults = ["truncate"] * 3
    _get(site, tmp_path / "x", sha256=SHA256)
    assert site.sent == len(DATA)


@pytest.mark.parametrize("fault", ["truncate", "reset", "503"])
def test_faults_without_ranges_or_length(site: Site, tmp_path: Path, fault: str) -> None:
    site.ranges = False
    site.faults = [fault, fault]
    _get(site, tmp_path / "x", sha256=SHA256)
    assert (tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', ""])
@pytest.mark.parametrize("ranges", [True, False])
def test_every_kind_of_server(site: Site, tmp_path: Path, ranges: bool, lengths: bool, etag: str) -> None:
    site.ranges, site.lengths, site.etags["x.zip"] = ranges, lengths, etag
    told: list[tuple[int, int]] = []
    entry = open_store(site.url, OPTIONS).get(
        "x.zip", tmp_path / "x", sha256=SHA256, progress=lambda *a: told.append(a)
    )
    assert entry.size == len(DATA)
    assert (tmp_path / "x").read_bytes() == DATA
    assert not told or told[-1] == (len(DATA), len(DATA))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_comes_alone_or_not_at_all(site: Site, ranges: bool) -> None:
    site.files["x.zip"], site.etags["x.zip"], site.ranges = bytes(range(256)) * 40_000, '"v"', ranges
    store = open_store(site.url)
    entry = store.stat("x.zip")
    assert entry
    before = site.sent
    assert store.part(entry, 256, 259) == (b"\0\1\2" if ranges else None)
    assert site.sent - before == (3 if ranges else 0) or not ranges


def test_an_empty_object(site: Site, tmp_path: Path) -> None:
    site.files["empty"] = b""
    _get(site, tmp_path / "empty", "empty", sha256=hashlib.sha256(b"").hexdigest())
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_resumed_pull_transfers_only_what_is_missing(site: Site, tmp_path: Path) -> None:
    refuse_after = len(DATA) // 2
    done = 0

    def note(at: int, total: int) -> None:
        nonlocal done
        done = at

    site.before = lambda asked: time.sleep(0.05)
    with pytest.raises(Preempted):
        _get(site, tmp_path / "x", progress=note, stop=lambda: done > refuse_after)
    kept = partial_download.parse((tmp_path / "x.part.json").read_text())
    assert kept is not None
    assert 0 < kept.bytes_done() < len(DATA)
    site.sent = 0
    _get(site, tmp_path / "x", sha256=SHA256)
    assert site.sent == len(DATA) - kept.bytes_done()


def test_a_killed_pull_costs_no_more_than_two_blocks_for_each_thread(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real SIGKILL, in the middle of chunks of eight MiB."""
    monkeypatch.setattr(partial_download, "plan_for", PLAN_FOR)
    site.files["big"] = os.urandom(40 * 2**20)
    site.etags["big"] = '"v"'
    script = (
        "import sys; from pathlib import Path; from inat_job.storage import open_store\n"
        "open_store(sys.argv[1]).get('big', Path(sys.argv[2]))"
    )
    site.pace_s = 0.01
    target = tmp_path / "big"
    child = subprocess.Popen([sys.executable, "-c", script, site.url, str(target)], cwd=ROOT)
    until = time.monotonic() + 60
    while site.sent < 20 * 2**20:
        assert time.monotonic() < until
        time.sleep(0.01)
    child.kill()
    child.wait()
    time.sleep(1.0)  # until the server has noticed
    kept = partial_download.parse((tmp_path / "big.part.json").read_text())
    assert kept is not None
    assert any(there < kept.plan.length(index) for index, (there, _) in kept.reached.items())
    assert site.sent - kept.bytes_done() <= 5 * (2 * 2**20)  # a block that is read, and one on its way
    already, site.sent, site.pace_s = kept.bytes_done(), 0, 0.0
    _get(site, target, "big", sha256=hashlib.sha256(site.files["big"]).hexdigest())
    assert site.sent == 40 * 2**20 - already


def test_a_pull_that_failed_resumes(site: Site, tmp_path: Path) -> None:
    site.faults = [""] * 4 + ["503"] * 1000
    with pytest.raises(TransientError, match="HTTP 503"):
        _get(site, tmp_path / "x")
    kept = partial_download.parse((tmp_path / "x.part.json").read_text())
    assert kept is not None
    assert len(kept.reached) == 4
    site.faults, site.sent = [], 0
    _get(site, tmp_path / "x", sha256=SHA256)
    assert site.sent == len(DATA) - kept.bytes_done()


@pytest.mark.parametrize("etag", ['"v2"', 'W/"v2"'])
def test_a_changed_object_starts_over(site: Site, tmp_path: Path, etag: str) -> None:
    other = os.urandom(len(DATA))
    site.etags["x.zip"] = etag.replace("v2", "v1")
    asked = 0

    def change(range_: str) -> None:
        nonlocal asked
        asked += 1
        if asked == 5:
            site.files["x.zip"], site.etags["x.zip"] = other, etag

    site.before = change
    _get(site, tmp_path / "x", sha256=hashlib.sha256(other).hexdigest())
    assert (tmp_path / "x").read_bytes() == other


def test_an_object_never_at_rest(site: Site, tmp_path: Path) -> None:
    def change(asked: str) -> None:
        site.etags["x.zip"] = f'"{time.monotonic_ns()}"'

    site.before = change
    with pytest.raises(TransientError, match="changed 3 times"):
        _get(site, tmp_path / "x")


def test_a_stalled_server_does_not_hold_up_a_preempted_job(site: Site, tmp_path: Path) -> None:
    site.faults = ["stall"] * 100
    start = time.monotonic()
    with pytest.raises(Preempted):
        _get(site, tmp_path / "x", stop=lambda: time.monotonic() > start + 0.3)
    assert time.monotonic() - start < 2.5
    assert (tmp_path / "x.part.json").exists()


def test_retry_after_is_honoured(site: Site) -> None:
    site.retry_after = "1"
    site.faults = ["429"]
    start = time.monotonic()
    assert open_store(site.url, OPTIONS).read("x.zip") == DATA
    assert time.monotonic() - start >= 1.0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, NoPermissionError),
        (403, NoPermissionError),
        (404, BadDataError),
        (410, BadDataError),
        (400, ConflictError),
    ],
)
def test_refusals(site: Site, tmp_path: Path, status: int, kind: type[Exception]) -> None:
    site.statuses["x.zip"] = status
    for verb in (
        lambda: open_store(site.url).read("x.zip?sig=s3cret"),
        lambda: _get(site, tmp_path / "x", "x.zip?sig=s3cret"),
    ):
        with pytest.raises(kind, match=f"HTTP {status}") as caught:
            verb()
        assert "s3cret" not in str(caught.value)


def test_a_forbidden_object_is_not_a_missing_one(site: Site) -> None:
    site.statuses["x.zip"] = 403
    with pytest.raises(NoPermissionError):
        open_store(site.url).stat("x.zip")


def test_nobody_listens(tmp_path: Path, closed_port: int, site: Site) -> None:
    store = open_store(f"http://user:s3cret@127.0.0.1:{closed_port}/d", StorageOptions(retries=1))
    for verb in (lambda: store.stat("x"), lambda: store.read("x"), lambda: store.get("x", tmp_path / "x")):
        with pytest.raises(TransientError, match="can't be reached") as caught:
            verb()
        assert "s3cret" not in str(caught.value)


def test_no_such_host(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"nowhere\.invalid"):
        open_store("https://nowhere.invalid/d", StorageOptions(retries=0)).stat("x")


def test_a_login_is_sent_and_never_said(site: Site) -> None:
    store = open_store(site.url.replace("http://", "http://me:s3cret@"), OPTIONS)
    assert store.read("x.zip") == DATA
    assert site.headers[-1]["Authorization"] == "Basic bWU6czNjcmV0"
    assert "s3cret" not in store.uri


def test_a_query_is_sent_and_odd_names_are_quoted(site: Site) -> None:
    site.files["a%20b.zip"] = b"odd"
    assert open_store(site.url, OPTIONS).read("a b.zip?X-Sig=a%2Fb&c=d") == b"odd"
    assert site.requests[-1][0] == "/a%20b.zip?X-Sig=a%2Fb&c=d"


def test_a_write_to_a_full_disk_names_the_folder(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inat_job.storage.disk._free", lambda folder: 1_000_000)
    with pytest.raises(ConflictError, match=rf"No space left in {tmp_path} \(1 MB free, 1 MB more needed\)"):
        _get(site, tmp_path / "x")


def test_patience_is_spent_by_attempts_that_get_nowhere() -> None:
    patience = Patience(2)
    for _ in range(5):
        patience.spend(PassingError("cut"), progressed=True)
    patience.spend(PassingError("cut"))
    with pytest.raises(PassingError):
        patience.spend(PassingError("cut"))


def test_waits_double_up_to_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.2)
    longest: Callable[[int], float] = lambda failed: max(retry.wait_s(failed) for _ in range(200))  # noqa: E731
    assert 0.1 <= longest(1) <= 0.2
    assert 0.4 <= longest(3) <= 0.8
    assert longest(40) <= retry.LONGEST_WAIT_S
