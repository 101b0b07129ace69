"""The shape of the tree: every module has its test and its docstring, none is too long, nothing names this machine."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "p2prw").rglob("*.py"))

# Modules without behaviour: nothing to test.
NO_BEHAVIOUR: dict[str, str] = {
    "p2prw/__init__.py": "the version and the map",
    "p2prw/__main__.py": "one call of cli.main; the end-to-end tests start processes with it",
    "p2prw/engine/events.py": "data",
    "p2prw/engine/memory/base.py": "protocols; every memory kind's test uses them",
    "p2prw/engine/model.py": "data",
    "p2prw/scenario/keys.py": "two tables; the schema's test holds that each key says what it is for",
    "p2prw/engine/smoke/model.py": "data, and one count over it",
    "p2prw/engine/providers/base.py": "protocols and a counter; every provider's test uses them",
}

# Modules tested together with their siblings, under the name of what they do together.
TESTED_IN: dict[str, str] = {
    **dict.fromkeys(
        (
            "p2prw/config_bench_settings.py",
            "p2prw/config_files.py",
            "p2prw/config_memory.py",
            "p2prw/config_problems.py",
            "p2prw/config_requests.py",
            "p2prw/config_setting.py",
            "p2prw/config_settings.py",
            "p2prw/config_smoke.py",
            "p2prw/config_values.py",
        ),
        "tests/test_config.py",
    ),
    "p2prw/targets.py": "tests/test_config.py",
    "p2prw/scenario/rows.py": "tests/scenario/test_read.py",
    "p2prw/config_bench.py": "tests/commands/test_bench.py",
    "p2prw/engine/lane.py": "tests/engine/bench/test_lane.py",
    "p2prw/engine/bench/measure.py": "tests/engine/bench/test_session.py",
    "p2prw/engine/bench/model.py": "tests/engine/bench/test_checks.py",
    **dict.fromkeys(("p2prw/reporters/bench_svg.py", "p2prw/reporters/bench_text.py"), "tests/reporters/test_bench.py"),
    "p2prw/engine/control/measuring.py": "tests/engine/control/test_messages.py",
    "p2prw/engine/control/records.py": "tests/engine/control/test_messages.py",
    "p2prw/commands/app.py": "tests/test_cli.py",
    "p2prw/commands/options.py": "tests/test_help.py",
    "p2prw/commands/devices.py": "tests/commands/test_look_around.py",
    "p2prw/commands/regions.py": "tests/commands/test_look_around.py",
    "p2prw/commands/version.py": "tests/commands/test_look_around.py",
    "p2prw/commands/show.py": "tests/test_config.py",
    "p2prw/engine/smoke/servers.py": "tests/engine/smoke/test_runner.py",
    "p2prw/reporters/smoke_grid.py": "tests/reporters/test_smoke_rows.py",
    "p2prw/reporters/smoke_view.py": "tests/reporters/test_smoke_live.py",
    "p2prw/commands/read.py": "tests/commands/test_transfer.py",
    "p2prw/commands/write.py": "tests/commands/test_transfer.py",
    **dict.fromkeys(
        (
            "p2prw/reporters/base.py",
            "p2prw/reporters/choose.py",
            "p2prw/reporters/document.py",
            "p2prw/reporters/json.py",
            "p2prw/reporters/listing.py",
            "p2prw/reporters/sanitise.py",
        ),
        "tests/reporters/test_output.py",
    ),
    "p2prw/engine/topology/forwarding.py": "tests/engine/topology/test_verdict.py",
    "p2prw/engine/topology/mend.py": "tests/engine/topology/test_verdict.py",
    "p2prw/reporters/topology_picture.py": "tests/reporters/test_topology_page.py",
    "p2prw/reporters/topology_rows.py": "tests/reporters/test_topology_page.py",
}

TESTED_IN |= {
    **dict.fromkeys(
        (f"p2prw/commands/{name}.py" for name in ("complete", "completion", "help", "man", "shells", "topics")),
        "tests/commands/test_help_and_completion.py",
    ),
    "p2prw/scenario/model.py": "tests/scenario/test_document.py",
    "p2prw/scenario/words.py": "tests/scenario/test_read.py",
    "p2prw/scenario/option_words.py": "tests/scenario/test_read.py",
    "p2prw/reporters/run_junit.py": "tests/reporters/test_run_rows.py",
    "p2prw/reporters/run_live.py": "tests/reporters/test_run_rows.py",
    "p2prw/reporters/run_markdown.py": "tests/reporters/test_run_rows.py",
}

MOST_LINES = 400
# Longer than MOST_LINES, with the reason why it is better in one piece and how long it may become.
LONG: dict[str, tuple[int, str]] = {
    "p2prw/config_settings.py": (490, "the one table of settings: no other list exists"),
    "p2prw/engine/model.py": (610, "the glossary: every noun of the tool in one place, no behaviour"),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def source_files() -> list[Path]:
    """What git tracks; without git (an unpacked archive) everything but what .gitignore names."""
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z", "--cached"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        ignored = re.compile(
            r"(^|/)(\.[^/]*cache|\.venv[^/]*|\.hypothesis|__pycache__|\.git|dist|build|[^/]*\.egg-info)/"
        )
        paths = (path for path in ROOT.rglob("*") if path.is_file())
        return sorted(path for path in paths if not ignored.search(name_of(path)))
    paths = (ROOT / name for name in listed.decode().split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def is_empty_package(path: Path) -> bool:
    """A package file that holds its docstring and nothing to test."""
    body = ast.parse(path.read_text()).body
    return path.name == "__init__.py" and len(body) <= 1


def expected_test_of(path: Path) -> Path:
    """tests/engine/test_rw.py for p2prw/engine/rw.py; tests/test_schema.py for p2prw/schema/__init__.py."""
    inside = path.relative_to(ROOT / "p2prw")
    if inside.stem == "__init__":
        inside = inside.parent
    return ROOT / "tests" / inside.parent / f"test_{inside.stem.strip('_') or 'p2prw'}.py"


def test_every_module_has_its_test_file() -> None:
    missing = []
    for path in MODULES:
        if is_empty_package(path) or name_of(path) in NO_BEHAVIOUR:
            continue
        shared = TESTED_IN.get(name_of(path))
        expected = ROOT / shared if shared else expected_test_of(path)
        if not expected.is_file():
            missing.append(f"{name_of(path)} has no {name_of(expected)}")
    assert not missing, "\n".join(missing)


def test_exemptions_are_still_needed() -> None:
    for name in (*NO_BEHAVIOUR, *TESTED_IN):
        assert (ROOT / name).is_file(), f"{name} is gone: drop its exemption"
        own = expected_test_of(ROOT / name)
        assert not own.is_file(), f"{name} has {name_of(own)} now: drop its exemption"
    for name in LONG:
        lines = len((ROOT / name).read_text().splitlines())
        assert lines > MOST_LINES, f"{name} has {lines} lines: drop it from LONG"


def test_no_module_is_too_long() -> None:
    """Ask which part has a name of its own; where the answer is none, say why in LONG."""
    long = []
    for path in MODULES:
        most, _ = LONG.get(name_of(path), (MOST_LINES, ""))
        lines = len(path.read_text().splitlines())
        if lines > most:
            long.append(f"{name_of(path)} has {lines} lines, {most} are allowed")
    assert not long, "\n".join(long)


def test_every_module_says_what_it_owns() -> None:
    assert not [name_of(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))]


# Paths that exist on one machine only. Written in pieces, so that this file does not find itself.
MACHINE_PATHS = re.compile(
    "|".join(["/wo" + "rk/", "/ro" + r"ot/[\w.]", "/ho" + r"me/(?!user\b|me\b)\w", "shared/" + "reference"])
)


def test_nothing_names_the_machine_it_was_made_on() -> None:
    named = []
    for path in source_files():
        # Captures and other binary data: every byte is some character in latin-1.
        for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), 1):
            if MACHINE_PATHS.search(line):
                named.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert not named, "\n".join(named)


def test_tests_do_not_import_each_other() -> None:
    """Test modules are imported by path (importmode importlib): what they share is in conftest.py or in p2prw."""
    wrong = re.compile(r"^\s*(?:from|import)\s+(?:test_|(?:tests|conftest)\b).*", re.MULTILINE)
    found = {path: wrong.findall(path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py"))}
    assert not {path: lines for path, lines in found.items() if lines}


def test_scripts_can_be_run() -> None:
    for name in ("scripts/test", "scripts/demo", ".ci/run"):
        path = ROOT / name
        assert path.stat().st_mode & 0o111, f"chmod +x {name}"
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_a_leaf_that_cannot_be_built_leaves_nothing_behind(tmp_path: Path, leaf_builder: ModuleType) -> None:
    source, binary = ROOT / leaf_builder.SOURCE, tmp_path / "_leaf.abi3.so"
    with pytest.raises(leaf_builder.NoCompilerError, match="no compiler: no-such-compiler"):
        leaf_builder.compile_leaf(source, binary, "no-such-compiler -O2")
    # "true" compiles nothing and says it did.
    for compiler in ("false", "true"):
        with pytest.raises(leaf_builder.CannotBuildError):
            leaf_builder.compile_leaf(source, binary, compiler)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["cc", "false"])
def test_the_wheel_builds_and_holds_what_it_must(tmp_path: Path, request: pytest.FixtureRequest, compiler: str) -> None:
    """`pip install .` works without a compiler, or with a broken one; types and the schema come with it."""
    if compiler == "cc":
        request.getfixturevalue("compiled_leaf")  # skips where there is none
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed here (pip install -e '.[dev]' brings it)")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(ROOT)], check=True, timeout=120, env={**os.environ, "CC": compiler})
    (wheel,) = tmp_path.glob("p2prw-*.whl")
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-cp311-abi3-{platform}.whl" if compiler == "cc" else "-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    binaries = ["p2prw/engine/roce/_leaf.abi3.so"] if compiler == "cc" else []
    assert [name for name in names if name.endswith((".so", ".c"))] == binaries
    assert {"p2prw/py.typed", "p2prw/schema/result.schema.json", "p2prw/cli.py"} <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith(("p2prw/", "p2prw-"))], "only p2prw goes into the wheel"
    assert "p2prw = p2prw.entry:main" in entry_points
    assert "Requires-Python: >=3.11" in metadata
