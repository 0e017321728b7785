"""Where `paraknow app` listens, what it warns of, and what its server answers."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from paraknow import access, cli, resources, serving
from paraknow.errors import InputError
from tests import servers
from tests.servers import free_port

PROVIDER = 'client_id = "a"\nclient_secret = "b"\nserver_metadata_url = "https://id.example/x"\n'
AUTH = f'[auth]\nredirect_uri = "http://localhost/oauth2callback"\ncookie_secret = "0123456789abcdef"\n{PROVIDER}'


@pytest.fixture(autouse=True)
def nothing_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No secrets but the test's own: neither at home nor in the working folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def secrets(folder: Path, text: str) -> None:
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit" / "secrets.toml").write_text(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.8.8"])
def test_loopback_is_not_shared(host: str) -> None:
    made = serving.prepare(host, free_port())
    assert not made.access.limited and made.warning is None
    assert {"--server.allowedHosts=localhost", "--server.allowedHosts=127.0.0.1"} < set(made.options(True))


def test_any_other_address_is_shared_and_warned_of(tmp_path: Path) -> None:
    made = serving.prepare("0.0.0.0", free_port(), [tmp_path])
    assert made.access == access.Access(True, (str(tmp_path.resolve()),), ())
    assert made.warning and "everybody who reaches 0.0.0.0 can use this dashboard" in made.warning
    assert not any("allowedHosts" in o for o in made.options(True))
    proxied = serving.prepare("127.0.0.1", free_port(), proxied=True)
    assert proxied.access.shared and proxied.warning
    only_data = serving.prepare("127.0.0.1", free_port(), data=[tmp_path])
    assert only_data.access == access.Access(False, None, (str(tmp_path.resolve()),)) and only_data.warning is None


@pytest.mark.parametrize(
    "address, own", [("127.0.0.1", True), ("127.255.0.3", True), ("::1", True), ("0.0.0.0", False)]
)
def test_loopback_by_number(address: str, own: bool) -> None:
    assert serving.is_loopback(address) == own


@pytest.mark.parametrize("address", ["::", "::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.1", "128.0.0.1", "a.example", ""])
def test_what_is_no_loopback(address: str) -> None:
    assert not serving.is_loopback(address) and serving.is_loopback("::ffff:127.0.0.1")


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(host: str) -> None:
    made = serving.prepare(host, free_port(socket.AF_INET6))
    assert made.host == "::1" and not made.access.limited


@pytest.mark.parametrize("host", ["8.8.8.8", "no.such.host.invalid", "", "a b", "999.1.1.1", "x" * 300, "1::2::3"])
def test_an_address_that_is_not_ours_is_refused(host: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["app", "--host", host, "--headless"])
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(said) == 1 and "is no address of this machine; accepted are" in said[0]


def test_a_port_in_use_and_a_folder_that_is_not_there(tmp_path: Path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="is in use; choose another one"):
            serving.prepare("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(SystemExit) as stop:
        cli.main(["app", "--port", str(free_port()), "--models-dir", str(tmp_path / "absent")])
    assert stop.value.code == 2 and "--models-dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, said",
    [
        ("", serving.NOTHING),
        ("[auth", "cannot be read as TOML"),
        ("auth = 3", "is no table"),
        (AUTH.replace("cookie_secret", "cookie"), "lacks cookie_secret"),
        (AUTH.replace("client_id", "id"), "lacks client_id"),
    ],
)
def test_what_a_login_lacks(text: str, said: str, tmp_path: Path) -> None:
    secrets(tmp_path, text)
    assert said in (serving.login_lacks(serving.secrets()) or "")
    made = serving.prepare("127.0.0.1", free_port())
    assert made.access.login == made.access.shared == (said != serving.NOTHING)  # damaged: closed, not open
    assert (made.warning is None) == (said == serving.NOTHING)


def test_a_login_is_for_others(tmp_path: Path, monkeypatch) -> None:
    """By one provider or several. Loopback with a login has a proxy before it: it is limited as what is shared."""
    monkeypatch.setattr(serving, "find_spec", lambda name: name)
    secrets(tmp_path, AUTH)
    made = serving.prepare("127.0.0.1", free_port())
    assert made.access == access.Access(True, (), (), True) and made.warning is None
    several = AUTH.replace(PROVIDER, "") + f"[auth.one]\n{PROVIDER}[auth.two]\n{PROVIDER}"
    (tmp_path / ".streamlit" / "secrets.toml").write_text(several)
    assert serving.login_lacks(serving.secrets()) is None
    (tmp_path / ".streamlit" / "secrets.toml").write_text(several + "[auth.three]\nclient_id = 'x'\n")
    assert serving.providers_of({"client_id": "a", "client_kwargs": {}}) == [None]
    assert "lacks client_secret, server_metadata_url" in (serving.login_lacks(serving.secrets()) or "")
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    (tmp_path / ".streamlit" / "secrets.toml").write_text(AUTH)
    assert "Authlib is missing" in (serving.prepare("127.0.0.1", free_port()).warning or "")


# -- a server ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, int]]:
    """`paraknow app` as people start it."""
    with servers.app(tmp_path_factory.mktemp("app")) as started:
        yield started


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read(300_000)
    finally:
        connection.close()


def test_it_listens_on_loopback_alone(server: tuple[psutil.Process, int]) -> None:
    process, port = server
    family = [process, *process.children(recursive=True)]
    listening = [c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listening and {(a.ip, a.port) for a in listening} == {("127.0.0.1", port)}


def test_it_serves_pages_and_no_files(server: tuple[psutil.Process, int]) -> None:
    _, port = server
    status, _, start = ask(port, "/")
    assert status == 200 and b"<title>" in start
    assert ask(port, "/_stcore/health")[0] == 200
    outside = [
        "/app/static/app.py",
        "/app.py",
        "/.streamlit/config.toml",
        "/media/../app.py",
        "/media/x",
        "/%2e%2e/app.py",
    ]
    outside += [
        "/..%2fapp.py",
        "/static/../../../../../../etc/passwd",
        "/component/x/..%2f..%2fapp.py",
        "/pages/runs.py",
    ]
    for path in outside:
        status, _, body = ask(port, path)
        assert status >= 400 or body == start, path  # an unknown address shows the start page
        assert b"import streamlit" not in body and b"root:" not in body, path
    assert ask(port, "/_stcore/agent/interact", "POST")[0] >= 400
    about = json.loads(ask(port, "/_stcore/host-config")[2])
    assert about.get("enableCustomParentMessages") is not True


def test_other_sites_cannot_talk_to_it(server: tuple[psutil.Process, int]) -> None:
    """Neither from a page of theirs (Origin) nor by a name that they point at this machine (Host)."""
    _, port = server
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    upgrade["Sec_WebSocket_Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    own = f"127.0.0.1:{port}"
    for origin, host, status in (
        (f"http://{own}", own, 101),
        ("https://evil.example", own, 403),
        ("null", own, 403),
        (f"http://evil.example:{port}", f"evil.example:{port}", 403),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request(
                "GET",
                "/_stcore/stream",
                headers={**{k.replace("_", "-"): v for k, v in upgrade.items()}, "Origin": origin, "Host": host},
            )
            assert connection.getresponse().status == status, (origin, host)
        finally:
            connection.close()
    assert ask(port, "/_stcore/upload_file/x/y", "PUT")[0] in (400, 403, 404, 405)  # no XSRF token, no session
    assert ask(port, "/", Origin="https://evil.example")[1].get("access-control-allow-origin") in (None, "null")


def test_what_the_config_promises() -> None:
    import tomllib

    said = tomllib.loads((resources.root() / ".streamlit" / "config.toml").read_text())
    wanted = {"address": "127.0.0.1", "enableXsrfProtection": True, "enableCORS": True, "enableStaticServing": False}
    assert wanted.items() <= said["server"].items() and said["server"]["maxUploadSize"] <= 64
    assert said["server"]["enableAgentApi"] is False and said["client"]["showErrorDetails"] == "none"
    assert said["browser"]["gatherUsageStats"] is False
