"""The machine's own source entry, with another suite in it."""

from __future__ import annotations

import pytest

from lab.apt import deb822_entry, one_line_entry, own_entry
from lab.errors import MissingError

DEB822 = """\
# made by somebody
Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/a.gpg

Types: deb deb-src
# a comment inside
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc=
"""
LIST = """\
# deb http://off.example/debian bookworm main
deb http://mirror.example/other bookworm contrib
deb [signed-by=/k.gpg arch=amd64] http://mirror.example/debian bookworm main contrib # mine
"""


def test_deb822_paragraph_keeps_all_but_the_suite() -> None:
    entry = deb822_entry(DEB822, "bookworm", "trixie-backports")
    assert entry is not None
    assert entry.splitlines()[:4] == [
        "Types: deb deb-src",
        "URIs: http://mirror.example/debian",
        "Suites: trixie-backports",
        "Components: main contrib",
    ]
    assert entry.endswith(" -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc=\n")
    assert deb822_entry(DEB822, "forky", "x") is None
    assert deb822_entry(DEB822.replace("Types: deb deb-src", "Types: deb\nEnabled: no"), "bookworm", "x") is None


def test_one_line_entry_keeps_its_options() -> None:
    assert one_line_entry(LIST, "bookworm", "trixie-backports") == (
        "deb [signed-by=/k.gpg arch=amd64] http://mirror.example/debian trixie-backports main\n"
    )
    assert one_line_entry(LIST, "trixie", "x") is None


def test_own_entry_looks_into_both_kinds_of_file(tmp_path) -> None:
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    with pytest.raises(MissingError, match="--kernel PATH"):
        own_entry("trixie-backports", "bookworm", tmp_path)
    (tmp_path / "sources.list").write_text(LIST)
    assert own_entry("s", "bookworm", tmp_path)[0] == ".list"
    (folder / "debian.sources").write_text(DEB822)
    assert own_entry("s", "bookworm", tmp_path)[0] == ".sources"
