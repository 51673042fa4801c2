// Two comforts; the page says everything without them.
for (const wipe of document.querySelectorAll(".wipe")) {
  const slider = wipe.querySelector("input");
  slider.addEventListener("input", () => wipe.style.setProperty("--cut", slider.value + "%"));
}
for (const button of document.querySelectorAll(".command button")) {
  const text = button.parentNode.querySelector("pre");
  button.hidden = false;
  button.addEventListener("click", async () => {
    const range = document.createRange();
    range.selectNodeContents(text);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected"; // no clipboard for pages opened as files: Ctrl-C does it
    }
  });
}
