"""Predicts what a fleet of members does: backlog, redeliveries, and how long a failure is felt.

    python -m benchmarks.simulate_fleet --members 100 --machines 10 --rate 6000 --service constant:0.01 --kill 3@20

A discrete-event simulation, seeded, of one shared subscription of QoS 1. A broker deals messages to members (worker
processes) on machines; a member runs so many handlers at once and acknowledges in order of arrival; members die and come
back, machines are lost, the broker restarts. `benchmarks.check_fleet` compares it with real runs.

What is in the model:

- *sessions*, as mosquitto, EMQX and NanoMQ deal: in turn to every member that has a session, online or not. What a dead
  member has not acknowledged waits for that member.
- *online*, as VerneMQ deals: in turn to the members that are online. What a dead member has waits for it, too.
- *queue*, as HiveMQ deals: one queue for the group, from which those take that have room in their window. What a dead
  member has not acknowledged goes back to the head of the queue.
- A killed member is missed at once (its connection is reset), a lost machine only after 1.5 times the keep alive.
- After a death the messages that come again run one at a time, until they are through (`quarantine`).
- A broker that restarts keeps the sessions. Publishers keep what they could not publish, and send it as soon as someone
  has subscribed. Handlers go on meanwhile, and what comes again joins their runs.

What is not: the network's delays, cores that members fight for (give a service time that holds on the machine), the
broker's own limits, publishers that give up.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

__all__ = [
    "BrokerRestart",
    "Burst",
    "Failure",
    "Fleet",
    "Kill",
    "Load",
    "Loss",
    "Outcome",
    "Service",
    "recovery",
    "simulate",
]

Strategy = Literal["sessions", "online", "queue"]
Samples = Sequence[tuple[float, int]]

BEFORE: Final = 2.0  # seconds before a failure, whose largest backlog is what "as before" means


# ------------------------------------------------------------------------------------------------------------ what is


@dataclass(frozen=True, slots=True)
class Service:
    """How long a handler takes: `mean` seconds, always (`constant`), or drawn (`exponential`, `lognormal`).

    `sigma` is the standard deviation of the logarithm, for `lognormal`: 1 is a long tail.
    """

    kind: Literal["constant", "exponential", "lognormal"] = "constant"
    mean: float = 0.01
    sigma: float = 1.0

    def sampler(self, draw: random.Random) -> Callable[[], float]:
        match self.kind:
            case "constant":
                return lambda: self.mean
            case "exponential":
                return lambda: draw.expovariate(1 / self.mean)
            case "lognormal":
                mu = math.log(self.mean) - self.sigma**2 / 2
                return lambda: draw.lognormvariate(mu, self.sigma)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The members and how the broker deals to them.

    Attributes:
        machines: Member i is on machine i modulo this.
        lanes: Handlers at once in a member: 1 for a handler that keeps the core busy.
        window: Messages that the broker sends a member without an acknowledgement.
        queue_limit: Messages that wait in a session beside the window (`queue`: in the group's queue); 0 is no limit.
        restart: Seconds from a member's death until it is subscribed again.
        reconnect: After a restart of the broker a member is back within so many seconds, drawn evenly; or the seconds of
            each member.
        noticed: Seconds until the broker misses the members of a lost machine.
        forgets: The broker forgets shared subscriptions over its restart: a member has no share until it is back.
        quarantine: After a death, what comes again runs one at a time.
    """

    members: int = 4
    machines: int = 1
    service: Service = field(default_factory=Service)
    lanes: int = 1
    window: int = 1000
    strategy: Strategy = "sessions"
    queue_limit: int = 0
    restart: float = 2.0
    reconnect: float | tuple[float, ...] = 1.0
    noticed: float = 90.0
    forgets: bool = True
    quarantine: bool = True


@dataclass(frozen=True, slots=True)
class Burst:
    at: float
    count: int


@dataclass(frozen=True, slots=True)
class Load:
    """`rate` messages a second for `duration` seconds, evenly spaced or (`poisson`) at random, and bursts on top.

    `drain` seconds more are simulated in which nothing is published. After a restart of the broker the publishers are back
    `reconnect` seconds later.
    """

    rate: float
    duration: float
    drain: float = 0.0
    poisson: bool = False
    bursts: tuple[Burst, ...] = ()
    reconnect: float = 0.0


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL of a member; its supervisor starts it again at once."""

    at: float
    member: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A machine is gone without a word. Its members are subscribed again, with their ids, `back` seconds later or never."""

    at: float
    machine: int
    back: float | None = None


@dataclass(frozen=True, slots=True)
class BrokerRestart:
    """The broker is away for `takes` seconds."""

    at: float
    takes: float


Failure = Kill | Loss | BrokerRestart


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the messages.

    Attributes:
        redelivered: Messages that were sent once more, whether or not a handler had begun with them.
        repeated: Runs of a handler beyond the first one of its message.
        mean_backlog: Over the time, of the messages that were published and not handled.
        utilisation: The part of the time that lanes were busy, on average.
        samples: The backlog by time.
    """

    published: int
    handled: int
    dropped: int
    redelivered: int
    repeated: int
    mean_backlog: float
    utilisation: float
    samples: tuple[tuple[float, int], ...]

    @property
    def backlog(self) -> int:
        """Messages that are left at the end."""
        return self.published - self.handled - self.dropped

    @property
    def peak(self) -> tuple[float, int]:
        """When the backlog was largest, and how large."""
        return max(self.samples, key=lambda sample: sample[1])


def recovery(samples: Samples, at: float, *, slack: int = 0) -> float | None:
    """Seconds from a failure until the backlog is again what it was in the two seconds before, plus `slack`.

    0 when it never was more, None when it still is at the end.
    """
    usual = max((backlog for time, backlog in samples if at - BEFORE <= time < at), default=0) + slack
    felt = last = None
    for time, backlog in samples:
        if time < at:
            continue
        if backlog > usual:
            felt, last = time, None
        elif felt is not None and last is None:
            last = time
            break
    if felt is None:
        return 0.0
    return None if last is None else last - at


def simulate(
    fleet: Fleet, load: Load, failures: Sequence[Failure] = (), *, seed: int = 0, sample: float = 0.1
) -> Outcome:
    """Run it. Equal arguments give an equal outcome."""
    return _Simulation(fleet, load, failures, seed, sample).run()


# ----------------------------------------------------------------------------------------------------------- the model


@dataclass(slots=True, eq=False)
class _Message:
    sends: int = 0
    runs: int = 0
    handled: bool = False


@dataclass(slots=True, eq=False)
class _Delivery:
    """A message in a member's window."""

    message: _Message
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Member:
    number: int
    alive: bool = True
    connected: bool = True
    """What the broker believes: a lost machine's members are connected until they are missed."""
    subscribed: bool = True
    waiting: deque[_Message] = field(default_factory=deque)
    """In the session, and not sent."""
    sent: deque[_Delivery] = field(default_factory=deque)
    """Not acknowledged, in order."""
    ready: deque[_Delivery] = field(default_factory=deque)
    """Of those, the ones that the process has and has not begun with."""
    running: int = 0
    resumed: int = 0
    """Of `ready` and the running ones, those that came again after a death: they are the first."""
    life: int = 0
    """Counts deaths, so that handlers of a former process end unheard."""


class _Simulation:
    def __init__(self, fleet: Fleet, load: Load, failures: Sequence[Failure], seed: int, sample: float) -> None:
        self.fleet, self.load, self.sample = fleet, load, sample
        # Streams of their own: another strategy meets the same arrivals.
        self.arrivals, self.connects = random.Random(f"{seed} arrivals"), random.Random(f"{seed} connects")
        self.service = fleet.service.sampler(random.Random(f"{seed} service"))
        self.members = [_Member(number) for number in range(fleet.members)]
        self.turn = 0
        self.group: deque[_Message] = deque()
        self.held: deque[_Message] = deque()
        self.broker = self.publishers = True
        self.now = self.since = self.area = self.busy = 0.0
        self.published = self.handled = self.dropped = self.redelivered = self.repeated = 0
        self.samples: list[tuple[float, int]] = []
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.scheduled = 0
        self._plan(failures)

    def run(self) -> Outcome:
        end = self.load.duration + self.load.drain
        while self.events and self.events[0][0] <= end:
            self.now, _, action, arguments = heapq.heappop(self.events)
            action(*arguments)
        self.now = end
        self._account()
        return Outcome(
            self.published,
            self.handled,
            self.dropped,
            self.redelivered,
            self.repeated,
            self.area / end,
            self.busy / (end * self.fleet.members * self.fleet.lanes),
            tuple(self.samples),
        )

    # Time

    def _at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        self.scheduled += 1  # of equal times, the one that was planned first
        heapq.heappush(self.events, (time, self.scheduled, action, arguments))

    def _plan(self, failures: Sequence[Failure]) -> None:
        self._at(0.0, self._take_sample)
        times = self._arrival_times()
        self._at(next(times, math.inf), self._arrive, times)
        for burst in self.load.bursts:
            self._at(burst.at, self._publish, burst.count)
        for failure in failures:
            match failure:
                case Kill(at, number):
                    self._at(at, self._kill, self.members[number])
                case Loss(at, machine, back):
                    for member in self.members[machine :: self.fleet.machines]:
                        self._at(at, self._lose, member, back)
                case BrokerRestart(at, takes):
                    self._at(at, self._broker_down, takes)

    def _arrival_times(self) -> Iterator[float]:
        rate, time, number = self.load.rate, 0.0, 0
        while rate:
            number += 1
            time = time + self.arrivals.expovariate(rate) if self.load.poisson else number / rate
            if time > self.load.duration:
                return
            yield time

    def _take_sample(self) -> None:
        self.samples.append((round(self.now, 6), self._backlog()))
        self._at(len(self.samples) * self.sample, self._take_sample)

    def _backlog(self) -> int:
        return self.published - self.handled - self.dropped

    def _account(self) -> None:
        """Before the backlog changes, and at the end."""
        self.area += self._backlog() * (self.now - self.since)
        self.since = self.now

    # Publishers

    def _arrive(self, times: Iterator[float]) -> None:
        self._publish(1)
        self._at(next(times, math.inf), self._arrive, times)

    def _publish(self, count: int) -> None:
        self._account()
        self.published += count
        self.held.extend(_Message() for _ in range(count))
        self._flush()

    def _flush(self) -> None:
        """Publishers send what they have, if they are connected, and someone is there for whom the broker keeps it."""
        while self.held and self.publishers and any(member.subscribed for member in self.members):
            self._deal(self.held.popleft())

    # The broker

    def _deal(self, message: _Message) -> None:
        if self.fleet.strategy == "queue":
            if not self._overflows(self.group):
                self.group.append(message)
                if len(self.group) == 1:  # else nobody has room
                    self._offer()
            return
        member = self._next(lambda member: member.connected) if self.fleet.strategy == "online" else None
        member = member or self._next(lambda member: member.subscribed)
        assert member is not None, "publishers wait until someone has subscribed"
        if (self._has_room(member) and not member.waiting) or not self._overflows(member.waiting):
            member.waiting.append(message)
            self._send(member)

    def _next(self, wanted: Callable[[_Member], bool]) -> _Member | None:
        for offset in range(len(self.members)):
            member = self.members[(self.turn + offset) % len(self.members)]
            if wanted(member):
                self.turn = (member.number + 1) % len(self.members)
                return member
        return None

    def _overflows(self, queue: deque[_Message]) -> bool:
        if not self.fleet.queue_limit or len(queue) < self.fleet.queue_limit:
            return False
        self._account()
        self.dropped += 1
        return True

    def _offer(self) -> None:
        while self.group and (member := self._next(self._has_room)):
            self._transmit(member, self.group.popleft())
            self._start(member)

    def _has_room(self, member: _Member) -> bool:
        return member.connected and len(member.sent) < self.fleet.window

    def _send(self, member: _Member) -> None:
        queue = self.group if self.fleet.strategy == "queue" else member.waiting
        while queue and self._has_room(member):
            self._transmit(member, queue.popleft())
        self._start(member)

    def _transmit(self, member: _Member, message: _Message) -> None:
        delivery = _Delivery(message)
        self._count_send(message)
        member.sent.append(delivery)
        if member.alive:
            member.ready.append(delivery)

    def _count_send(self, message: _Message) -> None:
        self.redelivered += message.sends > 0
        message.sends += 1

    # A member

    def _start(self, member: _Member) -> None:
        while member.alive and member.ready and member.running < (1 if member.resumed else self.fleet.lanes):
            delivery = member.ready.popleft()
            member.running += 1
            self.repeated += delivery.message.runs > 0
            delivery.message.runs += 1
            self._at(self.now + self.service(), self._ended, member, member.life, delivery, self.now)

    def _ended(self, member: _Member, life: int, delivery: _Delivery, began: float) -> None:
        if life != member.life:
            return
        self._account()
        self.busy += self.now - began
        self.handled += not delivery.message.handled
        delivery.message.handled = delivery.ended = True
        member.running -= 1
        member.resumed = max(member.resumed - 1, 0)
        if member.connected:
            self._acknowledge(member)
        self._start(member)

    def _acknowledge(self, member: _Member) -> None:
        before = len(member.sent)
        while member.sent and member.sent[0].ended:
            member.sent.popleft()
        if len(member.sent) < before:
            self._send(member)

    # Failures

    def _kill(self, member: _Member) -> None:
        if member.alive:
            self._die(member)
            self._disconnect(member)
            self._at(self.now + self.fleet.restart, self._come_back, member, member.life)

    def _lose(self, member: _Member, back: float | None) -> None:
        self._die(member)
        self._at(self.now + self.fleet.noticed, self._miss, member, member.life)
        if back is not None:
            self._at(self.now + back, self._come_back, member, member.life)

    def _die(self, member: _Member) -> None:
        member.alive = False
        member.life += 1
        member.running = member.resumed = 0
        member.ready.clear()
        for delivery in member.sent:
            delivery.ended = False

    def _miss(self, member: _Member, life: int) -> None:
        if life == member.life and not member.alive:
            self._disconnect(member)

    def _disconnect(self, member: _Member) -> None:
        member.connected = False
        if self.fleet.strategy == "queue":
            self.group.extendleft(delivery.message for delivery in reversed(member.sent))
            member.sent.clear()
            self._offer()

    def _come_back(self, member: _Member, life: int) -> None:
        if life != member.life:  # it has died again since this was planned
            return
        member.alive = True
        if member.connected:  # the broker learns of the loss by the new connection
            self._disconnect(member)
        member.ready = deque(member.sent)
        member.resumed = len(member.sent) if self.fleet.quarantine else 0
        if self.broker:
            self._connect(member)

    def _connect(self, member: _Member) -> None:
        if not (self.broker and member.alive) or member.connected:
            return
        member.connected = member.subscribed = True
        for delivery in member.sent:
            self._count_send(delivery.message)
        self._flush()
        self._acknowledge(member)
        self._send(member)

    def _broker_down(self, takes: float) -> None:
        self.broker = self.publishers = False
        for member in self.members:
            self._disconnect(member)
            member.subscribed = member.subscribed and not self.fleet.forgets
        self._at(self.now + takes, self._broker_up)

    def _broker_up(self) -> None:
        self.broker = True
        within = self.fleet.reconnect
        for member in self.members:
            takes = within[member.number] if isinstance(within, tuple) else self.connects.random() * within
            self._at(self.now + takes, self._connect, member)
        self._at(self.now + self.load.reconnect, self._publishers_back)

    def _publishers_back(self) -> None:
        self.publishers = self.broker
        self._flush()


# ------------------------------------------------------------------------------------------------------------ program


def _service(text: str) -> Service:
    kind, _, numbers = text.partition(":")
    mean, _, sigma = numbers.partition(",")
    if kind not in {"constant", "exponential", "lognormal"}:
        raise argparse.ArgumentTypeError(f"{text!r}: constant:SECONDS, exponential:SECONDS or lognormal:SECONDS,SIGMA")
    return Service(kind, float(mean), float(sigma or 1))  # type: ignore[arg-type]  # the line above has looked


def _burst(text: str) -> Burst:
    at, _, count = text.partition(":")
    return Burst(float(at), int(count))


def _kill(text: str) -> Kill:
    member, _, at = text.partition("@")
    return Kill(float(at), int(member))


def _loss(text: str) -> Loss:
    machine, _, rest = text.partition("@")
    at, _, back = rest.partition("+")
    return Loss(float(at), int(machine), float(back) if back else None)


def _broker(text: str) -> BrokerRestart:
    at, _, takes = text.partition("+")
    return BrokerRestart(float(at), float(takes))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = Fleet()
    fleet = parser.add_argument_group("the fleet")
    fleet.add_argument("--members", type=int, default=usual.members)
    fleet.add_argument("--machines", type=int, default=usual.machines)
    fleet.add_argument("--service", type=_service, default=usual.service, metavar="KIND:SECONDS")
    fleet.add_argument("--lanes", type=int, default=usual.lanes, help="handlers at once in a member")
    fleet.add_argument("--window", type=int, default=usual.window, help="messages without an acknowledgement")
    fleet.add_argument("--strategy", choices=get_args(Strategy), default=usual.strategy)
    fleet.add_argument("--queue-limit", type=int, default=usual.queue_limit, help="messages per session; 0: none")
    fleet.add_argument("--restart", type=float, default=usual.restart, help="seconds from death to subscribed")
    fleet.add_argument("--reconnect", type=float, default=usual.reconnect, help="seconds, after the broker's restart")
    fleet.add_argument(
        "--remembers",
        action="store_false",
        dest="forgets",
        help="the broker keeps shared subscriptions over its restart",
    )
    fleet.add_argument("--noticed", type=float, default=usual.noticed, help="seconds, of a lost machine")
    load = parser.add_argument_group("the load")
    load.add_argument("--rate", type=float, default=100.0, help="messages a second")
    load.add_argument("--poisson", action="store_true", help="at random, not evenly spaced")
    load.add_argument("--duration", type=float, default=60.0, help="seconds")
    load.add_argument("--drain", type=float, default=0.0, help="seconds more, without publishing")
    load.add_argument("--burst", type=_burst, action="append", default=[], metavar="AT:COUNT", dest="bursts")
    failures = parser.add_argument_group("failures", "each may be given more than once")
    shared: dict[str, Any] = {"action": "append", "default": [], "dest": "failures"}
    failures.add_argument("--kill", type=_kill, metavar="MEMBER@AT", **shared)
    failures.add_argument("--lose", type=_loss, metavar="MACHINE@AT[+BACK]", **shared)
    failures.add_argument("--broker-restart", type=_broker, metavar="AT+TAKES", **shared)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser


def _table(fleet: Fleet, load: Load, failures: Sequence[Failure], outcome: Outcome) -> Iterator[str]:
    capacity = fleet.members * fleet.lanes / fleet.service.mean
    at, peak = outcome.peak
    yield f"capacity     {capacity:,.0f} messages a second; {load.rate:,.0f} come ({load.rate / capacity:.0%})"
    yield f"published    {outcome.published:,}"
    yield f"handled      {outcome.handled:,}; dropped {outcome.dropped:,}; left {outcome.backlog:,}"
    yield f"redelivered  {outcome.redelivered:,}; run again {outcome.repeated:,}"
    yield f"backlog      at most {peak:,} (at {at:.1f} s); on average {outcome.mean_backlog:,.1f}"
    for failure in (*load.bursts, *failures):
        took = recovery(outcome.samples, failure.at, slack=fleet.members)
        yield f"recovered    {'not' if took is None else f'{took:.1f} s'} after {failure}"
    step = max(len(outcome.samples) // 20, 1)
    widest = max(peak, 1)
    for time, backlog in outcome.samples[::step]:
        yield f"{time:7.1f} s {backlog:9,} {'█' * round(40 * backlog / widest)}"


def main() -> None:
    options = vars(arguments().parse_args())
    as_json, seed, failures = options.pop("json"), options.pop("seed"), options.pop("failures")
    load = Load(
        options.pop("rate"),
        options.pop("duration"),
        options.pop("drain"),
        options.pop("poisson"),
        tuple(options.pop("bursts")),
    )
    fleet = Fleet(**options)
    failures.sort(key=lambda failure: failure.at)
    outcome = simulate(fleet, load, failures, seed=seed)
    if as_json:
        recoveries = [recovery(outcome.samples, it.at, slack=fleet.members) for it in (*load.bursts, *failures)]
        print(json.dumps({"peak": outcome.peak[1], "left": outcome.backlog, "recovery": recoveries} | asdict(outcome)))
    else:
        print("\n".join(_table(fleet, load, failures, outcome)))


if __name__ == "__main__":
    main()
