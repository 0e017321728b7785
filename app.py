"""The dashboard: `paraknow app`, or `streamlit run app.py`. Login, navigation, sidebar; pages do the rest."""

import streamlit as st

from pages.parts import login, shell, terms, tour

st.set_page_config(page_title="ParaKnow", page_icon=shell.ICON, layout="wide")
login.gate()
page = shell.navigation()
shell.pick_run()
terms.sidebar()
login.leave()
tour.card(page.url_path)
page.run()
