/* Copy buttons on code, tab stops on what scrolls, light paper, the chapter to take along
   where there is no server, and the page below its first screen. */

const PROMPT = /^(>>>|\.\.\.|\$) ?/;

/* Of a session, what was typed; of other code, all of it. */
function typed(text) {
  const lines = text.trimEnd().split("\n");
  if (!PROMPT.test(lines[0])) return lines.join("\n");
  const asked = lines.filter((line) => PROMPT.test(line));
  return asked.map((line) => line.replace(PROMPT, "")).join("\n");
}

const voice = document.createElement("div");
voice.className = "visually-hidden";
voice.setAttribute("role", "status");

function say(button, words) {
  button.textContent = voice.textContent = words;
  setTimeout(() => {
    button.textContent = "Copy";
    voice.textContent = "";
  }, 2000);
}

async function copy(button, block) {
  try {
    await navigator.clipboard.writeText(typed(block.textContent));
    say(button, "Copied");
  } catch {
    getSelection().selectAllChildren(block);
    say(button, "Selected: press Ctrl+C");
  }
}

function add_copy_buttons() {
  const outputs = ".cell_output *, .highlight-myst-ansi *";
  for (const block of document.querySelectorAll(`.highlight > pre:not(${outputs})`)) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", () => copy(button, block));
    block.before(button);
  }
  document.querySelector("main:has(.copy)")?.append(voice);
}

/* What is wider than the screen scrolls by itself, by keyboard too. A table grows when
   the font of its formulas arrives, and its box does not: both are watched. */
const TABLE = ".pst-scrollable-table-container";
const SCROLLS = `article :is(pre, .picture, div.math, ${TABLE})`;
const scrolling = new ResizeObserver((changes) => {
  for (const box of new Set(changes.map(({ target }) => target.closest(SCROLLS)))) {
    const wide = box.scrollWidth > box.clientWidth;
    if (wide) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
    if (box.matches(TABLE)) name_table(box, wide);
  }
});

/* A stop of the keyboard says what it is: a table, by the words on top of it. */
function name_table(box, wide) {
  const heads = [...box.querySelectorAll("caption, thead th")];
  const words = heads.map((head) => head.textContent.trim()).join(", ");
  box.role = wide ? "group" : null;
  box.ariaLabel = wide ? `Wide table: ${words}` : null;
}

/* In a folder a browser shows a notebook instead of saving it, and may not read it. But
   it may run it: beside each lies a script that hands it over. */
function save_from_folder(event) {
  event.preventDefault();
  const link = event.currentTarget;
  const script = document.createElement("script");
  script.src = `${link.href}.js`;
  document.head.append(script);
}

function take_along(name, notebook) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([notebook], { type: "application/json" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

/* What waits below the first screen (see `book.css`) is laid out part by part, so that a
   tap in between is answered. */
const root = document.documentElement;
const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));

function lay_out_rest() {
  const section = ".bd-article > section > section";
  const parts = document.querySelectorAll(`${section}:first-of-type > *, ${section}`);
  const waiting = parts.values();
  const next = () => {
    const { value: part, done } = waiting.next();
    if (done) return (root.dataset.whole = "");
    part.style.contentVisibility = "visible";
    idle(next);
  };
  idle(next);
}

addEventListener("load", () => requestAnimationFrame(lay_out_rest));

/* Where a link within the page leads is known when all before it is laid out. */
addEventListener("click", ({ target }) => {
  if (target.closest("a[href^='#']")) root.dataset.whole = "";
});

/* Paper is light, whatever the screen is. */
let scheme;

addEventListener("beforeprint", () => {
  scheme = root.dataset.theme;
  root.dataset.theme = "light";
});
addEventListener("afterprint", () => (root.dataset.theme = scheme));

addEventListener("DOMContentLoaded", () => {
  add_copy_buttons();
  for (const box of document.querySelectorAll(`${SCROLLS}, ${TABLE} > table`))
    scrolling.observe(box);
  if (location.protocol === "file:")
    for (const link of document.querySelectorAll(".take-along a[download]"))
      link.addEventListener("click", save_from_folder);
});
