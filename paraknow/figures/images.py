"""A figure as a picture: PNG, SVG or PDF, dark text on white, for papers and slides.

Plotly figures are drawn by Kaleido, which drives a Chrome or Chromium of this machine (`pip install
"paraknow[kaleido]"`); Altair charts by vl-convert, which needs neither. Neither fetches anything.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import altair as alt
import plotly.graph_objects as go

from paraknow import files
from paraknow.errors import InputError
from paraknow.figures import theme

Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[str, ...] = get_args(Format)
WIDTH = 900  # of a Plotly figure that has none of its own, in pixels
PANEL = 420  # the same for the plotting area of a chart without a step
SCALE = 2.0  # pixels of a PNG per pixel of the figure: sharp on paper
SLIDE = 1.6  # brings the smallest text of a figure, 11.5 px, to at least LEAST
LEAST = 18.0  # pixels of text that can be read from the last row
FONTS = {"labelFontSize": 12, "titleFontSize": 13}
NO_KALEIDO = 'Saving this figure as a picture needs Kaleido: pip install "paraknow[kaleido]".'
NO_BROWSER = (
    'Saving this figure as a picture needs Chrome or Chromium, which Kaleido (pip install "paraknow[kaleido]") drives: '
    "install one, or name it in $BROWSER_PATH."
)
INK, PAPER = "#1B2430", "#FFFFFF"


def render(
    figure: Any,
    format: Format = "svg",
    width: float | None = None,
    height: float | None = None,
    scale: float | None = None,
) -> bytes:
    """A Plotly figure or an Altair chart as the bytes of a picture file.

    width, height: in pixels, of the whole Plotly figure or of a chart's plotting area; by default the figure's own.
    scale: pixels of a PNG per pixel of the figure, and the size of a PDF; 2 for PNG by default, else 1.

    Raises InputError: another format; Kaleido or a browser is missing, or the browser does not start.
    """
    if format not in FORMATS:
        raise InputError(f"a figure can be saved as {', '.join(FORMATS)}, not as {format!r}.")
    scale = scale or (SCALE if format == "png" else 1.0)
    if isinstance(figure, go.Figure):
        return _plotly(figure, format, width or figure.layout.width or WIDTH, height or figure.layout.height, scale)
    return _vega(figure, format, width, height, scale)


def lacking(figure: Any) -> str | None:
    """Why a figure cannot be saved as a picture on this machine, in a sentence; None where it can be."""
    if not isinstance(figure, go.Figure):
        return None
    if not find_spec("kaleido"):
        return NO_KALEIDO
    return None if _browser() else NO_BROWSER


def for_slides(figure: Any) -> Any:
    """The same figure with all text at least LEAST pixels high, and margins and marks that grow with it."""
    if not isinstance(figure, go.Figure):
        return (
            figure.configure_axis(labelFontSize=LEAST, titleFontSize=LEAST + 2, labelLimit=400, titleLimit=900)
            .configure_legend(labelFontSize=LEAST, titleFontSize=LEAST, gradientThickness=24)
            .configure_title(fontSize=LEAST + 6, limit=1200)
        )
    made = go.Figure(figure)
    layout = made.layout
    base = layout.font.size or 12
    for font in (
        layout.title.font,
        layout.title.subtitle.font,
        layout.legend.font,
        *(a.font for a in layout.annotations),
    ):
        font.size = max(LEAST, SLIDE * (font.size or base))
    layout.font.size = max(LEAST, SLIDE * base)
    for axis in (*made.select_xaxes(), *made.select_yaxes()):
        axis.title.font.size = LEAST + 2
    layout.margin = {side: SLIDE * v for side in "lrtb" if (v := layout.margin[side]) is not None}
    layout.width = SLIDE * (layout.width or WIDTH)
    layout.height = SLIDE * layout.height if layout.height else None
    for trace in made.data:
        for axis in ("x", "y"):
            if trace.type in ("scatter", "bar") and trace[f"error_{axis}"].thickness:
                trace[f"error_{axis}"].thickness *= SLIDE
        if trace.type == "scatter" and isinstance(trace.marker.size, int | float):
            trace.marker.size *= SLIDE
        if trace.type == "scatter" and trace.line.width:
            trace.line.width *= SLIDE
    return made


def template(ink: str = INK, line: str = "#D5DCE4") -> dict[str, Any]:
    """A Plotly template of text and lines in two colours; nothing behind them."""
    axis: dict[str, Any] = {"gridcolor": line, "linecolor": line, "zerolinecolor": line}
    axis["title"] = {"font": {"size": 13}}
    hover = {"hoverlabel": {"bgcolor": ink, "font": {"color": theme.LIGHT if ink == INK else theme.DARK}}}
    fonts = {"color": ink, "family": "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"}
    return {"layout": {"font": fonts, "xaxis": axis, "yaxis": {**axis, "automargin": True}, **hover}}


def with_room(figure: dict[str, Any]) -> dict[str, Any]:
    """A Plotly figure as a mapping, with room for numbers written beside it in wider letters than the dashboard's."""
    margin = figure["layout"].get("margin") or {}
    if margin.get("r", 0) > 60:
        figure["layout"]["margin"] = {**margin, "r": 1.2 * margin["r"]}
    return figure


# -- Plotly -----------------------------------------------------------------------------------------


def _browser() -> str | None:
    """The Chrome or Chromium that Kaleido will drive: the one in $BROWSER_PATH, its own, or one of the machine."""
    from choreographer.browsers.chromium import Chromium

    found = os.environ.get("BROWSER_PATH") or Chromium.find_browser(skip_local=False)
    return found if found and Path(found).is_file() else None


def _plotly(figure: go.Figure, format: Format, width: float, height: float | None, scale: float) -> bytes:
    if lacks := lacking(figure):
        raise InputError(lacks)
    import kaleido
    from choreographer.errors import BrowserFailedError

    drawn = with_room(figure.to_plotly_json())
    if drawn["layout"].get("title", {}).get("x") == 0:
        drawn["layout"]["title"]["x"] = 0.01  # not on the very edge of the paper
    drawn["layout"] |= {"template": template(), "paper_bgcolor": PAPER, "plot_bgcolor": PAPER}
    for name in ("kaleido", "choreographer"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is said once, below
    size = {"format": format, "width": width, "height": height or 500, "scale": scale}
    # Chrome refuses its sandbox to root, and has none where the kernel gives none (most containers).
    sandboxes = (False,) if getattr(os, "geteuid", lambda: 1)() == 0 else (True, False)
    for sandbox in sandboxes:
        options: dict[str, Any] = {
            "mathjax": False,
            "enable_sandbox": sandbox,
            "path": _browser(),
        }  # mathjax would come from a host
        try:
            return kaleido.calc_fig_sync(drawn, opts=size, kopts=options)
        except BrowserFailedError:
            continue
    raise InputError("Saving this figure as a picture needs a Chrome or Chromium that starts; the one here did not.")


# -- Altair -----------------------------------------------------------------------------------------


def spec(chart: alt.TopLevelMixin, ink: str = INK, width: float | None = None, height: float | None = None) -> dict:
    """A chart's Vega-Lite with a size, text in `ink`, nothing behind it, and no words inside for each single cell."""
    made: dict[str, Any] = chart.to_dict(validate=False)  # a third of the time; tests draw every chart
    steps = isinstance(made.get("height"), dict)
    made["width"] = width or made.get("width") or (_square(made) if steps else PANEL)
    if height:
        made["height"] = height
    text = {name: {"fill": ink} for name in ("guide-label", "guide-title", "group-title")}
    config = made.setdefault("config", {})
    config |= {"aria": False, "background": "transparent", "font": "DejaVu Sans, Arial, sans-serif"}
    config |= {"style": {**text, **config.get("style", {})}}
    lines = {"domainColor": theme.NEUTRAL, "tickColor": theme.NEUTRAL}
    parts: dict[str, dict[str, Any]] = {"axis": {**lines, **FONTS}, "legend": {**FONTS}, "title": {"fontSize": 15}}
    for part, usual in parts.items():
        config[part] = {**usual, **config.get(part, {})}
    return made


def _square(made: dict[str, Any]) -> Any:
    """Cells as wide as they are high where both axes are layers; else PANEL."""
    layers = made.get("layer")
    across = layers[0]["encoding"]["x"]["field"] if layers else None
    return made["height"] if across and across.endswith("layer") else PANEL


def _vega(chart: Any, format: Format, width: float | None, height: float | None, scale: float) -> bytes:
    import vl_convert  # takes some 100 MB once it draws

    made = spec(chart, width=width, height=height)
    made["config"]["background"] = PAPER
    if format == "svg":
        return svg(made).encode()
    draw = vl_convert.vegalite_to_png if format == "png" else vl_convert.vegalite_to_pdf
    return draw(made, scale=scale, allowed_base_urls=[])


def svg(made: dict[str, Any]) -> str:
    """A Vega-Lite specification as SVG text, drawn without a browser. Nothing that it names is fetched."""
    import vl_convert

    return vl_convert.vegalite_to_svg(made, allowed_base_urls=[])


def save(
    draw: Callable[[], Any],
    path: Path,
    talk: bool = False,
    width: float | None = None,
    height: float | None = None,
    scale: float | None = None,
    force: bool = False,
) -> Path:
    """Draw a figure and write it as the picture that the file's name asks for; returns the path.

    Raises InputError: another ending, a file of that name (unless `force`), no such folder, or as `render` does.
    """
    ending = path.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise InputError(f"{path}: the name of a picture must end in {', '.join('.' + f for f in FORMATS)}.")
    if path.is_dir() or (path.exists() and not force):
        raise InputError(f"{path} exists already; name another file, or say --force.")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}.")
    figure = draw()
    made = render(for_slides(figure) if talk else figure, ending, width, height, scale)  # type: ignore[arg-type]
    with files.replacing(path) as temporary:
        temporary.write_bytes(made)
    return path
