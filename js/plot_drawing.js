/* What js/scatter.js draws with: scales and their ticks, colours, and points that are put into pixels one by one, which is
   many times faster than paths on a canvas where there are thousands. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});

  /* --- scales --- */

  /* The range of a column on its axis, a little wider than its values. On a logarithmic one, units are powers of ten and what
     is not positive has no place. Null where nothing has a place. */
  const scale = (values, log) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (!(log ? value > 0 : Number.isFinite(value))) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) return null;
    const to = log ? Math.log10 : Number;
    let [from, end] = [to(low), to(high)];
    const pad = from === end ? (log ? 0.5 : Math.abs(from) * 0.1 || 0.5) : (end - from) * 0.04;
    return { log, low: from - pad, high: end + pad, to, back: log ? (unit) => 10 ** unit : Number };
  };

  /* Where each row stands: in units of the scale; NaN without a place. */
  const placed = (values, { log }) => Float64Array.from(values, (value) => (log ? (value > 0 ? Math.log10(value) : NaN) : value));

  const roundStep = (range, most) => {
    const power = 10 ** Math.floor(Math.log10(range / most));
    return [1, 2, 5, 10].map((factor) => factor * power).find((step) => range / step <= most);
  };

  const linearTicks = (low, high, most) => {
    const step = roundStep(high - low, most);
    const ticks = [];
    for (let n = Math.ceil(low / step - 1e-9); n <= high / step + 1e-9; n++) ticks.push(Number((n * step).toPrecision(12)));
    return ticks;
  };

  /* The round values between two places of an axis, each with its place. */
  const ticks = (low, high, log, most) => {
    if (!log) return linearTicks(low, high, most).map((value) => ({ value, unit: value }));
    const asUnits = (values) => values.map((value) => ({ value, unit: Math.log10(value) }));
    if (high - low < 0.7) return asUnits(linearTicks(10 ** low, 10 ** high, most).filter((value) => value > 0));
    const factors = high - low < 2 ? [1, 2, 5] : [1];
    const every = factors.length > 1 ? 1 : Math.max(1, Math.ceil((high - low) / most));
    const values = [];
    for (let power = Math.floor(low); power <= high; power++) {
      if (power % every === 0) for (const factor of factors) values.push(Number(`${factor}e${power}`));
    }
    return asUnits(values.filter((value) => Math.log10(value) >= low - 1e-9 && Math.log10(value) <= high + 1e-9));
  };

  const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const raised = (power) => String(power).replace("-", "⁻").replace(/\d/g, (digit) => SUPERSCRIPT[digit]);

  /* A round number as an axis shows it. */
  const tickText = (value, percent) => {
    const shown = Number((percent ? value * 100 : value).toPrecision(6));
    const size = Math.abs(shown);
    let text = String(shown);
    if (size >= 1e5 || (size && size < 1e-3)) {
      const power = Math.floor(Math.log10(size) + 1e-9);
      const factor = Number((shown / 10 ** power).toPrecision(4));
      text = `${factor === 1 ? "" : `${factor}·`}10${raised(power)}`;
    }
    return text.replace("-", "\u2212") + (percent ? "\u2009%" : "");
  };

  /* --- colours --- */

  /* From blue-violet through green to yellow, with a lightness that rises evenly (in OKLab), so that it can be read without
     colours too. On light paper the whole is darker than on dark paper. */
  const STEPS = 64;
  const colours = (isDark) => {
    const rgb = new Uint8Array(3 * STEPS);
    for (let step = 0; step < STEPS; step++) {
      const t = step / (STEPS - 1);
      const lightness = isDark ? 0.45 + 0.47 * t : 0.3 + 0.5 * t;
      rgb.set(fromOklch(lightness, 0.11 + 0.05 * t, 300 - 200 * t), 3 * step);
    }
    return rgb;
  };

  /* OKLCH (Björn Ottosson's OKLab in polar form) as sRGB bytes, clipped to what a screen shows. */
  const fromOklch = (lightness, chroma, degrees) => {
    const a = chroma * Math.cos((degrees * Math.PI) / 180);
    const b = chroma * Math.sin((degrees * Math.PI) / 180);
    const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
    const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
    return [
      4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
      -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
    ].map((linear) => {
      const clipped = Math.min(1, Math.max(0, linear));
      return 255 * (clipped <= 0.0031308 ? 12.92 * clipped : 1.055 * clipped ** (1 / 2.4) - 0.055);
    });
  };

  /* Any CSS colour as bytes. */
  const rgbOf = (css) => {
    const context = rgbOf.context ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    context.fillStyle = css;
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  };

  /* --- points --- */

  const SHAPES = ["dot", "ring", "diamond", "hollow", "cross"];

  /* How far outside of a shape of radius r a place is, in pixels; negative inside. */
  const distance = (shape, x, y, r) => {
    const line = Math.max(0.9, r * 0.3);
    if (shape === "dot") return Math.hypot(x, y) - r;
    if (shape === "ring") return Math.abs(Math.hypot(x, y) - r) - line / 2;
    const diamond = (Math.abs(x) + Math.abs(y) - 1.35 * r) / Math.SQRT2;
    if (shape === "diamond") return diamond;
    if (shape === "hollow") return Math.abs(diamond) - line / 2;
    const [along, across] = [Math.abs(x + y), Math.abs(x - y)].map((sum) => sum / Math.SQRT2);
    return Math.max(Math.min(along, across) - line / 2, Math.max(along, across) - 1.2 * r);
  };

  /* For each shape how much of every pixel around the middle it covers, from 0 to 256. */
  const masks = (r) => {
    const reach = Math.ceil(1.5 * r) + 1;
    const size = 2 * reach + 1;
    return SHAPES.map((shape) => {
      const cover = new Uint16Array(size * size);
      for (let y = -reach; y <= reach; y++) {
        for (let x = -reach; x <= reach; x++) {
          const outside = distance(shape, x, y, r);
          cover[(y + reach) * size + x + reach] = Math.round(256 * Math.min(1, Math.max(0, 0.5 - outside)));
        }
      }
      return { reach, size, cover };
    });
  };

  /* Lay a mask in a colour over pixels that are opaque; strength from 0 to 256. */
  const stamp = (data, width, height, x, y, { reach, size, cover }, r, g, b, strength) => {
    const left = x - reach, top = y - reach;
    if (left < 0 || top < 0 || left + size > width || top + size > height) return;
    for (let row = 0, from = 0; row < size; row++) {
      let at = 4 * ((top + row) * width + left);
      for (let column = 0; column < size; column++, at += 4, from++) {
        const covered = cover[from];
        if (!covered) continue;
        const part = (covered * strength) >> 8;
        data[at] += ((r - data[at]) * part) >> 8;
        data[at + 1] += ((g - data[at + 1]) * part) >> 8;
        data[at + 2] += ((b - data[at + 2]) * part) >> 8;
      }
    }
  };

  /* A rectangle of one colour, laid over likewise. */
  const block = (data, width, left, top, right, bottom, [r, g, b]) => {
    for (let y = top; y < bottom; y++) {
      for (let x = left, at = 4 * (y * width + left); x < right; x++, at += 4) {
        data[at] = r;
        data[at + 1] = g;
        data[at + 2] = b;
        data[at + 3] = 255;
      }
    }
  };

  saeVis.drawing = { scale, placed, ticks, tickText, colours, STEPS, rgbOf, SHAPES, masks, stamp, block };
})();
