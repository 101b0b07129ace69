"""The JSON Schemas that ship in the package, as data files."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def load_schema(name: str = "result.schema.json") -> dict[str, Any]:
    """Return one shipped schema."""
    document: dict[str, Any] = json.loads(files(__package__).joinpath(name).read_text("utf-8"))
    return document
