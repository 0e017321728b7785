"""The dashboard: `paraknow app`, or `streamlit run app.py`. Login, navigation, sidebar; pages do the rest."""

import streamlit as st

from pages.parts import login, shell, talk

st.set_page_config(page_title="ParaKnow", page_icon=shell.ICON, layout="wide")
st.html(shell.STYLE)
login.gate()
page = shell.navigation()
shell.pick_run()
talk.switch()
login.leave()
if talk.on():
    talk.show(page)
else:
    page.run()
