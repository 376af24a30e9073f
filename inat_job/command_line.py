"""How click shows and reads our options: in groups, with defaults and ranges, and with an answer for a near miss.

Together with entrypoint.py, which defines the commands, the only module that imports click.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from inat_job import near_misses, option_help
from inat_job.configuration import options_by_key, takes
from inat_job.option_help import OptionHelp
from inat_job.options import Option, options_of
from inat_job.platforms import submission
from inat_job.recipes import RECIPES

_FIRST_COLUMN = 30
_UNBROKEN = "\N{NO-BREAK SPACE}"
_UNBROKEN_UP_TO = 46
"""Characters of a default and its range that `--help` keeps on one line."""

_MISSING = {
    "checkpoint": "name a run, such as --checkpoint runs/parta-0123456789ab",
    "runs": "name two runs or more, such as parta-0123456789ab partb-0123456789ab",
    "model": "name a run, such as --model runs/parta-0123456789ab",
    "paths": "name an image, a folder or an archive",
    "part": "use --part a or --part b",
    "target": f"use {' or '.join(submission.TARGETS)}",
}

Decorator = Callable[[Any], Any]


class GroupedOption(click.Option):
    """An option with the title of the group that `--help` lists it in; `needs_value` is whether a word must follow."""

    def __init__(self, *declarations: Any, group: str, **attributes: Any) -> None:
        super().__init__(*declarations, **attributes)
        self.group, self.needs_value = group, not self.is_flag and "flag_value" not in attributes


class OneOf(click.Choice[str]):
    """A choice whose error names the option, the wrong value and the allowed ones."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices and param:
            ending = near_misses.ending(near_misses.choice(str(value), [str(each) for each in self.choices]))
            raise click.UsageError(f"{_label(param)} is {value!r}: it must be one of {', '.join(self.choices)}{ending}")
        return str(value)


class Lines(click.types.StringParamType):
    """Text of an option that may be repeated: a variable has one value a line, and spaces belong to a value."""

    envvar_list_splitter = "\n"


class JobCommand(click.Command):
    """A command whose help lists options in groups, and which suggests the right option for a mistyped one."""

    def get_help(self, ctx: click.Context) -> str:
        return super().get_help(ctx).replace(_UNBROKEN, " ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and not isinstance(param, click.Argument):  # which the usage line and the first sentence explain
                groups.setdefault(getattr(param, "group", "Help"), []).append(record)
        for title, rows in groups.items():
            with formatter.section(title):  # the first column is as wide in every group
                formatter.write_dl([(name.ljust(_FIRST_COLUMN), text) for name, text in rows], col_max=_FIRST_COLUMN)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = list(args)
        self._refuse_option_as_value(ctx, words)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            commands = ctx.parent.command.commands if ctx.parent and isinstance(ctx.parent.command, Commands) else {}
            flags = {name: _flags(command) for name, command in commands.items()}
            message = near_misses.no_option(error.option_name, str(self.name), _flags(self), flags)
            raise click.UsageError(message, ctx) from None
        except click.UsageError as error:
            if type(error) is not click.UsageError or "unexpected extra" not in error.message:
                raise
            raise click.UsageError(self._extra_words(words), ctx) from None

    def _refuse_option_as_value(self, ctx: click.Context, words: Sequence[str]) -> None:
        """Raise UsageError where an option of this command is in the place of another one's value."""
        flags, position = {**_flags(self), **dict.fromkeys(ctx.help_option_names)}, 0
        while position < len(words) - 1 and words[position] != "--":
            if getattr(flags.get(words[position]), "needs_value", False):
                position += 1
                if (value := words[position].partition("=")[0]) in flags:
                    raise click.UsageError(near_misses.option_as_value(words[position - 1], value), ctx)
            position += 1

    def _extra_words(self, words: Sequence[str]) -> str:
        flags, flag, values = _flags(self), "", list[str]()
        for word in (*words, "--"):
            if not word.startswith("-"):
                values.append(word)
                continue
            param = flags.get(flag)
            switch = isinstance(param, click.Option) and param.is_flag
            if param and len(values) > (0 if switch else 1):
                off = next(iter(param.secondary_opts), "")
                return near_misses.one_value_too_many(flag, values, "" if switch else str(param.metavar), off)
            flag, equals, value = word.partition("=")
            values = [value] if equals else []
        return near_misses.no_argument(words[0], str(self.name))


class Commands(click.Group):
    """The commands in the order of their definition, each with the whole first sentence of its help."""

    command_class = JobCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(1000)) for name, command in self.commands.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            ending = near_misses.ending(near_misses.command(error.command_name, self.commands))
            raise click.UsageError(f"There is no command {error.command_name!r}{ending}", ctx) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            flag = error.option_name
            command = next((name for name, each in self.commands.items() if flag in _flags(each)), None)
            where = f"belongs after the command, as in `{command} {flag}`" if command else "is no option: see --help"
            raise click.UsageError(f"{flag} {where}.", ctx) from None


def _flags(command: click.Command) -> dict[str, click.Parameter]:
    return {flag: each for each in command.params for flag in (*each.opts, *each.secondary_opts) if flag[:1] == "-"}


def setting_options(
    command: str, parts: Sequence[str], taken: Collection[str] | None = None, lacking: Collection[str] = ()
) -> Decorator:
    """Options for the settings of some parts that a command takes and does not lack, and for `--config` and `--set`."""
    options = {key: entry for part in parts for key, entry in options_by_key(RECIPES[part]()).items()}
    texts = option_help.of_settings(command, parts)
    keys = [key for key in options if takes(taken, key) and not (lacking and takes(lacking, key))]
    made = []
    for section in option_help.TITLES:
        for key in (key for key in keys if key.startswith(f"{section}.")):
            name, group = key.replace(".", "__"), option_help.group_of(key, command, parts)
            made.append(_option(name, options[key][0], texts[key], group, f"/--no-{options[key][0].name}"))
    more = {"group": "Settings"}
    return _all(
        *made,
        option("--config", "file", metavar="PATH", help="TOML or JSON file of settings.", **more),
        option("--set", "sets", multiple=True, metavar="SECTION.FIELD=VALUE", help="Set a value by its name.", **more),
        option("--print-config", is_flag=True, help="Show each value and its source, and stop.", **more),
    )


def section_options(section: type, group: str) -> Decorator:
    """Options that are not settings, given the section that holds them."""
    texts, options = option_help.of_section(section), options_of(section)
    return _all(*(_option(field, options[field][0], texts[field], group) for field in options))


def _option(name: str, each: Option, help: OptionHelp, group: str, off: str = "") -> Decorator:
    """A click option that fills `name`; a switch that `off` can turn off too has no value where it is not given."""
    short = (each.short,) if each.short else ()
    if help.metavar:
        bare = {"is_flag": False, "flag_value": each.bare} if each.bare else {}
        completes = functools.partial(_completed, each)
        texts = {"metavar": help.metavar, "help": _text(help), "group": group, "multiple": each.repeated}
        return option(each.flag, *short, name, shell_complete=completes, **texts, **bare)
    return option(each.flag + off, *short, name, is_flag=True, default=None, help=_text(help), group=group)


def _text(help: OptionHelp) -> str:
    facts = help.facts.replace(" ", _UNBROKEN) if len(help.facts) < _UNBROKEN_UP_TO else help.facts
    return f"{help.meaning}." + (f"  [{facts}]" if facts else "")


def _completed(each: Option, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    if each.uri or each.metavar == "PATH":
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(choice) for choice in each.choices if choice.startswith(incomplete)]


def option(*declarations: str, **attributes: Any) -> Decorator:
    """click.option, with the title of its group."""
    return click.option(*declarations, cls=GroupedOption, **attributes)


def _all(*decorators: Decorator) -> Decorator:
    return lambda command: functools.reduce(lambda made, each: each(made), reversed(decorators), command)


def _label(param: click.Parameter) -> str:
    return param.opts[0] if isinstance(param, click.Option) else str(param.name).upper()


def sentence(error: click.ClickException) -> str:
    """What is wrong with a command line, and what to write instead."""
    if isinstance(error, click.MissingParameter) and error.param:
        return f"{_label(error.param)} is missing: {_MISSING.get(str(error.param.name), 'see --help')}."
    if isinstance(error, click.BadOptionUsage):
        if "does not take a value" in error.message:  # click's own words; it has no class for that
            return f"{error.option_name} takes no value: write it alone."
        return f"{error.option_name} needs a value after it: see --help."
    return error.format_message()
