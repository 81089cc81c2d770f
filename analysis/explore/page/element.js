// Small things of the page that all the others use.

// An element with text as text: nothing in this module writes markup made from data.
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const button = (text, onclick, properties = {}) =>
  element("button", { type: "button", onclick, ...properties }, text);

// Entries are [value, text].
function choice(entries, value, choose, properties = {}) {
  const select = element("select", { onchange: (event) => choose(event.target.value), ...properties },
    ...entries.map(([key, name]) => element("option", { value: key }, name)));
  select.value = value;
  return select;
}

function labelled(text, control, spoken = text) {
  control.setAttribute("aria-label", spoken);
  return element("label", {}, `${text} `, control);
}

// What may wait until the next picture is on the screen.
function afterPaint(callback) {
  requestAnimationFrame(() => setTimeout(callback));
}

function downloadBlob(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const download = (name, text, type) => downloadBlob(name, new Blob([text], { type }));

const percent = (share) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)} %`);
const short = (value) => (Number.isFinite(value) ? value.toPrecision(3) : "–");
const counted = (n) => n.toLocaleString("en");
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// The numbers at which an axis from low to high is marked, about `count` of them: 1, 2 or 5 times a power of ten.
function niceTicks(low, high, count) {
  const rough = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= rough);
  const ticks = [];
  for (let at = Math.ceil(low / step); at * step <= high; at++) ticks.push(at * step);
  return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}
