const NAMES = Object.keys(data.titles);
const at = (section) => document.querySelector(`#${section} .pair`);

// --- learning curves ---

for (const name of NAMES)
  for (const [metric, label, format] of [
    ["loss", "cross-entropy loss (nats, logarithmic)", (value) => value.toFixed(4)],
    ["accuracy", "accuracy (%)", (value) => percent(value / 100)],
  ]) {
    const scale = metric === "accuracy" ? 100 : 1, history = data.histories[name];
    const lines = ["train", "test"].map((split) => ({ name: split, model: name, dashed: split === "train",
      points: history.epoch.map((x, index) => ({ x, y: scale * history[`${split}_${metric}`][index] })) }));
    at("curves").append(chart(`${data.titles[name]} ${metric}`, "epoch", label, lines, format, metric === "loss"));
  }

// --- calibration ---

for (const name of NAMES) {
  const points = data.bins[name].map((bin) => ({ x: 100 * bin.confidence, y: 100 * bin.accuracy,
    low: 100 * bin.accuracy_low, high: 100 * bin.accuracy_high, note: ` of ${bin.count.toLocaleString("en")} images` }));
  const ideal = points.map(({ x }) => ({ x, y: x }));
  const lines = [{ name: "right", model: name, points }, { name: "if perfectly calibrated", model: "", dashed: true, points: ideal }];
  const drawn = chart(data.titles[name], "confidence (%)", "right answers (%)", lines, (value) => percent(value / 100, 1));
  at("calibration").append(drawn);
}

// --- images ---

/** Give an image of the page to the networks. */
function feed(position) {
  const picture = new Image();
  picture.onload = () => {
    const canvas = make("canvas", { width: INPUT_SIDE, height: INPUT_SIDE }).getContext("2d");
    canvas.drawImage(picture, -INPUT_SIDE * (position % data.columns), -INPUT_SIDE * Math.floor(position / data.columns));
    clear();
    document.getElementById("source").textContent = `test image ${data.shown[position].index}`;
    show(canvas.getImageData(0, 0, INPUT_SIDE, INPUT_SIDE).data.filter((_, channel) => channel % 4 === 0));
    document.getElementById("draw").scrollIntoView();
    document.getElementById("clear").focus({ preventScroll: true });
  };
  picture.src = `data:image/png;base64,${data.images}`;
}

function images(positions, names) {
  return positions.map((position) => {
    const { index, actual, answers } = data.shown[position];
    const said = names.map((name) => `${data.titles[name]}: ${answers[name][0]} (${sureness(answers[name][1])})`);
    return digit(position, [`no. ${index}: ${actual}`, ...said.flatMap((one) => [make("br"), one])], feed);
  });
}

// One scale for all networks, as in confusion.png: an equal shade is an equal share of mistakes
const sum = (row) => row.reduce((a, b) => a + b);
const wrongShares = (row, actual) => row.filter((_, predicted) => predicted !== actual).map((count) => count / Math.max(1, sum(row)));
const darkest = Math.max(0.01, ...NAMES.flatMap((name) => data.matrices[name].flatMap(wrongShares)));

for (const name of NAMES) {
  const counts = data.matrices[name], total = counts.map(sum);
  const share = (actual, predicted) => counts[actual][predicted] / Math.max(1, total[actual]);
  const digits = counts.map((_, number) => number);
  const open = (actual, predicted, button) => {
    for (const other of document.querySelectorAll(".matrix button")) other.setAttribute("aria-pressed", other === button);
    const positions = data.cells[name][`${actual}-${predicted}`] ?? [], count = counts[actual][predicted];
    const what = actual === predicted ? `${actual}, and right` : `${actual}, taken for ${predicted}`;
    const shown = positions.length < count ? `, ${positions.length} of them here` : "";
    const head = make("h3", {}, `${data.titles[name]}: ${what}: ${count} test image${count === 1 ? "" : "s"}${shown}`);
    document.getElementById("behind").replaceChildren(head, make("div", { class: "digits" }, ...images(positions, [name])));
  };
  const cell = (actual, predicted) => {
    const right = actual === predicted, count = counts[actual][predicted];
    if (!count) return make("td");
    const depth = right ? 0 : (50 * share(actual, predicted)) / darkest;
    const button = make("button", { class: right ? "right" : "", style: `--share: ${depth}%`, "aria-pressed": "false",
      "aria-label": `${count} images of ${actual}, answer ${predicted}`, click: () => open(actual, predicted, button) }, String(count));
    return make("td", {}, button);
  };
  const headers = digits.map((predicted) => make("th", { scope: "col" }, String(predicted)));
  const rows = digits.map((actual) => make("tr", {}, make("th", { scope: "row" }, String(actual)), ...digits.map((p) => cell(actual, p))));
  const table = make("table", { class: "matrix" }, make("tr", {}, make("td"), ...headers), ...rows);
  const wrong = digits.reduce((sum, a) => sum + total[a] - counts[a][a], 0);
  const scale = make("p", { class: "soft" }, "Row: the digit. Column: the answer. Shade: share of the digit's images, 0\u00a0%",
    make("span", { class: "scale" }), percent(darkest, 1));
  at("confusion").append(make("div", { class: `panel ${name}` }, make("h3", {}, `${data.titles[name]}: ${wrong} mistakes`), table, scale));
}

document.querySelector("#missed p").textContent = `${data.missed_count} test images are wrong for all networks.` +
  (data.missed.length < data.missed_count ? ` The first ${data.missed.length},` : " All of them,") +
  " each with its number and label, and the answers:";
document.querySelector("#missed .digits").append(...images(data.missed, NAMES));
