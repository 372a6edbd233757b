/* The heat map of a prompt: features × tokens for the metric that is chosen, strongest features first; of two prompts, features ×
   aligned tokens. A cell chooses its token and marks its feature's column, and a feature's name the token where it is strongest; one
   cell is a tab stop, and the arrow keys move from cell to cell. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  let panel, data, tokens, state, shown = null; // the cell that is told of
  let places; // of two prompts, by position in the strip: the positions in both, null where one has no counterpart

  const start = () => {
    panel = document.querySelector(".heat");
    data = saeVis.data("heat");
    const rankings = saeVis.data("rankings");
    const strip = document.querySelector(".strip");
    if (!panel || !data || !rankings || !strip) return;
    tokens = [...strip.children].map(textsOf);
    places = rankings.places;
    state = { position: rankings.position, metric: rankings.metric, feature: null };
    document.addEventListener("sae-vis-prompt", (event) => follow(event.detail));
    document.addEventListener("saevis:labels", labelAnew);
    panel.querySelector(".heat-size").addEventListener("change", draw);
    panel.querySelector(".heat-order").addEventListener("change", draw);
    panel.querySelector(".heat-more").addEventListener("click", showMore);
    const grid = panel.querySelector(".heat-grid");
    grid.addEventListener("click", (event) => choose(event.target.closest("[data-at], [data-row]")));
    grid.addEventListener("keydown", keydown);
    grid.addEventListener("pointerover", (event) => tell(event.target.closest("[data-at], [data-row]")));
    grid.addEventListener("pointerleave", () => tell(null));
    grid.addEventListener("focusin", (event) => tell(event.target.closest("[data-at], [data-row]")));
    grid.addEventListener("focusout", () => tell(null));
    saeVis.onEscape?.(() => {
      const told = Boolean(shown);
      tell(null);
      return told;
    });
    document.addEventListener("scroll", () => shown?.isConnected && place(), { capture: true, passive: true });
    const view = "In the heat map";
    saeVis.key?.({ keys: ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"], description: "Go from cell to cell", view });
    saeVis.key?.({ keys: ["Enter"], description: "Choose the token, and show the feature", view });
    draw();
  };

  const follow = (asked) => {
    const other = asked.metric !== state.metric;
    state = { ...asked };
    if (other) draw();
    else mark();
  };

  /* The html of the token at a place of the strip, or of both tokens if they differ; it is escaped. */
  const textsOf = (button) => {
    const texts = [...button.querySelectorAll(".text")].map((text) => text.innerHTML);
    return texts[0] === texts[1] ? texts.slice(1) : texts;
  };

  /* --- drawing --- */

  const metric = () => data.metrics[state.metric] ?? { rows: [], key: [] };
  const columns = () => tokens.slice(data.first);

  const shownRows = () => {
    const rows = metric().rows.slice(0, Number(panel.querySelector(".heat-size").value));
    const byPlace = panel.querySelector(".heat-order").value === "place";
    return byPlace ? rows.map((row, rank) => [row, rank]).sort(([a, i], [b, j]) => a[4] - b[4] || i - j).map(([row]) => row) : rows;
  };

  const element = (name, properties = {}, attributes = {}) => Object.assign(saeVis.element(name, attributes), properties);

  /* What stands behind a feature's number: the reader's own label, or else that of the data. */
  const labelText = (feature) => {
    const label = saeVis.isEdited?.(feature) ? saeVis.labelOf(feature) : data.labels[feature];
    return label ? ` ${label}` : "";
  };

  const labelAnew = () => {
    for (const row of panel.querySelectorAll("tbody tr")) row.querySelector("bdi").textContent = labelText(row.dataset.feature);
  };

  const showMore = () => {
    panel.querySelector(".heat-size").selectedIndex++;
    draw();
    if (panel.querySelector(".heat-more").hidden) panel.querySelector('td[tabindex="0"]')?.focus();
  };

  const draw = () => {
    const rows = shownRows();
    tell(null);
    const grid = panel.querySelector(".heat-grid");
    panel.querySelector(".heat-more").hidden = rows.length >= metric().rows.slice(0, panel.querySelector(".heat-size").lastChild.value).length;
    grid.style.setProperty("--tokens", columns().length);
    panel.querySelector(".heat-about").textContent = rows.length ? metric().about : "no feature has a score here";
    grid.setAttribute("aria-label", `Heat map, ${places ? "difference of " : ""}${metric().what}: ${rows.length} features by ${columns().length} ${places ? "pairs of tokens" : "tokens"}`);
    const head = element("thead");
    const top = element("tr", {}, { role: "row" });
    top.append(element("th", { textContent: "Feature" }, { role: "columnheader", class: "corner" }), ...columns().map((texts, at) => header(texts, at + data.first)));
    head.append(top);
    const body = element("tbody");
    body.append(...rows.map(line));
    grid.replaceChildren(head, body);
    drawKey();
    mark();
    rove(grid.querySelector(`td[data-at="${state.position}"]`) ?? grid.querySelector("td"));
  };

  const header = (texts, position) => {
    const title = places ? `Positions ${placeOf(position)}` : `Position ${position}`;
    const cell = element("th", {}, { role: "columnheader", "data-at": position, title });
    cell.append(...texts.map((innerHTML) => element("span", { innerHTML })));
    if (texts.length > 1) {
      cell.className = "two";
      cell.setAttribute("aria-label", [...cell.children].map((text) => text.textContent).join(" \u2192 "));
    }
    return cell;
  };

  const placeOf = (position) => (places ? places[position].map((at) => at ?? "\u2013").join(", ") : position);

  const line = ([feature, positions, strengths, texts, peak]) => {
    const row = element("tr", {}, { role: "row", "data-feature": feature });
    const name = element("th", {}, { role: "rowheader", scope: "row", "data-row": peak, tabindex: -1 });
    name.append(element("b", { textContent: feature }), element("bdi", { textContent: labelText(feature) }));
    const found = new Map(positions.map((position, place) => [position, place]));
    row.append(name, ...columns().map((_, at) => cellAt(at + data.first, found.get(at + data.first), strengths, texts)));
    return row;
  };

  const cellAt = (position, place, strengths, texts) => {
    const cell = element("td", { tabIndex: -1 }, { role: "gridcell", "data-at": position, "aria-label": spoken(texts[place]) });
    if (place === undefined) return cell;
    const strength = strengths[place];
    cell.dataset.text = texts[place];
    cell.className = kindOf(strength);
    cell.style.setProperty("--s", Math.abs(strength) / 100);
    return cell;
  };

  const kindOf = (strength) => (metric().signed ? (strength < 0 ? "lowers" : "raises") : "acts");
  const spoken = (text) => (text ? `${metric().what} ${text}` : metric().nothing);

  const drawKey = () => {
    const key = panel.querySelector(".heat-key");
    const steps = metric().signed ? [-1, -0.6, -0.25, 0.25, 0.6, 1] : [0.1, 0.325, 0.55, 0.775, 1];
    const [low, high] = metric().key;
    const swatches = steps.map((step) => {
      const swatch = element("i", { className: kindOf(step) });
      swatch.style.setProperty("--s", Math.abs(step));
      return swatch;
    });
    key.replaceChildren(low, ...swatches, high);
  };

  /* The chosen token's column, which is brought into view, and the chosen feature's row. Where all tokens are chosen, what is
     strongest is brought into view. */
  const mark = () => {
    const grid = panel.querySelector(".heat-grid");
    for (const cell of grid.querySelectorAll(".at")) cell.classList.remove("at");
    for (const cell of grid.querySelectorAll(`[data-at="${state.position}"]`)) cell.classList.add("at");
    for (const row of grid.querySelectorAll("tbody tr")) {
      row.setAttribute("aria-selected", String(Number(row.dataset.feature) === state.feature));
    }
    const chosen = grid.querySelector("thead .at");
    if (chosen) return reveal(chosen);
    const scroll = panel.querySelector(".heat-scroll");
    const names = grid.querySelector(".corner").offsetWidth;
    const strongest = grid.querySelector(`thead [data-at="${metric().rows[0]?.[4]}"]`);
    if (strongest) scroll.scrollLeft = strongest.offsetLeft - (names + scroll.clientWidth) / 2;
  };

  /* Bring a cell into view, beside the names and below the tokens, which stay. */
  const reveal = (cell) => {
    const scroll = panel.querySelector(".heat-scroll");
    const box = cell.getBoundingClientRect(), room = scroll.getBoundingClientRect();
    const { right: left, bottom: top } = panel.querySelector(".corner").getBoundingClientRect();
    const right = room.left + scroll.clientLeft + scroll.clientWidth, bottom = room.top + scroll.clientTop + scroll.clientHeight;
    if (cell.dataset.at !== undefined) scroll.scrollLeft += box.left < left ? box.left - left : Math.max(0, box.right - right);
    if (cell.closest("tbody")) scroll.scrollTop += box.top < top ? box.top - top : Math.max(0, box.bottom - bottom);
  };

  /* --- choosing --- */

  const choose = (cell) => {
    if (!cell) return;
    const row = cell.closest("tr");
    const position = Number(cell.dataset.at ?? cell.dataset.row);
    const feature = row.dataset.feature === undefined ? null : Number(row.dataset.feature);
    saeVis.goToToken(position, feature);
  };

  const rove = (cell) => {
    if (!cell) return;
    for (const other of panel.querySelectorAll('tbody [tabindex="0"]')) other.tabIndex = -1;
    cell.tabIndex = 0;
  };

  const MOVES = {
    ArrowLeft: (row, at) => [row, at - 1],
    ArrowRight: (row, at) => [row, at + 1],
    ArrowUp: (row, at) => [row - 1, at],
    ArrowDown: (row, at) => [row + 1, at],
    PageUp: (row, at) => [row - 10, at],
    PageDown: (row, at) => [row + 10, at],
    Home: (row) => [row, data.first],
    End: (row) => [row, Infinity],
  };

  const keydown = (event) => {
    const cell = event.target.closest("tbody [tabindex]");
    if (!cell || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return choose(cell);
    }
    if (!MOVES[event.key]) return;
    event.preventDefault();
    const rows = [...panel.querySelectorAll("tbody tr")];
    const name = data.first - 1; // the column of the features' names
    let [row, at] = MOVES[event.key](rows.indexOf(cell.parentElement), Number(cell.dataset.at ?? name));
    if (event.ctrlKey && event.key === "Home") row = 0;
    if (event.ctrlKey && event.key === "End") row = Infinity;
    row = Math.max(0, Math.min(rows.length - 1, row));
    at = Math.max(name, Math.min(tokens.length - 1, at));
    const next = rows[row].querySelector(at === name ? "th" : `td[data-at="${at}"]`);
    rove(next);
    next.focus();
    reveal(next);
  };

  /* --- telling: beside the cell, and never outside the window --- */

  const tell = (cell) => {
    const tip = panel.querySelector(".heat-tip");
    shown = cell?.closest("tbody") ? cell : null;
    tip.hidden = !shown;
    if (!shown) return;
    const feature = cell.parentElement.dataset.feature;
    tip.replaceChildren(element("b", { textContent: `Feature ${feature}` }), element("bdi", { textContent: labelText(feature) }));
    if (cell.dataset.at === undefined) tip.append(": go where it is strongest");
    else {
      const texts = tokens[cell.dataset.at].flatMap((innerHTML, which) => [which ? " \u2192 " : " on ", element("span", { className: "text", innerHTML })]);
      tip.append(...texts, ` (${placeOf(cell.dataset.at)}): `, spoken(cell.dataset.text));
    }
    place();
  };

  /* Below the cell, or above it where there is no room; nowhere when the cell is scrolled out of the map. */
  const place = () => {
    const tip = panel.querySelector(".heat-tip");
    const box = shown.getBoundingClientRect();
    const map = panel.querySelector(".heat-scroll").getBoundingClientRect();
    tip.hidden = box.right < map.left || box.left > map.right || box.bottom < map.top || box.top > map.bottom;
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, innerWidth - width - 8));
    const below = box.bottom + 6;
    tip.style.left = `${Math.round(left)}px`;
    tip.style.top = `${Math.round(below + height + 8 <= innerHeight ? below : Math.max(8, box.top - height - 6))}px`;
  };

  document.addEventListener("DOMContentLoaded", start);
})();
