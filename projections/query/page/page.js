// Keeps the page's numbers current. The server renders them, also for browsers without scripts; this asks for the page
// again when the server says that the counts have changed, and puts the new numbers in the place of the old.
"use strict";

const connection = document.getElementById("connection");
let loading = false;
let again = false;

async function load() {
  if (loading) {
    again = true;
    return;
  }
  loading = true;
  try {
    const answer = await fetch("/", { headers: { Accept: "text/html" } });
    const next = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
    const now = document.getElementById("live");
    // Not under the hands of somebody who is selecting text or moving through the links by keyboard.
    const busy = now.contains(document.activeElement) || String(document.getSelection()) !== "";
    if (next && !busy) {
      now.replaceWith(document.adoptNode(next));
    }
  } catch {
    say("The service does not answer. The numbers are old.");
  } finally {
    loading = false;
    if (again) {
      again = false;
      setTimeout(load, 1000);
    }
  }
}

function say(text) {
  if (connection.textContent !== text) {
    connection.textContent = text;
  }
}

function listen() {
  const source = new EventSource("/v1/events?events=counts");
  source.addEventListener("open", () => say(""));
  source.addEventListener("counts", () => {
    if (!document.hidden) {
      load();
    }
  });
  source.addEventListener("error", () => {
    say("The connection is lost. The numbers are old; trying again.");
    if (source.readyState === EventSource.CLOSED) {
      setTimeout(listen, 5000);
    }
  });
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) {
    load();
  }
});
// Also when nothing changes: how old the numbers are, and whether the service is ready.
setInterval(() => {
  if (!document.hidden) {
    load();
  }
}, 10000);
listen();
