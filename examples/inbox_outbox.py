"""An order is booked once, though it may be delivered more than once; its invoice leaves if and only if it is booked."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import Field, SQLModel

from mqttapi import App
from mqttapi.resources.inbox import Inbox
from mqttapi.resources.outbox import Outbox
from mqttapi.resources.sql import Session


class Order(BaseModel):
    number: str
    amount: int


class Booking(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    customer: str
    amount: int


@asynccontextmanager
async def lifespan(app: App) -> AsyncIterator[None]:
    async with app.opened(AsyncEngine).begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    yield


app = App("shop", lifespan=lifespan)


def number(order: Order) -> str:
    return order.number


@app.topic("customers/<customer>/orders", name="book", inbox=Inbox(key=number))
async def book(customer: str, order: Order, session: Session, outbox: Outbox) -> None:
    session.add(Booking(customer=customer, amount=order.amount))
    await outbox.publish("customers/<customer>/invoices", order, params={"customer": customer})
