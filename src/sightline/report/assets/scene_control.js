// Turns fingers, mouse and keys into changes of a view. `up` is the world's up.

class Control {
  constructor(canvas, view, up, changed) {
    Object.assign(this, { canvas, view, up, changed });
    this.pointers = new Map();
    this.keys = new Set();
    this.flight = null;
    this.onclick = () => {};
    this.ontarget = () => {};
    this.onkey = () => false;
    this.onleave = () => {};
    canvas.addEventListener("pointerdown", (e) => this.#down(e));
    canvas.addEventListener("pointermove", (e) => this.#move(e));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (e) => this.#lift(e));
    canvas.addEventListener("wheel", (e) => this.#wheel(e), { passive: false });
    canvas.addEventListener("dblclick", (e) => this.ontarget(...this.#at(e)));
    canvas.addEventListener("contextmenu", (e) => e.preventDefault());
    addEventListener("keydown", (e) => this.#keydown(e));
    addEventListener("keyup", (e) => this.keys.delete(e.key.toLowerCase()));
    addEventListener("blur", () => this.keys.clear());
  }

  target() {
    return add(this.view.eye, this.view.forward, this.view.distance);
  }

  // Glides to another view; at once for people who asked for less motion.
  flyTo(view, milliseconds = 600) {
    const quick = matchMedia("(prefers-reduced-motion: reduce)").matches || milliseconds <= 0;
    if (quick) {
      this.flight = null;
      Object.assign(this.view, view);
    } else {
      this.flight = { from: { ...this.view }, to: { ...view }, start: performance.now(), milliseconds };
    }
    this.changed();
  }

  // Moves on with flights and held keys; true while there is motion.
  step(now, seconds) {
    if (this.flight) {
      const { from, to, start, milliseconds } = this.flight;
      const t = clamp((now - start) / milliseconds, 0, 1);
      Object.assign(this.view, t < 1 ? between(from, to, t * t * (3 - 2 * t)) : to);
      if (t >= 1) this.flight = null;
      return true;
    }
    const held = (key) => (this.keys.has(key) ? 1 : 0);
    const ahead = held("w") - held("s"), aside = held("d") - held("a"), rise = held("e") - held("q");
    const yaw = held("arrowright") - held("arrowleft"), pitch = held("arrowdown") - held("arrowup");
    if (!ahead && !aside && !rise && !yaw && !pitch) return false;
    const pace = this.view.distance * seconds * (held("shift") ? 2.4 : 0.8), v = this.view;
    v.eye = add(add(add(v.eye, v.forward, ahead * pace), v.right, aside * pace), this.up, rise * pace);
    if (yaw || pitch) this.orbit(-yaw * seconds * 300, -pitch * seconds * 300);
    this.onleave();
    return true;
  }

  orbit(dx, dy) {
    const v = this.view, target = this.target();
    let { right, down, forward } = v;
    const spin = (axis, angle) => {
      right = turn(right, axis, angle);
      down = turn(down, axis, angle);
      forward = turn(forward, axis, angle);
    };
    spin(this.up, -dx * 0.005);
    const tilt = Math.asin(clamp(dot(forward, this.up), -1, 1)), most = 1.5;
    spin(right, clamp(tilt - dy * 0.005, -most, most) - tilt);
    // Pictures may be rolled; turning straightens the view again, little by little.
    const straight = level(forward, this.up);
    right = unit(mix(right, straight.right, 0.15));
    right = unit(add(right, forward, -dot(right, forward)));
    Object.assign(v, { right, forward: unit(forward), down: unit(cross(forward, right)) });
    v.eye = add(target, v.forward, -v.distance);
  }

  pan(dx, dy) {
    const v = this.view, scale = (2 * v.distance * Math.tan(v.fov / 2)) / this.canvas.clientHeight;
    v.eye = add(add(v.eye, v.right, -dx * scale), v.down, -dy * scale);
  }

  zoom(factor) {
    const v = this.view, target = this.target(), least = this.least ?? 1e-4;
    const wanted = v.distance * factor;
    v.distance = Math.max(wanted, least);
    // At the target, zooming on pushes it ahead.
    v.eye = add(target, v.forward, -(wanted < least ? 2 * wanted - least : wanted));
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #down(event) {
    this.canvas.focus({ preventScroll: true });
    try {
      this.canvas.setPointerCapture(event.pointerId);
    } catch { /* a pointer that is already gone */ }
    this.pointers.set(event.pointerId, { at: this.#at(event), button: event.button });
    this.travel = this.pointers.size > 1 ? Infinity : 0;
    this.flight = null;
  }

  #move(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const at = this.#at(event), dx = at[0] - pointer.at[0], dy = at[1] - pointer.at[1];
    const others = [...this.pointers.values()].filter((p) => p !== pointer);
    if (others.length) {
      const [other] = others, gap = (p) => Math.hypot(p[0] - other.at[0], p[1] - other.at[1]);
      this.zoom(clamp(gap(pointer.at) / Math.max(gap(at), 1), 0.5, 2));
      this.pan(dx / 2, dy / 2);
    } else if (pointer.button === 0 && !event.shiftKey) {
      this.orbit(dx, dy);
    } else {
      this.pan(dx, dy);
    }
    this.travel += Math.abs(dx) + Math.abs(dy);
    pointer.at = at;
    if (this.travel > 4) this.onleave();
    this.changed();
  }

  #lift(event) {
    const pointer = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (pointer && event.type === "pointerup" && this.travel < 5 && pointer.button === 0) this.onclick(...pointer.at);
  }

  #wheel(event) {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 30 : event.deltaMode === 2 ? 400 : 1);
    this.flight = null;
    this.zoom(Math.exp(clamp(pixels, -300, 300) * 0.0015));
    this.onleave();
    this.changed();
  }

  #keydown(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const name = event.target.tagName, key = event.key.toLowerCase();
    const isField = name === "INPUT" || name === "SELECT";
    if (isField && (key.startsWith("arrow") || event.target.type === "color")) return;
    if (this.onkey(key)) {
      event.preventDefault();
      return;
    }
    if ("wasdqe".includes(key) || key.startsWith("arrow") || key === "shift") {
      this.keys.add(key);
      if (key !== "shift") event.preventDefault();
      this.changed();
    }
  }
}
