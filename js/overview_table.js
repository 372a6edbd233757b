/* The table of the overview: only the rows that can be seen are there. One tab stop; the arrow keys go from row to row. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const overview = saeVis.overview;
  if (!overview) return;
  const ROWS = 2 ** 20; // more than there are
  const OVERSCAN = 6; // rows beyond what is seen
  const FEW = 1 / 3; // of the features with a label, at most: they get no column
  const MOST_TOKENS = 8; // of a row; the cell cuts what has no room
  const DESCENDING = new Set(["density", "max"]); // what is looked for is at the large end
  const scroller = overview.root.querySelector(".overview-scroll");
  const body = overview.root.querySelector(".overview-rows");
  const heads = overview.root.querySelector(".overview-heads");
  const narrow = matchMedia("(max-width: 760px)"); // as css/overview.css has it
  const drawn = new Map(); // row -> element
  const keys = new Map(); // column -> what is compared
  let sort = { by: "id", down: false };
  let sorted = null; // all rows in order
  let rows = new Int32Array(); // those that pass, in order
  let active = -1; // the row with the tab stop
  let marks = {}; // name of a list -> Set of token ids
  let told = 0, height = 30, kept = 0, asked = false, wantsFocus = false, lowest = -6;

  /* --- order --- */

  /* A number for each row and column; text is numbered by its order, which is found once. */
  const keyOf = (by) => {
    if (!keys.has(by)) keys.set(by, overview.columns[by] ?? (by === "id" ? Float32Array.from(overview.ids.keys()) : ranks(textsOf(by))));
    return keys.get(by);
  };

  const textsOf = (by) => {
    if (by === "label") return Array.from(overview.ids, (id) => overview.label(id).toLowerCase());
    const list = overview.lists[by];
    const first = (row) => (list.starts[row] < list.starts[row + 1] ? plainText(list.ids[list.starts[row]]) : "");
    return Array.from(overview.ids, (_, row) => first(row));
  };

  const ranks = (texts) => {
    const order = Array.from(texts.keys()).sort((a, b) => (texts[a] < texts[b] ? -1 : texts[a] > texts[b] ? 1 : 0));
    const ranked = new Float32Array(texts.length);
    let rank = 0;
    order.forEach((row, place) => {
      if (place && texts[row] !== texts[order[place - 1]]) rank++;
      ranked[row] = texts[row] ? rank : NaN;
    });
    return ranked;
  };

  const plainText = (id) => overview.tokenHtml(id).replace(/<[^>]*>/g, "").toLowerCase();

  /* Numbers are sorted many times faster without a function that compares them: a float32's bits, turned so that they rise with
     it, and its row behind them fit into one. */
  const sortRows = () => {
    const bits = new Uint32Array(Float32Array.from(keyOf(sort.by), (value) => value + 0).buffer); // -0 is 0
    const numbers = Float64Array.from(bits, (value, row) => {
      const rising = value >>> 31 ? ~value >>> 0 : (value | 0x80000000) >>> 0;
      const isNone = (value & 0x7fffffff) > 0x7f800000; // last in both directions
      return (isNone ? 0xffffffff : sort.down ? 0xffffffff - rising : rising) * ROWS + row;
    });
    sorted = Int32Array.from(numbers.sort(), (number) => number % ROWS);
  };

  overview.order = (passing) => {
    if (!sorted || sorted.length !== overview.n) sortRows();
    return sorted.filter((row) => passing[row]);
  };

  overview.sortBy = (by, down = DESCENDING.has(by)) => {
    sort = { by, down };
    sorted = null;
    overview.mark(marks); // the rows that are drawn stand in another order
    for (const head of heads.querySelectorAll("[data-sort]")) {
      if (head.dataset.sort === by) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    layOut();
    update();
    scroller.scrollTop = 0;
    draw();
  };

  /* --- a row --- */

  const rowElement = (row) => {
    const element = document.createElement("div");
    const id = overview.ids[row];
    const dead = overview.columns.n_active[row] === 0;
    element.className = `overview-row${dead ? " dead" : ""}`;
    element.setAttribute("role", "row");
    element.dataset.row = row;
    element.tabIndex = -1;
    element.append(idCell(id), labelCell(id, row), densityCell(row, dead), maxCell(row, dead), tokensCell(row, "top_tokens"), tokensCell(row, "promoted"));
    placeLabel(element);
    return element;
  };

  const cell = (text = "") => {
    const element = document.createElement("span");
    element.setAttribute("role", "gridcell");
    element.textContent = text;
    return element;
  };

  const idCell = (id) => {
    const link = Object.assign(document.createElement("a"), { href: `#feature=${id}`, textContent: id, tabIndex: -1 });
    const element = cell();
    element.append(link);
    return element;
  };

  const labelCell = (id, row) => {
    const label = overview.label(id);
    const element = cell();
    element.className = "label-cell";
    const text = Object.assign(document.createElement("bdi"), { textContent: label, title: label });
    if (label) element.append(text);
    const twin = overview.columns.twin?.[row];
    if (twin >= 0) element.append(twinOf(twin));
    return element;
  };

  /* The feature that a duplicate has almost the direction of: a link, where the page holds it. */
  const twinOf = (id) => {
    const element = document.createElement("span");
    element.className = "twin";
    const link = Object.assign(document.createElement("a"), { href: `#feature=${id}`, textContent: id, tabIndex: -1, title: `Almost the same decoder direction as feature ${id}` });
    link.dataset.go = id;
    element.append(" ≈ ", overview.row(id) < 0 ? String(id) : link);
    return element;
  };

  const densityCell = (row, dead) => {
    const element = cell(dead ? "never fires" : "");
    if (dead) return element;
    const density = overview.columns.density[row];
    const bar = document.createElement("i");
    bar.style.setProperty("--share", Math.max(0.02, 1 - Math.log10(density) / lowest).toFixed(3));
    element.className = "density";
    element.append(bar, overview.formatCell("density", density));
    return element;
  };

  const maxCell = (row, dead) => {
    const element = cell(dead ? "" : overview.formatCell("max", overview.columns.max?.[row] ?? NaN));
    element.className = "max-cell";
    return element;
  };

  const tokensCell = (row, name) => {
    const element = cell();
    element.className = "overview-tokens";
    const all = tokensOf(row, name);
    const shown = all.slice(0, MOST_TOKENS);
    const chips = [...marked(row, name).filter((id) => !shown.includes(id)), ...shown].map((id) => chip(name, id));
    if (name === "promoted") chips.unshift(...marked(row, "suppressed").map((id) => chip("suppressed", id)));
    element.innerHTML = chips.join(" ");
    return element;
  };

  const tokensOf = (row, name) => {
    const { starts, ids } = overview.lists[name];
    return [...ids.subarray(starts[row], starts[row + 1])];
  };

  /* What a row was found by is outlined, and stands first where it would not be seen. */
  const marked = (row, name) => (marks[name] ? tokensOf(row, name).filter((id) => marks[name].has(id)) : []);
  const chip = (name, id) => {
    const title = name === "suppressed" ? ' title="suppressed"' : "";
    return `<span class="${name}${marks[name]?.has(id) ? " marked" : ""}"${title}>${overview.tokenHtml(id)}</span>`;
  };

  /* Outline these tokens: sets of ids by the name of a list. The next change of the filters draws them. */
  overview.mark = (sets) => {
    marks = sets;
    drawn.forEach((element) => element.remove());
    drawn.clear();
  };

  /* --- drawing --- */

  const placeOf = (row) => rows.indexOf(row);

  const draw = () => {
    if (!overview.visible || !rows) return;
    const inside = scroller.clientHeight - heads.offsetHeight;
    const first = Math.max(0, Math.floor(scroller.scrollTop / height) - OVERSCAN);
    const last = Math.min(rows.length, Math.ceil((scroller.scrollTop + inside) / height) + OVERSCAN);
    const wanted = new Map();
    for (let place = first; place < last; place++) wanted.set(rows[place], place);
    const at = active < 0 ? -1 : placeOf(active);
    if (at >= 0) wanted.set(active, at); // what has the focus stays
    for (const [row, element] of drawn) {
      if (wanted.has(row)) continue;
      element.remove();
      drawn.delete(row);
    }
    let next = body.firstElementChild; // rows stand in their order, for who reads or copies them
    for (const [row, place] of [...wanted].sort(([, one], [, other]) => one - other)) {
      if (!drawn.has(row)) body.insertBefore(drawn.set(row, rowElement(row)).get(row), next);
      const element = drawn.get(row);
      next = element.nextElementSibling;
      element.style.transform = `translateY(${place * height}px)`;
      element.setAttribute("aria-rowindex", place + 2);
      element.tabIndex = row === active || (at < 0 && place === first) ? 0 : -1;
    }
  };

  const redraw = () => {
    drawn.forEach((element) => element.remove());
    drawn.clear();
    keys.clear();
    sorted = null;
    countTold();
    layOut();
    update();
  };

  const countTold = () => {
    const isTold = (id, row) => overview.label(id) !== "" || overview.columns.twin?.[row] >= 0;
    told = overview.ids.reduce((sum, id, row) => sum + isTold(id, row), 0);
  };

  /* A column for the labels where many have one, or where the others are filtered out or last. Duplicates stand in the same place. */
  const layOut = () => {
    const areFirst = fieldOf("labelled").checked || sort.by === "label";
    overview.root.classList.toggle("without-labels", !told);
    overview.root.classList.toggle("few-labels", told > 0 && told < overview.n * FEW && !areFirst);
    [heads.firstElementChild, ...drawn.values()].forEach(placeLabel);
  };

  /* Cells stand in the order in which they are seen, which is that of Tab and of screen readers: few labels after the numbers,
     where all are in one line. */
  const placeLabel = (row) => {
    const areFew = overview.root.classList.contains("few-labels") && !narrow.matches;
    const before = row.querySelector(areFew ? ":scope > .max-cell" : ":scope > :first-child");
    const label = row.querySelector(":scope > .label-cell");
    if (before.nextElementSibling === label) return;
    const focused = document.activeElement;
    before.after(label);
    if (label.contains(focused)) focused.focus(); // what is moved loses it
  };

  const measure = () => {
    height = Number.parseFloat(getComputedStyle(body).getPropertyValue("--row")) || 30;
  };

  const update = () => {
    measure();
    rows = overview.rows();
    body.style.height = `${rows.length * height}px`;
    overview.root.querySelector(".overview-table").setAttribute("aria-rowcount", rows.length + 1);
    overview.root.querySelector(".overview-none").hidden = rows.length > 0;
    sayCount();
    draw();
  };

  const sayCount = () => {
    const all = overview.n.toLocaleString("en");
    const text = rows.length === overview.n ? `${all} features` : `${rows.length.toLocaleString("en")} of ${all} features`;
    overview.root.querySelector(".overview-count").textContent = text;
  };

  /* --- keys and pointer --- */

  const focusRow = (row) => {
    active = row;
    const place = placeOf(row);
    const inside = scroller.clientHeight - heads.offsetHeight;
    if (place * height < scroller.scrollTop) scroller.scrollTop = place * height;
    else if ((place + 1) * height > scroller.scrollTop + inside) scroller.scrollTop = (place + 1) * height - inside;
    draw();
    drawn.get(row).focus({ preventScroll: true });
  };

  /* Focus the row that had it, or else one that is asked for, or the first; at once, or as soon as the table is there to be seen. */
  overview.focusTable = (row = -1) => {
    wantsFocus = !overview.visible;
    if (rows.length && overview.visible) focusRow([active, row].find((one) => one >= 0 && placeOf(one) >= 0) ?? rows[0]);
  };

  const rowAt = (target) => {
    const element = target.closest?.(".overview-rows > .overview-row");
    return element ? Number(element.dataset.row) : null;
  };

  const KEYS = {
    ArrowDown: (at) => at + 1,
    ArrowUp: (at) => at - 1,
    PageDown: (at, page) => at + page,
    PageUp: (at, page) => at - page,
    Home: () => 0,
    End: (_, __, last) => last,
  };

  const keydown = (event) => {
    const row = rowAt(event.target);
    if (row === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = rows.length - 1;
    if (event.key === "Enter") {
      event.preventDefault();
      open(row);
    } else if (KEYS[event.key]) {
      event.preventDefault();
      const page = Math.max(1, Math.floor(scroller.clientHeight / height) - 2);
      focusRow(rows[Math.max(0, Math.min(last, KEYS[event.key](placeOf(row), page, last)))]);
      document.activeElement.scrollIntoView({ block: "nearest" }); // where the page scrolls too
    }
  };

  const open = (row) => {
    active = row;
    overview.open(overview.ids[row]);
  };

  const mark = (row) => {
    for (const [other, element] of drawn) element.classList.toggle("hovered", other === row);
  };

  const start = () => {
    heads.addEventListener("click", (event) => {
      const by = event.target.closest("[data-sort]")?.dataset.sort;
      if (by && overview.n) overview.sortBy(by, by === sort.by ? !sort.down : undefined);
    });
    body.addEventListener("click", (event) => {
      const row = rowAt(event.target);
      if (row === null || event.target.closest("a[data-go]")) return; // js/page.js goes there
      if (event.ctrlKey || event.metaKey || event.shiftKey) return; // the browser's own way with a link
      if (event.target.closest("a")) event.preventDefault();
      else if (String(getSelection())) return; // text was selected
      open(row);
    });
    body.addEventListener("keydown", keydown);
    body.addEventListener("focusin", (event) => {
      const row = rowAt(event.target);
      if (row !== null) active = row;
      overview.hover(row);
    });
    body.addEventListener("pointerover", (event) => overview.hover(rowAt(event.target)));
    body.addEventListener("pointerleave", () => overview.hover(null));
    scroller.addEventListener("scroll", () => {
      if (overview.visible) kept = scroller.scrollTop;
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        draw();
      });
    }, { passive: true });
    narrow.addEventListener("change", layOut);
    new ResizeObserver(() => overview.visible && overview.n && update()).observe(scroller);
  };

  overview.onChange(() => {
    if (!overview.n) return;
    update();
  });
  overview.onHover(mark);
  overview.onLabels(redraw);
  overview.onShow(() => {
    scroller.scrollTop = kept;
    if (!overview.n) return;
    update();
    if (placeOf(active) >= 0 || wantsFocus) overview.focusTable();
  });
  overview.ready.then(() => {
    const densities = overview.columns.density.filter((density) => density > 0);
    lowest = Math.min(-1, Math.floor(Math.log10(densities.reduce((least, density) => Math.min(least, density), 1))) - 1);
    redraw();
  });

  /* --- the fields above it --- */

  const form = overview.root.querySelector(".overview-filters");
  const fieldOf = (name) => form.querySelector(`[name="${name}"]`);

  const number = (name, unit = 1) => {
    const field = fieldOf(name);
    const value = Number(field.value.trim().replace(",", ".") || NaN) / unit;
    field.setAttribute("aria-invalid", String(Boolean(field.value.trim()) && Number.isNaN(value)));
    return value;
  };

  const between = (name, low, high) => {
    if (Number.isNaN(low) && Number.isNaN(high)) return null;
    const values = overview.columns[name];
    const near = overview.near(name), [least, largest] = [near(low), near(high)];
    return (row) => !(near(values[row]) < least) && !(near(values[row]) > largest) && !Number.isNaN(values[row]);
  };

  const applyFields = () => {
    layOut();
    overview.setFilter("density", between("density", number("density_min", 100), number("density_max", 100)));
    overview.setFilter("max", between("max", number("max_min"), number("max_max")));
    overview.setFilter("fires", fieldOf("fires").checked ? (row) => overview.columns.n_active[row] > 0 : null);
    overview.setFilter("labelled", fieldOf("labelled").checked ? (row) => overview.label(overview.ids[row]) !== "" : null);
  };

  form.addEventListener("input", () => overview.ready.then(applyFields));
  document.addEventListener("DOMContentLoaded", start);
})();
