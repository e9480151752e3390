"""Handlers that use a database: a file beside the app, or what DATABASE_URL says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Field, SQLModel, select

from mqttapi import App, Reject
from mqttapi.resources.sql import Session


class Measurement(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    device_id: str = Field(index=True)
    celsius: float


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    async with app.opened(AsyncEngine).begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    yield


app = App("plant", lifespan=lifespan)


@app.topic("sensors/<device_id>/temperature")
async def keep(device_id: str, payload: float, session: Session) -> None:
    session.add(Measurement(device_id=device_id, celsius=payload))
    if payload < -273.15:
        raise Reject("below absolute zero")  # nothing is stored: every exception rolls back


@app.topic("sensors/<device_id>/hottest")
async def hottest(device_id: str, session: Session) -> float | None:
    """Answers the Response Topic."""
    found = select(Measurement).where(Measurement.device_id == device_id)
    return max((each.celsius for each in await session.exec(found)), default=None)
