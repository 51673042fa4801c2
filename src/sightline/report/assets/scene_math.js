// Vectors are arrays of three. A view is {eye, right, down, forward, distance, fov}: OpenCV axes as
// in the rest of sightline, `distance` to what it turns around, `fov` the vertical angle in radians.

const add = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
const sub = (a, b) => add(a, b, -1);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const times = (a, s) => [a[0] * s, a[1] * s, a[2] * s];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const norm = (a) => Math.hypot(a[0], a[1], a[2]);
const unit = (a) => times(a, 1 / (norm(a) || 1));
const mix = (a, b, t) => add(times(a, 1 - t), b, t);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

// Rodrigues' rotation of `a` about the unit `axis`.
function turn(a, axis, angle) {
  const c = Math.cos(angle), s = Math.sin(angle);
  return add(add(times(a, c), cross(axis, a), s), axis, dot(axis, a) * (1 - c));
}

// The frame that looks along `forward` with no roll against `up`.
function level(forward, up) {
  let right = cross(forward, up);
  if (norm(right) < 1e-4) right = cross(forward, Math.abs(up[0]) < 0.9 ? [1, 0, 0] : [0, 1, 0]);
  right = unit(right);
  return { right, down: unit(cross(forward, right)), forward };
}

// Rotation matrix rows right, down, forward <-> unit quaternion w, x, y, z.
function toQuaternion({ right: r, down: d, forward: f }) {
  const squares = [
    1 + r[0] + d[1] + f[2], 1 + r[0] - d[1] - f[2], 1 - r[0] + d[1] - f[2], 1 - r[0] - d[1] + f[2],
  ];
  const largest = squares.indexOf(Math.max(...squares));
  const rows = [
    [squares[0], f[1] - d[2], r[2] - f[0], d[0] - r[1]],
    [f[1] - d[2], squares[1], d[0] + r[1], r[2] + f[0]],
    [r[2] - f[0], d[0] + r[1], squares[2], f[1] + d[2]],
    [d[0] - r[1], r[2] + f[0], f[1] + d[2], squares[3]],
  ];
  const q = rows[largest], length = Math.hypot(...q);
  return q.map((x) => x / length);
}

function fromQuaternion([w, x, y, z]) {
  return {
    right: [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    down: [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    forward: [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
  };
}

function slerp(a, b, t) {
  let cosine = a.reduce((sum, x, i) => sum + x * b[i], 0);
  const sign = cosine < 0 ? -1 : 1;
  cosine = Math.min(1, Math.abs(cosine));
  const angle = Math.acos(cosine), sine = Math.sin(angle);
  const [p, q] = sine < 1e-5 ? [1 - t, t] : [Math.sin((1 - t) * angle) / sine, Math.sin(t * angle) / sine];
  const mixed = a.map((x, i) => p * x + sign * q * b[i]), length = Math.hypot(...mixed);
  return mixed.map((x) => x / length);
}

function between(a, b, t) {
  return {
    eye: mix(a.eye, b.eye, t),
    ...fromQuaternion(slerp(toQuaternion(a), toQuaternion(b), t)),
    distance: Math.exp((1 - t) * Math.log(a.distance) + t * Math.log(b.distance)),
    fov: (1 - t) * a.fov + t * b.fov,
  };
}

// World point to [x, y, z] in pixels and depth.
function project(view, point, width, height) {
  const p = sub(point, view.eye), z = dot(view.forward, p);
  const focal = height / 2 / Math.tan(view.fov / 2);
  return [width / 2 + (focal * dot(view.right, p)) / z, height / 2 + (focal * dot(view.down, p)) / z, z];
}
