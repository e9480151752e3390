from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttapi.config import Session, client_id, client_id_warnings, default_instance, instance_warnings
from mqttapi.errors import ConfigurationError


class TestSession:
    def test_persistent_for_a_day_by_default(self) -> None:
        assert Session() == Session(expiry=86_400, clean_start=False)
        assert Session().persistent

    def test_transient(self) -> None:
        assert Session.transient() == Session(expiry=0, clean_start=True)
        assert not Session.transient().persistent

    @pytest.mark.parametrize("expiry", [-1, 2**32, 1.5, True, "60"])
    def test_an_expiry_out_of_bounds(self, expiry: Any) -> None:
        with pytest.raises(ConfigurationError) as caught:
            Session(expiry=expiry)
        assert str(caught.value) == (
            f"Session(expiry=) must be whole seconds, 0-4294967295 (which means never), got {expiry!r}"
        )


class TestClientId:
    def test_app_instance_slot(self) -> None:
        assert client_id("plant", "host_1", 2) == "plant-host_1-2"

    def test_a_stem_replaces_app_and_instance(self) -> None:
        assert client_id("plant", "host", 2, stem="line:7") == "line:7-2"

    def test_other_characters_are_replaced_and_a_hash_is_added(self) -> None:
        assert client_id("plant", "host.example", 0) == "plant-host-example-328cc1-0"

    @given(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8), st.integers(0, 99))
    def test_every_broker_takes_it(self, app: str, instance: str, slot: int) -> None:
        assert re.fullmatch(rf"[A-Za-z0-9_-]+-{slot}", client_id(app, instance, slot))

    def test_different_names_keep_different_ids(self) -> None:
        names = ["a.b", "a:b", "a b", "a-b", "ä", "ö"]
        assert len({client_id("app", name, 0) for name in names}) == len(names)

    def test_long_ids_warn_on_3_1_1_only(self) -> None:
        assert client_id_warnings("x" * 23, "3.1.1") == []
        assert client_id_warnings("x" * 24, "5") == []
        assert client_id_warnings("x" * 24, "3.1.1") == [
            (
                f"client id '{'x' * 24}' has 24 characters, and MQTT 3.1.1 brokers may refuse more than 23: "
                "set a shorter MQTT_INSTANCE or MQTT_CLIENT_ID"
            )
        ]


class TestInstance:
    def test_the_default_is_the_host_name(self) -> None:
        assert default_instance()

    @pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv"])
    @pytest.mark.parametrize(
        ("name", "warned"),
        [
            ("0123456789ab", True),  # Docker
            ("plant-5d89d4f6b9-x7k2p", True),  # a Deployment's pod
            ("plant-q5zlt", True),  # a Job's pod
            ("plant-0", False),  # a StatefulSet's pod
            ("plant-22222", False),
            ("line-seven", False),
            ("vm", False),
        ],
    )
    def test_a_random_host_name_in_a_container_warns(self, mark: str, name: str, warned: bool, tmp_path: Path) -> None:
        (tmp_path / mark).parent.mkdir(exist_ok=True)
        (tmp_path / mark).touch()
        assert bool(instance_warnings(name, {}, tmp_path)) is warned

    def test_kubernetes_is_a_container(self, tmp_path: Path) -> None:
        assert instance_warnings("0123456789ab", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)

    def test_outside_of_containers_any_name_is_stable(self, tmp_path: Path) -> None:
        assert instance_warnings("0123456789ab", {}, tmp_path) == []
