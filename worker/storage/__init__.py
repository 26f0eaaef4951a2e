"""Where results and checkpoints are: folders, or storage behind EXTRACT_ROOT=s3://...

layout.py        names of files below a job;  store.py: one storage, with retries
transfer.py      many files at once, checked by sha256;  checkpoints.py: copies of a running job's checkpoints
job_storage.py   what an attempt brings and leaves;  results.py: finished results, found, fetched, copied
"""
