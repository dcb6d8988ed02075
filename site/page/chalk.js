// Chalk on a slate: the technique `chalk` of prosutils/techniques.py, with the same random draws (`grain`).

import { resize } from "./pixels.js";

const BOARD = [0.13, 0.19, 0.17];
const mix = (a, b, share) => a + (b - a) * share;
const ramp = (value, middle, width) => Math.min(1, Math.max(0, (value - middle) / width + 0.5));

// A position beside the picture, mirrored at its edge.
function mirrored(i, length) {
  while (i < 0 || i >= length) i = i < 0 ? -i - 1 : 2 * length - i - 1;
  return i;
}

// One pass of a filter along lines of `side` values, `stride` apart; kernel[k] weighs the value k - left places away.
function filtered(values, side, kernel, left, stride, step) {
  const out = new Float32Array(values.length), line = new Float64Array(side + kernel.length);
  for (let n = 0; n < side; n++) {
    for (let i = 0; i < line.length; i++) line[i] = values[n * step + mirrored(i - left, side) * stride];
    for (let i = 0; i < side; i++) {
      let sum = 0;
      for (let k = 0; k < kernel.length; k++) sum += kernel[k] * line[i + k];
      out[n * step + i * stride] = sum;
    }
  }
  return out;
}

function blurred(values, side, share) {
  const deviation = share * side, radius = Math.trunc(2.5 * deviation + 0.5), kernel = [];
  for (let i = -radius; i <= radius; i++) kernel.push(Math.exp(-0.5 * (i / deviation) ** 2));
  const sum = kernel.reduce((a, b) => a + b);
  const normed = kernel.map((x) => x / sum);
  return filtered(filtered(values, side, normed, radius, side, 1), side, normed, radius, 1, side);
}

// What an eraser left: the ink, moved to the right and smeared.
function smeared(ink, side) {
  const shift = Math.round(0.07 * side), length = Math.round(0.12 * side), moved = new Float32Array(ink.length);
  for (let y = 0; y < side; y++)
    for (let x = 0; x < side; x++) moved[y * side + (x + shift) % side] = ink[y * side + x];
  return filtered(moved, side, new Float64Array(length).fill(1 / length), Math.floor(length / 2), 1, side);
}

// A function that redraws pictures of side x side pixels. lattices: [{shape, values}] of clouds, sweeps, grain, pressure.
export function chalk(side, lattices, stick) {
  const [wiped, swept, grain, pressure] = lattices.map(({ shape: [height, width], values }) =>
    resize({ data: values, width, height, channels: 1 }, side, side).data);

  // data: red, green, blue and alpha of side x side pixels. Returns [side * side * 3] floats from 0 to 1.
  return function redraw(data, strength) {
    const pixels = side * side, ink = new Float32Array(pixels), colour = new Float32Array(3 * pixels);
    for (let i = 0; i < pixels; i++) {
      const alpha = data[4 * i + 3] / 255, darkest = Math.min(data[4 * i], data[4 * i + 1], data[4 * i + 2]);
      ink[i] = (1 - darkest / 255) * alpha;
      for (let c = 0; c < 3; c++) colour[3 * i + c] = 1 - (1 - data[4 * i + c] / 255) * alpha / Math.max(ink[i], 1e-6);
    }
    const eased = 1 - (1 - strength) ** 2, ground = BOARD.map((dark) => mix(1, dark, eased));
    const light = (ground[0] + ground[1] + ground[2]) / 3 > 0.5;         // a light ground keeps the drawing's colour
    const erased = smeared(ink, side), near = blurred(ink, side, 0.008), dust = blurred(ink, side, 0.03);
    const out = new Float32Array(3 * pixels);
    for (let i = 0; i < pixels; i++) {
      const board = strength * (0.035 * wiped[i] + 0.022 * swept[i] + 0.02 * grain[i])
        + 0.16 * strength * erased[i] * (1 + 0.4 * swept[i]);
      const broad = Math.max(ink[i], 1.6 * near[i]);
      const skips = ramp(grain[i] + 0.7 * pressure[i] + 3 * broad, 2.5, 1.6) * Math.min(broad, 1);
      const cover = Math.min(1, Math.max(0, mix(ink[i], skips, strength) + 0.16 * strength * dust[i]));
      for (let c = 0; c < 3; c++) {
        const stroke = light ? colour[3 * i + c] : stick[c];
        out[3 * i + c] = Math.min(1, Math.max(0, mix(ground[c] + board, stroke, cover)));
      }
    }
    return out;
  };
}

// Floats [side * side * 3] to bytes of a side `times` smaller, each pixel the mean of its block.
export function averaged(values, side, times) {
  const small = side / times, data = new Uint8ClampedArray(small * small * 3);
  for (let y = 0; y < small; y++)
    for (let x = 0; x < small; x++)
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let j = 0; j < times; j++)
          for (let i = 0; i < times; i++) sum += values[((y * times + j) * side + x * times + i) * 3 + c];
        data[(y * small + x) * 3 + c] = Math.round(sum / (times * times) * 255);
      }
  return { data, width: small, height: small, channels: 3 };
}
