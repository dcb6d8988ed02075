// Pictures to what mini-CLIP reads, with the same arithmetic as Pillow and `eval_transform` in prosutils/domains.py.
// A picture is {data, width, height, channels}: data is flat, row by row, the channels of a pixel side by side.

const LONGEST_RATIO = 16;                          // of a picture's sides; of a longer one only the middle is used
const PRECISION = 2 ** 22;                         // Pillow's weights for bytes are whole numbers of this fraction

function bicubic(x) {
  const a = -0.5, t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
}

// For every place of the output: the first place of the input that counts, and the weights from there on.
function weights(from, to, whole) {
  const scale = from / to, spread = Math.max(scale, 1), support = 2 * spread, found = [];
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const values = new Float64Array(last - first);
    let sum = 0;
    for (let j = 0; j < values.length; j++) sum += values[j] = bicubic((j + first - centre + 0.5) / spread);
    for (let j = 0; j < values.length; j++) {
      values[j] /= sum;
      if (whole) values[j] = Math.trunc(values[j] * PRECISION + (values[j] < 0 ? -0.5 : 0.5));
    }
    found.push({ first, values });
  }
  return found;
}

// One direction of a resize. stride: from one input place to the next; lines: [[start in, start out], ...]
function pass(data, out, table, stride, lines, whole) {
  for (const [start, target] of lines) {
    table.forEach(({ first, values }, i) => {
      let sum = whole ? PRECISION / 2 : 0, at = start + first * stride;
      for (let j = 0; j < values.length; j++, at += stride) sum += data[at] * values[j];
      out[target + i * stride] = whole ? Math.min(255, Math.max(0, Math.floor(sum / PRECISION))) : sum;
    });
  }
}

// Pillow's Image.resize(..., BICUBIC): bytes are rounded after each direction, floats are not.
export function resize({ data, width, height, channels }, newWidth, newHeight) {
  const whole = !(data instanceof Float32Array), Kind = data.constructor;
  let now = data;
  if (newWidth !== width) {
    const out = new Kind(newWidth * height * channels), lines = [];
    for (let y = 0; y < height; y++)
      for (let c = 0; c < channels; c++) lines.push([y * width * channels + c, y * newWidth * channels + c]);
    pass(now, out, weights(width, newWidth, whole), channels, lines, whole);
    now = out;
  }
  if (newHeight !== height) {
    const row = newWidth * channels, out = new Kind(row * newHeight), lines = [];
    for (let x = 0; x < row; x++) lines.push([x, x]);
    pass(now, out, weights(height, newHeight, whole), row, lines, whole);
    now = out;
  }
  return { data: now, width: newWidth, height: newHeight, channels };
}

export function crop({ data, width, channels }, left, top, newWidth, newHeight) {
  const out = new data.constructor(newWidth * newHeight * channels);
  for (let y = 0; y < newHeight; y++) {
    const start = ((top + y) * width + left) * channels;
    out.set(data.subarray(start, start + newWidth * channels), y * newWidth * channels);
  }
  return { data: out, width: newWidth, height: newHeight, channels };
}

// Red, green, blue and alpha to red, green and blue, on white.
export function onWhite({ data, width, height }) {
  const out = new Uint8ClampedArray(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    const alpha = data[4 * i + 3] / 255;
    for (let c = 0; c < 3; c++) out[3 * i + c] = Math.round(255 + (data[4 * i + c] - 255) * alpha);
  }
  return { data: out, width, height, channels: 3 };
}

function middle(picture) {
  const { width, height } = picture, most = LONGEST_RATIO * Math.min(width, height);
  if (Math.max(width, height) <= most) return picture;
  const [left, top] = [width, height].map((length) => Math.max(0, Math.floor((length - most) / 2)));
  return crop(picture, left, top, Math.min(width, most), Math.min(height, most));
}

function roundHalfToEven(x) {
  const low = Math.floor(x), rest = x - low;
  return rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low;
}

// The picture's shorter side becomes `size`; the middle square is kept.
export function square(picture, size) {
  const { width, height } = picture = middle(picture), shorter = Math.min(width, height);
  const [w, h] = [width, height].map((length) => length === shorter ? size : Math.trunc(size * length / shorter));
  return crop(resize(picture, w, h), roundHalfToEven((w - size) / 2), roundHalfToEven((h - size) / 2), size, size);
}

// [height, width, 3] bytes to what the tower reads: [3, size, size] floats.
export function evalTransform(picture, { size, mean, std }) {
  const { data } = square(picture, size), plane = size * size, out = new Float32Array(3 * plane);
  for (let i = 0; i < plane; i++)
    for (let c = 0; c < 3; c++) out[c * plane + i] = (data[3 * i + c] / 255 - mean[c]) / std[c];
  return out;
}
