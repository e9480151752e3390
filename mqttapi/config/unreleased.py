"""The QoS 2 messages that were answered with PUBREC and await PUBREL, on disk from one process to the next.

A broker that has not read a PUBREC, or has forgotten that it did, sends the message again [MQTT-4.4.0-1]. A process
that was not there before cannot know that it has been handled, unless it is told. That has to be done with care: who is
told too much takes a new message for one that was handled, and *loses* it; who is told too little runs a handler twice,
which may happen anyway. So whatever is in doubt here counts as unknown.

**The file is there only while it is true.** It is written when a connection has ended, by the process that had it, and
removed when the next one stands, before anything is read from that. While no connection stands nobody answers the
broker, so it can free none of these ids; and what was not read cannot be acted upon. So no message is lost, when

    the process dies while connected        There is no file. What comes again may run twice: the rule that stays.
    ... while not connected, or is stopped  The file stays, and is true until there is a connection.
    ... between CONNACK and the first read  The file is still true, or gone.
    the machine dies                        Removing is synced before the first read, so the file does not come back.
                                            Writing is not: a lost file is no file, and a damaged one counts as none.
    the file cannot be removed              A warning, and it is not used. A later process may find it, see below.
    the broker has lost the session         CONNACK says so, and the ledger drops all it knows.
    PUBREL, and the id is used again        By then the file is gone; the ledger frees the id as ever.
    QoS 1 uses the id                       Such a message is never taken for a repeat.
    another client takes the session over   DISCONNECT says so (0x8E), and nothing is written: it is theirs now.
    the same broker gets another URL        There is one file per client id: any connection removes it, and it is used
                                            only at the address that it was written at.
    a version of the app has no QoS 2       It removes the file as well.
    ... has a transient session             It ends the session, so that the next lasting one is new.

**What may make it false unseen**: the client id on another machine or with another `MQTTAPI_STATE_DIR`, a tool with the
same id, a broker that came back with an older state, a disk that was read-only for a while. Three things stand between
a false file and a loss. It is used for an hour at most. The ledger believes it of messages that are marked as sent
before (DUP) and come before the first one that is not, so of none that it sees for the first time. And id, topic and
payload have to be the same. What is left needs all of these at once, and the new message sent to that other client, or
on a connection that broke before it was read, without an answer.

A broker that does not mark what it sends again breaks [MQTT-3.3.1-1]; there the file has no effect.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from mqttapi.config.record import file_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Unreleased"]

log = logging.getLogger("mqttapi.link")

MAX_AGE: Final = 3600.0
"""Seconds by the machine's clock after which a file is not used."""


class Unreleased:
    """What one client id has to remember of its session. Errors of the disk are worth a warning, no more.

    Args:
        client_id: Whose session it is.
        directory: Where the file is; made when it is needed.
        broker: The address; what is remembered of one broker is not used with another one.
    """

    def __init__(self, client_id: str, directory: Path, broker: str) -> None:
        self.path = directory / file_name(client_id, "", "unreleased")
        self._client_id = client_id
        self._broker = broker
        self._is_first = True

    def take(self) -> dict[int, int]:
        """To be called when a connection stands, before anything is read from it: remove the file.

        Gives packet ids with the digests of their messages, to the first caller of a process: later the ledger knows
        better. Empty where nothing is known for certain.
        """
        is_first, self._is_first = self._is_first, False
        try:
            content = self.path.read_bytes()
            self._remove()
        except FileNotFoundError:
            return {}
        except OSError as error:
            log.warning(
                "cannot read and remove the QoS 2 messages that %s had handled (%s): %s; they may run twice",
                self._client_id,
                self.path,
                error,
            )
            return {}
        return self._checked(content) if is_first else {}

    def save(self, unreleased: Mapping[int, int]) -> None:
        """To be called when a connection has ended, with what the ledger gives as `unreleased`."""
        if not unreleased:
            return
        content = {
            "client_id": self._client_id,
            "broker": self._broker,
            "at": time.time(),
            "ids": [*unreleased.items()],
        }
        draft = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_text(json.dumps(content) + "\n")
            draft.replace(self.path)
        except OSError as error:
            log.warning(
                "cannot note %d QoS 2 messages that %s has handled (%s): %s; they may run twice if it is started again",
                len(unreleased),
                self._client_id,
                self.path,
                error,
            )

    def _remove(self) -> None:
        self.path.unlink()
        if sys.platform == "win32":
            return  # a directory cannot be opened there
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _checked(self, content: bytes) -> dict[int, int]:
        try:
            found: dict[str, Any] = json.loads(content)
            ids = {int(packet_id): int(digest) for packet_id, digest in found["ids"]}
            is_ours = found["client_id"] == self._client_id and found["broker"] == self._broker
            age = time.time() - found["at"]
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            log.warning("%s is damaged (%s): QoS 2 messages may run twice", self.path, error)
            return {}
        return ids if is_ours and 0 <= age <= MAX_AGE else {}
