/* Save a plot as an SVG file of its own: a button on each, shown when the mouse is over the plot or the button has the focus. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const SVG = "http://www.w3.org/2000/svg";
  const STYLES = [
    ...["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linejoin", "opacity", "paint-order"],
    ...["font-size", "font-weight", "text-anchor", "dominant-baseline", "visibility"],
  ];
  const FONT = "Helvetica, Arial, sans-serif";

  /* A plot as a document: the styles that it has on the page stand on each element, below everything lies the paper. */
  saeVis.svgText = (plot, title) => {
    const copy = plot.cloneNode(true);
    const originals = [plot, ...plot.querySelectorAll("*")];
    [copy, ...copy.querySelectorAll("*")].forEach((element, place) => {
      const style = getComputedStyle(originals[place]);
      const kept = STYLES.map((name) => [name, style.getPropertyValue(name)]).filter(([, value]) => value && value !== "normal");
      element.removeAttribute("class");
      for (const name of element.getAttributeNames()) if (/^(data-|on|tabindex|role|style)/.test(name)) element.removeAttribute(name);
      element.setAttribute("style", kept.map(([name, value]) => `${name}:${value}`).join(";"));
    });
    for (const line of [...plot.querySelectorAll(".line")]) copy.querySelectorAll("*")[originals.indexOf(line) - 1].dataset.gone = "";
    for (const gone of [...copy.querySelectorAll("[data-gone]")]) gone.remove(); // what only hovering shows
    const [left, top, width, height] = (plot.getAttribute("viewBox") ?? `0 0 ${plot.clientWidth} ${plot.clientHeight}`).split(/[\s,]+/).map(Number);
    const paper = document.createElementNS(SVG, "rect");
    const sheet = { x: left, y: top, width, height, fill: getComputedStyle(document.body).backgroundColor };
    for (const [name, value] of Object.entries(sheet)) paper.setAttribute(name, value);
    const name = document.createElementNS(SVG, "title");
    name.textContent = title;
    copy.prepend(name, paper);
    copy.setAttribute("xmlns", SVG);
    copy.setAttribute("viewBox", `${left} ${top} ${width} ${height}`);
    copy.setAttribute("width", 2 * width);
    copy.setAttribute("height", 2 * height);
    copy.setAttribute("font-family", FONT);
    return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(copy)}\n`;
  };

  /* What a plot shows, and of what. */
  const titleOf = (plot) => {
    const feature = plot.closest(".feature")?.dataset.feature;
    const label = feature === undefined ? "" : saeVis.labelOf?.(feature);
    const what = plot.getAttribute("aria-label") ?? plot.closest(".panel")?.querySelector("h3")?.textContent ?? "Plot";
    return `${feature === undefined ? "" : `Feature ${feature}${label ? ` (${label})` : ""}: `}${what}`;
  };
  const fileOf = (plot) => {
    const feature = plot.closest(".feature")?.dataset.feature;
    const kind = plot.closest(".panel")?.querySelector("h3")?.firstChild?.textContent ?? "plot";
    return `${feature === undefined ? "" : `feature-${feature}-`}${kind.trim().toLowerCase().replace(/[^a-z0-9]+/g, "-")}.svg`;
  };

  const decorate = () => {
    for (const plot of document.querySelectorAll(".panel svg.plot")) {
      const panel = plot.closest(".panel");
      if (plot.nextElementSibling?.matches(".save-plot")) continue;
      const button = saeVis.element("button", { type: "button", class: "save-plot", title: "Save this plot as SVG" }, "SVG");
      button.setAttribute("aria-label", `Save as SVG: ${panel.querySelector("h3")?.firstChild?.textContent.trim() ?? "plot"}`);
      plot.after(button);
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    saeVis.onShown(decorate);
    document.addEventListener("click", (event) => {
      const plot = event.target.closest?.(".save-plot")?.previousElementSibling;
      if (plot) saeVis.download(fileOf(plot), saeVis.svgText(plot, titleOf(plot)), "image/svg+xml");
    });
  });
})();
