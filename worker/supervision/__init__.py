"""One attempt at one job: the lease, the engine process, its events and its log.

attempt.py          the attempt from lease to outcome. Read this first
engine.py           the engine as a child process;  job_log.py: engine.log and worker.log
shared_bridging.py  one bridging for all jobs that need the same
"""
