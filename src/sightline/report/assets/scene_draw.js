// Everything that talks to WebGL2. The shaders stand in `scene_shaders.js`.

function makeProgram(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) {
      throw new Error("shader: " + gl.getShaderInfoLog(shader));
    }
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    throw new Error("program: " + gl.getProgramInfoLog(program));
  }
  const uniforms = {};
  for (let i = 0; i < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); i++) {
    const { name } = gl.getActiveUniform(program, i);
    uniforms[name] = gl.getUniformLocation(program, name);
  }
  return { program, uniforms };
}

// Words to a texture of unsigned integers, `channels` words a texel.
function makeTable(gl, words, channels) {
  const texels = words.length / channels, rows = Math.max(1, Math.ceil(texels / WIDTH));
  const padded = new Uint32Array(rows * WIDTH * channels);
  padded.set(words);
  const [inside, format] = channels === 4 ? [gl.RGBA32UI, gl.RGBA_INTEGER] : [gl.RG32UI, gl.RG_INTEGER];
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, inside, WIDTH, rows, 0, format, gl.UNSIGNED_INT, padded);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
  return texture;
}

// A vertex array of float (or normalised byte) attributes read from one buffer.
function makeArray(gl, data, attributes, stride, perInstance) {
  const array = gl.createVertexArray(), buffer = gl.createBuffer();
  gl.bindVertexArray(array);
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
  attributes.forEach(({ type, offset }, location) => {
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, 3, type, type === gl.UNSIGNED_BYTE, stride, offset);
    gl.vertexAttribDivisor(location, perInstance ? 1 : 0);
  });
  gl.bindVertexArray(null);
  return { array, buffer };
}

class Painter {
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: false, alpha: false, powerPreference: "high-performance" });
    if (!gl) throw new Error("This page needs WebGL2, which this browser does not offer.");
    this.gl = gl;
    this.canvas = canvas;
    this.numSorted = 0;
    this.lines = this.photos = this.splats = this.points = null;
  }

  setTurbo(bytes) {
    const gl = this.gl;
    this.turbo = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.turbo);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, bytes.length / 3, 1, 0, gl.RGB, gl.UNSIGNED_BYTE, bytes);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 4);
    for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.LINEAR);
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
  }

  setSplats(header, geometry, shape, harmonics) {
    const gl = this.gl;
    const rows = Math.ceil((header.count * Math.max(1, header.degree)) / WIDTH);
    if (rows > gl.getParameter(gl.MAX_TEXTURE_SIZE)) throw new Error("This scene has more splats than this graphics card can hold.");
    const { array, buffer } = { array: gl.createVertexArray(), buffer: gl.createBuffer() };
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, 4 * header.count, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 4, 0);
    gl.vertexAttribDivisor(0, 1);
    gl.bindVertexArray(null);
    this.splats = {
      header, array, buffer, ...makeProgram(gl, SPLAT_VERTEX, SPLAT_FRAGMENT),
      textures: [makeTable(gl, geometry, 4), makeTable(gl, shape, 2), makeTable(gl, harmonics ?? new Uint32Array(4), 4)],
    };
  }

  // Other colours for the splats: words like those of `shape`, over the range `colors`, without harmonics.
  setSplatColors(shape, colors, degree) {
    const gl = this.gl;
    gl.deleteTexture(this.splats.textures[1]);
    this.splats.textures[1] = makeTable(gl, shape, 2);
    this.splats.header = { ...this.splats.header, colors, degree };
  }

  setOrder(order) {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.splats.buffer);
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, order);
    this.numSorted = order.length;
  }

  setPoints(positions, colors) {
    const gl = this.gl, count = positions.length / 3;
    const data = new ArrayBuffer(16 * count), floats = new Float32Array(data), bytes = new Uint8Array(data);
    for (let i = 0; i < count; i++) {
      for (let k = 0; k < 3; k++) {
        floats[4 * i + k] = positions[3 * i + k];
        bytes[16 * i + 12 + k] = colors[3 * i + k];
      }
    }
    const attributes = [{ type: gl.FLOAT, offset: 0 }, { type: gl.UNSIGNED_BYTE, offset: 12 }];
    const made = makeArray(gl, data, attributes, 16, false), indices = this.points?.indices ?? gl.createBuffer();
    if (this.points) gl.deleteBuffer(this.points.buffer);
    gl.bindVertexArray(made.array);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, indices);
    gl.bindVertexArray(null);
    this.points = { ...(this.points ?? makeProgram(gl, POINT_VERTEX, POINT_FRAGMENT)), ...made, indices, shown: 0 };
  }

  // Which points are drawn.
  setShownPoints(indices) {
    const gl = this.gl;
    gl.bindVertexArray(this.points.array); // the index buffer belongs to the array
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.DYNAMIC_DRAW);
    gl.bindVertexArray(null);
    this.points.shown = indices.length;
  }

  // Segments as {from, to, color} with colours in [0, 1].
  setLines(segments) {
    const gl = this.gl;
    const data = new Float32Array(segments.flatMap(({ from, to, color }) => [...from, ...to, ...color]));
    const attributes = [0, 12, 24].map((offset) => ({ type: gl.FLOAT, offset }));
    if (this.lines) gl.deleteBuffer(this.lines.buffer);
    const made = makeArray(gl, data, attributes, 36, true);
    this.lines = { ...(this.lines ?? makeProgram(gl, LINE_VERTEX, LINE_FRAGMENT)), ...made, count: segments.length };
  }

  // Quads as {corner, across, down}; image i belongs to quad i.
  setPhotos(quads, images) {
    const gl = this.gl;
    const data = new Float32Array(quads.flatMap(({ corner, across, down }) => [...corner, ...across, ...down]));
    const attributes = [0, 12, 24].map((offset) => ({ type: gl.FLOAT, offset }));
    if (!this.photos) {
      const texture = gl.createTexture(), [w, h] = [images[0].naturalWidth, images[0].naturalHeight];
      gl.bindTexture(gl.TEXTURE_2D_ARRAY, texture);
      const levels = Math.floor(Math.log2(Math.max(w, h))) + 1;
      gl.texStorage3D(gl.TEXTURE_2D_ARRAY, levels, gl.RGBA8, w, h, images.length);
      images.forEach((image, i) => {
        if (image.naturalWidth === w && image.naturalHeight === h) {
          gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, 0, i, w, h, 1, gl.RGBA, gl.UNSIGNED_BYTE, image);
        }
      });
      gl.generateMipmap(gl.TEXTURE_2D_ARRAY);
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
      this.photos = { texture, ...makeProgram(gl, PHOTO_VERTEX, PHOTO_FRAGMENT) };
    } else {
      gl.deleteBuffer(this.photos.buffer);
    }
    Object.assign(this.photos, makeArray(gl, data, attributes, 36, true), { count: quads.length });
  }

  #use(layer, view, clip, shown) {
    const gl = this.gl, { width, height } = this.canvas, u = layer.uniforms;
    const focal = height / 2 / Math.tan(view.fov / 2);
    gl.useProgram(layer.program);
    gl.bindVertexArray(layer.array);
    gl.uniform3fv(u.uEye, view.eye);
    const { right: r, down: d, forward: f } = view;
    gl.uniformMatrix3fv(u.uAxes, false, [r[0], d[0], f[0], r[1], d[1], f[1], r[2], d[2], f[2]]);
    gl.uniform2f(u.uFocal, focal, focal);
    gl.uniform2f(u.uSize, width, height);
    gl.uniform2f(u.uClip, clip[0], clip[1]);
    if (u.uMode) {
      gl.uniform1i(u.uMode, { depth: 1, normal: 2 }[shown.mode] ?? 0);
      gl.uniform2f(u.uDepth, shown.depth[0], shown.depth[1]);
      gl.uniform1i(u.uTurbo, 3);
    }
    return u;
  }

  // `shown` says which layers, `pixels` the sizes of points and lines in canvas pixels.
  draw(view, clip, shown) {
    const gl = this.gl;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(...shown.background, 1);
    gl.depthMask(true);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    gl.disable(gl.BLEND);
    gl.activeTexture(gl.TEXTURE3);
    gl.bindTexture(gl.TEXTURE_2D, this.turbo);
    gl.activeTexture(gl.TEXTURE0);
    if (this.points && shown.points) {
      const u = this.#use(this.points, view, clip, shown);
      gl.uniform1f(u.uPixels, shown.pointPixels);
      gl.drawElements(gl.POINTS, this.points.shown, gl.UNSIGNED_INT, 0);
    }
    if (this.photos && shown.photos) {
      this.#use(this.photos, view, clip, shown);
      gl.activeTexture(gl.TEXTURE0);
      gl.bindTexture(gl.TEXTURE_2D_ARRAY, this.photos.texture);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.photos.count);
    }
    if (this.lines && shown.cameras) {
      const u = this.#use(this.lines, view, clip, shown);
      gl.uniform1f(u.uPixels, shown.linePixels);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.lines.count);
    }
    if (this.splats && shown.splats && this.numSorted) {
      const { header, textures } = this.splats, u = this.#use(this.splats, view, clip, shown);
      [u.uGeometry, u.uShape, u.uHarmonics].forEach((place, i) => {
        gl.activeTexture(gl.TEXTURE0 + i);
        gl.bindTexture(gl.TEXTURE_2D, textures[i]);
        gl.uniform1i(place, i);
      });
      gl.uniform2fv(u.uScales, header.scales);
      gl.uniform2fv(u.uColors, header.colors);
      gl.uniform3f(u.uBands, header.bands[0] ?? 0, header.bands[1] ?? 0, header.bands[2] ?? 0);
      gl.uniform1i(u.uDegree, header.degree);
      gl.uniform1i(u.uCompensate, header.antialiased ? 1 : 0);
      gl.depthMask(false);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.numSorted);
    }
    gl.bindVertexArray(null);
  }
}
