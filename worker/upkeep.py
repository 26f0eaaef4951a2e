"""The caretaker on its own, for clusters whose workers come and go: with none left, nobody else would bring back a lost job."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from worker.app import make_app, publish
from worker.caretaker import Caretaker
from worker.records import Records, connect, memory_of
from worker.settings import Settings

log = logging.getLogger("extract")


def publisher(app: Celery, records: Records) -> Callable[[str], None]:
    """What publishes a job again, under its own priority; while Redis is away it only says so."""

    def publish_again(job: str) -> None:
        try:
            record = records.get_many([job]).get(job, {})
            publish(app, job, records.next_message_id(job), record.get("priority", "normal"), memory_of(record))
        except (OperationalError, redis.RedisError, OSError) as error:
            log.warning("job %s: not published (%s); it will be, once Redis is back", job, error)

    return publish_again


def keep_up(url: str, settings: Settings, alive_file: Path | None = None) -> None:
    """Bring back lost jobs and lost messages until SIGTERM or Ctrl-C. alive_file: touched every few seconds while Redis answers."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s] %(message)s")
    records = Records(connect(url))
    caretaker = Caretaker("", records, settings, publisher(make_app(url, settings), records), lambda: "", alive_file=alive_file)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: caretaker.stop())
    log.info("caretaker ready")
    caretaker.run()
