from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.config import MAX_FILE, Home, Settings, format_address, parse_address, parse_size
from swarm.errors import ResourceError, UsageError
from swarm.ids import Address


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(path=tmp_path)


def load(home: Home, text: str = "", **environ: str) -> Settings:
    home.settings.write_text(text)
    return Settings.load(home, environ=environ)


def test_the_home_is_the_option_then_the_environment_then_the_platforms(tmp_path: Path) -> None:
    environ = {"SWARM_HOME": str(tmp_path / "env")}
    assert Home.find(tmp_path / "given", environ=environ).path == tmp_path / "given"
    assert Home.find(environ=environ).path == tmp_path / "env"
    assert Home.find(environ={}).path.name == "swarm-inference"
    assert Home.find(Path("~/swarm"), environ={}).path == Path.home() / "swarm"
    assert Home.find(Path("here"), environ={}).path == Path.cwd() / "here"


def test_each_thing_has_its_place(home: Home) -> None:
    names = {
        "peer_key": "peer.key",
        "spending_key": "spending.key",
        "account_key": "account.key",
        "publisher_key": "publisher.key",
        "worker_ledger": "ledger-worker.db",
        "client_ledger": "ledger-client.db",
        "store": "store",
        "settings": "swarm.toml",
    }
    assert {name: getattr(home, name) for name in names} == {n: home.path / file for n, file in names.items()}


def test_a_home_without_settings_has_the_defaults(home: Home) -> None:
    assert Settings.load(home, environ={}) == Settings()


def test_every_setting_can_be_set_in_the_file_and_overridden(home: Home) -> None:
    text = """
    bootstrap = ["a.example:6881", "[::1]:6882"]
    chain_rpc = "http://127.0.0.1:8545"
    chain_contract = "0x1111111111111111111111111111111111111111"
    price_input = 1
    price_output = 2
    listen_host = "0.0.0.0"
    listen_port = 4000
    disk_quota = "20 GiB"
    upload_rate = "2 MiB"
    download_rate = 3
    utp = true
    map_ports = true
    """
    settings = load(home, text)
    assert all(getattr(settings, field.name) != field.default for field in fields(settings))
    assert settings.bootstrap_addresses == (("a.example", 6881), ("::1", 6882))
    assert settings.contract == Address(b"\x11" * 20)
    assert settings.disk_quota == 20 << 30

    environ = {
        "SWARM_BOOTSTRAP": "b.example:1, c.example:2",
        "SWARM_CHAIN_RPC": "https://rpc.example",
        "SWARM_CHAIN_CONTRACT": "22" * 20,
        "SWARM_PRICE_INPUT": "3",
        "SWARM_PRICE_OUTPUT": "4",
        "SWARM_LISTEN_HOST": "::1",
        "SWARM_LISTEN_PORT": "5",
        "SWARM_DISK_QUOTA": "1 TiB",
        "SWARM_UPLOAD_RATE": "1 MiB",
        "SWARM_DOWNLOAD_RATE": "1",
        "SWARM_UTP": "0",
        "SWARM_MAP_PORTS": "no",
        "SWARM_HOME": "ignored here",
    }
    assert load(home, text, **environ) == Settings(
        bootstrap=("b.example:1", "c.example:2"),
        chain_rpc="https://rpc.example",
        chain_contract="22" * 20,
        price_input=3,
        price_output=4,
        listen_host="::1",
        listen_port=5,
        disk_quota=1 << 40,
        upload_rate=1 << 20,
        download_rate=1,
    )
    assert load(home, text).override(listen_port=7, chain_rpc=None).listen_port == 7


def test_an_empty_variable_changes_nothing(home: Home) -> None:
    assert load(home, "price_input = 5", SWARM_PRICE_INPUT="").price_input == 5


def test_an_unknown_key_names_the_nearest(home: Home) -> None:
    with pytest.raises(UsageError, match="has 'listen_prot', which is no setting; did you mean 'listen_port'"):
        load(home, "listen_prot = 1")
    with pytest.raises(UsageError, match="'zzz', which is no setting; there are bootstrap, chain_rpc"):
        load(home, "zzz = 1")


@pytest.mark.parametrize(
    "text",
    [
        'bootstrap = "a:1"',
        "bootstrap = [1]",
        'bootstrap = ["a"]',
        'bootstrap = ["a:0"]',
        "chain_rpc = 1",
        'chain_rpc = "ftp://x"',
        'chain_contract = "0x11"',
        "price_input = 1.5",
        "price_input = true",
        'price_input = "many"',
        "price_input = -1",
        "listen_port = 65536",
        "disk_quota = -1",
        "not toml",
        "x = 1\nx = 2",
    ],
)
def test_a_value_that_does_not_fit_is_named(home: Home, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(home, text)
    assert "\n" not in caught.value.message
    assert text.split()[0] in caught.value.message or str(home.settings) in caught.value.message or "'a" in str(caught)


def test_a_variable_that_does_not_fit_is_named(home: Home) -> None:
    with pytest.raises(UsageError, match="SWARM_LISTEN_PORT is 'http'; give a whole number"):
        load(home, SWARM_LISTEN_PORT="http")


def test_a_file_that_is_no_settings_file(home: Home) -> None:
    with pytest.raises(UsageError, match=f"over {MAX_FILE} bytes"):
        load(home, "#" * (MAX_FILE + 1))
    home.settings.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        Settings.load(home, environ={})
    home.settings.unlink()
    home.settings.mkdir()
    with pytest.raises(ResourceError, match="cannot read"):
        Settings.load(home, environ={})


@given(st.ip_addresses().map(str) | st.from_regex(r"[a-z][a-z0-9.-]{0,30}", fullmatch=True), st.integers(1, 65535))
def test_addresses_survive_their_text(host: str, port: int) -> None:
    assert parse_address(format_address(host, port)) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "host:x",
        "host:-1",
        "host: 1",
        "::1:80",
        "[::1]",
        "[]:1",
        "[host]:1",
        "a b:1",
        "http://host:1",
        "host:1:2",
        "host:٣",
        "[::1:80",
        "::1]:80",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="give HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("123", 123), ("5B", 5), ("4k", 4096), ("4 KiB", 4096), ("3 MB", 3 << 20), ("2GiB", 2 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "1.5G", "-1", "1 PiB", "GiB"])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)


def test_truths_are_read_from_file_and_environment(tmp_path: Path) -> None:
    home = Home(path=tmp_path)
    home.settings.write_text('utp = true\nupload_rate = "2 MiB"\n')
    settings = Settings.load(home, environ={"SWARM_MAP_PORTS": "yes", "SWARM_UTP": "0"})
    assert (settings.utp, settings.map_ports, settings.upload_rate) == (False, True, 2 << 20)
    with pytest.raises(UsageError, match="SWARM_UTP is 'perhaps'; give true or false"):
        Settings.load(home, environ={"SWARM_UTP": "perhaps"})
    home.settings.write_text("utp = 1\n")
    with pytest.raises(UsageError, match="give true or false"):
        Settings.load(home, environ={})
