// The pad of sketch_search: strokes on a canvas go to Python as a PNG, the ranks that come back are shown.
// A stroke is {width, erase, points: [[x, y], ...]}; {clear: true} empties the pad and can be undone as well.
const SIZE = 280, INK = "#222222", PAUSE = 120;

function paint(context, strokes) {
  context.fillStyle = "white";
  context.fillRect(0, 0, SIZE, SIZE);
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes.slice(strokes.findLastIndex((each) => each.clear) + 1)) {
    context.strokeStyle = stroke.erase ? "white" : INK;
    context.lineWidth = stroke.width;
    context.beginPath();
    context.moveTo(...stroke.points[0]);
    for (const point of stroke.points) context.lineTo(...point);
    context.stroke();
  }
}

function render({ model, el }) {
  let strokes = structuredClone(model.get("strokes")), stroke = null, pen = [SIZE / 2, SIZE / 2], penDown = false;
  let timer = null, waiting = false, later = false;

  const canvas = element("canvas", { width: SIZE, height: SIZE, tabIndex: 0, className: "pros-pad", role: "application",
    "aria-label": "Drawing pad. Space puts the pen down or lifts it, arrow keys move it, Shift moves it faster, " +
      "Escape clears, Control Z undoes." });
  const cursor = element("div", { className: "pros-cursor", hidden: true });
  const erase = element("button", { textContent: "Eraser", "aria-pressed": "false", title: "Rub out instead of drawing" });
  const undo = element("button", { textContent: "Undo", title: "Take the last stroke back (Ctrl+Z)" });
  const clear = element("button", { textContent: "Clear", title: "Empty the pad (Escape); Undo brings it back" });
  const width = element("input", { type: "range", min: 4, max: 40, value: 16 });
  const words = element("input", { type: "text", placeholder: "or write: a red umbrella", value: model.get("words") });
  const ask = element("button", { textContent: "Search", title: "Search with these words (Enter)" });
  const status = element("div", { className: "pros-status", role: "status", "aria-live": "polite" });
  const strips = element("div", { className: "pros-strips" });
  el.classList.add("pros", "pros-sketch");
  // JupyterLab takes arrow keys, Enter and space for its cells unless the focused element says that it wants them.
  el.addEventListener("focusin", (event) => event.target.setAttribute("data-lm-suppress-shortcuts", "true"));
  el.append(
    element("div", {}, element("div", { className: "pros-frame" }, canvas, cursor),
      element("div", { className: "pros-tools" }, erase, undo, clear, element("label", {}, "Pen ", width)),
      element("p", { className: "pros-help", textContent: "Keys on the pad: space pen down or up, arrows draw, Esc clear" })),
    element("div", { className: "pros-answer" },
      element("div", { className: "pros-tools" }, element("label", {}, "Words ", words), ask), status, strips));
  const context = canvas.getContext("2d");

  // ---- to Python: at most every PAUSE ms, and not before the last drawing is answered
  function send() {
    if (timer || waiting) { later = true; return; }
    const picture = canvas.toDataURL("image/png");
    timer = setTimeout(() => { timer = null; if (later) { later = false; send(); } }, PAUSE);
    if (picture === model.get("drawing")) return;
    waiting = true;
    model.set("drawing", picture);
    model.save_changes();
  }
  function keep() {
    model.set("strokes", structuredClone(strokes));
    model.save_changes();
  }
  function refresh() {
    paint(context, strokes);
    cursor.style.left = `${pen[0]}px`;
    cursor.style.top = `${pen[1]}px`;
    cursor.classList.toggle("down", penDown);
    undo.disabled = !strokes.length;
  }

  // ---- drawing
  function begin(point) {
    stroke = { width: Number(width.value), erase: erase.getAttribute("aria-pressed") === "true", points: [point] };
    strokes.push(stroke);
  }
  function end() {
    if (!stroke) return;
    stroke = null;
    keep();
    send();
  }
  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * SIZE / box.width, (event.clientY - box.top) * SIZE / box.height]
      .map((x) => Math.round(10 * x) / 10);
  }
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    penDown = false;
    cursor.hidden = true;
    begin(place(event));
    refresh();
    send();
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!stroke || penDown) return;
    pen = place(event);
    stroke.points.push(pen);
    refresh();
    send();
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { if (!penDown) end(); });

  function lift() {
    penDown = false;
    end();
  }
  function empty() {
    lift();
    if (strokes.length && !strokes.at(-1).clear) strokes.push({ clear: true });
    keep();
    refresh();
    send();
  }
  function takeBack() {
    lift();
    strokes.pop();
    keep();
    refresh();
    send();
  }
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (step) {
      pen = pen.map((x, i) => Math.min(SIZE, Math.max(0, x + step[i] * (event.shiftKey ? 20 : 5))));
      if (penDown) { stroke.points.push([...pen]); send(); }
    } else if (event.key === " ") {
      penDown = !penDown;
      if (penDown) { begin([...pen]); send(); } else end();
    } else if (event.key === "Escape") empty();
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) takeBack();
    else return;
    cursor.hidden = false;
    refresh();
    event.preventDefault();
    event.stopPropagation();
  });
  canvas.addEventListener("focus", () => { cursor.hidden = !canvas.matches(":focus-visible"); });
  canvas.addEventListener("blur", () => { lift(); cursor.hidden = true; refresh(); });
  erase.addEventListener("click", () =>
    erase.setAttribute("aria-pressed", String(erase.getAttribute("aria-pressed") !== "true")));
  undo.addEventListener("click", takeBack);
  clear.addEventListener("click", empty);

  // ---- words
  function askWords() {
    const asked = words.value.trim();                                // the same words again are a new question:
    model.set("words", asked === model.get("words") ? `${asked} ` : asked);   // Python strips them
    model.save_changes();
  }
  ask.addEventListener("click", askWords);
  words.addEventListener("keydown", (event) => { if (event.key === "Enter") askWords(); });

  // ---- from Python
  function card([address, name], score, number) {
    return element("figure", { role: "listitem", className: "pros-cell", title: `rank ${number}: ${name}, ${score.toFixed(3)}` },
      element("img", { src: address, alt: "" }), element("figcaption", {}, name));
  }
  function show() {
    const answer = model.get("answer");
    waiting = false;
    if (later && !timer) { later = false; send(); }
    strips.replaceChildren(...answer.strips.map((strip) => element("div", {}, element("h4", { textContent: strip.name }),
      element("div", { role: "list", className: "pros-strip", "aria-label": `ranks by ${strip.name}` },
        ...strip.cards.map((each, i) => card(each, strip.scores[i], i + 1))))));
    status.classList.toggle("pros-alert", Boolean(answer.message));
    if (answer.message) status.textContent = answer.message;
    else if (answer.strips.length) status.textContent = `answered in ${Math.round(answer.milliseconds)} ms`;
    else status.textContent = "Draw: the answers change with every stroke.";
    el.dataset.number = answer.number;
  }
  function restore() {
    if (stroke) return;                                              // this view is the one that draws
    strokes = structuredClone(model.get("strokes"));
    refresh();
  }
  model.on("change:answer", show);
  model.on("change:strokes", restore);
  refresh();
  show();
  return () => {
    clearTimeout(timer);
    model.off("change:answer", show);
    model.off("change:strokes", restore);
  };
}

export default { render };
