"""What has arrived is told from what has not, whatever a crash left in the manifest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2prw.engine.memory.manifest import HEADER_BYTES, RECORDS_PER_PAGE, Manifest, noted_blocks, open_own
from p2prw.errors import HostError

IDENTITY = {"source_bytes": 10, "source_mtime_ns": 5, "start": 0}
DIGEST = "0123456789abcdef" * 2


def opened(path: Path, identity: dict[str, object] | None = None, *, part_is_new: bool = False) -> Manifest:
    return Manifest(str(path), identity or IDENTITY, part_is_new=part_is_new)


def test_notes_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "m"
    one = opened(path)
    assert one.fresh and one.restarted is None and not one.holds_any
    far = RECORDS_PER_PAGE * 3 + 1
    for index in (0, 2, far):
        one.note(index, DIGEST)
    one.close()
    one.close()
    again = opened(path)
    assert not again.fresh and again.holds_any and again.restarted is None
    found = list(again.digests(0, far + 10))
    assert [index for index, digest in enumerate(found) if digest] == [0, 2, far]
    assert set(found) == {"", DIGEST} and len(found) == far + 10
    assert list(again.digests(1, 3)) == ["", DIGEST, ""]
    assert noted_blocks(str(path)) == 3
    again.forget()
    assert again.fresh and not again.holds_any and list(again.digests(0, 3)) == [""] * 3
    again.remove()
    again.remove()
    assert not path.exists()


@pytest.mark.parametrize(
    ("identity", "why"),
    [
        ({**IDENTITY, "source_mtime_ns": 6}, "the source was modified"),
        ({**IDENTITY, "source_bytes": 11}, "the source's size changed"),
        ({**IDENTITY, "start": 1}, "another offset or size was asked for"),
    ],
)
def test_another_identity_starts_over_and_says_why(tmp_path: Path, identity: dict[str, object], why: str) -> None:
    one = opened(tmp_path / "m")
    one.close()
    empty = opened(tmp_path / "m", identity)
    assert empty.fresh and empty.restarted is None, "nothing was noted: there is nothing to say"
    empty.close()
    one = opened(tmp_path / "m")
    one.note(0, DIGEST)
    one.close()
    other = opened(tmp_path / "m", identity)
    assert other.fresh and other.restarted == why
    assert list(other.digests(0, 2)) == ["", ""]
    # The old notes are gone for the old identity too: the bytes are.
    other.close()
    back = opened(tmp_path / "m")
    assert back.fresh and back.restarted is None


def test_notes_without_their_part_do_not_count(tmp_path: Path) -> None:
    one = opened(tmp_path / "m")
    one.note(0, DIGEST)
    one.close()
    again = opened(tmp_path / "m", part_is_new=True)
    assert again.fresh and again.restarted is None and list(again.digests(0, 1)) == [""]


@pytest.mark.parametrize("keep", range(1, 24))
def test_a_torn_last_record_is_no_record(tmp_path: Path, keep: int) -> None:
    one = opened(tmp_path / "m")
    one.note(0, DIGEST)
    one.note(1, DIGEST)
    one.close()
    os.truncate(tmp_path / "m", HEADER_BYTES + 24 + keep)
    again = opened(tmp_path / "m")
    assert list(again.digests(0, 3)) == [DIGEST, "", ""]
    assert noted_blocks(str(tmp_path / "m")) == 1


@given(st.integers(0, HEADER_BYTES + 24 * 4 - 1), st.integers(1, 255))
def test_no_flipped_byte_makes_up_a_note(tmp_path_factory: pytest.TempPathFactory, at: int, flip: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "m"
    one = opened(path)
    for index in (0, 1, 3):
        one.note(index, DIGEST)
    one.close()
    data = bytearray(path.read_bytes())
    data[at] ^= flip
    path.write_bytes(data)
    again = opened(path)
    found = list(again.digests(0, 4))
    again.close()
    assert all(digest in ("", DIGEST) for digest in found) and found[2] == ""
    if at >= HEADER_BYTES:
        assert found.count(DIGEST) == (3 if (at - HEADER_BYTES) // 24 == 2 else 2)


@pytest.mark.parametrize(
    "junk", [b"", b"x", b"{}", b"[" * 5000, b"null".ljust(HEADER_BYTES), b"{}".ljust(HEADER_BYTES)]
)
def test_a_header_of_something_else_starts_over(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "m").write_bytes(junk)
    assert noted_blocks(str(tmp_path / "m")) is None
    assert opened(tmp_path / "m").fresh


def test_names_that_others_can_guess_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "m").symlink_to(tmp_path / "victim")
    with pytest.raises(HostError):
        opened(tmp_path / "m")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(HostError) as caught:
        open_own(str(tmp_path / "fifo"))
    assert caught.value.code == "not_permitted" and caught.value.fix
    if os.geteuid() == 0:
        (tmp_path / "theirs").write_bytes(b"")
        os.chown(tmp_path / "theirs", 12345, 12345)
        with pytest.raises(HostError):
            open_own(str(tmp_path / "theirs"))


def test_a_full_disk_is_told(small_disk: Path) -> None:
    one = opened(small_disk / "m")
    (small_disk / "fill").write_bytes(b"x" * (1024 * 1024 - 64 * 1024))
    with pytest.raises(HostError) as caught:
        for index in range(100_000):
            one.note(index * 200, DIGEST)
    one.close()
    assert caught.value.code == "no_space"
