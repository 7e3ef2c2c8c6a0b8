// One text of the page: its heading, the marked bytes as they arrive, and their figures.

import { Figures, count } from "./figures.js";
import { MarkedText } from "./marked_text.js";

const ENDS = { stop: "ended by itself or at a stop string", length: "reached its length" };
const NEAR_END = 40; // pixels: closer than that to the end of its text, a box follows what is written

export class Column {
  constructor(parent, method, prompt) {
    const copy = document.getElementById("column").content.cloneNode(true);
    this.method = method;
    this.data = [];
    this.ended = false;
    this.finishReason = null;
    this.figures = new Figures();
    this.state = copy.querySelector(".state");
    this.box = copy.querySelector(".text");
    this.shown = Object.fromEntries([...copy.querySelectorAll("[data-figure]")].map((e) => [e.dataset.figure, e]));
    copy.querySelector("h2").textContent = method;
    copy.querySelector("article").setAttribute("aria-label", `Text of ${method}`);
    this.box.setAttribute("aria-label", `Text of ${method}`);
    this.text = new MarkedText(this.box, prompt);
    this.drawing = false;
    this.following = true;
    this.box.addEventListener("scroll", () => {
      this.following = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < NEAR_END;
    });
    parent.append(copy);
    this.draw();
  }

  /** Name what the text waits for, or how it ended. */
  say(words) {
    this.state.textContent = words;
  }

  /** Begin to count: the request goes out now. */
  start() {
    this.figures = new Figures();
    this.box.setAttribute("aria-busy", "true");
    this.say("reading the prompt …");
  }

  /** Take one event of the server. */
  take(event) {
    for (const choice of event.choices ?? []) {
      this.finishReason = choice.finish_reason ?? this.finishReason;
      if (choice.fastblt?.bytes !== undefined) this.push(details(choice.fastblt));
    }
    if (event.fastblt) this.figures.settle(event.fastblt);
    this.drawSoon();
  }

  push(piece) {
    if (this.data.length === 0) this.say("writing …");
    for (const byte of piece.bytes) this.data.push(byte);
    this.figures.push(piece);
    this.text.push(piece);
  }

  /** End the text; `words` is why, if not what the server reported. */
  finish(words) {
    this.ended = words === undefined;
    this.text.finish();
    this.box.setAttribute("aria-busy", "false");
    this.say(words ?? ENDS[this.finishReason] ?? "done");
    this.draw();
  }

  /** Return one sentence about the text so far. */
  sentence() {
    const { speed, acceptance } = this.figures.words();
    const kept = acceptance === "–" ? "" : `, ${acceptance} drafted bytes kept`;
    return `${this.method}: ${count(this.data.length)}, ${speed === "–" ? "speed unknown" : speed}${kept}.`;
  }

  drawSoon() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.draw();
    });
  }

  draw() {
    for (const [name, words] of Object.entries(this.figures.words())) show(this.shown[name], words);
    if (this.following) this.box.scrollTop = this.box.scrollHeight;
  }
}

/** Return what there is to tell of two texts: whether they are identical, and which was faster. */
export function compare(first, second, sampled) {
  const same = sameness(first, second);
  const reason = sampled && same.startsWith("The texts differ") ? "Sampled texts of two methods need not be the same." : "";
  return [same, reason, faster(first, second)].filter(Boolean).join(" ");
}

function sameness(first, second) {
  const shorter = Math.min(first.data.length, second.data.length);
  let same = 0;
  while (same < shorter && first.data[same] === second.data[same]) same += 1;
  if (same < shorter) return `The texts differ: they part after ${count(same)}.`;
  if (first.ended && second.ended && first.data.length === second.data.length) {
    return `The texts are identical (${count(same)}).`;
  }
  if (first.ended && second.ended) return `The texts differ in length; the first ${count(same)} are identical.`;
  return `The first ${count(same)} are identical; one text was not finished.`;
}

function faster(first, second) {
  const [one, two] = [first.figures.speed, second.figures.speed];
  if (one === null || two === null) return "";
  return `${first.method} wrote ${(one / two).toFixed(2)} times as fast as ${second.method}.`;
}

function show(element, words) {
  if (!Array.isArray(words)) {
    element.textContent = words;
    return;
  }
  const parts = words.map((each) => Object.assign(document.createElement("span"), { textContent: each }));
  element.replaceChildren(...parts.flatMap((part, i) => (i ? [" ", part] : [part])));
}

function details({ bytes, origins, boundaries, rejected, calls }) {
  return { bytes: base64(bytes), origins, boundaries, rejected: base64(rejected), calls };
}

function base64(text) {
  return Uint8Array.from(atob(text ?? ""), (character) => character.charCodeAt(0));
}
