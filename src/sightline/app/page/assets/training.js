// What a training has logged so far: a curve for each column of its tables, and its pictures.

const LOGS = "run/logs/", MOST_CURVES = 12;
const NO_CURVE = ["step", "items_per_second"];
const FIRST = ["loss", "lr"];

// Columns of a CSV table; a row that is only half written is left out.
function columnsOf(text) {
  const lines = text.slice(0, text.lastIndexOf("\n") + 1).trimEnd().split("\n"), names = lines[0].split(",");
  const columns = Object.fromEntries(names.map((name) => [name, []]));
  for (const line of lines.slice(1)) {
    line.split(",").forEach((cell, i) => { if (cell !== "" && Number.isFinite(+cell)) columns[names[i]].push(+cell); });
  }
  return columns;
}

async function trainingCurves(job, results) {
  const figures = [];
  for (const kind of ["train", "validation"]) {
    const table = results.find((r) => r.name === `${LOGS}${kind}.csv`);
    if (!table) continue;
    const columns = columnsOf(await (await fetch(api.file(job.id, table.name))).text());
    const rest = Object.keys(columns).filter((name) => !FIRST.includes(name) && !NO_CURVE.includes(name));
    for (const name of [...FIRST, ...rest]) {
      if (columns[name]?.length) figures.push(curve(columns[name], kind === "train" ? name : `${name}, validation`));
    }
  }
  return make("div", { class: "sl-curves" }, ...figures.filter(Boolean).slice(0, MOST_CURVES));
}

// The newest pictures while it runs, all of them afterwards.
function trainingPictures(results, most) {
  return results.filter((r) => /^run\/pictures\/.*\.(png|jpe?g)$/.test(r.name)).slice(-most);
}
