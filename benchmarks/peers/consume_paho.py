"""paho's callback and its own loop: no routing, no decoding. It acknowledges when the callback has returned."""

from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from benchmarks.meter import Job, counter
from benchmarks.workload import FILTER


def main(job: Job) -> None:
    tick = counter(job)

    def on_connect(client: paho.Client, *_: Any) -> None:
        client.subscribe(FILTER, qos=job.qos)

    def on_message(client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        tick(message.payload)

    protocol = MQTTProtocolVersion.MQTTv5 if job.variant == "v5" else MQTTProtocolVersion.MQTTv311
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
    client.on_connect = on_connect
    client.on_message = on_message
    client.connect("127.0.0.1", job.port)
    client.loop_forever()


main(Job())
