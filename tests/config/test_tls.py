from __future__ import annotations

import os
import re
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from mqttapi.config import Broker, Settings, broker_warnings, tls_context, tls_failure
from mqttapi.errors import ConfigurationError

MQTTS = Broker.parse("mqtts://h", source="MQTT_URL")


def problem(**values: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        tls_context(MQTTS, Settings(**values))
    return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """ca.pem, client.pem, client.key, other.key and client.enc (its password is `s3cret`)."""
    from cryptography.hazmat.primitives import serialization

    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client, other = authority.issue_cert("client@example.com"), authority.issue_cert("other@example.com")
    client.cert_chain_pems[0].write_to_path(tmp_path / "client.pem")
    client.private_key_pem.write_to_path(tmp_path / "client.key")
    other.private_key_pem.write_to_path(tmp_path / "other.key")
    key = serialization.load_pem_private_key(client.private_key_pem.bytes(), None)
    (tmp_path / "client.enc").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"s3cret"),
        )
    )
    return tmp_path


def failure(server: ssl.SSLContext | None, **values: Any) -> str:
    """What a failed handshake with `server` (None: a plain one) is said to mean; empty where it succeeds."""
    broker, settings = Broker.parse("mqtts://broker.example", source="MQTT_URL"), Settings(**values)
    context = tls_context(broker, settings)
    assert context is not None
    near, far = socket.socketpair()
    with near, far, ThreadPoolExecutor(1) as pool:
        near.settimeout(10)
        pool.submit(answer, far, server)
        try:
            context.wrap_socket(near, server_hostname=broker.host).close()
        except OSError as error:
            return tls_failure(error, broker, settings.tls_ca_file)
    return ""


def answer(connection: socket.socket, server: ssl.SSLContext | None) -> None:
    connection.settimeout(10)
    with suppress(OSError):
        if server is None:
            connection.recv(1)
            connection.sendall(b"\x20\x02\x00\x01")  # CONNACK
            connection.shutdown(socket.SHUT_WR)
        else:
            server.wrap_socket(connection, server_side=True).close()


class TestContext:
    @pytest.mark.parametrize("url", ["mqtt://h", "ws://h", "unix:///s"])
    def test_plain_schemes_have_none(self, url: str) -> None:
        assert tls_context(Broker.parse(url), Settings()) is None

    @pytest.mark.parametrize("url", ["mqtts://h", "wss://h"])
    def test_it_is_safe_by_default(self, url: str) -> None:
        context = tls_context(Broker.parse(url), Settings())
        assert context is not None
        assert context.check_hostname
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.minimum_version >= ssl.TLSVersion.TLSv1_2

    def test_insecure_only_if_spelled_out(self) -> None:
        context = tls_context(MQTTS, Settings(tls_insecure=True))
        assert context is not None
        assert not context.check_hostname
        assert context.verify_mode == ssl.CERT_NONE

    def test_a_ca_file_is_all_that_is_trusted(self, files: Path) -> None:
        context = tls_context(MQTTS, Settings(tls_ca_file=files / "ca.pem"))
        assert context is not None
        assert len(context.get_ca_certs()) == 1

    def test_client_certificates(self, files: Path) -> None:
        cert = files / "client.pem"
        assert tls_context(MQTTS, Settings(tls_cert_file=cert, tls_key_file=files / "client.key"))
        assert tls_context(
            MQTTS, Settings(tls_cert_file=cert, tls_key_file=files / "client.enc", tls_key_password="s3cret")
        )
        (files / "both.pem").write_bytes(cert.read_bytes() + (files / "client.key").read_bytes())
        assert tls_context(MQTTS, Settings(tls_cert_file=files / "both.pem"))


class TestErrors:
    def test_a_missing_ca_file(self) -> None:
        assert problem(tls_ca_file="ca.pem") == "MQTT_TLS_CA_FILE: cannot use 'ca.pem': No such file or directory"

    def test_a_ca_file_that_holds_no_certificate(self, tmp_path: Path) -> None:
        path = tmp_path / "ca.pem"
        path.write_text("hello")
        assert problem(tls_ca_file=path) == f"MQTT_TLS_CA_FILE: cannot use '{path}': no certificate or crl found"

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read(self, files: Path) -> None:
        (files / "client.key").chmod(0)
        assert problem(tls_cert_file=files / "client.pem", tls_key_file=files / "client.key").endswith(
            "Permission denied"
        )

    def test_a_missing_key(self, files: Path) -> None:
        assert problem(tls_cert_file=files / "client.pem", tls_key_file="client.key_") == (
            "MQTT_TLS_KEY_FILE: cannot use 'client.key_': No such file or directory"
        )

    def test_a_key_of_another_certificate(self, files: Path) -> None:
        cert, key = files / "client.pem", files / "other.key"
        assert problem(tls_cert_file=cert, tls_key_file=key) == (
            f"MQTT_TLS_CERT_FILE: cannot use '{cert}' and MQTT_TLS_KEY_FILE '{key}': "
            "key and certificate do not belong together"
        )

    def test_a_certificate_without_its_key(self, files: Path) -> None:
        cert = files / "client.pem"
        assert problem(tls_cert_file=cert) == (
            f"MQTT_TLS_CERT_FILE: cannot use '{cert}': no certificate or key in PEM form was found in it"
        )

    def test_an_encrypted_key_is_not_asked_for_at_the_terminal(self, files: Path) -> None:
        key = files / "client.enc"
        assert problem(tls_cert_file=files / "client.pem", tls_key_file=key) == (
            f"the key in '{key}' is encrypted: set MQTT_TLS_KEY_PASSWORD"
        )

    def test_a_wrong_key_password_is_not_shown(self, files: Path) -> None:
        text = problem(tls_cert_file=files / "client.pem", tls_key_file=files / "client.enc", tls_key_password="wr0ng")
        assert text.endswith("MQTT_TLS_KEY_PASSWORD does not open the key")
        assert "wr0ng" not in text


class TestFailures:
    WHERE = "TLS handshake with broker.example:8883 failed"

    @pytest.fixture
    def authority(self, tmp_path: Path) -> trustme.CA:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        return authority

    def server(self, authority: trustme.CA, name: str = "broker.example", **options: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name, **options).configure_cert(context)
        return context

    def test_the_right_authority_succeeds(self, authority: trustme.CA, tmp_path: Path) -> None:
        assert not failure(self.server(authority), tls_ca_file=tmp_path / "ca.pem")

    def test_insecure_succeeds(self, authority: trustme.CA) -> None:
        assert not failure(self.server(authority, "elsewhere.example"), tls_insecure=True)

    def test_a_plain_listener(self) -> None:
        assert failure(None) == f"{self.WHERE}: is port 8883 a plain listener? (MQTT_URL)"

    def test_an_unknown_authority(self, authority: trustme.CA) -> None:
        text = failure(self.server(authority))
        assert re.fullmatch(rf"{self.WHERE}: .*certificate.* \(checked with the system's CAs; MQTT_URL\)", text)

    def test_another_host_name(self, authority: trustme.CA, tmp_path: Path) -> None:
        ca_file = tmp_path / "ca.pem"
        assert failure(self.server(authority, "elsewhere.example"), tls_ca_file=ca_file) == (
            f"{self.WHERE}: Hostname mismatch, certificate is not valid for 'broker.example' "
            f"(checked with MQTT_TLS_CA_FILE '{ca_file}'; MQTT_URL)"
        )

    def test_an_expired_certificate(self, authority: trustme.CA, tmp_path: Path) -> None:
        ca_file = tmp_path / "ca.pem"
        expired = self.server(authority, not_after=datetime.now(UTC) - timedelta(days=1))
        assert failure(expired, tls_ca_file=ca_file) == (
            f"{self.WHERE}: certificate has expired (checked with MQTT_TLS_CA_FILE '{ca_file}'; MQTT_URL)"
        )

    def test_a_broker_that_wants_a_client_certificate(self, authority: trustme.CA, tmp_path: Path) -> None:
        server = self.server(authority)
        server.verify_mode = ssl.CERT_REQUIRED
        server.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 says it with the first data only
        assert failure(server, tls_ca_file=tmp_path / "ca.pem") == (
            f"{self.WHERE}: sslv3 alert handshake failure: the broker wants another client certificate "
            "(MQTT_TLS_CERT_FILE)"
        )


class TestWarnings:
    @pytest.mark.parametrize("url", ["mqtts://u:p@h", "wss://u:p@h", "mqtt://u:p@localhost", "mqtt://u@h", "mqtt://h"])
    def test_no_reason_to_warn(self, url: str) -> None:
        assert broker_warnings(Broker.parse(url), Settings()) == []

    @pytest.mark.parametrize("url", ["mqtt://u:s3cret@h:1", "ws://u:s3cret@h:1"])
    def test_a_password_in_plain_text(self, url: str) -> None:
        assert broker_warnings(Broker.parse(url, source="MQTT_URL"), Settings()) == [
            "the password goes to h:1 unencrypted: use mqtts:// or wss:// (MQTT_URL)"
        ]

    def test_insecure_tls(self) -> None:
        assert broker_warnings(MQTTS, Settings(tls_insecure=True)) == [
            "MQTT_TLS_INSECURE is on: anyone can pass for h:8883 and read what is sent, the password too"
        ]

    def test_tls_files_that_are_not_used(self) -> None:
        assert broker_warnings(Broker.parse("mqtt://h", source="--broker"), Settings(tls_ca_file="ca.pem")) == [
            "MQTT_TLS_CA_FILE is not used: mqtt:// is not encrypted, mqtts:// and wss:// are (--broker)"
        ]
