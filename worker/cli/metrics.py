"""`extract metrics`."""

from __future__ import annotations

import click

from worker.cli.options import as_json as json_option
from worker.cli.text import clean_log, print_json, print_line


@click.command("metrics", short_help="Serve Prometheus metrics of the whole service.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on, without access control.")
@click.option("--port", type=click.IntRange(0, 65535), default=9464, show_default=True, help="Port to listen on; 0: any free port.")
@json_option
def command(host: str, port: int, as_json: bool) -> int:
    """Serve Prometheus metrics of jobs, queues, leases and workers at http://HOST:PORT/metrics, until stopped. One per cluster.

    While Redis does not answer, the only metric is `extract_up 0`.

    \b
    Example: extract metrics --port 9464
    """
    import signal
    import threading

    from extractor.errors import require
    from worker.cli.connect import load_settings
    from worker.client import service

    require("prometheus_client", "extract metrics", "monitor")
    from worker.monitoring import metrics

    clean_log()
    server = metrics.serve(service.open_lazily(load_settings(no_worker=True)), host, port)
    url = f"http://{host}:{server.server_port}/metrics"
    if as_json:
        print_json({"url": url})
    else:
        print_line(f"metrics at {url}")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    stopping.wait()
    server.shutdown()
    server.server_close()
    return 0
