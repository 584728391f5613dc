"""The server's log: events of named values, as text for people or as JSON for machines.

Slides are not named unless that is asked for: a file's name may be a patient's.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from .calls import HEALTH, Call, peer_class
from .config import LogFormat, LogLevel

LOG = logging.getLogger(__name__)

_PLAIN = re.compile(r"[\w.:/+-]+")
# Refused for who they are: whoever guesses tokens should be found by address.
_NAMED_PEERS = {"UNAUTHENTICATED", "PERMISSION_DENIED"}


class Event:
    """A message for a logger: ``name key=value ...`` as text. Empty values are left out."""

    def __init__(self, name: str, **values: Any) -> None:
        self.name = name
        self.values = {key: value for key, value in values.items() if value not in ("", None, {})}

    def __str__(self) -> str:
        return " ".join([self.name, *_pairs(self.values)])


def job_event(call: Call, state: str, *, slides: bool) -> Event:
    """How a prediction job ended; ``call`` holds what is known of its work."""
    return Event(
        "job",
        job=call.job,
        state=state,
        reason=call.reason,
        model=call.model,
        request_id=call.request_id,
        features=call.features,
        duration_s=round(call.took_s, 4),
        seconds=_rounded(call.seconds),
        stage="" if call.code == "OK" else call.stage,
        client=call.client,
        slide=call.slide if slides else "",
    )


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(took_s, 4) for stage, took_s in seconds.items()}


def _pairs(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _pairs(value, f"{prefix}{key}.")
        else:
            text = str(value)
            shown = text if _PLAIN.fullmatch(text) else json.dumps(text)
            found.append(f"{prefix}{key}={shown}")
    return found


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``event`` and the event's values.

    What is logged as plain text has the event ``message`` and the value ``message``; a traceback is in
    ``traceback``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        when = datetime.fromtimestamp(record.created, UTC)
        document: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if isinstance(record.msg, Event):
            document |= {"event": record.msg.name} | record.msg.values
        else:
            document |= {"event": "message", "message": record.getMessage()}
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, default=str)


def set_up_logging(form: LogFormat, level: LogLevel) -> None:
    """Log to standard error, this process long."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler])


class CallLog:
    """Writes a line for each call; health checks that went well only at the level ``debug``."""

    def __init__(self, *, slides: bool) -> None:
        """``slides``: write the address of the slide as well, as the client gave it."""
        self._slides = slides

    def __call__(self, call: Call) -> None:
        """Write the line of ``call``."""
        quiet = call.service == HEALTH and call.code in ("OK", "CANCELLED")
        LOG.log(logging.DEBUG if quiet else logging.INFO, self._event(call))

    def _event(self, call: Call) -> Event:
        return Event(
            "call",
            rpc=call.rpc,
            code=call.code,
            reason=call.reason,
            model=call.model,
            request_id=call.request_id,
            job=call.job,
            features=call.features,
            duration_s=round(call.took_s, 4),
            seconds=_rounded(call.seconds),
            stage="" if call.code == "OK" else call.stage,
            client=call.client,
            peer_class=peer_class(call.peer),
            peer=call.peer if call.code in _NAMED_PEERS else "",
            trace_id=call.trace_id,
            slide=call.slide if self._slides else "",
        )


__all__ = ["CallLog", "Event", "JsonLines", "job_event", "set_up_logging"]
