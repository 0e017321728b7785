"""The glossary beside every page, and as the little question marks of headings."""

from __future__ import annotations

import streamlit as st

from paraknow import glossary


def help(*names: str) -> str:
    """What terms mean, for a widget's or heading's `help`."""
    return "\n\n".join(f"**{term.name}**: {term.words}" for term in map(glossary.find, names))


def sidebar() -> None:
    """A button in the sidebar that opens all terms, with a search."""
    with st.sidebar.popover("Glossary", icon=":material/menu_book:", width="stretch"):
        text = st.text_input("Find a word", max_chars=80, key="glossary.search", placeholder="share, CKA, null …")
        found = glossary.matching(text)
        st.markdown("\n\n".join(f"**{t.name}**: {t.words}" for t in found) or "No word is like that.")
