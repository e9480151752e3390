"""A password that changes, a session of a week, and what to do when the connection comes and goes."""

import logging
import os
from pathlib import Path

from mqttapi import App, Session

log = logging.getLogger("plant")


async def credentials() -> tuple[str, str]:
    """Asked at every connect: whoever renews the token writes it into this file."""
    return "plant", Path(os.environ["TOKEN_FILE"]).read_text().strip()


app = App("plant", credentials=credentials, session=Session(expiry=7 * 86_400))


@app.topic("orders/<number:int>")
async def take(number: int) -> None:
    log.info("order %d", number)


@app.on_connect
async def online() -> None:
    await app.publish("status/plant", "online", retain=True)


@app.on_disconnect
async def offline(app: App) -> None:
    log.warning("no orders at the moment: %s", "; ".join(app.readiness))


if __name__ == "__main__":
    app.run()
