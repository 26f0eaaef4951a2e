"""`extract view`."""

from __future__ import annotations

import click

from worker.cli import complete
from worker.cli.options import as_json as json_option
from worker.cli.text import print_json, print_line, say


@click.command("view", short_help="Serve results as pages, and open them.")
@click.argument("names", metavar="[JOB|BATCH|FOLDER]...", nargs=-1, shell_complete=complete.jobs)
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="Port on 127.0.0.1; 0: any free port.")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
@json_option
def command(names: tuple[str, ...], port: int, no_open: bool, as_json: bool) -> int:
    """Serve the reports of one or more results on this machine's loopback address until Ctrl-C, and open a browser.
    Without one, of the newest finished job with a circuit.

    The first page lists all circuits, and compares any two. Nobody else on the network can reach the address; from another
    machine, `ssh -L` forwards it.

    \b
    Example: extract view k3v9x2mq
             extract view out1 out2 --no-open --port 8000
    """
    import signal
    import threading

    from extractor.results.result import load
    from worker.cli.connect import newest_finished, results_at
    from worker.cli.pages import Viewer
    from worker.client.page_server import PageServer

    folders = [found for name in names or (newest_finished(),) for found in results_at(name)]
    viewer = Viewer([name for name, _ in folders], [load(folder) for _, folder in folders])
    server = PageServer(viewer.pages, viewer.folders, port)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if as_json:
        print_json({"url": server.url, "circuits": list(viewer.circuits)})
    else:
        print_line(f"viewing at {server.url} until Ctrl-C")
    if not no_open and not as_json:
        _open(server.url, server.server_port)
    stopping.wait()
    server.shutdown()
    server.server_close()
    return 0


def _open(url: str, port: int) -> None:
    """Open a browser, or say how another machine reaches the address."""
    from extractor.results.shown import open_browser

    if not open_browser(url):
        say(f"there is no browser here; from a machine with one: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE, then open {url}")
