"""Looking at a running service.

overview.py    jobs, workers, queues at this moment;  metrics.py: the same for Prometheus
log_reader.py  logs of a job, from a folder or from storage
"""
