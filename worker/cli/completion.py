"""`extract completion`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from worker.cli.options import as_json as json_option
from worker.cli.text import print_json, print_line

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", short_help="Complete commands, tasks, models and job ids in your shell.")
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@json_option
def command(shell: str | None, as_json: bool) -> int:
    """Print the script with which SHELL (default: yours) completes commands, options, tasks, models and job ids.

    \b
    Example: extract completion bash > extract.bash

    \b
    once   source <(extract completion bash)
    bash   extract completion bash > ~/.local/share/bash-completion/completions/extract
    zsh    extract completion zsh > "${fpath[1]}/_extract"
    fish   extract completion fish > ~/.config/fish/completions/extract.fish
    """
    from click.shell_completion import get_completion_class

    from extractor.errors import UsageError
    from worker.cli import group

    chosen = shell or Path(os.environ.get("SHELL", "")).name
    if not chosen:
        raise UsageError(f"SHELL is not set; name one of {', '.join(SHELLS)}")
    completion = get_completion_class(chosen)
    if chosen not in SHELLS or completion is None:
        raise UsageError(f"there is no completion for the shell {chosen!r}; name one of {', '.join(SHELLS)}")
    script = completion(group, {}, "extract", "_EXTRACT_COMPLETE").source()
    if as_json:
        print_json({"shell": chosen, "script": script})
        return 0
    for line in script.splitlines():
        print_line(line)
    return 0
