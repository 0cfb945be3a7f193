"""The audit log: who did what and when, a JSON object per line, in files that are rotated; no texts unless asked."""

import json
import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from chat_ui.database import now

FILE_BYTES = 10_000_000
N_FILES = 10  # kept beside the newest


class Audit:
    """Writes the audit log.

    Args:
        path: of the newest file; older ones have a number behind it.
        texts: whether to write down what was said.
    """

    def __init__(self, path: Path, *, texts: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.texts = texts
        self._handler = RotatingFileHandler(
            path, maxBytes=FILE_BYTES, backupCount=N_FILES, encoding="utf-8", delay=True
        )

    def write(self, event: str, *, text: str | None = None, **fields: Any) -> None:
        """Write down an event.

        Args:
            event: its name, such as "login" or "message".
            text: what was said; only its length is written unless `texts` is on.
            fields: whatever else is JSON.
        """
        entry: dict[str, Any] = {"time": now(), "event": event} | fields
        if text is not None:
            entry["characters"] = len(text)
            if self.texts:
                entry["text"] = text
        line = json.dumps(entry, ensure_ascii=True)
        self._handler.emit(logging.LogRecord("audit", logging.INFO, "", 0, line, (), None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()
