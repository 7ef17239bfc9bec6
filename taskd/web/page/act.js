// What one can do to a container: each is asked about before it is done.

import { el } from "./dom.js";

const WORDS = {
  pause: ["Pause", "All that runs in it is frozen until it is resumed."],
  resume: ["Resume", "It goes on where it was."],
  stop: ["Stop", "It is asked to end (SIGTERM), and made to after ten seconds."],
  kill: ["Kill", "All that runs in it is killed at once (SIGKILL)."],
  delete: ["Delete", "The container is removed, with what it has written. This cannot be undone."],
  signal: ["Signal", "It is sent to the container's own process."],
};

// Actions that make sense for a task as it is.
export function possible(task) {
  switch (task?.status) {
    case "running": return ["pause", "signal", "stop", "kill"];
    case "paused": return ["resume", "kill"];
    case "created": return ["kill"];
    case "exited": return ["delete"];
    default: return ["kill", "delete"];
  }
}

export function word(action) {
  return WORDS[action][0];
}

export function ask(store, task, action) {
  if (!task || !possible(task).includes(action)) return;
  const dialog = document.getElementById("ask");
  const [title, about] = WORDS[action];
  const signals = action === "signal" && el("select", { id: "signal", "aria-label": "Signal" },
    store.hello.signals.map((each) => el("option", { value: each }, `SIG${each}`)));
  const dangerous = ["kill", "delete", "stop"].includes(action);
  const form = el("form", { method: "dialog", onsubmit: () => act(store, task.id, action, signals ? signals.value : "") },
    el("h2", { id: "ask-title" }, `${title} `, el("span", { class: "mono" }, task.id), "?"),
    el("p", {}, about),
    signals,
    el("div", { class: "buttons" },
      el("button", { type: "button", class: "quiet", autofocus: dangerous, onclick: () => dialog.close() }, "Cancel"),
      el("button", { type: "submit", class: dangerous ? "bad" : "good", autofocus: !dangerous }, title)));
  dialog.replaceChildren(form);
  dialog.showModal();
}

async function act(store, id, action, signal) {
  try {
    const answer = await fetch(`/task/${encodeURIComponent(id)}/${action}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Taskd-Token": store.hello.token },
      body: JSON.stringify(signal ? { signal } : {}),
    });
    if (!answer.ok) tell((await answer.text()).trim(), true);
    else tell(`${word(action)}: ${id}`);
  } catch {
    tell("taskd ui does not answer", true);
  }
}

// Say it for some seconds.
export function tell(text, bad = false) {
  const note = el("p", { class: bad ? "bad" : "" }, text);
  document.getElementById("said").append(note);
  setTimeout(() => note.remove(), bad ? 8000 : 3000);
}
