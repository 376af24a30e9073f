"""`sweep` with real trials: whole, killed and resumed, by several workers, and refused."""

import getpass
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jsonschema
import pytest

import inat_job
from inat_job.command_options import SweepOptions
from inat_job.commands import sweep, sweep_runs
from inat_job.configuration import configure
from inat_job.errors import ConflictError
from inat_job.host import cpu, nvidia
from inat_job.recipes import RECIPES
from inat_job.reporting.html import is_page
from inat_job.run.run_state import lease_run, open_run
from inat_job.run.sweep_folder import TRIALS
from inat_job.search.outcomes import Limits, SearchState
from inat_job.search.sweep_report import Best
from inat_job.settings import TrainSettings
from inat_job.signals import StopFlag, never
from inat_job.storage import open_store
from tests.harness.in_process import Ended, in_process
from tests.harness.job_runs import SCHEMA
from tests.harness.wandb_stub import wandb_server

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parent.parent.parent
SWEEP_SCHEMA = json.loads((Path(inat_job.__file__).parent / "sweep.schema.json").read_text())
SPACE = """
[train.lr]
low = 1e-4
high = 1e-1
log = true

[model.dropout]
low = 0.0
high = 0.6
"""
WORDS = (
    "sweep --part a --data demo: --image-size 32 --epochs 2 --batch-size 32 --filters 4 --dense 8 "
    "--filter-organisation same --kernel-sizes 3 --activation relu --pooling gap --no-augment --batch-norm "
    "--weight-decay 0.05 --label-smoothing 0.1 --trials 3 --pruner none --wandb off --run-id s"
).split()


@dataclass(frozen=True)
class Place:
    """Where a sweep is: its `--output`, and its folder for what its command writes otherwise."""

    output: str
    folder: Path

    def words(self, *more: str) -> list[str]:
        """The command of the sweep; options in `more` override its own."""
        return [*WORDS, "--space", str(self.folder / "space.toml"), "--output", self.output, *more]

    def start(self, *more: str, space: str = SPACE) -> subprocess.Popen[str]:
        """A worker, in a session of its own."""
        (self.folder / "space.toml").write_text(space)
        return subprocess.Popen(
            [sys.executable, str(ROOT / "entrypoint.py"), *self.words(*more)],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "INAT_CACHE_DIR": str(self.folder / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *more: str, space: str = SPACE) -> Ended:
        """Work on the sweep to its end."""
        worker = self.start(*more, space=space)
        try:
            out, err = worker.communicate(timeout=600)
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
        return Ended(worker.returncode, out, (err.strip().splitlines() or [""])[-1])

    def read(self, name: str) -> Any:
        """A JSON file of the sweep."""
        return json.loads(open_store(f"{self.output}/s").read(name))

    def names(self) -> dict[str, str]:
        """The version of each file of the sweep."""
        return {each.key: str(each) for each in open_store(f"{self.output}/s").list()}


def local(folder: Path) -> Place:
    folder.mkdir(exist_ok=True)
    return Place(str(folder / "runs"), folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A sweep that nothing disturbed, with its best settings trained again. It takes so long that its tests soak."""
    place = local(tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
        ended = place.run("--retrain", "1", "--wandb", "offline")
        left = [each.name for each in Path(os.environ["TMPDIR"]).iterdir()]
    assert set(left) <= {f"torchinductor_{getpass.getuser()}"}  # torch's cache
    assert ended.code == 0, ended
    return place


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for each in started:
        if each.poll() is None:
            os.killpg(each.pid, signal.SIGKILL)
        each.communicate()


def trials_of(place: Place) -> dict[int, tuple[Any, Any, Any]]:
    """By number: values, accuracies of all epochs, and the whole validation of the trial's own report."""
    return {
        each["number"]: (each["values"], each["epochs"], place.read(f"{each['run']}/report.json")["val"])
        for each in place.read("report.json")["trials"]
    }


@pytest.mark.soak
def test_reports_have_their_schemas(whole: Place) -> None:
    report = whole.read("report.json")
    jsonschema.validate(report, SWEEP_SCHEMA)
    assert report["counts"] == {"done": 3, "pruned": 0, "failed": 0, "unfinished": 0}
    assert report["epochs"] == {"spent": 6, "saved": 0}
    assert 0 < report["seconds"]["spent"] == pytest.approx(sum(each["seconds"] for each in report["trials"]))
    assert report["seconds"]["saved"] == 0.0
    assert [sum(row["n"] for row in rows) for rows in report["axes"].values()] == [3, 3]
    assert report["trials"][0]["values"] == {"train.lr": 0.003, "model.dropout": 0.2}  # the recipe's own
    for trial in report["trials"]:
        own = whole.read(f"{trial['run']}/report.json")
        jsonschema.validate(own, SCHEMA)
        assert (own["test"], own["environment"]["device"]) == (None, report["device"])
        assert own["val"]["accuracy"] == trial["val_accuracy"] == max(trial["epochs"])


@pytest.mark.soak
def test_best_is_chosen_by_validation_and_tested_once(whole: Place) -> None:
    report = whole.read("report.json")
    best = max(report["trials"], key=lambda each: (each["val_accuracy"], -each["number"]))
    assert (report["best"]["trial"], report["best"]["values"]) == (best["number"], best["values"])
    [again] = report["retrained"]
    own = whole.read(f"best/trial-{best['number']}-seed-0/report.json")
    assert again["test_accuracy"] == own["test"]["accuracy"] == report["test"]["mean"]
    assert own["val"] == whole.read(f"{best['run']}/report.json")["val"]  # the same settings and seed
    assert own["settings"]["train"]["lr"] == best["values"]["train.lr"]


@pytest.mark.soak
def test_page_shows_the_best_settings_as_command_and_file(
    whole: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = open_store(f"{whole.output}/s").read("report.html").decode()
    assert is_page("sweep", page[:2000])
    report = whole.read("report.json")
    assert "parta" in page
    lr = report["best"]["settings"]["train"]["lr"]
    assert (f"--lr {lr}" in page) == (lr != RECIPES["a"]().train.lr)
    text = page.partition('<code id="config">')[2].partition("</code>")[0]
    (tmp_path / "best.toml").write_text(unescape(text))
    monkeypatch.chdir(tmp_path)
    with in_process(monkeypatch, capsys) as job:
        shown = job("parta", "--config", "best.toml", "--print-config")
    settings = tomllib.loads(shown.stdout)
    expected = report["best"]["settings"]
    assert shown.code == 0
    for section in ("data", "model", "train"):
        own = {key: value for key, value in expected[section].items() if value is not None and key != "devices"}
        assert {key: settings[section].get(key) for key in own} == own


@pytest.mark.soak
def test_finished_sweep_has_nothing_to_do(whole: Place) -> None:
    before = whole.names()
    ended = whole.run("--retrain", "1")
    assert (ended.code, "Already finished" in ended.stdout) == (0, True)
    assert not [line for line in ended.lines if '"phase": "prepare"' in line or '"trial"' in line]
    assert whole.names() == before


@pytest.mark.soak
def test_best_settings_train_on_all_images_for_the_best_number_of_epochs(whole: Place, tmp_path: Path) -> None:
    place = Place(whole.output, whole.folder)
    ended = place.run("--retrain", "1", "--final")
    assert ended.code == 0, ended.last
    report = place.read("report.json")
    jsonschema.validate(report, SWEEP_SCHEMA)
    best = report["trials"][report["best"]["trial"]]
    assert report["best"]["epochs"] == 1 + best["epochs"].index(max(best["epochs"]))
    own = place.read(f"best/trial-{best['number']}-final-0/report.json")
    held_out = place.read(f"{best['run']}/report.json")
    assert (own["settings"]["train"]["final"], own["settings"]["train"]["epochs"]) == (True, report["best"]["epochs"])
    assert own["data"]["n_train"] == held_out["data"]["n_train"] + held_out["data"]["n_val"]
    assert (own["data"]["n_val"], own["val"]) == (0, None)
    [again] = report["retrained"]
    assert (again["val_accuracy"], again["test_accuracy"]) == (None, own["test"]["accuracy"])
    assert "without validation" in ended.stdout
    assert place.run("--retrain", "1").code == 0  # which other tests of this sweep expect


@pytest.mark.soak
def test_more_trials_continue_a_finished_sweep(whole: Place, tmp_path: Path) -> None:
    """N is the total."""
    place = local(tmp_path / "more")
    assert place.run("--retrain", "0", "--trials", "1").code == 0
    assert place.run("--retrain", "0", "--trials", "2").code == 0
    assert trials_of(place) == {number: each for number, each in trials_of(whole).items() if number < 2}


@pytest.mark.soak
def test_space_with_fewer_points_than_trials_is_searched_whole(tmp_path: Path) -> None:
    """The rest follows as for any other end: the best settings are trained again, tested and reported."""
    place = local(tmp_path / "small")
    space = "[train.lr]\nchoices = [0.002, 0.004]\n"
    ended = place.run("--trials", "9", "--retrain", "1", "--dropout", "0.2", space=space)
    assert ended.code == 0, ended.last
    report = place.read("report.json")
    jsonschema.validate(report, SWEEP_SCHEMA)
    assert report["why"] == "every point of the space is trained"
    assert (report["counts"]["done"], report["test"]["n"]) == (2, 1)
    assert [each["why"] for each in report["trials"]] == [
        f"best after epoch {1 + each['epochs'].index(max(each['epochs']))}" for each in report["trials"]
    ]
    assert all(each["seconds"] > 0 for each in report["trials"])


@pytest.mark.soak
def test_second_worker_without_conditional_writes_is_told_why(
    job: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep.probe, "probe", lambda store: False)
    settings = configure("a", {"run.output": str(tmp_path / "runs")}, [], None, environment={}).settings
    with lease_run(open_run(settings, "s"), 8.0, never):
        ended = job("sweep", "--part", "a", "--output", "runs", "--run-id", "s", "--lease-seconds", "8")
    assert ended.code == 75
    assert "a store without conditional writes, where a sweep has one worker" in ended.last


def test_more_trials_at_a_time_than_gpus_are_refused(
    job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "gpu_count", lambda: 2)
    ended = job("sweep", "--part", "a", "--output", "runs", "--wandb", "off", "--parallel", "3")
    assert ended.code == 78
    assert "--parallel is 3, and each trial needs a GPU of its own, but this machine has 2: lower it." in ended.last
    sweep_runs.check_parallel(settings_in_use("cpu"), 3)
    sweep_runs.check_parallel(settings_in_use("auto"), 2)


def settings_in_use(accelerator: str) -> TrainSettings:
    return configure("a", {"train.accelerator": accelerator}, [], None, environment={}).settings.train


def begin(folder: Path, study: str, definition: Mapping[str, object] = MappingProxyType({"part": "a"})) -> None:
    settings = configure("a", {}, [], None, environment={}).settings
    made = sweep_runs.Sweep(settings, 1, open_run(settings, str(folder)), StopFlag())
    sweep._begin(made, definition, study)


def test_address_that_cannot_be_used_leaves_the_sweep_free(job: Callable[..., Ended], tmp_path: Path) -> None:
    """Otherwise the right address would be refused for the wrong one."""
    words = [*WORDS, "--output", "runs", "--storage"]
    for wrong in ("sqlite:///none/x.db", "nosuch://host/name"):
        ended = job(*words, wrong)
        assert (ended.code, f"--storage is {wrong}, which cannot be used" in ended.last) == (2, True), ended.last
    assert not (tmp_path / "runs/s" / sweep.SWEEP).exists()


def test_another_sweep_is_refused_before_its_database_is_opened(job: Callable[..., Ended], tmp_path: Path) -> None:
    other = {"part": "a", "fingerprint": "other", "space": {}, "sampler": "tpe", "pruner": "none"}
    begin(tmp_path / "runs/s", "sqlite:///x.db", other)
    ended = job(*WORDS, "--output", "runs", "--storage", "sqlite:///x.db")
    assert (ended.code, "is a sweep with another fingerprint, space" in ended.last) == (78, True), ended.last
    assert not (tmp_path / "x.db").exists()


def test_study_stays_where_it_is(tmp_path: Path) -> None:
    here, database = sweep.FOLDER, "postgresql://host/name"
    for first, second, fix in [(here, database, "leave --storage out"), (database, here, f"use --storage {database}")]:
        folder = tmp_path / str(len(first))
        begin(folder, first)
        begin(folder, first)
        with pytest.raises(ConflictError, match=f"the study of .* is in {first}: {fix}, or change --run-id"):
            begin(folder, second)
    (folder / sweep.SWEEP).write_text('{"part": "a"}')  # of an older version
    begin(folder, here)


@pytest.mark.parametrize("seeds", [0, 2])
def test_best_settings_that_are_not_trained_again_are_no_phase(
    seeds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep_runs, "_run_to_end", lambda *_: None)
    monkeypatch.setattr(sweep_runs, "read_report", lambda _: {"val": {"accuracy": 0.5}, "test": {"accuracy": 0.5}})
    settings = configure("a", {}, [], None, environment={}).settings
    made = sweep_runs.Sweep(settings, 1, open_run(settings, str(tmp_path)), StopFlag())
    done = sweep_runs.retrain(made, Best(0, {}, 0.5, 1), SweepOptions(retrain=seeds))
    assert len(done) == seeds
    assert ('"phase": "retrain"' in capsys.readouterr().out) == (seeds > 0)


def test_search_that_ends_without_a_finished_trial_says_why() -> None:
    why, state = "trials were at work for 9 s", SearchState((), 9.0)
    with pytest.raises(ConflictError, match=rf"^s ended without .* \({why}\): raise --max-time"):
        sweep._require_best("s", why, state, Limits(30, max_time=9.0), [])


def test_search_whose_trials_all_failed_says_how() -> None:
    with pytest.raises(ConflictError, match=r"^s has no best trial: all 2 failed, the last one so: It failed with 78"):
        sweep._require_best("s", "all 2 trials", SearchState((None, None), 9.0), Limits(2), ["It failed with 78."] * 2)


def test_trials_at_a_time_share_the_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Mapping[str, str]] = []
    monkeypatch.setattr(sweep_runs, "TrialProcess", lambda run, task, variables: started.append(variables))
    monkeypatch.setattr(cpu, "available_cpus", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settings = configure("a", {}, [], None, environment={}).settings
    for parallel, is_trial in [(1, True), (4, True), (4, False)]:
        made = sweep_runs.Sweep(settings, parallel, open_run(settings, str(tmp_path)), StopFlag())
        sweep_runs._start(made, sweep_runs.Task(settings, "s", is_trial, True))
    assert [each.get("OMP_NUM_THREADS") for each in started] == [None, "2", None]


def test_trial_of_other_weights_has_their_crop_unless_one_is_set(tmp_path: Path) -> None:
    def crop_of(values: Mapping[str, Any], **given: str) -> float:
        settings = configure("b", given, [], None, environment={}).settings
        made = sweep_runs.Sweep(settings, 1, open_run(settings, str(tmp_path)), StopFlag())
        return made.settings_of(values, TRIALS).data.eval_crop

    other = {"model.backbone": "convnext_tiny"}
    alone = configure("b", other, [], None, environment={}).settings.data.eval_crop
    assert crop_of(other) == alone != crop_of({})
    assert crop_of(other | {"data.eval_crop": 0.7}) == crop_of(other, **{"data.eval_crop": "0.7"}) == 0.7


@pytest.mark.soak
@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--epochs", "3"], "fingerprint"),
        (["--seed", "1"], "fingerprint"),
        (["--dropout", "0.1"], "space"),
        (["--sampler", "random"], "sampler"),
        (["--pruner", "asha"], "pruner"),
        (["--part", "b", "--weights", "none"], "part"),
    ],
)
def test_other_settings_under_the_same_id_are_refused(
    whole: Place, job: Callable[..., Ended], more: list[str], named: str
) -> None:
    words = whole.words(*more)
    if "b" in more:  # which has none of the network's options
        words = ["sweep", "--data", "demo:", "--wandb", "off", "--run-id", "s", "--output", whole.output, *more]
    ended = job(*words)
    assert ended.code == 78
    assert "is a sweep with another" in ended.last
    assert named in ended.last


def test_print_config_shows_settings_and_a_space_that_reads_back(job: Callable[..., Ended], tmp_path: Path) -> None:
    for part in "ab":
        ended = job("sweep", "--part", part, "--print-config")
        assert ended.code == 0
        settings, _, space = ended.stdout.partition("# What is searched, as a file for --space:\n")
        assert {"data", "model", "train"} <= set(tomllib.loads(settings))
        (tmp_path / "space.toml").write_text(space)
        again = job("sweep", "--part", part, "--print-config", "--space", "space.toml")
        assert again.stdout == ended.stdout
        assert tomllib.loads(space)["train"]["lr"]["log"] is True


def events_of(worker: subprocess.Popen[str]) -> Iterator[Mapping[str, Any]]:
    assert worker.stdout is not None
    for line in worker.stdout:
        yield json.loads(line)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.soak
def test_trial_notes_progress_for_the_liveness_probe(
    tmp_path: Path, workers: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / "alive"
    monkeypatch.setenv("INAT_JOB_ALIVE_FILE", str(alive))
    place = local(tmp_path)
    workers.append(place.start("--epochs", "50", "--lease-seconds", "4"))
    wait_for(lambda: open_store(f"{place.output}/s").stat("trials/0/config.json"))
    workers[0].send_signal(signal.SIGSTOP)  # so that only the trial's process can touch the file
    alive.unlink()
    wait_for(alive.exists)


def interrupt(place: Place, worker: subprocess.Popen[str], number: int, how: str) -> int:
    """Kill a worker when a trial begins, and its trials with it if `how` is "machine"; returns its exit code."""
    for event in events_of(worker):
        if event["event"] == "trial" and event["number"] == number:
            break
    trial = f"trials/{number}/config.json"
    wait_for(lambda: open_store(f"{place.output}/s").stat(trial))
    if how == "machine":
        os.killpg(worker.pid, signal.SIGKILL)
    else:
        worker.send_signal(getattr(signal, how))
    return worker.wait(60)


def check_interrupted(place: Place, whole: Place, workers: list[subprocess.Popen[str]], how: str) -> None:
    for number in (0, 1):
        workers.append(place.start("--retrain", "0"))
        assert interrupt(place, workers[-1], number, how) == (143 if how == "SIGTERM" else -signal.SIGKILL)
    ended = place.run("--retrain", "0")
    assert ended.code == 0, ended.last
    assert trials_of(place) == trials_of(whole)
    assert '"continued": true' in ended.stdout


@pytest.mark.soak
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "machine"])
def test_interrupted_sweep_has_the_same_trials(
    whole: Place, tmp_path: Path, workers: list[subprocess.Popen[str]], how: str
) -> None:
    check_interrupted(local(tmp_path), whole, workers, how)


@pytest.mark.soak
@pytest.mark.parametrize("how", ["SIGTERM", "machine"])
def test_interrupted_sweep_in_a_bucket_has_the_same_trials(
    whole: Place, tmp_path: Path, workers: list[subprocess.Popen[str]], s3_bucket: str, how: str
) -> None:
    check_interrupted(Place(f"s3://{s3_bucket}/runs", tmp_path), whole, workers, how)


@pytest.mark.soak
@pytest.mark.parametrize("where", ["local", "bucket"])
def test_two_workers_share_a_sweep(
    whole: Place, tmp_path: Path, workers: list[subprocess.Popen[str]], s3_bucket: str, where: str
) -> None:
    place = local(tmp_path) if where == "local" else Place(f"s3://{s3_bucket}/runs", tmp_path)
    workers += [place.start("--retrain", "1") for _ in range(2)]
    for each in workers:
        _, err = each.communicate(timeout=300)
        assert each.returncode == 0, err
    assert trials_of(place) == trials_of(whole)
    names = place.names()
    for number in range(3):
        assert len([name for name in names if name.startswith(f"trials/{number}/attempts/")]) == 1
    assert place.read("report.json")["test"] == whole.read("report.json")["test"]


@pytest.mark.soak
def test_trials_are_grouped_in_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of the tracker for each trial, in the group of the sweep; the runs of the best settings too."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "cafecafe")
    with wandb_server() as (recorded, _):
        monkeypatch.setenv("WANDB_BASE_URL", recorded.url)
        ended = local(tmp_path).run("--wandb", "online", "--run-id", "lr-search", "--trials", "2", "--retrain", "1")
    assert ended.code == 0, ended.last
    best = json.loads((tmp_path / "runs/lr-search/report.json").read_text())["best"]["trial"]
    groups = {each["name"]: each.get("groupName") for each in recorded.buckets if each.get("groupName")}
    assert groups == dict.fromkeys(("lr-search-0", "lr-search-1", f"lr-search-trial-{best}-seed-0"), "lr-search")
