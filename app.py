"""The dashboard: `paraknow app`, or `streamlit run app.py`. Navigation and sidebar; the pages do the rest."""

import streamlit as st

from pages.parts import shell

st.set_page_config(page_title="ParaKnow", page_icon=":material/swap_vert:", layout="wide")
page = shell.navigation()
shell.pick_run()
page.run()
