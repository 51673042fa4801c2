// Marks objects in pictures: a box, paint, or clicks on and off the object. Marks are in pixels of
// the upright picture. Value: {files: [upload], marks: [{image, class, box | points + inside | mask}]}.

const MARK_SIDE = 1024; // of painted masks

function markerWidget(element, props, trigger, watch) {
  const host = make("div"), canvas = make("canvas", { class: "sl-canvas", tabindex: 0, "aria-label": "Picture to mark objects in" });
  const state = { pictures: [], at: -1, tool: "box", classes: [], label: "", marks: [], stroke: null, hover: null };
  const name = make("input", { type: "text", placeholder: "name of the object", "aria-label": "class", maxlength: 60 });
  const chips = make("div", { class: "sl-chips" }), strip = make("div", { class: "sl-thumbs" }), note = make("p", { class: "sl-note", role: "status" });
  const tools = make("div", { class: "sl-row" });
  const size = make("input", { type: "range", min: 4, max: 120, value: 36, "aria-label": "Brush size" });
  for (const [tool, text] of [["box", "Box"], ["paint", "Paint"], ["erase", "Erase"], ["on", "Click on it"], ["off", "Click beside it"]]) {
    tools.append(make("button", { type: "button", "data-tool": tool, onclick: () => { state.tool = tool; refresh(); } }, text));
  }
  tools.append(size, make("button", { type: "button", onclick: undo }, "Undo"));
  const board = make("div", { class: "sl-board", hidden: true }, make("div", { class: "sl-row" }, name, make("button", { type: "button", onclick: addClass }, "Add class"), chips), tools, canvas, strip);
  element.replaceChildren(make("div", { class: "sl-marker" }, host, board, note));
  name.addEventListener("keydown", (e) => { if (e.key === "Enter") { e.preventDefault(); addClass(); } });

  filesWidget(host, { ...filesProps() }, () => {}, () => {}, async (file, upload) => {
    try {
      const bitmap = await createImageBitmap(file);
      state.pictures.push({ upload, bitmap });
      if (state.at < 0) state.at = 0;
      board.hidden = false;
      refresh();
    } catch {
      note.textContent = `${upload.name} cannot be drawn here; give its mask as a file`;
    }
    tell();
  });
  function filesProps() {
    return { caption: props.caption, accept: "image/*", many: true, hint: props.hint, value: null };
  }

  function addClass() {
    const text = name.value.trim();
    if (text && !state.classes.includes(text)) state.classes.push(text);
    if (text) state.label = text;
    name.value = "";
    refresh();
  }
  const color = (label) => `hsl(${(200 + 137 * Math.max(0, state.classes.indexOf(label))) % 360} 75% 50%)`;
  const picture = () => state.pictures[state.at];
  const here = () => state.marks.filter((m) => m.image === picture()?.upload.id);

  function refresh() {
    chips.replaceChildren(...state.classes.map((label) => make("button", { type: "button", class: label === state.label ? "on" : "", style: `--own:${color(label)}`, onclick: () => { state.label = label; refresh(); } },
      `${label} (${state.marks.filter((m) => m.class === label).length})`)));
    for (const button of tools.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === state.tool);
    strip.replaceChildren(...state.pictures.map((p, i) => {
      const small = make("canvas", { width: 96, height: Math.max(1, Math.round((96 * p.bitmap.height) / p.bitmap.width)) });
      small.getContext("2d").drawImage(p.bitmap, 0, 0, small.width, small.height);
      return make("figure", { class: i === state.at ? "on" : "", onclick: () => { state.at = i; refresh(); } }, small);
    }));
    paint();
  }
  function paint() {
    const p = picture();
    if (!p) return;
    const scale = Math.min(1, MARK_SIDE / Math.max(p.bitmap.width, p.bitmap.height));
    const [w, h] = [Math.round(p.bitmap.width * scale), Math.round(p.bitmap.height * scale)];
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    p.scale = scale;
    canvas.style.width = `min(100%, ${Math.round((70 * w) / h)}vh)`; // the box is the picture, for clicks
    const c = canvas.getContext("2d");
    c.drawImage(p.bitmap, 0, 0, w, h);
    for (const mark of here()) {
      c.strokeStyle = c.fillStyle = color(mark.class);
      c.lineWidth = Math.max(2, w / 300);
      if (mark.canvas) {
        const tinted = new OffscreenCanvas(w, h), t = tinted.getContext("2d");
        t.drawImage(mark.canvas, 0, 0);
        t.globalCompositeOperation = "source-in";
        t.fillStyle = color(mark.class);
        t.fillRect(0, 0, w, h);
        c.globalAlpha = 0.55;
        c.drawImage(tinted, 0, 0);
        c.globalAlpha = 1;
      }
      if (mark.box) c.strokeRect(...mark.box.map((v) => v * scale));
      (mark.points ?? []).forEach(([x, y], i) => {
        c.beginPath();
        c.arc(x * scale, y * scale, w / 110, 0, 7);
        c.fillStyle = mark.inside[i] ? color(mark.class) : "#fff";
        c.fill();
        c.stroke();
      });
    }
    if (state.stroke?.box) {
      c.strokeStyle = color(state.label);
      c.lineWidth = Math.max(2, w / 300);
      c.strokeRect(...state.stroke.box.map((v) => v * scale));
    }
  }
  function spot(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  }
  // The mark that a tool goes on with: one painted, one clicked mark a class and picture.
  function current(kind, start) {
    let mark = here().find((m) => m.class === state.label && kind in m);
    if (!mark) state.marks.push((mark = { image: picture().upload.id, class: state.label, ...start() }));
    return mark;
  }
  canvas.addEventListener("pointerdown", (event) => {
    if (!picture()) return;
    if (!state.label) {
      if (name.value.trim()) addClass();
      else { note.textContent = "First name the object."; name.focus(); return; }
    }
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    const [x, y] = spot(event), scale = picture().scale;
    if (state.tool === "box") {
      state.stroke = { from: [x / scale, y / scale], box: null };
    } else if (state.tool === "on" || state.tool === "off") {
      const mark = current("points", () => ({ points: [], inside: [] }));
      mark.points.push([x / scale, y / scale]);
      mark.inside.push(state.tool === "on");
      tell();
    } else {
      const mark = current("canvas", () => ({ canvas: new OffscreenCanvas(canvas.width, canvas.height) }));
      state.stroke = { mark, last: [x, y] };
      brush([x, y]);
    }
    paint();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!state.stroke) return;
    const [x, y] = spot(event), scale = picture().scale;
    if (state.stroke.from) {
      const [a, b] = state.stroke.from, [p, q] = [clampTo(x / scale, picture().bitmap.width), clampTo(y / scale, picture().bitmap.height)];
      state.stroke.box = [Math.min(a, p), Math.min(b, q), Math.abs(p - a), Math.abs(q - b)];
    } else {
      brush([x, y]);
    }
    paint();
  });
  const clampTo = (v, most) => Math.min(Math.max(v, 0), most);
  canvas.addEventListener("pointerup", () => {
    const { stroke } = state;
    state.stroke = null;
    if (!stroke) return;
    if (stroke.box && stroke.box[2] > 3 && stroke.box[3] > 3) state.marks.push({ image: picture().upload.id, class: state.label, box: stroke.box });
    refresh();
    tell();
  });
  function brush(to) {
    const { mark, last } = state.stroke, c = mark.canvas.getContext("2d");
    c.globalCompositeOperation = state.tool === "erase" ? "destination-out" : "source-over";
    Object.assign(c, { lineWidth: (+size.value * canvas.width) / 600, lineCap: "round", strokeStyle: "#fff" });
    c.beginPath();
    c.moveTo(...last);
    c.lineTo(to[0] + 0.01, to[1]);
    c.stroke();
    state.stroke.last = to;
  }
  function undo() {
    const last = here().at(-1);
    if (last?.points?.length > 1) {
      last.points.pop();
      last.inside.pop();
    } else if (last) {
      state.marks.splice(state.marks.indexOf(last), 1);
    }
    refresh();
    tell();
  }
  // A painted mask as a PNG, white where the object is.
  async function maskOf(painted) {
    const flat = new OffscreenCanvas(painted.width, painted.height), c = flat.getContext("2d");
    c.fillStyle = "#000";
    c.fillRect(0, 0, flat.width, flat.height);
    c.drawImage(painted, 0, 0);
    const bytes = new Uint8Array(await (await flat.convertToBlob({ type: "image/png" })).arrayBuffer());
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return btoa(text);
  }
  async function tell() {
    const turn = (state.turn = (state.turn ?? 0) + 1), marks = [];
    for (const { canvas: painted, ...mark } of state.marks) marks.push(painted ? { ...mark, mask: await maskOf(painted) } : mark);
    if (turn !== state.turn) return; // a later mark tells of this one too
    const classes = new Set(marks.map((m) => m.class)).size;
    note.textContent = marks.length ? `${marks.length} mark${marks.length > 1 ? "s" : ""} of ${classes} class${classes > 1 ? "es" : ""}` : "";
    props.value = { files: state.pictures.map(({ upload: { id, name: file } }) => ({ id, name: file })), marks };
    trigger("change");
  }
  return state;
}

// What a bank found, picture by picture: a click on something wrong marks it as a mistake.
// Value in: {job: id}; value out: {job: id, mistakes: [{image, class, box}]}.
function mistakesWidget(element, props, trigger, watch) {
  const box = make("div", { class: "sl-mistakes" }), note = make("p", { class: "sl-note", role: "status" });
  element.replaceChildren(box, note);
  let shown = null, wrong = [];
  async function load(id) {
    if (!id || id === shown) return;
    shown = id;
    wrong = [];
    box.replaceChildren();
    const results = await api.results(id), names = results.map((r) => r.name);
    if (!names.includes("found/results.json")) return;
    const [rows, classes] = await Promise.all(["results.json", "classes.json"].map((n) => fetch(api.file(id, "found/" + n)).then((a) => a.json())));
    const label = Object.fromEntries((classes.classes ?? classes).map((c) => [c.id ?? c.category_id, c.name]));
    for (const input of await api.inputs(id)) {
      const file = input.split("/").pop(), stem = file.replace(/\.[^.]+$/, ""), key = /^\d+$/.test(stem) ? +stem : file;
      const overlay = names.find((n) => n.startsWith("found/overlays/" + stem + "."));
      if (!overlay) continue;
      const found = rows.filter((r) => r.image_id === key);
      const image = make("img", { src: api.file(id, overlay), alt: file }), frame = make("figure", {}, image);
      image.addEventListener("load", () => {
        for (const row of found) {
          const [x, y, w, h] = row.bbox, mistake = { image: file, class: label[row.category_id], box: row.bbox };
          const area = make("button", { type: "button", title: `${label[row.category_id]} ${row.score.toFixed(2)}: click if this is wrong`, onclick: () => {
            const at = wrong.indexOf(mistake);
            if (at < 0) wrong.push(mistake);
            else wrong.splice(at, 1);
            area.classList.toggle("wrong", at < 0);
            tell();
          } });
          const [W, H] = [image.naturalWidth, image.naturalHeight];
          Object.assign(area.style, { left: (100 * x) / W + "%", top: (100 * y) / H + "%", width: (100 * w) / W + "%", height: (100 * h) / H + "%" });
          frame.append(area);
        }
      });
      box.append(frame);
    }
    tell();
  }
  function tell() {
    note.textContent = wrong.length ? `${wrong.length} marked as wrong` : box.children.length ? "Click what is wrong, then build the bank again." : "";
    props.value = { job: shown, mistakes: wrong };
    trigger("change");
  }
  watch("value", () => load(props.value?.job));
}
