/* The controls of a page: colours, search, menus, the place in the contents. In place of
   the theme's scripts, which do this and much that no page here uses. */

const wide = matchMedia("(min-width: 992px)"); // the contents stand beside the page

const all = (selector) => document.querySelectorAll(selector);

/* Colours: the reader's own, or those of the system, which may change at any time.
   `paint` and `dark` come with the page's head, so that nothing is painted twice. */
function next_mode() {
  const { dataset } = document.documentElement;
  const modes = dark.matches ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
  dataset.mode = modes[(modes.indexOf(dataset.mode) + 1) % modes.length];
  localStorage.setItem("mode", dataset.mode);
  paint();
}

dark.addEventListener("change", paint);
for (const button of all(".theme-switch-button"))
  button.addEventListener("click", next_mode);

/* A dialog closes by a click outside of it, and when a link in it leads on. */
function close_outside({ currentTarget: dialog, clientX, clientY, target }) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  const inside =
    left <= clientX && clientX <= right && top <= clientY && clientY <= bottom;
  if (target === dialog ? !inside : target.closest("a")) dialog.close();
}

/* The search opens by its button and by Ctrl+K, on a Mac by ⌘K. */
const search = document.getElementById("pst-search-dialog");
const toggle_search = () => (search.open ? search.close() : search.showModal());
const mac = /^(Mac|iPhone)/.test(navigator.platform);

search.addEventListener("click", close_outside);
for (const button of all(".search-button__button"))
  button.addEventListener("click", toggle_search);
if (mac)
  for (const key of all("kbd.kbd-shortcut__modifier:first-child")) key.textContent = "⌘";
addEventListener("keydown", (event) => {
  const held = mac ? event.metaKey && !event.ctrlKey : event.ctrlKey && !event.metaKey;
  if (!held || event.shiftKey || event.altKey || event.key.toLowerCase() !== "k") return;
  event.preventDefault();
  toggle_search();
});

/* On a narrow screen a menu moves into a dialog and back; on a wide one the first stands
   beside the page, and its button hides it. */
function move(from, to) {
  to.append(...from.childNodes);
  to.classList.add(...from.classList);
  from.removeAttribute("class");
}

for (const name of ["primary", "secondary"]) {
  const menu = document.getElementById(`pst-${name}-sidebar`);
  const dialog = document.getElementById(`pst-${name}-sidebar-modal`);
  const button = document.querySelector(`.${name}-toggle`);
  if (!menu || !dialog || !button) continue;
  button.addEventListener("click", () => {
    if (name === "primary" && wide.matches)
      return menu.classList.toggle("pst-sidebar-hidden");
    move(menu, dialog);
    dialog.showModal();
  });
  dialog.addEventListener("click", close_outside);
  dialog.addEventListener("close", () => move(dialog, menu));
}

/* The contents stay where they were scrolled to, or begin with the page in sight. */
const menu = document.querySelector(".bd-sidebar-primary");
if (menu && wide.matches) {
  const before = sessionStorage.getItem("sidebar-scroll-top");
  const page = [...menu.querySelectorAll("li.active")].at(-1);
  if (before !== null) menu.scrollTop = before;
  else if (page && page.offsetTop > menu.clientHeight / 2)
    menu.scrollTop = page.offsetTop - menu.clientHeight / 4;
  addEventListener("pagehide", () =>
    sessionStorage.setItem("sidebar-scroll-top", menu.scrollTop),
  );
}

/* Of the sections that a line across the screen touches, the innermost is the current
   one. */
const links = new Map();
for (const link of all("#pst-page-toc-nav a[href^='#']")) {
  const section = document.getElementById(decodeURIComponent(link.hash.slice(1)));
  if (section) links.set(section, link);
}
const touched = new Set();
const line = new IntersectionObserver(
  (sections) => {
    for (const { target, isIntersecting } of sections)
      touched[isIntersecting ? "add" : "delete"](target);
    const current = [...links.keys()].filter((section) => touched.has(section)).at(-1);
    for (const [section, link] of links) {
      link.classList.toggle("active", section === current);
      link.ariaCurrent = section === current ? "true" : null;
    }
  },
  { rootMargin: "-40% 0px -60%" },
);
for (const section of links.keys()) line.observe(section);

/* Away from the top, the bar of buttons has a shadow; who scrolls up is offered the way
   to the top. */
const way_up = document.getElementById("pst-back-to-top");
let height = 0;

new IntersectionObserver(([{ isIntersecting }]) =>
  document.body.classList.toggle("scrolled", !isIntersecting),
).observe(document.querySelector(".sbt-scroll-pixel-helper"));
addEventListener("scroll", () => {
  way_up.style.display = 0 < scrollY && scrollY < height ? "block" : "none";
  height = scrollY;
});
way_up.addEventListener("click", () => scrollTo(0, 0));
