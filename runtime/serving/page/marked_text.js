// Turns bytes and what is known of them into marked text.
//
// Everything that a model wrote becomes a text node, never markup. A character of several bytes has the kind of its
// first byte, and one more mark if the others differ. Bytes that are no UTF-8 become \xNN.

export const WORDS = {
  prompt: "prompt",
  sampled: "chosen one byte at a time",
  accepted: "drafted and kept",
  corrected: "written in place of a rejected draft",
  free: "free, after a draft kept whole",
  denoised: "denoised in a block, not verified",
  forced: "forced by a grammar",
  rejected: "drafted and rejected",
};

// What would be invisible, or move other characters: controls, marks of direction, line separators.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/;

export class MarkedText {
  /** Write into `element`; before the first new byte come those of the prompt. */
  constructor(element, prompt) {
    this.element = element;
    this.prompt = prompt;
    this.ends = new Set();
    this.rejected = [];
    this.pending = []; // bytes of a character that is not complete yet, and the nodes between them
    this.next = null; // offset of the next byte; null: nothing has been written, not even the prompt
    this.span = null;
    this.restart();
  }

  /** Append a piece; `boundaries` are offsets of bytes that end a patch, negative ones in the prompt. */
  push({ bytes, origins, boundaries, rejected }) {
    for (const end of boundaries) this.ends.add(end);
    if (rejected.length) this.rejected.push(rejected);
    this.begin();
    bytes.forEach((byte, i) => this.byte(byte, origins[i]));
  }

  /** Write what is left of a character when nothing follows. */
  finish() {
    this.begin();
    this.breakCharacter();
  }

  begin() {
    if (this.next !== null) return;
    this.next = -this.prompt.length;
    for (const byte of this.prompt) this.byte(byte, "prompt");
  }

  byte(byte, kind) {
    // The token before the prompt is a patch by itself: a boundary in front of everything would mean nothing.
    if (this.ends.has(this.next - 1) && this.next > -this.prompt.length) this.between(cut());
    this.next += 1;
    let title = WORDS[kind];
    if (kind === "corrected" && this.rejected.length) {
      const thrown = escaped(this.rejected.shift());
      this.between(deleted(thrown));
      title = `written in place of the rejected draft “${thrown}”`;
    }
    this.decode(byte, kind, title);
  }

  between(node) {
    if (this.pending.length) this.pending.push(node);
    else this.put(node);
  }

  decode(byte, kind, title) {
    let character;
    try {
      character = this.decoder.decode(Uint8Array.of(byte), { stream: true });
    } catch {
      const alone = this.pending.length === 0;
      this.breakCharacter();
      if (alone) this.write(hex(byte), kind, title);
      else this.decode(byte, kind, title);
      return;
    }
    this.pending.push({ byte, kind, title });
    if (character === "") return;
    const bytes = this.pending.filter((each) => !(each instanceof Node));
    const nodes = this.pending.filter((each) => each instanceof Node);
    this.pending = [];
    nodes.filter((node) => node.tagName === "DEL").forEach((node) => this.put(node));
    if (bytes.every((each) => each.kind === kind)) this.write(character, kind, title);
    else this.writeMixed(character, bytes);
    nodes.filter((node) => node.tagName !== "DEL").forEach((node) => this.put(node));
  }

  breakCharacter() {
    const { pending } = this;
    this.restart();
    this.pending = [];
    for (const each of pending) {
      if (each instanceof Node) this.put(each);
      else this.write(hex(each.byte), each.kind, each.title);
    }
  }

  restart() {
    this.decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  }

  write(character, kind, title) {
    if (character === "\n") {
      this.put(span(`${kind} line-end`, "\n", title));
    } else if (this.span?.className === kind && this.span.title === title) {
      this.span.firstChild.appendData(visible(character));
    } else {
      const node = span(kind, visible(character), title);
      this.put(node);
      this.span = node;
    }
  }

  writeMixed(character, bytes) {
    const each = bytes.map(({ byte, kind }) => `${hex(byte)} ${WORDS[kind]}`);
    this.put(span(`${bytes[0].kind} mixed`, visible(character), `A character of ${bytes.length} bytes: ${each.join("; ")}`));
  }

  put(node) {
    this.span = null;
    this.element.append(node);
  }
}

/** Return bytes as text in one line, with escapes for what cannot be seen or is no UTF-8. */
export function escaped(bytes) {
  const holder = document.createElement("span");
  const text = new MarkedText(holder, bytes);
  text.finish();
  return holder.textContent.replaceAll("\n", "\\n").replaceAll("\t", "\\t");
}

function span(className, text, title) {
  const node = document.createElement("span");
  node.className = className;
  node.title = title;
  node.textContent = text;
  return node;
}

function deleted(text) {
  const node = document.createElement("del");
  node.className = "rejected";
  node.title = WORDS.rejected;
  node.textContent = text;
  return node;
}

function cut() {
  const node = document.createElement("i");
  node.className = "cut";
  return node;
}

function visible(character) {
  if (!INVISIBLE.test(character)) return character;
  const code = character.codePointAt(0);
  return code < 0x80 ? hex(code) : `\\u${code.toString(16).padStart(4, "0")}`;
}

function hex(byte) {
  return `\\x${byte.toString(16).padStart(2, "0")}`;
}
