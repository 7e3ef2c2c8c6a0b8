// Talks to the server: a request goes out, the events of its answer come back one by one.

/** An answer of the server, or the lack of one, that is no text. `status` is HTTP's, 0 where there was no answer. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Return what `path` answers as JSON. */
export async function ask(path, key) {
  const answer = await send(path, key, {});
  return answer.json();
}

/** Yield the objects that the server sends for a request, as they arrive, until it is done or `signal` aborts. */
export async function* events(path, key, body, signal) {
  const answer = await send(path, key, { method: "POST", body: JSON.stringify(body), signal });
  for await (const data of dataLines(answer.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ServerError(event.error.message ?? "the server reports an error", answer.status);
    yield event;
  }
  throw new ServerError("The server ended the text before it was complete.", 0);
}

async function send(path, key, options) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?", 0);
  }
  if (answer.ok) return answer;
  throw new ServerError(await reason(answer), answer.status);
}

async function reason(answer) {
  let message = `The server answers ${answer.status} ${answer.statusText}`.trim();
  try {
    message = (await answer.json()).error.message;
  } catch {
    // No body, or not OpenAI's: the status has to do.
  }
  const wait = answer.headers.get("Retry-After");
  return wait && answer.status === 429 ? `${message} (again in ${wait} s)` : message;
}

async function* dataLines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServerError("The connection to the server was lost.", 0);
      }
      if (part.done) return;
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      // Each event here is one line of data; comments, which keep the connection open, begin with a colon.
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
