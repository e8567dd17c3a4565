/* Looks through SECTIONS (search-index.js): every word of the query must begin a word of
   a section, in its titles, its prose or its code. Works from a folder. */

const SHOWN = 30;
const field = document.querySelector(".search-form input");
const count = document.getElementById("search-count");
const list = document.getElementById("search-found");

/* "1/\sqrt{d_k}", "1/sqrt(d)" and "1/√d" are asked alike. */
function words(query) {
  return query
    .normalize("NFKC")
    .replace(/\\[dt]?frac/g, "")
    .replace(/\\?sqrt\s*/gi, "√")
    .replace(/[{}()]+/g, " ")
    .replace(/√\s+/g, "√")
    .split(/[\s/]+/)
    .filter(Boolean);
}

function pattern(word) {
  let escaped = word.replace(/[.*+?^$|[\]\\]/g, "\\$&");
  escaped = escaped.replace(/√/g, "(?:√|sqrt)\\(?");
  if (/[a-z]{3}s$/i.test(word) && !/ss$/i.test(word)) escaped += "?"; // masks: mask
  const start = /^[\p{L}\p{N}]/u.test(word) ? "(?<![\\p{L}\\p{N}])" : "";
  return new RegExp(start + escaped, "giu");
}

const times = (text, regex) => (text.match(regex) ?? []).length;

/* How well a section answers one word; 0 if it does not. */
function answer([, page, title, prose, code], regex) {
  return (
    (times(title, regex) && 30) +
    (times(page, regex) && 6) +
    2 * Math.min(times(prose, regex), 6) +
    Math.min(times(code, regex), 4)
  );
}

function find(query) {
  const asked = words(query);
  const [regexes, whole, found] = [asked.map(pattern), asked.join(" ").toLowerCase(), []];
  for (const section of SECTIONS) {
    const points = regexes.map((regex) => answer(section, regex));
    const titled = section[2].toLowerCase() === whole ? 60 : 0;
    if (points.length && points.every(Boolean))
      found.push([points.reduce((a, b) => a + b, titled), section]);
  }
  found.sort((a, b) => b[0] - a[0]);
  return { found: found.map(([, section]) => section), regexes };
}

/* √d_k where the book writes √d. */
const without_index = (query) =>
  words(query).map((word) => word.replace(/^(√\p{L})_\w+$/u, "$1")).join(" ");

/* The text around the first match, its matches marked; where the title says it all, how
   the section begins. */
function quote([, page, title, prose, code], regexes) {
  const any = new RegExp(regexes.map((regex) => regex.source).join("|"), "giu");
  const titled = times(title === page ? page : title, any);
  const text = titled || times(prose, any) ? prose || code : code;
  const at = titled ? 0 : Math.max(0, text.search(any));
  const from = at < 90 ? 0 : text.indexOf(" ", at - 90) + 1;
  const whole = text.length <= from + 220;
  const part = whole ? text.slice(from) : text.slice(from, from + 220).replace(/\S*$/, "");
  const line = document.createElement("p");
  if (text === code) line.className = "code";
  let last = 0;
  line.append(from ? "… " : "");
  for (const match of part.matchAll(any)) {
    const mark = document.createElement("mark");
    mark.textContent = match[0];
    line.append(part.slice(last, match.index), mark);
    last = match.index + match[0].length;
  }
  line.append(part.slice(last), whole ? "" : "…");
  return line;
}

function show() {
  const query = field.value.trim();
  let { found, regexes } = find(query);
  if (query && !found.length) ({ found, regexes } = find(without_index(query)));
  const number = found.length === 1 ? "1 section" : `${found.length || "No"} sections`;
  const first = found.length > SHOWN ? `, the best ${SHOWN} of them below` : "";
  count.textContent = query ? `${number} on “${query}”${first}` : "";
  list.replaceChildren(
    ...found.slice(0, SHOWN).map((section) => {
      const [address, page, title] = section;
      const item = document.createElement("li");
      const link = document.createElement("a");
      link.href = address;
      link.textContent = title === page ? page : `${page} › ${title}`;
      item.append(link, quote(section, regexes));
      return item;
    }),
  );
}

field.value = new URLSearchParams(location.search).get("q") ?? "";
field.addEventListener("input", () => {
  const address = new URL(location);
  address.searchParams.set("q", field.value);
  try {
    history.replaceState(null, "", address);
  } catch {
    // Some browsers refuse this in a folder: then the address keeps the first query.
  }
  show();
});
field.form.addEventListener("submit", (event) => event.preventDefault());
show();
