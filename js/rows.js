/* The whole row that a sequence comes from: a click on the sequence, or Enter, opens it below, and closes it again. The page holds
   each row once, packed by sae_vis._rows; a site has them in files of their own, which js/site.js loads. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const opened = new Map(); // sequence -> the element below it
  let packedRows; // of the page, once it was asked for

  /* --- the data --- */

  /* Unpack what sae_vis._rows.packed made: a map from the number of a row to its token ids. */
  const unpack = async ({ rows, lengths, ids, packed }) => {
    const bytes = await saeVis.inflateBytes(packed);
    let at = 0;
    const next = () => {
      let value = 0;
      for (let shift = 0; ; shift += 7) {
        const byte = bytes[at++];
        value |= (byte & 127) << shift;
        if (byte < 128) return value;
      }
    };
    let row = 0;
    return new Map(
      rows.map((gap, place) => [(row += gap), Array.from({ length: lengths[place] ?? lengths[0] }, () => ids[next()])]),
    );
  };

  const known = () => Boolean(saeVis.dataElement("rows") ?? saeVis.siteRows);

  /* The token ids of a row; nothing if the page does not hold it. */
  const rowOf = async (row) => {
    if (saeVis.siteRows) {
      const found = await saeVis.siteRows(row);
      return found && (found.unpacked ??= await unpack(found)).get(row);
    }
    packedRows ??= unpack(saeVis.data("rows"));
    return (await packedRows).get(row);
  };

  const placeOf = (sequence) => {
    const data = saeVis.panelData(sequence.closest(".seqs"));
    const number = data.sequences.indexOf(sequence);
    return { row: data.rows[number], start: data.starts[number], length: data.lengths[number] };
  };

  saeVis.hasRows = known;

  /* Whether a sequence can be opened: it is one of the corpus, and the page holds rows. */
  saeVis.canOpenRow = (sequence) => known() && saeVis.canInflate && !sequence.closest(".prompt");
  saeVis.isRowOpen = (sequence) => opened.has(sequence);

  /* --- drawing --- */

  const tokensOf = (ids, { start, length }, sequence) => {
    const nodes = saeVis.tokenNodes(ids, saeVis.chosen("tokens") === "raw");
    const tokens = nodes.map((content, position) => {
      const token = saeVis.element("span", { class: "t" });
      const shown = position >= start && position < start + length ? sequence.children[position - start] : null;
      if (shown) {
        for (const name of ["b", "x"]) token.classList.toggle(name, shown.classList.contains(name));
        token.style.cssText = shown.style.cssText;
      }
      token.append(content);
      saeVis.dressWhitespace(token);
      return token;
    });
    const frame = saeVis.element("span", { class: "window" }, ...tokens.slice(start, start + length));
    return [...tokens.slice(0, start), frame, ...tokens.slice(start + length)];
  };

  const fill = (whole, ids, place, sequence) => {
    const close = saeVis.element("button", { type: "button", class: "close", "aria-label": "Close the row" }, "\u00d7");
    const told = saeVis.element("p", { class: "told" }, `Row ${place.row}, ${ids.length} tokens `);
    told.append(saeVis.element("small", {}, "The framed tokens are those above; activations outside of the frame are not in this page."), close);
    const text = saeVis.element("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": `Row ${place.row}` });
    text.append(...tokensOf(ids, place, sequence));
    whole.replaceChildren(told, text);
    const bold = text.querySelector(".b");
    if (bold) text.scrollTop = bold.offsetTop - text.clientHeight / 2 + bold.offsetHeight / 2;
  };

  const say = (text) => {
    const spoken = document.querySelector(".spoken");
    if (spoken) spoken.textContent = text;
  };

  /* --- opening and closing --- */

  saeVis.toggleRow = async (sequence) => {
    if (opened.has(sequence)) return close(sequence);
    if (!saeVis.canOpenRow(sequence)) return;
    const whole = saeVis.element("div", { class: "whole" });
    opened.set(sequence, whole);
    const next = sequence.nextElementSibling;
    (next?.matches(".seq-tools") ? next : sequence).after(whole);
    sequence.classList.add("open");
    const place = placeOf(sequence);
    try {
      const ids = await rowOf(place.row);
      if (!whole.isConnected) return;
      if (ids) {
        fill(whole, ids, place, sequence);
        whole.scrollIntoView({ block: "nearest" });
        say(`The whole row ${place.row} is shown below.`);
      } else {
        whole.append(saeVis.element("p", { class: "told" }, `Row ${place.row} is not in this page, which holds the rows of the strongest examples only.`));
      }
    } catch (error) {
      whole.append(saeVis.element("p", { class: "told" }, error instanceof TypeError ? "The rows of this page are damaged." : error.message));
    }
  };

  const close = (sequence) => {
    const whole = opened.get(sequence);
    const inside = whole.contains(document.activeElement);
    opened.delete(sequence);
    whole.remove();
    sequence.classList.remove("open");
    if (inside) sequence.focus({ preventScroll: true });
    say("The row is closed.");
  };

  /* How tokens are shown has changed, or another feature is there. */
  saeVis.redrawRows = async () => {
    for (const [sequence, whole] of opened) {
      if (!whole.isConnected) opened.delete(sequence);
      else if (whole.querySelector(".tokens")) {
        const place = placeOf(sequence);
        const ids = await rowOf(place.row);
        whole.querySelector(".tokens")?.replaceChildren(...tokensOf(ids, place, sequence));
      }
    }
  };

  const ofWhole = (whole) => [...opened].find(([, element]) => element === whole)?.[0];

  const clicked = (event) => {
    const whole = event.target.closest?.(".whole");
    if (whole) {
      if (event.target.closest(".close")) close(ofWhole(whole));
      return;
    }
    const sequence = event.target.closest?.(".seq");
    const onTokenByTouch = event.pointerType === "touch" && event.target !== sequence; // that shows its numbers
    if (sequence && !onTokenByTouch && !String(getSelection())) saeVis.toggleRow(sequence);
  };

  const keydown = (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const whole = event.target.closest?.(".whole");
    const sequence = whole ? ofWhole(whole) : event.target.closest?.(".seq");
    if (!sequence) return;
    if (event.key === "Escape" && opened.has(sequence)) {
      event.preventDefault();
      close(sequence);
    } else if (event.key === "Enter" && !whole) {
      event.preventDefault();
      saeVis.toggleRow(sequence);
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    document.addEventListener("click", clicked);
    document.addEventListener("keydown", keydown);
    document.documentElement.toggleAttribute("data-rows", known());
    saeVis.onShown(() => saeVis.redrawRows());
  });
})();
