// One job: how far it is, how to stop it, and what came out. Value: {job: id} or {error: text}.

const STATES = { queued: "waiting", running: "running", done: "done", failed: "failed", cancelled: "cancelled", interrupted: "interrupted" };
const ENDED = ["done", "failed", "cancelled", "interrupted"];
const EXPORTS = ["ply", "gs-ply", "splat", "spz", "glb", "colmap", "transforms", "depth", "html"];
const PATHS = ["interpolate", "arc", "orbit", "spiral", "ellipse", "lemniscate", "wander"];
const PICTURES = 36, MOST_POINTS = 400;

function setAddress(id) {
  const here = new URL(location.href);
  if (id) here.searchParams.set("job", id);
  else here.searchParams.delete("job");
  history.replaceState(null, "", here);
}

function copyButton(text) {
  const button = make("button", { type: "button", class: "sl-copy", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  } }, "Copy");
  return button;
}

function commandBox(command) {
  return make("div", { class: "sl-command" }, make("pre", {}, command), copyButton(() => command));
}

// Follows a job until it has ended; `heard(job)` gets every state. Returns how to stop.
function follow(id, heard, failed) {
  let isStopped = false, misses = 0;
  async function look() {
    if (isStopped) return;
    let pause = document.hidden ? 3000 : 700;
    try {
      const job = await api.job(id);
      misses = 0;
      if (isStopped) return;
      heard(job);
      if (ENDED.includes(job.state)) return;
    } catch (error) {
      misses += 1;
      pause = Math.min(15000, 1000 * 2 ** misses); // a server that restarts comes back
      if (misses > 6) { failed(error); return; }
    }
    setTimeout(look, pause);
  }
  look();
  return () => { isStopped = true; };
}

// Numbers of a note such as "loss 0.0312  24.81 dB  31,072 splats".
function numbersOf(note) {
  const found = {};
  for (const match of (note || "").matchAll(/(?:([a-z_]+)[ =])?(-?[\d,]+(?:\.\d+)?(?:e-?\d+)?) ?(dB|splats)?/gi)) {
    const name = match[3] ?? match[1], value = +match[2].replaceAll(",", "");
    if (name && Number.isFinite(value)) found[name] = value;
  }
  return found;
}

function curve(all, name) {
  if (all.length < 2) return null;
  const every = Math.ceil(all.length / MOST_POINTS), values = all.filter((_, i) => (all.length - 1 - i) % every === 0); // the last one stays
  const low = Math.min(...values), high = Math.max(...values), w = 300, h = 56;
  const points = values.map((v, i) => `${((i / (values.length - 1)) * w).toFixed(1)},${(h - 4 - ((v - low) / (high - low || 1)) * (h - 8)).toFixed(1)}`);
  const box = make("figure", { class: "sl-curve" });
  box.innerHTML = `<svg viewBox="0 0 ${w} ${h}" preserveAspectRatio="none"><polyline points="${points.join(" ")}"/></svg>`;
  box.append(make("figcaption", {}, `${name} ${values.at(-1).toPrecision(4)}`));
  return box;
}

class Card {
  constructor(element, props, trigger) {
    Object.assign(this, { element, props, trigger, id: null, stop: () => {} });
    this.head = make("div", { class: "sl-head" });
    this.live = make("div", { class: "sl-live" });
    this.out = make("div", { class: "sl-out" });
    element.replaceChildren(make("section", { class: "sl-card", hidden: true }, this.head, this.live, this.out));
    this.box = element.firstChild;
  }

  error(text) {
    this.box.hidden = false;
    this.head.replaceChildren(make("p", { class: "sl-error", role: "alert" }, text));
    this.live.replaceChildren();
    this.out.replaceChildren();
  }

  show(id) {
    this.stop();
    Object.assign(this, { id, shown: null, track: {}, lastLook: 0 });
    this.live.replaceChildren();
    this.out.replaceChildren();
    this.box.hidden = !id;
    setAddress(id);
    if (id) this.stop = follow(id, (job) => this.draw(job), (error) => this.error(error.message));
  }

  draw(job) {
    this.job = job;
    this.box.dataset.state = job.state;
    this.drawHead(job);
    this.drawLive(job);
    if (ENDED.includes(job.state)) {
      if (this.shown !== job.state) {
        this.shown = job.state;
        this.drawResults(job);
        this.trigger("submit");
      }
    } else if (job.kind.startsWith("train") && Date.now() - this.lastLook > 4000) {
      this.lastLook = Date.now();
      this.drawPreview(job);
    }
  }

  drawHead(job) {
    const buttons = [];
    const act = (what, call, kind = "") => make("button", { type: "button", class: kind, onclick: async (e) => {
      e.target.disabled = true;
      try {
        await call();
      } catch (error) {
        e.target.disabled = false;
        this.live.append(make("p", { class: "sl-error" }, error.message));
      }
    } }, what);
    if (!ENDED.includes(job.state)) buttons.push(act("Cancel", () => api.cancel(job.id), "sl-cancel"));
    else if (job.state !== "done" && job.resumable) {
      buttons.push(act("Continue", async () => { await api.resume(job.id); this.show(job.id); }, "sl-primary"));
    }
    if (this.drawnState === job.state + job.id) {
      this.head.querySelector(".sl-clock").textContent = this.clock(job);
      return;
    }
    this.drawnState = job.state + job.id;
    this.head.replaceChildren(
      make("div", {}, make("h3", {}, job.title), make("span", { class: "sl-state" }, STATES[job.state] ?? job.state)),
      make("span", { class: "sl-clock" }, this.clock(job)), ...buttons,
    );
  }

  clock(job) {
    if (!job.started) return job.position ? `${job.position} before it` : "";
    const spent = (job.ended ? Date.parse(job.ended) : Date.now()) - Date.parse(job.started);
    const left = job.progress.seconds_left;
    return words.time(spent / 1000) + (job.ended || left === null ? "" : `, about ${words.time(left)} left`);
  }

  drawLive(job) {
    const { fraction, stage, note, stages } = job.progress, isOver = ENDED.includes(job.state);
    for (const [name, value] of Object.entries(numbersOf(note))) {
      if (name === "dB" || name.includes("loss")) {
        const track = (this.track[name] ??= []);
        if (track.at(-1) !== value) track.push(value);
      }
    }
    const parts = [];
    if (!isOver) {
      const percent = Math.round(100 * fraction);
      parts.push(make("div", { class: "sl-bar", role: "progressbar", "aria-valuenow": percent, "aria-valuemin": 0, "aria-valuemax": 100 }, make("i", { style: `width:${percent}%` })));
      const now = stages.find((s) => s.name === stage);
      const step = now && now.total > 1 ? ` ${Math.round(now.done)} of ${Math.round(now.total)}` : "";
      parts.push(make("p", { class: "sl-stage" }, job.state === "queued" ? "waits for its turn" : `${percent} % \u00b7 ${stage || "starting"}${step}${note ? " \u00b7 " + note : ""}`));
      parts.push(make("ol", { class: "sl-stages" }, ...stages.map((s) => make("li", { class: s.done >= s.total ? "done" : "" }, s.name))));
    }
    for (const [name, values] of Object.entries(this.track)) parts.push(curve(values, name === "dB" ? "PSNR (dB)" : name));
    if (job.error && job.state !== "done") {
      parts.push(make("p", { class: "sl-error", role: "alert" }, job.error));
      for (const options of job.advice) {
        parts.push(make("p", { class: "sl-note" }, "This would fit: " + Object.entries(options).map(([k, v]) => `--${k.replaceAll("_", "-")} ${v}`).join(" ")));
      }
    }
    this.live.replaceChildren(...parts.filter(Boolean));
  }

  async drawPreview(job) {
    const results = await api.results(job.id);
    const parts = [await trainingCurves(job, results), this.gallery(job, trainingPictures(results, 4))];
    if (this.job.id === job.id && !this.shown) this.out.replaceChildren(...parts);
  }

  gallery(job, pictures) {
    return make("div", { class: "sl-gallery" }, ...pictures.slice(0, PICTURES).map((r) =>
      make("a", { href: api.page(job.id, r.name), target: "_blank", rel: "noopener" }, make("img", { src: api.file(job.id, r.name), loading: "lazy", alt: r.name }), make("span", {}, this.shortName(job, r.name)))));
  }

  shortName(job, name) {
    return name.split("/").slice(job.kind.startsWith("train") ? -2 : -1).join("/"); // step-0000100/features.png
  }

  async drawResults(job) {
    let results = [];
    try {
      results = await api.results(job.id);
    } catch (error) {
      this.out.replaceChildren(make("p", { class: "sl-error" }, error.message));
      return;
    }
    const parts = [], names = new Set(results.map((r) => r.name));
    const isScene = names.has("scene/cameras.npz");
    if (isScene) parts.push(...this.scene(job, names));
    else if (job.kind.startsWith("train")) parts.push(...(await this.training(job, results)));
    else if (job.kind === "prepare") parts.push(...(await dataParts(job, results, (...of) => this.gallery(...of))));
    else parts.push(...this.products(job, results));
    parts.push(this.downloads(job, results, isScene));
    if (job.command) parts.push(commandBox(job.command));
    parts.push(make("details", { class: "sl-log", ontoggle: async (e) => {
      if (!e.target.open || e.target.children.length > 1) return;
      const { log } = await api.log(job.id);
      e.target.append(make("pre", {}, log || "It said nothing."));
    } }, make("summary", {}, "What it said")));
    if (this.id === job.id) this.out.replaceChildren(...parts.filter(Boolean));
  }

  scene(job, names) {
    const source = api.viewer(job.id);
    const frame = this.viewer(job);
    const links = make("div", { class: "sl-row" }, make("a", { class: "sl-button", href: source, target: "_blank", rel: "noopener" }, "Open the view alone"));
    if (names.has("scene/report.html")) {
      links.append(make("a", { class: "sl-button", href: api.page(job.id, "scene/report.html"), target: "_blank", rel: "noopener" }, "Report with scores"));
    }
    return [frame, links, this.video(job)];
  }

  viewer(job, name) {
    const frame = make("iframe", { src: api.viewer(job.id, name), title: "3D view of " + job.title, allow: "fullscreen", allowfullscreen: true });
    return make("div", { class: "sl-viewer" }, make("p", {}, "Preparing the view\u2026"), frame);
  }

  // A small job that works on this one's scene; `done(results)` once it has ended well.
  async side(kind, options, note, done) {
    note.textContent = "waiting\u2026";
    note.classList.remove("bad");
    try {
      const made = await api.submit({ kind, options, scene: this.id });
      follow(made.id, async (job) => {
        if (job.state === "running") note.textContent = `${Math.round(100 * job.progress.fraction)} %`;
        if (!ENDED.includes(job.state)) return;
        note.textContent = job.state === "done" ? "" : job.error ?? job.state;
        note.classList.toggle("bad", job.state !== "done");
        if (job.state === "done") done(made.id, await api.results(made.id));
      }, (error) => { note.textContent = error.message; });
    } catch (error) {
      note.textContent = error.message;
      note.classList.add("bad");
    }
  }

  video(job) {
    const path = make("select", { "aria-label": "--path" }, ...PATHS.map((p) => make("option", {}, p)));
    const modes = make("select", { "aria-label": "--modes" }, ...["rgb", "rgb,depth", "rgb,depth,normal"].map((m) => make("option", {}, m)));
    const frames = make("input", { type: "number", min: 2, max: 2000, value: 120, "aria-label": "--frames" });
    const note = make("span", { class: "sl-note", role: "status" }), place = make("div", { class: "sl-video" });
    const go = make("button", { type: "button", class: "sl-render", onclick: () =>
      this.side("render", { path: path.value, modes: modes.value, frames: +frames.value }, note, (id, results) => {
        const film = results.find((r) => r.name.endsWith(".mp4"));
        if (!film) return;
        const source = api.file(id, film.name);
        place.replaceChildren(make("video", { src: source, controls: true, loop: true, playsinline: true, autoplay: true, muted: true }), make("a", { class: "sl-button", href: source, download: "video.mp4" }, `Download the video (${words.size(film.size)})`));
      }) }, "Render a video");
    return make("details", { class: "sl-part" }, make("summary", {}, "Video along a camera path"),
      make("div", { class: "sl-row" }, make("label", {}, "--path", path), make("label", {}, "--modes", modes), make("label", {}, "--frames", frames), go, note), place);
  }

  async training(job, results) {
    const pictures = this.gallery(job, trainingPictures(results, PICTURES));
    return [this.pages(job, results), await trainingCurves(job, results), pictures];
  }

  // Links to the report, and to pages beside it such as those of a grid's scenes.
  pages(job, results) {
    const found = results.filter((r) => r.name.endsWith(".html")).slice(0, 12);
    const words = (name) => (/(^|\/)report\.html$/.test(name) ? "Report" : name.split("/").pop().replace(/\.html$/, ""));
    const links = found.map(({ name }) => make("a", { class: "sl-button", href: api.page(job.id, name), target: "_blank", rel: "noopener" }, words(name)));
    return links.length ? make("div", { class: "sl-row" }, ...links) : null;
  }

  products(job, results) {
    const parts = [];
    for (const r of results.filter((r) => r.name.endsWith(".mp4")).slice(0, 4)) {
      parts.push(make("video", { src: api.file(job.id, r.name), controls: true, loop: true, playsinline: true, muted: true, class: "sl-film" }));
    }
    parts.push(this.pages(job, results));
    const solid = results.find((r) => /(^|\/)splats\.ply$/.test(r.name)) ?? results.find((r) => /(^|\/)points\.ply$/.test(r.name));
    if (solid) parts.unshift(this.viewer(job, solid.name));
    const pictures = results.filter((r) => /\.(png|jpe?g|webp)$/.test(r.name) && !/(^|\/)masks\//.test(r.name));
    if (pictures.length) parts.push(this.gallery(job, pictures));
    if (job.kind === "models-check" && job.result) parts.push(this.findings(job.result));
    if (job.kind === "segment-evaluate" && job.result?.segm) parts.unshift(this.findings(this.scores(job.result)));
    if (job.kind === "probe-run" && job.state !== "done") parts.push(this.partial(job));
    return parts;
  }

  // What `segment evaluate` prints, in COCO's per cent.
  scores(result) {
    const percent = (value) => (value === null ? "-" : value.toFixed(1));
    const row = ({ ap, ap50, ap75 }) => `AP ${percent(ap)}, AP50 ${percent(ap50)}, AP75 ${percent(ap75)}`;
    return { boxes: row(result.bbox), masks: row(result.segm), mIoU: percent(result.semantic.miou), pictures: result.images, "left out": result.left_out, classes: result.classes };
  }

  // A grid that was stopped has no report yet: one of what is finished.
  partial(job) {
    const note = make("span", { class: "sl-note", role: "status" });
    const go = make("button", { type: "button", class: "sl-report", onclick: () => this.side("probe-report", {}, note, () => this.drawResults(job)) }, "Report of what is finished");
    return make("div", { class: "sl-row" }, go, note);
  }

  findings(result) {
    const rows = Object.entries(result).filter(([, v]) => v !== null && v !== "" && !(Array.isArray(v) && !v.length) && !(typeof v === "object" && !Array.isArray(v) && !Object.keys(v).length));
    const text = (v) => (Array.isArray(v) ? v.slice(0, 12).join(", ") + (v.length > 12 ? ` and ${v.length - 12} more` : "") : typeof v === "object" ? Object.entries(v).map(([k, x]) => `${k} ${x}`).join(", ") : String(v));
    return make("div", { class: "sl-scroll" }, make("table", { class: "sl-facts" }, ...rows.map(([k, v]) => make("tr", { class: k === "verdict" ? "sl-verdict" : "" }, make("td", {}, k.replaceAll("_", " ")), make("td", {}, text(v))))));
  }

  downloads(job, results, isScene) {
    const list = make("ul", { class: "sl-downloads" }), note = make("span", { class: "sl-note", role: "status" });
    const link = (id, r) => make("li", {}, make("a", { href: api.file(id, r.name), download: r.name.split("/").pop() }, r.name.replace(/^(scene|exports)\//, "")), make("span", {}, words.size(r.size)));
    const isProduct = (r) => !isScene || /^scene\/(splats\.ply|report\.html|cameras\.npz|geometry\.npz|run\.json|exports\/)/.test(r.name);
    const chosen = results.filter((r) => isProduct(r) && (isScene || !/\.(png|jpe?g)$/.test(r.name)));
    list.append(...chosen.slice(0, 40).map((r) => link(job.id, r)));
    if (chosen.length > 40) list.append(make("li", {}, `and ${chosen.length - 40} more`));
    const box = make("details", { class: "sl-part", open: !isScene || true }, make("summary", {}, "Download"));
    if (isScene) {
      const share = make("input", { type: "number", min: 0, max: 99, value: 0, "aria-label": "--min-confidence" });
      const buttons = EXPORTS.map((format) => make("button", { type: "button", "data-format": format, onclick: () =>
        this.side("export", { to: format, ...(+share.value ? { min_confidence: +share.value } : {}) }, note, (id, made) => {
          list.prepend(...made.slice(0, 12).map((r) => link(id, r)));
          const first = list.querySelector("a");
          if (made.length === 1) first.click();
        }) }, format));
      box.append(make("div", { class: "sl-row" }, make("span", { class: "sl-label" }, "--to"), ...buttons, make("label", {}, "--min-confidence", share), note));
    }
    box.append(list);
    return chosen.length || isScene ? box : null;
  }
}

// `props`: kinds (that it shows after a reload).
function cardWidget(element, props, trigger, watch) {
  const card = new Card(element, props, trigger);
  const follow_ = () => {
    const value = props.value ?? {};
    if (value.error) card.error(value.error);
    else if (value.job && (value.job !== card.id || value.stamp !== card.stamp)) {
      card.stamp = value.stamp;
      card.show(value.job);
    }
  };
  watch("value", follow_);
  follow_();
  const id = new URL(location.href).searchParams.get("job");
  if (id && !props.value?.job) {
    api.job(id).then((job) => {
      if (!props.kinds.includes(job.kind)) return;
      props.value = { job: id }; // the next step of a probe asks for it
      card.show(id);
    }, () => {});
  }
  return card;
}

const tabNamed = (name) => [...document.querySelectorAll('[role="tab"]')].find((t) => t.textContent.trim() === name);

function openTab(name) {
  const tab = tabNamed(name);
  if (tab && tab.getAttribute("aria-selected") !== "true") tab.click();
}

// After a reload: opens the place of the job that the address names, because Gradio only makes what
// is inside a tab or an accordion once it is opened. Whoever clicks meanwhile has chosen another
// place, and keeps it. `props`: places (kind -> tabs, #accordions).
function openerWidget(element, props) {
  const id = new URL(location.href).searchParams.get("job");
  if (!id) return;
  const own = { click: false }, user = new AbortController();
  document.addEventListener("click", () => { if (!own.click) user.abort(); }, { capture: true, signal: user.signal });
  const click = (target) => { own.click = true; target?.click(); own.click = false; };
  api.job(id)
    .then((job) => openPlace(props.places[job.kind] ?? ["Gallery"], click, user.signal), () => setAddress(null))
    .finally(() => user.abort());
}

async function openPlace(place, click, signal) {
  const pause = () => new Promise((done) => setTimeout(done, 100));
  for (const name of place) {
    const isTab = !name.startsWith("#"), find = () => (isTab ? tabNamed(name) : document.querySelector(`${name} button`));
    const isOpen = () => (isTab ? find()?.getAttribute("aria-selected") === "true" : find()?.classList.contains("open"));
    // What has just been made may close again, so it must have stayed open for a moment.
    for (let tries = 0, calm = 0; calm < 4 && tries < 300 && !signal.aborted; tries += 1) {
      if (isOpen()) calm += 1;
      else { calm = 0; click(find()); }
      await pause();
    }
  }
}
