"""What becomes of a message whose handler raises."""

from mqttapi import App, Context, Reject, Retry

app = App("plant", dead_letter="dead/<topic>")


class Unplugged(Exception):
    pass


async def read_register(device_id: str, register: int) -> int:
    """Stands for a bus that is not always there."""
    if device_id == "7":
        raise TimeoutError
    if device_id == "8":
        raise Unplugged
    return register


@app.topic("registers/<device_id>", retry=Retry(attempts=3, delay=0.01, on=TimeoutError))
async def register(device_id: str, payload: int) -> None:
    if payload > 0xFFFF:
        raise Reject(f"there is no register {payload}")
    print(await read_register(device_id, payload))


@app.exception_handler(Unplugged)
async def unplugged(context: Context, error: Unplugged) -> None:
    """Who returns has dealt with it: the message is done."""
    await context.publish("service/calls", f"{context['device_id']} is unplugged")
