"""Which routes get a message, how often, and what happens when there are too many."""

from mqttapi import App, Context, Message

app = App("plant")


@app.topic("lines/<line:int>/state", retained="all")
async def state(line: int, payload: str) -> None:
    """The last known state, again at each connection."""
    print(f"line {line} is {payload}")


@app.topic("lines/<line:int>/commands", qos=2, retained="new")
async def command(line: int, payload: str) -> None:
    """A retained command is not executed a second time."""
    print(f"line {line}: {payload}")


@app.topic("lines/<line:int>/position", qos=0, overflow="latest")
async def position(line: int, payload: str) -> None:
    """Of the positions that wait, only the newest of each line is of interest."""
    print(f"line {line} is at {payload}")


@app.topic("lines/#", isolate=True)
async def archive(message: Message) -> None:
    """Slow, and on a connection of its own: it holds up nobody."""
    print(f"archived {message.topic}")


@app.fallback
async def unknown(context: Context) -> None:
    """What arrives and matches no route, such as a message that a former version had subscribed to."""
    print(f"nobody is for {context.message.topic}")
