"""Options and fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Two busy cores: a slow example is no defect, so Hypothesis has no deadline; pytest-timeout bounds a whole test.
settings.register_profile("p2prw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("p2prw"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "p2prw"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--force-netns",
        action="store_true",
        help="run the tests marked netns, and fail where they would be skipped (needs root)",
    )
    # Here and not in tests/lab: pytest reads options of the conftest.py at the top only.
    parser.addoption(
        "--force-lab",
        action="store_true",
        help="fail where the tests in the QEMU guest would be skipped for want of QEMU or a kernel (see lab/fetch)",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="the long modes: every case where the usual run takes a selection, more bytes, more kills, more minutes",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --long the cases beyond the usual selection are no part of the run (the summary counts them)."""
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """With --force-netns a netns test that skips itself has failed: CI must not pass by skipping."""
    if (
        call.excinfo is not None
        and call.excinfo.errisinstance(pytest.skip.Exception)
        and item.get_closest_marker("netns")
        and item.config.getoption("--force-netns")
    ):
        reason = f"--force-netns was given, but the test skipped itself: {call.excinfo.value}"
        # Raised and caught: pytest takes no exception without a traceback.
        try:
            pytest.fail(reason, pytrace=False)
        except pytest.fail.Exception:
            call.excinfo = pytest.ExceptionInfo.from_current()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parent.parent
