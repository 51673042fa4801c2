// A drop zone: files go to the server at once and are shown small. Value: {files: [{id, name, kind, size}]}.

const SHOWN = 48;
const LANES = 3; // uploads at a time

// Files of a drop, folders opened; names keep the folders.
async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].map((file) => ({ file, name: file.name }));
  const found = [];
  async function open(entry, path) {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      if (!file.name.startsWith(".")) found.push({ file, name: path + file.name });
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) return;
      for (const inner of some) await open(inner, `${path}${entry.name}/`);
    }
  }
  for (const entry of entries) await open(entry, "");
  return found.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
}

async function thumbnail(file) {
  if (file.type.startsWith("image/")) {
    try {
      const bitmap = await createImageBitmap(file, { resizeWidth: 160, resizeQuality: "medium" });
      const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
      return canvas;
    } catch { /* a type that the browser does not draw */ }
  }
  return make("span", { class: "kind" }, (file.name.split(".").pop() || "file").slice(0, 5));
}

// `props`: label, accept, many, hint. `added(file, upload)` hears of every file that has arrived.
function filesWidget(element, props, trigger, watch, added = () => {}) {
  const list = make("div", { class: "sl-thumbs" }), note = make("p", { class: "sl-note", role: "status" });
  const input = make("input", { type: "file", accept: props.accept || null, multiple: props.many, "aria-label": props.caption });
  const zone = make("label", { class: "sl-drop" }, input, make("b", {}, props.caption), make("span", {}, props.hint || "Drop here, or tap to choose"));
  element.replaceChildren(make("div", { class: "sl-files" }, zone, list, note));
  let held = [], waiting = [], working = 0, failed = [], count = 0;

  function tell(changed) {
    const total = held.length, left = waiting.length + working;
    note.textContent = [
      total ? `${total} file${total > 1 ? "s" : ""}, ${words.size(held.reduce((sum, f) => sum + f.size, 0))}` : "",
      left ? `${left} on the way` : "", ...failed.slice(-3),
    ].filter(Boolean).join(" \u00b7 ");
    note.classList.toggle("bad", failed.length > 0);
    zone.classList.toggle("small", total + left > 0);
    if (!changed) return;
    props.value = { files: held.map(({ id, name, kind, size }) => ({ id, name, kind, size })), pending: left };
    trigger("change");
  }
  function drop(entry) {
    entry.box.remove();
    held = held.filter((f) => f !== entry);
    tell(true);
  }
  async function work() {
    const next = waiting.shift();
    if (!next) return;
    working += 1;
    const bar = make("i"), box = make("figure", { title: next.name }, bar);
    if (list.children.length < SHOWN) list.append(box);
    thumbnail(next.file).then((picture) => box.prepend(picture));
    try {
      const upload = await api.upload(next.file, next.name, (share) => { bar.style.width = 100 * share + "%"; });
      const entry = { ...upload, box, order: next.order };
      bar.remove();
      box.append(make("button", { type: "button", "aria-label": "Remove " + next.name, onclick: () => drop(entry) }, "\u00d7"));
      held.push(entry);
      held.sort((a, b) => a.order - b.order); // as they were chosen, not as they arrived
      added(next.file, entry);
    } catch (error) {
      failed.push(`${next.name}: ${error.message}`);
      box.remove();
    }
    working -= 1;
    tell(waiting.length + working === 0);
    work();
  }
  function take(files) {
    failed = [];
    if (!props.many) {
      held.forEach((entry) => entry.box.remove());
      held = [];
      files = files.slice(0, 1);
    }
    waiting.push(...files.map((file) => ({ ...file, order: count++ })));
    tell(true);
    for (let i = working; i < LANES; i++) work();
  }
  input.addEventListener("change", () => {
    take([...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
    input.value = "";
  });
  for (const kind of ["dragenter", "dragover"]) zone.addEventListener(kind, (e) => { e.preventDefault(); zone.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) zone.addEventListener(kind, () => zone.classList.remove("over"));
  zone.addEventListener("drop", async (e) => { e.preventDefault(); take(await droppedFiles(e.dataTransfer)); });
  watch("value", () => {
    if (props.value?.files?.length || !held.length) return;
    held.forEach((entry) => entry.box.remove());
    held = [];
    tell(false);
  });
  return { take };
}
