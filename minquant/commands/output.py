"""What every command does with its report: the file that ``--json PATH`` asks for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: str | os.PathLike[str], report: Any) -> None:
    """Writes ``report`` as JSON, whole or not at all; ValueError on NaN and infinity, which JSON lacks."""
    target = Path(path)
    unfinished = target.with_name(target.name + ".tmp")
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, target)
