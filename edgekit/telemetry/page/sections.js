// What the page says, out of the receiver's documents.

const SHOWN_ROWS = 200;
const SHOWN_LINES = 6;

function section(id, title, lead, ...children) {
  return tag("section", { id, "aria-labelledby": `${id}-title` },
    tag("h2", { id: `${id}-title` }, title), tag("p", { class: "lead" }, lead), children);
}

// What is not shown is said, never guessed.
function suppressed(report) {
  const { k, base_cells: { left_out: out } } = report;
  const what = "of a model's version on a class of device in a version of the app";
  if (out === 0) return `Each figure is of at least ${k} devices on a day; no group is left out.`;
  const many = out === null ? "Some groups" : out === 1 ? "1 group" : `${count(out)} groups`;
  return `${many} ${what} on a day had fewer than k = ${k} devices: suppressed, and left out of `
    + "every figure here, totals too.";
}

function tile(title, shown, said, kind) {
  return tag("div", { class: `tile ${kind || ""}` }, tag("dt", {}, title),
    tag("dd", {}, tag("b", {}, shown), tag("span", {}, said)));
}

function rateTile(title, name, entry, what) {
  const bounds = entry[`${name}_ci95`];
  const said = bounds ? `${interval(bounds)} (95 %), ${what}` : `no interval: ${what}`;
  return tile(title, figure(name, entry[name], percent), said);
}

// What drift is told against: [how it is called, the features of an entry].
const AGAINST = [
  ["earlier days", (entry) => entry.drift || {}],
  ["bundles", (entry) => (entry.reference_drift || { features: {} }).features],
];

function drifted(entry) {
  const features = AGAINST.flatMap(([, of]) => Object.values(of(entry)));
  return [features.filter((one) => one.flagged).length,
    features.filter((one) => one.flagged !== null).length];
}

function health(whole, alerts) {
  const entry = whole.cohorts[0];
  const note = tag("p", { class: "note", id: "suppressed" }, suppressed(whole));
  const lead = `${date(whole.first_day)} to ${date(whole.last_day)}, days of UTC.`;
  if (!entry) {
    return section("health", "Health", lead, note, tag("p", { class: "note missing" },
      `Nothing to show: there is no group of ${whole.k} devices or more.`));
  }
  const speed = latency(entry);
  const [beyond, told] = drifted(entry);
  const firing = alerts ? alerts.rules.filter((rule) => rule.state === "firing") : [];
  const said = speed.count
    ? `p50 ${milliseconds(speed.p50)}, p90 ${milliseconds(speed.p90)}; each within `
      + `${percent(speed.relative_error)}` : "nothing was timed";
  return section("health", "Health", lead, note, tag("dl", { class: "tiles" },
    tile("devices", figure("devices", entry.devices, count), "on the day that had the most"),
    tile("requests", figure("requests", entry.requests, count),
      `${count(entry.device_days)} device-days`),
    rateTile("errors", "error_rate", entry, "of requests"),
    rateTile("crashes", "crash_rate", entry, "of device-days had one"),
    rateTile("fallbacks", "fallback_rate", entry, "of requests not answered on the device"),
    tile("latency, p99", figure("p99", speed.p99, milliseconds), said),
    tile("drift", told ? figure("drifted", beyond, count) : NONE,
      told ? `of ${told} features beyond their limits` : "too little to tell",
      beyond ? "failed" : told ? "held" : "unknown"),
    alerts && alerts.rules.length ? tile("alerts", figure("firing", firing.length, count),
      `of ${alerts.rules.length} rules`, firing.length ? "failed" : "held") : null));
}

function points(series, value, bounds) {
  return series.filter((day) => value(day) !== null && value(day) !== undefined).map((day) => {
    const [low, high] = (bounds && bounds(day)) || [];
    return { day: day.day, value: value(day), low, high };
  });
}

function rates(series, first, last) {
  const one = (name, title) => ({
    name: title, points: points(series, (d) => d[name], (d) => d[`${name}_ci95`]),
  });
  return [
    chart("Errors and fallbacks", "Shares of requests, with 95 % intervals.",
      [one("error_rate", "errors"), one("fallback_rate", "fallbacks")], percent, first, last),
    chart("Crashes", "Share of device-days with one or more, with 95 % intervals.",
      [one("crash_rate", "crashes")], percent, first, last),
  ];
}

function overTime(whole) {
  const series = (whole.cohorts[0] || {}).series || [];
  const first = whole.first_day;
  const last = whole.last_day;
  const error = series.map((day) => latency(day).relative_error).find((e) => e !== undefined);
  const line = (p) => ({ name: p, points: points(series, (day) => latency(day)[p]) });
  const bound = error === undefined ? "" : `, each within ${percent(error)} of the value of its rank`;
  return section("time", "Over time",
    "Days on which there were too few devices, or none, have no point.",
    tag("div", { class: "charts" },
      chart("Requests", "Answered in a day.",
        [{ name: "requests", points: points(series, (d) => d.requests) }], count, first, last),
      chart("Latency on the device", `Percentiles of merged histograms${bound}.`,
        ["p50", "p90", "p99"].map(line), milliseconds, first, last),
      rates(series, first, last)));
}

function driftLine(series, of, feature, distance) {
  const one = (day) => (of(day)[feature] || { distances: {} }).distances[distance];
  const told = series.filter(one);
  return {
    name: feature,
    points: told.map((day) => ({
      day: day.day, value: one(day).value, beyond: one(day).value > one(day).limit,
    })),
    limit: told.map((day) => ({ day: day.day, value: one(day).limit })),
  };
}

function driftTable(caption, features) {
  const rows = Object.entries(features).map(([feature, one]) => [
    feature,
    one.flagged === null ? badge("unknown", "too little")
      : one.flagged ? badge("failed", "drift") : badge("held", "none"),
    ...["psi", "js", "ks"].map((name) => {
      const found = one.distances[name];
      return found ? [figure(`${feature} ${name}`, found.value, plain),
        tag("span", { class: "interval" }, `limit ${three(found.limit)}`)] : NONE;
    }),
    count(one.counts[1]),
  ]);
  return table(caption, ["feature", "", "PSI", "Jensen-Shannon", "Kolmogorov-Smirnov", "counted"],
    rows, ["", "", "number", "number", "number", "number"]);
}

function driftAgainst(whole, title, said, of) {
  const entry = whole.cohorts[0] || {};
  const series = entry.series || [];
  const features = [...new Set([entry, ...series].flatMap((e) => Object.keys(of(e))))].sort();
  if (!features.length) {
    return [tag("h3", {}, title), tag("p", { class: "note missing" },
      "Nothing to compare: no feature has enough counts on both sides.")];
  }
  const charts = features.flatMap((feature) => [["psi", "PSI"],
    ["js", "Jensen-Shannon divergence"]].map(([distance, name]) =>
    chart(`${feature}: ${name}`, "Day by day.",
      [driftLine(series, of, feature, distance)], plain, whole.first_day, whole.last_day)));
  return [tag("h3", {}, title), driftTable(said, of(entry)), tag("div", { class: "charts" }, charts)];
}

function drift(whole) {
  const [[, earlier], [, bundles]] = AGAINST;
  const entry = whole.cohorts[0] || {};
  const parts = [];
  if (whole.references) {
    const bare = Object.entries((entry.reference_drift || { no_reference: {} }).no_reference);
    parts.push(tag("div", { id: "from-bundles" }, driftAgainst(whole,
      "Against what bundles were proven on", "Devices that have these very bundles", bundles)));
    if (bare.length) {
      parts.push(tag("p", { class: "note" }, "No reference, as no bundle of theirs was given or it "
        + "has none: ", bare.map(([name, share]) => `${name} (${percent(share)})`).join(", ")));
    }
  }
  if (whole.baseline) {
    const [from, to] = whole.baseline.map(date);
    parts.push(tag("div", { id: "from-days" }, driftAgainst(whole, "Against earlier days",
      `All days together, against ${from} to ${to}`, earlier)));
  }
  return section("drift", "Drift",
    "A limit follows from how many were counted; the dashed line is it, and a day beyond it is red.",
    parts);
}

function row(entry, first) {
  const speed = latency(entry);
  const [beyond, told] = drifted(entry);
  return [first, figure("devices", entry.devices, count), figure("requests", entry.requests, count),
    withInterval(figure("error_rate", entry.error_rate, percent), entry.error_rate_ci95),
    withInterval(figure("crash_rate", entry.crash_rate, percent), entry.crash_rate_ci95),
    withInterval(figure("fallback_rate", entry.fallback_rate, percent), entry.fallback_rate_ci95),
    ...["p50", "p90", "p99"].map((p) => figure(p, speed[p], milliseconds)),
    !told ? NONE : beyond ? badge("failed", `${beyond} of ${told}`) : badge("held", "none")];
}

const HEADERS = ["devices", "requests", "errors", "crashes", "fallbacks", "p50", "p90", "p99", "drift"];
const KINDS = ["", ...HEADERS.slice(0, -1).map(() => "number"), ""];

function compared(report, id, title, lead, view, columns) {
  const entries = [...report.cohorts].sort((a, b) => b.requests - a.requests);
  const rows = entries.slice(0, SHOWN_ROWS).map((entry) => {
    const chosen = Object.fromEntries(columns.map((name) => [name, entry[name]]));
    const text = columns.map((name) => named(entry[name])).join(" ");
    return row(entry, tag("a", { href: link({ ...view, ...chosen }) }, text));
  });
  const worst = Math.max(0, ...entries.map((entry) => latency(entry).relative_error || 0));
  const caption = `Latency on the device, each percentile within ${percent(worst)} of the value of `
    + "its rank; 95 % intervals under the rates."
    + (entries.length > SHOWN_ROWS ? ` The ${SHOWN_ROWS} with the most requests of ${entries.length}.` : "");
  return section(id, title, lead, rows.length
    ? table(caption, [columns.join(" "), ...HEADERS], rows, KINDS)
    : tag("p", { class: "note missing" }, "Nothing that is of enough devices."));
}

function versionCharts(report) {
  const entries = [...report.cohorts].sort((a, b) => b.requests - a.requests).slice(0, SHOWN_LINES);
  if (entries.length < 2) return null;
  const of = (value, bounds) => entries.map((entry) => ({
    name: `${named(entry.model)} ${named(entry.version)}`,
    points: points(entry.series || [], value, bounds),
  }));
  const { first_day: first, last_day: last } = report;
  return tag("div", { class: "charts" },
    chart("Errors by version", "Share of requests, with 95 % intervals.",
      of((d) => d.error_rate, (d) => d.error_rate_ci95), percent, first, last),
    chart("p99 by version", "On the device.", of((d) => latency(d).p99), milliseconds, first, last));
}

function sides(versions, view, change) {
  const options = (chosen) => versions.map((name) =>
    tag("option", { value: name, selected: name === chosen ? "" : null }, named(name)));
  return tag("p", { class: "controls" }, ["control", "canary"].map((side) => {
    const choice = tag("select", { id: side }, options(view[side]));
    choice.addEventListener("change", () => change({ ...view, [side]: choice.value }));
    return tag("label", {}, `${side} `, choice);
  }));
}

function canary(found, versions, view, change) {
  const lead = "Whether devices with the canary fail more often than those with the control, by a "
    + "test that may be looked at as often as one likes.";
  const verdict = found.worse === null
    ? badge("unknown", `no day on which both have ${found.k} devices of a kind`)
    : found.worse ? badge("failed", `worse, since ${date(found.since_day)}`)
      : badge("held", "not worse as far as one can tell");
  const rows = [found.control, found.canary].map((side) => [side.version,
    figure("device_days", side.device_days, count), figure("failed", side.failed, count),
    figure("failed_share", side.device_days ? side.failed / side.device_days : null, percent)]);
  return section("canary", "Canary against control", lead, sides(versions, view, change),
    tag("p", {}, verdict, " p ", figure("p", found.p, plain), ` (alpha ${found.alpha})`),
    table("Device-days, and those with a crash or errors in more than 5 % of requests",
      ["version", "device-days", "failed", "share"], rows, ["", "number", "number", "number"]));
}

function alertsSection(alerts) {
  if (!alerts || !alerts.rules.length) return null;
  const kinds = { firing: "failed", pending: "unknown", unknown: "unknown", ok: "held" };
  const rows = alerts.rules.map((rule) => [rule.name, rule.kind,
    badge(kinds[rule.state], rule.state), rule.said,
    rule.since_s === null ? NONE : new Date(rule.since_s * 1000).toISOString().slice(0, 16) + "Z"]);
  return section("alerts", "Alerts", "By the receiver's rules.",
    table("Rules", ["rule", "kind", "state", "what was found", "since"], rows, []));
}
