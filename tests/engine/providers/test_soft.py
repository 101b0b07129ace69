"""Opening and listing software devices: what is refused, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from p2prw.engine.model import Opcode, WcStatus
from p2prw.engine.providers import soft
from p2prw.engine.providers.soft import list_soft_devices, open_soft_device
from p2prw.engine.providers.soft_selftest import SelfTest
from p2prw.errors import HostError, RequestError

Connect = Callable[..., Any]
SIZE = 1 << 20
PATTERN = bytes(range(256)) * (SIZE // 256)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"name": "mlx5_0"}, RequestError, "does not name a software device"),
        ({"inject": "drp=1%"}, RequestError, "did you mean 'drop'"),
        ({"pcap": "/nonexistent/x.pcap"}, HostError, "cannot write the capture"),
        ({"name": "soft:203.0.113.9"}, HostError, "not an address of this host"),
    ],
)
def test_opening_fails_with_a_reason(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    wanted: dict[str, Any] = {"name": "soft0", "local_address": None, "udp_port": 0, "role": "server", **arguments}
    with pytest.raises(error, match=says):
        open_soft_device(**wanted)


def test_unforeseeable_identification_refuses_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = SelfTest("failed", "a single datagram left with identification 0xbf62", single_ok=False, gso_ok=False)
    monkeypatch.setattr(soft, "run_self_test", lambda local, gso: verdict)
    with pytest.raises(HostError) as caught:
        open_soft_device("soft0", local_address=None, udp_port=0, role="client")
    assert caught.value.code == "unforeseeable_header"
    assert "0xbf62" in str(caught.value)


def test_wrong_segmented_identification_turns_gso_off(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = SelfTest("failed", "a UDP_SEGMENT send left with identification 0x1234", gso_ok=False)
    monkeypatch.setattr(soft, "run_self_test", lambda local, gso: verdict)
    pair = connect()
    assert pair.client.gso is False
    assert "segmented sends are off: a UDP_SEGMENT send left" in pair.client.warnings[0]
    assert pair.run(Opcode.RDMA_WRITE) is WcStatus.SUCCESS


def test_list_is_every_up_address_and_opens_by_name() -> None:
    listed = list_soft_devices()
    assert [info.name for info in listed if info.address == "127.0.0.1"] == ["soft0"]
    assert len({info.name for info in listed}) == len(listed)
    for info in listed:
        assert info.udp_port is None
        with open_soft_device(info.name, local_address=None, udp_port=0, role="server") as device:
            assert device.info.gids == info.gids
