// Lines over days, as inline SVG with the classes of a report's charts.

const WIDTH = 560;
const HEIGHT = 210;
const LEFT = 58;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 28;

function niceStep(span, wanted) {
  const raw = span / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const factor = [1, 2, 5, 10].find((f) => f * power >= raw);
  return factor * power;
}

function scales(first, last, values) {
  const top = Math.max(...values, 0) || 1;
  const step = niceStep(top, 4);
  const high = Math.ceil(top / step - 1e-9) * step;
  const wide = WIDTH - LEFT - RIGHT;
  const x = (day) => LEFT + (last === first ? wide / 2 : (day - first) / (last - first) * wide);
  const y = (value) => HEIGHT - BOTTOM - value / high * (HEIGHT - BOTTOM - TOP);
  const ticks = [];
  for (let value = 0; value <= high * (1 + 1e-9); value += step) ticks.push(value);
  return { x, y, ticks };
}

// Runs of days that follow each other: where a day is missing, a line has a gap.
function runs(points) {
  const found = [];
  for (const point of points) {
    const run = found.at(-1);
    if (run && point.day === run.at(-1).day + 1) run.push(point);
    else found.push([point]);
  }
  return found;
}

function through(points, x, y, of) {
  return "M" + points.map((p) => `${x(p.day).toFixed(1)} ${y(of(p)).toFixed(1)}`).join("L");
}

function drawLine(line, index, { x, y }, form) {
  const group = svg("g", { class: `c${index % 6}` });
  for (const run of runs(line.points)) {
    const banded = run.filter((p) => p.low !== undefined);
    if (banded.length > 1) {
      const back = [...banded].reverse();
      const edge = through(back, x, y, (p) => p.low).replace("M", "L");
      group.append(svg("path", { class: "band", d: through(banded, x, y, (p) => p.high) + edge }));
    }
    if (run.length > 1) {
      group.append(svg("path", { class: "line", d: through(run, x, y, (p) => p.value) }));
    }
    for (const point of run) {
      if (run.length === 1 && point.low !== undefined) {
        const at = x(point.day);
        group.append(svg("line", {
          class: "whisker", x1: at, x2: at, y1: y(point.low), y2: y(point.high),
        }));
      }
      const text = `${line.name}, ${date(point.day)}: ${form(point.value)}`;
      group.append(svg("circle", {
        class: point.beyond ? "dot beyond" : "dot", cx: x(point.day), cy: y(point.value), r: 3,
      }, svg("title", {}, text)));
    }
  }
  if (line.limit) {
    for (const run of runs(line.limit)) {
      const d = run.length > 1
        ? through(run, x, y, (p) => p.value)
        : `M${x(run[0].day) - 8} ${y(run[0].value)}h16`;
      group.append(svg("path", { class: "limit", d }));
    }
  }
  return group;
}

// lines: [{ name, points: [{ day, value, low?, high?, beyond? }], limit?: [{ day, value }] }]
function chart(title, caption, lines, form, first, last) {
  const shown = lines.filter((line) => line.points.length);
  const box = tag("figure", {}, tag("figcaption", {}, tag("strong", {}, title), " ",
    tag("span", {}, caption)));
  if (!shown.length) return add(box, [tag("p", { class: "note" }, "Nothing to show.")]);
  const values = shown.flatMap((line) => [
    ...line.points.flatMap((p) => [p.value, p.high === undefined ? p.value : p.high]),
    ...(line.limit || []).map((p) => p.value),
  ]);
  const { x, y, ticks } = scales(first, last, values);
  const picture = svg("svg", {
    class: "chart curves", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title,
  });
  for (const value of ticks) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    picture.append(svg("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" },
      form(value)));
  }
  const ends = first === last ? [[first, "middle"]] : [[first, "start"], [last, "end"]];
  for (const [day, anchor] of ends) {
    picture.append(svg("text", { class: "tick", x: x(day), y: HEIGHT - 8, "text-anchor": anchor },
      date(day)));
  }
  shown.forEach((line, i) => picture.append(drawLine(line, i, { x, y }, form)));
  const legend = shown.length > 1
    ? tag("ul", { class: "legend" }, shown.map((line, i) =>
      tag("li", { class: `c${i % 6}` }, tag("span", {}, line.name))))
    : null;
  return add(box, [picture, legend]);
}
