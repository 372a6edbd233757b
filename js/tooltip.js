/* Hover text for tokens, and lines on the histograms: one element per page, filled from the JSON beside the sequences. By
   mouse, touch or keyboard: every sequence is one tab stop, and the arrow keys move from token to token. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const SVG = "http://www.w3.org/2000/svg";
  const MARGIN = 8;
  const panels = new WeakMap(); // panel of sequences -> its parsed data
  let tip, vocab, current = null, left = null, shownAt; // left: the token that was told of last

  /* --- the data --- */

  const vocabulary = () => {
    const read = vocab ? null : saeVis.data("vocab"); // a site may not have loaded it yet
    if (read) vocab = new Map(read.ids.map((id, place) => [id, read.html[place]]));
    return vocab;
  };

  const tokenHtml = (id) => vocabulary()?.get(id) ?? `<samp>id ${Number(id)}</samp>`;

  const panelData = (panel) => {
    if (!panels.has(panel)) {
      const element = panel.querySelector("script.hover");
      const data = JSON.parse(element.textContent);
      let offset = 0;
      data.offsets = data.lengths.map((length) => (offset += length) - length);
      for (const measured of [data, data.full]) if (measured) measured.effectAt = effectsByPlace(measured.effects);
      data.logitOf = new Map(data.logits.length ? [...new Set(data.ids)].map((id, place) => [id, data.logits[place]]) : []);
      data.sequences = [...panel.querySelectorAll(".seq")];
      panels.set(panel, data);
    }
    return panels.get(panel);
  };

  /* Everything that is known of a token. */
  const facts = (token) => {
    const sequence = token.parentElement;
    const data = panelData(sequence.closest(".seqs"));
    const number = data.sequences.indexOf(sequence);
    const inside = [...sequence.children].indexOf(token);
    const at = data.offsets[number] + inside;
    const asked = document.documentElement.dataset.loss;
    const { losses, effectAt } = (asked === "full" && data.full) || data;
    const [actDecimals, lossDecimals, logitDecimals] = data.decimals;
    const scaled = (value, decimals) => (value == null ? null : { value: value / 10 ** decimals, decimals });
    return {
      id: data.ids[at],
      row: data.rows[number],
      position: data.starts[number] + inside,
      ignored: token.classList.contains("x"),
      activation: scaled(data.acts[at], actDecimals),
      hasLoss: losses.length > 0,
      loss: scaled(losses[at], lossDecimals),
      logit: scaled(data.logitOf.get(data.ids[at]), logitDecimals),
      effect: effectAt.get(at),
      reach: data.full ? (asked ?? "direct") : data.only,
    };
  };

  /* What the feature changes at each predicted token: pairs of an id and a number, as _hover_effects in Python packs them. */
  const effectsByPlace = ({ decimals, at, counts, ids, steps }) => {
    let from = 0;
    const take = (count, sign) => {
      let value = 0;
      const pairs = ids.slice(from, from + count).map((id, place) => {
        value = place ? value - steps[from + place] : steps[from];
        return [id, { value: (sign * value) / 10 ** decimals, decimals }];
      });
      from += count;
      return pairs;
    };
    return new Map(at.map((place, which) => [place, { raised: take(counts[2 * which], 1), lowered: take(counts[2 * which + 1], -1) }]));
  };
  saeVis.facts = facts;
  saeVis.panelData = panelData;
  saeVis.vocabulary = vocabulary;
  saeVis.tokenHtml = tokenHtml;

  /* --- numbers as Python writes them --- */

  const fixed = ({ value, decimals }) => {
    const plain = decimals >= 0 && decimals <= 8 && Math.abs(value) < 1e12;
    return (plain ? value.toFixed(decimals).replace(/^-(?=[0.]*$)/, "") : powerOfTen(value, decimals)).replaceAll("-", "\u2212");
  };
  const powerOfTen = (value, decimals) => {
    if (!value) return "0";
    const digits = Math.floor(Math.log10(Math.abs(value))) + decimals;
    return value.toExponential(Math.min(3, Math.max(0, digits))).replace(/e([+-])(\d)$/, (_, sign, digit) => `e${sign}0${digit}`);
  };
  const signed = (number) => (number.value > 0 && /[1-9]/.test(fixed(number)) ? "+" : "") + fixed(number);

  /* --- filling --- */

  const slot = (name) => tip.querySelector(`[data-slot="${name}"]`);
  const part = (name, shown) => (tip.querySelector(`[data-part="${name}"]`).hidden = !shown);

  const fill = (known, isPrompt) => {
    slot("token").innerHTML = tokenHtml(known.id);
    const where = isPrompt ? `prompt, position ${known.position}` : `row ${known.row}, position ${known.position}`;
    slot("where").textContent = `id ${known.id} · ${where}${known.ignored ? " · ignored" : ""}`;
    slot("activation").textContent = fixed(known.activation);
    part("loss", known.hasLoss);
    slot("loss").textContent = known.loss ? signed(known.loss) : "none";
    slot("loss").className = known.loss?.value < 0 ? "up" : known.loss?.value > 0 ? "down" : "";
    part("logit", known.logit !== null);
    if (known.logit) slot("logit").textContent = signed(known.logit);
    part("changes", Boolean(known.effect));
    if (known.effect) {
      changeRows(slot("raised"), known.effect.raised, "up");
      changeRows(slot("lowered"), known.effect.lowered, "down");
    }
    const unchanged = known.loss?.value === 0 && !known.effect;
    slot("none").textContent = unchanged ? `The feature was ${INACTIVE[known.reach]}: it did not change this prediction.` : "";
  };

  const INACTIVE = { direct: "not active on the token before", full: "active nowhere before" };

  const changeRows = (body, pairs, direction) => {
    body.replaceChildren(
      ...pairs.map(([id, number]) => {
        const row = document.createElement("tr");
        row.insertCell().innerHTML = tokenHtml(id);
        const cell = row.insertCell();
        cell.textContent = signed(number);
        cell.className = direction;
        return row;
      }),
    );
  };

  /* --- placing: below the token, above it where there is no room, never outside the window --- */

  const placeBeside = (token) => {
    const box = (shownAt = token.getClientRects()[0]);
    tip.style.transform = "none";
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.max(MARGIN, Math.min(box.left - 12, innerWidth - width - MARGIN));
    const below = box.bottom + 6;
    const above = box.top - height - 6;
    const top = below + height + MARGIN <= innerHeight || above < MARGIN ? Math.min(below, innerHeight - height - MARGIN) : above;
    tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(Math.max(MARGIN, top))}px)`;
  };

  /* --- lines on the histograms --- */

  const drawLine = (plot, kind, value, text) => {
    plot.querySelector(`.${kind}`)?.remove();
    if (value === null) return;
    const [low, high, left, right] = plot.dataset.scale.split(" ").map(Number);
    const slack = (high - low) * 1e-3; // the value and the axis were rounded apart
    const beyond = value < low - slack ? `\u2190 ${text}` : value > high + slack ? `${text} \u2192` : text;
    const x = left + (right - left) * ((Math.min(high, Math.max(low, value)) - low) / (high - low));
    const atEnd = x > (left + right) / 2;
    const line = svg("path", { d: `M${x.toFixed(1)} 12V82` });
    const label = svg("text", { x: (atEnd ? x - 3 : x + 3).toFixed(1), y: 9, "text-anchor": atEnd ? "end" : "start" });
    label.textContent = beyond;
    const group = svg("g", { class: kind });
    group.append(line, label);
    plot.append(group);
  };

  const svg = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };

  /* Draw the lines of an activation and a logit weight on all plots of a feature; null takes a line away. */
  saeVis.drawLines = (feature, kind, activation, logit) => {
    for (const plot of feature.querySelectorAll(".plot:not(.positions)")) {
      const number = plot.classList.contains("logits") ? logit : activation?.value > 0 ? activation : null;
      const text = number && (plot.classList.contains("logits") ? signed(number) : fixed(number));
      drawLine(plot, kind, number ? number.value : null, text);
    }
  };

  /* --- showing and hiding --- */

  const show = (token) => {
    if (current === token) return;
    hide();
    current = token;
    const known = facts(token);
    token.classList.add("on");
    fill(known, Boolean(token.closest(".prompt")));
    tip.hidden = false;
    placeBeside(token);
    if (token.parentElement === document.activeElement) document.activeElement.setAttribute("aria-describedby", tip.id);
    saeVis.drawLines(token.closest(".feature"), "line", known.activation, known.logit);
  };

  const hide = () => {
    if (!current) return;
    current.classList.remove("on");
    current.parentElement?.removeAttribute("aria-describedby");
    const feature = current.closest(".feature");
    if (feature) saeVis.drawLines(feature, "line", null, null);
    left = current;
    current = null;
    tip.hidden = true;
  };
  saeVis.hideHover = hide;

  /* Scrolling takes the token away from its hover text; what had scrolled before, to bring the token here, does not. */
  const scrolled = () => {
    const box = current?.getClientRects()[0];
    if (box && (box.left !== shownAt.left || box.top !== shownAt.top)) hide();
  };

  /* --- keyboard --- */

  const speak = () => {
    const loss = tip.querySelector('[data-part="loss"]').hidden ? "" : `, loss contribution ${slot("loss").textContent}`;
    document.querySelector(".spoken").textContent =
      `${current.textContent}, ${slot("where").textContent}, activation ${slot("activation").textContent}${loss}`;
  };

  const KEYS = { ArrowRight: (at) => at + 1, ArrowLeft: (at) => at - 1, Home: () => 0, End: (_, last) => last };

  const keydown = (event) => {
    const sequence = event.target.closest(".seq");
    if (!sequence || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    const last = sequence.children.length - 1;
    const from = [current, left].find((token) => token?.parentElement === sequence);
    const at = from ? [...sequence.children].indexOf(from) : 0;
    show(sequence.children[Math.max(0, Math.min(last, KEYS[event.key](at, last)))]);
    speak();
  };

  const focusin = (event) => {
    const sequence = event.target.closest(".seq");
    if (!sequence || !sequence.matches(":focus-visible")) return;
    sequence.setAttribute("role", "group");
    const also = `${saeVis.canOpenRow?.(sequence) ? ", Enter shows its row" : ""}${saeVis.copied ? ", M opens its menu" : ""}`;
    sequence.setAttribute("aria-label", `Sequence: arrow keys move from token to token${also}`);
    show(sequence.querySelector(":scope > .b") ?? sequence.firstElementChild);
    speak();
  };

  const start = () => {
    tip = document.querySelector(".hovertext");
    if (!tip) return;
    tip.id ||= saeVis.newId("hovertext");
    const tokenOf = (target) => target.closest?.(".seq > *");
    document.addEventListener("pointerover", (event) => {
      const token = tokenOf(event.target);
      if (token) show(token);
    });
    document.addEventListener("pointerout", (event) => {
      if (event.pointerType === "touch") return; // a lifted finger leaves what it showed
      if (tokenOf(event.target) && !event.relatedTarget?.closest?.(".seq > *")) hide();
    });
    document.addEventListener("pointerdown", (event) => {
      if (!tokenOf(event.target)) hide();
    });
    saeVis.onEscape?.(() => {
      const shown = Boolean(current);
      hide();
      return shown;
    });
    document.addEventListener("focusin", focusin);
    document.addEventListener("focusout", (event) => event.target.closest(".seq") && hide());
    document.addEventListener("keydown", keydown);
    document.addEventListener("scroll", scrolled, { capture: true, passive: true });
  };

  document.addEventListener("DOMContentLoaded", start);
})();
