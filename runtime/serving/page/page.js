// Starts the page: the form, the keys, one text or two of them, and what is announced.

import { Column, compare } from "./column.js";
import { count } from "./figures.js";
import { explain, offer, request } from "./settings.js";
import { ask, events } from "./stream.js";

const ANNOUNCE_MS = 5000;
const BASELINE = "ar";
const LOADING = 503;
const RETRY_MS = 1000;

const element = (id) => document.getElementById(id);
let key = ""; // in memory only: gone with the page
let model = null;
let running = null; // AbortController of what is being generated

async function load() {
  try {
    const [entry] = (await ask("v1/models", key)).data;
    model = entry.id;
    element("model").textContent = model;
    document.title = `${model} · fastblt`;
    offer(entry.fastblt);
    element("key-form").hidden = true;
    fail("");
  } catch (error) {
    if (error.status === LOADING) {
      element("model").textContent = "The server loads its model …";
      setTimeout(load, RETRY_MS);
    } else {
      refuse(error);
    }
  }
}

async function generate() {
  if (running || !element("request").reportValidity()) return;
  if (model === null) await load();
  if (model === null) return;
  const body = request(model);
  const methods = element("compare").checked && body.method !== BASELINE ? [body.method, BASELINE] : [body.method];
  const columns = fresh(methods, body);
  running = new AbortController();
  busy(true);
  const clock = setInterval(() => announce(progress(columns)), ANNOUNCE_MS);
  announce("Generating.");
  try {
    // One after the other: at the same time they would share the machine, and their speeds would mean nothing.
    for (const column of columns) await write(column, { ...body, method: column.method });
    announce(conclude(columns, body));
  } catch (error) {
    columns.filter((column) => !column.ended).forEach((column) => column.finish(stopped(error)));
    if (error.name === "AbortError") announce(`Stopped. ${conclude(columns, body)}`);
    else refuse(error);
  } finally {
    clearInterval(clock);
    running = null;
    busy(false);
  }
}

function fresh(methods, body) {
  fail("");
  element("verdict").hidden = true;
  const parent = element("columns");
  parent.replaceChildren();
  parent.classList.toggle("two", methods.length === 2);
  const prompt = new TextEncoder().encode(body.prompt);
  const columns = methods.map((method) => new Column(parent, method, prompt));
  columns.slice(1).forEach((column) => column.say(`waits for ${columns[0].method}, so that neither slows the other`));
  return columns;
}

async function write(column, body) {
  column.start();
  for await (const event of events("v1/completions", key, body, running.signal)) column.take(event);
  column.finish();
  if (body.seed !== undefined && body.temperature > 0) column.say(`${column.state.textContent}, seed ${body.seed}`);
}

function stopped(error) {
  return error.name === "AbortError" ? "stopped" : "failed";
}

function conclude(columns, body) {
  const sentences = columns.filter((column) => column.data.length).map((column) => column.sentence());
  if (columns.length === 2 && columns.every((column) => column.data.length)) {
    const verdict = compare(...columns, body.temperature > 0);
    element("verdict").textContent = verdict;
    element("verdict").hidden = false;
    sentences.unshift(verdict);
  }
  return sentences.join(" ");
}

function progress(columns) {
  const column = columns.findLast((each) => each.data.length) ?? columns[0];
  return `${column.method}: ${count(column.data.length)} so far.`;
}

function announce(words) {
  element("announcement").textContent = words;
}

function fail(words) {
  element("error").textContent = words;
}

function refuse(error) {
  // That a key is needed is no error as long as nobody has entered one.
  fail(error.status === 401 && key === "" ? "" : error.message);
  announce("");
  if (error.status === 401) {
    element("key-form").hidden = false;
    element("key").focus();
  } else if (error.status === undefined) {
    console.error(error);
  }
}

function busy(now) {
  // Not `disabled`: a button that has the focus would lose it.
  element("generate").setAttribute("aria-disabled", String(now));
  element("stop-button").setAttribute("aria-disabled", String(!now));
}

function stop() {
  running?.abort();
}

function theme() {
  const chosen = element("theme").value;
  if (chosen) document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
}

element("request").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = element("key").value.trim();
  load().then(() => model !== null && element("key-form").hidden && element("generate").focus());
});
element("stop-button").addEventListener("click", stop);
element("method").addEventListener("change", explain);
element("theme").addEventListener("change", theme);
for (const name of ["patches", "origins", "rejected"]) {
  const box = element(`show-${name}`);
  const apply = () => element("results").classList.toggle(`with-${name}`, box.checked);
  box.addEventListener("change", apply);
  apply();
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  } else if (event.key === "Escape") {
    stop();
  }
});
theme();
load();
