// The page: reads what `scene_html.py` wrote into it, wires the controls, draws when needed.

const $ = (id) => document.getElementById(id);
const scene = JSON.parse($("scene").textContent);
const canvas = $("view");

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function readTable(name, stride) {
  const packed = fromBase64($("table-" + name).textContent);
  $("table-" + name).remove(); // megabytes that nobody needs twice
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const rows = planes.length / stride, bytes = new Uint8Array(planes.length);
  for (let b = 0; b < stride; b++) {
    for (let i = 0, from = b * rows, to = b; i < rows; i++, from++, to += stride) bytes[to] = planes[from];
  }
  return bytes.buffer;
}

function readImage(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a thumbnail could not be read"));
    image.src = source;
  });
}

// The view of a camera: its whole picture fits into the window.
function viewOf(camera) {
  const { right, down, forward } = camera;
  const fov = 2 * Math.atan(0.5 * Math.max(
    camera.height / camera.fy,
    (camera.width / camera.fx) * (canvas.clientHeight / canvas.clientWidth),
  ));
  const ahead = dot(sub(scene.focus, camera.eye), forward);
  const distance = ahead > 0.02 * scene.radius ? ahead : scene.radius;
  return { eye: camera.eye, right, down, forward, distance, fov };
}

function firstView() {
  if (scene.cameras.length) return viewOf(scene.cameras[scene.first]);
  const forward = unit(add(times(scene.up, -0.4), level([0.3, 0.2, 1], scene.up).forward));
  const frame = level(forward, scene.up), distance = 2.4 * scene.radius;
  return { ...frame, eye: add(scene.focus, frame.forward, -distance), distance, fov: 0.9 };
}

async function start() {
  const painter = new Painter(canvas);
  painter.setTurbo(new Uint8Array(scene.turbo));
  const shown = {
    splats: !!scene.splats, points: !!scene.points && !scene.splats, cameras: scene.cameras.length > 0,
    photos: false, pointPixels: 2, linePixels: 1.5, background: [0, 0, 0], mode: "color", depth: [1, 2],
  };
  const filter = new Filter(scene.focus);
  const bytes = (name) => (name in scene.bytes ? readTable(name, scene.bytes[name]).then((b) => new Uint8Array(b)) : null);
  const view = firstView();
  const clip = [0.002 * scene.radius, 1000 * scene.radius];
  const state = { dirty: true, standing: -1, frames: 0, stamp: 0, sortedStamp: -1, isSorting: false, scale: 1 };
  const control = new Control(canvas, view, scene.up, () => { state.dirty = true; });
  control.least = 0.01 * scene.radius;
  let splats = null, worker = null;

  if (scene.splats) {
    const geometry = await readTable("geometry", 16), shape = new Uint32Array(await readTable("shape", 8));
    const harmonics = scene.splats.degree ? new Uint32Array(await readTable("harmonics", 16 * scene.splats.degree)) : null;
    painter.setSplats(scene.splats, new Uint32Array(geometry), shape, harmonics);
    const floats = new Float32Array(geometry), positions = new Float32Array(3 * scene.splats.count);
    for (let i = 0; i < scene.splats.count; i++) positions.set(floats.subarray(4 * i, 4 * i + 3), 3 * i);
    splats = { header: scene.splats, positions, shape, sky: await bytes("splat_sky"), paint: await bytes("splat_paint"), keep: null };
    worker = new Worker(URL.createObjectURL(new Blob([`(${sorter})()`], { type: "text/javascript" })));
    worker.onerror = (e) => fail(new Error("sorting: " + e.message));
    worker.onmessage = ({ data }) => {
      painter.setOrder(data.order);
      Object.assign(state, { isSorting: false, sortedStamp: data.stamp, dirty: true });
    };
    worker.postMessage({ positions });
  }
  async function readCloud(header, prefix) {
    return {
      header, positions: new Float32Array(await readTable(prefix + "positions", 12)), colors: await bytes(prefix + "point_colors"),
      sky: await bytes(prefix + "point_sky"), seen: await bytes(prefix + "point_seen"),
      seenBytes: scene.bytes[prefix + "point_seen"] ?? 0, paint: await bytes(prefix + "point_paint"),
    };
  }
  const clouds = { own: scene.points && await readCloud(scene.points, ""), other: scene.other_points && await readCloud(scene.other_points, "other_") };
  let cloud = clouds.own;
  const isPainted = () => shown.mode === "paint";
  const layPoints = () => painter.setPoints(cloud.positions, (isPainted() && cloud.paint) || cloud.colors);
  if (cloud) layPoints();

  // Filters reach points at once, and splats with their next order.
  function applyFilter() {
    if (cloud) {
      const indices = filter.points(cloud);
      painter.setShownPoints(indices);
      state.points = indices.length;
    }
    if (splats) {
      const keep = filter.splats(splats);
      if (keep || splats.keep) {
        splats.keep = keep;
        state.sortedKey = null; // the same view needs another order
        state.keepIsNew = true;
      }
      state.splats = keep ? keep.reduce((sum, x) => sum + x, 0) : scene.splats.count;
    }
    state.dirty = true;
  }

  // Cameras: pyramids, with the photo on their base.
  const images = scene.thumbnails ? await Promise.all(scene.cameras.map((c) => readImage(c.thumbnail))) : [];
  document.querySelectorAll("#strip img").forEach((image, i) => { image.src = scene.cameras[i].thumbnail; });
  let cameraSize = scene.camera_size;
  const style = getComputedStyle(document.documentElement);
  const colorOf = (name) => hexToRgb(style.getPropertyValue(name).trim());
  function corners(camera) {
    const { eye, right, down, forward, fx, fy, cx, cy, width, height } = camera;
    const at = (u, v) => add(add(add(eye, forward, cameraSize), right, ((u - cx) / fx) * cameraSize), down, ((v - cy) / fy) * cameraSize);
    return [at(0, 0), at(width, 0), at(width, height), at(0, height)];
  }
  function layCameras() {
    const ordinary = colorOf("--accent"), held = colorOf("--held"), segments = [], quads = [];
    scene.cameras.forEach((camera, i) => {
      const base = corners(camera), color = camera.held ? held : ordinary;
      const isStanding = i === state.standing;
      if (!isStanding) {
        base.forEach((corner, k) => {
          segments.push({ from: corner, to: base[(k + 1) % 4], color }, { from: camera.eye, to: corner, color });
        });
      }
      // Where one stands, the photo would be a wall before the eye: an empty quad.
      const size = isStanding ? 0 : 1;
      quads.push({ corner: base[0], across: times(sub(base[1], base[0]), size), down: times(sub(base[3], base[0]), size) });
    });
    painter.setLines(segments);
    if (images.length) painter.setPhotos(quads, images);
    state.dirty = true;
  }
  if (scene.cameras.length) layCameras();

  function stand(index, milliseconds) {
    state.standing = index;
    const camera = scene.cameras[index];
    document.querySelectorAll("#strip button").forEach((b, i) => {
      b.setAttribute("aria-current", i === index);
      if (i === index) b.scrollIntoView({ block: "nearest", inline: "center", behavior: "smooth" });
    });
    $("where").textContent = camera ? camera.name + (camera.held ? " (held out)" : "") : "";
    $("where").hidden = !camera;
    if (scene.cameras.length) layCameras();
    if (camera) control.flyTo(viewOf(camera), milliseconds);
    if (seenBy === "here") chooseViews();
  }
  control.onleave = () => { if (state.standing >= 0) stand(-1); };
  const next = (by) => scene.cameras.length && stand((Math.max(state.standing, by > 0 ? -1 : 0) + by + scene.cameras.length) % scene.cameras.length);
  const reset = () => { stand(-1); control.flyTo(firstView()); };

  const pickAt = (x, y) => {
    const isSplats = shown.splats && splats, set = isSplats ? splats : cloud;
    const isShown = isSplats && splats.keep ? (i) => splats.keep[i] : null;
    return set && pick(set.positions, view, [x, y], [canvas.clientWidth, canvas.clientHeight], clip[0], isShown);
  };
  control.onclick = (x, y) => {
    if (state.isMeasuring) {
      const point = pickAt(x, y);
      if (point) lengths.add(point);
      state.dirty = true;
      return;
    }
    if (!shown.cameras) return;
    let best = -1, nearest = Infinity;
    scene.cameras.forEach((camera, i) => {
      if (i === state.standing) return;
      const points = [camera.eye, ...corners(camera)].map((p) => project(view, p, canvas.clientWidth, canvas.clientHeight));
      if (points.some((p) => p[2] < clip[0])) return;
      const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]), slack = 3;
      const isInside = x > Math.min(...xs) - slack && x < Math.max(...xs) + slack && y > Math.min(...ys) - slack && y < Math.max(...ys) + slack;
      if (isInside && points[0][2] < nearest) [best, nearest] = [i, points[0][2]];
    });
    if (best >= 0) stand(best);
  };
  control.ontarget = (x, y) => {
    if (state.isMeasuring) return;
    const best = pickAt(x, y);
    if (!best) return;
    const away = sub(best, view.eye);
    control.onleave();
    control.flyTo({ ...view, ...level(unit(away), scene.up), distance: norm(away) });
  };

  // Controls
  const bind = (id, event, action) => $(id)?.addEventListener(event, (e) => { action(e.target); state.dirty = true; });
  for (const name of ["splats", "points", "cameras", "photos"]) {
    const box = $("show-" + name);
    if (!box) continue;
    box.checked = shown[name];
    bind("show-" + name, "change", () => { shown[name] = box.checked; });
  }
  const report = (id, text) => { const out = $(id + "-value"); if (out) out.textContent = text; };
  bind("point-size", "input", (s) => { shown.pointPixels = +s.value; report("point-size", s.value + " px"); });
  bind("confidence", "input", (s) => { filter.hidden = +s.value; report("confidence", s.value + " %"); applyFilter(); });
  for (const name of ["sky", "black", "white"]) bind("hide-" + name, "change", (box) => { filter[name] = box.checked; applyFilter(); });
  bind("crop", "input", (s) => {
    const share = +s.value / 100; // to the far left a tenth of the cameras' distance, then further and further
    filter.reach = share >= 1 ? Infinity : scene.radius * 0.1 * 100 ** share;
    report("crop", share >= 1 ? "all" : lengths.text(filter.reach));
    applyFilter();
  });
  bind("source", "change", (s) => { cloud = clouds[s.value]; layPoints(); applyFilter(); });
  bind("mode", "change", (s) => setMode(s.value));
  function setMode(mode) {
    const before = isPainted();
    shown.mode = mode;
    if ($("mode").value !== mode) $("mode").value = mode;
    $("depth-scale").hidden = mode !== "depth";
    if (before !== isPainted()) {
      if (cloud?.paint) { layPoints(); applyFilter(); }
      if (splats?.paint) {
        if (isPainted()) {
          const words = splats.shape.slice(), p = splats.paint;
          for (let i = 0; i < scene.splats.count; i++) {
            words[2 * i + 1] = (words[2 * i + 1] & 0xff000000) | (p[3 * i + 2] << 16) | (p[3 * i + 1] << 8) | p[3 * i];
          }
          painter.setSplatColors(words, [0, 1], 0);
        } else {
          painter.setSplatColors(splats.shape, scene.splats.colors, scene.splats.degree);
        }
      }
    }
    state.dirty = true;
  }

  // Points of some views only
  let seenBy = "all";
  const chosen = new Set();
  function chooseViews() {
    filter.views = seenBy === "all" ? null : seenBy === "chosen" ? chosen : new Set(state.standing >= 0 ? [state.standing] : []);
    document.querySelectorAll("#strip button").forEach((b, i) => b.classList.toggle("chosen", seenBy === "chosen" && chosen.has(i)));
    applyFilter();
  }
  bind("seen", "change", (s) => { seenBy = s.value; chooseViews(); });
  function toggleView(index) {
    if (!chosen.delete(index)) chosen.add(index);
    if ($("seen")) $("seen").value = seenBy = "chosen";
    chooseViews();
  }

  // Tools
  const lengths = new Lengths($("lengths"), scene.metric), wipe = $("wipe") && new Wipe($("wipe")), tour = new Tour();
  const press = (id, on) => $(id)?.setAttribute("aria-pressed", on);
  function measure(on = !state.isMeasuring) {
    state.isMeasuring = on;
    press("measure", on);
    canvas.style.cursor = on ? "crosshair" : "";
  }
  bind("measure", "click", () => measure());
  bind("unmeasure", "click", () => { lengths.clear(); measure(false); });
  bind("real-length", "input", (s) => {
    const length = lengths.last();
    if (length && +s.value > 0) lengths.metres = +s.value / length;
    else if (s.value === "") lengths.metres = scene.metric ? 1 : null;
  });
  const needsPhoto = () => { if (state.standing < 0) stand(scene.first); };
  function compare(on = !state.isComparing) {
    state.isComparing = on && !!wipe;
    press("compare", state.isComparing);
    if (state.isComparing) needsPhoto();
    else wipe?.hide();
    state.dirty = true;
  }
  bind("compare", "click", () => compare());
  function sideBySide(on = !state.isSideBySide) {
    state.isSideBySide = on && !!$("panes");
    press("panels", state.isSideBySide);
    if (state.isSideBySide) needsPhoto();
    if ($("panes")) $("panes").hidden = !state.isSideBySide;
    state.panesOf = null;
    state.dirty = true;
  }
  bind("panels", "click", () => sideBySide());
  // Draws the scene, its depth and its normals as the camera sees them, once a view has its order.
  function drawPanes() {
    const camera = scene.cameras[state.standing];
    if (!camera || control.flight || state.isSorting || !isOrdered()) return;
    const key = state.standing + "/" + state.sortedStamp + "/" + shown.splats + shown.points;
    if (key === state.panesOf) return;
    state.panesOf = key;
    const photo = $("panes").querySelector("img");
    photo.src = camera.thumbnail;
    const ratio = canvas.height / canvas.clientHeight, focal = canvas.height / 2 / Math.tan(view.fov / 2);
    const box = [canvas.width / 2 - (focal * camera.cx) / camera.fx, canvas.height / 2 - (focal * camera.cy) / camera.fy,
      (focal * camera.width) / camera.fx, (focal * camera.height) / camera.fy];
    for (const figure of document.querySelectorAll("#panes figure[data-mode]")) {
      const target = figure.querySelector("canvas"), wide = Math.round(220 * Math.min(2, ratio));
      Object.assign(target, { width: wide, height: Math.max(1, Math.round((wide * box[3]) / box[2])) });
      paint({ ...shown, cameras: false, photos: false, mode: figure.dataset.mode });
      target.getContext("2d").drawImage(canvas, ...box, 0, 0, target.width, target.height);
    }
  }
  const snapshot = () => { const { eye, right, down, forward, distance, fov } = view; return { eye, right, down, forward, distance, fov }; };
  const keepView = () => { tour.stops.push(snapshot()); notePath(); };
  const notePath = (text) => {
    const count = tour.stops.length;
    $("path-note").textContent = text ?? (count ? `${count} view${count > 1 ? "s" : ""} kept` : "Without views of your own, the path goes along the cameras.");
  };
  bind("keep-view", "click", keepView);
  bind("drop-views", "click", () => { tour.stops = []; endTour(); notePath(); });
  notePath();
  function startTour() {
    if (tour.stops.length < 2) tour.stops = scene.cameras.map(viewOf);
    if (tour.stops.length < 2) { notePath("A path needs two views."); return false; }
    stand(-1);
    Object.assign(state, { tourStart: performance.now() });
    press("play", true);
    return true;
  }
  function endTour() {
    state.tourStart = null;
    press("play", false);
    if (state.recorder?.state === "recording") state.recorder.stop();
  }
  bind("play", "click", () => (state.tourStart ? endTour() : startTour()));
  bind("record", "click", () => {
    const kind = ["video/mp4", "video/webm;codecs=vp9", "video/webm"].find((k) => window.MediaRecorder?.isTypeSupported(k));
    if (!kind) { notePath("This browser cannot record; use sightline render."); return; }
    if (!startTour()) return;
    const chunks = [], recorder = new MediaRecorder(canvas.captureStream(30), { mimeType: kind, videoBitsPerSecond: 12e6 });
    recorder.ondataavailable = (e) => chunks.push(e.data);
    recorder.onstop = () => { press("record", false); save(new Blob(chunks, { type: kind }), kind.includes("mp4") ? ".mp4" : ".webm"); notePath(); };
    state.recorder = recorder;
    press("record", true);
    notePath("Recording\u2026");
    recorder.start();
  });
  bind("camera-size", "input", (s) => { cameraSize = scene.camera_size * 2 ** +s.value; layCameras(); });
  for (const swatch of document.querySelectorAll("[data-color]")) {
    swatch.style.background = swatch.dataset.color;
    swatch.addEventListener("click", () => paintBackground(swatch.dataset.color));
  }
  bind("background", "input", (input) => paintBackground(input.value));
  function paintBackground(color) {
    shown.background = hexToRgb(color);
    $("background").value = color;
    state.dirty = true;
  }
  const darkScheme = matchMedia("(prefers-color-scheme: dark)");
  const followScheme = () => { paintBackground(darkScheme.matches ? "#0f1214" : "#fbfbf9"); if (scene.cameras.length) layCameras(); };
  darkScheme.addEventListener("change", followScheme);
  followScheme();
  const toggle = (id, button, open = $(id).hidden) => { $(id).hidden = !open; $(button).setAttribute("aria-expanded", open); };
  $("menu").addEventListener("click", () => toggle("panel", "menu"));
  $("question").addEventListener("click", () => toggle("help", "question"));
  $("help").addEventListener("click", () => toggle("help", "question", false));
  toggle("panel", "menu", innerWidth > 700);
  $("reset").addEventListener("click", reset);
  $("picture").addEventListener("click", savePicture);
  document.querySelectorAll("#strip button").forEach((b, i) => b.addEventListener("click", (e) => {
    if ((e.ctrlKey || e.metaKey || seenBy === "chosen") && $("seen")) toggleView(i);
    else stand(i);
  }));
  const flip = (id) => { const box = $(id); if (box) { box.checked = !box.checked; box.dispatchEvent(new Event("change")); } };
  const keys = {
    r: reset, "[": () => next(-1), "]": () => next(1), 1: () => flip("show-splats"), 2: () => flip("show-points"),
    3: () => flip("show-cameras"), 4: () => flip("show-photos"), p: savePicture, m: () => toggle("panel", "menu"),
    c: () => wipe && scene.thumbnails && compare(), v: () => wipe && scene.thumbnails && sideBySide(), l: () => measure(), k: keepView,
    h: () => toggle("help", "question"), "?": () => toggle("help", "question"), escape: () => toggle("help", "question", false),
  };
  control.onkey = (key) => {
    if (!(key in keys)) return false;
    keys[key]();
    return true;
  };

  function save(blob, suffix) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = scene.file + suffix;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  function savePicture() {
    render();
    canvas.toBlob((blob) => save(blob, ".png"));
  }

  // Drawing
  function fitCanvas() {
    const ratio = Math.min(devicePixelRatio || 1, 2) * state.scale;
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio)), height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width === width && canvas.height === height) return;
    Object.assign(canvas, { width, height });
    state.dirty = true;
  }
  // Depth colours range over what is in front of the eye.
  function rangeDepth() {
    const set = (shown.splats && splats?.positions) || cloud?.positions;
    if (!set) return;
    const step = 3 * Math.max(1, Math.floor(set.length / 3 / 4000)), depths = [], tangent = Math.tan(view.fov / 2);
    const aspect = canvas.clientWidth / canvas.clientHeight;
    for (let i = 0; i < set.length; i += step) {
      const p = [set[i] - view.eye[0], set[i + 1] - view.eye[1], set[i + 2] - view.eye[2]], z = dot(view.forward, p);
      if (z > clip[0] && Math.abs(dot(view.down, p)) < z * tangent && Math.abs(dot(view.right, p)) < z * tangent * aspect) depths.push(z);
    }
    if (depths.length < 8) return;
    depths.sort((a, b) => a - b);
    const near = depths[Math.floor(0.02 * depths.length)], far = depths[Math.floor(0.95 * depths.length)];
    shown.depth = [near, Math.max(far, near * 1.01)];
    $("near").textContent = lengths.text(near);
    $("far").textContent = lengths.text(shown.depth[1]);
  }
  function paint(layers) {
    const ratio = canvas.height / canvas.clientHeight;
    painter.draw(view, clip, { ...layers, pointPixels: Math.max(1, shown.pointPixels * ratio), linePixels: shown.linePixels * ratio });
  }
  function render() {
    if (shown.mode === "depth" || state.isSideBySide) rangeDepth();
    if (state.isSideBySide) drawPanes();
    paint(shown);
    if (lengths.ends.length || lengths.box.firstChild) lengths.draw(view, canvas.clientWidth, canvas.clientHeight, clip[0]);
    const camera = scene.cameras[state.standing];
    if (state.isComparing && camera && !control.flight) wipe.show(camera, view, canvas.clientWidth, canvas.clientHeight);
    else wipe?.hide();
    state.frames++;
  }
  const isOrdered = () => !worker || state.sortedKey === [...view.forward, ...view.eye].join();
  function requestOrder() {
    if (!worker || state.isSorting || isOrdered()) return;
    const message = { forward: view.forward, offset: dot(view.forward, view.eye), near: clip[0], stamp: ++state.stamp };
    if (state.keepIsNew) message.keep = splats.keep;
    Object.assign(state, { sortedKey: [...view.forward, ...view.eye].join(), isSorting: true, keepIsNew: false });
    worker.postMessage(message);
  }
  let before = performance.now(), slow = 0;
  function loop(now) {
    const seconds = Math.min((now - before) / 1000, 0.1);
    before = now;
    if (state.tourStart) {
      const time = (now - state.tourStart) / 1000;
      Object.assign(view, tour.at(time));
      state.dirty = true;
      if (time > tour.duration()) endTour();
    }
    const isMoving = control.step(now, seconds) || control.pointers.size > 0;
    if (isMoving) state.dirty = true;
    // Slow machines draw fewer pixels while things move, and all of them when they rest.
    if (isMoving && state.dirty) {
      slow = 0.8 * slow + 0.2 * seconds;
      if (slow > 0.045) [state.scale, slow] = [Math.max(0.4, state.scale * 0.8), 0.03];
    } else if (!isMoving) {
      state.scale = 1;
      slow = 0;
    }
    fitCanvas();
    if (state.dirty) {
      state.dirty = false;
      requestOrder();
      render();
    }
    requestAnimationFrame(loop);
  }
  new ResizeObserver(() => {
    state.dirty = true;
    if (state.standing >= 0 && !control.flight) Object.assign(view, viewOf(scene.cameras[state.standing]));
  }).observe(canvas);
  canvas.addEventListener("webglcontextlost", () => fail(new Error("The graphics card was reset; reload the page.")));
  if ($("hide-sky")) $("hide-sky").checked = filter.sky = !scene.splats;
  for (const id of ["confidence", "point-size", "crop"]) $(id)?.dispatchEvent(new Event("input"));
  if (scene.cameras.length) stand(scene.first, 0);
  fitCanvas();
  requestAnimationFrame(loop);
  $("status").hidden = true;
  // For scripts and tests.
  window.sightline = {
    view, state, scene, stand, shown, control, filter, lengths, tour,
    isSettled: () => !state.isSorting && !state.dirty && !control.flight && isOrdered(),
  };
}

function hexToRgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
}

function fail(error) {
  console.error(error);
  $("status").textContent = error.message;
  $("status").hidden = false;
}

start().catch(fail);
