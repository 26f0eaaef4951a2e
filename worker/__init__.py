"""The service: queues jobs, runs the engine as a supervised process, stores results.

Only this package uses Celery, Redis and click. It does not import torch; the engine runs in its own process.
"""
