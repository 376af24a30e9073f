"""The command line: every option is a knob of the settings, and every error of ours becomes its exit code."""

import time

STARTED = time.perf_counter()

from inat_job import signals  # noqa: E402

STOP = signals.StopFlag()
if __name__ == "__main__":
    STOP.install()  # before all that takes time: the first process of a container ignores a signal without a handler

import io  # noqa: E402
from collections.abc import Callable, Collection, Sequence  # noqa: E402
from typing import Any, cast  # noqa: E402

import click  # noqa: E402

import inat_job  # noqa: E402
from inat_job.bench.request import Request  # noqa: E402
from inat_job.configuration import PREPARE_TAKES, STATUS_TAKES, TEST_TAKES, all_knobs, everything, takes  # noqa: E402
from inat_job.errors import Preempted  # noqa: E402
from inat_job.jobs import ending  # noqa: E402
from inat_job.jobs.requests import PrepareRequest, StatusRequest  # noqa: E402
from inat_job.knobs import knobs_of, parsed  # noqa: E402
from inat_job.platforms import detect, process, submission  # noqa: E402
from inat_job.platforms.around import configured, part_of, part_or  # noqa: E402
from inat_job.platforms.place import Place  # noqa: E402
from inat_job.recipes import RECIPES  # noqa: E402
from inat_job.settings import Settings  # noqa: E402

STARTED = process.started() or STARTED  # the interpreter's own start counts too

Command = Callable[..., None]


def knob_options(part: str | None, taken: Collection[str] | None = None) -> Callable[[Command], Command]:
    """Options for the knobs of a part, or of both, that a command takes, and for all that sets knobs otherwise."""
    knobs = everything() if part is None else all_knobs(RECIPES[part]())

    def decorate(command: Command) -> Command:
        command = click.option("--print-config", is_flag=True, help="Show each value and its source, and stop.")(
            command
        )
        command = click.option(
            "--set", "sets", multiple=True, metavar="SECTION.FIELD=VALUE", help="Set any value by its name in the file."
        )(command)
        command = click.option("--config", "file", metavar="FILE", help="TOML or JSON file of settings.")(command)
        for key, (each, kind) in reversed(knobs.items()):
            if takes(taken, key):
                command = _option(key, each, kind)(command)
        return command

    return decorate


def _option(key: str, each: Any, kind: Any) -> Callable[[Command], Command]:
    name = key.replace(".", "__")
    if kind in (bool, bool | None):
        return click.option(f"{each.flag}/--no-{each.name}", name, default=None, help=f"{each.help}.")
    metavar = "|".join(each.choices) or each.name.rpartition("-")[2].upper()
    return click.option(each.flag, name, metavar=metavar, help=f"{each.help}.")


def request_options(request: type) -> Callable[[Command], Command]:
    """Options for what a command is asked for beside settings, given the section that holds it."""

    def decorate(command: Command) -> Command:
        for field, (each, kind) in reversed(knobs_of(request).items()):
            shown: dict[str, Any] = {"metavar": each.name.rpartition("-")[2].upper()}
            if kind is bool or each.bare:
                shown = {"is_flag": True} if kind is bool else shown | {"is_flag": False, "flag_value": each.bare}
            command = click.option(each.flag, field, default=None, help=f"{each.help}.", **shown)(command)
        return command

    return decorate


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The knobs that the command line set, by "section.field"."""
    return {name.replace("__", "."): value for name, value in options.items() if value is not None}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(inat_job.__version__, prog_name="inat-job")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train, test and report an image classifier; a job that is stopped goes on where it was."""
    ending.keep_silent(context.invoked_subcommand == "status")


@cli.command()
@knob_options("a")
def parta(**options: Any) -> None:
    """Train a five-block CNN from scratch, test it, report."""
    _run_part("a", detect.place(), **options)


@cli.command()
@knob_options("b")
def partb(**options: Any) -> None:
    """Fine-tune a network pretrained on ImageNet, test it, report."""
    _run_part("b", detect.place(), **options)


@cli.command()
@knob_options(None)
def train(**options: Any) -> None:
    """SageMaker's word: run the part that the hyperparameter `part` names, with the others as options."""
    place = detect.place()
    _run_part(part_of(place), place, **options)


@cli.command()
@click.option(
    "--checkpoint", required=True, envvar="INAT_CHECKPOINT", metavar="URI", help="A run, or a <step>.ckpt of it."
)
@knob_options("a", TEST_TAKES)
def test(checkpoint: str, sets: tuple[str, ...], file: str | None, print_config: bool, **options: Any) -> None:
    """Evaluate a run's checkpoint on the test split, without training."""
    from inat_job.jobs import evaluate

    place = detect.place()
    configuration = evaluate.settings_of(checkpoint, _given(options), sets, file, STOP, place)
    if print_config:
        click.echo(configuration.text())
        return
    ending.watch(configuration.settings, STOP)
    evaluate.run(configuration.settings, checkpoint, STOP, STARTED, configuration.given, place)


@cli.command()
@click.argument("run")
@request_options(StatusRequest)
@knob_options("a", STATUS_TAKES)
def status(run: str, watch: bool, **options: Any) -> None:
    """Tell where RUN stands: a run id under --output, or a URI."""
    if settings := _settled("a", detect.place(), taken=STATUS_TAKES, **options):
        from inat_job.jobs import status as job

        job.run(settings, run, parsed(StatusRequest, {"watch": watch}), STOP)


@cli.command()
@request_options(PrepareRequest)
@knob_options("a", PREPARE_TAKES)
def prepare(prune: str | None, **options: Any) -> None:
    """Pull and decode a data set, and stop: later runs find it ready."""
    if settings := _settled("a", detect.place(), taken=PREPARE_TAKES, **options):
        from inat_job.jobs import prepare as job

        ending.watch(settings, STOP)
        job.run(settings, parsed(PrepareRequest, {"prune": prune}), STOP, STARTED)


@cli.command()
@click.option("--part", required=True, type=click.Choice(list(RECIPES)), help="Which part's run is measured.")
@request_options(Request)
@knob_options(None)
def bench(part: str, **options: Any) -> None:
    """Measure every stage of a run beside its limit, and name the one that bounds."""
    request = parsed(Request, {name: options.pop(name) for name in knobs_of(Request)})
    if settings := _settled(part, detect.place(), **options):
        from inat_job.jobs import bench as job

        ending.watch(settings, STOP)
        job.run(settings, request, STOP, STARTED)


@cli.command()
@click.argument("target", type=click.Choice(submission.TARGETS), metavar="|".join(submission.TARGETS))
@request_options(submission.Request)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
def submit(target: str, words: tuple[str, ...], **options: Any) -> None:
    """Submit a command to a cluster, as in `submit k8s --image IMAGE -- parta --output s3://bucket/runs`."""
    from inat_job.jobs import submit as job

    job.run(target, parsed(submission.Request, options), words, _line, STOP)


def _line(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A command line's name and options, as this program takes them."""
    above = click.Context(cli, info_name="inat-job", **cli.context_settings)
    name, command, rest = cli.resolve_command(above, list(words))
    return str(name), cast(click.Command, command).make_context(name, rest, parent=above).params


@cli.command()
@click.option("--part", type=click.Choice(list(RECIPES)), help="Which part's run is asked about; else a.")
@knob_options(None)
def preflight(part: str | None, **options: Any) -> None:
    """Look in seconds whether all is there that parta or partb needs, and change nothing."""
    place = detect.place()
    if settings := _settled(part_or(part, place), place, **options):
        from inat_job.jobs import preflight as job

        job.run(settings, place, STOP, STARTED)


def _settled(
    part: str,
    place: Place,
    sets: tuple[str, ...],
    file: str | None,
    print_config: bool,
    taken: Collection[str] | None = None,
    **options: Any,
) -> Settings | None:
    """The settings of a command that takes all or some, or None where they are only shown."""
    configuration = configured(place, part, _given(options), sets, file, taken)
    if print_config:
        click.echo(configuration.text(taken))
    return None if print_config else configuration.settings


def _run_part(part: str, place: Place, **options: Any) -> None:
    if settings := _settled(part, place, **options):
        from inat_job.jobs import part as job

        ending.watch(settings, STOP)
        job.run(settings, STOP, STARTED, place)


def main() -> None:
    """Run a command; the last line on stderr of a failure is one sentence."""
    STOP.install()
    ending.calm()
    try:
        cli.main(standalone_mode=False)
        ending.succeed()
    except click.ClickException as error:
        shown = io.StringIO()  # it quotes what was typed
        error.show(shown)
        ending.refuse(shown.getvalue(), error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        ending.fail("Stopped.", Preempted.exit_code)
    except Exception as error:
        ending.give_up(error, STOP)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        ending.leave(int(end.code or 0))
    ending.leave(0)
