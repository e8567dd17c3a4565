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

function add_colours() {
  dark.addEventListener("change", paint);
  for (const button of all(".theme-switch-button"))
    button.addEventListener("click", next_mode);
}

/* A dialog closes by a click outside of it, and when a link in it leads on. */
function close_outside({ currentTarget: dialog, clientX, clientY, target }) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  const inside =
    left <= clientX && clientX <= right && top <= clientY && clientY <= bottom;
  if (target === dialog ? !inside : target.closest("a")) dialog.close();
}

function add_search() {
  const dialog = document.getElementById("pst-search-dialog");
  const toggle = () => (dialog.open ? dialog.close() : dialog.showModal());
  const mac = /^(Mac|iPhone)/.test(navigator.platform);
  dialog.addEventListener("click", close_outside);
  for (const button of all(".search-button__button"))
    button.addEventListener("click", toggle);
  if (mac)
    for (const key of all("kbd.kbd-shortcut__modifier:first-child"))
      key.textContent = "⌘";
  addEventListener("keydown", (event) => {
    const held = mac ? event.metaKey && !event.ctrlKey : event.ctrlKey && !event.metaKey;
    if (!held || event.shiftKey || event.altKey || event.key.toLowerCase() !== "k") return;
    event.preventDefault();
    toggle();
  });
}

/* On a narrow screen a menu moves into a dialog and back; on a wide one the first stands
   beside the page, and its button hides it. */
function move(from, to) {
  to.append(...from.childNodes);
  to.classList.add(...from.classList);
  from.removeAttribute("class");
}

function add_menu(name) {
  const menu = document.getElementById(`pst-${name}-sidebar`);
  const dialog = document.getElementById(`pst-${name}-sidebar-modal`);
  const button = document.querySelector(`.${name}-toggle`);
  if (!menu || !dialog || !button) return;
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
function keep_place() {
  const menu = document.querySelector(".bd-sidebar-primary");
  if (!menu || !wide.matches) return;
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
function follow_reader() {
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
}

/* Away from the top, the bar of buttons has a shadow; who scrolls up is offered the way
   to the top. */
function add_way_up() {
  const button = document.getElementById("pst-back-to-top");
  const top = document.querySelector(".sbt-scroll-pixel-helper");
  new IntersectionObserver(([{ isIntersecting }]) =>
    document.body.classList.toggle("scrolled", !isIntersecting),
  ).observe(top);
  let before = 0;
  const offer = () => {
    button.style.display = 0 < scrollY && scrollY < before ? "block" : "none";
    before = scrollY;
  };
  addEventListener("scroll", offer, { passive: true });
  button.addEventListener("click", () => scrollTo(0, 0));
}

addEventListener("DOMContentLoaded", () => {
  add_colours();
  add_search();
  add_menu("primary");
  add_menu("secondary");
  keep_place();
  follow_reader();
  add_way_up();
});
