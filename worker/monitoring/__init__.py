"""Monitoring of a running service.

overview.py    present jobs, workers and queues. Read this first;  metrics.py: the same for Prometheus
log_reader.py  logs of a job, from a folder or from storage
"""
