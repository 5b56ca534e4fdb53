// The networks, for a single image: the same bits as in stages/networks. Before a product
// both operands are rounded to a grid, so its sums are exact (see stages/arithmetic/exact.py). A
// tensor is a flat array.
const SHIFT = 33, LARGEST = 255 - SHIFT, SCALE = Math.fround(1 / (255 * 0.3081));
const SIDE = 28, INPUT_SIDE = 32, KERNEL = 5;
const { fround } = Math;

const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

/** The tensors of a safetensors file, by name. */
function tensors(base64) {
  const file = bytes(base64).buffer;
  const length = Number(new DataView(file).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(file, 8, length)));
  delete header.__metadata__;
  return Object.fromEntries(Object.entries(header).map(([name, { data_offsets: [from, to] }]) =>
    [name, new Float32Array(file.slice(8 + length + from, 8 + length + to))]));
}

const largestOf = (x) => x.reduce((most, value) => Math.max(most, Math.abs(value)), 2 ** -60);
/** The step of a grid on which `largest` has at most so many steps, and at least half. */
const stepFor = (largest, steps) => 2 ** (Math.floor(Math.log2(largest / steps)) + 1);
/** Numbers rounded to multiples of a step, in float64: the addition rounds. */
const onGrid = (x, step) => Float64Array.from(x, (value) => value + 1.5 * 2 ** 52 * step - 1.5 * 2 ** 52 * step);
const scaled = (weight) => weight.map((value) => value * SCALE);

/** A fully connected layer with a weight (outputs, inputs). It rounds its inputs to the step. */
function linear(weight, bias) {
  const grid = onGrid(weight, stepFor(largestOf(weight), 2 ** 20));
  return (x, step) => {
    const rows = onGrid(x, step);
    return Float32Array.from(bias, (b, o) => {
      let sum = 0;
      for (let i = 0; i < rows.length; i++) sum += rows[i] * grid[o * rows.length + i];
      return sum + b;
    });
  };
}

/** The fully connected layer of that name. */
const layer = (w, name) => linear(w[`${name}.weight`], w[`${name}.bias`]);

/** tanh in float32, as a quotient of two polynomials. */
function tanh(value) {
  const x = Math.max(-6, Math.min(6, value)), q = fround(x * x);
  const polynomial = (factors) => factors.reduce((sum, factor) => fround(fround(sum * q) + fround(factor)));
  const above = [fround(-0.0001624208979480252), 0.06565358587676728, 7.174578374686297, 65.83511550186887];
  return fround(fround(polynomial(above) * x) / polynomial([1, 29.110855944998136, 65.83824475275695]));
}

/** A 5x5 convolution and tanh: (channels, side, side) to (outputs, side - 4, side - 4). */
function convolution(side, weight, bias, largest, step) {
  const to = side - KERNEL + 1, length = weight.length / bias.length, channels = length / KERNEL ** 2;
  const sizes = Array.from(bias, (b, o) => Math.abs(b) + largest *
    weight.subarray(o * length, (o + 1) * length).reduce((sum, value) => sum + Math.abs(value), 0));
  const grid = stepFor(largestOf(sizes), 2 ** 24 * step - largest * length - step);
  const kernels = onGrid(weight, grid), added = onGrid(bias, grid * step);
  return (x) => {
    const input = onGrid(x, step);
    return Float32Array.from({ length: bias.length * to ** 2 }, (_, at) => {
      const o = Math.floor(at / to ** 2), corner = (Math.floor(at / to) % to) * side + (at % to);
      let sum = added[o];
      for (let c = 0, i = o * length; c < channels; c++)
        for (let row = 0; row < KERNEL; row++)
          for (let column = 0; column < KERNEL; column++, i++)
            sum += kernels[i] * input[(c * side + row) * side + corner + column];
      return tanh(sum);
    });
  };
}

/** 2x2 average pooling: (channels, side, side) to (channels, side / 2, side / 2). */
const pool = (x, side) => Float32Array.from({ length: x.length / 4 }, (_, at) => {
  const corner = 4 * at - 2 * (at % (side / 2));
  return fround(fround(x[corner] + x[corner + side]) + fround(x[corner + 1] + x[corner + side + 1])) / 4;
});

function softmax(x) {
  const powers = Array.from(x, (value) => Math.exp(value - Math.max(...x)));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/** Networks from their weights and their recipe's dropout. They take pixels less SHIFT (32, 32). */
const NETWORKS = {
{{networks}}
};

/** (28, 28) to (32, 32) of 0 to 255: the same bits as Pillow's bilinear filter in `prepare`. */
function resize(image) {
  const ONE = 2 ** 22;  // Pillow counts in these parts, and rounds after each direction
  const kernel = Array.from({ length: INPUT_SIDE }, (_, at) => {
    const center = ((at + 0.5) * SIDE) / INPUT_SIDE;
    const from = Math.max(0, Math.floor(center - 0.5)), to = Math.min(SIDE, Math.floor(center + 1.5));
    const parts = Array.from({ length: to - from }, (_, i) => Math.max(0, 1 - Math.abs(from + i + 0.5 - center)));
    const sum = parts.reduce((a, b) => a + b);
    return parts.map((part, i) => [from + i, Math.floor((part / sum) * ONE + 0.5)]);
  });
  /** (rows, 28) to (32, rows): each row is resized, and the result transposed. */
  const along = (pixels, rows) => Uint8Array.from({ length: INPUT_SIDE * rows }, (_, at) => {
    let sum = ONE / 2;
    for (const [i, part] of kernel[Math.floor(at / rows)]) sum += part * pixels[(at % rows) * SIDE + i];
    return Math.floor(sum / ONE);
  });
  return along(along(image, SIDE), INPUT_SIDE);
}

const TRAINED = Object.fromEntries(Object.entries(data.weights).map(([name, file]) =>
  [name, NETWORKS[name](tensors(file), data.dropout[name])]));

/** The answer of a network for an image (32, 32) of 0 to 255. */
function answer(name, image) {
  const found = TRAINED[name](Float32Array.from(image, (pixel) => pixel - SHIFT));
  return { ...found, probabilities: softmax(found.logits) };
}
