"""Random faults against the whole service, a few of them here; `python -m tests.service.campaign` is the long one."""

from __future__ import annotations

import pytest
from campaign import campaign


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_whatever_is_killed_cut_or_stopped_every_job_ends_once_with_the_undisturbed_result():
    with campaign(jobs=5, injections=12, seed=1) as whole:
        found = whole.run()
    assert found["succeeded"] == 5
    assert found["injections"] == 12
