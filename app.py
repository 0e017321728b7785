"""The dashboard: `paraknow app`, or `streamlit run app.py`. Login, navigation, sidebar; pages do the rest."""

from contextlib import suppress

from pages.parts import login, shell, talk, terms, tour

shell.window()
login.gate()
page = shell.navigation()
shell.pick_run()
talk.switch()
terms.sidebar()
login.leave()
if talk.on():
    talk.show(page)
else:
    tour.card(page.url_path)
    with suppress(shell.Ended):
        page.run()
