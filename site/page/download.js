// The files of the page: fetched in parts with progress, and compared with what site.json says of them.

const PATIENCE = 30000;                            // ms without a single byte until a download counts as broken off

async function read(response, received) {
  const reader = response.body.getReader(), parts = [];
  let timer;
  try {
    for (;;) {
      const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error("it stopped")), PATIENCE); });
      const { done, value } = await Promise.race([reader.read(), late]);
      clearTimeout(timer);
      if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
      parts.push(value);
      received(value.length);
    }
  } finally { clearTimeout(timer); }
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((x) => x.toString(16).padStart(2, "0")).join("");
}

// A damaged file must not be kept for the next visit.
async function forget(name) {
  try {
    for (const key of await caches.keys()) await (await caches.open(key)).delete(new URL(name, self.location));
  } catch { /* without storage there is nothing to forget */ }
}

// The bytes of a file. known: {bytes, sha256}; received(n) is called as they come. Throws an Error for the reader.
export async function download(name, known, received = () => {}) {
  try {
    const response = await fetch(name);
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    const bytes = await read(response, received);
    if (bytes.length !== known.bytes) throw new Error(`${bytes.length} of ${known.bytes} bytes arrived`);
    if (crypto.subtle && await sha256(bytes) !== known.sha256) throw new Error("it arrived damaged");
    return bytes;
  } catch (error) {
    await forget(name);
    throw new Error(`${name} could not be downloaded (${error.message}).`);
  }
}

export function halfToFloat(bytes) {
  const halves = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), out = new Float32Array(bytes.length / 2);
  for (let i = 0; i < out.length; i++) {
    const bits = halves.getUint16(2 * i, true), power = (bits >> 10) & 31, rest = bits & 1023;
    const size = power ? (1 + rest / 1024) * 2 ** (power - 15) : rest * 2 ** -24;
    out[i] = bits & 0x8000 ? -size : size;
  }
  return out;
}

// {name: {shape, values}} of the file of arrays; index: {name: {start, shape}}.
export function arraysOf(bytes, index) {
  const all = halfToFloat(bytes);
  return Object.fromEntries(Object.entries(index).map(([name, { start, shape }]) =>
    [name, { shape, values: all.subarray(start, start + shape.reduce((a, b) => a * b)) }]));
}
