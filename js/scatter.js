/* The plots of the overview: a scatter of two columns and the map of decoder directions, on canvases, with a rectangle that
   filters the table, and the buttons that narrow it to dead, dense and duplicate features. The table says the same in text. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const { scale, placed, ticks, tickText, colours, STEPS, rgbOf, masks, stamp, block } = saeVis.drawing;
  const STRIP = 16; // px beside the axes, for what has no place on them
  const EDGE = { left: 46, right: 10, top: 8, bottom: 34 };
  const REACH = 12; // px from the pointer to a point that it means
  const CELL = 16; // px: points are looked for in squares
  const CLICK = 4; // px that a pointer may move and still click
  const MOST_ZOOM = 500;
  const DENSE = 0.1;
  const FILTER_PAUSE = 90; // ms between two filterings while a rectangle is drawn
  const SHAPE = { active: 0, duplicate: 1, dense: 2, denseDuplicate: 3, dead: 4 };
  const OFFERED = ["density", "max", "mean", "skewness", "kurtosis", "logit_kurtosis", "decoder_norm", "nearest_cosine"];
  let overview, root, frame, base, marks, tip, look, plot;
  let kinds, faint, hovered = null, dragged = null, drawn = null, asked = false, isFiltering = false;

  const all = (selector) => [...root.querySelectorAll(selector)];
  const one = (selector) => root.querySelector(selector);
  const column = (name) => (name === "id" ? overview.ids : overview.columns[name]);
  const labelOf = (name) => (name === "id" ? "id" : (overview.meta.numbers[name]?.label ?? name));
  const textOf = (name, value) => (name === "id" ? String(value) : overview.format(name, value));
  const isPercent = (name) => name === "density";

  /* --- the two plots --- */

  /* Units are those of the axes' scales. A brush is [x0, y0, x1, y1] in units, and the rows in it. */
  const makePlot = (name, x, y, colour) => ({ name, x, y, colour, zoom: 1, middle: null, brush: null, inside: null, count: 0 });
  const plots = {};

  const setAxes = (which, x, y) => {
    Object.assign(which, { x, y, zoom: 1, middle: null, brush: null });
    const isMap = which.name === "map";
    which.scales = [x, y].map((name) => scale(column(name), !isMap && wantsLog(name)) ?? { log: false, low: 0, high: 1, to: Number, back: Number });
    which.units = [x, y].map((name, axis) => placed(column(name), which.scales[axis]));
    which.missing = which.units.map((units) => units.some(Number.isNaN));
  };

  /* Logarithmic where the column is meant to be, and its values differ enough for it to help. */
  const wantsLog = (name) => {
    if (!overview.meta.numbers[name]?.log) return false;
    const found = scale(column(name), true);
    return Boolean(found) && found.high - found.low > 0.5;
  };

  /* --- from units to pixels and back --- */

  const layout = (which) => {
    const { width, height } = look;
    const bare = which.name === "map";
    const left = (bare ? 1 : EDGE.left) + (which.missing[0] && !bare ? STRIP : 0);
    const bottom = height - (bare ? 1 : EDGE.bottom) - (which.missing[1] && !bare ? STRIP : 0);
    const [right, top] = bare ? [width - 1, 1] : [width - EDGE.right, EDGE.top];
    const [sx, sy] = which.scales;
    let perX = (right - left) / (sx.high - sx.low), perY = (bottom - top) / (sy.high - sy.low);
    if (bare) perX = perY = Math.min(perX, perY);
    perX *= which.zoom;
    perY *= which.zoom;
    const middle = which.middle ?? [(sx.low + sx.high) / 2, (sy.low + sy.high) / 2];
    return { left, right, top, bottom, perX, perY, middle, x0: (left + right) / 2 - middle[0] * perX, y0: (top + bottom) / 2 + middle[1] * perY };
  };

  const toUnits = (at, x, y) => [(x - at.x0) / at.perX, (at.y0 - y) / at.perY];

  /* Where the rows are drawn, in px; NaN for what is outside. Rows without a place lie in the strips. */
  const positions = (which, at) => {
    const { n } = overview;
    const xs = new Float32Array(n), ys = new Float32Array(n);
    const [ux, uy] = which.units;
    const isMap = which.name === "map";
    for (let row = 0; row < n; row++) {
      let x = at.x0 + ux[row] * at.perX, y = at.y0 - uy[row] * at.perY;
      const noX = x !== x, noY = y !== y;
      if (noX || noY) {
        if (isMap) x = NaN;
        else {
          const spread = (row * 0.61803398875) % 1; // even, and the same each time
          if (noY) y = at.bottom + 3 + spread * (STRIP - 6);
          if (noX && noY) x = at.left + ((row + 0.5) / n) * (at.right - at.left);
          else if (noX) x = at.left - 3 - spread * (STRIP - 6);
        }
      }
      const outside = (!noX && (x < at.left || x > at.right)) || (!noY && (y < at.top || y > at.bottom));
      xs[row] = outside ? NaN : x;
      ys[row] = y;
    }
    return { xs, ys };
  };

  /* --- drawing --- */

  const readLook = () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => rgbOf(style.getPropertyValue(name).trim() || "#888");
    const paper = rgbOf(getComputedStyle(document.body).backgroundColor);
    const isDark = paper[0] + paper[1] + paper[2] < 384;
    const box = frame.getBoundingClientRect();
    const ratio = Math.min(3, globalThis.devicePixelRatio || 1);
    const font = getComputedStyle(root).fontFamily;
    look = { paper, isDark, line: colour("--line"), text: style.getPropertyValue("--text"), muted: style.getPropertyValue("--muted") };
    Object.assign(look, { plain: colour("--link"), grey: colour("--faint"), link: style.getPropertyValue("--link"), font: `11px ${font}` });
    Object.assign(look, { scale: colours(isDark), width: Math.round(box.width), height: Math.round(box.height), ratio });
  };

  /* Another size empties a canvas, so it is set only where all is drawn at once: no frame shows an empty one. */
  const fit = (canvas) => {
    const [width, height] = [look.width, look.height].map((side) => Math.round(side * look.ratio));
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
  };

  /* The next frame draws; more than one wish until then is one. */
  const wish = () => {
    if (asked || !overview.visible) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };

  const draw = () => {
    if (!look?.width || !look.height) return;
    const started = performance.now();
    [base, marks].forEach(fit);
    const at = layout(plot);
    drawn = { at, ...positions(plot, at), cells: null };
    const context = base.getContext("2d", { alpha: false, willReadFrequently: true });
    const image = context.createImageData(base.width, base.height);
    const isMap = plot.name === "map";
    const lines = isMap ? [[], []] : axisTicks(at);
    drawPaper(image, at, lines);
    drawPoints(image);
    context.putImageData(image, 0, 0);
    context.setTransform(look.ratio, 0, 0, look.ratio, 0, 0);
    if (!isMap) drawAxes(context, at, lines);
    drawMarks();
    saeVis.plotTimes = { draw: performance.now() - started };
  };

  const axisTicks = (at) => {
    const [x, y] = plot.scales;
    const [low, bottom] = toUnits(at, at.left, at.bottom);
    const [high, top] = toUnits(at, at.right, at.top);
    return [ticks(low, high, x.log, Math.max(2, (at.right - at.left) / 64)), ticks(bottom, top, y.log, Math.max(2, (at.bottom - at.top) / 40))];
  };

  const drawPaper = (image, at, [acrosses, ups]) => {
    const { data, width, height } = image;
    const px = (value) => Math.round(value * look.ratio);
    block(data, width, 0, 0, width, height, look.paper);
    const soft = look.line;
    for (const { unit } of acrosses) {
      const x = px(at.x0 + unit * at.perX);
      block(data, width, x, px(at.top), x + 1, px(at.bottom), soft);
    }
    for (const { unit } of ups) {
      const y = px(at.y0 - unit * at.perY);
      block(data, width, px(at.left), y, px(at.right), y + 1, soft);
    }
    const [left, top, right, bottom] = [at.left, at.top, at.right, at.bottom].map(px);
    const thick = Math.max(1, Math.floor(look.ratio));
    for (const [a, b, c, d] of [[left, top, left + thick, bottom], [left, bottom - thick, right, bottom]]) block(data, width, a, b, c, d, look.line);
    if (plot.name !== "map") return;
    for (const [a, b, c, d] of [[left, top, right, top + thick], [right - thick, top, right, bottom]]) block(data, width, a, b, c, d, look.line);
  };

  /* Faint ones below, then the others, and on top those of a kind that is to be seen. */
  const drawPoints = (image) => {
    const { n } = overview;
    const radius = (n > 5000 ? 1.6 : n > 800 ? 2.4 : 3.4) * Math.min(2, plot.zoom ** 0.25) * look.ratio;
    const shapes = masks(radius), small = masks(radius * 0.8);
    const rgb = rowColours();
    const strength = n > 5000 ? 165 : n > 800 ? 200 : 230;
    const [faintR, faintG, faintB] = look.grey;
    const { xs, ys } = drawn;
    const put = (row, mask, r, g, b, part) => {
      if (xs[row] === xs[row]) stamp(image.data, image.width, image.height, Math.round(xs[row] * look.ratio), Math.round(ys[row] * look.ratio), mask, r, g, b, part);
    };
    for (let row = 0; row < n; row++) if (faint[row]) put(row, small[kinds[row]], faintR, faintG, faintB, 60);
    for (const special of [false, true]) {
      for (let row = 0; row < n; row++) {
        if (faint[row] || (kinds[row] !== SHAPE.active && kinds[row] !== SHAPE.dead) !== special) continue;
        put(row, shapes[kinds[row]], rgb[3 * row], rgb[3 * row + 1], rgb[3 * row + 2], special ? 256 : strength);
      }
    }
  };

  /* The colour of each row, kept until the choice or the scheme changes. */
  const rowColours = () => {
    if (plot.rgb && plot.rgbFor === `${plot.colour} ${look.isDark}`) return plot.rgb;
    const rgb = new Uint8Array(3 * overview.n);
    const range = colourRange(plot.colour);
    const values = range && placed(column(plot.colour), range);
    for (let row = 0; row < overview.n; row++) {
      const unit = values ? values[row] : NaN;
      if (unit === unit) {
        const step = Math.round(Math.min(1, Math.max(0, (unit - range.from) / (range.end - range.from))) * (STEPS - 1));
        rgb.set(look.scale.subarray(3 * step, 3 * step + 3), 3 * row);
      } else rgb.set((values ? look.grey : look.plain).subarray(0, 3), 3 * row);
    }
    plot.rgbFor = `${plot.colour} ${look.isDark}`;
    return (plot.rgb = rgb);
  };

  /* From the second to the last but second hundredth, so that a few far ones do not take all colours. */
  const colourRange = (name) => {
    if (!name) return null;
    const found = scale(column(name), wantsLog(name));
    if (!found) return null;
    const units = placed(column(name), found).filter((unit) => unit === unit).sort();
    const at = (share) => units[Math.round(share * (units.length - 1))];
    const [from, end] = [at(0.02), at(0.98)];
    return from < end ? { ...found, from, end } : { ...found, from: found.low, end: found.high };
  };

  const drawAxes = (context, at, [acrosses, ups]) => {
    context.font = look.font;
    context.fillStyle = look.muted;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const text = (name, value) => tickText(value, isPercent(name));
    const before = at.left - (plot.missing[0] ? STRIP : 0) - 5;
    for (const { value, unit } of ups) context.fillText(text(plot.y, value), before, at.y0 - unit * at.perY, before - 1);
    context.textAlign = "center";
    const below = at.bottom + (plot.missing[1] ? STRIP : 0) + 9;
    let end = -Infinity;
    for (const { value, unit } of acrosses) {
      const label = text(plot.x, value), x = at.x0 + unit * at.perX;
      const half = context.measureText(label).width / 2;
      if (x - half < end + 6 || x + half > look.width) continue;
      context.fillText(label, x, below);
      end = x + half;
    }
    context.fillStyle = look.text;
    context.fillText(`${labelOf(plot.x)} →`, (at.left + at.right) / 2, look.height - 8);
    if (plot.missing[1]) {
      context.textAlign = "right";
      context.fillStyle = look.muted;
      context.fillText("none", before, at.bottom + STRIP / 2);
    }
    context.save();
    context.textAlign = "left";
    const label = `↑ ${labelOf(plot.y)}`;
    context.globalAlpha = 0.85;
    context.fillStyle = `rgb(${look.paper[0]} ${look.paper[1]} ${look.paper[2]})`;
    context.fillRect(at.left + 4, at.top + 1, context.measureText(label).width + 6, 16);
    context.globalAlpha = 1;
    context.fillStyle = look.text;
    context.fillText(label, at.left + 7, at.top + 9);
    context.restore();
  };

  /* The rectangle, and a ring around the point that is meant. */
  const drawMarks = () => {
    const context = marks.getContext("2d");
    context.setTransform(look.ratio, 0, 0, look.ratio, 0, 0);
    context.clearRect(0, 0, look.width, look.height);
    const box = dragged?.box ?? brushBox();
    if (box) {
      dimOutside(context, box);
      context.strokeStyle = look.link;
      context.lineWidth = 1.5;
      context.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
    }
    if (hovered === null || !(drawn.xs[hovered] === drawn.xs[hovered])) return;
    for (const [width, colour] of [[5, `rgb(${look.paper[0]} ${look.paper[1]} ${look.paper[2]})`], [2, look.text]]) {
      context.beginPath();
      context.arc(drawn.xs[hovered], drawn.ys[hovered], 7, 0, 2 * Math.PI);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    }
  };

  const dimOutside = (context, [left, top, right, bottom]) => {
    context.globalAlpha = 0.6;
    context.fillStyle = `rgb(${look.paper[0]} ${look.paper[1]} ${look.paper[2]})`;
    const { at } = drawn;
    const [x, y] = [at.left - (plot.missing[0] ? STRIP : 0), at.top];
    context.beginPath();
    context.rect(x, y, at.right - x, at.bottom + (plot.missing[1] ? STRIP : 0) - y);
    context.rect(left, top, right - left, bottom - top);
    context.fill("evenodd");
    context.globalAlpha = 1;
  };

  /* As much of a rectangle in px as lies in the plot and in the strips beside it. */
  const cut = ([left, top, right, bottom]) => {
    const { at } = drawn;
    const [low, end] = [at.left - (plot.missing[0] ? STRIP : 0), at.bottom + (plot.missing[1] ? STRIP : 0)];
    const across = (x) => Math.min(at.right, Math.max(low, x)), down = (y) => Math.min(end, Math.max(at.top, y));
    return [across(left), down(top), across(right), down(bottom)];
  };

  /* The brush in px, cut to the plot; null where there is none. */
  const brushBox = () => {
    if (!plot.brush || !drawn) return null;
    const { at } = drawn;
    const [x0, y0, x1, y1] = plot.brush;
    const box = cut([at.x0 + x0 * at.perX, at.y0 - y1 * at.perY, at.x0 + x1 * at.perX, at.y0 - y0 * at.perY]);
    return box[0] < box[2] && box[1] < box[3] ? box : null;
  };

  /* --- brushing --- */

  const brushInPixels = ([left, top, right, bottom]) => {
    const { at, xs, ys } = drawn;
    const [x0, y1] = toUnits(at, left, top);
    const [x1, y0] = toUnits(at, right, bottom);
    const inside = new Uint8Array(overview.n);
    for (let row = 0; row < overview.n; row++) inside[row] = xs[row] >= left && xs[row] <= right && ys[row] >= top && ys[row] <= bottom ? 1 : 0;
    setBrush([x0, y0, x1, y1], inside);
  };

  /* Between numbers; what is not given does not bound. */
  const brushInNumbers = () => {
    const bounds = Object.fromEntries(all("[data-bound]").map((input) => [input.dataset.bound, readBound(input)]));
    if (Object.values(bounds).some((value) => value === undefined)) return;
    if (Object.values(bounds).every((value) => value === null)) return clear();
    const inside = new Uint8Array(overview.n).fill(1);
    const units = ["x", "y"].map((axis, which) => {
      const values = column(plot[axis]), { to } = plot.scales[which];
      const near = overview.near(plot[axis]);
      const low = near(bounds[`${axis}0`] ?? -Infinity), high = near(bounds[`${axis}1`] ?? Infinity);
      const bounded = low > -Infinity || high < Infinity;
      for (let row = 0; row < overview.n; row++) if (bounded && !(near(values[row]) >= low && near(values[row]) <= high)) inside[row] = 0;
      const [from, end] = [to(low), to(high)];
      return [Number.isNaN(from) ? -Infinity : from, Number.isNaN(end) ? -Infinity : end];
    });
    setBrush([units[0][0], units[1][0], units[0][1], units[1][1]], inside, false);
    applyBrush();
    drawMarks();
  };

  /* The number of an input, null if it is empty, undefined if it is none. */
  const readBound = (input) => {
    const text = input.value.trim().replace("\u2212", "-").replace(/%$/, "");
    const value = Number(text);
    const isWrong = text !== "" && !Number.isFinite(value);
    input.setCustomValidity(isWrong ? "A number is expected." : "");
    if (isWrong) return undefined;
    const name = plot[input.dataset.bound[0]];
    return text === "" ? null : isPercent(name) ? value / 100 : value;
  };

  const setBrush = (brush, inside, fill = true) => {
    plot.brush = brush;
    plot.inside = inside;
    plot.count = inside.reduce((sum, is) => sum + is, 0);
    if (fill) fillBounds();
    sayBrush();
    one(".plots-clear").hidden = false;
  };

  const sayBrush = () => say(plot.brush ? `${plot.count.toLocaleString("en")} ${plot.count === 1 ? "feature" : "features"} selected` : "");

  const applyBrush = () => {
    const which = plot, { inside } = plot;
    const options = { label: brushLabel(), onClear: () => forget(which) };
    isFiltering = true; // the rows inside of the rectangle do not change by it
    overview.setFilter(which.name, (row) => inside[row] === 1, options);
    isFiltering = false;
    readFaint();
  };

  const brushLabel = () => {
    if (plot.name === "map") return "selected on the map";
    const [x0, y0, x1, y1] = plot.brush;
    const [x, y] = plot.scales;
    const range = (name, { back }, ...ends) => `${labelOf(name)} ${ends.map((unit, end) => (Number.isFinite(unit) ? textOf(name, written(name, ends.map(back), end)) : "…")).join(" – ")}`;
    return `${range(plot.x, x, x0, x1)}, ${range(plot.y, y, y0, y1)}`;
  };

  /* One of the two ends of a range as it is written: an id is whole, other numbers have three digits, and as many more as a
     thousandth of the range needs. */
  const written = (name, ends, end) => {
    const value = ends[end];
    if (name === "id") return end ? Math.floor(value) : Math.ceil(value);
    const more = Math.ceil(Math.log10(Math.abs(value) / (ends[1] - ends[0])));
    return shortened(value, 3 + Math.max(0, more === Infinity ? 12 : more || 0));
  };
  const shortened = (value, digits = 3) => Number(value.toPrecision(Math.min(15, digits)));

  const fillBounds = () => {
    const { brush, scales } = plot;
    for (const input of all("[data-bound]")) {
      const axis = input.dataset.bound[0], end = Number(input.dataset.bound[1]);
      const which = axis === "y" ? 1 : 0, factor = isPercent(plot[axis]) ? 100 : 1;
      const units = brush ? [brush[which], brush[which + 2]] : [Infinity, Infinity];
      const ends = units.map((unit) => scales[which].back(unit) * factor);
      input.value = Number.isFinite(units[end]) ? String(written(plot[axis], ends, end)) : "";
      input.setCustomValidity("");
    }
  };

  const clear = (which = plot) => {
    forget(which);
    overview.setFilter(which.name, null);
  };

  const forget = (which) => {
    which.brush = which.inside = null;
    if (which !== plot) return;
    fillBounds();
    say("");
    one(".plots-clear").hidden = true;
    if (drawn) drawMarks();
  };

  const say = (text) => (one(".plots-state [role]").textContent = text);

  /* Faint is what other filters leave out; the rectangle shows itself. */
  const readFaint = () => {
    const { n } = overview;
    faint ??= new Uint8Array(n);
    for (let row = 0; row < n; row++) faint[row] = overview.passesBut(row, plot.name) ? 0 : 1;
  };

  /* --- pointing --- */

  /* The row whose point is nearest; one that is not faint where there is one. */
  const nearest = (x, y) => {
    const cells = (drawn.cells ??= sorted());
    let best = null, least = Infinity;
    for (let cy = Math.floor((y - REACH) / CELL); cy <= (y + REACH) / CELL; cy++) {
      for (let cx = Math.floor((x - REACH) / CELL); cx <= (x + REACH) / CELL; cx++) {
        for (const row of cells.get(cy * 4096 + cx) ?? []) {
          const far = Math.hypot(drawn.xs[row] - x, drawn.ys[row] - y) + (faint[row] ? REACH : 0);
          if (far < least && far <= (faint[row] ? 1.5 : 1) * REACH) [best, least] = [row, far];
        }
      }
    }
    return best;
  };

  const sorted = () => {
    const cells = new Map();
    for (let row = 0; row < overview.n; row++) {
      const key = Math.floor(drawn.ys[row] / CELL) * 4096 + Math.floor(drawn.xs[row] / CELL);
      if (key !== key) continue;
      if (cells.has(key)) cells.get(key).push(row);
      else cells.set(key, [row]);
    }
    return cells;
  };

  const hover = (row, tell = true) => {
    if (row === hovered) return;
    hovered = row;
    marks.classList.toggle("on-point", row !== null);
    if (drawn) drawMarks();
    if (!tell) return;
    overview.hover(row);
    showTip();
  };

  /* A row of the table is meant: its point is marked, and told of where a key went there and the point can be seen. */
  const follow = (row) => {
    hover(row, false);
    tip.hidden = true;
    if (row === null || !drawn || !overview.root.querySelector(".overview-row:focus-visible")) return;
    const { top } = frame.getBoundingClientRect();
    const y = top + drawn.ys[row];
    if (drawn.xs[row] === drawn.xs[row] && frame.getClientRects().length && y > 0 && y < innerHeight) showTip();
  };

  const showTip = () => {
    tip.hidden = hovered === null;
    if (hovered === null) return;
    tip.replaceChildren(...tipParts(hovered));
    const box = frame.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const x = box.left + drawn.xs[hovered], y = box.top + drawn.ys[hovered];
    const left = x + 14 + own.width > innerWidth - 8 ? x - 14 - own.width : x + 14;
    const top = y - 10 + own.height > innerHeight - 8 ? innerHeight - 8 - own.height : y - 10;
    tip.style.transform = `translate(${Math.max(8, left)}px, ${Math.max(8, top)}px)`;
  };

  const element = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });

  const tipParts = (row) => {
    const id = overview.ids[row];
    const label = overview.label(id);
    const list = document.createElement("dl");
    const told = plot.name === "map" ? [plot.colour] : [plot.x, plot.y, plot.colour];
    for (const name of new Set(told.filter((name) => name && name !== "id"))) {
      const value = column(name)[row];
      fact(list, labelOf(name), Number.isNaN(value) ? "none" : textOf(name, value));
    }
    const twin = overview.columns.twin?.[row];
    if (twin >= 0) fact(list, "same direction as", String(twin));
    const parts = [element("p", "title", `Feature ${id}${label ? ` · ${label}` : ""}`), list];
    const { starts, ids } = overview.lists.top_tokens;
    const tokens = [...ids.subarray(starts[row], starts[row + 1])].slice(0, 8);
    if (tokens.length) {
      const shown = element("div", "tokens");
      for (const token of tokens) shown.append(Object.assign(document.createElement("span"), { innerHTML: overview.tokenHtml(token) }));
      parts.push(shown);
    }
    return parts;
  };

  const fact = (list, name, value) => {
    const line = document.createElement("div");
    line.append(element("dt", "", name), element("dd", "", value));
    list.append(line);
  };

  /* --- the pointer: click opens, dragging selects or moves, two fingers or the wheel zoom --- */

  const fingers = new Map(); // pointer -> place

  const place = (event) => {
    const box = frame.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  const onDown = (event) => {
    if (event.button > 1 || !drawn) return;
    if (dragged?.box) undo(); // a second finger: it was no rectangle
    const [x, y] = place(event);
    fingers.set(event.pointerId, [x, y]);
    const moves = event.shiftKey || event.button === 1 || one('[data-drag="move"]').getAttribute("aria-checked") === "true";
    dragged = { x, y, moves, box: null, last: [x, y], filtered: 0, far: false, before: plot.brush && [plot.brush, plot.inside] };
    if (fingers.size === 2) dragged = { pinch: spread(), far: true };
    marks.setPointerCapture(event.pointerId);
  };

  const spread = () => {
    const [[ax, ay], [bx, by]] = [...fingers.values()];
    return { apart: Math.max(1, Math.hypot(ax - bx, ay - by)), x: (ax + bx) / 2, y: (ay + by) / 2 };
  };

  const onMove = (event) => {
    if (!drawn) return;
    const [x, y] = place(event);
    if (fingers.has(event.pointerId)) fingers.set(event.pointerId, [x, y]);
    if (!dragged) return hover(nearest(x, y));
    if (dragged.pinch) return fingers.size === 2 && pinch();
    dragged.far ||= Math.hypot(x - dragged.x, y - dragged.y) > CLICK;
    if (!dragged.far) return;
    hover(null);
    if (dragged.moves) {
      move(x - dragged.last[0], y - dragged.last[1]);
      dragged.last = [x, y];
    } else {
      dragged.box = cut([Math.min(x, dragged.x), Math.min(y, dragged.y), Math.max(x, dragged.x), Math.max(y, dragged.y)]);
      drawMarks();
      if (performance.now() - dragged.filtered > FILTER_PAUSE) filterDragged();
    }
  };

  const filterDragged = () => {
    brushInPixels(dragged.box);
    applyBrush();
    dragged.filtered = performance.now();
  };

  /* What was a rectangle so far is none: the browser scrolls the page, or there are two fingers. */
  const undo = () => {
    const { before } = dragged;
    dragged = null;
    if (!before) return clear();
    setBrush(...before);
    applyBrush();
    drawMarks();
  };

  const onUp = (event) => {
    fingers.delete(event.pointerId);
    const done = dragged, cancelled = event.type === "pointercancel";
    if (!done || fingers.size) return;
    if (done.box && cancelled) return undo();
    if (done.box) filterDragged();
    dragged = null;
    drawMarks();
    if (done.far || cancelled || event.button) return;
    const row = nearest(...place(event));
    if (row === null) return plot.brush && clear();
    hover(null);
    overview.open(overview.ids[row]);
  };

  const pinch = () => {
    const before = dragged.pinch, now = spread();
    zoomAt(now.apart / before.apart, before.x, before.y);
    move(now.x - before.x, now.y - before.y);
    dragged.pinch = now;
  };

  const move = (x, y) => {
    const at = layout(plot);
    setMiddle(at.middle[0] - x / at.perX, at.middle[1] + y / at.perY);
  };

  /* What is at a place stays there. */
  const zoomAt = (factor, x, y) => {
    const [ux, uy] = toUnits(layout(plot), x, y);
    plot.zoom = Math.min(MOST_ZOOM, Math.max(1, plot.zoom * factor));
    const at = layout(plot);
    const [nowX, nowY] = toUnits(at, x, y);
    setMiddle(at.middle[0] + ux - nowX, at.middle[1] + uy - nowY);
  };

  /* As near as it can be without leaving the plot's whole range. */
  const setMiddle = (x, y) => {
    const at = layout(plot);
    const held = ({ low, high }, wanted, size) => (high - low <= size ? (low + high) / 2 : Math.min(high - size / 2, Math.max(low + size / 2, wanted)));
    const [sx, sy] = plot.scales;
    plot.middle = [held(sx, x, (at.right - at.left) / at.perX), held(sy, y, (at.bottom - at.top) / at.perY)];
    if (plot.zoom === 1) plot.middle = null;
    updateZoom();
    wish();
  };

  const onWheel = (event) => {
    const isOut = event.deltaY > 0;
    const pageScrolls = !matchMedia("(min-width: 1100px)").matches;
    if ((isOut && plot.zoom === 1) || (pageScrolls && !event.ctrlKey)) return;
    event.preventDefault();
    hover(null);
    const lines = event.deltaMode ? event.deltaY * 16 : event.deltaY;
    zoomAt(Math.exp(-Math.max(-200, Math.min(200, lines)) / 300), ...place(event));
  };

  const onZoomButton = (button) => {
    const factor = Number(button.dataset.zoom);
    const at = layout(plot);
    if (factor) return zoomAt(factor, (at.left + at.right) / 2, (at.top + at.bottom) / 2);
    plot.zoom = 1;
    setMiddle(0, 0);
  };

  const updateZoom = () => {
    const focused = document.activeElement;
    for (const button of all("[data-zoom]")) button.disabled = button.dataset.zoom === "2" ? plot.zoom >= MOST_ZOOM : plot.zoom === 1;
    if (focused?.disabled) all("[data-zoom]").find((button) => !button.disabled).focus();
  };

  /* --- choices --- */

  const showPlot = (name) => {
    plot = plots[name];
    saeVis.check(one(".plots-which"), (button) => button.dataset.plot === name);
    for (const part of all("[data-for]")) part.hidden = part.dataset.for !== name;
    readLook(); // the key is drawn in its colours
    for (const [axis, label] of [["x", labelOf(plot.x)], ["y", labelOf(plot.y)]]) {
      const name = isPercent(plot[axis]) ? `${label} (%)` : label;
      one(`[data-name="${axis}"]`).textContent = name;
      ["from", "to"].forEach((end, which) => one(`[data-bound="${axis}${which}"]`).setAttribute("aria-label", `${name} ${end}`));
      one(`[data-axis="${axis}"]`).value = plot[axis];
    }
    one('[data-axis="colour"]').value = plot.colour;
    hover(null);
    fillBounds();
    one(".plots-clear").hidden = !plot.brush;
    sayBrush();
    updateZoom();
    describe();
    readFaint();
    drawKey();
    readLook(); // what was written leaves another height, which the next frame needs already
    wish();
  };

  const choose = (select) => {
    const axis = select.dataset.axis;
    if (axis === "colour") {
      plot.colour = select.value;
      drawKey();
      return wish();
    }
    const had = plot.brush;
    setAxes(plot, axis === "x" ? select.value : plot.x, axis === "y" ? select.value : plot.y);
    if (had) clear();
    showPlot(plot.name);
  };

  const fillSelects = () => {
    const names = OFFERED.filter((name) => overview.columns[name]);
    for (const select of all("[data-axis]")) {
      const offered = select.dataset.axis === "colour" ? ["", ...names] : [...names, "id"];
      select.replaceChildren(...offered.map((name) => new Option(name ? labelOf(name) : "one colour", name)));
    }
    return names;
  };

  /* What a reader who cannot see the canvas is told. */
  const describe = () => {
    const count = overview.n.toLocaleString("en");
    const [x, y] = plot.scales;
    const axis = (name, { log }) => `${labelOf(name)}${log ? " (logarithmic)" : ""}`;
    const what = plot.name === "map" ? `Map of the decoder directions of ${count} features` : `Scatter plot of ${count} features: ${axis(plot.y, y)} against ${axis(plot.x, x)}`;
    base.setAttribute("aria-label", `${what}. The table lists the same features.`);
  };

  /* --- the key --- */

  const SHAPE_SVG = {
    dense: '<path class="solid" d="M5.5 0 11 5.5 5.5 11 0 5.5z"/>',
    duplicate: '<circle cx="5.5" cy="5.5" r="4"/>',
    dead: '<path d="M1.5 1.5 9.5 9.5M9.5 1.5 1.5 9.5"/>',
  };

  const drawKey = () => {
    const parts = [];
    const range = look && colourRange(plot.colour);
    if (range) {
      const item = element("span", "");
      const bar = element("span", "scale");
      const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => Math.round(share * (STEPS - 1)));
      bar.style.background = `linear-gradient(90deg, ${stops.map((step) => `rgb(${[...look.scale.subarray(3 * step, 3 * step + 3)].join(" ")})`).join(", ")})`;
      const text = (unit) => textOf(plot.colour, shortened(range.back(unit)));
      item.append(`${labelOf(plot.colour)} ${text(range.from)}`, bar, text(range.end));
      parts.push(item);
    }
    for (const [name, { rows }] of Object.entries(report)) {
      if (!rows.size) continue;
      const item = element("span", "");
      item.innerHTML = `<svg viewBox="0 0 11 11" aria-hidden="true">${SHAPE_SVG[name]}</svg>`;
      item.append(name);
      parts.push(item);
    }
    one(".plots-key").replaceChildren(...parts);
  };

  /* --- the report --- */

  const report = {};

  const makeReport = () => {
    const { n_active: active, density, twin } = overview.columns;
    const rowsWhere = (fits) => new Set(Array.from(overview.ids.keys()).filter(fits));
    report.dead = { rows: rowsWhere((row) => active?.[row] === 0 || density?.[row] === 0), about: "never fire on these tokens" };
    report.dense = { rows: rowsWhere((row) => density?.[row] > DENSE), about: "fire on more than 10 % of the tokens" };
    report.duplicate = { rows: rowsWhere((row) => twin?.[row] >= 0), about: "have a decoder direction whose cosine with another one is larger than 0.95" };
    kinds = Uint8Array.from(overview.ids, (_, row) => {
      if (report.dead.rows.has(row)) return SHAPE.dead;
      const isDuplicate = report.duplicate.rows.has(row);
      if (report.dense.rows.has(row)) return isDuplicate ? SHAPE.denseDuplicate : SHAPE.dense;
      return isDuplicate ? SHAPE.duplicate : SHAPE.active;
    });
  };

  const drawReport = () => {
    const place = overview.root.querySelector(".overview-actions");
    for (const [name, { rows, about }] of Object.entries(report)) {
      if (name === "duplicate" && !overview.columns.nearest_cosine) continue; // directions were not compared
      const button = element("button", "plots-report", `${rows.size.toLocaleString("en")} ${name}${name === "duplicate" && rows.size !== 1 ? "s" : ""}`);
      Object.assign(button, { type: "button", title: `Only those that ${about}`, disabled: !rows.size });
      button.dataset.report = name;
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => narrow(button.getAttribute("aria-pressed") === "true" ? null : name));
      place.append(button);
    }
  };

  /* One of the three at a time: dead and dense ones have nothing in common. */
  const narrow = (name) => {
    for (const button of overview.root.querySelectorAll("[data-report]")) button.setAttribute("aria-pressed", String(button.dataset.report === name));
    overview.setFilter("report", name && report[name].rows);
  };

  /* Where the plots stand above the table, they can be folded away; on a phone they are at first. */
  const addToggle = () => {
    const button = element("button", "plots-toggle", "Plots");
    const fold = (folded) => {
      root.classList.toggle("folded", folded);
      button.setAttribute("aria-expanded", String(!folded));
    };
    button.type = "button";
    button.addEventListener("click", () => fold(!root.classList.contains("folded")));
    fold(matchMedia("(max-width: 640px)").matches);
    overview.root.querySelector(".overview-actions").append(button);
  };

  /* --- the start --- */

  const listen = () => {
    saeVis.radioGroup(one(".plots-which"), (button) => showPlot(button.dataset.plot));
    saeVis.radioGroup(one(".plots-drag"), (button) => {
      saeVis.check(one(".plots-drag"), (other) => other === button);
      marks.classList.toggle("moves", button.dataset.drag === "move");
    });
    one(".plots-zoom").addEventListener("click", (event) => event.target.closest("button") && onZoomButton(event.target.closest("button")));
    one(".plots-choices").addEventListener("change", (event) => choose(event.target));
    one(".plots-clear").addEventListener("click", () => {
      clear();
      overview.focusTable(); // the button is hidden
    });
    one(".plots-range").addEventListener("change", brushInNumbers);
    marks.addEventListener("pointerdown", onDown);
    marks.addEventListener("pointermove", onMove);
    marks.addEventListener("pointerup", onUp);
    marks.addEventListener("pointercancel", onUp);
    marks.addEventListener("pointerleave", () => dragged || hover(null));
    marks.addEventListener("wheel", onWheel, { passive: false });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented || !overview.visible) return;
      if (event.target.closest?.("input, select, textarea, dialog")) return;
      for (const which of Object.values(plots)) if (which.brush) clear(which);
    });
    overview.onChange(() => {
      if (isFiltering) return;
      readFaint();
      wish();
    });
    overview.onHover((row) => dragged || follow(row));
    saeVis.onEscape?.(() => {
      const told = tip.getClientRects().length > 0;
      tip.hidden = true;
      return told;
    });
    overview.onShow(anew);
    new ResizeObserver(anew).observe(frame);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", anew);
    new MutationObserver(anew).observe(document.documentElement, { attributes: true });
  };

  /* Sizes or colours may be others. */
  const anew = () => {
    readLook();
    drawKey();
    wish();
  };

  const start = () => {
    overview = saeVis.overview;
    root = overview.root.querySelector(".overview-plots");
    if (!root) return;
    [frame, base, marks, tip] = [".plots-frame", ".plots-points", ".plots-marks", ".plots-tip"].map(one);
    const names = fillSelects();
    if (!names.length) return;
    makeReport();
    drawReport();
    addToggle();
    const first = (...wanted) => wanted.find((name) => names.includes(name)) ?? names[0];
    plots.scatter = makePlot("scatter", null, null, names.includes("logit_kurtosis") ? "logit_kurtosis" : "");
    setAxes(plots.scatter, first("density"), first("max"));
    if (overview.columns.map_x) {
      plots.map = makePlot("map", null, null, first("density"));
      setAxes(plots.map, "map_x", "map_y");
      one(".plots-note").textContent = overview.meta.map ?? "";
    } else one(".plots-which").hidden = true;
    root.hidden = false;
    showPlot("scatter");
    listen();
    Object.assign(saeVis, { plots, showPlot, pointOf: (id) => [drawn.xs, drawn.ys].map((places) => places[overview.row(id)]) });
  };

  document.addEventListener("DOMContentLoaded", () => saeVis.overview?.ready.then(start));
})();
