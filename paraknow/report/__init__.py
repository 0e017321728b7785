"""A run, or runs side by side, as one HTML file; and the catalogue of a run's figures (no torch).

In a notebook:

    from paraknow.report import gallery, page, source
    page.write(["20261121-200354-seeking-people-6d1d"], "run.html")  # ids of runs, or Run objects
    gallery.find(source.of("20261121-200354-seeking-people-6d1d"), "cka.residual").draw()
"""
