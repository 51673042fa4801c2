// What a training has logged so far: a curve for each column of its tables, and its pictures.

const LOGS = "run/logs/", MOST_CURVES = 12;
const NO_CURVE = ["step", "items_per_second"];
const FIRST = ["loss", "lr"], MEAN = "mean ";

// Columns of a CSV table; a row that is only half written is left out.
function columnsOf(text) {
  const lines = text.slice(0, text.lastIndexOf("\n") + 1).trimEnd().split("\n"), names = lines[0].split(",");
  const columns = Object.fromEntries(names.map((name) => [name, []]));
  for (const line of lines.slice(1)) {
    line.split(",").forEach((cell, i) => { if (cell !== "" && Number.isFinite(+cell)) columns[names[i]].push(+cell); });
  }
  return columns;
}

// Loss and rate, then what validation says, then the parts of the loss: the last may be cut off. Flat
// curves ("mean NAME" beside NAME: the mean of the data) are the report's.
async function trainingCurves(job, results) {
  const tables = {};
  for (const kind of ["train", "validation"]) {
    const table = results.find((r) => r.name === `${LOGS}${kind}.csv`);
    tables[kind] = table ? columnsOf(await (await fetch(api.file(job.id, table.name))).text()) : {};
  }
  const names = (kind) => Object.keys(tables[kind]).filter((name) => !NO_CURVE.includes(name) && !(name.startsWith(MEAN) && name.slice(MEAN.length) in tables[kind]));
  const own = (name) => tables.train[name]?.length && curve(tables.train[name], name);
  const figures = [
    ...FIRST.map(own),
    ...names("validation").map((name) => curve(tables.validation[name], `${name}, validation`)),
    ...names("train").filter((name) => !FIRST.includes(name)).map(own),
  ];
  return make("div", { class: "sl-curves" }, ...figures.filter(Boolean).slice(0, MOST_CURVES));
}

// The newest pictures while it runs, all of them afterwards.
function trainingPictures(results, most) {
  return results.filter((r) => /^run\/pictures\/.*\.(png|jpe?g)$/.test(r.name)).slice(-most);
}
