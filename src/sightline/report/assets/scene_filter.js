// Which points and splats are drawn. Nothing is computed again: flags and colours came with the page.

class Filter {
  constructor(center) {
    Object.assign(this, { hidden: 0, black: false, white: false, sky: false, views: null, reach: Infinity, center });
  }

  #drops(red, green, blue) {
    return (this.black && red + green + blue < 16) || (this.white && red > 240 && green > 240 && blue > 240);
  }

  #isFar(at, i) {
    const [a, b, c] = this.center, x = at[i] - a, y = at[i + 1] - b, z = at[i + 2] - c;
    return x * x + y * y + z * z > this.reach * this.reach;
  }

  // Bytes with one bit for each camera that is asked for; null for all.
  #mask(bytes) {
    if (!this.views || !bytes) return null;
    const mask = new Uint8Array(bytes);
    for (const view of this.views) mask[view >> 3] |= 1 << (view & 7);
    return mask;
  }

  // Indices of the shown points of a cloud {header, positions, colors, sky, seen, seenBytes}.
  points({ header, positions, colors, sky, seen, seenBytes }) {
    const count = header.shown ? header.shown[this.hidden] : header.count, mask = this.#mask(seen && seenBytes);
    const indices = new Uint32Array(count), isCropped = this.reach < Infinity;
    let kept = 0;
    for (let i = 0; i < count; i++) {
      const at = 3 * i;
      if (this.sky && sky && sky[i]) continue;
      if ((this.black || this.white) && this.#drops(colors[at], colors[at + 1], colors[at + 2])) continue;
      if (isCropped && this.#isFar(positions, at)) continue;
      if (mask) {
        let isSeen = 0;
        for (let b = 0; b < seenBytes; b++) isSeen |= seen[i * seenBytes + b] & mask[b];
        if (!isSeen) continue;
      }
      indices[kept++] = i;
    }
    return indices.subarray(0, kept);
  }

  // One byte a splat, 1 for those shown; null when all are. `shape` holds two words a splat.
  splats({ header, positions, shape, sky }) {
    const isCropped = this.reach < Infinity;
    if (!this.black && !this.white && !isCropped && !(this.sky && sky)) return null;
    const [low, high] = header.colors, value = (byte) => 255 * (low + ((high - low) * byte) / 255);
    const keep = new Uint8Array(header.count);
    for (let i = 0; i < header.count; i++) {
      if (this.sky && sky && sky[i]) continue;
      const word = shape[2 * i + 1];
      if ((this.black || this.white) && this.#drops(value(word & 255), value((word >> 8) & 255), value((word >> 16) & 255))) continue;
      if (isCropped && this.#isFar(positions, 3 * i)) continue;
      keep[i] = 1;
    }
    return keep;
  }
}

// The nearest of the points around a place in the window; `isShown(i)` may leave some out.
function pick(positions, view, [x, y], [w, h], near, isShown = null) {
  let best = null, nearest = Infinity;
  const focal = h / 2 / Math.tan(view.fov / 2), { eye: e, right: r, down: d, forward: f } = view;
  for (let i = 0; i < positions.length; i += 3) {
    const p = positions[i] - e[0], q = positions[i + 1] - e[1], s = positions[i + 2] - e[2];
    const z = f[0] * p + f[1] * q + f[2] * s;
    if (z < near || z >= nearest || (isShown && !isShown(i / 3))) continue;
    const px = w / 2 + (focal * (r[0] * p + r[1] * q + r[2] * s)) / z - x;
    const py = h / 2 + (focal * (d[0] * p + d[1] * q + d[2] * s)) / z - y;
    if (px * px + py * py < 64) [best, nearest] = [[positions[i], positions[i + 1], positions[i + 2]], z];
  }
  return best;
}
