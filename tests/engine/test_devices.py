"""Device names: what opens, and what is said of the rest."""

from __future__ import annotations

import pytest

from p2prw.engine.devices import open_device
from p2prw.errors import HostError


@pytest.mark.parametrize("name", ["auto", "soft0", "soft:127.0.0.1"])
def test_the_software_device_opens_under_its_names(name):
    device, reason = open_device(name, local_address="127.0.0.1", role="client")
    try:
        assert device.info.provider == "soft" and device.info.mover == "cpu"
        assert device.info.address is not None and device.info.address.startswith("127.")
        assert device.info.name != "auto", "a result names the device, not the wish"
        assert reason
    finally:
        device.close()


@pytest.mark.parametrize("name", ["mlx5_0", "rxe0", "sof0", ""])
def test_a_device_that_is_not_there_is_an_environment_error(name):
    with pytest.raises(HostError) as caught:
        open_device(name, local_address="127.0.0.1", role="client")
    assert (caught.value.exit_code, caught.value.code) == (3, "no_device")
    assert "p2prw devices" in str(caught.value.fix)
