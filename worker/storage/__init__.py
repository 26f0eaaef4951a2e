"""Results and checkpoints, in folders or in storage (EXTRACT_ROOT=s3://...).

layout.py        names of log files;  store.py: one storage, with retries
transfer.py      many files at once, checked by sha256;  checkpoints.py: stored checkpoints of a running job
job_storage.py   downloads and uploads of one attempt. Read this first;  results.py: finished results: find, download, copy, summarise
"""
