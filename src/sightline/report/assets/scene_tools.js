// Lengths between clicks, the photo over the scene, pictures side by side, camera paths.

const SVG = "http://www.w3.org/2000/svg";

// Lengths are metres in metric scenes, or once one of them is told; else units of the scene.
class Lengths {
  constructor(box, isMetric) {
    this.box = box;
    this.metres = isMetric ? 1 : null;
    this.ends = [];
  }

  add(point) {
    this.ends.push(point);
  }

  clear() {
    this.ends = [];
  }

  last() {
    const n = this.ends.length & ~1;
    return n ? norm(sub(this.ends[n - 1], this.ends[n - 2])) : null;
  }

  text(length) {
    const value = length * (this.metres ?? 1);
    const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.max(value, 1e-6))));
    return value.toFixed(Math.min(digits, 6)) + (this.metres === null ? " units" : " m");
  }

  draw(view, width, height, near) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const put = (name, values, text = "") => {
      const made = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
      made.textContent = text;
      svg.append(made);
    };
    for (let i = 0; i < this.ends.length; i += 2) {
      const [a, b] = [this.ends[i], this.ends[i + 1]].map((end) => end && project(view, end, width, height));
      const dot_ = (p) => p && p[2] > near && put("circle", { cx: p[0], cy: p[1], r: 4 });
      if (a && b && a[2] > near && b[2] > near) {
        put("line", { x1: a[0], y1: a[1], x2: b[0], y2: b[1] });
        put("text", { x: (a[0] + b[0]) / 2 + 8, y: (a[1] + b[1]) / 2 - 8 }, this.text(norm(sub(this.ends[i + 1], this.ends[i]))));
      }
      dot_(a);
      dot_(b);
    }
    this.box.replaceChildren(...(this.ends.length ? [svg] : []));
  }
}

// Lays the photo of a camera over the view from there, cut by a rule that a finger can move.
class Wipe {
  constructor(box) {
    this.box = box;
    this.image = box.querySelector("img");
    box.querySelector("input").addEventListener("input", (e) => box.style.setProperty("--cut", e.target.value + "%"));
  }

  show(camera, view, width, height) {
    const focal = height / 2 / Math.tan(view.fov / 2);
    const left = width / 2 - (focal * camera.cx) / camera.fx, top = height / 2 - (focal * camera.cy) / camera.fy;
    Object.assign(this.box.style, {
      left: left + "px", top: top + "px",
      width: (focal * camera.width) / camera.fx + "px", height: (focal * camera.height) / camera.fy + "px",
    });
    if (this.image.src !== camera.thumbnail) this.image.src = camera.thumbnail;
    this.box.hidden = false;
  }

  hide() {
    this.box.hidden = true;
  }
}

// A tour through views; each stretch takes the same time.
class Tour {
  constructor() {
    this.stops = [];
    this.seconds = 1.6;
  }

  duration() {
    return Math.max(0, this.stops.length - 1) * this.seconds;
  }

  at(time) {
    const last = this.stops.length - 1, place = clamp(time / this.seconds, 0, last);
    const i = Math.min(Math.floor(place), last - 1), t = place - i;
    return between(this.stops[i], this.stops[i + 1], t * t * (3 - 2 * t));
  }
}
