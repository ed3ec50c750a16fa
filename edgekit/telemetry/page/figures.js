// Elements and figures. Everything from the receiver becomes text of an element, never markup.

const BASE = ["model", "version", "device", "app"];
const NONE = "\u2013";
const SVG = "http://www.w3.org/2000/svg";

function add(to, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined) continue;
    to.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return to;
}

function tag(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  return add(made, children);
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  return add(made, children);
}

// A figure that can be read out of the page as it came: <data value="0.0125">1.25 %</data>.
function figure(name, value, form) {
  if (value === null || value === undefined) return tag("span", { "data-figure": name }, NONE);
  return tag("data", { "data-figure": name, value: String(value) }, form(value));
}

function three(value) {
  if (value === 0) return "0";
  const places = Math.max(0, Math.min(6, 2 - Math.floor(Math.log10(Math.abs(value)))));
  return value.toFixed(places);
}

const percent = (value) => `${three(value * 100)} %`;
const milliseconds = (value) => `${three(value * 1000)} ms`;
const mebibytes = (value) => `${three(value / 2 ** 20)} MiB`;
const plain = (value) => three(value);
const count = (value) => Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");

function interval(bounds) {
  if (!bounds) return null;
  return `${three(bounds[0] * 100)} to ${percent(bounds[1])}`;
}

function date(day) {
  return new Date(day * 86400000).toISOString().slice(0, 10);
}

function named(value) {
  return value === "" ? "not told" : value;
}

function latency(entry, source) {
  return (entry.latency_s || {})[source || "device"] || {};
}

function table(caption, headers, rows, kinds) {
  const head = headers.map((text, i) =>
    tag("th", { scope: "col", class: kinds[i] || null }, text));
  const body = rows.map((row) =>
    tag("tr", {}, row.map((cell, i) => i === 0
      ? tag("th", { scope: "row" }, cell)
      : tag("td", { class: kinds[i] || null }, cell))));
  return tag("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    tag("table", {},
      tag("caption", {}, caption),
      tag("thead", {}, tag("tr", {}, head)),
      tag("tbody", {}, body)));
}

function withInterval(shown, bounds) {
  const text = interval(bounds);
  return text === null ? shown : [shown, tag("span", { class: "interval" }, text)];
}

function badge(kind, text) {
  const mark = { held: "\u2713", failed: "\u2715", unknown: "?" }[kind];
  return tag("span", { class: `badge ${kind}` }, tag("span", { "aria-hidden": "true" }, mark),
    ` ${text}`);
}
