"""Redis as a queue: Celery's side of it.

redis_url.py       addresses of both dialects, checked, and connections;  embedded_redis.py: the server of one machine
app.py             the Celery application and its one message;  routing.py: queues by priority and memory
messages.py        messages not written by us are dropped;  fair_share.py: turns of batches and sweeps
"""
