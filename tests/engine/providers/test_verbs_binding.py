"""Three different errors for no binding, a binding that is installed and unusable, and no device."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from p2prw.engine.model import VERBS_BINDINGS
from p2prw.engine.providers.verbs_binding import BindingError, load_binding, no_device_error
from p2prw.errors import HostError, RequestError

FOUND = SimpleNamespace(name="found")


def importer(**answers):
    """A fake import: name of a binding -> exception, or what `open_binding` gives."""

    def do(module):
        answer = answers[module.rpartition("verbs_")[2]]

        def open_binding():
            if isinstance(answer, Exception):
                raise answer
            return answer

        return SimpleNamespace(open_binding=open_binding)

    return do


MISSING = {name: ModuleNotFoundError(f"No module named {name!r}", name=name) for name in VERBS_BINDINGS}
# What PyPI's pyverbs says on a system with another rdma-core.
UNUSABLE = ImportError("libibverbs.so.1: version `IBVERBS_PRIVATE_59' not found")


def test_auto_takes_pyverbs_first_and_the_wheel_where_it_cannot_be_had():
    assert load_binding("auto", importer(pyverbs=FOUND, ibverbs=MISSING["ibverbs"])) is FOUND
    assert load_binding("auto", importer(pyverbs=MISSING["pyverbs"], ibverbs=FOUND)) is FOUND
    assert load_binding("auto", importer(pyverbs=UNUSABLE, ibverbs=FOUND)) is FOUND


def test_nothing_installed_names_both_ways_to_install():
    with pytest.raises(HostError) as caught:
        load_binding("auto", importer(**MISSING))
    error = caught.value
    assert (error.code, error.exit_code) == ("no_binding", 3)
    assert "apt install python3-pyverbs" in str(error.fix) and "pip install 'p2prw[ibverbs]'" in str(error.fix)


@pytest.mark.parametrize("name", VERBS_BINDINGS)
def test_a_wanted_binding_that_is_missing_says_how_to_get_that_one(name):
    with pytest.raises(HostError) as caught:
        load_binding(name, importer(**MISSING))
    assert caught.value.code == "no_binding" and name in str(caught.value.fix)


@pytest.mark.parametrize(
    "broken", [UNUSABLE, KeyError("__reduce_cython__"), ModuleNotFoundError("No module named 'x'", name="pyverbs.x")]
)
def test_installed_but_unusable_is_another_error_and_says_why(broken):
    with pytest.raises(HostError) as caught:
        load_binding("auto", importer(pyverbs=broken, ibverbs=MISSING["ibverbs"]))
    error = caught.value
    assert error.code == "binding_unusable" and "pyverbs" in error.what
    assert "rdma-core" in str(error.fix)
    with pytest.raises(HostError) as caught:
        load_binding("ibverbs", importer(ibverbs=ImportError("libibverbs.so.1: cannot open shared object file")))
    assert "apt install libibverbs1" in str(caught.value.fix) and "libibverbs.so.1" in str(caught.value.why)


def test_an_unknown_binding_is_a_usage_error():
    with pytest.raises(RequestError):
        load_binding("rdma4py")


def test_no_device_says_how_to_make_one():
    error = no_device_error("no verbs device named 'mlx5_0'", "there is none")
    assert error.code == "no_device" and "rdma link add" in str(error.fix)


def test_binding_errors_know_their_number():
    error = BindingError("Failed to register a MR", errno.EFAULT)
    assert error.errno_name == "EFAULT" and "Bad address" in error.reason
    lost = BindingError("Failed to open", -1)
    assert (lost.number, lost.errno_name, lost.reason) == (0, None, "Failed to open")
