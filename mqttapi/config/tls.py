"""TLS: safe unless told otherwise, and an error that says which file is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttapi.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from mqttapi.config.broker import Broker
    from mqttapi.config.settings import Settings

__all__ = ["broker_warnings", "tls_context", "tls_failure"]


def tls_context(broker: Broker, settings: Settings) -> ssl.SSLContext | None:
    """The context for `broker`, or None where its scheme is plain.

    TLS 1.2 at least, certificate and host name checked; `tls_insecure` alone turns the checks off.
    Raises `ConfigurationError` naming the file and the reason.
    """
    if not broker.tls:
        return None
    import ssl

    context = _trusting(settings.tls_ca_file)
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    if settings.tls_cert_file is not None:
        _identify(context, settings.tls_cert_file, settings)
    if settings.tls_insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def broker_warnings(broker: Broker, settings: Settings) -> list[str]:
    """What about the way to `broker` deserves a warning at each start."""
    warnings: list[str] = []
    if broker.tls and settings.tls_insecure:
        warnings.append(
            f"MQTT_TLS_INSECURE is on: anyone can pass for {broker.address} and read what is sent, the password too"
        )
    if broker.password is not None and not broker.tls and not broker.loopback:
        warnings.append(f"the password goes to {broker.address} unencrypted: use mqtts:// or wss:// ({broker.source})")
    if not broker.tls:
        warnings.extend(
            f"{variable} is not used: {broker.scheme}:// is not encrypted, mqtts:// and wss:// are ({broker.source})"
            for variable, given in _tls_settings(settings)
            if given
        )
    return warnings


def tls_failure(error: Exception, broker: Broker, ca_file: Path | None) -> str:
    """What a failed TLS handshake means and what to do about it, in one line; `ca_file` is `MQTT_TLS_CA_FILE`."""
    import ssl

    where = f"TLS handshake with {broker.address} failed"
    if isinstance(error, ssl.SSLCertVerificationError):
        trusted = f"MQTT_TLS_CA_FILE {str(ca_file)!r}" if ca_file else "the system's CAs"
        reason = error.verify_message.rstrip(".")
        return f"{where}: {reason} (checked with {trusted}; {broker.source})"
    reason = getattr(error, "reason", None) or ""
    if "ALERT" in reason and ("CERTIFICATE" in reason or "HANDSHAKE_FAILURE" in reason):
        return f"{where}: {_words(reason)}: the broker wants another client certificate (MQTT_TLS_CERT_FILE)"
    if isinstance(error, ConnectionError | ssl.SSLEOFError) or reason in {
        "WRONG_VERSION_NUMBER",
        "RECORD_LAYER_FAILURE",
    }:
        return f"{where}: is port {broker.port} a plain listener? ({broker.source})"
    return f"{where}: {_words(reason) or getattr(error, 'strerror', None) or type(error).__name__} ({broker.source})"


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        problem = f"MQTT_TLS_CA_FILE: cannot use {str(ca_file)!r}: {_reason(error)}"
    raise ConfigurationError(problem)


def _identify(context: ssl.SSLContext, cert_file: Path, settings: Settings) -> None:
    key_file = settings.tls_key_file
    encrypted = False

    def password() -> str:
        nonlocal encrypted
        encrypted = True
        # Given as a function: OpenSSL asks at the terminal where an encrypted key has no password.
        if settings.tls_key_password is None:
            raise ConfigurationError(
                f"the key in {str(key_file or cert_file)!r} is encrypted: set MQTT_TLS_KEY_PASSWORD"
            )
        return settings.tls_key_password.get_secret_value()

    for variable, file in (("MQTT_TLS_CERT_FILE", cert_file), ("MQTT_TLS_KEY_FILE", key_file)):
        try:
            if file is not None:
                file.open("rb").close()  # the error of load_cert_chain does not say which file
        except OSError as error:
            raise ConfigurationError(f"{variable}: cannot use {str(file)!r}: {_reason(error)}") from None
    try:
        context.load_cert_chain(cert_file, key_file, password)
    except OSError as error:
        key = f" and MQTT_TLS_KEY_FILE {str(key_file)!r}" if key_file else ""
        reason = "MQTT_TLS_KEY_PASSWORD does not open the key" if encrypted else _reason(error)
        problem = f"MQTT_TLS_CERT_FILE: cannot use {str(cert_file)!r}{key}: {reason}"
    else:
        return
    raise ConfigurationError(problem)


def _tls_settings(settings: Settings) -> tuple[tuple[str, bool], ...]:
    return (
        ("MQTT_TLS_CA_FILE", settings.tls_ca_file is not None),
        ("MQTT_TLS_CERT_FILE", settings.tls_cert_file is not None),
        ("MQTT_TLS_INSECURE", settings.tls_insecure),
    )


def _reason(error: OSError) -> str:
    import ssl

    if not isinstance(error, ssl.SSLError):
        return error.strerror or type(error).__name__
    match getattr(error, "reason", None):  # None where OpenSSL had no words for it
        case "KEY_VALUES_MISMATCH":
            return "key and certificate do not belong together"
        case None:
            return "no certificate or key in PEM form was found in it"
        case reason:
            return _words(str(reason))


def _words(reason: str) -> str:
    return reason.lower().replace("_", " ")
