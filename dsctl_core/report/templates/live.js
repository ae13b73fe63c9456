// Shows the sections that the server pushes, and the samples under one slider. It asks nothing but its own server.
"use strict";

const at = (id) => document.getElementById(id);
const made = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });

let source = null;
let samples = { steps: [], runs: [], prompts: [] };
let chosen = (new URLSearchParams(location.search).get("runs") || "").split(",").filter(Boolean);

function connect() {
  if (source) source.close();
  source = new EventSource("events?" + new URLSearchParams({ runs: chosen.join(",") }));
  source.onopen = () => connection("live", "live");
  source.onerror = () => {
    connection("lost", "not connected");
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  };
  source.addEventListener("section", (event) => {
    const { name, content } = JSON.parse(event.data);
    if (name === "samples") showSamples(JSON.parse(content));
    else replace(at(name), content);
    tellAges();
  });
}

function connection(state, text) {
  at("connection").className = state;
  at("connection").textContent = text;
}

// The server has escaped every text in `html`, and the policy of the page runs no script but this file.
function replace(section, html) {
  const open = new Set([...section.querySelectorAll("details[open]")].map((each) => each.dataset.key));
  const scrolled = new Map(
    [...section.querySelectorAll("pre")]
      .filter((each) => each.scrollTop + each.clientHeight < each.scrollHeight - 4)
      .map((each) => [each.dataset.key, each.scrollTop]),
  );
  const focused = section.contains(document.activeElement) ? document.activeElement.id : "";
  const top = section.scrollTop;
  section.innerHTML = html;
  section.scrollTop = top;
  for (const each of section.querySelectorAll("details")) each.open = open.has(each.dataset.key);
  for (const each of section.querySelectorAll("pre")) {
    each.scrollTop = scrolled.has(each.dataset.key) ? scrolled.get(each.dataset.key) : each.scrollHeight;
  }
  if (focused) at(focused)?.focus();
}

function choose() {
  const boxes = [...at("runs").querySelectorAll("input:checked")].map((box) => box.value);
  chosen = [...chosen.filter((key) => boxes.includes(key)), ...boxes.filter((key) => !chosen.includes(key))];
  history.replaceState(null, "", chosen.length ? "?" + new URLSearchParams({ runs: chosen.join(",") }) : location.pathname);
  connect();
}

function showSamples(found) {
  const slider = at("step");
  const before = samples.steps[slider.value];
  const follows = Number(slider.value) >= samples.steps.length - 1;
  samples = found;
  at("samples").hidden = !found.steps.length;
  slider.max = Math.max(found.steps.length - 1, 0);
  const same = found.steps.indexOf(before);
  slider.value = follows || same < 0 ? slider.max : same;
  buildPrompts();
  showStep();
}

function buildPrompts() {
  const rows = samples.prompts.map((prompt) => {
    const row = Object.assign(made("div"), { className: "prompt-row" });
    row.append(made("p", prompt.prompt), Object.assign(made("p", prompt.settings), { className: "soft" }));
    const cells = Object.assign(made("div"), { className: "side-by-side" });
    samples.runs.forEach((name, position) => {
      const figure = made("figure");
      figure.dataset.number = prompt.number;
      figure.dataset.run = position;
      figure.append(made("figcaption"));
      cells.append(figure);
    });
    row.append(cells);
    return row;
  });
  at("prompts").replaceChildren(...rows);
}

function showStep() {
  const position = Number(at("step").value);
  const step = samples.steps[position];
  at("at").textContent = step === undefined ? "" : "step " + step;
  at("earlier").disabled = position <= 0;
  at("later").disabled = position >= samples.steps.length - 1;
  for (const figure of at("prompts").querySelectorAll("figure")) {
    const prompt = samples.prompts.find((each) => String(each.number) === figure.dataset.number);
    showSample(figure, prompt.runs[figure.dataset.run], samples.runs[figure.dataset.run], step);
  }
}

// The sample of `step`, or the last one before it: runs draw at steps of their own.
function showSample(figure, held, name, step) {
  const steps = held ? Object.keys(held.files).map(Number).filter((each) => each <= step) : [];
  const shown = steps.length ? Math.max(...steps) : null;
  const file = shown === null ? null : held.files[shown];
  const caption = figure.querySelector("figcaption");
  const several = samples.runs.length > 1;
  const words = [several ? name : "", shown === null ? "no sample yet" : "step " + shown, held ? held.differs : ""];
  caption.textContent = words.filter(Boolean).join(" · ");
  const tag = !file ? null : file.video ? "VIDEO" : "IMG";
  let media = figure.querySelector("img, video");
  if (media && media.tagName !== tag) {
    media.remove();
    media = null;
  }
  if (!file) return;
  if (!media) {
    media = made(tag.toLowerCase());
    if (file.video) Object.assign(media, { controls: true, loop: true, muted: true, playsInline: true, autoplay: true });
    figure.prepend(media);
  }
  if (media.getAttribute("src") !== file.address) media.setAttribute("src", file.address);
  if (!file.video) media.alt = caption.textContent;
}

function tellAges() {
  for (const each of document.querySelectorAll("time[data-at]")) {
    const seconds = Math.max(Math.round(Date.now() / 1000 - Number(each.dataset.at)), 0);
    const [size, unit] = seconds < 60 ? [1, "s"] : seconds < 3600 ? [60, "min"] : seconds < 86400 ? [3600, "h"] : [86400, "d"];
    each.textContent = Math.floor(seconds / size) + " " + unit + " ago";
  }
}

at("runs").addEventListener("change", choose);
at("step").addEventListener("input", showStep);
for (const [id, move] of [["earlier", -1], ["later", 1]]) {
  at(id).addEventListener("click", () => {
    at("step").value = Number(at("step").value) + move;
    showStep();
  });
}
// A page that nobody looks at asks for nothing.
document.addEventListener("visibilitychange", () => (document.hidden ? source.close() : connect()));
setInterval(tellAges, 1000);
connect();
