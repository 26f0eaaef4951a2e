"""Whatever comes, what parses it gives a valid value or one of our errors in a line."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

import bad_keys
import click
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extractor.errors import ExtractorError
from extractor.jobs.request import circuit_job, circuit_settings
from extractor.spec.fields import parse_changes
from extractor.spec.schema import parse_job
from worker.batches.batch import Batch
from worker.broker import messages, redis_url
from worker.broker.redis_url import connect
from worker.cli.batch import _parameters as parameters_callback
from worker.cli.gc import _seconds as older_than_callback
from worker.cli.logs import parse_since
from worker.ids import check_id
from worker.records.records import describe
from worker.storage.transfer import parse_listing

QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
words = st.text(max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner) | st.dictionaries(words, inner),
    max_leaves=8,
)


def one_line(act: Callable[[], Any]) -> Any:
    """What it gives; None where it refused, in a line."""
    try:
        return act()
    except ExtractorError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None


@QUICK
@given(words | st.from_regex(r"[\w.-]{1,70}"))
def test_only_ids_are_ids(text: str):
    if one_line(lambda: check_id(text)) is not None:
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text, re.ASCII)


@QUICK
@given(words | st.from_regex(r"\d{1,9}(\.\d+)?[a-z]?") | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d"))
def test_only_times_are_times(text: str):
    since = one_line(lambda: parse_since(text))
    assert since is None or isinstance(since, float)
    assert since is None or since == since


@QUICK
@given(words | st.from_regex(r"\d{1,20}(\.\d{0,20})?[kKmMbBgG]?"))
def test_only_sizes_are_sizes(text: str):
    for callback, least in ((parameters_callback, 1), (older_than_callback, 0)):
        with contextlib.suppress(click.BadParameter):
            value = callback(None, None, text)  # type: ignore[arg-type]
            assert least <= value < 10**25


@QUICK
@given(st.sampled_from([setting.name for setting in circuit_settings()]) | words, words | st.integers().map(str) | st.floats().map(str))
def test_what_is_set_is_valid_or_refused(name: str, text: str):
    def build() -> Any:
        return circuit_job("python-tiny", ("quote_close",), changes=parse_changes((f"{name}={text}",)))

    spec = one_line(build)
    assert spec is None or parse_job(spec.model_dump_json()) == spec


@QUICK
@given(words | st.from_regex(r"(redis|rediss|unix|redis\+socket)://[a-z:@\[\]./?=&%0-9-]{0,40}"))
def test_an_address_is_translated_or_refused(text: str):
    for translate in (redis_url.to_redis, redis_url.to_celery, redis_url.tls_options, lambda url: redis_url.check_safe(url, False)):
        one_line(lambda translate=translate: translate(text))  # type: ignore[misc]
    if one_line(lambda: redis_url.to_redis(text)) is not None:
        assert redis_url.mask(text)
        connect(text)


@QUICK
@given(
    values
    | st.fixed_dictionaries({"kind": st.sampled_from(["train", "circuit"])}, optional={"train": values, "seed": values, "tasks": values})
)
def test_json_is_a_spec_or_refused(value: Any):
    spec = one_line(lambda: parse_job(json.dumps(value)))
    assert spec is None or parse_job(spec.model_dump_json()) == spec


@QUICK
@given(values | st.fixed_dictionaries({"files": st.dictionaries(words | st.just("../x"), values)}))
def test_json_is_a_listing_or_refused(value: Any):
    for name in one_line(lambda: parse_listing(json.dumps(value).encode(), "it")) or {}:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
    one_line(lambda: Batch.from_json("b", json.dumps(value)))


@QUICK
@given(st.binary(max_size=60))
def test_bytes_are_refused(data: bytes):
    one_line(lambda: parse_job(data))
    one_line(lambda: parse_listing(data, "it"))
    with contextlib.suppress(ValueError):
        messages.check(data)


@QUICK
@given(st.dictionaries(st.sampled_from([*bad_keys.SOUND, "tasks", "metrics", "step", "total", "error_type", "started"]), words))
def test_any_record_is_described(changes: dict[str, str]):
    sound = {key: value for key, value in changes.items() if key not in ("state", "attempt")}
    facts = describe("job", bad_keys.SOUND | sound)  # type: ignore[arg-type]
    assert json.loads(json.dumps(facts)) == facts
