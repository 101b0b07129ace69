r"""Text from peers and files on its way to a terminal: no control character gets through.

A region name or an error text chosen by a stranger could otherwise move the cursor, change the title or, with a
right-to-left override, show something else than what it is.
"""

from __future__ import annotations

from unicodedata import category

# Cc control, Cf format (bidi overrides, zero width), Cs surrogates (undecodable bytes), Zl and Zp line separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"})


def clean(text: str) -> str:
    r"""Return `text` with every unsafe character as `\xNN`, `\uNNNN` or `\UNNNNNNNN`."""
    # fast path: nearly all text is plain ASCII
    if text.isascii() and text.isprintable():
        return text
    return "".join(escape(character) if category(character) in _UNSAFE else character for character in text)


def escape(character: str) -> str:
    r"""Return one character as `\xNN`, `\uNNNN` or `\UNNNNNNNN`."""
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
