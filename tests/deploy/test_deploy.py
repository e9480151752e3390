"""The files of `deploy/`: they agree with the program and with each other, and what can run here does.

A container engine, Kubernetes and systemd itself are not started.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mqttapi import App
from mqttapi.cli.problems import TAKEN_OVER, WRONG
from mqttapi.config import Settings, state_dir, unknown_variables
from mqttapi.config.broker import resolve_broker
from mqttapi.workers.supervisor import _BEYOND_GRACE as BEYOND_GRACE
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import client
from tests.support.process import free_port
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.command_line import CommandLine

DEPLOY = Path(__file__).parents[2] / "deploy"
COMMAND = ["run", "main:app", "--health", "8080"]
GRACE = float(Settings.model_fields["grace"].default)
STATE = "/var/lib/mqttapi"
UID = 10001

yaml: Any = pytest.importorskip("yaml", reason="needs PyYAML")


def instructions(name: str = "Containerfile") -> list[tuple[str, str]]:
    """Instruction and arguments of each line of a Containerfile."""
    lines = [line for line in (DEPLOY / name).read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(words[0], words[1]) for words in (line.split(maxsplit=1) for line in joined)]


def only(instruction: str) -> str:
    (arguments,) = [arguments for name, arguments in instructions() if name == instruction]
    return arguments


def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=False, delimiters="=", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep capitals
    parser.read(DEPLOY / "mqttapi.service")
    return parser


def unit_environment() -> dict[str, str]:
    lines = (DEPLOY / "mqttapi.service").read_text().splitlines()
    return dict(line.removeprefix("Environment=").split("=", 1) for line in lines if line.startswith("Environment="))


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
    return loaded


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifest("statefulset")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (only_one,) = pod()["containers"]
    return dict(only_one)


def variables(text: str) -> dict[str, str]:
    """`NAME=value` lines, those in comments too."""
    lines = (line.removeprefix("#") for line in text.splitlines() if not line.startswith("# "))
    return dict(line.split("=", 1) for line in lines if line)


ENVIRONMENTS: dict[str, Callable[[], dict[str, str]]] = {
    "Containerfile": lambda: dict(pair.split("=", 1) for pair in shlex.split(only("ENV"))),
    "compose.yaml": lambda: compose()["services"]["app"]["environment"],
    "mqttapi.env": lambda: variables((DEPLOY / "mqttapi.env").read_text()),
    "mqttapi.service": unit_environment,
    "statefulset.yaml": lambda: {item["name"]: item.get("value", "plant-0") for item in container()["env"]},
    "kustomization.yaml": lambda: dict(
        literal.split("=", 1) for literal in manifest("kustomization")["configMapGenerator"][0]["literals"]
    ),
}


# ----------------------------------------------------------------------------------------------------- what all agree on


def test_every_way_starts_the_same_command() -> None:
    assert json.loads(only("ENTRYPOINT")) == ["mqttapi"]
    assert json.loads(only("CMD")) == COMMAND
    assert shlex.split(unit()["Service"]["ExecStart"])[1:] == COMMAND
    assert container()["args"] == COMMAND


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(lambda: unit()["Service"]["TimeoutStopSec"], id="systemd"),
        pytest.param(lambda: compose()["services"]["app"]["stop_grace_period"].removesuffix("s"), id="compose"),
        pytest.param(lambda: pod()["terminationGracePeriodSeconds"], id="kubernetes"),
    ],
)
def test_nothing_is_killed_before_it_had_time_to_drain(seconds: Any) -> None:
    assert float(seconds()) > GRACE + BEYOND_GRACE  # a worker that hangs is ended by its supervisor, not all by SIGKILL


def test_the_signal_to_stop_is_sigterm_everywhere() -> None:
    assert only("STOPSIGNAL") == "SIGTERM"
    assert compose()["services"]["app"]["stop_signal"] == "SIGTERM"
    assert "KillSignal" not in unit()["Service"]  # SIGTERM is systemd's default


@pytest.mark.parametrize("place", ENVIRONMENTS)
def test_every_variable_is_a_setting_with_a_valid_value(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MQTT")]:
        monkeypatch.delenv(name)
    given = {name: value for name, value in ENVIRONMENTS[place]().items() if name.startswith("MQTT")}
    assert given
    for name, value in given.items():
        monkeypatch.setenv(name, value.replace("%t", "/run").replace("%d", "/run"))
    assert unknown_variables(given) == []
    Settings()


@pytest.mark.parametrize("place", ENVIRONMENTS)
def test_no_secret_is_written_down(place: str) -> None:
    for name, value in ENVIRONMENTS[place]().items():
        assert not name.endswith(("PASSWORD", "TOKEN", "SECRET")), name
        assert ":" not in value.partition("//")[2].partition("@")[0], f"{name} has a password in its URL"


@pytest.mark.parametrize("place", ["compose.yaml", "statefulset.yaml"])
def test_containers_have_an_instance_that_stays(place: str) -> None:
    assert ENVIRONMENTS[place]()["MQTT_INSTANCE"] == {"compose.yaml": "plant-1", "statefulset.yaml": "plant-0"}[place]


def test_every_way_keeps_the_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ENVIRONMENTS["Containerfile"]()["MQTTAPI_STATE_DIR"] == STATE
    assert f"state:{STATE}" in compose()["services"]["app"]["volumes"]
    assert {"name": "state", "mountPath": STATE} in container()["volumeMounts"]
    monkeypatch.setenv("STATE_DIRECTORY", f"/var/lib/{unit()['Service']['StateDirectory']}")  # as systemd does
    assert state_dir("plant") == Path(STATE, "plant")


# --------------------------------------------------------------------------------------------------------- Containerfile


def test_the_image_is_built_in_stages_and_the_last_one_installs_nothing() -> None:
    stages: list[list[tuple[str, str]]] = []
    for name, arguments in instructions():
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, arguments))
    assert [arguments.split()[1:] for stage in stages for name, arguments in stage if name == "FROM"] == [
        ["AS", "build"],
        [],
    ]
    assert not any("pip" in arguments for name, arguments in stages[-1] if name == "RUN")
    assert ("COPY", "--from=build /opt/app /opt/app") in stages[-1]


@pytest.mark.parametrize("name", ["RUN", "ENTRYPOINT", "CMD"])
def test_no_shell_is_between(name: str) -> None:
    forms = [json.loads(arguments) for instruction, arguments in instructions() if instruction == name]
    assert forms
    assert all(isinstance(form, list) for form in forms)


def test_the_image_runs_as_a_user_without_rights() -> None:
    assert only("USER") == str(UID)
    names = [name for name, _ in instructions()]
    assert "RUN" not in names[names.index("USER") :]


def test_only_named_files_are_copied_into_the_image() -> None:
    sources = [word for name, it in instructions() if name == "COPY" for word in it.split()[:-1] if word[0] != "-"]
    assert sources == ["requirements.txt", "*.whl", "/opt/app", "main.py"]


@pytest.mark.parametrize("place", ["compose.yaml", "statefulset.yaml"])
async def test_the_command_of_the_image_serves_answers_the_probes_and_drains(
    place: str, tmp_path: Path, mosquitto: Mosquitto, mqttapi: CommandLine
) -> None:
    """With the variables that the image and the place give it; the port, the broker and the directories are the test's."""
    (tmp_path / "main.py").write_text((DEPLOY.parent / "examples" / "quickstart.py").read_text())
    secret = tmp_path / "password"
    secret.write_text("made up")
    here = {"MQTT_URL": mosquitto.url, "MQTTAPI_STATE_DIR": str(tmp_path / "state")}
    here |= {"MQTT_PASSWORD_FILE": str(secret)} if place == "statefulset.yaml" else {}
    given = {**ENVIRONMENTS["Containerfile"](), **ENVIRONMENTS[place](), **here}
    del given["PATH"]
    port = str(free_port())
    pod = mqttapi.start(*[port if word == COMMAND[-1] else word for word in COMMAND], **given)

    def status(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    await eventually(lambda: status("/live") == 200, within=20, what=lambda: pod.output)
    await eventually(lambda: status("/ready") == 200, within=20, what=lambda: pod.output)
    async with client(mosquitto.url) as device:
        await device.subscribe("alerts/#")
        await device.publish("sensors/7/data", b'{"temperature": 90}')
        assert (await device.message()).topic == "alerts/7"
    instance = given["MQTT_INSTANCE"]
    assert f"as plant-{instance}-0" in pod.output
    assert await asyncio.to_thread(pod.stop, getattr(signal, only("STOPSIGNAL"))) == 0


# --------------------------------------------------------------------------------------------------------------- systemd


def test_systemd_signals_the_supervisor_only_and_ends_the_rest() -> None:
    assert unit()["Service"]["KillMode"] == "mixed"
    assert unit()["Service"]["Type"] == "exec"
    assert unit()["Service"]["OOMPolicy"] == "continue"


def test_what_a_restart_does_not_help_is_not_restarted() -> None:
    assert unit()["Service"]["Restart"] == "on-failure"
    assert {int(code) for code in unit()["Service"]["RestartPreventExitStatus"].split()} == {WRONG, TAKEN_OVER}


def test_the_directories_of_systemd_are_those_of_the_settings() -> None:
    assert unit_environment()["MQTTAPI_RUNTIME_DIR"] == f"%t/{unit()['Service']['RuntimeDirectory']}"
    assert unit()["Service"]["RuntimeDirectoryMode"] == "0700"  # others may not write there, or the app refuses it


def test_systemd_reloads_by_the_control_socket_which_does_no_harm_to_a_supervisor_that_has_just_been_started() -> None:
    program, command = shlex.split(unit()["Service"]["ExecReload"])
    assert (program, command) == (shlex.split(unit()["Service"]["ExecStart"])[0], "reload")


def _analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "mqttapi.service"
    installed = unit()["Service"]["ExecStart"].split()[0]
    path.write_text((DEPLOY / "mqttapi.service").read_text().replace(installed, sys.executable))
    done = _analyze("verify", str(path))
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_little_exposed() -> None:
    done = _analyze("security", "--offline=true", "--threshold=20", str(DEPLOY / "mqttapi.service"))
    assert done.returncode == 0, done.stdout  # 20 is 2.0 of 10


# --------------------------------------------------------------------------------------------------------------- Compose


def test_compose_mounts_files_that_are_there() -> None:
    services = compose()["services"]
    assert (DEPLOY / services["app"]["build"]["dockerfile"]).is_file()
    mounts = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    assert [(DEPLOY / mount).is_file() for mount in mounts if mount.startswith("./")] == [True]
    assert {mount for mount in mounts if not mount.startswith("./")} == set(compose()["volumes"])


def test_the_broker_of_compose_has_its_data_on_a_volume() -> None:
    location = next(line.split()[1] for line in configuration() if line.startswith("persistence_location"))
    assert f"broker:{location.removesuffix('/')}" in compose()["services"]["mosquitto"]["volumes"]


# ------------------------------------------------------------------------------------------------------------ Kubernetes


def test_the_client_ids_come_from_the_names_of_the_pods() -> None:
    (instance,) = [item for item in container()["env"] if item["name"] == "MQTT_INSTANCE"]
    assert instance["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    assert manifest("statefulset")["kind"] == "StatefulSet"


def test_the_probes_ask_the_port_that_is_open() -> None:
    ports = {port["name"]: str(port["containerPort"]) for port in container()["ports"]}
    for probe, path in (("livenessProbe", "/live"), ("readinessProbe", "/ready")):
        asked = container()[probe]["httpGet"]
        assert (asked["path"], ports[asked["port"]]) == (path, COMMAND[-1])


def test_pods_run_without_rights() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["runAsUser"] == UID
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_labels_selectors_and_volumes_fit_together() -> None:
    stateful = manifest("statefulset")["spec"]
    labels = stateful["template"]["metadata"]["labels"]
    assert stateful["selector"]["matchLabels"] == labels
    assert manifest("disruption")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("service")["spec"]["selector"] == labels
    assert manifest("service")["metadata"]["name"] == stateful["serviceName"]
    given = {volume["name"] for volume in pod()["volumes"]}
    given |= {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container()["volumeMounts"]} == given


def test_the_secret_is_mounted_where_the_app_reads_the_password() -> None:
    (mounted,) = [mount for mount in container()["volumeMounts"] if mount["name"] == "mqtt"]
    assert ENVIRONMENTS["statefulset.yaml"]()["MQTT_PASSWORD_FILE"] == f"{mounted['mountPath']}/password"


def test_the_user_of_the_url_gets_the_password_of_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "password"
    secret.write_text("made up\n")
    monkeypatch.setenv("MQTT_URL", ENVIRONMENTS["kustomization.yaml"]()["MQTT_URL"])
    monkeypatch.setenv("MQTT_PASSWORD_FILE", str(secret))
    broker = resolve_broker(None, None, Settings(), None)
    assert broker.username == "plant"
    assert broker.password is not None
    assert broker.password.get_secret_value() == "made up"


def test_kustomize_names_every_manifest() -> None:
    files = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert {*manifest("kustomization")["resources"], "kustomization.yaml"} == files
    assert [image["name"] for image in manifest("kustomization")["images"]] == [container()["image"]]


# ------------------------------------------------------------------------------------------------------------- mosquitto


def configuration() -> list[str]:
    lines = (DEPLOY / "mosquitto.conf").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


class Deployed(Mosquitto):
    """mosquitto with the file of `deploy/`; only its port and its directory are the test's."""

    def _configuration(self) -> list[str]:
        lines = [*configuration(), *(["user root"] if os.geteuid() == 0 else [])]
        here = {
            "listener": f"listener {self.port} 127.0.0.1",
            "persistence_location": f"persistence_location {self.directory}/",
        }
        return [here.get(line.split()[0], line) for line in lines]


def test_the_window_for_mqtt_311_is_what_the_app_can_hold() -> None:
    assert f"max_inflight_messages {Settings.model_fields['max_in_flight'].default}" in configuration()


async def test_mosquitto_keeps_a_session_and_its_messages_when_it_is_killed() -> None:
    with Deployed() as broker:
        async with client(broker.url, client_id="member", clean=False, expiry=600) as member:
            await member.subscribe("plant/#", qos=1)
        async with client(broker.url) as device:
            await device.publish("plant/1", b"kept")
        database = broker.directory / "mosquitto.db"
        await eventually(lambda: database.exists() and b"kept" in database.read_bytes(), what="the session on disk")
        broker.kill()
        broker.start()
        async with client(broker.url, client_id="member", clean=False, expiry=600) as member:
            assert member.session_present
            assert (await member.message()).payload == b"kept"


async def test_mosquitto_keeps_more_than_a_thousand_messages_for_a_member_that_is_away() -> None:
    with Deployed() as broker:
        async with client(broker.url, client_id="member", clean=False, expiry=600) as member:
            await member.subscribe("$share/plant/sensors/#", qos=1)
        app = App("feeder", broker=broker.url)
        async with app.running():
            for number in range(1500):
                app.publish_nowait("sensors/1", str(number))
        async with client(broker.url, client_id="member", clean=False, expiry=600) as member:
            assert len(await member.wait_for(1500)) == 1500
