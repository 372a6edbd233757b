/* A small menu on each sequence: open its row, copy it as text, HTML or LaTeX. Its button follows the sequence that the mouse is
   over or that has the focus, where M and the context menu key open it: it is no tab stop, as there are many sequences. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const TICK = 1200; // ms that a copy is confirmed for
  let tools, button, menu, of, ticked; // of: the sequence that they belong to

  /* --- what is copied --- */

  /* The tokens of a sequence: text, 0 to 1 of the strongest colour, and whether it is the bold one. */
  const tokensOf = (sequence) => {
    const data = saeVis.panelData(sequence.closest(".seqs"));
    const first = data.offsets[data.sequences.indexOf(sequence)];
    const ids = data.ids.slice(first, first + sequence.children.length);
    const joined = saeVis.chosen("tokens") === "raw" ? ids.map(() => null) : saeVis.joined(ids);
    return ids.map((id, place) => {
      const token = sequence.children[place];
      const level = Math.min(1, Math.max(0, Number(getComputedStyle(token).getPropertyValue("--a")) || 0));
      const bytes = saeVis.tokenBytes(id);
      const alone = bytes ? [...bytes].map((byte) => `[${byte.toString(16).toUpperCase().padStart(2, "0")}]`).join("") : saeVis.tokenText(id);
      return { id, text: joined[place] ?? alone, level, bold: token.classList.contains("b") };
    });
  };

  /* The colour of activations on white paper, 0 to 255. */
  const colourOf = (level) => {
    const scale = getComputedStyle(document.documentElement).getPropertyValue("--bar").trim().split(/[\s,]+/).map(Number);
    const full = scale.length === 3 && scale.every((part) => part >= 0 && part <= 255) ? scale : [255, 140, 0];
    return full.map((part) => Math.round(255 + (part - 255) * level));
  };

  const HTML = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;", "\n": "\u21b5", "\t": "\u2192" };
  const escapedHtml = (text) => saeVis.withCodes(text).replace(/[&<>"'\n\t]/g, (char) => HTML[char]);

  /* What no character of a text can leave: every special one is a command of its own, and lines never end. */
  const LATEX = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "#": "\\#",
    $: "\\$",
    "%": "\\%",
    "&": "\\&",
    _: "\\_",
    "^": "\\textasciicircum{}",
    "~": "\\textasciitilde{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "\\textquotedbl{}",
    "'": "{'}",
    "`": "{`}",
    "-": "{-}",
    ",": "{,}",
    "!": "{!}",
    "?": "{?}",
    " ": "\\ ",
    "\u00a0": "\\ ",
    "\n": "$\\hookleftarrow$",
    "\t": "$\\rightarrow$",
  };
  const escapedLatex = (text) => [...saeVis.withCodes(text)].map((char) => LATEX[char] ?? char).join("");

  saeVis.copied = {
    text: (sequence) => saeVis.textOfTokens(tokensOf(sequence).map(({ id }) => id)),
    html: (sequence) => {
      const spans = tokensOf(sequence).map(({ text, level, bold }) => {
        const style = `${level ? `background-color:rgb(${colourOf(level).join(",")});color:#000;` : ""}${bold ? "font-weight:700;outline:1px solid;" : ""}`;
        return text && `<span${style && ` style="${style}"`} dir="auto">${escapedHtml(text)}</span>`;
      });
      return `<code style="font-family:monospace;white-space:pre-wrap">${spans.join("")}</code>`;
    },
    latex: (sequence) => {
      const boxes = tokensOf(sequence).map(({ text, level, bold }) => {
        const shown = bold ? `\\textbf{${escapedLatex(text)}}` : escapedLatex(text);
        const colour = colourOf(level).map((part) => Number((part / 255).toFixed(3))).join(",");
        return text && (level ? `\\colorbox[rgb]{${colour}}{\\strut ${shown}}` : `\\mbox{\\strut ${shown}}`);
      });
      const body = boxes.filter(Boolean).join("\\allowbreak%\n");
      return `% \\usepackage[T1]{fontenc} \\usepackage{xcolor}\n{\\ttfamily\\setlength{\\fboxsep}{0pt}%\n${body}}\n`;
    },
  };

  /* --- the clipboard, which a frame or a file may not be allowed to write --- */

  const put = async (text, html) => {
    try {
      if (html) {
        const blob = (type) => new Blob([text], { type });
        await navigator.clipboard.write([new ClipboardItem({ "text/html": blob("text/html"), "text/plain": blob("text/plain") })]);
      } else {
        await navigator.clipboard.writeText(text);
      }
      return true;
    } catch {
      return false;
    }
  };

  const showBox = (text, what, back) => {
    document.querySelector(".copy-box")?.remove();
    const area = saeVis.element("textarea", { readonly: "", rows: "6", "aria-label": what, spellcheck: "false" });
    area.value = text;
    const close = saeVis.element("button", { type: "button" }, "Close");
    const box = saeVis.element("div", { class: "copy-box", role: "dialog", "aria-label": what });
    box.append(saeVis.element("p", {}, "This browser lets the page copy nothing here: copy it with Ctrl+C or \u2318C."), area, close);
    const done = () => {
      box.remove();
      back?.focus({ preventScroll: true });
    };
    close.addEventListener("click", done);
    box.addEventListener("keydown", (event) => {
      event.stopPropagation(); // the page's own keys
      if (event.key === "Escape") done();
    });
    document.body.append(box);
    area.focus();
    area.select();
  };

  /* Put a text on the clipboard, or show it to be copied by hand. */
  saeVis.copy = async (text, what, { html = false, back = null } = {}) => {
    if (await put(text, html)) {
      const spoken = document.querySelector(".spoken");
      if (spoken) spoken.textContent = `${what}: copied.`;
      return true;
    }
    showBox(text, what, back);
    return false;
  };

  /* --- the menu --- */

  const ITEMS = [
    ["Whole row", (sequence) => saeVis.toggleRow(sequence)],
    ["Copy text", (sequence) => copy(sequence, "text")],
    ["Copy HTML", (sequence) => copy(sequence, "html")],
    ["Copy LaTeX", (sequence) => copy(sequence, "latex")],
  ];

  const copy = async (sequence, kind) => {
    tick(false);
    const done = await saeVis.copy(saeVis.copied[kind](sequence), `Sequence as ${kind === "text" ? "text" : kind === "html" ? "HTML" : "LaTeX"}`, {
      html: kind === "html",
      back: sequence,
    });
    if (done) tick(true);
  };

  /* Whether the button says that something was copied. It does for its time, wherever it goes: where the menu closes, the mouse is
     over another sequence. */
  const tick = (shown) => {
    clearTimeout(ticked);
    button.textContent = shown ? "\u2713" : "\u22ef";
    if (shown) ticked = setTimeout(tick, TICK, false);
  };

  const make = () => {
    button = saeVis.element("button", { type: "button", class: "seq-button", tabindex: "-1", "aria-haspopup": "menu", "aria-expanded": "false", "aria-label": "Sequence menu" }, "\u22ef");
    menu = saeVis.element("div", { class: "seq-menu", role: "menu", "aria-label": "Sequence", hidden: "" });
    tools = saeVis.element("div", { class: "seq-tools" }, button, menu);
    for (const [label, run] of ITEMS) {
      const item = saeVis.element("button", { type: "button", role: "menuitem", tabindex: "-1" }, label);
      item.addEventListener("click", () => {
        const sequence = of;
        open(false);
        sequence.focus({ preventScroll: true });
        run(sequence);
      });
      menu.append(item);
    }
    button.addEventListener("click", () => open(menu.hidden));
    tools.addEventListener("keydown", keydown);
    tools.addEventListener("focusout", (event) => {
      if (event.relatedTarget && !tools.contains(event.relatedTarget)) open(false);
    });
  };

  const open = (wanted) => {
    if (!wanted && menu.contains(document.activeElement)) of.focus({ preventScroll: true });
    menu.hidden = !wanted;
    button.setAttribute("aria-expanded", String(wanted));
    tools.classList.toggle("opened", wanted);
    if (!wanted) return;
    saeVis.hideHover?.();
    menu.firstElementChild.hidden = !saeVis.canOpenRow(of);
    menu.firstElementChild.textContent = saeVis.isRowOpen(of) ? "Close the row" : "Whole row";
    const beside = button.getBoundingClientRect();
    const below = beside.bottom + 2;
    const top = below + menu.offsetHeight + 8 <= innerHeight ? below : beside.top - 2 - menu.offsetHeight;
    const left = Math.min(beside.right, innerWidth - 8) - menu.offsetWidth;
    menu.style.translate = `${Math.round(Math.max(8, left))}px ${Math.round(Math.max(8, top))}px`;
    shownItems()[0].focus({ preventScroll: true });
  };

  const shownItems = () => [...menu.children].filter((item) => !item.hidden);

  const keydown = (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const items = shownItems();
    const at = items.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (event.key === "Escape" && !menu.hidden) {
      event.preventDefault(); // it leads no further
      open(false);
    } else if (event.key === "Tab" && !menu.hidden) {
      open(false); // with the focus where the key goes on from
      return;
    } else if (at >= 0 && next !== undefined) {
      items[(next + items.length) % items.length].focus();
    } else if (at < 0 && event.key === "ArrowDown") {
      open(true);
    } else if (!(event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      return; // those would go to another feature
    }
    event.preventDefault();
    event.stopPropagation();
  };

  const follow = (sequence) => {
    if (of === sequence && tools?.isConnected) return;
    if (!tools) make();
    if (!menu.hidden && tools.isConnected && tools.contains(document.activeElement)) return; // it is being used
    open(false);
    of = sequence;
    sequence.after(tools);
  };

  /* The keys that open the menu of the sequence that has the focus. */
  const opens = (event) => {
    const asked = event.key === "ContextMenu" || (event.key === "F10" && event.shiftKey) || (event.key === "m" && !event.shiftKey);
    if (!asked || event.ctrlKey || event.metaKey || event.altKey || !event.target.matches?.(".seq")) return;
    event.preventDefault();
    follow(event.target);
    open(true);
  };

  document.addEventListener("DOMContentLoaded", () => {
    document.addEventListener("keydown", opens);
    const sequenceOf = (event) => event.target.closest?.(".seq");
    document.addEventListener("pointerover", (event) => sequenceOf(event) && follow(sequenceOf(event)));
    document.addEventListener("focusin", (event) => sequenceOf(event) && follow(sequenceOf(event)));
    document.addEventListener("pointerdown", (event) => {
      if (menu && !menu.hidden && !tools.contains(event.target)) open(false);
    });
    document.addEventListener("scroll", () => menu && !menu.hidden && open(false), { capture: true, passive: true });
  });
})();
