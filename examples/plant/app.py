"""The app of the plant: every reading becomes a row, and a hot one an alert.

It serves real devices as well: `DATABASE_URL=sqlite+aiosqlite:///plant.db mqttapi run examples.plant.app:app`
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from mqttapi import App, Context, Depends, MessageError, Publisher
from mqttapi.config import Settings
from mqttapi.middleware import Endpoint

HOT = 80.0  # °C


class Reading(SQLModel):
    """What a device says."""

    temperature: float = Field(ge=-50, le=200)
    battery: float = Field(ge=0, le=1)


class StoredReading(Reading, table=True):
    """What is kept of it."""

    id: int | None = Field(default=None, primary_key=True)
    device_id: str = Field(index=True)
    received_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class Alert(SQLModel):
    device_id: str
    temperature: float


@dataclass
class Counts:
    """What happened to the messages of this run."""

    in_flight: int = 0
    handled: int = 0
    rejected: int = 0
    failed: int = 0
    alerts: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Why messages were rejected."""

    @property
    def ended(self) -> int:
        return self.handled + self.rejected + self.failed


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    app.state.counts = Counts()
    yield


app = App("plant", lifespan=lifespan)


@app.resource
async def open_database() -> AsyncIterator[AsyncEngine]:
    url = Settings().database_url
    # SQLite has one writer at a time: with one connection the others wait here, in order, and not at its lock.
    engine = create_async_engine(
        url.get_secret_value() if url else "sqlite+aiosqlite:///plant.db", pool_size=1, max_overflow=0
    )
    async with engine.begin() as connection:
        await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        await connection.exec_driver_sql("PRAGMA synchronous = NORMAL")
        await connection.run_sync(SQLModel.metadata.create_all)
    yield engine
    await engine.dispose()


async def open_session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """One transaction for each message: committed when the handler has succeeded, else rolled back."""
    async with AsyncSession(engine) as session, session.begin():
        yield session


Session = Annotated[AsyncSession, Depends(open_session)]


@app.middleware
async def count(context: Context, call_next: Endpoint) -> object:
    counts: Counts = context.app.state.counts
    counts.in_flight += 1
    try:
        result = await call_next(context)
    except MessageError as error:
        counts.rejected += 1
        counts.reasons[error.reason] += 1
        raise
    except Exception:
        counts.failed += 1
        raise
    else:
        counts.handled += 1
        return result
    finally:
        counts.in_flight -= 1


@app.topic("devices/<device_id>/readings", qos=1)
async def keep(device_id: str, reading: Reading, session: Session, publisher: Publisher) -> None:
    session.add(StoredReading(device_id=device_id, temperature=reading.temperature, battery=reading.battery))
    if reading.temperature > HOT:
        alert = Alert(device_id=device_id, temperature=reading.temperature)
        await publisher.publish("alerts/<device_id>", alert, params={"device_id": device_id})
        app.state.counts.alerts += 1
