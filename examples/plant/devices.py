"""The devices of the plant: a process that publishes readings, each device over a connection of its own.

    python -m examples.plant.devices HOST PORT DEVICES RATE

It writes, line by line, how many messages the broker has acknowledged so far, and ends when its input does.
"""

import asyncio
import contextlib
import json
import random
import sys

import aiomqtt

_NONSENSE = (
    b"\xff\xfe\x00",  # not UTF-8
    b"temperature=71",  # not JSON
    b'{"temp": 71}',  # other fields
    b'{"temperature": 4000, "battery": 1}',  # not of this world
    b"",
)


class Devices:
    """Simulated devices that publish until `stop` is set.

    Every tenth one is broken: a third of what it says is nonsense.

    Args:
        rate: Messages per second of each device, on average.
    """

    def __init__(self, host: str, port: int, rate: float) -> None:
        self.published = 0
        """Messages that the broker has acknowledged."""
        self.stop = asyncio.Event()
        self._host = host
        self._port = port
        self._rate = rate

    async def run(self, number: int) -> None:
        """Be device `number` until told to stop; what was published by then has been acknowledged."""
        client = aiomqtt.Client(
            self._host,
            self._port,
            identifier=f"device-{number}",
            protocol=aiomqtt.ProtocolVersion.V5,
            timeout=30,
        )
        async with client:
            while not await self._stopped_within(random.expovariate(self._rate)):
                await client.publish(f"devices/{number}/readings", _payload(broken=number % 10 == 1), qos=1)
                self.published += 1

    async def report(self) -> None:
        """Write the number of messages now and then."""
        while not await self._stopped_within(0.2):
            print(self.published, flush=True)

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.stop.wait()
        return False


def _payload(*, broken: bool) -> bytes:
    if broken and random.random() < 1 / 3:
        return random.choice(_NONSENSE)
    reading = {"temperature": round(random.gauss(60, 10), 1), "battery": round(random.uniform(0.2, 1), 2)}
    return json.dumps(reading).encode()


async def main(host: str, port: int, devices: int, rate: float) -> None:
    fleet = Devices(host, port, rate)
    loop = asyncio.get_running_loop()

    def on_end_of_input() -> None:
        loop.remove_reader(sys.stdin)
        fleet.stop.set()

    loop.add_reader(sys.stdin, on_end_of_input)  # also when whoever started us has died
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fleet.report())
        for number in range(1, devices + 1):
            tasks.create_task(fleet.run(number), name=f"device-{number}")
    print(fleet.published)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
