/** One line per recipe, with a mark per model and seed, on a logarithmic scale of the error. */
const story = document.getElementById("story"), [LOW, HIGH] = data.scale;
const place = (error) => `left: ${(100 * Math.log(error / LOW)) / Math.log(HIGH / LOW)}%`;
const mark = (model, error, what) => make("i", { class: model, style: place(error), title: `${what}: ${error.toFixed(2)} % wrong` });
const row = (label, ...marks) => story.append(make("div", {}, ...label), make("div", { class: "track" }, ...marks));

for (const { title, recipes } of data.groups) {
  story.append(make("h2", {}, title));
  for (const { recipe, models } of recipes) {
    const marks = Object.entries(models).flatMap(([model, { errors, published, seeds }]) => [
      ...errors.map((error, at) => mark(model, error, `${data.titles[model]}, seed ${seeds[at]}`)),
      ...(published ? [mark("published", published, `${data.titles[model]}, published`)] : [])]);
    const means = Object.entries(models).map(([model, { mean }]) => make("b", { class: model }, mean.toFixed(2)));
    row([`${recipe} `, ...means], ...marks);
  }
}
row(["wrong (%)"], ...data.ticks.map((tick) => make("span", { style: place(tick) }, String(tick))));

document.getElementById("missed").append(...data.missed.map((text, position) => digit(position, [text])));
