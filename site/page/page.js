// The page's controls: they ask the worker for ranks, and show them.

import { makeBoard } from "./board.js";
import { startTour } from "./tour.js";

const COUNT = 10, MOST_PIXELS = 5e7, LARGEST_SIDE = 1024;
const EMPTY = "The board is empty: draw on it with the pointer, or press space on it and use the arrow keys.";
const NARROW = matchMedia("(max-width: 720px)");
const $ = (id) => document.getElementById(id);

let site, worker, words = "", ready = false, waiting = false, later = false, settled = false, number = 0;

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// ---- messages

function alertReader(message, again) {
  const [text, button] = $("alert").children;
  text.textContent = message;
  button.hidden = !again;
  button.onclick = () => { $("alert").hidden = true; again(); };
  $("alert").hidden = false;
}

// A tiny module with one SIMD instruction: without SIMD the models cannot run.
const SIMD = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]);

function lacking() {
  if (typeof WebAssembly !== "object") return "WebAssembly";
  if (!WebAssembly.validate(SIMD)) return "WebAssembly SIMD";
  if (typeof Worker !== "function") return "web workers";
  return null;
}

// ---- offline

async function keepForOffline() {
  const note = (text) => { $("offline").textContent = text; };
  try {
    await navigator.serviceWorker.register("offline.js");
    if (navigator.serviceWorker.controller) return;
    const controlled = new Promise((resolve) => { navigator.serviceWorker.oncontrollerchange = resolve; });
    await Promise.race([controlled, new Promise((resolve) => setTimeout(resolve, 3000))]);
  } catch {
    note("Your browser keeps nothing of this page (storage is denied): it works now, and needs the network next time.");
  }
}

function sayOffline() {
  if (navigator.serviceWorker?.controller) $("offline").textContent = "From now on this page also works without network.";
}

// The first visit reads the page itself before anything could keep it: read it again, from the browser's own cache.
async function keepShell() {
  if (!navigator.serviceWorker?.controller) return;
  const pages = ["./", ...Object.keys(site.files).filter((name) => /^[\w-]+\.(html|css|js|svg|webp|png)$/.test(name))];
  await Promise.all([...pages, "site.json"].map((name) => fetch(name).catch(() => {})));
}

// ---- asking

const board = makeBoard($("board"), $("cursor"), (drawing) => {
  words = $("words").value = "";
  $("hint").hidden = board.any();
  $("undo").disabled = $("clear").disabled = !board.any();
  if (board.label()) $("target").value = board.label();
  ask(!drawing);
});

const checked = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const methods = () => [...document.querySelectorAll("#methods input:checked")].map((input) => input.value);

// done: whether the reader has finished a stroke or another change; only then a screen reader hears of the ranks.
function ask(done = true) {
  settled = done;
  if (!ready) return;
  if (waiting) { later = true; return; }
  if (!words && board.empty()) {
    $("status").textContent = EMPTY;
    if (done) $("live").textContent = board.any() ? EMPTY : "";
    $("strips").classList.add("old");
    return;
  }
  busy(true);
  const picture = words ? null : board.picture(site.chalk.side);
  worker.postMessage({ kind: "question", number: ++number, words, picture, strength: Number($("strength").value),
    methods: methods(), prompts: checked("prompts"), all: checked("gallery") === "all", count: COUNT },
  picture ? [picture.data.buffer] : []);
}

function askWords(event) {
  event.preventDefault();
  words = $("words").value.trim();
  if (words) $("target").value = site.classes.find((name) => name === words.toLowerCase()) ?? "";
  ask();
}

function busy(value) {
  waiting = value;
  $("strips").setAttribute("aria-busy", String(value));
}

function answered() {
  busy(false);
  if (!later) return;
  later = false;
  ask(settled);
}

// ---- showing

function card(score, place, rank) {
  const { tile, columns, class: classes } = site.gallery, name = site.classes[classes[place]];
  const [x, y] = [place % columns, Math.floor(place / columns)], share = 56 / tile;
  const picture = element("i");
  picture.style.backgroundPosition = `${-56 * x}px ${-56 * y}px`;
  picture.style.backgroundSize = `${columns * tile * share}px auto`;
  const hit = name === $("target").value;
  const item = element("li", { title: `rank ${rank}: ${name}, similarity ${score.toFixed(3)}`, className: hit ? "hit" : "" },
    picture, ...(hit ? [element("b", { ariaLabel: "right: ", textContent: "✓ " })] : []), name);
  item.dataset.place = place;
  return item;
}

// The picture that the model saw, in orange where the class token of the last layer looks. attention: [n * n] weights.
function heatMap(attention, label) {
  const side = Math.sqrt(attention.length), most = Math.max(...attention), size = 80;
  const heat = element("canvas", { width: side, height: side }).getContext("2d"), pixels = heat.createImageData(side, side);
  attention.forEach((weight, i) => pixels.data.set([255, 140, 0, 210 * weight / most], 4 * i));
  heat.putImageData(pixels, 0, 0);
  const canvas = element("canvas", { width: size, height: size, role: "img", className: "heat",
    ariaLabel: `Where ${label} looks: its attention over the drawing` });
  const context = canvas.getContext("2d");
  context.drawImage($("seen"), 0, 0, size, size);
  context.drawImage(heat.canvas, 0, 0, size, size);
  return canvas;
}

function strip({ key, ranks, attention }) {
  const method = site.methods.find((each) => each.key === key);
  const head = element("h2", {}, method.label, element("small", { textContent: method.about }));
  const box = element("div", { className: "strip" }, head);
  box.dataset.method = key;
  if (!ranks) {
    box.append(element("p", { className: "small", textContent: "Its prompt simulator is still being downloaded." }));
    return box;
  }
  const target = $("target").value, hits = ranks.filter(([, place]) => site.classes[site.gallery.class[place]] === target);
  if (target) head.append(element("small", { textContent: `${hits.length} of ${ranks.length} right` }));
  const list = { ariaLabel: `First ${ranks.length} emoji by ${method.label}` };
  if (NARROW.matches) list.tabIndex = 0;                             // it scrolls sideways, by arrow keys too
  const looks = attention && $("attention").checked ? [heatMap(attention, method.label)] : [];
  box.append(element("div", { className: "row" }, ...looks, element("ol", list,
    ...ranks.map(([score, place], i) => card(score, place, i + 1)))));
  return box;
}

function showSeen({ data, width, height }) {
  const canvas = $("seen");
  Object.assign(canvas, { width, height });
  canvas.ariaLabel = `What the model sees: ${width} by ${height} pixels`;
  const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) pixels.data.set([data[3 * i], data[3 * i + 1], data[3 * i + 2], 255], 4 * i);
  context.putImageData(pixels, 0, 0);
}

// What the reader is told of an answer.
function statusOf({ strips, spent, words, left }) {
  const unknown = left?.length ? `mini-CLIP has never read ${left.map((word) => `“${word}”`).join(", ")}` : "";
  if (words && !strips.length && methods().length) {
    if (!unknown) return "Type a word, for example “umbrella”.";
    return `${unknown}: it was trained on the names of icons. Try “umbrella” or “red flower”.`;
  }
  if (!strips.length) return "Choose a method to see its ranks.";
  const answered = `Answered in ${Math.round(spent)} ms.`;
  if (!words) return answered;
  return `These emoji are ranked for the words “${words}”. ${answered}${unknown ? ` Left out: ${unknown}.` : ""}`;
}

function show(answer) {
  const { strips, shown, words, number } = answer;
  $("seen").hidden = $("seen-note").hidden = Boolean(words);
  if (shown) showSeen(shown);
  $("strips").replaceChildren(...strips.map(strip));
  $("strips").classList.remove("old");
  $("status").textContent = statusOf(answer);
  $("strips").dataset.number = number;
  if (!settled) return;
  const first = strips.filter(({ ranks }) => ranks).map(({ key, ranks }) => {
    const names = ranks.slice(0, 3).map(([, place]) => site.classes[site.gallery.class[place]]);
    return `${site.methods.find((each) => each.key === key).label}: ${names.join(", ")}.`;
  });
  $("live").textContent = first.join(" ") || $("status").textContent;
}

// ---- the worker

function startWorker() {
  worker?.terminate();
  ready = later = false;
  busy(false);
  $("loading").hidden = false;
  worker = new Worker("worker.js", { type: "module" });
  worker.onerror = (event) => failed(event.message || "the worker could not be started");
  worker.onmessage = ({ data }) => heard[data.kind](data);
  worker.postMessage({ kind: "load", site });
}

function failed(message) {
  $("loading").hidden = true;
  alertReader(`The models did not load: ${message} Check the network and try again.`, startWorker);
}

const heard = {
  progress({ received, total }) {
    $("progress").value = received / total;
    $("received").textContent = `${(received / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`;
  },
  ready({ lattices }) {
    ready = true;
    board.setChalk(lattices, site.chalk.stick);
    ask();
  },
  complete() {
    $("loading").hidden = true;
    sayOffline();
    document.body.dataset.complete = "true";
    ask();
  },
  answer(content) { show(content); answered(); },
  fault({ message }) { alertReader(`This could not be answered: ${message} Change it, or reload the page.`); answered(); },
  failed({ message }) { failed(message); },
};

// ---- pictures

function read(file) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("it is no picture that this browser can read"));
    image.src = URL.createObjectURL(file);
  });
}

async function usePicture(file) {
  try {
    const image = await read(file), { naturalWidth: width, naturalHeight: height } = image;
    if (!width || !height) throw new Error("it has no size in pixels");
    if (width * height > MOST_PIXELS) {
      throw new Error(`it has ${Math.round(width * height / 1e6)} million pixels; at most ${MOST_PIXELS / 1e6} million are read`);
    }
    const scale = Math.min(1, LARGEST_SIDE / Math.min(width, height)), canvas = document.createElement("canvas");
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(image.src);
    $("target").value = "";
    $("alert").hidden = true;
    board.upload({ canvas, context });
  } catch (error) {
    alertReader(`${file.name} cannot be used: ${error.message}. Choose another picture.`);
  }
}

async function buildExamples() {
  const image = new Image(), side = site.chalk.side;
  image.src = "examples.png";
  await image.decode();
  site.examples.forEach((name, i) => {
    const canvas = element("canvas", { width: side, height: side });
    canvas.getContext("2d").drawImage(image, -i * side, 0);
    const label = name.replaceAll("_", " "), button = element("button", { type: "button", title: label, ariaLabel: label }, canvas);
    button.onclick = () => board.example(canvas, label);
    $("examples").append(button);
  });
}

// ---- controls

function buildControls() {
  for (const { key, label } of site.methods) {
    const input = element("input", { type: "checkbox", value: key, checked: key !== "pros-heads" });
    $("methods").append(element("label", {}, input, ` ${label}`));
  }
  for (const name of site.classes) $("target").append(element("option", { value: name, textContent: name }));
  $("words-form").addEventListener("submit", askWords);
  for (const name of ["methods", "prompts", "gallery", "attention"]) $(name).addEventListener("change", () => ask());
  $("target").addEventListener("change", () => ask());
  $("undo").onclick = board.undo;
  $("clear").onclick = () => { $("target").value = ""; board.clear(); };
  $("brush").oninput = () => board.setBrush(Number($("brush").value));
  $("eraser").onclick = () => {
    const on = $("eraser").getAttribute("aria-pressed") !== "true";
    $("eraser").setAttribute("aria-pressed", String(on));
    board.setEraser(on);
  };
  $("strength").oninput = () => setStrength(Number($("strength").value));
  $("upload").onchange = () => {
    if ($("upload").files.length) usePicture($("upload").files[0]);
    $("upload").value = "";
  };
  NARROW.addEventListener("change", () => ask());
  setStrength(1);
}

function setStrength(value) {
  $("strength").value = value;
  const words = value === 0 ? "dark pen on white" : value === 1 ? "chalk on slate" : `${Math.round(100 * value)}% of the way to chalk`;
  $("strength-text").textContent = words;
  $("strength").setAttribute("aria-valuetext", words);
  board.setStrength(value);
}

function buildNumbers() {
  const { queries, "mAP@200": table } = site.measured;
  const value = (key, prompts) => table.find((row) => row.method === key && row.prompts === prompts)?.value.toFixed(3) ?? "–";
  $("numbers-text").textContent = `mAP@200 of ${queries} chalk drawings of ${site.unseen.length} classes that no method was `
    + "trained on; the gallery is the emoji of these classes. 1 is a perfect ranking.";
  document.querySelector("#numbers tbody").append(...site.methods.map(({ key, label, about, simulator }) =>
    element("tr", {}, element("th", { scope: "row", textContent: label }), element("td", { textContent: about }),
      element("td", { className: "number", textContent: simulator ? value(key, "own") : "–" }),
      element("td", { className: "number", textContent: value(key, "none") }))));
  $("classes").textContent = `Unseen: ${site.unseen.join(", ")}. Seen in training, or kept for choosing settings: `
    + `${site.classes.filter((name) => !site.unseen.includes(name)).join(", ")}.`;
  return value;
}

// What a step of the tour may set.
const stage = {
  example() { if (!board.any()) $("examples").children[0]?.click(); },
  strength: setStrength,
  methods(keys) {
    for (const input of document.querySelectorAll("#methods input")) input.checked = keys.includes(input.value);
    ask();
  },
  prompts(value) {
    document.querySelector(`input[name=prompts][value=${value}]`).checked = true;
    ask();
  },
};

async function start() {
  const missing = lacking();
  if (missing) {
    $("loading").hidden = true;
    alertReader(`This browser lacks ${missing}, which runs the models. Use a browser from 2021 or later.`);
    return;
  }
  try {
    await keepForOffline();
    const response = await fetch("site.json");
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    site = await response.json();
  } catch (error) {
    $("loading").hidden = true;
    alertReader(`The page did not load whole (site.json: ${error.message}). Check the network and try again.`, start);
    return;
  }
  buildControls();
  startTour(stage, buildNumbers());
  buildExamples().catch(() => { $("examples").textContent = "The example drawings did not load."; });
  keepShell();
  new Image().src = "gallery.webp";                                   // before the first answer needs it
  startWorker();
}

start();
