/* The overview of a page of many features: its columns, what narrows them, and the way between it and a feature (#overview and
   #feature=8). js/overview_table.js draws the table, js/search.js searches; plots of one's own use saeVis.overview as well. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const root = [...document.querySelectorAll(".overview")].at(-1); // scripts stand behind all that shows text
  if (!root) return;
  const feature = document.querySelector(".shown-feature");
  const filters = new Map(); // name -> {passes, label, onClear}
  const callbacks = { change: new Set(), hover: new Set(), show: new Set(), labels: new Set() };
  const rowOf = new Map(); // id -> row
  let passing = null; // Uint8Array of the rows that pass all filters, null before it is asked for
  let loading = null, loaded, packedLabels = {}, hovered = null;

  const overview = (saeVis.overview = {
    root, n: 0, ids: new Int32Array(), columns: {}, lists: {}, texts: {}, examples: null, meta: { numbers: {} }, visible: false,
    ready: new Promise((resolve) => (loaded = resolve)),
    order: (rows) => rows, // the table's, once it is there
  });

  /* --- data --- */

  /* Packed text by name: of an element of the page, or of a file of a site. */
  overview.asset = async (name) => {
    const element = document.querySelector(`script[data-asset="${name}"]`);
    return element ? element.textContent : saeVis.assetFile(name);
  };

  /* Read the columns, at the first need: where the overview is shown or something is searched. */
  overview.load = () => {
    loading ??= read().then(() => loaded(overview), (error) => {
      loading = null; // tried again at the next need
      saeVis.say(saeVis.canInflate ? error.message : saeVis.cannotInflate);
    });
    return loading;
  };

  const read = async () => {
    const [packed] = await Promise.all([overview.asset("overview"), saeVis.rest]); // with the tokens of a site
    let data;
    try {
      data = JSON.parse(await saeVis.inflate(packed));
    } catch {
      throw new Error("The overview cannot be unpacked: what is stored of it is damaged.");
    }
    overview.n = data.ids.length;
    overview.ids = Int32Array.from(data.ids);
    overview.ids.forEach((id, row) => rowOf.set(id, row));
    packedLabels = data.labels;
    for (const [name, values] of Object.entries(data.numbers)) {
      overview.columns[name] = Float64Array.from(values, (value) => value ?? NaN);
    }
    for (const [name, [lengths, ids]] of Object.entries(data.lists)) {
      const starts = new Int32Array(lengths.length + 1);
      lengths.forEach((length, row) => (starts[row + 1] = starts[row] + length));
      overview.lists[name] = { starts, ids: Int32Array.from(ids) };
    }
    Object.assign(overview, { texts: data.texts, examples: data.examples, meta: data.meta });
    passing = null;
  };

  overview.row = (id) => rowOf.get(id) ?? -1;
  /* The reader's own label, or else that of the data. */
  overview.label = (id) => (saeVis.isEdited?.(id) ? saeVis.labelOf(id) : (saeVis.labels?.[id] ?? packedLabels[id] ?? ""));
  overview.hasLabels = () => [saeVis.labels, packedLabels, saeVis.allLabels?.()].some((labels) => Object.values(labels ?? {}).some(Boolean));

  overview.vocabulary = () => saeVis.vocabulary();
  overview.tokenHtml = (id) => saeVis.tokenHtml(id);

  /* A number in a column of the table: zeros at its end stay, so that points stand below each other and widths are alike. */
  overview.formatCell = (name, value) => {
    const shown = name === "density" ? 100 * value : value;
    const size = Math.abs(shown);
    if (!(size >= 1e-4 && size < 999.5)) return overview.format(name, value);
    const decimals = 2 - Math.floor(Math.log10(size)); // of the number itself: 99.99 is 100.0, as on the page of its feature
    return `${Number(rounded(shown)).toFixed(decimals).replace("-", "\u2212")}${name === "density" ? "\u2009%" : ""}`;
  };

  /* Three significant digits, as the page writes numbers; densities in percent. */
  overview.format = (name, value) => {
    if (Number.isNaN(value)) return "–";
    if (name === "density") return `${short(100 * value)}\u2009%`;
    return Number.isInteger(value) && Math.abs(value) < 1e15 ? value.toLocaleString("en").replace("-", "\u2212") : short(value);
  };
  const short = (value) => {
    const size = Math.abs(value);
    const text = size && (size < 1e-4 || size >= 1e6) ? value.toExponential(1) : String(Number(rounded(value)));
    return text.replaceAll("-", "\u2212");
  };
  /* A number in the middle goes to the even digit, as on the page of its feature. */
  const rounded = (value) => {
    const [, kept, power] = /^(\d\.\d[02468])50*(e.+)$/.exec(Math.abs(value).toExponential(60)) ?? [];
    return (kept ? Math.sign(value) * Number(kept + power) : value).toPrecision(3);
  };

  /* --- filters --- */

  overview.setFilter = (name, filter, { label = "", onClear = null } = {}) => {
    if (filter === null && !filters.has(name)) return;
    const passes = filter instanceof Set ? (row) => filter.has(row) : filter;
    if (passes) filters.set(name, { passes, label, onClear });
    else filters.delete(name);
    drawChips();
    passing = null;
    tell("change");
  };

  /* As what the numbers of a column are compared with a bound: 0.7 % are not quite 0.007. */
  overview.near = (name) => (name === "density" ? Math.fround : Number);

  overview.passesBut = (row, name) => {
    for (const [other, { passes }] of filters) if (other !== name && !passes(row)) return false;
    return true;
  };

  const allPassing = () => (passing ??= Uint8Array.from({ length: overview.n }, (_, row) => overview.passesBut(row, null)));
  overview.passes = (row) => allPassing()[row] === 1;
  overview.rows = () => overview.order(allPassing());

  const drawChips = () => {
    const chips = [...filters].filter(([, { label }]) => label).map(([name, { label, onClear }]) => {
      const chip = Object.assign(document.createElement("button"), { type: "button", className: "chip" });
      const text = document.createElement("span");
      if (label instanceof Node) text.append(label.cloneNode(true));
      else text.textContent = label;
      chip.append(text, Object.assign(document.createElement("b"), { textContent: "×" }));
      chip.setAttribute("aria-label", `Remove the filter: ${text.textContent}`);
      chip.addEventListener("click", () => {
        overview.setFilter(name, null);
        onClear?.();
        saeVis.overview.focusTable?.();
      });
      return chip;
    });
    root.querySelector(".overview-chips").replaceChildren(...chips);
  };

  /* --- telling the parts --- */

  const listener = (kind) => (callback) => {
    callbacks[kind].add(callback);
    return () => callbacks[kind].delete(callback);
  };
  const tell = (kind, ...what) => callbacks[kind].forEach((callback) => callback(...what));

  overview.onChange = listener("change");
  overview.onHover = listener("hover");
  overview.onLabels = listener("labels");
  overview.onShow = (callback) => {
    if (overview.visible) callback();
    return listener("show")(callback);
  };
  document.addEventListener("saevis:labels", () => overview.n && tell("labels"));

  overview.hover = (row) => {
    if (row === hovered) return;
    hovered = row;
    tell("hover", row);
  };

  /* --- between the overview and a feature --- */

  overview.open = (id) => saeVis.go(id);

  /* Show the overview, or the feature that is in the page. */
  overview.show = (visible = true) => {
    const before = overview.visible;
    const hidesFocus = visible && feature.contains(document.activeElement);
    const leavesFocus = !visible && root.contains(document.activeElement);
    const left = Number(feature.querySelector(".feature")?.dataset.feature);
    overview.visible = visible;
    root.classList.add("started");
    root.hidden = !visible;
    feature.hidden = visible;
    document.body.classList.toggle("in-overview", visible);
    const link = document.querySelector(".to-overview");
    if (visible) link?.setAttribute("aria-current", "page");
    else link?.removeAttribute("aria-current");
    if (!visible) return leavesFocus && saeVis.focusHeading(feature);
    saeVis.hideHover?.();
    if (before) return;
    tell("show");
    if (hidesFocus) overview.ready.then(() => overview.visible && overview.focusTable?.(overview.row(left)));
    requestAnimationFrame(() => setTimeout(() => overview.visible && overview.load()));
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-view]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    saeVis.go("overview");
  });

  // The style sheet hides the feature of a page that opens on the overview until it is known what the address asks for.
  document.addEventListener("DOMContentLoaded", () => setTimeout(() => root.classList.add("started")));
})();
