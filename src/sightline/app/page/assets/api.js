// The server's HTTP API, as far as the page uses it. Addresses are relative to the page's own.

const api = {
  url: (path) => new URL("api/v1/" + path, document.baseURI).href,

  async call(path, options = {}) {
    const answer = await fetch(api.url(path), { credentials: "same-origin", ...options });
    const text = await answer.text();
    let content = null;
    try {
      content = text ? JSON.parse(text) : null;
    } catch {
      content = { error: text.slice(0, 300) };
    }
    if (!answer.ok) throw new Error(content?.error?.message ?? content?.error ?? content?.detail ?? `the server answers ${answer.status}`);
    return content;
  },
  send: (path, content, method = "POST") =>
    api.call(path, { method, headers: { "content-type": "application/json" }, body: JSON.stringify(content ?? {}) }),

  jobs: () => api.call("jobs"),
  job: (id) => api.call(`jobs/${id}`),
  submit: (request) => api.send("jobs", request),
  cancel: (id) => api.send(`jobs/${id}/cancel`),
  resume: (id) => api.send(`jobs/${id}/resume`),
  remove: (id) => api.call(`jobs/${id}`, { method: "DELETE" }),
  results: (id) => api.call(`jobs/${id}/results`),
  inputs: (id) => api.call(`jobs/${id}/inputs`),
  log: (id) => api.call(`jobs/${id}/log`),
  file: (id, name) => api.url(`jobs/${id}/results/${name.split("/").map(encodeURIComponent).join("/")}`),
  page: (id, name) => api.file(id, name) + "?inline=true",
  viewer: (id, name) => new URL(`runs/${id}/viewer` + (name ? "?file=" + encodeURIComponent(name) : ""), document.baseURI).href,

  // Uploads one file; `moved(share)` hears how far it is.
  upload(file, name, moved) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", api.url("uploads?name=" + encodeURIComponent(name)));
      request.setRequestHeader("content-type", "application/octet-stream");
      request.upload.onprogress = (e) => e.lengthComputable && moved(e.loaded / e.total);
      request.onerror = () => reject(new Error("the server cannot be reached"));
      request.onload = () => {
        let content = null;
        try {
          content = JSON.parse(request.responseText);
        } catch { /* said below */ }
        if (request.status < 300 && content) resolve(content);
        else reject(new Error(content?.error?.message ?? content?.error ?? content?.detail ?? `the server answers ${request.status}`));
      };
      request.send(file);
    });
  },
};

// Makes an element: make("div", {class: "x", onclick: f}, "text", child, ...).
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const words = {
  size(bytes) {
    const unit = bytes >= 1e9 ? [1e9, "GB"] : bytes >= 1e6 ? [1e6, "MB"] : [1e3, "kB"];
    return (bytes / unit[0]).toFixed(bytes >= 1e10 || bytes < 1e6 ? 0 : 1) + " " + unit[1];
  },
  time(seconds) {
    const s = Math.max(0, Math.round(seconds));
    if (s < 90) return `${s} s`;
    return s < 5400 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
  },
};
