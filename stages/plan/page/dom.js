"use strict";
// Elements. Text from users only ever becomes a text node or an attribute of a known name, never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties, attributes (names with a dash, role, for) and children; null and false children are left out. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== false && child !== undefined));
  return made;
}

/** An element of an SVG drawing with attributes. */
function drawn(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);

/** Fill a select with [value, label] pairs and keep its value where it is still one of them. */
function fillSelect(select, pairs) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, label]) => new Option(label, value)));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

/** A relative URL of a file of a run, whose `base` is one already: each part of its path is escaped, so no name can be a scheme or a query. */
function urlOf(run, path) {
  if (run.files && Object.hasOwn(run.files, path)) return run.files[path];
  const parts = path.split("/").map(encodeURIComponent).join("/");
  return path.startsWith("/") ? parts : `./${run.base}${parts}`;
}

/** Whether a file of a run can be opened: a page that is one file has only some of them in it. */
const isHere = (run, path) => Boolean(path) && (!run.files || Object.hasOwn(run.files, path));

/** A link to a file of a run, or its name alone where the file is not here. */
function fileLink(run, path) {
  if (!isHere(run, path)) return element("code", {}, path);
  return element("a", { href: urlOf(run, path), target: "_blank", rel: "noopener" }, path);
}

/** A number with four digits of its value, without an exponent where it is readable. */
function shownNumber(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1000 ? value.toFixed(0) : size < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function shownSeconds(seconds) {
  if (seconds < 90) return `${shownNumber(Number(seconds.toPrecision(3)))} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const shownMemory = (megabytes) => (megabytes >= 1000 ? `${(megabytes / 1000).toFixed(1)} GB` : `${megabytes} MB`);

/** An option's value as text. */
const shownValue = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));

/** A table of text cells; the first row is its head. Cells may be elements. */
function tableOf(caption, [head, ...rows]) {
  const cells = (isHead, row) =>
    row.map((cell, place) => (isHead || !place ? element("th", { scope: isHead ? "col" : "row" }, cell) : element("td", {}, cell)));
  return element(
    "table",
    {},
    caption && element("caption", {}, caption),
    element("thead", {}, element("tr", {}, cells(true, head))),
    element("tbody", {}, rows.map((row) => element("tr", {}, cells(false, row)))),
  );
}
