// Texts to rows of token ids, exactly as the run was trained: a library's tokenizer, and the parts in which it
// differs from the one in Rust.

import { Tokenizer } from "./runtime/tokenizers.js";

// Normalisers and word borders as tables

// A character's image under the first of these that gives it; the page's own Python code writes the ranges.
const RULES = {
  "": () => "",
  " ": () => " ",
  " c ": (character) => ` ${character} `,
  nfd: (character) => character.normalize("NFD"),
};

const inRange = (ranges, code) => {
  let low = 0;
  let high = ranges.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ranges[middle][1] < code) low = middle + 1;
    else high = middle;
  }
  return low < ranges.length && ranges[low][0] <= code ? ranges[low][2] : undefined;
};

export const tableNormalizer = ({ ranges, images }) => {
  const single = new Map(Object.entries(images));
  return (text) => {
    let normalized = "";
    for (const character of text) {
      const image = single.get(character);
      const rule = image === undefined ? inRange(ranges, character.codePointAt(0)) : undefined;
      normalized += image !== undefined ? image : rule === undefined ? character : RULES[rule](character);
    }
    return normalized;
  };
};

// Words end at characters of class " " and before and after each one of class "p".
export const tableWords = (ranges) => (texts) =>
  [texts].flat().flatMap((text) => {
    const words = [];
    let word = "";
    const close = () => {
      if (word) words.push(word);
      word = "";
    };
    for (const character of text) {
      const kind = inRange(ranges, character.codePointAt(0));
      if (kind === undefined) word += character;
      else close();
      if (kind === "p") words.push(character);
    }
    close();
    return words;
  });

// SentencePiece's rules, compiled: the library has no more than an approximation of the usual ones

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

// A double-array trie of UTF-8 bytes (github.com/s-yata/darts-clone) and the texts that its values point into.
export const precompiledNormalizer = (base64) => {
  const bytes = bytesOf(base64);
  const view = new DataView(bytes.buffer);
  const size = view.getUint32(0, true);
  const units = new Uint32Array(size / 4);
  for (let i = 0; i < units.length; i += 1) units[i] = view.getUint32(4 + 4 * i, true);
  const images = bytes.subarray(4 + size);
  const encoder = new TextEncoder();
  const decoder = new TextDecoder();
  const offset = (unit) => (unit >>> 10) << ((unit & 512) >>> 6);
  // The image of the shortest beginning that has one stands for the whole: so does the crate spm_precompiled.
  const image = (part) => {
    let node = offset(units[0]);
    for (const byte of encoder.encode(part)) {
      node ^= byte;
      const unit = units[node];
      if ((unit & 0x800000ff) >>> 0 !== byte) return undefined;
      node ^= offset(unit);
      if ((unit >>> 8) & 1) {
        const start = units[node] & 0x7fffffff;
        let end = start;
        while (images[end]) end += 1;
        return decoder.decode(images.subarray(start, end));
      }
    }
    return undefined;
  };
  const segmenter = new Intl.Segmenter("en", { granularity: "grapheme" });
  const of = (part) => {
    const short = encoder.encode(part).length < 6;
    const whole = short ? image(part) : undefined;
    return whole ?? [...part].map((character) => image(character) ?? character).join("");
  };
  return (text) => Array.from(segmenter.segment(text), ({ segment }) => of(segment)).join("");
};

// JavaScript counts U+FEFF as space, and U+0085 not; Rust the other way round.
const SPACES = "\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";

const rustSpaces = (pattern) => {
  let inClass = false;
  const source = pattern.source.replace(/\\[^]|\[|\]/g, (found) => {
    if (found === "[") inClass = true;
    if (found === "]") inClass = false;
    if (found === "\\s") return inClass ? SPACES : `[${SPACES}]`;
    return found === "\\S" && !inClass ? `[^${SPACES}]` : found;
  });
  return new RegExp(source, pattern.flags);
};

const WORDS = rustSpaces(/\S+/g);

const replacePatterns = (part, described) => {
  if (!part) return;
  if (part.pattern instanceof RegExp) part.pattern = rustSpaces(part.pattern);
  if (described.type === "WhitespaceSplit") part.pre_tokenize_text = (text) => text.match(WORDS) ?? [];
  (part.tokenizers ?? []).forEach((one, i) => replacePatterns(one, described.pretokenizers[i]));
};

const replaceNormalizers = (tokenizer, spec, tables) => {
  if (tables.normalizer) {
    tokenizer.normalizer = tableNormalizer(tables.normalizer);
    return;
  }
  const swap = (part, described) => {
    if (described.type === "Precompiled") return precompiledNormalizer(described.precompiled_charsmap);
    if (described.type === "Sequence") {
      const steps = described.normalizers.map((one, i) => swap(part.normalizers[i], one));
      return (text) => steps.reduce((done, step) => step(done), text);
    }
    return (text) => part.normalize(text);
  };
  if (spec) tokenizer.normalizer = swap(tokenizer.normalizer, spec);
};

// Rows

// What is read of a text: rows of ids between the special tokens before and after every text.
export const makeRows = (ids, reading) => {
  const { before, after, max_length: length, window_overlap: overlap } = reading;
  const room = length - before.length - after.length;
  const framed = (part) => [...before, ...part, ...after];
  if (ids.length <= room) return [framed(ids)];
  if (reading.long_texts === "windows") {
    const step = room - Math.trunc(room * overlap);
    const rows = [];
    for (let start = 0; start === 0 || start < ids.length - room + step; start += step) {
      rows.push(framed(ids.slice(start, start + room)));
    }
    return rows;
  }
  if (reading.long_texts === "head_tail") {
    const head = reading.head;
    return [framed([...ids.slice(0, head), ...ids.slice(ids.length - (room - head))])];
  }
  return [framed(reading.truncation_side === "left" ? ids.slice(ids.length - room) : ids.slice(0, room))];
};

// As Python's strip, by which texts were cleaned: no U+FEFF, but U+0085 and the separators of ASCII.
const EDGES = new RegExp(`^[\\x1c-\\x1f${SPACES}]+|[\\x1c-\\x1f${SPACES}]+$`, "g");

export const makeTokenizer = (description, reading, tables) => {
  const tokenizer = new Tokenizer(description, {});
  replaceNormalizers(tokenizer, description.normalizer, tables);
  if (tables.words) tokenizer.pre_tokenizer = tableWords(tables.words);
  else replacePatterns(tokenizer.pre_tokenizer, description.pre_tokenizer);
  return (text) => {
    const { ids } = tokenizer.encode(text.replace(EDGES, ""), { add_special_tokens: false });
    return { rows: makeRows(ids, reading), tokens: ids.length + reading.before.length + reading.after.length };
  };
};
