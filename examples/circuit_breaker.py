"""Messages wait while a service is away."""

from mqttapi import App
from mqttapi.middleware import CircuitBreaker

app = App("shop")


class Billing:
    """Stands for a service that can be away."""

    def __init__(self) -> None:
        self.away = False
        self.booked: list[str] = []

    async def book(self, order: str) -> None:
        if self.away:
            raise ConnectionError("billing does not answer")
        self.booked.append(order)


billing = Billing()


@app.topic("orders/<id>", isolate=True, middleware=[CircuitBreaker(1, reset=0.5, on=ConnectionError)])
async def order(id: str) -> None:
    await billing.book(id)
