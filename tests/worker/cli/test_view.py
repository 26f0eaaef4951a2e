"""`extract view` and `extract compare --out`: pages on the loopback address, and as files."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from worlds import ROOT

import extractor
from extractor.errors import UsageError
from worker.cli import group
from worker.cli.pages import Viewer
from worker.client.page_server import PageServer

FOLDER = ROOT / "tests" / "frozen" / "result"  # of the last release
TASK = "for_while"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """Serves the frozen result twice, the second time from a folder with an odd name."""
    odd = tmp_path_factory.mktemp("view") / "a <b> & c"
    shutil.copytree(FOLDER, odd)
    (odd.parent / "secret.json").write_text("{}", encoding="utf-8")
    (odd / "link.json").symlink_to(odd.parent / "secret.json")
    viewer = Viewer(["first", "a <b>"], [extractor.load(FOLDER), extractor.load(odd)])
    server = PageServer(viewer.pages, viewer.folders)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def get(server: PageServer, path: str, host: str | None = None) -> tuple[int, str, str]:
    """(status, kind, text) of a path that is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.getheader("Content-Type") or "", answer.read().decode("utf-8", "replace")
    connection.close()
    return found


def test_the_first_page_lists_every_circuit_and_compares_two(server):
    status, kind, text = get(server, "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert f'href="/0/circuits/{TASK}/report.html"' in text
    assert f'href="/1/circuits/{TASK}/report.html"' in text
    assert "a &lt;b&gt;" in text
    assert "a <b>" not in text
    assert f'<option value="1:{TASK}" selected>' in text
    assert "<script" not in text


def test_reports_are_served_as_they_are(server):
    status, _, text = get(server, f"/1/circuits/{TASK}/report.html")
    assert (status, text) == (200, (FOLDER / "circuits" / TASK / "report.html").read_text(encoding="utf-8"))
    assert get(server, f"/0/circuits/{TASK}/circuit.svg")[1] == "image/svg+xml"


@pytest.mark.parametrize(
    "path",
    [
        *("/0/../../../etc/passwd", "/0/%2e%2e/%2e%2e/etc/passwd", "/0//etc/passwd", "/1/../secret.json", "/1/link.json", "/2/index.html"),
        *("/0/model/model.safetensors", "/0/circuits", "/0/%00", "/0/circuits/nothing/report.html", "/x", "/0"),
    ],
)
def test_nothing_else_is_served(server, path):
    status, kind, text = get(server, path)
    assert (status, kind, text) == (404, "text/plain; charset=utf-8", "there is no such page\n")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example:1", "localhost.evil:1"])
def test_a_name_that_is_not_this_machine_is_refused(server, host):
    assert get(server, "/", host)[0] == 403


def test_two_circuits_are_compared_on_demand(server):
    status, _, text = get(server, f"/compare?first=0:{TASK}&second=1:{TASK}")
    nodes = len(extractor.load(FOLDER).circuit.nodes)
    assert status == 200
    assert f"Circuits of {nodes} nodes and {nodes} nodes of one sparse model share {nodes} nodes" in text
    assert f'href="/1/circuits/{TASK}/report.html"' in text
    assert text.count('class="edge') == len(extractor.load(FOLDER).circuit.edges)
    status, _, text = get(server, "/compare?first=0:nothing&second=<b>")
    assert status == 400
    assert text == f"there is no circuit '0:nothing' here; it has 0:{TASK}, 1:{TASK}\n"


def test_motifs_of_all_circuits_are_counted_on_demand(server):
    status, _, text = get(server, "/motifs")
    assert status == 200
    assert "Motifs of 2 circuits" in text
    assert f'href="/0/circuits/{TASK}/report.html' in text


def test_a_port_in_use_is_said(server):
    with pytest.raises(UsageError, match=f"port {server.server_port} cannot be used"):
        PageServer({}, {}, server.server_port)


def test_a_damaged_result_is_one_line(server, tmp_path):
    shutil.copytree(FOLDER, tmp_path / "out")
    viewer = Viewer(["out"], [extractor.load(tmp_path / "out")])
    own = PageServer(viewer.pages, viewer.folders)
    threading.Thread(target=own.serve_forever, daemon=True).start()
    (tmp_path / "out" / "circuits" / TASK / "result.json").write_text("{}", encoding="utf-8")
    status, _, text = get(own, "/")
    own.shutdown()
    own.server_close()
    assert status == 400
    assert "is not the content of a result" in text
    assert text.count("\n") == 1


def test_the_command_serves_until_it_is_told_to_stop():
    command = [sys.executable, "-m", "worker.cli", "view", str(FOLDER), "--json"]
    run = subprocess.Popen([sys.executable, "-c", f"from worker.cli import main; main({command[3:]!r})"], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    facts = json.loads(run.stdout.readline())
    assert facts["circuits"] == [f"0:{TASK}"]
    port = int(facts["url"].rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 0


def test_a_comparison_is_a_file_with_links_to_the_reports(tmp_path: Path):
    shutil.copytree(FOLDER, tmp_path / "one two")
    page = tmp_path / "pages" / "both.html"
    page.parent.mkdir()
    run = CliRunner().invoke(group, ["compare", str(tmp_path / "one two"), str(FOLDER), "--out", str(page)])
    assert run.exit_code == 0, run.output
    assert f'href="../one%20two/circuits/{TASK}/report.html"' in page.read_text(encoding="utf-8")
    gone = CliRunner().invoke(group, ["compare", str(FOLDER), str(FOLDER), "--out", str(tmp_path / "no" / "both.html")])
    assert "cannot be written" in str(gone.exception)
