const pad = document.getElementById("pad"), seen = document.getElementById("seen");
const ink = pad.getContext("2d", { willReadFrequently: true });
const NOTHING = "Nothing is drawn yet.";

/**
 * A drawing as an image (28, 28), or null if it is empty. As MNIST's makers did it: scaled to fit
 * into 20x20 with its proportions kept, and its centre of mass put into the middle of the field.
 */
function centred(pixels, side) {
  const marks = [];
  for (let at = 0; at < side * side; at++)
    if (pixels[4 * at + 3]) marks.push([at % side, Math.floor(at / side), pixels[4 * at + 3]]);
  if (!marks.length) return null;
  const [left, right, top, bottom] = marks.reduce(([l, r, t, b], [x, y]) =>
    [Math.min(l, x), Math.max(r, x + 1), Math.min(t, y), Math.max(b, y + 1)], [side, 0, side, 0]);
  const scale = Math.min(1, 20 / Math.max(right - left, bottom - top));
  const cell = (distance) => Math.min(19, Math.floor((distance + 0.5) * scale));
  const sums = new Float64Array(400), counts = new Float64Array(400);
  for (let y = top; y < bottom; y++)  // each of 20x20 pixels is the mean of those behind it
    for (let x = left; x < right; x++) {
      sums[20 * cell(y - top) + cell(x - left)] += pixels[4 * (side * y + x) + 3];
      counts[20 * cell(y - top) + cell(x - left)] += 1;
    }
  const small = sums.map((sum, at) => (counts[at] ? sum / counts[at] : 0));
  const mass = small.reduce((a, b) => a + b);
  const middle = (place) => small.reduce((sum, value, at) => sum + value * place(at), 0) / mass;
  const [dx, dy] = [Math.round(14 - middle((at) => at % 20)), Math.round(14 - middle((at) => Math.floor(at / 20)))];
  const field = new Uint8Array(SIDE * SIDE);
  small.forEach((value, at) => {
    const [x, y] = [(at % 20) + dx, Math.floor(at / 20) + dy];
    if (x >= 0 && x < SIDE && y >= 0 && y < SIDE) field[SIDE * y + x] = Math.round(value);
  });
  return field;
}

/** Grey images (count, side, side), of low to high, side by side. */
function paint(canvas, values, side, low, high) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (let map = 0; map < values.length / side ** 2; map++) {
    const picture = context.createImageData(side, side);
    for (let at = 0; at < side ** 2; at++) {
      const grey = (255 * (values[map * side ** 2 + at] - low)) / (high - low);
      picture.data.set([grey, grey, grey, 255], 4 * at);
    }
    context.putImageData(picture, map * (side + 1), 0);
  }
}

/** In words, and with the share of test images for which an answer as sure as that was right. */
function verdict(name, probabilities) {
  const sure = Math.max(...probabilities), digit = probabilities.indexOf(sure);
  const bin = (data.bins?.[name] ?? []).find(({ low, high }) => sure >= low && (sure < high || high === 1));
  const doubt = sure < 0.5 ? "no clear answer, perhaps " : "";
  const right = bin && ` Of ${bin.count.toLocaleString("en")} test images with an answer about as sure, ${percent(bin.accuracy, 1)} were right.`;
  return [`${data.titles[name]}: ${doubt}${digit}`, `${sureness(sure)} sure.${right ?? ""}`];
}

/** Show the answers for an image (32, 32), or none for null. */
function show(image) {
  const input = image ?? new Uint8Array(INPUT_SIDE ** 2);
  paint(seen, input, INPUT_SIDE, 0, 255);
  const maps = document.getElementById("maps");
  maps.hidden = true;
  const boxes = Object.keys(TRAINED).map((name) => {
    const found = answer(name, input);
    if (found.first && image) {
      maps.hidden = false;
      paint(document.getElementById("maps1"), found.first, 28, -1, 1);
      paint(document.getElementById("maps2"), found.second, 10, -1, 1);
    }
    const [head, text] = image ? verdict(name, found.probabilities) : [data.titles[name], NOTHING];
    const bars = found.probabilities.map((share, at) => make("div", { class: "bar" }, make("span", {}, String(at)),
      make("i", { style: `--value: ${image ? share : 0}` }), make("span", {}, image ? percent(share, 1) : "")));
    return make("div", { class: `panel ${name}` }, make("h3", {}, head), ...bars, make("p", {}, text));
  });
  document.getElementById("answers").replaceChildren(...boxes);
}

/** A page that `make serve` gave also shows the answer of that server. */
async function ask(image) {
  if (!location.protocol.startsWith("http")) return;
  const rows = Array.from({ length: SIDE }, (_, row) => [...image.slice(SIDE * row, SIDE * (row + 1))]);
  const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ inputs: [rows] }) };
  const reply = await fetch("/invocations", request).catch(() => null);
  if (!reply?.ok) return;
  const [probabilities] = (await reply.json()).predictions, sure = Math.max(...probabilities);
  const place = document.getElementById("server");
  place.hidden = false;
  place.textContent = `The champion on the server: ${probabilities.indexOf(sure)}, ${sureness(sure)} sure.`;
}

const drawn = () => centred(ink.getImageData(0, 0, pad.width, pad.height).data, pad.width);
let last = null;
function stroke(event) {
  const box = pad.getBoundingClientRect();
  const here = [event.offsetX * (pad.width / box.width), event.offsetY * (pad.height / box.height)];
  if (event.type === "pointerdown") pad.setPointerCapture(event.pointerId);
  else if (!last) return;
  pad.parentNode.classList.remove("empty");
  Object.assign(ink, { lineWidth: 24, lineCap: "round", strokeStyle: "#fff" });
  ink.beginPath();
  ink.moveTo(...(last ?? here));
  ink.lineTo(here[0] + 0.01, here[1]);  // so that a tap makes a dot
  ink.stroke();
  last = here;
  const image = drawn();
  show(image && resize(image));
}
function lift() {
  const image = last && drawn();
  if (image) ask(image);
  last = null;
}
function clear() {
  ink.clearRect(0, 0, pad.width, pad.height);
  pad.parentNode.classList.add("empty");
  document.getElementById("server").hidden = true;
  document.getElementById("source").textContent = "what the networks see";
  show(null);
}
for (const type of ["pointerdown", "pointermove"]) pad.addEventListener(type, stroke);
for (const type of ["pointerup", "pointercancel"]) pad.addEventListener(type, lift);
document.getElementById("clear").addEventListener("click", clear);
clear();
