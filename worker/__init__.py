"""The service: who runs the engine, where, and what becomes of it.

Celery, Redis and click live only here. The engine is a process this package supervises; nothing here imports torch.
"""
