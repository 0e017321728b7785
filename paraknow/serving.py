"""Where the dashboard listens, who can reach it, and whether they have to log in (no torch, no streamlit)."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paraknow import access, resources
from paraknow.access import Access
from paraknow.errors import InputError

LOOPBACK = "127.0.0.1"
NEEDED = ("redirect_uri", "cookie_secret")
OF_PROVIDER = ("client_id", "client_secret", "server_metadata_url")


@dataclass(frozen=True)
class Serving:
    """A page server to be started. warning: what its owner should know first, or None."""

    host: str
    port: int
    access: Access
    warning: str | None

    def options(self, headless: bool) -> list[str]:
        """Streamlit's options. One that nobody else reaches answers to this machine's own names alone, so that no web
        site can reach it by a name that it points here."""
        made = [f"--server.address={self.host}", f"--server.port={self.port}"]
        made += [f"--server.headless={str(headless).lower()}"]
        made += ["--server.showEmailPrompt=false"]  # it would ask for an address, and end where nobody can answer
        made += ["--logger.hideWelcomeMessage=true"]  # with it goes an advertisement over every page's first line
        if not self.access.shared:
            names = dict.fromkeys(("localhost", LOOPBACK, "::1", self.host))
            made += [f"--server.allowedHosts={name}" for name in names]
        return made


def prepare(
    host: str, port: int, models: Sequence[Path] = (), data: Sequence[Path] = (), proxied: bool = False
) -> Serving:
    """What `paraknow app` starts. Shared is what others reach: any address but loopback, a proxy in front (`proxied`),
    or a login that has been set up, which is there for others.

    Raises InputError: no address of this machine, a port that is in use, a folder that does not exist.
    """
    host = host.removeprefix("[").removesuffix("]")
    family, address = _resolved(host, port)
    _probe(host, family, address)
    lacking = login_lacks(secrets())
    beyond = not is_loopback(address[0])
    shared = beyond or proxied or lacking != NOTHING
    made = access.grant(shared, models, data, login=lacking != NOTHING)
    return Serving(host, port, made, _warning(host, lacking) if shared else None)


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address: 127.0.0.0/8, ::1 (or the former written as the latter)."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address == "localhost"
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple]:
    """The first address that a host stands for, the one a server would be bound to."""
    wanted = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, wanted, socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise _no_address(host) from None
    return family, address


def _no_address(host: str) -> InputError:
    return InputError(
        f"--host {host!r} is no address of this machine; accepted are 127.0.0.1, ::1, localhost, 0.0.0.0 (all of its "
        "addresses) or one of its own."
    )


def _probe(host: str, family: socket.AddressFamily, address: tuple) -> None:
    """Whether a server could listen there; InputError where it could not."""
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except PermissionError:
        raise InputError(f"port {address[1]} is kept for the system; choose one above 1023 with --port.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {address[1]} is in use; choose another one with --port.") from None
        raise _no_address(host) from None


# -- login ------------------------------------------------------------------------------------------

NOTHING = "nothing"  # no login was set up at all


def secrets() -> list[Path]:
    """Where Streamlit looks for secrets.toml: the home folder, the folder the app is started in, beside app.py."""
    places = [Path.home(), Path.cwd(), resources.root()]
    return [p / ".streamlit" / "secrets.toml" for p in places]


def login_lacks(places: Sequence[Path]) -> str | None:
    """What keeps st.login from working, in words; None: it is set up; NOTHING: nobody set it up.

    Later files win over earlier ones, as in Streamlit.
    """
    auth: object = None
    for path in places:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return f"{path} cannot be read as TOML"
        auth = values.get("auth", auth)
    if auth is None:
        return NOTHING
    if not isinstance(auth, dict):
        return "[auth] in secrets.toml is no table"
    providers = [auth if name is None else auth[name] for name in providers_of(auth)]
    lacking = [k for k in NEEDED if not auth.get(k)] + [k for k in OF_PROVIDER if not all(p.get(k) for p in providers)]
    if lacking:
        return f"[auth] in secrets.toml lacks {', '.join(lacking)}"
    if find_spec("authlib") is None:
        return "the package Authlib is missing (pip install 'paraknow[login]')"
    return None


def providers_of(auth: Mapping[str, Any]) -> list[str | None]:
    """The providers of an [auth] table: those that have a table in it, None for the one that is set in itself."""
    named = [k for k, v in auth.items() if isinstance(v, Mapping) and k != "client_kwargs"]
    return [*([None] if auth.get("client_id") or not named else []), *named]


def _warning(host: str, lacking: str | None) -> str | None:
    if lacking is None:
        return None
    if lacking != NOTHING:
        return f"login does not work yet, so nobody can come in: {lacking}."
    return (
        f"warning: everybody who reaches {host} can use this dashboard, start runs on this machine and see all runs of "
        "this folder, because no login is set up; docs/security.md says how to set one up."
    )


def run(serving: Serving, headless: bool, python: str) -> None:
    """Become the page server. Streamlit reads .streamlit/config.toml beside app.py; runs and relative paths stay with
    the caller's folder."""
    script = str(resources.root() / "app.py")
    environment = {**os.environ, access.VARIABLE: serving.access.dump()}
    command = [python, "-m", "streamlit", "run", script, *serving.options(headless)]
    host = f"[{serving.host}]" if ":" in serving.host else serving.host
    print(f"ParaKnow is on http://{host}:{serving.port}; Ctrl-C ends it.", flush=True)
    os.execve(python, command, environment)
