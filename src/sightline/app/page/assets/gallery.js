// Past and present jobs of this user, newest first. A click shows one: value {job: id}.

function galleryWidget(element, props, trigger) {
  const grid = make("div", { class: "sl-jobs" });
  element.replaceChildren(grid);
  async function picture(job) {
    const results = await api.results(job.id);
    const found = results.find((r) => /contact\.png$|overlays\/|thumbnail/.test(r.name)) ?? results.find((r) => /scene\/images\/.*\.(png|jpe?g|webp)$/i.test(r.name)) ?? results.find((r) => /\.(png|jpe?g)$/i.test(r.name));
    return found ? api.file(job.id, found.name) : null;
  }
  async function refresh() {
    let jobs;
    try {
      jobs = await api.jobs();
      jobs = jobs.jobs ?? jobs;
    } catch (error) {
      grid.replaceChildren(make("p", { class: "sl-error" }, error.message));
      return;
    }
    if (!jobs.length) {
      grid.replaceChildren(make("p", { class: "sl-note" }, "Nothing yet. Start with the built-in example in the first tab."));
      return;
    }
    const shown = props.only ? jobs.filter((j) => props.only.includes(j.kind)) : jobs.filter((j) => !["export", "render"].includes(j.kind));
    grid.replaceChildren(...shown.slice(0, 60).map((job) => {
      const cover = make("div", { class: "sl-cover" }, make("span", {}, job.kind));
      if (ENDED.includes(job.state)) picture(job).then((source) => source && cover.replaceChildren(make("img", { src: source, loading: "lazy", alt: "" })), () => {});
      const scores = job.result?.metrics ?? {}, psnr = scores.test?.psnr?.mean;
      const facts = [STATES[job.state], scores.registered && `${scores.registered} views`, psnr && `${psnr.toFixed(1)} dB`, job.started && job.ended && words.time((Date.parse(job.ended) - Date.parse(job.started)) / 1000)];
      return make("article", { "data-state": job.state, "data-job": job.id },
        make("button", { type: "button", class: "sl-open", onclick: () => { props.value = { job: job.id }; trigger("select"); } }, cover, make("b", {}, job.title), make("span", {}, facts.filter(Boolean).join(" \u00b7 ")), make("span", {}, new Date(job.created).toLocaleString())),
        ENDED.includes(job.state) ? make("button", { type: "button", class: "sl-delete", "aria-label": "Delete " + job.title, onclick: async (e) => {
          if (e.target.dataset.sure) { await api.remove(job.id).catch(() => {}); refresh(); return; }
          e.target.dataset.sure = "1";
          e.target.textContent = "Delete?";
        } }, "\u00d7") : null);
    }));
  }
  refresh();
  new IntersectionObserver((seen) => { if (seen.some((s) => s.isIntersecting)) refresh(); }).observe(grid);
  return { refresh };
}

window.sightlinePage = { files: filesWidget, card: cardWidget, marker: markerWidget, mistakes: mistakesWidget, gallery: galleryWidget, opener: openerWidget, api, openTab };
