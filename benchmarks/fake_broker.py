"""The broker of `mqttapi bench`, with the messages of these benchmarks. Prints its port on the first line.

python -m benchmarks.fake_broker --messages 1000000 --qos 1 --window 1000
"""

from __future__ import annotations

import argparse

from benchmarks.workload import PAYLOAD, payload_of, topic_of
from mqttapi.cli.fake_broker import Plan, listen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--warmup", type=int, default=1_000)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds before the first and after the warm-up")
    parser.add_argument("--qos", type=int, choices=(0, 1), default=0)
    parser.add_argument("--window", type=int, default=1_000, help="QoS 1 messages in flight")
    parser.add_argument("--flood", action="store_true", help="ignore the client's Receive Maximum and the window")
    parser.add_argument("--topics", type=int, default=1_000)
    parser.add_argument("--payload", type=int, default=len(PAYLOAD), metavar="BYTES", help="size of the JSON")
    parser.add_argument("--properties", action="store_true", help="MQTT 5: content type and two user properties")
    parser.add_argument("--once", action="store_true", help="exit when the last connection has ended")
    options = vars(parser.parse_args())
    port, once = options.pop("port"), options.pop("once")
    options["payload"] = payload_of(options["payload"])
    options["topics"] = [topic_of(number) for number in range(options["topics"])]
    listen(Plan(**options), port=port, once=once)


if __name__ == "__main__":
    main()
