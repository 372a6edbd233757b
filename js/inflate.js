/* Unpack what sae_vis._page.pack made: deflated UTF-8 in base64, in a <script type="text/plain" data-packed="id">. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});

  saeVis.canInflate = typeof DecompressionStream === "function";
  saeVis.cannotInflate =
    "This browser cannot unpack the other features: it has no DecompressionStream. Chrome and Edge 80, Firefox 113, " +
    "Safari 16.4 and everything newer have it.";

  const inflated = (text) => {
    const chars = atob(text);
    const bytes = new Uint8Array(chars.length);
    for (let i = 0; i < chars.length; i++) bytes[i] = chars.charCodeAt(i); // many times faster than Uint8Array.from
    // Not by way of a Blob: to make one takes as long as to unpack a feature.
    return new Response(new Response(bytes).body.pipeThrough(new DecompressionStream("deflate")));
  };
  saeVis.inflate = (text) => inflated(text).text();

  /* A fragment. The page holds once what all begin with: the bytes of the stream, and so many characters, before those of its own. */
  saeVis.inflateFragment = async (text) => {
    const common = document.querySelector("script[data-common]");
    return (await saeVis.inflate(common.textContent + text)).slice(Number(common.dataset.common));
  };
  saeVis.inflateBytes = async (text) => new Uint8Array(await inflated(text).arrayBuffer());

  /* An id of no other element: several pages may share a document. */
  saeVis.newId = (name) => `${name}-${Math.random().toString(36).slice(2)}`;

  saeVis.dataElement = (name) => document.querySelector(`script[type="application/json"][data-json="${name}"]`);

  /* The data of an element, or of a file that a site has loaded. */
  saeVis.data = (name) => {
    const text = saeVis.dataElement(name)?.textContent ?? saeVis.received?.[name];
    return text === undefined ? null : JSON.parse(text);
  };

  saeVis.say = (text) => {
    const message = document.querySelector(".message");
    message.textContent = text;
    message.hidden = !text;
  };
})();
