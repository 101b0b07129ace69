"""Build hook of the wheel: compiles p2prw/engine/roce/_leaf.c where a compiler and Python's headers are at hand.

Nothing needs the result (p2prw/engine/roce/leaf.py), so nothing that goes wrong here fails an installation, unless
P2PRW_BUILD_LEAF=require asks for that; P2PRW_BUILD_LEAF=off leaves it out. CC and CFLAGS are heeded. An editable
installation puts the binary into the checkout, beside its source, where guests of the lab find it too.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "p2prw/engine/roce/_leaf.c"
BINARY = "p2prw/engine/roce/_leaf.abi3.so"
_LIMIT_S = 120


class CannotBuildError(Exception):
    """Compiling failed, or what came of it does not work."""


class NoCompilerError(CannotBuildError):
    """There is no compiler, no header, or no stable ABI: nothing is wrong with the source."""


def compile_leaf(source: Path, binary: Path, compiler: str | None = None) -> None:
    """Compile, try the result in a process of its own, and put it at `binary`. CannotBuildError."""
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        raise NoCompilerError(f"no Python.h in {headers}")
    if sysconfig.get_config_var("Py_GIL_DISABLED") or sys.implementation.name != "cpython":
        raise NoCompilerError("this Python has no stable ABI")
    words = shlex.split(compiler or os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if not words or shutil.which(words[0]) is None:
        raise NoCompilerError(f"no compiler: {' '.join(words)}")
    flags = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden", *shlex.split(os.environ.get("CFLAGS", ""))]
    made = binary.with_name(f"_leaf.{os.getpid()}.abi3.so")
    try:
        _run([*words, *flags, f"-I{headers}", str(source), "-o", str(made)])
        _run([sys.executable, "-c", _TRIAL, str(made)])
        # A process that has the old one mapped keeps it.
        made.replace(binary)
    except OSError as exc:
        raise CannotBuildError(str(exc)) from exc
    finally:
        made.unlink(missing_ok=True)


_TRIAL = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_leaf", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
(made,) = module.build_run(b"12345678", [0], 0x31, memoryview(b"a" * 256), 256, 1, ack_last=False)
assert module.receive_run(
    memoryview(made), 0, 1, 256, int.from_bytes(b"12345678", "big"), 0x31, [0], 0, memoryview(bytearray(256)), 0
) == (1, False)
"""


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S)
    except subprocess.CalledProcessError as exc:
        raise CannotBuildError(f"{shlex.join(command)}: {exc.stderr.strip()[-2000:]}") from exc
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CannotBuildError(f"{shlex.join(command)}: {exc}") from exc


class LeafHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling finds it by its base class."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the binary, and with it the platform, to the wheel, where it can be made."""
        wish = os.environ.get("P2PRW_BUILD_LEAF", "auto")
        root = Path(self.root)
        if wish == "off":
            return
        try:
            if version == "editable":
                # What the wheel of an editable installation holds is only the way here.
                compile_leaf(root / SOURCE, root / BINARY)
                return
            self._folder = tempfile.mkdtemp(prefix="p2prw-leaf-")
            binary = Path(self._folder, Path(BINARY).name)
            compile_leaf(root / SOURCE, binary)
        except CannotBuildError as exc:
            if wish == "require":
                raise
            self.app.display_warning(f"without the compiled leaf, which nothing needs: {exc}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["force_include"][str(binary)] = BINARY
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what `initialize` left."""
        shutil.rmtree(getattr(self, "_folder", ""), ignore_errors=True)
