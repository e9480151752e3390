"""Laravel's way to write routes: on, groups, names, patterns, aliases of middleware, rows of a database."""

from enum import Enum

from sqlmodel import Field, SQLModel

from mqttapi import App, Context, Middleware, RouteOptions
from mqttapi.middleware import Endpoint
from mqttapi.resources.sql import Session


class Kind(Enum):
    TEMPERATURE = "temperature"
    HUMIDITY = "humidity"


class Valve(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    serial: str = Field(unique=True)


class Tenant(Middleware):
    """Stops what comes from another tenant."""

    def __init__(self, *names: str) -> None:
        self.names = names

    async def handle(self, context: Context, next_handler: Endpoint) -> object:
        if context["tenant"] in self.names:
            return await next_handler(context)
        self.logger.info("%s is not ours", context["tenant"])
        return None


async def audit(context: Context, call_next: Endpoint) -> object:
    print(f"{context.message.topic} → {context.route.name}")
    return await call_next(context)


app = App("plant")
app.pattern("line", r"[0-9]+")
app.middleware_alias("tenant", Tenant)
app.middleware_alias("audit", audit)
app.middleware_group("ours", ["tenant:acme,globex", "audit"])


async def measured(line: str, kind: Kind, payload: float) -> None:
    print(f"line {line}: {kind.value} is {payload}")


async def stopped(line: str, reason: str | None = None) -> None:
    print(f"line {line} stopped: {reason or 'no reason given'}")


async def ping() -> None:
    print("ping")


async def commanded(valve: Valve, payload: str) -> None:
    print(f"valve {valve.id}: {payload}")


async def adopt(context: Context) -> Valve:
    return Valve(serial=context.params["valve"])


with app.group(prefix="<tenant>", middleware=["ours"]) as tenant:
    tenant.on("ping", ping, options=RouteOptions(without_middleware=["audit"]))
    with tenant.group(prefix="lines/<line>", name="lines.", qos=1) as lines:
        lines.on("<kind>", measured, where={"kind": Kind}, name="measured")
        lines.on("stopped/<reason?>", stopped, name="stopped")

# The row whose column `serial` is that level of the topic; without one, a row that a function makes.
app.on("valves/<valve:serial>/command", commanded, missing=adopt)
app.republish("legacy/<serial>/cmd", "valves/<serial>/command")


@app.on("valves/<serial>/register")
async def register(serial: str, session: Session) -> None:
    session.add(Valve(serial=serial))
