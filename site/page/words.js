// Words to tokens: CLIP's byte-pair encoding, cut as `MiniTokenizer` in prosutils/backbone.py cuts it, for plain English.

const LETTERS = 256;                               // tokens of single bytes; as many again for bytes that end a word
const byteToken = (letter, ends) => letter.charCodeAt(0) - 33 + (ends ? LETTERS : 0);

// A function that reads text. It returns {tokens, end, left}: the caption's tokens, the place of the last one (null if no
// word is left), and the words that were left out because pre-training never met one of their pieces.
export function makeReader({ caption, merges, unread, ends: [start, stop], length }) {
  const ranks = new Map(merges.map((pair, rank) => [pair, rank]));
  const tokens = new Map(merges.map((pair, rank) => [pair.replace(" ", ""), 2 * LETTERS + rank]));
  const never = new Set(unread);

  function encode(word) {                          // lower-case letters, or one digit
    const parts = [...word];
    parts[parts.length - 1] += "</w>";
    for (;;) {
      const found = parts.slice(1).map((part, i) => ranks.get(`${parts[i]} ${part}`) ?? Infinity);
      const best = Math.min(...found);
      if (best === Infinity) return parts.map((part) => tokens.get(part) ?? byteToken(part, part.endsWith("</w>")));
      const at = found.indexOf(best);
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  return function read(text) {
    const words = text.toLowerCase().match(/\p{L}+|\d/gu) ?? [], left = [], known = [];
    for (const word of words) {
      const pieces = /^([a-z]+|\d)$/.test(word) ? encode(word) : null;
      if (pieces?.every((piece) => !never.has(piece))) known.push(...pieces);
      else left.push(word);
    }
    const line = [start, ...caption.split(" ").flatMap(encode), ...known, stop];
    if (line.length > length) throw new Error("these are more words than the model reads.");
    const padded = BigInt64Array.from({ length }, (_, i) => BigInt(line[i] ?? 0));
    return { tokens: padded, end: known.length ? line.length - 1 : null, left };
  };
}
