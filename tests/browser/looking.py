"""What is asked of an open page: does it overflow, can all of it be read, by screen readers too."""

from __future__ import annotations

from functools import cache
from importlib import resources

# Rules of axe that something inside Streamlit's own elements breaks, with the reason why it stays. None is needed now.
NOT_OURS: dict[str, str] = {}

# Text of figures against the page behind it; what has a colour of the figure's own lies on cells or labels of its own.
FAINT = """() => {
    const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
    const lum = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const app = parse(getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor).slice(0, 3);
    const found = [];
    for (const text of document.querySelectorAll('.js-plotly-plot text, [data-testid=stVegaLiteChart] text')) {
        if (!text.textContent.trim() || text.closest('.annotation, .cartesianlayer .text')) continue;
        const style = getComputedStyle(text), fill = parse(style.fill), seen = (fill[3] ?? 1) * style.fillOpacity;
        const mixed = fill.slice(0, 3).map((v, k) => seen * v + (1 - seen) * app[k]);
        const [low, high] = [lum(mixed), lum(app)].sort((a, b) => a - b);
        if ((high + 0.05) / (low + 0.05) < 4.5) found.push(`${text.textContent} ${style.fill}`);
    }
    return [...new Set(found)];
}"""

# Pixels by which the page is wider than the window, and titles of figures that are cut.
WIDE = """() => {
    const main = document.querySelector('[data-testid=stMain]'), cut = [];
    for (const text of main.querySelectorAll('.gtitle, .xtitle, [data-testid=stVegaLiteChart] .role-title-text text')) {
        const inner = text.getBoundingClientRect();
        const outer = text.closest('.js-plotly-plot, [data-testid=stVegaLiteChart]').getBoundingClientRect();
        if (inner.width && inner.right > outer.right + 1 || /…$/.test(text.textContent)) cut.push(text.textContent);
    }
    return [Math.max(main.scrollWidth - main.clientWidth, document.documentElement.scrollWidth - innerWidth), cut];
}"""

# Sizes of all text in figures, in pixels.
SIZES = """() => [...document.querySelectorAll('.js-plotly-plot text, [data-testid=stVegaLiteChart] text')]
    .filter(text => text.textContent.trim()).map(text => parseFloat(getComputedStyle(text).fontSize))"""


@cache
def axe() -> str:
    """axe-core, as its Python package carries it."""
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


def grave(page, rules: list[str] | None = None) -> list[str]:
    """Serious and critical findings of axe on an open page, of all its rules or some: rule, place, what is wrong."""
    page.evaluate(axe())
    options: dict[str, object] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    found = page.evaluate("async options => (await axe.run(document, options)).violations", options)
    return [
        f"{rule['id']}: {node['html'][:160]}: {node['failureSummary'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical") and rule["id"] not in NOT_OURS
        for node in rule["nodes"]
    ]
