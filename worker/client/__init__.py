"""What a user can do with jobs. The command line calls these functions.

service.py   the connection;  submit.py: record and publish;  watch.py: follow;  results.py: fetch
damaged.py   results that lost a file
"""
