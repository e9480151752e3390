"""Who is measured, in which environment, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A virtual environment under `benchmarks/.envs/`; without requirements: the interpreter that runs the harness."""

    name: str
    requirements: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A program to measure. `share` of the messages asked for are sent: slow peers would take minutes otherwise."""

    name: str
    title: str
    program: str
    environment: Environment
    work: str = ""
    share: float = 1.0
    variant: str = ""
    qos: tuple[int, ...] = (0, 1)
    broker: tuple[str, ...] = ()


OURS = Environment(name="ours")
LIBMOSQUITTO = Environment(name="libmosquitto")
AIOMQTT = Environment(name="aiomqtt", requirements=("aiomqtt==2.5.1", "uvloop==0.23.0"))
FASTSTREAM = Environment(name="faststream", requirements=("faststream[mqtt]==0.7.8", "uvloop==0.23.0"))
GMQTT = Environment(name="gmqtt", requirements=("gmqtt==0.8.0", "uvloop==0.23.0"))
PAHO = Environment(name="paho", requirements=("paho-mqtt==2.2.0",))
ROUTEMQ = Environment(name="routemq", requirements=("routemq==0.25.0", "greenlet==3.5.6"), python=(3, 12))
ZMQTT = Environment(name="zmqtt", requirements=("zmqtt==0.2.5", "uvloop==0.23.0"))
PLOT = Environment(name="plot", requirements=("matplotlib==3.11.2",))

CONSUME = (
    Case(
        name="mqttapi",
        title="MQTTAPI",
        program="ours/consume.py",
        environment=OURS,
        work="parameter, pydantic model, middleware; acknowledged after the handler, in order",
    ),
    Case(
        name="libmosquitto",
        title="libmosquitto, in C",
        program="peers/consume_libmosquitto.c",
        environment=LIBMOSQUITTO,
        work="bare callback, MQTT 3.1.1; acknowledged before it",
    ),
    Case(
        name="gmqtt",
        title="gmqtt",
        program="peers/consume_gmqtt.py",
        environment=GMQTT,
        work="bare callback; acknowledged before it",
    ),
    Case(
        name="paho",
        title="paho",
        program="peers/consume_paho.py",
        environment=PAHO,
        work="bare callback, MQTT 3.1.1; acknowledged after it",
        share=0.3,
    ),
    Case(
        name="paho-v5",
        title="paho, MQTT 5",
        program="peers/consume_paho.py",
        environment=PAHO,
        work="bare callback; acknowledged after it",
        share=0.2,
        variant="v5",
    ),
    Case(
        name="aiomqtt",
        title="aiomqtt",
        program="peers/consume_aiomqtt.py",
        environment=AIOMQTT,
        work="iterator, MQTT 3.1.1; acknowledged before it",
        share=0.2,
    ),
    Case(
        name="aiomqtt-v5",
        title="aiomqtt, MQTT 5",
        program="peers/consume_aiomqtt.py",
        environment=AIOMQTT,
        work="iterator; acknowledged before it",
        share=0.1,
        variant="v5",
    ),
    Case(
        name="zmqtt",
        title="zmqtt",
        program="peers/consume_zmqtt.py",
        environment=ZMQTT,
        work="iterator, MQTT 3.1.1; acknowledged before it",
        share=0.1,
    ),
    Case(
        name="zmqtt-v5",
        title="zmqtt, MQTT 5",
        program="peers/consume_zmqtt.py",
        environment=ZMQTT,
        work="iterator; acknowledged before it",
        share=0.1,
        variant="v5",
    ),
    Case(
        name="faststream",
        title="FastStream",
        program="peers/consume_faststream.py",
        environment=FASTSTREAM,
        work="parameter, pydantic model, log switched off; acknowledged after the handler",
        share=0.05,
    ),
    Case(
        name="routemq",
        title="RouteMQ",
        program="peers/consume_routemq.py",
        environment=ROUTEMQ,
        work="parameter, dict, middleware, MQTT 3.1.1, log turned down; acknowledged before the handler",
        share=0.05,
    ),
)

PUBLISH = (
    Case(name="mqttapi", title="MQTTAPI", program="ours/publish.py", environment=OURS, work="awaited", share=0.5),
    Case(
        name="gmqtt",
        title="gmqtt",
        program="peers/publish_gmqtt.py",
        environment=GMQTT,
        work="cannot be awaited: lots of 64",
        share=0.5,
    ),
    Case(
        name="aiomqtt",
        title="aiomqtt",
        program="peers/publish_aiomqtt.py",
        environment=AIOMQTT,
        work="awaited, MQTT 3.1.1",
        share=0.2,
    ),
    Case(
        name="faststream",
        title="FastStream",
        program="peers/publish_faststream.py",
        environment=FASTSTREAM,
        work="awaited",
        share=0.2,
    ),
)

_TYPED = replace(CONSUME[0], work="")
COSTS = (
    replace(_TYPED, title="the pipeline above"),
    replace(_TYPED, name="depends", title="one `Depends` more", variant="depends"),
    replace(
        _TYPED,
        name="properties",
        title="content type and two user properties, read",
        variant="properties",
        broker=("--properties",),
    ),
    replace(_TYPED, name="window-20", title="window 20", qos=(1,), share=0.5, broker=("--window", "20")),
    replace(_TYPED, name="window-1", title="window 1", qos=(1,), share=0.1, broker=("--window", "1")),
    replace(_TYPED, name="topics", title="100,000 topics", share=2.0, broker=("--topics", "100000")),
)
