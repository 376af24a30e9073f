"""The command line: every setting is an option, and every error of ours becomes its exit code."""

import time

STARTED = time.perf_counter()

from inat_job import signals  # noqa: E402
from inat_job.host import memory, process  # noqa: E402

STOP = signals.StopFlag()
if __name__ == "__main__":
    process.open_standard_streams()  # before a file can take the place of one
    STOP.install()  # before all that takes time: the first process of a container ignores a signal without a handler

import functools  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Collection, Sequence  # noqa: E402
from typing import Any, cast  # noqa: E402

import click  # noqa: E402

import inat_job  # noqa: E402
from inat_job import configuration, events  # noqa: E402
from inat_job.command_line import Commands, Decorator, Lines, OneOf, option, section_options, sentence, setting_options  # noqa: E402
from inat_job.command_options import (  # noqa: E402
    BenchOptions,
    CompareOptions,
    EvaluationOptions,
    LogOptions,
    PredictOptions,
    PrepareOptions,
    PruneOptions,
    StatusOptions,
    SweepOptions,
)
from inat_job.configuration import (  # noqa: E402
    COMPARE_TAKES,
    PREDICT_TAKES,
    PREPARE_TAKES,
    PRUNE_TAKES,
    STATUS_TAKES,
    SWEEP_TAKES,
    TEST_TAKES,
)
from inat_job.distributed import ranks  # noqa: E402
from inat_job.errors import Preempted  # noqa: E402
from inat_job.options import options_of, parse_section  # noqa: E402
from inat_job.platforms import detect, slurm_step, submission  # noqa: E402
from inat_job.platforms.platform import NO_PLATFORM, Platform  # noqa: E402
from inat_job.platforms.sagemaker import training_job  # noqa: E402
from inat_job.platforms.settings_layer import configured, part_of, part_or, sweep_of  # noqa: E402
from inat_job.recipes import RECIPES  # noqa: E402
from inat_job.run import exit  # noqa: E402
from inat_job.settings import Settings  # noqa: E402

STARTED = process.start_time() or STARTED  # the interpreter's own start counts too

PROGRAM, COMPLETION = "inat-job", "_INAT_JOB_COMPLETE"
"""The command that a shell completes, and the variable by which its completion asks: click's own mechanism."""

Function = Callable[..., None]


def part_option(text: str, required: bool) -> Decorator:
    """`--part`, for the commands about a run of either part."""
    return option("--part", required=required, type=OneOf(list(RECIPES)), metavar="a|b", help=text, group="Part")


def logged(function: Function) -> Function:
    """Have a command log as its options and the environment say, and call it with the platform that it runs on."""

    @functools.wraps(function)
    def run(**options: Any) -> None:
        log = configuration.log_options({field: options.pop(field) for field in options_of(LogOptions)})
        platform = detect.detect_platform()
        for_people = platform.name in (NO_PLATFORM.name, detect.CONTAINER.name, slurm_step.NAME)
        rows = options.get("json") is True
        document = rows or options.get("print_config") or options.get("dry_run")  # which has stdout to itself
        json = log.log_format == "json" or (log.log_format == "auto" and not for_people)
        events.configure(not json or bool(document), log.quiet, log.verbose, drawn=ranks.has_caller())
        own = ranks.from_environment()
        if own is None or (own.rank == 0 and not ranks.message_file()):  # once for all ranks
            for warning in configuration.unused_variables():
                events.warn(warning)
        function(platform=platform, **options)

    return section_options(LogOptions, "Log")(run)  # type: ignore[no-any-return]


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that the command line set, by "section.field"."""
    return {name.replace("__", "."): value for name, value in options.items() if value is not None}


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each command has its own --help. Settings are environment variables too: INAT_BATCH_SIZE=32 is "
    "--batch-size 32.",
)
@click.version_option(inat_job.__version__, prog_name=PROGRAM)
@click.pass_context
def cli(context: click.Context) -> None:
    """Train and test an image classifier; the same command resumes a job that was stopped."""
    exit.skip_termination_message(context.invoked_subcommand in ("status", "compare", "prune"))


@cli.command(epilog="Example: parta --data demo: --image-size 64 --epochs 5")
@setting_options("parta", ["a"])
@logged
def parta(**options: Any) -> None:
    """Train a five-block CNN from scratch, test it and write a report."""
    _run_part("a", **options)


@cli.command(epilog="Example: partb --data demo: --backbone resnet18 --strategy head --epochs 5")
@setting_options("partb", ["b"])
@logged
def partb(**options: Any) -> None:
    """Fine-tune a network pretrained on ImageNet, test it and write a report."""
    _run_part("b", **options)


@cli.command(epilog="Example: test --checkpoint runs/parta-0123456789ab")
@option(
    "--checkpoint",
    required=True,
    multiple=True,
    type=Lines(),
    envvar="INAT_CHECKPOINT",
    metavar="URI",
    help="A run, whose best checkpoint is taken, one <step>.ckpt of it, or a folder with an exported model; may be "
    "repeated.",
    group="Checkpoint",
)
@setting_options("test", ["a"], TEST_TAKES)
@section_options(EvaluationOptions, "Evaluation")
@logged
def test(
    platform: Platform,
    checkpoint: tuple[str, ...],
    tta: str | None,
    sets: tuple[str, ...],
    file: str | None,
    print_config: bool,
    **options: Any,
) -> None:
    """Evaluate checkpoints or exported models on the test split, without training."""
    memory.require_address_space()
    from inat_job.commands import test as evaluate

    request = parse_section(EvaluationOptions, {"tta": tta})
    made = [evaluate.settings_of(each, _given(options), sets, file, STOP, platform) for each in checkpoint]
    if print_config:
        click.echo("\n".join(each.text() for each in made))
        return
    exit.watch(made[0].settings, STOP)
    evaluate.run_all(made, checkpoint, request, STOP, STARTED, platform)


@cli.command(epilog="Example: prepare --data images.zip --image-size 224")
@section_options(PrepareOptions, "Old caches")
@setting_options("prepare", ["a"], PREPARE_TAKES)
@logged
def prepare(prune: str | None, **options: Any) -> None:
    """Download and decode a data set for later runs, or delete old caches."""
    if settings := _settled("a", taken=PREPARE_TAKES, **options):
        memory.require_address_space()
        from inat_job.commands import prepare as job

        exit.watch(settings, STOP)
        job.run(settings, parse_section(PrepareOptions, {"prune": prune}), STOP, STARTED)


@cli.command(epilog="Example: predict --model runs/partb-0123456789ab photo.jpg photos/ s3://bucket/more.zip")
@click.argument("paths", nargs=-1, required=True, metavar="PATHS")
@option(
    "--model",
    required=True,
    envvar="INAT_MODEL",
    metavar="URI",
    help="A run, its model/ folder, or a folder with model.json.",
    group="Model",
)
@section_options(PredictOptions, "Prediction")
@setting_options("predict", ["a"], PREDICT_TAKES)
@logged
def predict(paths: tuple[str, ...], model: str, **options: Any) -> None:
    """Classify PATHS: images, folders, archives, or s3:// addresses of these."""
    request = parse_section(PredictOptions, {name: options.pop(name) for name in options_of(PredictOptions)})
    if settings := _settled("a", taken=PREDICT_TAKES, **options):
        if request.runtime == "torch":
            memory.require_address_space()
        from inat_job.commands import predict as job

        exit.watch(settings, STOP)
        job.run(settings, model, paths, request, STOP)


@cli.command(epilog="Example: status s3://bucket/runs/parta-0123456789ab --watch")
@click.argument("run", required=False)
@section_options(StatusOptions, "Watching")
@setting_options("status", ["a"], STATUS_TAKES)
@logged
def status(run: str | None, watch: bool, **options: Any) -> None:
    """Show the state of RUN, a run id under --output or a URI; without it, a table of the runs under --output."""
    if settings := _settled("a", taken=STATUS_TAKES, **options):
        from inat_job.commands import status as job

        job.run(settings, run, parse_section(StatusOptions, {"watch": watch}), STOP)


@cli.command(epilog="Example: prune --runs 30d --output s3://bucket/runs")
@section_options(PruneOptions, "Runs")
@setting_options("prune", ["a"], PRUNE_TAKES)
@logged
def prune(runs: str | None, **options: Any) -> None:
    """List the unfinished runs under --output, and delete old ones."""
    request = parse_section(PruneOptions, {"runs": runs})
    if settings := _settled("a", taken=PRUNE_TAKES, **options):
        from inat_job.commands import prune_runs as job

        job.run(settings, request, STOP)


@cli.command(epilog="Example: compare parta-0123456789ab s3://bucket/runs/partb-0123456789ab")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@section_options(CompareOptions, "Result")
@setting_options("compare", ["a"], COMPARE_TAKES)
@logged
def compare(runs: tuple[str, ...], **options: Any) -> None:
    """Compare finished RUNs, run ids under --output, folders or URIs: accuracies, their ratio, tests, cost."""
    request = parse_section(CompareOptions, {name: options.pop(name) for name in options_of(CompareOptions)})
    if settings := _settled("a", taken=COMPARE_TAKES, **options):
        from inat_job.commands import compare as job

        job.run(settings, runs, request, STOP)


@cli.command(epilog="Example: preflight --part b --data s3://bucket/images.zip --output s3://bucket/runs")
@part_option("Which part's run is checked.  [default: a]", required=False)
@setting_options("preflight", list(RECIPES), lacking=configuration.PREFLIGHT_LACKS)
@logged
def preflight(platform: Platform, part: str | None, **options: Any) -> None:
    """Check within ten seconds that everything parta or partb needs is there, and change nothing."""
    if settings := _settled(part_or(part, platform), platform, **options):
        from inat_job.commands import preflight as job

        job.run(settings, platform, STOP, STARTED)


@cli.command(
    epilog="Examples: submit k8s --image IMAGE --role ARN -- parta --output s3://bucket/runs, and with batch or "
    "sagemaker instead of k8s; --dry-run shows what would be sent."
)
@click.argument("target", type=OneOf(submission.TARGETS), metavar="|".join(submission.TARGETS))
@section_options(submission.SubmitOptions, "Job")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
@logged
def submit(target: str, words: tuple[str, ...], platform: Platform, **options: Any) -> None:
    """Submit a command to Kubernetes, AWS Batch or SageMaker."""
    from inat_job.commands import submit as job

    job.run(target, parse_section(submission.SubmitOptions, options), words, _line, STOP)


def _line(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The name and the options of a command line, as this program reads it."""
    above = click.Context(cli, info_name=PROGRAM, **cli.context_settings)
    name, command, rest = cli.resolve_command(above, list(words))
    return str(name), cast(click.Command, command).make_context(name, rest, parent=above).params


@cli.command(epilog="Example: bench --part a --data images.zip --stages decode,epoch")
@part_option("Which part's run is measured.", required=True)
@section_options(BenchOptions, "Measurement")
@setting_options("bench", list(RECIPES), lacking=configuration.BENCH_LACKS)
@logged
def bench(part: str, **options: Any) -> None:
    """Measure each stage of a run against its limit, and name the slowest."""
    request = parse_section(BenchOptions, {name: options.pop(name) for name in options_of(BenchOptions)})
    if settings := _settled(part, **options):
        memory.require_address_space()
        from inat_job.commands import bench as job

        exit.watch(settings, STOP)
        job.run(settings, request, STOP, STARTED)


@cli.command(epilog="Example: sweep --part a --data images.zip --trials 30 --epochs 9")
@part_option("Which part's settings are searched.", required=True)
@section_options(SweepOptions, "Search")
@setting_options("sweep", list(RECIPES), SWEEP_TAKES)
@logged
def sweep(platform: Platform, part: str, **options: Any) -> None:
    """Search for the best settings by validation accuracy, train them again and test them once."""
    request = parse_section(SweepOptions, {name: options.pop(name) for name in options_of(SweepOptions)})
    _run_sweep(platform, part, request, **options)


def _run_sweep(
    platform: Platform,
    part: str,
    request: SweepOptions,
    sets: tuple[str, ...],
    file: str | None,
    print_config: bool,
    **options: Any,
) -> None:
    made = configured(platform, part, _given(options), sets, file, SWEEP_TAKES)
    from inat_job.commands import sweep as job

    if print_config:
        click.echo(f"{made.text(SWEEP_TAKES)}\n# What is searched, as a file for --space:\n")
        click.echo(job.space_text(made.settings, request, made.given))
        return
    memory.require_address_space()
    exit.watch(made.settings, STOP)
    job.run(made.settings, request, made.given, STOP, STARTED)


@cli.command()
@setting_options("train", list(RECIPES))
@logged
def train(platform: Platform, **options: Any) -> None:
    """On SageMaker, run the part that the hyperparameter `part` names, or its sweep."""
    part, sweep = part_of(platform), sweep_of(platform)
    if sweep is None:
        _run_part(part, platform, **options)
    else:
        _run_sweep(platform, part, parse_section(SweepOptions, sweep), **options)


def _settled(
    part: str,
    platform: Platform,
    sets: tuple[str, ...],
    file: str | None,
    print_config: bool,
    taken: Collection[str] | None = None,
    **options: Any,
) -> Settings | None:
    """The settings of a command that takes all or some, or None if they are only printed."""
    made = configured(platform, part, _given(options), sets, file, taken)
    if print_config:
        click.echo(made.text(taken))
    return None if print_config else made.settings


def _run_part(part: str, platform: Platform, **options: Any) -> None:
    if settings := _settled(part, platform, **options):
        memory.require_address_space()
        from inat_job.commands import train as job

        exit.watch(settings, STOP)
        job.run(settings, STOP, STARTED, platform)


def main() -> None:
    """Run a command; the last line on stderr of a failure is one sentence."""
    STOP.install()
    exit.silence_libraries()
    if len(sys.argv) == 1 and training_job.base_folder(os.environ):
        sys.argv.append("train")  # which the local mode of SageMaker's SDK does not say
    try:
        completing = PROGRAM if COMPLETION in os.environ else None
        cli.main(prog_name=completing, complete_var=COMPLETION, standalone_mode=False)
        exit.succeed()
    except SystemExit as end:
        if not type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):
            raise
        exit.exit_now(0 if end.code == 1 else int(end.code or 0))  # click's word for a reader that is gone
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        exit.fail("The command is missing: use one of those above, such as parta.", error.exit_code)
    except click.ClickException as error:
        exit.fail(sentence(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        exit.fail("Stopped.", Preempted.exit_code)
    except Exception as error:
        exit.fail_with(error, STOP)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as end:
        exit.exit_now(int(end.code or 0))
    exit.exit_now(0)
