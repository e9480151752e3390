from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mqttapi.config import Settings, unknown_variables
from mqttapi.errors import ConfigurationError


def problem(**values: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings(**values)
    return str(caught.value)


class TestSources:
    def test_environment_goes_before_the_env_file(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (directory / ".env").write_text("MQTT_KEEPALIVE=10\nMQTTAPI_GRACE=5\nREDIS_URL=redis://file\n")
        monkeypatch.setenv("MQTT_KEEPALIVE", "20")
        settings = Settings.load()
        assert (settings.keepalive, settings.grace) == (20, 5.0)
        assert settings.redis_url is not None
        assert settings.redis_url.get_secret_value() == "redis://file"

    def test_keywords_go_before_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MQTTAPI_MAX_IN_FLIGHT", "7")
        assert Settings(max_in_flight=8).max_in_flight == 8

    def test_the_env_file_can_be_chosen(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (directory / "a.env").write_text("MQTT_KEEPALIVE=10\n")
        (directory / "b.env").write_text("MQTT_KEEPALIVE=20\n")
        monkeypatch.setenv("MQTTAPI_ENV_FILE", "a.env")
        assert Settings.load().keepalive == 10
        assert Settings.load("b.env").keepalive == 20
        assert Settings.load("b.env").env_file == Path("b.env")

    def test_a_missing_dot_env_is_no_error(self) -> None:
        assert Settings.load().env_file is None

    @pytest.mark.parametrize("name", ["MQTT_KEEPALIVE", "WORKER_COUNT", "MQTTAPI_GRACE", "MQTT_URL"])
    def test_an_empty_variable_counts_as_not_given(
        self, name: str, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (directory / ".env").write_text("MQTT_USERNAME=\n")
        monkeypatch.setenv(name, "")
        assert Settings() == Settings(env_file=None)
        assert Settings().username is None

    def test_names_without_prefix_are_not_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("USERNAME", "PORT", "MQTTAPI_PORT", "MQTT_MAX_IN_FLIGHT", "mqtt_port"):
            monkeypatch.setenv(name, "4")
        settings = Settings()
        assert (settings.username, settings.port, settings.max_in_flight) == (None, None, 1000)

    def test_a_nearer_host_hides_a_url_further_away(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (directory / ".env").write_text("MQTT_URL=mqtt://file\n")
        monkeypatch.setenv("MQTT_BROKER", "environment")
        assert Settings().url is None
        monkeypatch.setenv("MQTT_URL", "mqtt://environment")
        assert Settings().url is not None
        assert Settings(broker="keyword").url is None
        assert Settings(broker=None).url is not None

    def test_a_nearer_password_hides_a_password_file_further_away(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (directory / ".env").write_text("MQTT_PASSWORD_FILE=nowhere\n")
        monkeypatch.setenv("MQTT_PASSWORD", "s3cret")
        assert Settings().password_file is None
        assert Settings(password_file=Path("here")).password is None

    def test_a_service_link_of_kubernetes_is_not_a_port(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MQTT_PORT", "tcp://10.0.0.1:1883")
        assert Settings().port is None

    def test_settings_are_frozen(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            Settings().keepalive = 5


class TestValues:
    @pytest.mark.parametrize(
        ("text", "size"),
        [("4096", 4096), ("32MiB", 32 * 2**20), ("32 mib", 32 * 2**20), ("5kB", 5000), ("1GiB", 2**30), ("7B", 7)],
    )
    def test_sizes_are_numbers_or_have_a_unit(self, text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MQTTAPI_MAX_OUTGOING_BYTES", text)
        assert Settings().max_outgoing_bytes == size

    @pytest.mark.parametrize("text", ["32M", "1.5MiB", "-1", "0", "MiB", "32MiBs"])
    def test_other_sizes_are_refused(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MQTTAPI_MAX_OUTGOING_BYTES", text)
        assert problem() == (
            f"MQTTAPI_MAX_OUTGOING_BYTES must be a number of bytes above 0, such as 33554432 or 32MiB, got {text!r}"
        )

    @pytest.mark.parametrize("text", ["true", "1", "yes", "on", "True"])
    def test_booleans(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MQTT_TLS_INSECURE", text)
        assert Settings().tls_insecure is True

    def test_log_levels_in_any_case(self) -> None:
        assert Settings(log_level="WARNING").log_level == "warning"

    @pytest.mark.parametrize("seconds", [0, 0xFFFF_FFFF])
    def test_the_bounds_of_session_expiry(self, seconds: int) -> None:
        assert Settings(session_expiry=seconds).session_expiry == seconds

    def test_the_bounds_of_max_in_flight(self) -> None:
        assert Settings(max_in_flight=1).max_in_flight == 1
        assert Settings(max_in_flight=65535).max_in_flight == 65535


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "value", "rule"),
        [
            ("MQTT_KEEPALIVE", "0", "1-65535 s (0 would disable the detection of dead peers)"),
            ("MQTT_KEEPALIVE", "-1", "1-65535 s (0 would disable the detection of dead peers)"),
            ("MQTT_KEEPALIVE", "70000", "1-65535 s (0 would disable the detection of dead peers)"),
            ("MQTT_KEEPALIVE", "x", "1-65535 s (0 would disable the detection of dead peers)"),
            ("MQTTAPI_MAX_IN_FLIGHT", "0", "1-65535 (MQTT Receive Maximum)"),
            ("MQTTAPI_MAX_IN_FLIGHT", "65536", "1-65535 (MQTT Receive Maximum)"),
            ("MQTTAPI_MAX_IN_FLIGHT", "1.5", "1-65535 (MQTT Receive Maximum)"),
            ("MQTTAPI_SESSION_EXPIRY", "4294967296", "0-4294967295 s (the largest means never)"),
            ("MQTTAPI_GRACE", "inf", "a number of seconds above 0"),
            ("MQTTAPI_MAX_PACKET", "1GiB", "1-268435460 bytes, such as 16MiB"),
            ("MQTTAPI_LOG_LEVEL", "trace", "debug, info, warning, error or critical"),
            ("MQTT_PROTOCOL", "4", "5 or 3.1.1"),
            ("MQTT_PORT", "99999", "1-65535"),
            ("MQTTAPI_HEALTH", "0", "1-65535"),
            ("MQTT_TLS_INSECURE", "true ", "true or false"),
            ("WORKER_COUNT", "0", "1-512"),
            ("MQTT_GROUP_NAME", "a/b", "a name without '/', '+' and '#' [MQTT-4.8.2-2]"),
            (
                "MQTT_CLIENT_ID",
                "a/#",
                "1-256 characters without '/', '+', '#' and spaces, such as plant-1 (brokers refuse others)",
            ),
        ],
    )
    def test_names_the_variable_the_rule_and_the_value(
        self, name: str, value: str, rule: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, value)
        assert problem() == f"{name} must be {rule}, got {value!r}"

    def test_names_the_keyword_where_it_came_from_one(self) -> None:
        assert problem(max_in_flight=0) == "max_in_flight must be 1-65535 (MQTT Receive Maximum), got 0"

    def test_all_problems_are_told_at_once(self) -> None:
        assert problem(keepalive=0, protocol="4") == (
            "protocol must be 5 or 3.1.1, got '4'; "
            "keepalive must be 1-65535 s (0 would disable the detection of dead peers), got 0"
        )

    def test_a_misspelt_keyword_is_refused(self) -> None:
        assert problem(max_inflight=5) == "Settings() has no 'max_inflight': did you mean max_in_flight?"

    @pytest.mark.parametrize("name", ["REDIS_URL", "DATABASE_URL"])
    def test_a_secret_is_never_shown(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "s3cret")
        monkeypatch.setenv("MQTT_PASSWORD", "hunter2")
        monkeypatch.setenv("MQTT_KEEPALIVE", "0")
        with pytest.raises(ConfigurationError) as caught:
            Settings()
        everything = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
        assert f"{name} must be a URL" in everything
        assert "got a secret" in everything
        assert "s3cret" not in everything
        assert "hunter2" not in everything

    def test_the_repr_shows_no_secret(self) -> None:
        settings = Settings(
            url="mqtt://u:s3cret@h",
            password="s3cret",
            tls_key_password="s3cret",
            redis_url="redis://:s3cret@h",
            database_url="mysql://u:s3cret@h",
        )
        assert "s3cret" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"

    def test_what_contradicts_itself(self) -> None:
        assert problem(password="x", password_file="y") == (
            "MQTT_PASSWORD and MQTT_PASSWORD_FILE are both given: keep one"
        )
        assert problem(tls_key_file="y") == (
            "MQTT_TLS_KEY_FILE is given without MQTT_TLS_CERT_FILE: a key needs its certificate"
        )
        assert problem(max_payload="32MiB") == (
            "MQTTAPI_MAX_PAYLOAD (33554432) must not be above MQTTAPI_MAX_PACKET (16777216): "
            "a payload travels in a packet"
        )


class TestEnvFile:
    def test_one_that_is_named_must_exist(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"cannot read the env file 'prod\.env': No such file or directory"
        ):
            Settings.load("prod.env")

    def test_a_line_that_is_none_is_named(self, directory: Path) -> None:
        (directory / ".env").write_text("# comment\nMQTT_KEEPALIVE=5\n\n=5\n")
        assert problem() == ".env:4: not a line of the form NAME=value"

    def test_a_setting_given_twice_is_named(self, directory: Path) -> None:
        (directory / ".env").write_text("\nOTHER=1\nOTHER=2\nMQTT_KEEPALIVE=5\nexport MQTT_KEEPALIVE=6\n")
        assert problem() == ".env:5: MQTT_KEEPALIVE is given again, first in line 4"

    def test_bytes_that_are_no_text(self, directory: Path) -> None:
        (directory / ".env").write_bytes(b"MQTT_USERNAME=\xff\n")
        assert problem() == "cannot read the env file '.env': it is not UTF-8 text"

    def test_a_directory_is_no_file(self, directory: Path) -> None:
        assert problem(env_file=directory) == f"cannot read the env file '{directory}': Is a directory"


class TestPassword:
    def test_from_a_file_without_its_last_line_break(self, directory: Path) -> None:
        (directory / "secret").write_text(" s3cret \n")
        password = Settings(password_file="secret").secret_password()
        assert password is not None
        assert password.get_secret_value() == " s3cret "

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"^MQTT_PASSWORD_FILE: cannot read 'nope': No such file or directory$"
        ):
            Settings(password_file="nope").secret_password()


class TestUnknownVariables:
    @pytest.mark.parametrize(
        ("name", "warning"),
        [
            ("MQTTAPI_MAX_INFLIGHT", "unknown setting MQTTAPI_MAX_INFLIGHT: did you mean MQTTAPI_MAX_IN_FLIGHT?"),
            ("MQTT_URI", "unknown setting MQTT_URI: did you mean MQTT_URL?"),
            ("MQTTAPI_KEEPALIVE", "unknown setting MQTTAPI_KEEPALIVE: did you mean MQTT_KEEPALIVE?"),
            ("MQTT_XYZZY", "unknown setting MQTT_XYZZY"),
            ("MQTT_X\nCRITICAL", "unknown setting MQTT_X\\nCRITICAL"),
        ],
    )
    def test_the_nearest_known_name(self, name: str, warning: str) -> None:
        assert unknown_variables([name]) == [warning]

    def test_known_and_foreign_names_are_silent(self) -> None:
        assert unknown_variables(["MQTT_URL", "MQTTAPI_ENV_FILE", "PATH", "MQTTX_HOME", "WORKER_COUNT"]) == []

    def test_service_links_of_kubernetes_are_silent(self) -> None:
        names = ("MQTT_SERVICE_HOST", "MQTT_SERVICE_PORT_MQTTS", "MQTT_PORT_1883_TCP", "MQTT_PORT_1883_TCP_ADDR")
        assert unknown_variables(names) == []

    def test_environment_and_env_file_by_default(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (directory / ".env").write_text("MQTT_HOTS=x\n")
        monkeypatch.setenv("MQTTAPI_GRAC", "1")
        assert unknown_variables() == [
            "unknown setting MQTTAPI_GRAC: did you mean MQTTAPI_GRACE?",
            "unknown setting MQTT_HOTS",
        ]


def test_pydantic_settings_is_loaded_on_first_use_only() -> None:
    code = (
        "import sys, mqttapi.config; assert 'pydantic_settings' not in sys.modules; "
        "mqttapi.config.Settings; assert 'pydantic_settings' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
