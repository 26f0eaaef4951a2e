"""Redis as a message queue: the Celery side.

redis_url.py       Redis URLs, their checks, connections
embedded_redis.py  the private server of one machine;  private_socket.py: its socket;  server_program.py: its program
app.py             the Celery application and its one message. Read this first;  routing.py: queues by priority and memory
messages.py        drops messages not written by this service;  fair_share.py: turns of batches and sweeps
"""
