// Runs in a worker: orders splats from back to front. Positive floats compare like their bits, so
// a counting sort of the leading bits of depth is exact to 1/8192 of it.
function sorter() {
  let positions = new Float32Array(0), count = 0, bits = new Uint32Array(0), histogram = null, keep = null;
  self.onmessage = ({ data }) => {
    if (data.positions) {
      positions = data.positions;
      count = positions.length / 3;
      bits = new Uint32Array(count);
      return;
    }
    if ("keep" in data) keep = data.keep; // which splats the filters leave; null for all
    const [a, b, c] = data.forward, offset = data.offset, near = data.near;
    const depth = new Float32Array(bits.buffer);
    let low = 0xffffffff, high = 0, kept = 0;
    for (let i = 0, p = 0; i < count; i++, p += 3) {
      const z = a * positions[p] + b * positions[p + 1] + c * positions[p + 2] - offset;
      if (z < near || (keep && !keep[i])) {
        bits[i] = 0; // behind or filtered: left out
        continue;
      }
      depth[i] = z;
      const key = bits[i] >>> 10;
      bits[i] = key;
      if (key < low) low = key;
      if (key > high) high = key;
      kept++;
    }
    const order = new Uint32Array(kept);
    if (kept) {
      const size = high - low + 1;
      if (!histogram || histogram.length < size) histogram = new Uint32Array(size);
      histogram.fill(0, 0, size);
      for (let i = 0; i < count; i++) if (bits[i]) histogram[high - bits[i]]++;
      for (let k = 0, sum = 0; k < size; k++) {
        const here = histogram[k];
        histogram[k] = sum;
        sum += here;
      }
      for (let i = 0; i < count; i++) if (bits[i]) order[histogram[high - bits[i]]++] = i;
    }
    self.postMessage({ order, stamp: data.stamp }, [order.buffer]);
  };
}
