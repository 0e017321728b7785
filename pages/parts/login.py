"""Who may see the pages: everybody, or, where a login is set up, those it lets in.

`[auth]` in .streamlit/secrets.toml sets up Streamlit's own login (any OpenID provider); `[paraknow] allowed_emails`
beside it names who may come in. docs/security.md shows both.
"""

from __future__ import annotations

import os
from typing import Any

import streamlit as st

from paraknow import access, serving


def gate() -> None:
    """Goes on only where the visitor may see the pages; else shows a button, and nothing else."""
    _mark_shared()
    if not _wanted() or _let_in():
        return
    st.navigation([st.Page(_page, title="Log in", url_path="login")], position="hidden").run()
    st.stop()


def leave() -> None:
    """In the sidebar: who is logged in, and the way out."""
    if st.user.get("is_logged_in"):
        with st.sidebar:
            st.button("Log out", on_click=st.logout, icon=":material/logout:", key="login.leave")


def _mark_shared() -> None:
    """A server that was started without `paraknow app` and listens beyond this machine is limited as one with it."""
    address = st.get_option("server.address")
    if not os.environ.get(access.VARIABLE) and not (address and serving.is_loopback(address)):
        os.environ[access.VARIABLE] = access.grant(shared=True).dump()


def _wanted() -> bool:
    """Whether a login is set up, by what `paraknow app` found or Streamlit knows (it then says who is logged in)."""
    return access.current().login or "is_logged_in" in st.user


def _let_in() -> bool:
    return bool(st.user.get("is_logged_in")) and _named()


def _named() -> bool:
    """Whether the visitor's e-mail address is among those that are named, where some are."""
    allowed = _secrets("paraknow").get("allowed_emails")
    if allowed is None:
        return True
    known = {str(a).strip().casefold() for a in ([allowed] if isinstance(allowed, str) else allowed)}
    email, verified = st.user.get("email"), st.user.get("email_verified")
    return isinstance(email, str) and verified not in (False, "false") and email.casefold() in known


def _secrets(section: str) -> Any:
    try:
        return st.secrets.get(section, {})
    except FileNotFoundError:  # no secrets.toml, or one that cannot be read
        return {}


def _page() -> None:
    st.title("ParaKnow")
    if st.user.get("is_logged_in"):
        st.error("This account may not come in. Ask whoever runs this dashboard to name its e-mail address.")
        st.button("Log out", on_click=st.logout, icon=":material/logout:", key="login.out")
        return
    for name in serving.providers_of(_secrets("auth")):
        st.button(
            f"Log in with {name}" if name else "Log in",
            on_click=st.login,
            args=(name,) if name else (),
            icon=":material/login:",
            key=f"login.{name}",
        )
