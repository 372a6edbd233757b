/* A site: the features lie in files beside the page, some hundred in each, which are loaded when one of them is asked for. They
   are scripts that hand over what they hold, since a page that was opened from disk can load nothing else. */
(() => {
  "use strict";
  const saeVis = (globalThis.saeVis ??= {});
  const MOST_KEPT = 12; // shards
  const SLOW = 300; // ms until it is said that something is loaded
  const received = (saeVis.received = {});
  const shards = new Map(); // number -> promise of what it holds, those used last at the end
  const OWN = /^(features|assets)\/[a-z0-9]+-[0-9a-f]{16}\.js$/;
  // The last, since all that shows text stands before it.
  const site = JSON.parse([...document.querySelectorAll('script[type="application/json"][data-json="site"]')].at(-1).textContent);

  saeVis.receive = (name, value) => (received[name] = value);

  const load = (file, name) =>
    new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const missing = () => reject(new Error(`The file ${file} of this site is missing or cannot be read. If the site was replaced, load the page again.`));
      if (!OWN.test(file)) return reject(new Error("This page asks for a file that is none of a site."));
      script.src = file;
      script.addEventListener("error", missing);
      script.addEventListener("load", () => {
        script.remove();
        if (name in received) resolve(received[name]);
        else missing();
      });
      document.head.append(script);
    });

  /* --- shards --- */

  const shardAt = (place) => site.shards.filter(([, first]) => first <= place).length - 1;

  const shard = (number) => {
    const name = String(number).padStart(5, "0");
    const known = shards.get(number) ?? load(site.shards[number][0], name);
    shards.delete(number);
    shards.set(number, known);
    known.then(() => delete received[name], () => shards.delete(number)); // what failed is tried again when asked for again
    for (const oldest of [...shards.keys()].slice(0, -MOST_KEPT)) shards.delete(oldest);
    return known;
  };

  /* The packed fragment of the feature at a place among all. isWanted says whether the reader still waits for it. */
  saeVis.packedFeature = async (feature, place, isWanted) => {
    const number = shardAt(place);
    const slow = setTimeout(() => isWanted() && saeVis.say(`Loading ${site.shards[number][0]} …`), SLOW);
    try {
      const text = (await shard(number))[feature];
      if (text === undefined) throw new Error(`Feature ${feature} is not in ${site.shards[number][0]}, where it should be.`);
      return text;
    } finally {
      clearTimeout(slow);
    }
  };

  /* What holds a row, as sae_vis._rows packed it; nothing if no file does. The last few files are kept. */
  const rowFiles = new Map();
  if (site.rows) {
    saeVis.siteRows = async (row) => {
      const number = site.rows.filter(([, first]) => first <= row).length - 1;
      if (number < 0) return null;
      const name = `rows${String(number).padStart(5, "0")}`;
      const known = rowFiles.get(number) ?? load(site.rows[number][0], name);
      rowFiles.delete(number);
      rowFiles.set(number, known);
      known.then(() => delete received[name], () => rowFiles.delete(number));
      for (const oldest of [...rowFiles.keys()].slice(0, -MOST_KEPT)) rowFiles.delete(oldest);
      return known;
    };
  }

  /* What only some readers need: a promise of the packed text of this name. */
  const assets = new Map();
  saeVis.assetFile = (name) => {
    if (!assets.has(name)) assets.set(name, load(site.assets[name], name));
    const known = assets.get(name);
    known.then(() => delete received[name], () => assets.delete(name));
    return known;
  };

  /* --- after the first feature is there to be seen --- */

  const loadRest = async () => {
    try {
      await load(site.vocab, "vocab");
      if (site.labels) saeVis.labels = JSON.parse(await load(site.labels, "labels"));
      saeVis.tellShown?.();
    } catch (error) {
      saeVis.say(error.message);
    }
  };

  saeVis.rest = new Promise((resolve) => {
    document.addEventListener("DOMContentLoaded", () => requestAnimationFrame(() => setTimeout(() => loadRest().then(resolve))));
  });
})();
