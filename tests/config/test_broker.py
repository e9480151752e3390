from __future__ import annotations

import pickle
import re
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqttapi.config import Broker, Settings, resolve_broker
from mqttapi.errors import ConfigurationError


def parts(url: str) -> tuple[str, str, int, str]:
    broker = Broker.parse(url)
    return broker.scheme, broker.host, broker.port, broker.path


def problem(url: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Broker.parse(url, source="MQTT_URL")
    return str(caught.value)


def secret(broker: Broker) -> str | None:
    return None if broker.password is None else broker.password.get_secret_value()


class TestParse:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("mqtt://h", ("mqtt", "h", 1883, "")),
            ("MQTT://h/", ("mqtt", "h", 1883, "")),
            ("mqtts://h", ("mqtts", "h", 8883, "")),
            ("ws://h", ("ws", "h", 80, "/mqtt")),
            ("wss://h", ("wss", "h", 443, "/mqtt")),
            ("ws://h/", ("ws", "h", 80, "/")),
            ("ws://h:9001/a/b?c=d", ("ws", "h", 9001, "/a/b?c=d")),
            ("ws://h?c=d", ("ws", "h", 80, "/mqtt?c=d")),
            ("unix:///run/mosquitto%20x.sock", ("unix", "", 0, "/run/mosquitto x.sock")),
            ("mqtt://[::1]", ("mqtt", "::1", 1883, "")),
            ("mqtt://[fe80::1%25eth0]:1884", ("mqtt", "fe80::1%eth0", 1884, "")),
            ("mqtt://h:", ("mqtt", "h", 1883, "")),
            ("h", ("mqtt", "h", 1883, "")),
            ("h:1884", ("mqtt", "h", 1884, "")),
            ("my_broker.local", ("mqtt", "my_broker.local", 1883, "")),
        ],
    )
    def test_forms_and_defaults(self, url: str, expected: tuple[str, str, int, str]) -> None:
        assert parts(url) == expected

    @pytest.mark.parametrize(
        ("url", "username", "password"),
        [
            ("mqtt://u@h", "u", None),
            ("mqtt://u:p@h", "u", "p"),
            ("mqtt://u:@h", "u", ""),
            ("mqtt://:p@h", None, "p"),
            ("mqtt://u%40x:p%40%2F%3A%23@h", "u@x", "p@/:#"),
            ("unix://u:p@/run/m.sock", "u", "p"),
            ("mqtt://u:a:b@h", "u", "a:b"),
        ],
    )
    def test_user_and_password_are_percent_decoded(self, url: str, username: str | None, password: str | None) -> None:
        broker = Broker.parse(url)
        assert (broker.username, secret(broker)) == (username, password)

    @given(st.text(min_size=1), st.text(min_size=1))
    def test_any_user_and_password_survive_encoding(self, username: str, password: str) -> None:
        broker = Broker.parse(f"mqtt://{quote(username, safe='')}:{quote(password, safe='')}@h:1")
        assert (broker.username, secret(broker), broker.host, broker.port) == (username, password, "h", 1)
        assert Broker.parse(broker.url).username == username

    @given(st.text())
    @example("mqtt://u:s3cret@[::1")
    @example("mqtt://h/\n")
    def test_any_text_is_a_broker_or_a_configuration_error(self, text: str) -> None:
        try:
            broker = Broker.parse(text)
        except ConfigurationError:
            return
        assert Broker.parse(broker.url).address == broker.address


class TestErrors:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("mqtt://h:99999", "port must be 1-65535, got '99999' (MQTT_URL)"),
            ("mqtt://h:00000000199999", "port must be 1-65535, got '00000000199999' (MQTT_URL)"),
            ("mqtt://h:0", "port must be 1-65535, got '0' (MQTT_URL)"),
            ("mqtt://h:-1", "port must be 1-65535, got '-1' (MQTT_URL)"),
            (
                "mqtt://h:abc",
                "port must be 1-65535, and is not a number (the form is mqtt://user:password@host:port) (MQTT_URL)",
            ),
            ("http://h", "unknown scheme 'http': use mqtt, mqtts, ws, wss, unix (MQTT_URL)"),
            (
                "mqtt://",
                "the broker's host is missing: use mqtt://user:password@host:port (MQTT_URL)",
            ),
            (
                "",
                (
                    "a broker URL has no spaces or control characters and is not empty: "
                    "use mqtt://user:password@host:port (MQTT_URL)"
                ),
            ),
            (
                "mqtt://::1",
                "cannot tell host and port apart: write an IPv6 address in brackets, mqtt://[::1]:1883 (MQTT_URL)",
            ),
            ("mqtt://[::x]", "'::x' is not an IPv6 address (MQTT_URL)"),
            ("mqtt://[h]", "'h' is not an IPv6 address: only those stand in brackets (MQTT_URL)"),
            (
                "mqtt://h/t",
                "only ws:// and wss:// have a path: leave out what follows the port of mqtt:// (MQTT_URL)",
            ),
            ("unix://m.sock", "a Unix socket is given by its absolute path: unix:///run/mosquitto.sock (MQTT_URL)"),
            (
                "mqtt://u:10%@h",
                "a '%' that is not a code stands in the URL: percent-encode the password (% is %25) (MQTT_URL)",
            ),
            ("mqtt://u:%ff@h", "a percent-encoded part of the URL is not UTF-8 (MQTT_URL)"),
            (
                "mqtt://u:p@ss@h",
                (
                    "the user or password holds a character that ends it: percent-encode the password "
                    "(@ is %40, / is %2F) (MQTT_URL)"
                ),
            ),
        ],
    )
    def test_text(self, url: str, expected: str) -> None:
        assert problem(url) == expected

    @pytest.mark.parametrize("host", ["a..b", "x" * 64, ".a"])
    def test_a_host_that_no_resolver_takes(self, host: str) -> None:
        text = f"'{host}' is not a host name: what stands between its dots has 1 to 63 characters"
        with pytest.raises(ConfigurationError, match=re.escape(text)):
            Broker.parse(f"mqtt://{host}", source="MQTT_URL")

    @pytest.mark.parametrize(
        "url",
        [
            "mqtt://u:s3cret@x@h",
            "mqtt://u:s3cret/x@h",
            "mqtt://u:s3cret#x@h",
            "mqtt://u:s3cret?x@h",
            "mqtt://u:s3cret%@h",
            "mqtt://u:s3cret@h:x",
            "mqtt://u:s3cret@",
            "mqtt://u:s3cret",
            "mqtt://u:s3cret x@h",
            "mqtt://u:s3cret@h:99999",
            "mqtt://u:s3cret@[::1",
            "http://u:s3cret@h",
            "u:s3cret@h/p",
            "u:s3cret://x@h",
            "mqtt://u:s3cret\n@h",
            "mqtt://u:s3cret%ff@h",
        ],
    )
    def test_never_shows_a_password(self, url: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            Broker.parse(url)
        seen = str(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)
        assert "s3cret" not in seen + "".join(traceback.format_exception_only(caught.value))


class TestBroker:
    def test_no_text_of_it_shows_the_password(self) -> None:
        broker = Broker.parse("wss://u:s3cret@h/mqtt?signature=s3cret")
        assert str(broker) == broker.url == "wss://u@h:443/mqtt?…"
        assert "s3cret" not in f"{broker!r} {broker} {broker.address}"

    def test_the_source_is_not_part_of_its_identity(self) -> None:
        assert Broker.parse("mqtt://h", source="a") == Broker.parse("h", source="b")

    def test_it_can_be_pickled(self) -> None:
        broker = Broker.parse("mqtt://u:p@h")
        assert pickle.loads(pickle.dumps(broker)) == broker

    @pytest.mark.parametrize(
        ("url", "loopback"),
        [
            ("mqtt://localhost", True),
            ("mqtt://a.localhost", True),
            ("mqtt://127.8.0.1", True),
            ("mqtt://[::1]", True),
            ("unix:///m", True),
            ("mqtt://10.0.0.1", False),
            ("mqtt://localhost.example", False),
        ],
    )
    def test_loopback(self, url: str, loopback: bool) -> None:
        assert Broker.parse(url).loopback is loopback

    def test_addresses(self) -> None:
        assert Broker.parse("mqtt://[::1]").address == "[::1]:1883"
        assert Broker.parse("unix:///run/m").address == "/run/m"


class TestResolve:
    def test_precedence(self) -> None:
        settings = Settings(url="mqtt://url", broker="host")
        for arguments, source, host in [
            (("mqtt://cli", "mqtt://run", settings, "mqtt://app"), "--broker", "cli"),
            ((None, "mqtt://run", settings, "mqtt://app"), "run(broker=)", "run"),
            ((None, None, settings, "mqtt://app"), "MQTT_URL", "url"),
            ((None, None, Settings(broker="host"), "mqtt://app"), "MQTT_BROKER", "host"),
            ((None, None, Settings(), "mqtt://app"), "App(broker=)", "app"),
            ((None, None, Settings(), None), "default", "localhost"),
        ]:
            broker = resolve_broker(*arguments)
            assert (broker.source, broker.host) == (source, host)

    def test_a_port_alone_does_not_replace_the_apps_broker(self) -> None:
        assert resolve_broker(None, None, Settings(port=1884), "mqtt://app").address == "app:1883"
        assert resolve_broker(None, None, Settings(port=1884), None).address == "localhost:1884"

    @pytest.mark.parametrize(
        ("values", "url"),
        [
            ({}, "mqtt://h:1883"),
            ({"port": 1884}, "mqtt://h:1884"),
            ({"port": 8883}, "mqtts://h:8883"),
            ({"tls_ca_file": "ca.pem"}, "mqtts://h:8883"),
            ({"tls_insecure": True, "port": 1884}, "mqtts://h:1884"),
        ],
    )
    def test_a_host_speaks_tls_where_anything_hints_at_it(self, values: dict[str, object], url: str) -> None:
        assert resolve_broker(None, None, Settings(broker="h", **values), None).url == url

    def test_an_ipv6_address_is_a_host(self) -> None:
        assert resolve_broker(None, None, Settings(broker="::1"), None).address == "[::1]:1883"

    @pytest.mark.parametrize("host", ["h:1884", "mqtt://h", "u:s3cret@h", "u:s3:cret@h"])
    def test_a_host_is_no_url(self, host: str) -> None:
        with pytest.raises(
            ConfigurationError,
            match=r"^MQTT_BROKER is a host name only: use MQTT_PORT for a port, MQTT_URL for a URL$",
        ):
            resolve_broker(None, None, Settings(broker=host), None)

    def test_credentials_complete_a_url_without_them(self, directory: Path) -> None:
        (directory / "secret").write_text("from-file\n")
        settings = Settings(username="u", password="p")
        for url, username, password in [
            ("mqtt://h", "u", "p"),
            ("mqtt://u@h", "u", "p"),
            ("mqtt://u:own@h", "u", "own"),
            ("mqtt://other@h", "other", None),  # the password is that of another user
        ]:
            broker = resolve_broker(url, None, settings, None)
            assert (broker.username, secret(broker)) == (username, password)
        broker = resolve_broker("h", None, Settings(username="u", password_file="secret"), None)
        assert secret(broker) == "from-file"

    def test_a_password_alone_is_refused_on_3_1_1_only(self) -> None:
        assert secret(resolve_broker("h", None, Settings(password="p"), None)) == "p"
        with pytest.raises(ConfigurationError, match=r"without a user name is not possible on MQTT 3\.1\.1"):
            resolve_broker("h", None, Settings(password="p", protocol="3.1.1"), None)
