// The shaders. The layout of the tables that they read is that of `scene_data.py`.

const WIDTH = 2048; // of the textures that hold the splats

const LENS = `
uniform vec3 uEye; uniform mat3 uAxes; uniform vec2 uFocal; uniform vec2 uSize; uniform vec2 uClip;
vec3 toCamera(vec3 p) { return uAxes * (p - uEye); }
uniform int uMode; uniform vec2 uDepth; uniform sampler2D uTurbo; // modes: 0 colour, 1 depth, 2 normals
vec3 depthColor(float z) { // even steps of 1/z, near is warm
  float t = (1.0 / z - 1.0 / uDepth.y) / (1.0 / uDepth.x - 1.0 / uDepth.y);
  return textureLod(uTurbo, vec2((clamp(t, 0.0, 1.0) * 31.0 + 0.5) / 32.0, 0.5), 0.0).rgb;
}
vec4 toScreen(vec3 c) {
  float n = uClip.x, f = uClip.y;
  vec2 xy = c.xy * uFocal / (0.5 * uSize);
  return vec4(xy.x, -xy.y, (c.z * (f + n) - 2.0 * f * n) / (f - n), c.z);
}`;

const SPLAT_VERTEX = `#version 300 es
precision highp float; precision highp int; precision highp usampler2D;
uniform usampler2D uGeometry, uShape, uHarmonics;
uniform vec2 uScales, uColors; uniform vec3 uBands; uniform int uDegree; uniform bool uCompensate;
${LENS}
layout(location = 0) in uint aIndex;
out vec2 vAt; out vec4 vColor;

ivec2 cell(uint i, uint width) { return ivec2(int((i * width) % ${WIDTH}u), int((i * width) / ${WIDTH}u)); }

mat3 rotation(uint packed) {
  vec3 o = (vec3(packed & 1023u, (packed >> 10) & 1023u, (packed >> 20) & 1023u) / 1023.0 - 0.5) * 1.41421356237;
  float l = sqrt(max(0.0, 1.0 - dot(o, o)));
  uint k = packed >> 30;
  vec4 q = k == 0u ? vec4(l, o) : k == 1u ? vec4(o.x, l, o.yz) : k == 2u ? vec4(o.xy, l, o.z) : vec4(o, l);
  float w = q.x, x = q.y, y = q.z, z = q.w; // columns follow
  return mat3(1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
              2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
              2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}

float signedByte(uint word, uint n) { return float(int(word << (24u - 8u * n)) >> 24); }

vec3 harmonics(uint i, vec3 d) {
  // Coefficient j above the constant one has its three bytes at 3 j.
  float x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  float basis[15];
  basis[0] = -0.4886025119029199 * y; basis[1] = 0.4886025119029199 * z; basis[2] = -0.4886025119029199 * x;
  if (uDegree > 1) {
    basis[3] = 1.0925484305920792 * x * y; basis[4] = -1.0925484305920792 * y * z;
    basis[5] = 0.31539156525252005 * (2.0 * zz - xx - yy);
    basis[6] = -1.0925484305920792 * x * z; basis[7] = 0.5462742152960396 * (xx - yy);
  }
  if (uDegree > 2) {
    basis[8] = -0.5900435899266435 * y * (3.0 * xx - yy); basis[9] = 2.890611442640554 * x * y * z;
    basis[10] = -0.4570457994644658 * y * (4.0 * zz - xx - yy);
    basis[11] = 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy);
    basis[12] = -0.4570457994644658 * x * (4.0 * zz - xx - yy);
    basis[13] = 1.445305721320277 * z * (xx - yy); basis[14] = -0.5900435899266435 * x * (xx - 3.0 * yy);
  }
  uint words[12];
  for (int t = 0; t < uDegree; t++) {
    ivec2 at = cell(i, uint(uDegree)) + ivec2(t, 0);
    if (at.x >= ${WIDTH}) at = ivec2(at.x - ${WIDTH}, at.y + 1);
    uvec4 w = texelFetch(uHarmonics, at, 0);
    words[4 * t] = w.x; words[4 * t + 1] = w.y; words[4 * t + 2] = w.z; words[4 * t + 3] = w.w;
  }
  vec3 sum = vec3(0.0);
  int many = (uDegree + 1) * (uDegree + 1) - 1;
  for (int j = 0; j < many; j++) {
    float band = j < 3 ? uBands.x : j < 8 ? uBands.y : uBands.z;
    uint b = 3u * uint(j);
    vec3 c = vec3(signedByte(words[b >> 2], b & 3u), signedByte(words[(b + 1u) >> 2], (b + 1u) & 3u),
                  signedByte(words[(b + 2u) >> 2], (b + 2u) & 3u));
    sum += basis[j] * band * c;
  }
  return sum;
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0); // outside, until the splat proves visible
  uvec4 geometry = texelFetch(uGeometry, cell(aIndex, 1u), 0);
  uvec2 shape = texelFetch(uShape, cell(aIndex, 1u), 0).xy;
  vec3 mean = uintBitsToFloat(geometry.xyz), c = toCamera(mean);
  if (c.z < uClip.x) return;
  vec2 edge = 0.5 * uSize / uFocal;
  vec2 tangent = clamp(c.xy / c.z, -1.3 * edge, 1.3 * edge);
  vec3 logs = vec3(shape.x & 1023u, (shape.x >> 10) & 1023u, (shape.x >> 20) & 1023u) / 1023.0;
  vec3 scales = exp(mix(vec3(uScales.x), vec3(uScales.y), logs));
  mat3 m = uAxes * rotation(geometry.w);
  m = mat3(m[0] * scales.x, m[1] * scales.y, m[2] * scales.z);
  // The rows of J M: how the splat's own axes move the pixel.
  vec3 rowX = vec3(m[0].x, m[1].x, m[2].x), rowY = vec3(m[0].y, m[1].y, m[2].y), rowZ = vec3(m[0].z, m[1].z, m[2].z);
  vec3 gx = uFocal.x / c.z * (rowX - tangent.x * rowZ), gy = uFocal.y / c.z * (rowY - tangent.y * rowZ);
  float a = dot(gx, gx), b = dot(gx, gy), d = dot(gy, gy);
  vec3 minors = cross(gx, gy); // det of the covariance, without cancellation
  float before = dot(minors, minors), blur = 0.3;
  a += blur; d += blur;
  float after = before + blur * (a + d - blur);
  vec4 color = vec4(shape.y & 255u, (shape.y >> 8) & 255u, (shape.y >> 16) & 255u, shape.y >> 24) / 255.0;
  if (uCompensate) color.a *= sqrt(max(0.000025, before / after));
  if (color.a < 1.0 / 255.0) return;
  float middle = 0.5 * (a + d), radius = length(vec2(0.5 * (a - d), b));
  float long2 = middle + radius, short2 = max(after / long2, 1e-6);
  vec2 axis = radius < 1e-9 ? vec2(1.0, 0.0) : abs(a - long2) > abs(d - long2) ? vec2(b, long2 - a) : vec2(long2 - d, b);
  axis = normalize(axis);
  float reach = sqrt(2.0 * log(255.0 * color.a));
  vec2 corner = vec2(float(gl_VertexID & 1) * 2.0 - 1.0, float(gl_VertexID >> 1) * 2.0 - 1.0) * reach;
  vec2 offset = corner.x * sqrt(long2) * axis + corner.y * sqrt(short2) * vec2(-axis.y, axis.x);
  vec4 at = toScreen(c);
  vec2 half_ = 0.5 * uSize, extent = reach * sqrt(vec2(a, d));
  if (any(greaterThan(abs(at.xy / at.w * half_) - extent, half_))) return;
  color.rgb = mix(vec3(uColors.x), vec3(uColors.y), color.rgb);
  if (uMode == 1) {
    color.rgb = depthColor(c.z);
  } else if (uMode == 2) {
    // A splat is flat: its shortest axis is the normal, turned towards the eye. Camera axes.
    vec3 n = scales.x <= min(scales.y, scales.z) ? m[0] / scales.x : scales.y <= scales.z ? m[1] / scales.y : m[2] / scales.z;
    color.rgb = 0.5 + 0.5 * (dot(n, c) > 0.0 ? -n : n);
  } else if (uDegree > 0) {
    color.rgb += harmonics(aIndex, normalize(mean - uEye));
  }
  vColor = vec4(max(color.rgb, 0.0), color.a);
  vAt = corner;
  gl_Position = at + vec4(offset.x / half_.x, -offset.y / half_.y, 0.0, 0.0) * at.w;
}`;

const SPLAT_FRAGMENT = `#version 300 es
precision highp float;
in vec2 vAt; in vec4 vColor; out vec4 oColor;
void main() {
  float alpha = min(0.99, vColor.a * exp(-0.5 * dot(vAt, vAt)));
  if (alpha < 1.0 / 255.0) discard;
  oColor = vec4(vColor.rgb * alpha, alpha);
}`;

const POINT_VERTEX = `#version 300 es
precision highp float;
${LENS}
uniform float uPixels;
layout(location = 0) in vec3 aAt; layout(location = 1) in vec3 aColor;
out vec3 vColor;
void main() {
  vec3 c = toCamera(aAt);
  gl_Position = c.z < uClip.x ? vec4(0.0, 0.0, 2.0, 1.0) : toScreen(c);
  gl_PointSize = uPixels;
  vColor = uMode == 1 ? depthColor(c.z) : aColor;
}`;

const POINT_FRAGMENT = `#version 300 es
precision highp float;
uniform float uPixels;
in vec3 vColor; out vec4 oColor;
void main() {
  if (uPixels > 2.5 && length(gl_PointCoord - 0.5) > 0.5) discard;
  oColor = vec4(vColor, 1.0);
}`;

const LINE_VERTEX = `#version 300 es
precision highp float;
${LENS}
uniform float uPixels;
layout(location = 0) in vec3 aFrom; layout(location = 1) in vec3 aTo; layout(location = 2) in vec3 aColor;
out vec3 vColor;
void main() {
  vec3 p = toCamera(aFrom), q = toCamera(aTo);
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
  float near = uClip.x;
  if (p.z < near && q.z < near) return;
  if (p.z < near) p = mix(p, q, (near - p.z) / (q.z - p.z));
  if (q.z < near) q = mix(q, p, (near - q.z) / (p.z - q.z));
  vec4 a = toScreen(p), b = toScreen(q);
  vec2 along = (b.xy / b.w - a.xy / a.w) * uSize;
  vec2 side = length(along) < 1e-6 ? vec2(0.0) : normalize(vec2(-along.y, along.x)) * uPixels / uSize;
  vec4 at = gl_VertexID < 2 ? a : b;
  gl_Position = at + vec4(side * ((gl_VertexID & 1) == 0 ? -1.0 : 1.0) * at.w, 0.0, 0.0);
  vColor = aColor;
}`;

const LINE_FRAGMENT = `#version 300 es
precision highp float;
in vec3 vColor; out vec4 oColor;
void main() { oColor = vec4(vColor, 1.0); }`;

const PHOTO_VERTEX = `#version 300 es
precision highp float;
${LENS}
layout(location = 0) in vec3 aCorner; layout(location = 1) in vec3 aAcross; layout(location = 2) in vec3 aDown;
out vec3 vAt;
void main() {
  vec2 at = vec2(float(gl_VertexID & 1), float(gl_VertexID >> 1));
  gl_Position = toScreen(toCamera(aCorner + at.x * aAcross + at.y * aDown));
  vAt = vec3(at, float(gl_InstanceID));
}`;

const PHOTO_FRAGMENT = `#version 300 es
precision highp float; precision highp sampler2DArray;
uniform sampler2DArray uPhotos;
in vec3 vAt; out vec4 oColor;
void main() { oColor = vec4(texture(uPhotos, vAt).rgb, 1.0); }`;
