// The page: which part of it is shown, and how it stands with the daemon.

import { el, say } from "./dom.js";
import { detail } from "./detail.js";
import { Graph } from "./graph.js";
import { Store, follow } from "./store.js";
import { tasks } from "./tasks.js";
import { timeline } from "./timeline.js";
import { bytes, happened, percent } from "./words.js";

const store = new Store();
const main = document.getElementById("main");
let leave = new AbortController();

function route() {
  leave.abort();
  leave = new AbortController();
  const found = location.hash.match(/^#\/task\/(.+)$/);
  const id = found && decoded(found[1]);
  main.replaceChildren(...(id ? detail(store, leave.signal, id) : overview(leave.signal)));
  document.title = id ? `${id} · taskd` : "taskd";
  document.querySelector(".keys").hidden = Boolean(id);
  window.scrollTo(0, 0);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function overview(signal) {
  const figures = ["Running", "CPU", "Memory", "Last hour"].map((title) => new Figure(title));
  const [running, cpu, memory, hour] = figures;
  follow(store, ["tasks", "use", "events"], () => {
    const all = [...store.tasks.values()];
    const runs = all.filter((each) => each.status === "running").length;
    const paused = all.filter((each) => each.status === "paused").length;
    const ended = all.filter((each) => each.status === "exited").length;
    const others = [paused && `${paused} paused`, ended && `${ended} exited`].filter(Boolean).join(", ");
    running.show(`${runs}`, others || (all.length ? "and no others" : ""));
    const used = [...store.use.values()];
    const sum = (index) => used.reduce((total, each) => total + (each[index] ?? 0), 0);
    cpu.show(used.length ? percent(sum(0)) : "–", "of one core", summed("cpu"), 0.1);
    memory.show(used.length ? bytes(sum(1)) : "–", "without page cache", summed("memory"), 1 << 20);
    const since = Date.now() - 3600000;
    const lately = store.events.filter((each) => each.at > since);
    const ooms = lately.filter((each) => each.topic === "/tasks/oom").length;
    const exits = lately.filter((each) => each.topic === "/tasks/exit");
    const failed = exits.filter((each) => happened(each).kind === "failed").length;
    hour.show(`${exits.length} exit${exits.length === 1 ? "" : "s"}`, `${failed} failed, ${ooms} out of memory`);
  }, signal);
  return [
    el("h1", { class: "unseen" }, "Tasks"),
    el("div", { class: "figures" }, figures.map((each) => each.element)),
    el("div", { class: "columns" }, tasks(store, signal), timeline(store, signal)),
  ];
}

function summed(name) {
  const all = [...store.past.values()].map((each) => each[name]);
  const length = Math.max(0, ...all.map((each) => each.length));
  return Array.from({ length }, (_, index) => {
    let total = null;
    for (const values of all) {
      const value = values[values.length - length + index];
      if (value !== null && value !== undefined) total = (total ?? 0) + value;
    }
    return total;
  });
}

class Figure {
  constructor(title) {
    this.title = title;
    this.value = el("b");
    this.words = el("small");
    this.graph = new Graph(40);
    this.graph.element.setAttribute("hidden", "");
    this.element = el("div", { class: "card figure" }, el("span", {}, title), this.value, this.words, this.graph.element);
  }

  show(value, words, values = null, least = 1) {
    say(this.value, value);
    say(this.words, words);
    if (!values) return;
    this.graph.element.removeAttribute("hidden");
    this.graph.show(values, least, `${this.title} ${value}, and in the last two minutes`);
  }
}

function standing() {
  const link = document.getElementById("link");
  const away = Boolean(store.trouble);
  const words = { live: away ? "daemon away" : "live", lost: "reconnecting", refused: "link needed", connecting: "connecting" }[store.link];
  say(link, words);
  link.className = `pill ${store.link === "live" ? (away ? "bad" : "good") : store.link === "connecting" ? "" : "bad"}`;
  const trouble = document.getElementById("trouble");
  const said = {
    live: away ? `The daemon does not answer (${store.trouble}). What you see is as it was; this goes on when it is back.` : "",
    lost: "taskd ui does not answer. If it has ended, start it again, and open the link that it prints.",
    refused: "taskd ui has been started anew: open the link that it has printed.",
    connecting: "",
  }[store.link];
  say(trouble, said);
  trouble.hidden = !said;
  document.body.classList.toggle("stale", Boolean(said));
}

function greet() {
  if (!store.hello) return;
  say(document.getElementById("namespace"), store.hello.namespace);
  say(document.getElementById("address"), store.hello.address);
}

function light() {
  const chosen = localStorage.getItem("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}

document.getElementById("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  localStorage.setItem("theme", dark ? "light" : "dark");
  light();
});

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || document.getElementById("ask").open) {
    if (event.key === "Escape" && event.target.id === "filter") event.target.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    document.getElementById("filter")?.focus();
  } else if (event.key === "Escape") location.hash = "#/";
  else if (event.key === "ArrowDown" && !event.target.closest("tr, [role=tab], pre, .steps")) {
    event.preventDefault();
    document.querySelector("tbody a")?.focus();
  }
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

light();
follow(store, ["link", "trouble"], standing);
follow(store, ["hello"], greet);
window.addEventListener("hashchange", route);
route();
