"""Figures as picture files."""

from __future__ import annotations

import re
from pathlib import Path

import altair as alt
import pandas as pd
import plotly.graph_objects as go
import pytest

from paraknow.errors import InputError
from paraknow.figures import heatmaps, images, theme

STARTS = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}
TABLE = pd.DataFrame(
    [(k, m, 0.1 * (k + 1)) for k in range(3) for m in ("q", "k")], columns=["layer", "module", "share"]
).assign(mean=1.0, sum=1.0, max=1.0)


def chart(model: str = "a <script>alert(1)</script> & b") -> alt.Chart:
    return heatmaps.layer_map(TABLE, "share", (0.1, 0.3), model, None)


def plot() -> go.Figure:
    figure = go.Figure(go.Scatter(x=[1, 2], y=["a", "b"], name="one", error_x={"array": [1, 1], "thickness": 2}))
    figure.add_annotation(
        x=1.01, xref="paper", xanchor="left", y="a", text="+0.95", showarrow=False, font={"size": 11.5}
    )
    figure.update_xaxes(title="x").update_yaxes(title="y")
    return theme.frame(figure, "Title", 300, "a note", r=118).update_layout(showlegend=True)


@pytest.mark.parametrize("format", images.FORMATS)
def test_a_chart_needs_no_browser(format: images.Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere")
    made = images.render(chart(), format)
    assert made.startswith(STARTS[format])
    if format == "svg":
        assert b"<script" not in made and b"&lt;script&gt;" in made


def test_a_chart_has_the_size_that_is_asked_for() -> None:
    small, large = (len(images.render(chart("m"), "png", scale=s)) for s in (1, 3))
    assert large > small
    wide = images.spec(chart("m"), width=777, height=333)
    assert (wide["width"], wide["height"]) == (777, 333)
    assert images.spec(chart("m"))["width"] == images.PANEL


def test_text_for_slides_can_be_read_from_the_last_row() -> None:
    figure = plot()
    before = figure.to_json()
    made = images.for_slides(figure)
    assert figure.to_json() == before  # a copy
    layout = made.layout
    fonts = [layout.font, layout.title.font, layout.title.subtitle.font, layout.annotations[0].font, layout.legend.font]
    fonts += [layout.xaxis.title.font, layout.yaxis.title.font]
    assert min(font.size for font in fonts) >= images.LEAST
    assert layout.margin.r > figure.layout.margin.r and layout.height > figure.layout.height
    sizes = re.findall(rb'font-size="([\d.]+)px"', images.render(images.for_slides(chart("m")), "svg"))
    assert sizes and min(map(float, sizes)) >= images.LEAST


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BROWSER_PATH", "/nowhere")
    if images.find_spec("kaleido"):
        with pytest.raises(InputError, match=r"needs Chrome or Chromium.*paraknow\[kaleido\].*BROWSER_PATH"):
            images.render(plot())
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    assert images.lacking(chart()) is None
    with pytest.raises(InputError, match=r'needs Kaleido: pip install "paraknow\[kaleido\]"'):
        images.save(plot, tmp_path / "a.svg")
    with pytest.raises(InputError, match="png, svg, pdf, not as 'gif'"):
        images.render(chart(), "gif")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_where_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        images.save(chart, path)
    assert path.read_text() == "mine"
    assert images.save(chart, path, force=True).read_bytes().startswith(b"<svg")


@pytest.mark.skipif(images.lacking(plot()) is not None, reason=f"{images.lacking(plot())}")
def test_a_plot_becomes_a_picture() -> None:
    made = images.render(images.for_slides(plot()), "svg")
    assert made.startswith(STARTS["svg"]) and b"rgb(255, 255, 255)" in made  # paper
    assert all(text in made for text in (b"Title", b"+0.95", b"a note"))
    sizes = [float(size) for size in re.findall(rb"font-size: ([\d.]+)px", made)]
    assert sizes and min(sizes) >= images.LEAST
