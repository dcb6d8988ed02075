// The blackboard: what is drawn on it, by pointer, finger or keyboard, and how it looks in chalk.
// An item is {points, width, erase} (a stroke), {image, label} (an example), {upload} (a picture) or {clear: true};
// lengths are in pixels of a board of SIDE x SIDE. Examples, pictures and `clear` empty the board first.

import { averaged, chalk } from "./chalk.js";
import { onWhite } from "./pixels.js";

export const SIDE = 256;
const INK = "#222222", FILL = 0.83, LEAST = 0.3;   // as prosutils/show/widget_parts.py places a drawing
const GROUND = [0.13, 0.19, 0.17];
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function blank(side) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  return canvas.getContext("2d", { willReadFrequently: true });
}

// Chalk before its grain has arrived.
const PLAIN = (data) => Float32Array.from({ length: 3 * SIDE * SIDE }, (_, i) => {
  const c = i % 3;
  return GROUND[c] + (0.95 - GROUND[c]) * data[4 * ((i - c) / 3) + 3] / 255;
});

// The smallest box around what is drawn, [left, top, right, bottom], or null.
function boxOf(data, side) {
  let left = side, top = side, right = 0, bottom = 0;
  for (let y = 0; y < side; y++)
    for (let x = 0; x < side; x++)
      if (data[4 * (y * side + x) + 3] > 40) {
        left = Math.min(left, x);
        right = Math.max(right, x + 1);
        top = Math.min(top, y);
        bottom = y + 1;
      }
  return right ? [left, top, right, bottom] : null;
}

// canvas, cursor: elements. changed(drawing): called after every change, `drawing` while a stroke goes on.
export function makeBoard(canvas, cursor, changed) {
  const screen = canvas.getContext("2d"), full = blank(SIDE), sheets = {};
  let items = [], stroke = null, pen = [SIDE / 2, SIDE / 2], penDown = false, redraw = PLAIN, strength = 1, frame = 0;
  let width = 11, erase = false, box = null;
  canvas.width = canvas.height = SIDE;

  const upload = () => items.at(-1)?.upload;
  const current = () => items.slice(items.findLastIndex((each) => !each.points && !each.image) + 1);

  // ---- what is drawn, as ink on nothing
  function paint(context, scale, left, top) {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    context.setTransform(scale, 0, 0, scale, left, top);
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = INK;
    const shown = current();
    for (const item of shown.slice(Math.max(0, shown.findLastIndex((each) => each.image)))) {
      context.globalCompositeOperation = item.erase ? "destination-out" : "source-over";
      if (item.image) { context.drawImage(item.image, 0, 0, SIDE, SIDE); continue; }
      context.lineWidth = item.width;
      context.beginPath();
      context.moveTo(...item.points[0]);
      for (const point of item.points) context.lineTo(...point);
      context.stroke();
    }
    context.globalCompositeOperation = "source-over";
    return context.getImageData(0, 0, context.canvas.width, context.canvas.height).data;
  }

  function show() {
    frame = 0;
    if (upload()) {
      const { canvas: picture } = upload(), shorter = Math.min(picture.width, picture.height);
      screen.drawImage(picture, (picture.width - shorter) / 2, (picture.height - shorter) / 2, shorter, shorter, 0, 0, SIDE, SIDE);
      box = null;
      return;
    }
    const ink = paint(full, 1, 0, 0);
    box = boxOf(ink, SIDE);
    const { data } = averaged(redraw(ink, strength), SIDE, 1), pixels = screen.createImageData(SIDE, SIDE);
    for (let i = 0; i < SIDE * SIDE; i++) {
      for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = data[3 * i + c];
      pixels.data[4 * i + 3] = 255;
    }
    screen.putImageData(pixels, 0, 0);
  }

  function refresh(drawing = false) {
    cursor.style.left = `${100 * pen[0] / SIDE}%`;
    cursor.style.top = `${100 * pen[1] / SIDE}%`;
    cursor.classList.toggle("down", penDown);
    frame ||= requestAnimationFrame(() => { show(); changed(Boolean(stroke)); });
    if (!drawing) canvas.dataset.items = items.length;
  }

  // ---- drawing
  function begin(point) {
    if (upload()) items.push({ clear: true });
    stroke = { points: [point], width, erase };
    items.push(stroke);
  }
  function lift() {
    penDown = false;
    stroke = null;
    refresh();
  }
  function place(event) {
    const { left, top, width: wide, height } = canvas.getBoundingClientRect();
    return [(event.clientX - left) * SIDE / wide, (event.clientY - top) * SIDE / height];
  }
  function put(item) {
    lift();
    items.push(item);
    refresh();
  }
  function undo() {
    lift();
    items.pop();
    refresh();
  }
  function clear() { if (items.length && !items.at(-1).clear) put({ clear: true }); }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    penDown = false;
    cursor.hidden = true;
    begin(place(event));
    refresh(true);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!stroke || penDown) return;
    for (const each of event.getCoalescedEvents?.() ?? []) stroke.points.push(place(each));
    stroke.points.push(pen = place(event));
    refresh(true);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { if (stroke && !penDown) lift(); });
  canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (step) {
      pen = pen.map((x, i) => Math.min(SIDE, Math.max(0, x + step[i] * (event.shiftKey ? 20 : 5))));
      if (penDown) stroke.points.push([...pen]);
      refresh(penDown);
    } else if (event.key === " ") {
      if (penDown) lift();
      else { begin([...pen]); penDown = true; refresh(true); }
    } else if (event.key === "Escape") clear();
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
    else return;
    cursor.hidden = false;
    event.preventDefault();
  });
  canvas.addEventListener("focus", () => { cursor.hidden = !canvas.matches(":focus-visible"); });
  canvas.addEventListener("blur", () => { cursor.hidden = true; if (penDown) lift(); });

  return {
    undo, clear,
    example: (image, label) => put({ image, label }),
    upload: (picture) => put({ upload: picture }),
    setBrush: (value) => { width = value; },
    setEraser: (value) => { erase = value; },
    setStrength: (value) => { strength = value; refresh(); },
    setChalk: (lattices, stick) => { redraw = chalk(SIDE, lattices, stick); refresh(); },
    empty: () => !upload() && !box,
    any: () => items.length > 0,
    // The class of what is on the board, where an example is.
    label: () => current().findLast((each) => each.image)?.label,
    uploaded: () => Boolean(upload()),
    // What the model is asked with, before chalk: ink of side x side pixels, or a picture's red, green and blue.
    picture(side) {
      if (upload()) {
        const { canvas: { width: w, height: h }, context } = upload();
        return onWhite({ data: context.getImageData(0, 0, w, h).data, width: w, height: h });
      }
      const shown = current();
      let scale = side / SIDE, left = 0, top = 0;
      if (!shown.at(-1)?.image) {                                    // an example is placed as it is
        const [l, t, r, b] = box;
        scale = FILL * side / Math.max(r - l, b - t, LEAST * SIDE);
        left = (side - scale * (l + r)) / 2;
        top = (side - scale * (t + b)) / 2;
      }
      return { data: paint(sheets[side] ??= blank(side), scale, left, top), width: side, height: side, channels: 4 };
    },
  };
}
