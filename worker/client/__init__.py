"""Client operations on jobs. The command line calls these functions.

service.py   the connection;  submit.py: record and publish. Read this first;  watch.py: follow;  results.py: download
damaged.py   results that have lost a file;  python.py: what Python asks, for `extractor.jobs()` and `extractor.load(JOB)`
"""
