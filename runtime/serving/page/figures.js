// Counts one text: speed, first byte, drafts kept, calls per byte, where its bytes came from.

const PARTS = ["patcher", "encoder", "global", "decoder"];
const ORIGINS = {
  sampled: "one at a time",
  accepted: "drafts kept",
  corrected: "corrected",
  free: "free",
  denoised: "denoised",
  forced: "forced",
};

export class Figures {
  constructor() {
    this.sent = performance.now();
    this.bytes = 0;
    this.firstBytes = 0; // those that came together with the first byte
    this.firstSeconds = null;
    this.lastSeconds = null;
    this.rejected = 0;
    this.origins = {};
    this.calls = null;
    this.reused = 0;
    this.drafted = null;
    this.accepted = null;
  }

  /** Count a piece of text. */
  push({ bytes, origins, rejected, calls }) {
    this.rejected += rejected.length;
    for (const origin of origins) this.origins[origin] = (this.origins[origin] ?? 0) + 1;
    if (calls) this.calls = calls;
    if (!bytes.length) return;
    this.lastSeconds = (performance.now() - this.sent) / 1000;
    if (this.bytes === 0) {
      this.firstSeconds = this.lastSeconds;
      this.firstBytes = bytes.length;
    }
    this.bytes += bytes.length;
  }

  /** Take the server's own counts, which come last and have no network in them. */
  settle(counts) {
    this.firstSeconds = counts.first_byte_seconds ?? this.firstSeconds;
    this.lastSeconds = counts.total_seconds ?? this.lastSeconds;
    this.calls = counts.calls ?? this.calls;
    this.drafted = counts.drafted ?? null;
    this.accepted = counts.accepted ?? null;
    this.reused = counts.reused_bytes ?? 0;
  }

  /** Bytes per second after the first ones, null before there are any. */
  get speed() {
    const seconds = this.lastSeconds - this.firstSeconds;
    return this.bytes > this.firstBytes && seconds > 0 ? (this.bytes - this.firstBytes) / seconds : null;
  }

  /** Return each figure in words, by the name that it has in the page; a list where it has several. */
  words() {
    const accepted = this.accepted ?? this.origins.accepted ?? 0;
    const drafted = this.drafted ?? accepted + this.rejected;
    const reused = this.reused ? `, ${count(this.reused)} of the prompt known` : "";
    return {
      speed: this.speed === null ? "–" : `${number(this.speed)} bytes/s`,
      first: this.firstSeconds === null ? "–" : duration(this.firstSeconds) + reused,
      acceptance: drafted ? `${percent(accepted / drafted)} of ${number(drafted)}` : "–",
      bytes: number(this.bytes),
      calls: this.calls && this.bytes ? this.parts.map((part) => `${this.perByte(part)} ${part}`) : ["–"],
      origins: this.originWords(),
    };
  }

  /** Parts whose calls are shown: a draft decoder only where it has been called. */
  get parts() {
    return this.calls.draft ? [...PARTS, "draft"] : PARTS;
  }

  perByte(part) {
    return ((this.calls[part] ?? 0) / this.bytes).toFixed(2);
  }

  originWords() {
    const seen = Object.keys(ORIGINS).filter((origin) => this.origins[origin]);
    return seen.length ? seen.map((origin) => `${number(this.origins[origin])} ${ORIGINS[origin]}`) : ["–"];
  }
}

/** Return a number of bytes in words. */
export function count(bytes) {
  return `${number(bytes)} ${bytes === 1 ? "byte" : "bytes"}`;
}

function number(value) {
  return Math.round(value).toLocaleString("en-US");
}

function percent(value) {
  return `${(100 * value).toFixed(0)} %`;
}

function duration(seconds) {
  return seconds < 1 ? `${(1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
}
