"""`paraknow report` and `paraknow figure`: what a run came to, as files to give to others. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paraknow.errors import InputError
from paraknow.screen import emit, table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file of that name.")]


def report(
    runs: Annotated[list[str], typer.Argument(help="A run's id; several are held side by side with the first.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The report: a file whose name ends in .html.")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """A run, or runs side by side, as one HTML file that works offline."""
    from paraknow.report import page

    path = page.write(runs, out, force=force)
    size = path.stat().st_size
    if as_json:
        emit({"file": str(path), "bytes": size})
    else:
        print(f"The report is in {path} ({size / 2**20:.1f} MiB).")


def figure(
    run_id: str,
    name: Annotated[str | None, typer.Argument(help="Which figure; --list shows their names.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The picture: a name that ends in .png, .svg or .pdf.")
    ] = None,
    talk: Annotated[bool, typer.Option("--talk", help="For slides: all text at least 18 pixels high.")] = False,
    width: Annotated[
        int | None, typer.Option(min=200, max=8000, help="In pixels; the figure's own by default.")
    ] = None,
    height: Annotated[int | None, typer.Option(min=150, max=8000, help="In pixels.")] = None,
    scale: Annotated[
        float | None, typer.Option(min=0.1, max=10, help="Pixels of a PNG per pixel; 2 by default.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Print the names of the run's figures and stop.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    r"""A figure of a run as a picture (PNG, SVG, PDF). Some need Kaleido: pip install "paraknow\[kaleido]"."""
    from paraknow.figures import images
    from paraknow.report import gallery, source

    found = source.of(run_id)
    if listing or name is None:
        if out is not None:
            raise InputError("name a figure to draw, such as sensitivity.teacher; --list shows their names.")
        rows = [{"figure": p.name, "section": p.section, "shows": p.title} for p in gallery.pictures(found)]
        emit({"run": found.run.id, "figures": rows}) if as_json else table(rows, f"Figures of run {found.run.id}")
        return
    if out is None:
        raise InputError("say where to: -o FILE.png, FILE.svg or FILE.pdf.")
    path = images.save(gallery.find(found, name).draw, out, talk, width, height, scale, force)
    if as_json:
        emit({"run": found.run.id, "figure": name, "file": str(path), "bytes": path.stat().st_size})
    else:
        print(f"The figure is in {path}.")
