/** One line per recipe, with a mark per model and seed, on the scale of story.png. */
const story = document.getElementById("story"), [LOW, HIGH] = data.scale;
const place = (error) => `left: ${100 - (100 * Math.log(error / LOW)) / Math.log(HIGH / LOW)}%`;
const right = (error, digits = 2) => (100 - error).toFixed(digits);
const mark = (model, error, what) => make("i", { class: model, style: place(error), title: `${what}: ${right(error)} % right` });
const row = (label, means, marks) => story.append(make("div", {}, label), ...means,
  make("div", { class: "track" }, ...data.ticks.map((tick) => make("s", { style: place(tick) })), ...marks));

const models = Object.keys(data.titles);
const keys = [...models.map((name) => [name, `${data.titles[name]}, a seed`]), ["mean", "mean of the seeds"], ["published", "published experiment"]];
document.getElementById("keys").append(...keys.map(([name, text]) => make("li", {}, make("i", { class: name }), text)));
for (const { title, recipes } of data.groups) {
  story.append(make("strong", {}, title), ...models.map((name) => make("b", {}, data.titles[name])), make("span"));
  for (const { recipe, models } of recipes)
    row(recipe, Object.values(models).map(({ shown }) => make("span", {}, shown)),
      Object.entries(models).flatMap(([model, { errors, published, seeds, mean }]) => [
        ...errors.map((error, at) => mark(model, error, `${data.titles[model]}, seed ${seeds[at]}`)),
        mark("mean", mean, `${data.titles[model]}, mean`),
        ...(published ? [mark("published", published, `${data.titles[model]}, published`)] : [])]));
}
story.append(make("div", { class: "axis" }, ...data.ticks.map((tick) => make("span", { style: place(tick) }, String(Number(right(tick)))))));

document.getElementById("missed").append(...data.missed.map((text, position) =>
  digit(position, text.split(/[;,] /).flatMap((part) => [part, make("br")]))));
