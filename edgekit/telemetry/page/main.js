// What is looked at stands in the address after '#', so that it can be shared; the key never does.

const KEY = "edgekit.telemetry.key";
const DEFAULTS = { days: "7", baseline: "28" };
const SIDES = ["control", "canary"];
const at = (id) => document.getElementById(id);
let asked = 0;

function link(view) {
  const pairs = [...BASE, ...SIDES, "days", "baseline"]
    .filter((name) => view[name] !== undefined && view[name] !== DEFAULTS[name])
    .map((name) => [name, view[name]]);
  return `#${new URLSearchParams(pairs)}`;
}

function looking() {
  const given = new URLSearchParams(location.hash.slice(1));
  const view = { ...DEFAULTS };
  for (const name of [...BASE, ...SIDES]) if (given.has(name)) view[name] = given.get(name);
  for (const name of ["days", "baseline"]) {
    if (/^[1-9][0-9]{0,3}$/.test(given.get(name) || "")) view[name] = given.get(name);
  }
  return view;
}

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, query) {
  const key = sessionStorage.getItem(KEY);
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  const answer = await fetch(query ? `${path}?${new URLSearchParams(query)}` : path, {
    headers, cache: "no-store", redirect: "error", credentials: "omit",
  });
  const document = await answer.json();
  if (!answer.ok) throw new Refused(answer.status, document.error || answer.statusText);
  return document;
}

function question(view, by, more) {
  const query = { by, days: view.days, baseline_days: view.baseline, ...more };
  for (const name of BASE) if (view[name] !== undefined) query[name] = view[name];
  return query;
}

async function compare(view, versions) {
  const models = new Set(versions.cohorts.map((entry) => entry.model));
  const known = [...versions.cohorts].sort((a, b) => b.requests - a.requests)
    .map((entry) => entry.version);
  if (models.size !== 1 || known.length < 2 || view.version !== undefined) return null;
  const control = known.includes(view.control) ? view.control : known[0];
  const canary = known.includes(view.canary) && view.canary !== control
    ? view.canary : known.find((name) => name !== control);
  const query = { control, canary, model: [...models][0], days: Math.min(35, view.days) };
  for (const name of ["device", "app"]) if (view[name] !== undefined) query[name] = view[name];
  return [await ask("/v1/canary", query), known, { ...view, control, canary }];
}

function change(view) {
  location.hash = link(view);
}

function showFilters(view) {
  const given = BASE.filter((name) => view[name] !== undefined);
  at("title").textContent = given.map((name) => named(view[name])).join(", ") || "The fleet";
  at("filters").replaceChildren(...given.map((name) => {
    const { [name]: _gone, ...rest } = view;
    return tag("span", { class: "filter" }, `${name}: ${named(view[name])}`,
      tag("a", { href: link(rest), "aria-label": `any ${name}` }, "\u00d7"));
  }));
  for (const name of ["days", "baseline"]) {
    const choice = at(name);
    if (![...choice.options].some((option) => option.value === view[name])) {
      choice.append(tag("option", {}, view[name]));
    }
    choice.value = view[name];
  }
}

async function show() {
  const mine = ++asked;
  const view = looking();
  showFilters(view);
  at("as-of").textContent = "asking \u2026";
  document.body.dataset.state = "asking";
  at("fault").hidden = true;
  at("forget").hidden = sessionStorage.getItem(KEY) === null;
  try {
    const alerts = await ask("/v1/alerts");
    const whole = await ask("/v1/report", question(view, "", { series: "day" }));
    const versions = await ask("/v1/report", question(view, "model,version", { series: "day" }));
    const devices = await ask("/v1/report", question(view, "device"));
    const apps = await ask("/v1/report", question(view, "app"));
    const sides = await compare(view, versions);
    if (mine !== asked) return;
    const side = compared(versions, "versions", "Versions side by side", "A model's versions.",
      view, ["model", "version"]);
    add(side, [versionCharts(versions)]);
    at("main").replaceChildren(...[
      health(whole, alerts), alertsSection(alerts), overTime(whole), drift(whole), side,
      sides && canary(...sides, change),
      compared(devices, "devices", "Classes of device", "Follow one to see it alone.", view, ["device"]),
      compared(apps, "apps", "Versions of the app", "Follow one to see it alone.", view, ["app"]),
    ].filter((part) => part));
    at("ask").hidden = true;
    at("as-of").textContent = `as of ${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC`;
    document.body.dataset.state = "shown";
  } catch (error) {
    if (mine === asked) failed(error);
  }
}

function failed(error) {
  at("main").replaceChildren();
  at("as-of").textContent = "";
  document.body.dataset.state = "failed";
  if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
    at("ask-why").textContent = `The receiver: ${error.message}.`;
    at("ask").hidden = false;
    at("key").focus();
    return;
  }
  at("fault").textContent = error instanceof Refused
    ? `The receiver refused (${error.status}): ${error.message}` : `No answer: ${error.message}`;
  at("fault").hidden = false;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value);
  at("key").value = "";
  show();
});
at("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  show();
});
at("refresh").addEventListener("click", show);
for (const name of ["days", "baseline"]) {
  at(name).addEventListener("change", () => change({ ...looking(), [name]: at(name).value }));
}
addEventListener("hashchange", show);
show();
