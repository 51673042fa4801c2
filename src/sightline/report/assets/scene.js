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
  const shown = {
    splats: !!scene.splats, points: !!scene.points && !scene.splats, cameras: scene.cameras.length > 0,
    photos: false, pointPixels: 2, linePixels: 1.5, count: scene.points?.count ?? 0, background: [0, 0, 0],
  };
  const view = firstView();
  const clip = [0.002 * scene.radius, 1000 * scene.radius];
  const state = { dirty: true, standing: -1, frames: 0, stamp: 0, sortedStamp: -1, isSorting: false, scale: 1 };
  const control = new Control(canvas, view, scene.up, () => { state.dirty = true; });
  control.least = 0.01 * scene.radius;
  let positions = null, worker = null;

  if (scene.splats) {
    const geometry = await readTable("geometry", 16), shape = await readTable("shape", 8);
    const harmonics = scene.splats.degree ? new Uint32Array(await readTable("harmonics", 16 * scene.splats.degree)) : null;
    painter.setSplats(scene.splats, new Uint32Array(geometry), new Uint32Array(shape), harmonics);
    const floats = new Float32Array(geometry);
    positions = new Float32Array(3 * scene.splats.count);
    for (let i = 0; i < scene.splats.count; i++) positions.set(floats.subarray(4 * i, 4 * i + 3), 3 * i);
    worker = new Worker(URL.createObjectURL(new Blob([`(${sorter})()`], { type: "text/javascript" })));
    worker.onerror = (e) => fail(new Error("sorting: " + e.message));
    worker.onmessage = ({ data }) => {
      painter.setOrder(data.order);
      Object.assign(state, { isSorting: false, sortedStamp: data.stamp, dirty: true });
    };
    worker.postMessage({ positions });
  }
  let pointPositions = null;
  if (scene.points) {
    pointPositions = new Float32Array(await readTable("positions", 12));
    painter.setPoints(pointPositions, new Uint8Array(await readTable("point_colors", 3)));
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
  }
  control.onleave = () => { if (state.standing >= 0) stand(-1); };
  const next = (by) => scene.cameras.length && stand((Math.max(state.standing, by > 0 ? -1 : 0) + by + scene.cameras.length) % scene.cameras.length);
  const reset = () => { stand(-1); control.flyTo(firstView()); };

  control.onclick = (x, y) => {
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
    const cloud = shown.splats && positions ? positions : pointPositions;
    if (!cloud) return;
    let best = null, nearest = Infinity;
    const w = canvas.clientWidth, h = canvas.clientHeight, focal = h / 2 / Math.tan(view.fov / 2);
    const { eye: e, right: r, down: d, forward: f } = view;
    for (let i = 0; i < cloud.length; i += 3) {
      const p = cloud[i] - e[0], q = cloud[i + 1] - e[1], s = cloud[i + 2] - e[2];
      const z = f[0] * p + f[1] * q + f[2] * s;
      if (z < clip[0] || z >= nearest) continue;
      const px = w / 2 + (focal * (r[0] * p + r[1] * q + r[2] * s)) / z - x;
      const py = h / 2 + (focal * (d[0] * p + d[1] * q + d[2] * s)) / z - y;
      if (px * px + py * py < 64) [best, nearest] = [[cloud[i], cloud[i + 1], cloud[i + 2]], z];
    }
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
  bind("confidence", "input", (s) => { shown.count = scene.points.shown[+s.value]; report("confidence", s.value + " %"); });
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
  document.querySelectorAll("#strip button").forEach((b, i) => b.addEventListener("click", () => stand(i)));
  const flip = (id) => { const box = $(id); if (box) { box.checked = !box.checked; box.dispatchEvent(new Event("change")); } };
  const keys = {
    r: reset, "[": () => next(-1), "]": () => next(1), 1: () => flip("show-splats"), 2: () => flip("show-points"),
    3: () => flip("show-cameras"), 4: () => flip("show-photos"), p: savePicture, m: () => toggle("panel", "menu"),
    h: () => toggle("help", "question"), "?": () => toggle("help", "question"), escape: () => toggle("help", "question", false),
  };
  control.onkey = (key) => {
    if (!(key in keys)) return false;
    keys[key]();
    return true;
  };

  function savePicture() {
    render();
    canvas.toBlob((blob) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = scene.file + ".png";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  // Drawing
  function fitCanvas() {
    const ratio = Math.min(devicePixelRatio || 1, 2) * state.scale;
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio)), height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width === width && canvas.height === height) return;
    Object.assign(canvas, { width, height });
    state.dirty = true;
  }
  function render() {
    const ratio = canvas.height / canvas.clientHeight;
    painter.draw(view, clip, { ...shown, pointPixels: Math.max(1, shown.pointPixels * ratio), linePixels: shown.linePixels * ratio });
    state.frames++;
  }
  function requestOrder() {
    if (!worker || state.isSorting) return;
    const key = [...view.forward, ...view.eye].join();
    if (key === state.sortedKey) return;
    Object.assign(state, { sortedKey: key, isSorting: true });
    worker.postMessage({ forward: view.forward, offset: dot(view.forward, view.eye), near: clip[0], stamp: ++state.stamp });
  }
  let before = performance.now(), slow = 0;
  function loop(now) {
    const seconds = Math.min((now - before) / 1000, 0.1);
    before = now;
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
  for (const id of ["confidence", "point-size"]) $(id)?.dispatchEvent(new Event("input"));
  if (scene.cameras.length) stand(scene.first, 0);
  fitCanvas();
  requestAnimationFrame(loop);
  $("status").hidden = true;
  // For scripts and tests.
  window.sightline = {
    view, state, scene, stand, shown, control,
    isSettled: () => !state.isSorting && !state.dirty && !control.flight && (!worker || state.sortedKey === [...view.forward, ...view.eye].join()),
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
