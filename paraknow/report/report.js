"use strict";
// Figures are drawn once they can be seen: those in closed boxes when the box is opened. Colours follow the system, and
// are dark on white while the page is printed.
(() => {
  const themes = JSON.parse(document.getElementById("themes").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const template = () => themes[dark.matches && !printing ? "dark" : "light"];
  const hidden = (place) => place.closest("details:not([open])") !== null;
  const drawn = [];
  const draw = (place) => {
    if (place.dataset.drawn || hidden(place)) return Promise.resolve();
    place.dataset.drawn = "1";
    drawn.push(place);
    const { data, layout } = JSON.parse(place.nextElementSibling.textContent);
    const config = { displaylogo: false, displayModeBar: false, responsive: true, scrollZoom: false };
    return Plotly.newPlot(place, data, { ...layout, template: template() }, config);
  };
  const every = async (root) => {
    for (const place of root.querySelectorAll(".plot")) await draw(place);
    document.documentElement.dataset.drawn = "all";
  };
  const recolour = () => drawn.forEach((place) => Plotly.relayout(place, { template: template() }));
  document.querySelectorAll("details").forEach((box) => box.addEventListener("toggle", () => every(box)));
  dark.addEventListener("change", recolour);
  addEventListener("beforeprint", () => { printing = true; recolour(); drawn.forEach((place) => Plotly.Plots.resize(place)); });
  addEventListener("afterprint", () => { printing = false; recolour(); drawn.forEach((place) => Plotly.Plots.resize(place)); });
  every(document);
})();
