"use strict";
// The requests to the server. The key goes into a header, never into a URL.

const KEY = "pion-key";

/** What the server says when it refuses a request, or that it can't be reached (status 0). */
class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Send a request; return the response. Throws ServerError, and AbortError when stopped. */
async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const key = tab.get(KEY);
  if (key) headers.Authorization = "Bearer " + key;
  const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer.");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new ServerError(response.status, said?.error?.message ?? "status " + response.status);
}

/** Yield the JSON of each event of a stream. Throws ServerError if the stream breaks off. */
async function* stream(path, body, signal) {
  const response = await ask(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(0, "The connection to the server broke off.");
    }
    if (part.done) throw new ServerError(0, "The connection to the server broke off.");
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const json = JSON.parse(data);
      if (json.error) throw new ServerError(json.error.code === "shutting_down" ? 0 : 500, json.error.message);
      yield json;
    }
  }
}
