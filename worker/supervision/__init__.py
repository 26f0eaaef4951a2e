"""One attempt at one job: the lease, the engine process, its events and its log.

attempt.py          the attempt from claim to outcome. Read this first
engine.py           the engine as a child process;  event_reporter.py: its events in the record
job_folder.py       whose folder it is;  job_log.py: the job's log
shared_bridging.py  one bridging for all jobs that need the same bridged model
"""
