"""What a handler needs, it asks for."""

from collections.abc import AsyncIterator
from typing import Annotated

from mqttapi import App, Depends, Reject

app = App("plant")


class Database:
    """Stands for a real one."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []

    async def commit(self) -> None:
        print("commit")

    async def rollback(self) -> None:
        print("rollback")


@app.resource
async def open_database() -> AsyncIterator[Database]:
    """Once, before the first message; what follows the `yield` runs after the last one."""
    yield Database()


async def transaction(database: Database) -> AsyncIterator[Database]:
    """Around every message: whatever the handler raises is raised at the `yield`."""
    try:
        yield database
    except Exception:
        await database.rollback()
        raise
    await database.commit()


async def owner(device_id: str) -> str:
    """A dependency takes what a handler can take: here a part of the topic."""
    owners = {"7": "ann"}
    if device_id not in owners:
        raise Reject(f"nobody owns {device_id}")
    return owners[device_id]


async def greeting(owner: Annotated[str, Depends(owner)]) -> str:
    """Dependencies may have dependencies; each is called once for a message, however many ask for it."""
    return f"Hello {owner}"


@app.topic("sensors/<device_id>/data")
async def ingest(
    payload: str,
    database: Annotated[Database, Depends(transaction)],
    owner: Annotated[str, Depends(owner)],
    greeting: Annotated[str, Depends(greeting)],
) -> None:
    if payload == "broken":
        raise ValueError(payload)
    database.rows.append((owner, payload))
    print(greeting)
