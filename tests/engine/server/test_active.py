"""A lease at work: slots, ranges and digests are checked before anything is done."""

from __future__ import annotations

import itertools

import pytest

from p2prw.engine.control.messages import (
    Commit,
    Committed,
    Digest,
    Digests,
    Fill,
    Filled,
    Grant,
    Release,
    Released,
)
from p2prw.engine.digest import digest_block
from p2prw.engine.server.active import ActiveLease
from p2prw.engine.server.rate import BURST_BYTES
from p2prw.errors import PeerRefusedError

DATA = bytes(range(256)) * 64


@pytest.fixture
def staged(serve, connect, tmp_path):
    """A client with a read lease on a file of 16 KiB behind slots of 4 KiB."""
    (tmp_path / "f.bin").write_bytes(DATA)
    served = serve({"f": f"file:{tmp_path}/f.bin"}, staging_bytes=16384, staging_chunk_bytes=4096)
    client = connect(served)
    grant = client.ask(client.open("f", op="read"), Grant)
    assert isinstance(grant, Grant) and grant.staging is not None
    return served, client, grant


def test_staging_is_a_ring_of_slots_with_one_key(staged):
    _, _, grant = staged
    assert grant.segments == () and grant.staging.chunk_bytes == 4096 and len(grant.staging.slots) == 4
    starts = [slot.address for slot in grant.staging.slots]
    assert [b - a for a, b in itertools.pairwise(starts)] == [4096] * 3


def test_slots_are_filled_in_any_order_and_answered(staged):
    _, client, grant = staged
    for slot, offset in ((2, 4096), (0, 0)):
        answer = client.ask(Fill(grant.lease, slot, offset, 4096), Filled)
        assert answer == Filled(grant.lease, slot, offset)


@pytest.mark.parametrize(
    ("slot", "offset", "length", "code"),
    [
        (4, 0, 4096, "bad_slot"),
        (0, 0, 4097, "bad_range"),
        (0, 12289, 4096, "bad_range"),
        (0, 0, 0, "bad_range"),
        (0, 1 << 62, 1, "bad_range"),
    ],
)
def test_a_fill_outside_the_slot_or_the_lease_ends_the_client(staged, slot, offset, length, code):
    served, client, grant = staged
    with pytest.raises(PeerRefusedError) as caught:
        client.ask(Fill(grant.lease, slot, offset, length), Filled)
    assert caught.value.code == code
    assert served.wait_for("failed").fields["code"] == code


def test_a_commit_under_a_read_lease_changes_nothing(staged, tmp_path):
    _, client, grant = staged
    with pytest.raises(PeerRefusedError) as caught:
        client.ask(Commit(grant.lease, 0, 0, 4096), Committed)
    assert caught.value.code == "bad_right" and (tmp_path / "f.bin").read_bytes() == DATA


def test_somebody_elses_lease_is_no_lease(staged, connect):
    served, _, grant = staged
    stranger = connect(served)
    with pytest.raises(PeerRefusedError) as caught:
        stranger.ask(Fill(grant.lease, 0, 0, 4096), Filled)
    assert caught.value.code == "bad_lease"


def test_digests_are_of_the_blocks_asked_for(staged):
    _, client, grant = staged
    answer = client.ask(Digest(grant.lease, 4096, 12288, 4096), Digests)
    assert isinstance(answer, Digests) and not answer.more and answer.offset == 4096
    assert answer.digests == tuple(digest_block(DATA[at : at + 4096]) for at in (4096, 8192, 12288))


@pytest.mark.parametrize(("offset", "length"), [(0, 16385), (16384, 1), (0, 0), (1 << 62, 1)])
def test_a_digest_outside_the_lease_is_refused(staged, offset, length):
    _, client, grant = staged
    with pytest.raises(PeerRefusedError) as caught:
        client.ask(Digest(grant.lease, offset, length, 4096), Digests)
    assert caught.value.code == "bad_range"


def test_many_blocks_come_in_pages(serve, connect):
    served = serve({"m": "host,size=8MiB"})
    client = connect(served)
    grant = client.ask(client.open("m", op="read"), Grant)
    assert isinstance(grant, Grant)
    client.channel.send(Digest(grant.lease, 0, 8 << 20, 4096))
    pages: list[Digests] = []
    while not pages or pages[-1].more:
        page = client.channel.expect(Digests, deadline_s=30, name="digests")
        assert isinstance(page, Digests)
        pages.append(page)
    assert [len(page.digests) for page in pages] == [1024, 1024]
    assert [page.offset for page in pages] == [0, 4 << 20]


def test_a_written_file_appears_only_when_it_is_released_with_keep(serve, connect, tmp_path):
    served = serve({"f": f"file:{tmp_path}/new.bin"}, access="w")
    for keep in (False, True):
        client = connect(served)
        grant = client.ask(client.open("f", length=100), Grant)
        assert isinstance(grant, Grant) and grant.staging is not None
        client.ask(Commit(grant.lease, 0, 0, 100), Committed)
        assert not (tmp_path / "new.bin").exists()
        client.ask(Release(grant.lease, keep=keep), Released)
        assert (tmp_path / "new.bin").exists() is keep
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.bin"]


def test_a_write_only_file_cannot_be_read_through_a_write_lease(serve, connect, tmp_path):
    (tmp_path / "f.bin").write_bytes(DATA)
    served = serve({"f": f"file:{tmp_path}/f.bin"}, access="w", overwrite=True)
    client = connect(served)
    grant = client.ask(client.open("f", length=100), Grant)
    assert isinstance(grant, Grant)
    with pytest.raises(PeerRefusedError) as caught:
        client.ask(Fill(grant.lease, 0, 0, 100), Filled)
    assert caught.value.code == "bad_right"


def test_unfinished_bytes_are_not_kept(serve, connect, tmp_path):
    served = serve({"f": f"file:{tmp_path}/f.bin"}, access="w")
    client = connect(served)
    grant = client.ask(client.open("f", length=100), Grant)
    assert isinstance(grant, Grant)
    client.channel.send(Digest(grant.lease, 0, 100, 4096))
    client.channel.send(Release(grant.lease, keep=True))
    # Either the digest was quicker, or keeping is refused; a torn file is in no case.
    message = client.channel.receive()
    while message is None or isinstance(message, Digests):
        message = client.channel.receive()
    if not isinstance(message, Released):
        assert not (tmp_path / "f.bin").exists()


@pytest.mark.parametrize("kind", ["fill", "commit"])
def test_where_a_nic_moves_the_bytes_staging_is_what_is_held_to_the_rate(serve, connect, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(ActiveLease, "_sees_operations", False)
    (tmp_path / "f.bin").write_bytes(DATA)
    options = {"staging_bytes": 16384, "staging_chunk_bytes": 4096, "overwrite": True}
    served = serve({"f": f"file:{tmp_path}/f.bin"}, client_rate_limit_bytes_per_s=1.0, **options)
    client = connect(served)
    grant = client.ask(client.open("f", op="read" if kind == "fill" else "write", length=16384), Grant)
    assert isinstance(grant, Grant) and grant.rate_limit_bytes_per_s == 1
    # This client says nothing of what its release can do, as an older one.
    assert any("--rate-limit 1B/s" in note for note in grant.notes)
    message, answer = (Fill, Filled) if kind == "fill" else (Commit, Committed)
    asked = 0
    with pytest.raises(PeerRefusedError) as caught:
        while True:
            client.ask(message(grant.lease, 0, 0, 4096), answer)
            asked += 4096
    assert caught.value.code == "rate_exceeded"
    assert BURST_BYTES + 16384 - 4096 <= asked <= BURST_BYTES + 16384 + 4096
    assert served.wait_for("ended").fields["moved_bytes"] == asked + 4096


def test_what_a_nic_moves_past_the_server_is_said_to_be_unknown(serve, connect, monkeypatch):
    monkeypatch.setattr(ActiveLease, "_sees_operations", False)
    served = serve(client_rate_limit_bytes_per_s=1.0)
    client = connect(served)
    grant = client.ask(client.open(op="write"), Grant)
    assert isinstance(grant, Grant) and grant.rate_limit_bytes_per_s == 1
    client.ask(Release(grant.lease, keep=True), Released)
    client.channel.close()
    assert served.wait_for("ended").fields["moved_bytes"] is None


def test_without_a_limit_none_is_told(staged):
    _, _, grant = staged
    assert grant.rate_limit_bytes_per_s is None and grant.notes == ()
