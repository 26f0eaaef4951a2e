"""The Celery application: JSON only, one task whose argument is a job id, one job per worker process.

Celery delivers the message "try job X", possibly late or twice; the job's record decides whether a delivery starts work. Correctness
therefore depends on no value below. The visibility timeout only limits how late an unacknowledged message is delivered again.
"""

from __future__ import annotations

from celery import Celery
from kombu import Queue

from worker.broker import redis_url, routing
from worker.settings import Settings

TASK = "extract.run"
KEY_PREFIX = "ex:mq:"


def make_app(url: str, settings: Settings, capacity: int = 0) -> Celery:
    """The application for a Redis server. url: in redis-py's or Celery's form. capacity: most bytes that a job may need; 0: any."""
    app = Celery("extract", broker=redis_url.to_celery(url), set_as_current=False, include=[])
    app.conf.update(
        broker_use_ssl=redis_url.tls_options(url),  # Flower reads it only from here
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,  # records hold the state, so there is no result backend
        task_acks_late=True,
        task_reject_on_worker_lost=False,  # the caretaker recovers the job and counts the attempts
        task_time_limit=None,
        task_soft_time_limit=None,
        task_track_started=False,
        task_send_sent_event=True,
        task_default_queue=routing.PRIORITIES["normal"],
        task_queues=[Queue(name) for name in routing.queues_for(capacity)],
        worker_pool="prefork",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # no job waits behind a busy worker while another is idle
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=0,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": settings.visibility_timeout,
            "queue_order_strategy": "priority",
            "socket_keepalive": True,
            "health_check_interval": 25,
            "socket_timeout": 30,
            "global_keyprefix": KEY_PREFIX,
            "client_name": "extract",
        },
    )
    return app


def publish(app: Celery, job: str, message_id: str, priority: str, memory: int = 0) -> None:
    """Send the message "try this job". memory: bytes that the job needs. Raises kombu's OperationalError when Redis does not answer."""
    queue = routing.queue_of(priority, memory)
    policy = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2}
    app.send_task(TASK, args=[job], task_id=message_id, queue=queue, retry=True, retry_policy=policy)
