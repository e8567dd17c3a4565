/* Tab stops on what scrolls, light paper, and the page below its first screen. */

/* Who hears a page is told of what the tooltip of a copy button shows. */
const voice = document.createElement("div");
voice.className = "visually-hidden";
voice.role = "status";
document.querySelector("main").append(voice);
new MutationObserver((changes) => {
  voice.textContent = changes.at(-1).target.dataset.tooltip;
}).observe(document.body, { attributeFilter: ["data-tooltip"], subtree: true });

/* What is wider than the screen scrolls by itself, by keyboard too. A table grows when
   the font of its formulas arrives, and its box does not: both are watched. */
const TABLE = ".pst-scrollable-table-container";
const SCROLLS = `article :is(pre, .picture, .text_html, div.math, ${TABLE})`;
const scrolling = new ResizeObserver((changes) => {
  for (const box of new Set(changes.map(({ target }) => target.closest(SCROLLS)))) {
    const wide = box.scrollWidth > box.clientWidth;
    if (wide) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
    // A stop of the keyboard says what it is: a table, by the words on top of it.
    const heads = [...box.querySelectorAll("caption, thead th")];
    const words = heads.map((head) => head.textContent.trim()).join(", ");
    box.role = wide && words ? "group" : null;
    box.ariaLabel = wide && words ? `Wide table: ${words}` : null;
  }
});
for (const box of document.querySelectorAll(`${SCROLLS}, ${TABLE} > table`))
  scrolling.observe(box);

/* What waits below the first screen (see `book.css`) is laid out part by part, so that a
   tap in between is answered. */
const root = document.documentElement;
const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));

function lay_out([part, ...rest]) {
  if (!part) return (root.dataset.whole = "");
  part.style.contentVisibility = "visible";
  idle(() => lay_out(rest));
}

addEventListener("load", () => {
  const section = ".bd-article > section > section";
  const parts = document.querySelectorAll(`${section}:first-of-type > *, ${section}`);
  requestAnimationFrame(() => idle(() => lay_out(parts)));
});

/* Where a link within the page leads is known when all before it is laid out. */
addEventListener("click", ({ target }) => {
  if (target.closest("a[href^='#']")) root.dataset.whole = "";
});

/* Paper is light, whatever the screen is. */
addEventListener("beforeprint", () => (root.dataset.theme = "light"));
addEventListener("afterprint", paint);
