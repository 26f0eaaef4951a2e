"""Text of strangers in what a terminal or a page shows: no escape code reaches it, no markup is obeyed."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from service_machine import PROJECT, settings_without_worker

from extractor.errors import html_text, printable
from worker.batches.page import page as batch_page
from worker.cli import text
from worker.cli.views import job as job_view
from worker.cli.views.tables import PlainTable, styled
from worker.client.service import Service
from worker.records.records import Worker

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\r\x00"
MARKUP = "[/b][bold]x[link=http://evil]"
SEEN = ("cli/text.py", "cli/views/tables.py")


def is_harmless(shown: str) -> bool:
    return not any(c in shown for c in ESCAPES if not c.isprintable())


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain ä │ 日本", "plain ä │ 日本"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("bell\x07 del\x7f csi\x9b", "bell\\x07 del\\x7f csi\\x9b"),
        ("two\nlines\r\ttab", "two lines  tab"),
        ("turned \u202e round \u2066", "turned \\u202e round \\u2066"),
        ("half \udcff", "half \\udcff"),
        ("line\u2028end\u0085", "line end "),
        (MARKUP, MARKUP),
    ],
)
def test_what_does_not_print_is_shown_as_its_escape(raw, shown):
    assert printable(raw) == shown


def test_a_page_shows_text_of_strangers_and_obeys_none_of_it():
    assert html_text('<b title="\'">\x1b\x07') == "&lt;b title=&quot;&#x27;&quot;&gt;\\x1b\\x07"
    model = {"model": ESCAPES, "reference": ESCAPES, "parameters": 1, "left_out": {"t": ESCAPES}, "tasks": {}}
    facts = {"batch": "b1", "state": "failed", "asked": {"models": [ESCAPES]}, "counts": {}, "tasks": ["t"], "models": [model]}
    assert is_harmless(batch_page(facts | {"refused": [{"model": ESCAPES, "reason": ESCAPES}]}))


def test_lines_and_tables_show_text_of_strangers_as_it_is(capsys):
    text.print_line(ESCAPES + MARKUP)
    text.say(ESCAPES + MARKUP)
    table = PlainTable(title=ESCAPES + MARKUP)
    table.add_column(ESCAPES + MARKUP)
    table.add_row(ESCAPES + MARKUP)
    table.add_row(styled(ESCAPES + MARKUP, "red"))
    Console(width=200).print(table, highlight=False)
    said = capsys.readouterr()
    assert is_harmless(said.out + said.err)
    assert said.out.count(MARKUP) == 5
    assert MARKUP in said.err


def test_a_bar_shows_stage_and_notes_of_strangers_as_they_are(capsys):
    view = job_view.BarView("mine", Console(force_terminal=True, width=200, color_system=None))
    with view:
        view.show({"event": "stage", "stage": ESCAPES + MARKUP, "index": 1, "of": 1})
        view.show({"event": "note", "message": ESCAPES + MARKUP})
        view.show({"event": "progress", "step": 1, "total": 2, "metrics": {"loss": MARKUP}})
    shown = capsys.readouterr().out
    assert MARKUP in shown
    assert "\x1b]0" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


def test_records_workers_and_results_of_strangers_are_shown_and_break_nothing(machine, monkeypatch):
    monkeypatch.setenv("EXTRACT_NO_WORKER", "1")
    machine.submit("mine")
    client = machine.records.client
    for name in ("task", "model", "worker", "priority", "kind", "stage", "group"):
        client.hset("ex:job:mine", name, ESCAPES + MARKUP)
    client.hset("ex:job:mine", "group", "")
    client.hset("ex:job:mine", "created", "")
    machine.records.announce(Worker(ESCAPES + MARKUP, MARKUP, MARKUP, "", False, "1", ESCAPES + MARKUP, started=1e300), 60)
    client.zadd("ex:state:queued", {"mine": "-inf"})
    for arguments in (("list",), ("status", "mine"), ("status",)):
        answer = machine.extract(*arguments)
        assert (answer.code, answer.err) == (0, ""), arguments
        assert is_harmless(answer.out), arguments
        assert machine.extract(*arguments, "--json").code == 0
    folder = machine.finish("done")
    (folder / "result.json").write_text(json.dumps({"kind": ESCAPES + MARKUP, "loss": 1.5}))
    shown = job_view.summary_table({MARKUP: ESCAPES + MARKUP})
    Console(width=200).print(shown)
    assert machine.extract("result", "done").code == 1, "its manifest does not match"


def test_an_error_that_quotes_a_stranger_is_one_clean_line(machine):
    folder = machine.home / "model"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": ESCAPES, "architectures": [ESCAPES], "quantization_config": {"quant_method": ESCAPES}})
    )
    answer = machine.extract("submit", "--model", str(folder), "--task", "quote_close", "--print-spec", "--json")
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert is_harmless(answer.err)
    assert is_harmless(answer.json["error"]["message"])


def test_a_log_of_strangers_is_shown_clean(machine):
    folder = machine.settings.root / machine.submit("mine")
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text(json.dumps({"time": 1.0, "message": ESCAPES + MARKUP, "level": "error", "source": ESCAPES}) + "\n")
    answer = machine.extract("logs", "mine", "--no-worker")
    assert MARKUP in answer.out
    assert is_harmless(answer.out)


@pytest.mark.parametrize(
    "path", [p for p in sorted((PROJECT / "worker" / "cli").rglob("*.py")) if not str(p).endswith(SEEN)], ids=lambda p: p.name
)
def test_commands_print_only_through_the_modules_that_clean(path: Path):
    """`click.echo` stands where the text is ours alone, or a spec that a file takes over."""
    tree = ast.parse(path.read_text())
    named = {f"{node.module}.{alias.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not named & {"rich.table.Table", "click.echo", "click.secho", "rich.print"}
    printed = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("echo", "secho")]
    assert len(printed) == {"__init__.py": 2 * (path.parent.name == "cli"), "request.py": 1}.get(path.name, 0)


def test_what_a_worker_logs_is_clean(caplog):
    log = logging.getLogger("extract")
    text.clean_log()
    try:
        log.warning("job %s: %s", "mine", ESCAPES)
    finally:
        log.removeFilter(text._clean)
    assert is_harmless(caplog.records[-1].getMessage())
    assert caplog.records[-1].getMessage().startswith("job mine: ")


def test_json_holds_no_number_that_json_does_not_have(capsys):
    text.print_json({"loss": float("nan"), "list": [float("inf"), (1.5, -float("inf"))], "n": 1})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"loss": None, "list": [None, [1.5, None]], "n": 1}


@pytest.mark.parametrize(
    ("arguments", "code"), [(("models", "--json"), 1), (("models",), 1), (("tasks",), 1), (("nonsense", "--json"), 2), (("--help",), 1)]
)
def test_a_full_disk_under_the_output_is_one_line(machine, arguments, code):
    with open("/dev/full", "w") as full:
        done = run(machine, *arguments, stdout=full)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_or_full_stream_hides_no_exit_code(machine, closed):
    with open("/dev/full", "w") as full:
        assert run(machine, "nonsense", "--json", **{closed: full}).returncode == 2
    shell = f"{sys.executable} -m worker nonsense --json {'>&-' if closed == 'stdout' else '2>&-'}"
    assert subprocess.run(["sh", "-c", shell], cwd=PROJECT, capture_output=True).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_locale_without_the_letters_ends_no_command(machine, encoding):
    done = run(machine, "tasks", "show", "quote_close", "--model", "python-tiny", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2502" in done.stdout or "│" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("steer", "job", "--toward", "\udcff"),
        ("submit", "--model", "\udcff", "--task", "quote_close"),
        ("submit", "--model", "python-tiny", "--task", "quote_close", "--job-id", "\udcff"),
        ("train", "--set", "x=\udcff"),
        ("list", "--limit", "\udcff"),
    ],
)
def test_an_argument_that_is_not_text_is_one_line(machine, arguments):
    answer = machine.extract(*arguments)
    assert answer.code == 2
    assert (
        answer.err
        == "error: argument "
        + ascii(next(a for a in arguments if "\udcff" in a))
        + " is not UTF-8 text; write it in UTF-8, or rename the file that it names\n"
    )


def run(machine, *arguments: str, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "worker", *arguments]
    return subprocess.run(command, cwd=PROJECT, env=os.environ | environment, stdout=stdout, stderr=stderr, text=True, timeout=60)


class TestJobIds:
    """A job's id never stands in for a model."""

    @pytest.mark.parametrize("job", ["python-tiny", "Python-Tiny", "gpt2", "GPT2-xl", "distilgpt2"])
    def test_an_id_that_names_a_model_is_refused(self, machine, job):
        answer = machine.extract("train", "--no-worker", "--job-id", job)
        assert answer.code == 2
        assert f"--model {job}" in answer.err
        assert machine.records.get(job) is None

    @pytest.mark.parametrize("state", ["queued", "succeeded"])
    def test_a_record_of_that_id_changes_no_model(self, machine, state):
        """As a client of an earlier version, or one that writes to Redis itself, leaves it."""
        from worker.cli.connect import resolve_model

        service = machine.service
        for job in ("python-tiny", "gpt2"):
            service.records.create(job, {"spec": "{}", "kind": "train"})
            if state == "succeeded":
                service.records.claim(job, "token", 60, "h", "w", "")
                service.records.end(job, "token", "succeeded", str(machine.home))
            assert resolve_model(job, service.settings, service.records) == job

    def test_a_job_that_is_meant_is_said(self, machine):
        from worker.cli.connect import resolve_model

        folder = machine.finish("mine")
        for model in ("mine", "job:mine"):
            assert resolve_model(model, machine.settings, machine.records) == str(folder / "model")
        answer = machine.extract("tasks", "show", "quote_close", "--model", "job:nobody")
        assert (answer.code, answer.err) == (3, "error: job 'nobody' has no finished result here; `extract list` shows all jobs\n")


@pytest.mark.parametrize("setting", [("maxmemory", "1"), ("min-replicas-to-write", "3")])
def test_a_cancel_that_redis_refuses_is_not_a_job_that_had_ended(machine, setting):
    machine.submit("mine")
    records = Service(settings_without_worker(), machine.service.url, machine.records).records
    records.claim("mine", "token", 60, "h", "w", "")
    records.client.config_set(*setting)
    answer = machine.extract("cancel", "mine")
    assert answer.code == 4
    assert "job 'mine' is running, not cancelled: Redis refuses to write" in answer.err
    records.client.config_set(setting[0], "0")
    assert "cancelling job mine" in machine.extract("cancel", "mine").out
