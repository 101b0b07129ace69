"""Options and fixtures shared by all tests."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from p2prw.engine.roce.runs import RunCodec

if os.environ.get("LAB_GUEST") != "1":  # no test there needs it, and loading it under emulation takes seconds
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

    parser.addoption(
        "--soak-minutes",
        type=float,
        default=30.0,
        help="how long the soak of a server lasts (with --long; default 30)",
    )


CLONE_NEWNET = 0x40000000
LAB = "tests/lab/guest/"
BOOTING = (LAB, "tests/lab/test_boot.py")
LONGEST_FIRST = (
    LAB,
    "tests/e2e/",
    "tests/netns/",
    "tests/test_docs.py",
    "tests/engine/roce/test_stateful.py",
    "tests/fuzz/",
)
"""What takes most of the time; begun last, one of them would leave the other process without work at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Give each process of `pytest -n` a network of its own (root): tests take UDP port 4791 and others by number."""
    if not hasattr(config, "workerinput"):
        return
    if os.geteuid() != 0:
        raise pytest.UsageError("pytest -n needs root: its processes would meet at UDP port 4791 (leave out -n)")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise pytest.UsageError(f"unshare: {os.strerror(ctypes.get_errno())} (leave out -n)")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n`: a file stays whole, and all guests are one process's work, since only one can run at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return LAB if nodeid.startswith(BOOTING) else nodeid.partition("::")[0]

    # In the order of the collection (below), not by how many tests a file has: the longest have few.
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --long the cases beyond the usual selection are no part of the run (the summary counts them)."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: [not item.nodeid.startswith(prefix) for prefix in LONGEST_FIRST])
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


def load_module(path: Path, name: str) -> ModuleType:
    """Import a file that is no part of a package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def leaf_builder(repository: Path) -> ModuleType:
    """The build hook."""
    pytest.importorskip("hatchling", reason="hatchling, which builds (pip install -e '.[dev]')")
    return load_module(repository / "scripts/build_leaf.py", "build_leaf")


@pytest.fixture(scope="session")
def compiled_leaf(tmp_path_factory: pytest.TempPathFactory, repository: Path, leaf_builder: ModuleType) -> ModuleType:
    """`_leaf.c` as it stands in this checkout, whatever is installed; skips only where nothing can compile."""
    binary = tmp_path_factory.mktemp("leaf") / Path(leaf_builder.BINARY).name
    try:
        leaf_builder.compile_leaf(repository / leaf_builder.SOURCE, binary)
    except leaf_builder.NoCompilerError as missing:
        pytest.skip(f"the compiled leaf cannot be built here: {missing} (apt-get install gcc python3-dev)")
    return load_module(binary, "_leaf")


@pytest.fixture(scope="session")
def compiled_codec(compiled_leaf: ModuleType) -> RunCodec:
    """It, as a software device takes it."""
    from p2prw.engine.roce.leaf import codec_of

    codec = codec_of(compiled_leaf)
    assert codec is not None, "leaf.py and _leaf.c differ in INTERFACE"
    return codec


@pytest.fixture(scope="session")
def codecs(request: pytest.FixtureRequest) -> tuple[RunCodec, ...]:
    """Python's and the compiled one where it can be built, for tests that change between them as they go."""
    from p2prw.engine.roce.runs import PURE

    try:
        return PURE, request.getfixturevalue("compiled_codec")
    except pytest.skip.Exception:
        return (PURE,)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME.pem and NAME.key in a folder: `ca`; `host` (127.0.0.1, store.example) and `guest`, signed by it; `alone`."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program to make certificates with (apt-get install openssl)")
    folder = tmp_path_factory.mktemp("certificates")
    for name, signed, names in (
        ("ca", False, ""),
        ("host", True, "DNS:store.example,IP:127.0.0.1"),
        ("alone", False, "DNS:elsewhere.example"),
        ("guest", True, ""),
    ):
        words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        words += ["-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        words += ["-addext", f"subjectAltName={names}"] if names else []
        if signed:
            words += ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return folder
