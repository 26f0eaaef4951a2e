"""Keys of a bucket as an operator hands them out: by the file that compose mounts, written by the line of deploy/README.md."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from s3 import Bucket
from secured_server import PROJECT, make_secrets

from extractor.errors import StorageRefused
from worker.storage.store import Store


def test_a_worker_finds_its_keys_in_the_file_that_the_operator_s_line_writes(bucket: Bucket, machine, monkeypatch):
    page = (PROJECT / "deploy" / "README.md").read_text()
    line = re.search(r"^printf '\[default\].*> (deploy/secrets/aws_credentials)$", page, re.MULTILINE)
    assert line is not None
    (machine.home / "deploy").mkdir()
    make_secrets(machine.home / "deploy" / "secrets", "valkey")
    before = dict(os.environ)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(machine.home / line[1]))
    with pytest.raises(StorageRefused):
        Store(bucket.url).check()
    subprocess.run(["bash", "-c", line[0]], cwd=machine.home, env=before, check=True)
    Store(bucket.url).check()
