// Reads the form: what is asked of the server.

const OTHER = "other";
const IN_WORDS = [
  [/^auto$/, () => "drafts as long as drafting pays; the text is the model's"],
  [/^ar$/, () => "one byte at a time; what the others are measured against"],
  [/^s:(\d+)/, (n) => `self-speculation: drafts ${n} bytes and verifies them; the text is the model's`],
  [/^dv:(\d+)/, (n) => `denoises blocks of ${n} bytes and verifies them; the text is the model's`],
  [/^d:(\d+)/, (n) => `denoises blocks of ${n} bytes and keeps them unverified; the text is its own`],
];
const ESCAPES = { n: "\n", t: "\t", "\\": "\\" };

const field = (id) => document.getElementById(id);

/** Offer what a model can do: its methods, and as many bytes as it can write. */
export function offer({ methods, default_method: chosen, max_bytes: most }) {
  const select = field("method");
  select.replaceChildren(...[...methods, OTHER].map((name) => new Option(name === OTHER ? "another …" : name, name)));
  select.value = methods.includes(chosen) ? chosen : methods[0];
  if (most) field("max-bytes").max = most;
  explain();
}

/** Put the chosen method into words. */
export function explain() {
  const name = field("method").value;
  field("other").hidden = name !== OTHER;
  field("other-method").required = name === OTHER;
  field("method-words").textContent = inWords(name);
}

function inWords(name) {
  if (name === OTHER) return "Any name that fastblt generate takes.";
  for (const [pattern, words] of IN_WORDS) {
    const found = pattern.exec(name);
    if (found) return words(found[1]);
  }
  return "";
}

/** Return the body of a request; a seed is drawn where sampling needs one, so that a comparison has the same. */
export function request(model) {
  const temperature = field("temperature").valueAsNumber;
  const body = {
    model,
    prompt: field("prompt").value,
    method: field("method").value === OTHER ? field("other-method").value.trim() : field("method").value,
    max_tokens: field("max-bytes").valueAsNumber,
    temperature,
    stream: true,
    stream_options: { include_usage: true },
    fastblt: { details: true },
  };
  for (const [id, name] of [["top-p", "top_p"], ["top-k", "top_k"], ["min-p", "min_p"], ["seed", "seed"]]) {
    const value = field(id).valueAsNumber;
    if (!Number.isNaN(value)) body[name] = value;
  }
  if (temperature > 0 && body.seed === undefined) body.seed = Math.floor(Math.random() * 2 ** 31);
  const stops = field("stop").value.split("\n").filter((line) => line !== "").map(unescaped);
  if (stops.length) body.stop = stops;
  return body;
}

function unescaped(line) {
  return line.replace(/\\([nt\\])/g, (_, letter) => ESCAPES[letter]);
}
