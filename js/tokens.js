/* The texts of tokens: as html, as the text itself, and joined where several make up a character, as sae_vis.html_fns does it. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const AT_MOST = 12; // tokens of a character or a few of them, as utils_fns.join_bytes
  const MARKS = { "\u00b7": " ", "\u21b5": "\n", "\u2192": "\t", "\u25cc": "" };
  const texts = new Map();
  let bytes;

  /* The bytes of a token that is only part of a character, else nothing. */
  saeVis.tokenBytes = (id) => {
    const read = bytes ? null : saeVis.data("vocab");
    if (read) bytes = new Map(Object.entries(read.bytes ?? {}).map(([of, hex]) => [Number(of), fromHex(hex)]));
    return bytes?.get(id);
  };
  const fromHex = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));

  /* --- what a mark for whitespace stands for --- */

  saeVis.whitespace = (marks) => marks.replace(/[\u00b7\u21b5\u2192\u25cc]/g, (mark) => MARKS[mark]);

  /* The text that a token's html shows; of a very long one the beginning. */
  saeVis.tokenText = (id) => {
    if (!texts.has(id)) {
      const template = document.createElement("template");
      template.innerHTML = saeVis.tokenHtml(id);
      texts.set(id, textOf(template.content));
    }
    return texts.get(id);
  };
  const textOf = (node) => {
    if (node.nodeType === Node.TEXT_NODE) return node.data;
    if (node.nodeName === "I") return saeVis.whitespace(node.textContent);
    if (node.nodeName === "SAMP") return ofCode(node.textContent);
    return [...node.childNodes].map(textOf).join("");
  };
  const ofCode = (code) => {
    if (code === "empty") return "";
    const point = /^U\+([0-9A-F]{4,6})$/.exec(code);
    return point ? String.fromCodePoint(Number.parseInt(point[1], 16)) : `[${code}]`;
  };

  /* --- characters in several tokens --- */

  /* For each token the text that it begins and that those after it, "" for them, belong to; null where it stands alone. */
  saeVis.joined = (ids) => {
    const parts = ids.map(saeVis.tokenBytes);
    const found = ids.map(() => null);
    for (let start = 0; start < ids.length; start++) {
      let together = [];
      for (let end = start; end < Math.min(ids.length, start + AT_MOST) && parts[end]; end++) {
        together = [...together, ...parts[end]];
        const text = decoded(together);
        if (text === null) continue;
        found.fill("", start, end + 1);
        found[start] = text;
        start = end;
        break;
      }
    }
    return found;
  };
  const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const decoded = (values) => {
    try {
      return strict.decode(new Uint8Array(values));
    } catch {
      return null;
    }
  };

  /* The exact text of tokens beside each other; bytes that make up no character become U+FFFD. */
  saeVis.textOfTokens = (ids) => {
    const encoder = new TextEncoder();
    const all = ids.flatMap((id) => [...(saeVis.tokenBytes(id) ?? encoder.encode(saeVis.tokenText(id)))]);
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(all));
  };

  /* Text without anything that is invisible or turns what is around it: that becomes a code such as [U+200B]. */
  saeVis.withCodes = (text) =>
    text.replace(/[^\P{C}\n\t]|[\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0]/gu, (char) => `[U+${hex(char)}]`);
  const hex = (char) => char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

  /* What each token of a row looks like: pieces of the page's own html, or text of joined characters, as nodes. */
  saeVis.tokenNodes = (ids, raw) => {
    const texts = raw ? ids.map(() => null) : saeVis.joined(ids);
    return ids.map((id, place) => {
      const holder = document.createElement("template");
      if (texts[place] === null) holder.innerHTML = saeVis.tokenHtml(id);
      else holder.content.append(...printable(texts[place]));
      return holder.content;
    });
  };
  const printable = (text) => {
    if (!text) return [saeVis.element("i", { class: "in" }, "\u2039")];
    if (/^\p{M}/u.test(text)) return [saeVis.element("i", { class: "in" }, "\u25cc"), text];
    return [...text].map((char) => {
      if (/\p{C}|[\p{Z}\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0]/u.test(char)) return saeVis.element("samp", {}, `U+${hex(char)}`);
      return char;
    });
  };
})();
