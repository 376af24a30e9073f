"""The command line: every option is a option of the settings, and every error of ours becomes its exit code."""

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
from inat_job.command_options import BenchOptions, PrepareOptions, StatusOptions  # noqa: E402
from inat_job.configuration import PREPARE_TAKES, STATUS_TAKES, TEST_TAKES, options_by_key, options_of_all_parts, takes  # noqa: E402
from inat_job.errors import Preempted  # noqa: E402
from inat_job.host import process  # noqa: E402
from inat_job.options import options_of, parsed  # noqa: E402
from inat_job.platforms import detect, submission  # noqa: E402
from inat_job.platforms.platform import Platform  # noqa: E402
from inat_job.platforms.settings_layer import configured, part_of, part_or  # noqa: E402
from inat_job.recipes import RECIPES  # noqa: E402
from inat_job.run import exit  # noqa: E402
from inat_job.settings import Settings  # noqa: E402

STARTED = process.start_time() or STARTED  # the interpreter's own start counts too

Command = Callable[..., None]


def setting_options(part: str | None, taken: Collection[str] | None = None) -> Callable[[Command], Command]:
    """Options for the options of a part, or of both, that a command takes, and for all that sets options otherwise."""
    options = options_of_all_parts() if part is None else options_by_key(RECIPES[part]())

    def decorate(command: Command) -> Command:
        command = click.option("--print-config", is_flag=True, help="Show each value and its source, and stop.")(
            command
        )
        command = click.option(
            "--set", "sets", multiple=True, metavar="SECTION.FIELD=VALUE", help="Set any value by its name in the file."
        )(command)
        command = click.option("--config", "file", metavar="FILE", help="TOML or JSON file of settings.")(command)
        for key, (each, kind) in reversed(options.items()):
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
        for field, (each, kind) in reversed(options_of(request).items()):
            shown: dict[str, Any] = {"metavar": each.name.rpartition("-")[2].upper()}
            if kind is bool or each.bare:
                shown = {"is_flag": True} if kind is bool else shown | {"is_flag": False, "flag_value": each.bare}
            command = click.option(each.flag, field, default=None, help=f"{each.help}.", **shown)(command)
        return command

    return decorate


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that the command line set, by "section.field"."""
    return {name.replace("__", "."): value for name, value in options.items() if value is not None}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(inat_job.__version__, prog_name="inat-job")
@click.pass_context
def cli(context: click.Context) -> None:
    """Train, test and report an image classifier; a job that is stopped goes on where it was."""
    exit.keep_silent(context.invoked_subcommand == "status")


@cli.command()
@setting_options("a")
def parta(**options: Any) -> None:
    """Train a five-block CNN from scratch, test it, report."""
    _run_part("a", detect.detect_platform(), **options)


@cli.command()
@setting_options("b")
def partb(**options: Any) -> None:
    """Fine-tune a network pretrained on ImageNet, test it, report."""
    _run_part("b", detect.detect_platform(), **options)


@cli.command()
@setting_options(None)
def train(**options: Any) -> None:
    """SageMaker's word: run the part that the hyperparameter `part` names, with the others as options."""
    place = detect.detect_platform()
    _run_part(part_of(place), place, **options)


@cli.command()
@click.option(
    "--checkpoint", required=True, envvar="INAT_CHECKPOINT", metavar="URI", help="A run, or a <step>.ckpt of it."
)
@setting_options("a", TEST_TAKES)
def test(checkpoint: str, sets: tuple[str, ...], file: str | None, print_config: bool, **options: Any) -> None:
    """Evaluate a run's checkpoint on the test split, without training."""
    from inat_job.commands import test as evaluate

    place = detect.detect_platform()
    configuration = evaluate.settings_of(checkpoint, _given(options), sets, file, STOP, place)
    if print_config:
        click.echo(configuration.text())
        return
    exit.watch(configuration.settings, STOP)
    evaluate.run(configuration.settings, checkpoint, STOP, STARTED, configuration.given, place)


@cli.command()
@click.argument("run")
@request_options(StatusOptions)
@setting_options("a", STATUS_TAKES)
def status(run: str, watch: bool, **options: Any) -> None:
    """Tell where RUN stands: a run id under --output, or a URI."""
    if settings := _settled("a", detect.detect_platform(), taken=STATUS_TAKES, **options):
        from inat_job.commands import status as job

        job.run(settings, run, parsed(StatusOptions, {"watch": watch}), STOP)


@cli.command()
@request_options(PrepareOptions)
@setting_options("a", PREPARE_TAKES)
def prepare(prune: str | None, **options: Any) -> None:
    """Pull and decode a data set, and stop: later runs find it ready."""
    if settings := _settled("a", detect.detect_platform(), taken=PREPARE_TAKES, **options):
        from inat_job.commands import prepare as job

        exit.watch(settings, STOP)
        job.run(settings, parsed(PrepareOptions, {"prune": prune}), STOP, STARTED)


@cli.command()
@click.option("--part", required=True, type=click.Choice(list(RECIPES)), help="Which part's run is measured.")
@request_options(BenchOptions)
@setting_options(None)
def bench(part: str, **options: Any) -> None:
    """Measure every stage of a run beside its limit, and name the one that bounds."""
    request = parsed(BenchOptions, {name: options.pop(name) for name in options_of(BenchOptions)})
    if settings := _settled(part, detect.detect_platform(), **options):
        from inat_job.commands import bench as job

        exit.watch(settings, STOP)
        job.run(settings, request, STOP, STARTED)


@cli.command()
@click.argument("target", type=click.Choice(submission.TARGETS), metavar="|".join(submission.TARGETS))
@request_options(submission.SubmitOptions)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
def submit(target: str, words: tuple[str, ...], **options: Any) -> None:
    """Submit a command to a cluster, as in `submit k8s --image IMAGE -- parta --output s3://bucket/runs`."""
    from inat_job.commands import submit as job

    job.run(target, parsed(submission.SubmitOptions, options), words, _line, STOP)


def _line(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A command line's name and options, as this program takes them."""
    above = click.Context(cli, info_name="inat-job", **cli.context_settings)
    name, command, rest = cli.resolve_command(above, list(words))
    return str(name), cast(click.Command, command).make_context(name, rest, parent=above).params


@cli.command()
@click.option("--part", type=click.Choice(list(RECIPES)), help="Which part's run is asked about; else a.")
@setting_options(None)
def preflight(part: str | None, **options: Any) -> None:
    """Look in seconds whether all is there that parta or partb needs, and change nothing."""
    place = detect.detect_platform()
    if settings := _settled(part_or(part, place), place, **options):
        from inat_job.commands import preflight as job

        job.run(settings, place, STOP, STARTED)


def _settled(
    part: str,
    place: Platform,
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


def _run_part(part: str, place: Platform, **options: Any) -> None:
    if settings := _settled(part, place, **options):
        from inat_job.commands import train as job

        exit.watch(settings, STOP)
        job.run(settings, STOP, STARTED, place)


def main() -> None:
    """Run a command; the last line on stderr of a failure is one sentence."""
    STOP.install()
    exit.calm()
    try:
        cli.main(standalone_mode=False)
        exit.succeed()
    except click.ClickException as error:
        shown = io.StringIO()  # it quotes what was typed
        error.show(shown)
        exit.refuse(shown.getvalue(), error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        exit.fail("Stopped.", Preempted.exit_code)
    except Exception as error:
        exit.give_up(error, STOP)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        exit.leave(int(end.code or 0))
    exit.leave(0)
