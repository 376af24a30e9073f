"""`submit`: check the command, build the request, print or send it, and wait for the end of the job."""

import dataclasses
import importlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from inat_job import command_options, events, timm_networks
from inat_job.address import in_bucket
from inat_job.configuration import PREPARE_TAKES, SWEEP_TAKES, TEST_TAKES, Configuration, configure
from inat_job.distributed import world
from inat_job.errors import EndedError, JobError, Preempted, TransientError, UsageError
from inat_job.event_text import printable
from inat_job.job_status import STATUS
from inat_job.options import options_of, parse_section, public_uri
from inat_job.platforms import sent_secrets, submission
from inat_job.platforms.submission import Command, Handle, State, SubmitOptions, Target
from inat_job.run.run_state import REPORT, is_finished, open_run, storage_options
from inat_job.search.definition import definition_of, sweep_id
from inat_job.search.space import space_of, text_of

EVERY_S = 5.0
"""Seconds between two looks at a job."""

_IS_PARQUET = re.compile(r"\.parquet([?#]|$)")
_OF_STORES = re.compile("(AWS_ENDPOINT_URL|AZURE|GOOGLE)")
_FAILURES = 24  # looks in a row that may fail
_NO_JOBS = ("submit", "train", "status", "compare", "prune")  # for people, or for SageMaker only
_REQUESTS: dict[str, type] = {"bench": command_options.BenchOptions, "sweep": command_options.SweepOptions}
_TAKES = {"test": TEST_TAKES, "prepare": PREPARE_TAKES, "sweep": SWEEP_TAKES}
_READ = {"checkpoint": "--checkpoint", "model": "--model", "paths": "PATHS"}
_WRITTEN = {"csv": "--csv", "json": "--json"}
_RUN_IDS = ("checkpoint", "model")
"""Options that name a file or folder, with their flags: read, written, or maybe a run id under --output."""

Parse = Callable[[Sequence[str]], tuple[str, Mapping[str, Any]]]
"""From a command line to the command's name and the values of its options, by section__field for the settings."""


def run(name: str, request: SubmitOptions, words: Sequence[str], parse: Parse, stop: Callable[[], bool]) -> None:
    """Submit a command to a target. Raises JobError; with --wait, with the exit code of the job."""
    target = cast(Target, importlib.import_module(f"inat_job.platforms.{name}.submit_{name}"))
    if words and request.wandb_secret:
        if any(word.partition("=")[0] == "--wandb-secret" for word in words):
            raise UsageError("--wandb-secret is given to submit and to its command: give it once.")
        words = [*words, "--wandb-secret", request.wandb_secret]
    command = checked(words, parse)
    _check_size(request, command)
    submission.check_files(request, command)
    request = submission.completed(request, command, target.NEEDS)
    documents = target.build(request, command)
    sent_secrets.refuse_sent_secrets(documents)
    _tell_needs(request, command, documents)
    if request.dry_run:
        print(target.as_text(documents), end="", flush=True)
        return
    if not _names_another_store(request, documents) and (finished := _finished(request, command, stop)):
        events.emit("done", message=f"Already finished, and nothing is submitted: see {finished}.", report=finished)
        return
    handle = target.submit(request, documents)
    events.emit("submitted", target=name, job=handle.name)
    if request.wait:
        _end(handle, wait(handle, stop, EVERY_S))


def _tell_needs(request: SubmitOptions, command: Command, documents: Sequence[Any]) -> None:
    """Warn of what the command needs and the job may lack, as far as this machine can tell."""
    settings, loggers = command.configuration.settings, command.configuration.settings.tracker.loggers
    extras = set(loggers)
    if any(_IS_PARQUET.search(uri) for uri in (settings.data.uri, settings.data.labels)):
        extras.add("parquet")
    if command.sweep and (command.sweep.study or "").startswith("postgresql"):
        extras.add("postgresql")
    if timm_networks.is_timm(getattr(settings.model, "backbone", "")):
        extras.add("timm")
    if extras:
        events.warn(f'The command needs an image built with --build-arg EXTRAS="{" ".join(sorted(extras))}".')
    names = [name for name, _ in sent_secrets.variables_in(documents)]
    if "mlflow" in loggers and "MLFLOW_TRACKING_URI" not in names and not request.env_from_secret:
        events.warn("--tracker mlflow needs --env MLFLOW_TRACKING_URI=http://host:5000, unless the image sets it.")


def _names_another_store(request: SubmitOptions, documents: Sequence[Any]) -> bool:
    """Whether the job's variables may lead it to a store that this machine does not see under the same address."""
    return bool(request.env_from_secret) or any(
        _OF_STORES.match(name) for name, _ in sent_secrets.variables_in(documents)
    )


def _finished(request: SubmitOptions, command: Command, stop: Callable[[], bool]) -> str | None:
    """The report of the command's run if it is finished, as far as this machine can tell; the job itself looks too."""
    settings = command.configuration.settings
    if command.verb not in ("parta", "partb") or not in_bucket(command.output or "") or settings.run.resume == "never":
        return None
    options = dataclasses.replace(storage_options(settings.storage), retries=0)
    try:
        folder = open_run(settings, settings.run.run_id or str(request.name), stop, options)
        return f"{folder.uri}/{REPORT}" if is_finished(folder, settings) else None
    except Preempted:
        raise
    except JobError:
        return None


def checked(words: Sequence[str], parse: Parse) -> Command:
    """The command, if the job accepts it. Raises UsageError, and what `parse` raises."""
    if not words:
        raise UsageError("The command is missing: add it after --, as in `-- parta --output s3://bucket/runs`.")
    words = _carrying_space(words)
    name, options = parse(words)
    _refuse_what_stays_here(name, options)
    part = name.removeprefix("part") if name.startswith("part") else str(options.get("part") or "a")
    flags = {key.replace("__", "."): value for key, value in options.items() if "__" in key and value is not None}
    # What this machine's variables set is not set where the job runs.
    configuration = configure(part, flags, options.get("sets", ()), None, taken=_TAKES.get(name), environment={})
    request = _own_options(name, options)
    sweep = request if isinstance(request, command_options.SweepOptions) else None
    if sweep and (sweep.study or "").startswith("sqlite"):
        raise UsageError(
            f"--storage is {public_uri(str(sweep.study))}, a file that the job's machine does not have: use "
            "postgresql://host/name, or leave it out."
        )
    files = (_named(options, _READ), _named(options, _WRITTEN))
    command = Command(tuple(words), configuration, _run_id(name, configuration, sweep), sweep, *files)
    sent_secrets.refuse_secrets(command.words, "The command")
    if configuration.settings.run.force:
        raise UsageError("--force would start the run again at every attempt of the platform: leave it out.")
    return command


def _named(options: Mapping[str, Any], flags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The paths and URIs that the options give, each after its flag, without run ids."""
    found = []
    for option, flag in flags.items():
        given = options.get(option)
        every = [given] if isinstance(given, str) else given if isinstance(given, tuple) else ()
        found += [(flag, each) for each in every if "/" in each or option not in _RUN_IDS]
    return tuple(found)


def _carrying_space(words: Sequence[str]) -> list[str]:
    """The words with the text of a --space file instead of its path, since the job does not have the file."""
    carrying = list(words)
    for at, (word, following) in enumerate(zip(words, [*words[1:], ""], strict=True)):
        if word == "--space" and following:
            carrying[at + 1] = text_of(following)
        elif word.startswith("--space="):
            carrying[at] = "--space=" + text_of(word.removeprefix("--space="))
    return carrying


def _own_options(name: str, options: Mapping[str, Any]) -> Any:
    """The options of the command that are not settings, None if it has none. Raises UsageError."""
    if name not in _REQUESTS:
        return None
    own = options_of(_REQUESTS[name])
    return parse_section(_REQUESTS[name], {key: value for key, value in options.items() if key in own})


def _run_id(name: str, made: Configuration, sweep: command_options.SweepOptions | None) -> str | None:
    """The id of the command's run or sweep, None if it has none of its own. Raises UsageError."""
    if sweep:
        space = space_of(made.settings, sweep.space, made.given)
        return made.settings.run.run_id or sweep_id(definition_of(made.settings, sweep, space))
    return made.settings.run_id if name in ("parta", "partb") else None


def _check_size(request: SubmitOptions, command: Command) -> None:
    """Raise UsageError for more machines than the command can use, ConflictError for a batch they cannot split."""
    if command.verb == "test" and request.nodes > 1:
        raise UsageError(f"--nodes is {request.nodes}, and a test uses one machine: leave it out.")
    if command.verb == "sweep" and request.nodes > 1:
        raise UsageError(
            f"--nodes is {request.nodes}, and a worker of a sweep uses one machine: use --workers {request.nodes}."
        )
    if command.verb != "sweep" and request.workers > 1:
        raise UsageError(f"--workers is {request.workers}, and only a sweep has workers: leave it out, or use --nodes.")
    if command.verb in ("parta", "partb"):
        settings = command.configuration.settings
        gpus = 0 if settings.train.accelerator == "cpu" else request.gpus
        world.check_batch_size(settings, request.nodes * (settings.train.devices or gpus or 1))


def _refuse_what_stays_here(name: str, options: Mapping[str, Any]) -> None:
    if name in _NO_JOBS:
        raise UsageError(
            f"{name} cannot be submitted as a job: use parta, partb, sweep, test, prepare, preflight or bench."
        )
    if options.get("file"):
        raise UsageError(f"--config is {options['file']!r}, which the job does not have: give its settings as options.")
    if options.get("print_config"):
        raise UsageError("--print-config trains nothing: leave it out, or run it here.")


def wait(handle: Handle, stop: Callable[[], bool], every_s: float) -> State:
    """Show log and state of a job until it has ended, and return its last state.

    Raises Preempted if this process is stopped (the job continues), and what a look raises.
    """
    logged, failures = ("", ""), 0
    while True:
        try:
            state, failures = handle.read_state(), 0
        except TransientError as error:
            failures += 1
            if failures >= _FAILURES:
                raise
            events.warn(str(error))
            state = State(logged[0], reason=logged[1])
        for line in state.lines:
            print(printable(line, "\t"), flush=True)
        if (state.phase, state.reason) != logged:
            events.emit("state", job=handle.name, state=state.phase, **({"why": state.reason} if state.reason else {}))
            logged = (state.phase, state.reason)
        if state.code is not None:
            return state
        _pause(handle, stop, every_s)


def _pause(handle: Handle, stop: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not stop():
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, 0.2))
    raise Preempted(f"Stopped waiting for {handle.name}, which continues by itself.")


def _end(handle: Handle, state: State) -> None:
    if state.code:
        why = f": {state.reason}" if state.reason else ""
        raise EndedError(f"{handle.name} ended as {state.phase} with code {state.code}{why}", state.code)
    STATUS.outcome = f"{handle.name} is done."
