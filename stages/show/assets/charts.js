"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = ["svg", "g", "path", "line", "circle", "text"];
const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)}\u00a0%`;
const sureness = (share) => (share > 0.9995 ? "over 99.9\u00a0%" : percent(share, 1));

/** An element with attributes and children. An attribute that is a function listens to an event. */
function make(name, attributes = {}, ...children) {
  const found = SVG.includes(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes))
    if (typeof value === "function") found.addEventListener(key, value);
    else found.setAttribute(key, value);
  found.append(...children);
  return found;
}

/** About five round numbers from low to high. */
function ticks(low, high, log = false) {
  if (log) return [-3, -2, -1, 0, 1].flatMap((power) => [1, 2, 3, 5].map((digit) => Number(`${digit}e${power}`)))
    .filter((tick, at, all) => (all[at + 1] ?? tick) > low && (all[at - 1] ?? tick) < high);  // and one on each side
  const power = 10 ** Math.floor(Math.log10((high - low) / 5));
  const step = power * [1, 2, 5, 10].find((factor) => power * factor * 6 >= high - low);
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, at) => Number(((first + at) * step).toPrecision(6)));
}

/**
 * A chart of lines over one axis. The values at one x stand in the legend: the pointer or the arrow
 * keys choose x.
 *
 * lines: [{name, model, dashed, points: [{x, y, low, high, note}]}]; format: y to text; log: whether y
 * is on a logarithmic scale.
 */
function chart(title, xLabel, yLabel, lines, format, log = false) {
  const scale = log ? Math.log : (y) => y;
  const [width, height, left, right, top, bottom] = [480, 300, 48, 14, 10, 44];
  const points = lines.flatMap((line) => line.points);
  const xs = [...new Set(points.map((point) => point.x))].sort((a, b) => a - b);
  const range = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return low < high ? [low, high] : [low - 1, high + 1];
  };
  const [x0, x1] = range(xs);
  // The axis of the values ends at its first and last tick, which lie around all values
  const [low, high] = range(points.flatMap((point) => [point.y, point.low ?? point.y, point.high ?? point.y]));
  const steps = ticks(low, high, log), step = steps[1] - steps[0];
  if (!log && steps[0] > low) steps.unshift(Number((steps[0] - step).toPrecision(6)));
  if (!log && steps.at(-1) < high) steps.push(Number((steps.at(-1) + step).toPrecision(6)));
  const [y0, y1] = [steps[0], steps.at(-1)];
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((scale(y) - scale(y0)) / (scale(y1) - scale(y0))) * (height - top - bottom);
  const figure = make("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "slider",
    "aria-label": `${title}: ${yLabel} by ${xLabel}`, "aria-valuemin": x0, "aria-valuemax": x1 });
  for (const y of steps)
    figure.append(make("line", { class: "grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }),
      make("text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, y.toLocaleString("en")));
  for (const x of new Set([...(x0 === 1 ? [1] : []), ...ticks(x0, x1)]))
    figure.append(make("text", { x: px(x), y: height - bottom + 18, "text-anchor": "middle" }, String(x)));
  figure.append(make("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel));
  const guide = make("line", { class: "guide", y1: top, y2: height - bottom });
  figure.append(guide);
  const legend = make("ul", { class: "legend" });
  const shown = lines.map((line) => {
    const style = `${line.model} ${line.dashed ? "dashed" : ""}`;
    const path = line.points.map(({ x, y }, at) => `${at ? "L" : "M"}${px(x)} ${py(y)}`).join("");
    figure.append(make("path", { class: `mark ${style}`, d: path }));
    for (const { x, y, low, high } of line.points) {
      figure.append(make("circle", { class: `dot ${style}`, cx: px(x), cy: py(y), r: 2.5 }));
      if (low !== undefined)
        figure.append(make("path", { class: `mark ${line.model}`, d: `M${px(x)} ${py(low)}V${py(high)}` }));
    }
    const value = make("output");
    legend.append(make("li", { class: style }, `${line.name} `, value));
    return value;
  });
  let at = xs.length - 1;
  const show = (index) => {
    at = Math.max(0, Math.min(xs.length - 1, index));
    guide.setAttribute("x1", px(xs[at]));
    guide.setAttribute("x2", px(xs[at]));
    lines.forEach((line, number) => {
      const point = line.points.find(({ x }) => x === xs[at]);
      shown[number].textContent = point ? format(point.y) + (point.note ?? "") : "";
    });
    figure.setAttribute("aria-valuenow", xs[at]);
    figure.setAttribute("aria-valuetext", `${xLabel} ${xs[at]}: ${legend.textContent}`);
  };
  figure.addEventListener("pointermove", (event) => {
    const box = figure.getBoundingClientRect();
    const x = x0 + ((((event.clientX - box.left) / box.width) * width - left) / (width - left - right)) * (x1 - x0);
    const distances = xs.map((other) => Math.abs(other - x));
    show(distances.indexOf(Math.min(...distances)));
  });
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -xs.length, End: xs.length }[event.key];
    if (step) { show(at + step); event.preventDefault(); }
  });
  show(at);
  const unit = make("p", { class: "soft" }, yLabel);
  return make("div", { class: "panel" }, make("h3", {}, title), unit, figure, legend);
}

/** An image of the sprite with a text below; a button if something happens when it is pressed. */
function digit(position, text, pressed) {
  const place = `-${64 * (position % data.columns)}px -${64 * Math.floor(position / data.columns)}px`;
  const image = make("i", { role: "img", "aria-label": "image", style: `background-position: ${place}; background-size: ${64 * data.columns}px` });
  return make(pressed ? "button" : "div", pressed ? { click: () => pressed(position) } : {}, image, ...text);
}
if (data.images)
  document.documentElement.style.setProperty("--images", `url(data:image/png;base64,${data.images})`);
