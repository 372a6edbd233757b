/* What is this: a panel's button opens a short text above the panel, and closes it again, as Escape does. The texts stand once
   on the page, in the list at its end. */
(() => {
  "use strict";
  document.documentElement.dataset.scripts = "on"; // what needs scripts is hidden without

  const textOf = (button) => [...document.querySelectorAll("[data-about-text]")].find((text) => `About ${text.dataset.aboutText}` === button.getAttribute("aria-label"));

  const close = (button) => {
    button.setAttribute("aria-expanded", "false");
    button.parentElement.querySelector(".what-it-is")?.remove();
  };

  const open = (button) => {
    const text = document.createElement("p");
    text.className = "what-it-is";
    text.setAttribute("role", "status");
    button.after(text);
    text.textContent = textOf(button)?.textContent ?? "";
    button.setAttribute("aria-expanded", "true");
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".what-is");
    if (button) (button.getAttribute("aria-expanded") === "true" ? close : open)(button);
  });
  // At the window: what is open where the focus is, such as a row, has the key first.
  window.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    const part = event.target.closest?.(".part");
    const own = part?.querySelector('.what-is[aria-expanded="true"]');
    const opened = own ?? document.querySelector('.what-is[aria-expanded="true"]');
    if (!opened) return;
    event.preventDefault(); // this Escape is used: it does not lead to the overview too
    close(opened);
    own?.focus();
  });
})();
