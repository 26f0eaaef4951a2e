"""The Celery application for the Redis of the environment, for tools that import it: `celery --app worker.celery_app flower`."""

from __future__ import annotations

from worker.broker import redis_url
from worker.broker.app import make_app
from worker.broker.embedded_redis import ensure
from worker.settings import from_env

_settings = from_env()
if _settings.redis_url is not None:
    redis_url.check_safe(_settings.redis_url, _settings.allow_insecure)
app = make_app(_settings.redis_url or ensure(_settings), _settings)
