"""The `extract` command: a group whose commands are modules of this folder, loaded when they are called.

Exit codes: 0 ok, 1 job failed, 2 usage, 3 not found, 4 service unreachable, 5 cancelled, 130 interrupted.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

import click

from extractor.errors import DiskFull, ExtractorError, ServiceUnavailable, UsageError, printable

MAX_ERROR_CHARACTERS = 900  # longest error line that is printed in full
GROUPS = {  # as `extract --help` shows the commands
    "Find a circuit": ("submit", "train", "tasks", "models", "import"),
    "Look": ("list", "status", "watch", "logs", "result", "show", "view", "compare", "motifs", "steer"),
    "Many models, many settings": ("batch", "sweep"),
    "Run the service": ("worker", "cancel", "gc", "run", "server", "metrics", "caretaker", "completion"),
}
# Command -> module of this folder. `list` is not called list.py: as an attribute of this package it would hide the builtin.
# `import` cannot be a module at all.
_OTHER_MODULES = {"list": "jobs", "import": "import_checkpoint"}
COMMANDS = {name: _OTHER_MODULES.get(name, name) for names in GROUPS.values() for name in names}
ALIASES = {"open": "view", "ls": "list", "ps": "list", "log": "logs", "diff": "compare", "rm": "cancel", "stop": "cancel"}


class LazyGroup(click.Group):
    """Imports a command's module only when the command is called or listed. Each module defines `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"worker.cli.{COMMANDS[name]}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            close = difflib.get_close_matches(args[0], [*COMMANDS, *ALIASES], 1)
            hint = f"did you mean `extract {ALIASES.get(close[0], close[0])}`?" if close else "see `extract --help`"
            raise click.UsageError(f"there is no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in GROUPS.items():
            with formatter.section(title):
                found = [(name, self.get_command(ctx, name)) for name in names]
                formatter.write_dl([(name, command.get_short_help_str(100)) for name, command in found if command is not None])


def _show_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"extract {version('extractor')}")
        except PackageNotFoundError:
            click.echo("extract (from a checkout that is not installed)")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version and exit.")
def group() -> None:
    """Find the small circuit of a language model that performs one task.

    \b
    Example: extract submit --model python-tiny --task quote_close --wait
    """


def _complete() -> NoReturn:
    """What the shell asks while the user types: answered without a word on the terminal."""
    with suppress(Exception):
        group.main([], prog_name="extract")
    sys.exit(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; an error is one line on stderr, and an object on stdout with --json."""
    if "_EXTRACT_COMPLETE" in os.environ:
        _complete()
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale that has no letter for a bar or a name must not end a command
    try:
        _check_text(arguments)
        _check_place()
        code = group.main(arguments, prog_name="extract", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the complete help text
        path = error.ctx.command_path if error.ctx else "extract"
        code = _complain(type(error).__name__, f"a command is missing; see `{path} --help`", 2, arguments)
    except click.ClickException as error:
        code = _complain(type(error).__name__, error.format_message() or "a command is missing; see `extract --help`", 2, arguments)
    except (KeyboardInterrupt, click.Abort):
        code = _complain("Interrupted", "interrupted", 130, arguments)
    except BrokenPipeError:
        _discard(sys.stdout)
        code = 0
    except Exception as error:
        if os.environ.get("EXTRACT_DEBUG"):
            raise
        known = _translate(error)
        code = _complain(type(known).__name__, str(known), known.exit_code, arguments)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        _discard(sys.stdout)  # else Python tries again at its end, and exits with 120
    sys.exit(code if isinstance(code, int) else 0)


def _check_place() -> None:
    """Refuse a current folder that no longer exists: libraries fail there in their own words. Raises UsageError."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(f"the current folder cannot be used ({error.strerror}); change to another one") from None


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse arguments that are not text in UTF-8: no spec, record or JSON output can hold them. Raises UsageError."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"argument {ascii(argument)[:80]} is not UTF-8 text; write it in UTF-8, or rename the file that it names"
            ) from None


def _translate(error: Exception) -> ExtractorError:
    """The error to show to the user. Errors of redis and kombu are recognised without importing those packages."""
    if isinstance(error, ExtractorError):
        return error
    for module, name in (("redis.exceptions", "RedisError"), ("kombu.exceptions", "OperationalError")):
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            return ServiceUnavailable(f"unexpected answer from Redis ({error}); see `extract server status`")
    if isinstance(error, OSError) and error.filename is not None:
        return ExtractorError(f"{error.filename}: {error.strerror}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return DiskFull(f"the output cannot be written ({error.strerror}); free some space, or write it elsewhere")
    return ExtractorError(f"internal error: {type(error).__name__}: {error}; run again with EXTRACT_DEBUG=1 for the traceback")


def _complain(kind: str, message: str, code: int, arguments: Sequence[str]) -> int:
    line = " ".join(printable(message).split())
    if len(line) > MAX_ERROR_CHARACTERS:  # it may quote user input of any length; the advice is at its end
        line = f"{line[: MAX_ERROR_CHARACTERS - 300]} ... {line[-300:]}"
    _write(sys.stderr, f"error: {line}")
    if "--json" in arguments:
        report: dict[str, Any] = {"error": {"type": kind, "message": line, "exit_code": code}}
        _write(sys.stdout, json.dumps(report))
    return code


def _write(stream: TextIO | None, line: str) -> None:
    """Print a line; the exit code still tells the error where a stream is closed (None) or its disk is full."""
    if stream is None:  # for print, this would mean standard output
        return
    try:
        print(line, file=stream, flush=True)
    except (OSError, ValueError):
        _discard(stream)


def _discard(stream: TextIO) -> None:
    """Send all further output of a stream nowhere: prevents a second error when Python flushes at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
