// What `sightline prepare` made: its pictures and a table of its manifest, by modality and split.

const MANIFEST = "data/manifest.json", ROWS = 200;

async function dataParts(job, results, gallery) {
  if (!results.some((r) => r.name === MANIFEST)) return [];
  const { records } = await (await fetch(api.file(job.id, MANIFEST))).json();
  const made = new Map(results.map((r) => [r.name, r]));
  const pictures = make("div"), body = make("tbody"), note = make("p", { class: "sl-note", role: "status" });
  const choices = ["modality", "split"].map((key) => {
    const values = [...new Set(records.map((r) => r[key] ?? ""))].filter(Boolean).sort();
    const select = make("select", { "aria-label": key, onchange: show }, make("option", { value: "" }, "all"), ...values.map((v) => make("option", {}, v)));
    return { key, values, select };
  });
  function show() {
    const chosen = records.filter((r) => choices.every(({ key, select }) => !select.value || r[key] === select.value));
    pictures.replaceChildren(gallery(job, chosen.map((r) => made.get("data/" + r.file)).filter(Boolean)));
    body.replaceChildren(...chosen.slice(0, ROWS).map((r) => make("tr", {}, ...[r.file, r.modality, r.kind, `${r.width} \u00d7 ${r.height}`, r.group, r.split].map((cell) => make("td", {}, cell ?? "")))));
    note.textContent = `${chosen.length} of ${records.length} records` + (chosen.length > ROWS ? `; the first ${ROWS} are listed` : "");
  }
  show();
  const filters = choices.filter(({ values }) => values.length).map(({ key, select }) => make("label", {}, key, select));
  const head = ["file", "modality", "kind", "size", "group", "split"].map((name) => make("th", {}, name));
  const table = make("table", { class: "sl-facts sl-records" }, make("thead", {}, make("tr", {}, ...head)), body);
  const list = make("details", { class: "sl-part" }, make("summary", {}, "Manifest"), make("div", { class: "sl-scroll" }, table));
  return [make("div", { class: "sl-row" }, ...filters, note), pictures, list];
}
